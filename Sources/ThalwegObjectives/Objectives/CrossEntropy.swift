import Glibc
import ThalwegCore

/// What cross-entropies have in common: targets with smoothing and class weights, beside logits that a loss may first
/// change.
struct CrossEntropy: Sendable {
  static let parameters: [Parameter] = [
    .number("label_smoothing", 0, .within(0, 1), "share of the target that is spread over all classes"),
    .number("temperature", 1, .above(0), "the logits are divided by it"),
    weights,
    .integer("ignore_index", -100, .any, "label of rows that are left out"),
    Reduction.parameter,
  ]
  static let weights = Parameter.list("weight", nil, "weights of the classes, none: 1", optional: true)
  static func validate(_ h: Hyper) throws(Failure) {
    for w in h.list("weight") where !(w >= 0 && w.isFinite) {
      throw Failure(Status.range, "`weight` must hold finite numbers of at least 0, got \(text(w))")
    }
  }

  var smoothing = 0.0, temperature = 1.0
  var weight: [Double] = []
  var ignored: Int?
  var sums: Bool

  /// Reads those of its parameters that a method has.
  init(_ h: Hyper) {
    if h.has("label_smoothing") { smoothing = h.label_smoothing }
    if h.has("temperature") { temperature = h.temperature }
    if h.has("ignore_index") { ignored = h.integer("ignore_index") }
    weight = h.list("weight")
    sums = Reduction(h).sums
  }

  /// Of rows with labels. `logits` writes those of a row; `chain` turns the gradient with respect to them into the one
  /// that is wanted.
  func labels<T: Real>(
    _ y: UnsafePointer<Int>, _ rows: Int, _ classes: Int, into g: UnsafeMutablePointer<T>?,
    logits: (Int, UnsafeMutablePointer<Double>) -> Void,
    chain: (Int, UnsafeMutablePointer<Double>) -> Void = { _, _ in }
  ) throws(Failure) -> Double {
    try check(classes)
    try Labels.check(y, rows, classes, ignoring: ignored)
    var total = 1.0
    if !sums {
      total = 0
      for i in 0..<rows where y[i] != ignored { total += weight.isEmpty ? 1 : weight[y[i]] }
    }
    guard total > 0 else { return 0 }
    return Rows.sum(rows, work: 16 * classes) { i in
      if y[i] == ignored { return 0 }
      return row(classes, 1 / total, g.map { $0 + i * classes }, { logits(i, $0) }, { chain(i, $0) }) { q in
        q[y[i]] += 1 - smoothing
      }
    }
  }

  /// Of rows with a probability for every class.
  func probabilities<T: Real>(
    _ t: UnsafePointer<T>, _ rows: Int, _ classes: Int, into g: UnsafeMutablePointer<T>?,
    logits: (Int, UnsafeMutablePointer<Double>) -> Void
  ) throws(Failure) -> Double {
    try check(classes)
    let scale = sums ? 1 : 1 / Double(rows)
    return Rows.sum(rows, work: 16 * classes) { i in
      row(classes, scale, g.map { $0 + i * classes }, { logits(i, $0) }, { _ in }) { q in
        for c in 0..<classes { q[c] += (1 - smoothing) * Double(t[i * classes + c]) }
      }
    }
  }

  private func check(_ classes: Int) throws(Failure) {
    guard weight.isEmpty || weight.count == classes else {
      throw Failure(Status.shape, "`weight` has \(weight.count) numbers for \(classes) classes")
    }
  }

  private func row<T: Real>(
    _ classes: Int, _ scale: Double, _ g: UnsafeMutablePointer<T>?,
    _ logits: (UnsafeMutablePointer<Double>) -> Void, _ chain: (UnsafeMutablePointer<Double>) -> Void,
    _ target: (UnsafeMutablePointer<Double>) -> Void
  ) -> Double {
    withUnsafeTemporaryAllocation(of: Double.self, capacity: 2 * classes) { buffer in
      guard let z = buffer.baseAddress else { return 0 }
      let q = z + classes
      logits(z)
      q.update(repeating: smoothing / Double(classes), count: classes)
      target(q)
      var top = -Double.infinity, mass = 0.0, expected = 0.0, sum = 0.0
      for c in 0..<classes {
        z[c] /= temperature
        if z[c] > top { top = z[c] }
        if !weight.isEmpty { q[c] *= weight[c] }
        mass += q[c]
      }
      for c in 0..<classes {
        let shifted = z[c] - top
        if q[c] != 0 { expected += q[c] * shifted }
        z[c] = exp(shifted)
        sum += z[c]
      }
      if let g {
        for c in 0..<classes { z[c] = (mass * (z[c] / sum) - q[c]) * (scale / temperature) }
        chain(z)
        for c in 0..<classes { g[c] = T(z[c]) }
      }
      return scale * (mass * log(sum) - expected)
    }
  }
}

/// Softmax cross-entropy with label smoothing, temperature and class weights.
///
///     lp = log softmax(z/T)     q_c = (1 − ε)·w_y·[c = y] + (ε/C)·w_c, or w_c·((1 − ε)·t_c + ε/C) for probabilities t
///     value = −Σ_c q_c·lp_c     ∂value/∂z = ((Σ_c q_c)·softmax(z/T) − q)/T
///
/// z is (..., C) with either the labels y or the probabilities t. The mean over labels divides by the sum of their
/// weights over the rows that are kept, the mean over probabilities by the number of rows.
/// Errors   TW_ERROR_RANGE: a label outside [0, C) that is not ignore_index; TW_ERROR_NEEDS: not one of y and t.
/// Differs  torch.nn.functional.cross_entropy is the same, but NaN where every row is ignored: here the value is 0.
/// Source   Szegedy et al., 2015, arXiv:1512.00567 (smoothing).
struct SoftmaxCrossEntropy: Objective {
  static let method = Method(
    "softmax_cross_entropy", .objective,
    "Softmax cross-entropy with label smoothing, temperature and class weights.",
    rule: """
      q_c = (1 - eps)*w_y*[c = y] + eps/C*w_c, or w_c*((1 - eps)*t_c + eps/C)
      value = -mean sum_c q_c*log softmax(z/T)_c
      gradient for z: ((sum_c q_c)*softmax(z/T) - q)/T, over the sum of the weights w_y (the number of rows for t)
      """,
    source: "Szegedy et al., 2015, arXiv:1512.00567", parameters: CrossEntropy.parameters,
    inputs: [
      .variable("z", "..., C", "logits"),
      .integer("y", "...", "labels, from 0 to C - 1 or ignore_index", optional: true),
      .constant("t", "..., C", "probabilities of the classes, in place of labels", optional: true),
    ], validate: CrossEntropy.validate)

  let entropy: CrossEntropy
  init(_ h: Hyper) { entropy = CrossEntropy(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], rows = x.sizes.samples, classes = x.sizes["C"]
    let g = try cache?.keep("z", rows * classes, T.self)
    let logits: (Int, UnsafeMutablePointer<Double>) -> Void = { i, out in
      for c in 0..<classes { out[c] = Double(z[i * classes + c]) }
    }
    switch (x.optionalIntegers("y"), x.optional("t")) {
    case (let y?, nil): return try entropy.labels(y, rows, classes, into: g, logits: logits)
    case (nil, let t?): return try entropy.probabilities(t, rows, classes, into: g, logits: logits)
    default: throw Failure(Status.needs, "either labels `y` or probabilities `t` must be given")
    }
  }
}
