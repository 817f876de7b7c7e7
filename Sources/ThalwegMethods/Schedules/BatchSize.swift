import ThalwegCore

/// What the tests that size a batch have in common: the present batch size B, which never decreases, and what they do
/// with a need.
private struct BatchSize {
  var size = 0.0
  var calls = 0.0
  var memory: [Double] {
    get { [size, calls] }
    set { if newValue.count == 2 { (size, calls) = (newValue[0], newValue[1]) } }
  }
  mutating func observe(_ method: String, _ what: String, _ value: Double) throws(Failure) -> Bool {
    guard what == "batch_size" else { return false }
    guard value >= 1, value.isFinite else {
      throw Failure(Status.range, "\(method): a batch size must be at least 1, got \(text(value))")
    }
    size = value
    return true
  }
  mutating func raise(_ method: String, to need: Double, atMost most: Double) throws(Failure) {
    guard !need.isNaN else {
      throw Failure(Status.nonfinite, "\(method): a per-sample gradient is NaN or infinite; nothing was changed")
    }
    if need > size { size = max(size, min(need.rounded(.up), most)) }
  }
}

/// Per-sample gradients, (m, n) row-major, and what they count times: a power of two, with which squares neither
/// overflow nor vanish. The tests are of ratios.
private struct Samples {
  let p: UnsafePointer<Double>
  let m: Int, n: Int
  let scale: Double

  init(_ p: UnsafePointer<Double>, _ m: Int, _ n: Int, scaled: Bool) throws(Failure) {
    (self.p, self.m, self.n) = (p, m, n)
    let top = scaled ? (0..<m * n).reduce(0.0) { max($0, abs(p[$1])) } : 1
    let power = top > 0 && top.isFinite ? min(max(-top.exponent, -1022), 1022) : 0
    scale = Double(sign: .plus, exponent: power, significand: 1)
    try Memory.ask(8 * (m + 2 * n))  // sums of rows and of columns
  }

  /// Calls `body` with every row.
  func rows(_ body: (UnsafePointer<Double>) -> Void) { for i in 0..<m { body(p + i * n) } }
  func mean() -> [Double] {
    var mean = [Double](repeating: 0, count: n)
    rows { g in for j in 0..<n { mean[j] += scale * g[j] } }
    for j in 0..<n { mean[j] /= Double(m) }
    return mean
  }
}

/// The mean of per-sample gradients that come in parts, and their squared distances from it: summed, and by coordinate
/// where `each` asks for them. Parts are joined as Chan, Golub and LeVeque (1979) do, so that nothing cancels.
private struct Moments {
  var parts = 0.0, count = 0.0, spread = 0.0
  var mean: [Double] = []
  var spreads: [Double] = []

  mutating func join(_ s: Samples, each: Bool) {
    let m = Double(s.m), other = s.mean(), weight = count * m / (count + m)
    if parts == 0 {
      mean = [Double](repeating: 0, count: s.n)
      spreads = [Double](repeating: 0, count: each ? s.n : 0)
    }
    func add(_ x: Double, _ j: Int) {
      spread += x
      if each { spreads[j] += x }
    }
    s.rows { g in
      for j in 0..<s.n {
        let d = s.scale * g[j] - other[j]
        add(d * d, j)
      }
    }
    for j in 0..<s.n {
      let d = other[j] - mean[j]
      add(d * d * weight, j)
      mean[j] += d * m / (count + m)
    }
    (parts, count) = (parts + 1, count + m)
  }
  /// As numbers, and back.
  var memory: [Double] {
    get { [parts, count, spread, Double(mean.count)] + mean + spreads }
    set {
      guard newValue.count >= 4, newValue[3] >= 0, newValue[3] <= Double(newValue.count - 4) else {
        return self = Moments()
      }
      let n = Int(newValue[3])
      (parts, count, spread) = (newValue[0], newValue[1], newValue[2])
      (mean, spreads) = (Array(newValue[4..<(4 + n)]), Array(newValue[(4 + n)...]))
    }
  }
}

