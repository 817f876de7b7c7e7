import Glibc
import ThalwegCore

/// The length of softmax(z) − onehot(y) of one row.
private func predictionError<T: Real>(_ z: UnsafePointer<T>, _ classes: Int, _ y: Int, order: Int) -> Double {
  let log = Softmax.logSum(z, classes)
  var sum = 0.0
  for c in 0..<classes {
    let l = Double(z[c]) - log, e = c == y ? -expm1(l) : exp(l)
    sum += order == 1 ? abs(e) : e * e
  }
  return order == 1 ? sum : sum.squareRoot()
}

/// EL2N: how far the prediction for a sample is from its label.
///
///     scores_i = |softmax(z_i) − onehot(y_i)|
///
/// z is (n, C), y is (n,). The value is the mean score. The paper averages the scores of some ten models, ten to twenty
/// epochs old: that mean is the host's.
/// Errors   TW_ERROR_RANGE: a label that is no class.
/// Source   Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075.
struct EL2N: Objective {
  static let method = Method(
    "el2n", .diagnostic, "How far the prediction for a sample is from its label.",
    rule: "scores_i = |softmax(z_i) - onehot(y_i)| of the order 2, or 1",
    source: "Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075",
    parameters: [.integer("order", 2, .within(1, 2), "of the norm")],
    inputs: [
      .constant("z", "n, C", "logits"), .integer("y", "n", "labels"), .result("scores", "n", "score of each sample"),
    ])
  let order: Int
  init(_ h: Hyper) { order = h.integer("order") }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], y = try x.integers("y"), n = x.sizes["n"], classes = x.sizes["C"]
    try Labels.check(y, n, classes)
    let scores = try cache?.keep("scores", n, T.self)
    return Rows.sum(n, work: 32 * classes) { i in
      let score = predictionError(z + i * classes, classes, y[i], order: order)
      scores?[i] = T(score)
      return score
    } / Double(n)
  }
}

/// GraNd: the length of the gradient of a sample.
///
///     scores_i = |g_i|
///
/// g is (n, ...). The value is the mean score. Whoever has no gradients of samples takes those of the last layer:
/// `grand_last_layer`. The paper takes the mean over initialisations, at the start or some epochs in.
/// Source   Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075.
struct GraNd: Objective {
  static let method = Method(
    "grand", .diagnostic, "The length of the gradient of each sample.", rule: "scores_i = |g_i|",
    source: "Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075",
    inputs: [.constant("g", "n, ...", "gradients of samples"), .result("scores", "n", "score of each sample")])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let g = try x["g"], n = x.sizes["n"], p = x.sizes.samples
    let scores = try cache?.keep("scores", n, T.self)
    return Rows.sum(n, work: p) { i in
      let score = Flat.norm(g + i * p, p)
      scores?[i] = T(score)
      return score
    } / Double(n)
  }
}

/// GraNd of a linear last layer under softmax cross-entropy, from its inputs and outputs.
///
///     scores_i = |softmax(z_i) − onehot(y_i)|·√(|h_i|² + 1);   without a bias √|h_i|²
///
/// z is (n, C), h is (n, d), y is (n,). The value is the mean score.
/// Errors   TW_ERROR_RANGE: a label that is no class.
/// Source   Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075.
struct GraNdLastLayer: Objective {
  static let method = Method(
    "grand_last_layer", .diagnostic, "The length of the gradient of each sample for a linear last layer.",
    rule: "scores_i = |softmax(z_i) - onehot(y_i)|*sqrt(|h_i|^2 + [bias])",
    source: "Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075",
    parameters: [.flag("bias", true, "the layer has a bias")],
    inputs: [
      .constant("z", "n, C", "logits"), .constant("h", "n, d", "inputs of the layer"), .integer("y", "n", "labels"),
      .result("scores", "n", "score of each sample"),
    ])
  let bias: Bool
  init(_ h: Hyper) { bias = h.bias }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], h = try x["h"], y = try x.integers("y")
    let n = x.sizes["n"], classes = x.sizes["C"], d = x.sizes["d"]
    try Labels.check(y, n, classes)
    let scores = try cache?.keep("scores", n, T.self)
    return Rows.sum(n, work: 32 * classes + d) { i in
      let length = hypot(Flat.norm(h + i * d, d), bias ? 1 : 0)
      let score = predictionError(z + i * classes, classes, y[i], order: 2) * length
      scores?[i] = T(score)
      return score
    } / Double(n)
  }
}