/// The norm test: the variance of the mean gradient must not exceed η² times its squared norm.
///
///     ḡ the mean of m per-sample gradients, V their variance (divisor m − 1), summed over the coordinates
///     need = V/(η²·‖ḡ‖²);   coordinate: max_i V_i/(η²·ḡ_i²)
///     need > B:  B ← min(⌈need⌉, max_batch)
///
/// With `parts` a batch may come in that many calls, down to one sample each: O(n) numbers are kept of it.
///
/// State    B, the number of batches that were shown; the mean and the variance of an unfinished batch. It watches
///          `batch_size` and per-sample gradients; the value is B.
/// Differs  nothing from timlautk/AdAdaGrad. Until a batch size is observed, B is the number of samples of the first
///          batch. One sample tests nothing; a zero mean needs max_batch.
/// Errors   TW_ERROR_SHAPE when a part has gradients of another length than those before it.
/// Source   Byrd, Chin, Nocedal and Wu, 2012; Lau, Liu and Kolar, 2024, arXiv:2402.11215 (AdAdaGrad).
struct NormTest: Schedule {
  static let method = Method(
    "norm_test", .schedule, "Raises the batch size when the gradient's variance exceeds a share of its squared norm.",
    rule: """
      mean and V: mean and variance (divisor m - 1) of m per-sample gradients
      need = sum(V)/(eta^2*|mean|^2);  coordinate: max(V/(eta^2*mean^2))
      need > B: B <- min(ceil(need), max_batch)
      """,
    source: "Byrd, Chin, Nocedal, Wu, 2012; Lau, Liu, Kolar, 2024, arXiv:2402.11215",
    parameters: [
      .integer("max_batch", nil, .atLeast(1), "largest batch size"),
      .number("eta", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "tolerance"),
      .integer("interval", 1, .atLeast(1), "test at every such batch"),
      .flag("coordinate", false, "test every coordinate (for AdaGrad)"),
      .integer("parts", 1, .atLeast(1), "calls with per-sample gradients that make one batch", live: false),
    ])
  private let eta, most, interval, parts: Double
  private let coordinate: Bool
  private var batch = BatchSize()
  private var moments = Moments()
  init(_ h: Hyper) {
    (eta, most, interval, coordinate, parts) = (h.eta, h.max_batch, h.interval, h.coordinate, h.parts)
  }

  func value(_ k: Double) -> Double { max(1, batch.size) }
  var memory: [Double] {
    get { batch.memory + (parts > 1 ? moments.memory : []) }
    set {
      guard takes(newValue[...]) == newValue.count else { return }  // a whole file may hold nonsense
      batch.memory = Array(newValue.prefix(2))
      moments.memory = Array(newValue.dropFirst(2))
    }
  }
  func takes(_ numbers: ArraySlice<Double>) -> Int? {
    let own = numbers.prefix(parts > 1 ? 6 : 2)
    guard own.count == (parts > 1 ? 6 : 2), own.allSatisfy({ $0 >= 0 && $0.isFinite }) else { return nil }
    if parts == 1 { return 2 }
    guard let length = own.last, length <= 0x1p40, length == length.rounded() else { return nil }
    let all = 6 + Int(length) * (coordinate ? 2 : 1)
    return numbers.count >= all && numbers.prefix(all).allSatisfy(\.isFinite) ? all : nil
  }
  mutating func observe(_ what: String, _ value: Double) throws(Failure) -> Bool {
    try batch.observe("norm_test", what, value)
  }

  mutating func observe(samples: UnsafePointer<Double>, _ m: Int, _ n: Int) throws(Failure) -> Bool {
    guard moments.parts == 0 || moments.mean.count == n else {
      throw Failure(
        Status.shape,
        "norm_test: gradients of \(n) elements, but \(moments.mean.count) in the parts before; nothing was changed")
    }
    guard m > 0 else { return true }
    var joined = moments, new = batch
    joined.join(try Samples(samples, m, n, scaled: parts == 1), each: coordinate)
    guard joined.spread.isFinite || joined.parts >= parts else {
      throw Failure(Status.nonfinite, "norm_test: a per-sample gradient is NaN or infinite; nothing was changed")
    }
    if joined.parts >= parts {
      new.calls += 1
      if new.size == 0 { new.size = joined.count }
      if joined.count > 1, new.calls.truncatingRemainder(dividingBy: interval) == 0 {
        try new.raise("norm_test", to: need(joined), atMost: most)
      }
      joined = Moments()
    }
    (batch, moments) = (new, joined)
    return true
  }

  private func need(_ s: Moments) -> Double {
    var square = 0.0, worst = 0.0
    for j in s.mean.indices {
      square += s.mean[j] * s.mean[j]
      guard coordinate, !(s.spreads[j] <= 0) else { continue }
      let x = s.spreads[j] / (s.count - 1) / (eta * eta * (s.mean[j] * s.mean[j]))
      worst = x > worst || x.isNaN ? x : worst
    }
    return square == 0 ? .infinity : coordinate ? worst : s.spread / (s.count - 1) / (eta * eta * square)
  }
}

/// The inner-product test: the variance of ⟨g_i, ḡ⟩ must not exceed θ²·‖ḡ‖⁴.
///
///     p_i = ⟨g_i, ḡ⟩;  need = var(p)/(θ²·‖ḡ‖⁴)
///     nu:  q_i = g_i − p_i·ḡ/‖ḡ‖²;  need ← max(need, Σ var(q)/(ν²·‖ḡ‖²))
///     need > B:  B ← min(⌈need⌉, max_batch)
///
/// State    as norm_test.
/// Differs  over the whole parameter list, as the paper; timlautk/AdAdaGrad tests tensor by tensor and adds the
///          variances.
/// Source   Bollapragada, Byrd and Nocedal, 2018, arXiv:1710.11258.
struct InnerProductTest: Schedule {
  static let method = Method(
    "inner_product_test", .schedule,
    "Raises the batch size when the gradients' inner products with their mean vary too much.",
    rule: """
      p_i = <g_i, mean>;  need = var(p)/(theta^2*|mean|^4)
      nu: q_i = g_i - p_i*mean/|mean|^2;  need <- max(need, sum(var(q))/(nu^2*|mean|^2))
      need > B: B <- min(ceil(need), max_batch)
      """,
    source: "Bollapragada, Byrd, Nocedal, 2018, arXiv:1710.11258",
    parameters: [
      .integer("max_batch", nil, .atLeast(1), "largest batch size"), .number("theta", 0.5, .above(0), "tolerance"),
      .maybe("nu", .above(0), "tolerance of the orthogonal part (the augmented test)"),
    ])
  private let theta, nu, most: Double
  private var batch = BatchSize()
  init(_ h: Hyper) { (theta, nu, most) = (h.theta, h.nu, h.max_batch) }

  func value(_ k: Double) -> Double { max(1, batch.size) }
  var memory: [Double] {
    get { batch.memory }
    set { batch.memory = newValue }
  }
  mutating func observe(_ what: String, _ value: Double) throws(Failure) -> Bool {
    try batch.observe("inner_product_test", what, value)
  }

  mutating func observe(samples: UnsafePointer<Double>, _ m: Int, _ n: Int) throws(Failure) -> Bool {
    var new = batch
    new.calls += 1
    if new.size == 0 { new.size = Double(m) }
    if m > 1 { try new.raise("inner_product_test", to: need(try Samples(samples, m, n, scaled: true)), atMost: most) }
    batch = new
    return true
  }

  private func need(_ s: Samples) -> Double {
    let mean = s.mean()
    var square = 0.0
    for x in mean { square += x * x }
    if square == 0 { return .infinity }
    var p: [Double] = []
    s.rows { g in
      var dot = 0.0
      for j in 0..<s.n { dot += s.scale * g[j] * mean[j] }
      p.append(dot)
    }
    let middle = p.reduce(0, +) / Double(s.m)
    let spread = p.reduce(0) { $0 + ($1 - middle) * ($1 - middle) } / Double(s.m - 1)
    let need = spread / (theta * theta * (square * square))
    if nu.isNaN || need.isNaN { return need }
    // the mean of q is ḡ·(1 − mean p/‖ḡ‖²), which is 0 up to rounding
    var rest = 0.0, i = 0
    s.rows { g in
      let along = (p[i] - middle) / square
      for j in 0..<s.n {
        let q = (s.scale * g[j] - mean[j]) - along * mean[j]
        rest += q * q
      }
      i += 1
    }
    return max(need, rest / Double(s.m - 1) / (nu * nu * square))
  }
}