/// Forgetting events: how often a sample was right and is wrong at its next visit.
///
///     right before, wrong now: events_i ← events_i + 1;   never right so far: events_i = passes
///
/// correct is (n,): 1 right, 0 wrong, −1 not visited in this pass. The first visit forgets nothing. The value is the
/// number of events, samples that were never right left out.
/// State    the last answer, the count and whether it was ever right, for each sample.
/// Errors   TW_ERROR_RANGE: another number than −1, 0 and 1.
/// Differs  "the maximum" that the card gives to samples never right is the number of passes, as in the authors' code.
/// Source   Toneva et al., 2019, arXiv:1812.05159.
struct ForgettingEvents: Objective {
  static let method = Method(
    "forgetting_events", .diagnostic, "How often each sample was right and then wrong again.",
    rule: "right before and wrong now: events_i <- events_i + 1;  never right so far: events_i = passes",
    source: "Toneva, Sordoni, des Combes, Trischler, Bengio, Gordon, 2019, arXiv:1812.05159",
    inputs: [
      .integer("correct", "n", "1 right, 0 wrong, -1 not visited"), .result("events", "n", "forgetting events"),
      .result("learned", "n", "1 where a sample was ever right"),
    ])
  static func state(_ h: Hyper) -> [Recollection] {
    [Recollection("last", "n"), Recollection("counts", "n"), Recollection("learned", "n")]
  }
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let correct = try x.integers("correct"), n = x.sizes["n"]
    let last = try x.memory["last"], counts = try x.memory["counts"], learned = try x.memory["learned"]
    for i in 0..<n where correct[i] < -1 || correct[i] > 1 {
      throw Failure(Status.range, "`correct` must hold -1, 0 or 1, got \(correct[i]) at element \(i)")
    }
    var total = 0.0
    for i in 0..<n {
      if correct[i] == 0, last[i] == 1 { counts[i] += 1 }
      if correct[i] == 1 { learned[i] = 1 }
      if correct[i] >= 0 { last[i] = Double(correct[i]) }
      total += counts[i]
    }
    let most = Double(x.memory.passes + 1)
    try cache?.keep("events", numbers: (0..<n).map { learned[$0] == 1 ? counts[$0] : most }, T.self)
    try cache?.keep("learned", numbers: (0..<n).map { learned[$0] }, T.self)
    return total
  }
}

/// Opposing signals: the samples whose losses one step moved most, down and up.
///
///     change = after − before;   falling: the k smallest, rising: the k largest, of equal ones the earlier
///     cosine = the cosine between the mean gradients of the two groups; strongly negative: they oppose
///
/// before and after are (n,). g, gradients of samples, is (n, p); without it, or where a mean is 0, the cosine is NaN.
/// The groups are masks, and may overlap in fewer than 2k samples. The value is the cosine.
/// Errors   TW_ERROR_RANGE: a loss that is not finite.
/// Differs  the paper's own selection is not verified; this is the card's.
/// Source   Rosenfeld and Risteski, 2023, arXiv:2311.04163.
struct OpposingSignals: Objective {
  static let method = Method(
    "opposing_signals", .diagnostic, "The samples whose losses a step moved most, down and up.",
    rule: """
      change = after - before;  falling: the k smallest, rising: the k largest
      cosine = cos(mean gradient of the falling, mean gradient of the rising)
      """,
    source: "Rosenfeld, Risteski, 2023, arXiv:2311.04163",
    parameters: [.integer("k", 10, .atLeast(1), "samples in a group")],
    inputs: [
      .constant("before", "n", "losses before the step"), .constant("after", "n", "losses after it"),
      .constant("g", "n, p", "gradients of samples", optional: true), .result("change", "n", "after - before"),
      .result("falling", "n", "1 for the samples that fell most"),
      .result("rising", "n", "1 for the samples that rose most"),
      .result("overlap", "", "samples in both groups"), .result("cosine", "", "between the mean gradients"),
    ])
  let k: Int
  init(_ h: Hyper) { k = h.integer("k") }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let before = try x["before"], after = try x["after"], n = x.sizes["n"], count = min(k, n)
    try refuseNonFinite(before, n, "before")
    try refuseNonFinite(after, n, "after")
    let change = (0..<n).map { Double(after[$0]) - Double(before[$0]) }
    let down = (0..<n).sorted { (change[$0], $0) < (change[$1], $1) }.prefix(count)
    let up = (0..<n).sorted { (-change[$0], $0) < (-change[$1], $1) }.prefix(count)
    func mask(_ group: ArraySlice<Int>) -> [Double] {
      var out = [Double](repeating: 0, count: n)
      for i in group { out[i] = 1 }
      return out
    }
    var cosine = Double.nan
    if let g = x.optional("g") {
      let p = x.sizes["p"], space = Workspace()
      defer { space.close() }
      func sum(_ group: ArraySlice<Int>) throws(Failure) -> UnsafeMutablePointer<Double> {
        let out = try space.room(p, Double.self)
        for i in group { for c in 0..<p { out[c] += Double(g[i * p + c]) } }
        return out
      }
      let a = try sum(down), b = try sum(up)
      cosine = Flat.dot(UnsafePointer(a), UnsafePointer(b), p) / (Flat.norm(a, p) * Flat.norm(b, p))
    }
    if let cache {
      let falling = mask(down), rising = mask(up)
      try cache.keep("change", numbers: change, T.self)
      try cache.keep("falling", numbers: falling, T.self)
      try cache.keep("rising", numbers: rising, T.self)
      try cache.keep("overlap", numbers: [zip(falling, rising).reduce(0) { $0 + $1.0 * $1.1 }], T.self)
      try cache.keep("cosine", numbers: [cosine], T.self)
    }
    return cosine
  }
}
