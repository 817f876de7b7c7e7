import Glibc
import ThalwegCore

/// A kernel ridge regression on distilled samples, as the head of a network, and its loss on real ones.
///
///     K = F·Fᵀ of features:  A = (K_ss + l2·I)⁻¹·(labels − outputs_s);   predictions = outputs_t + K_ts·A
///     mse: ½·mean (predictions − targets)²
///     xent: mean over rows of −Σ_c (y − min y)_c·log softmax(e^log_temp·predictions)_c, y the targets
///
/// features_s (s, d), outputs_s, labels (s, C) of the distilled samples; features_t (t, d), outputs_t, targets (t, C)
/// of the real ones. log_temp () is 0 when left out.
/// Differs  the temperature is of xent alone; min y is over all targets.
/// Source   Loo, Hasani, Lechner and Rus, 2023, arXiv:2302.06755.
struct KRRHead: Objective {
  static let method = Method(
    "krr_head", .objective, "A kernel ridge regression on distilled samples, and its loss on real ones.",
    rule: """
      A = (K_ss + l2 I)^-1 (labels - outputs_s);  predictions = outputs_t + K_ts A, K of features
      mse: mean (predictions - targets)^2/2
      xent: mean cross entropy of exp(log_temp)*predictions with targets less their minimum
      """,
    source: "Loo, Hasani, Lechner, Rus, 2023, arXiv:2302.06755",
    parameters: [
      .number("l2", nil, .above(0), "ridge"), .choice("loss", ["mse", "xent"], "of the predictions"),
    ],
    inputs: [
      .variable("features_s", "s, d", "features of the distilled samples"),
      .variable("outputs_s", "s, C", "outputs there"), .variable("labels", "s, C", "their labels"),
      .variable("features_t", "t, d", "features of the real samples"), .variable("outputs_t", "t, C", "outputs there"),
      .constant("targets", "t, C", "their targets"),
      .variable("log_temp", "", "logarithm of the temperature of xent; 0 when left out", optional: true),
      .result("predictions", "t, C", "predictions of the real samples"),
    ])
  let l2: Double, xent: Bool
  init(_ h: Hyper) { (l2, xent) = (h.l2, h.is("loss", "xent")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let s = x.sizes["s"], t = x.sizes["t"], d = x.sizes["d"], C = x.sizes["C"]
    try Memory.ask(area(32, s, s) &+ area(32, t, s) &+ area(32, t, C) &+ area(16, s &+ t, d))
    let F = try doubles(try x["features_s"], s * d), G = try doubles(try x["features_t"], t * d)
    let out = try doubles(try x["outputs_s"], s * C), labels = try doubles(try x["labels"], s * C)
    let y = try doubles(try x["targets"], t * C)
    func product(_ a: [Double], _ aT: Bool, _ b: [Double], _ bT: Bool, _ m: Int, _ n: Int, _ k: Int) throws(Failure)
      -> [Double]
    {
      var c = [Double](repeating: 0, count: m * n)
      if m > 0, n > 0, k > 0 { try LinearAlgebra.multiply(a, transposed: aT, b, transposed: bT, into: &c, m, n, k) }
      return c
    }
    var K = try product(F, false, F, true, s, s, d)
    for i in 0..<s { K[i * s + i] += l2 }
    let Kts = try product(G, false, F, true, t, s, d)
    let A = try LinearAlgebra.solvePositive(K, zip(labels, out).map { $0 - $1 }, s, C)
    let moved = try product(Kts, false, A, false, t, C, s), start = try doubles(try x["outputs_t"], t * C)
    let P = zip(start, moved).map { $0 + $1 }
    try cache?.keep("predictions", numbers: P, T.self)
    var (value, dP, dTemp) = (0.0, [Double](repeating: 0, count: t * C), 0.0)
    if xent {
      let low = y.min() ?? 0, temperature = exp(x.optional("log_temp").map { Double($0[0]) } ?? 0)
      for i in 0..<t {
        let row = (0..<C).map { temperature * P[i * C + $0] }, level = row.withUnsafeBufferPointer { logSum($0) }
        let mass = (0..<C).reduce(0.0) { $0 + y[i * C + $1] - low }
        for c in 0..<C {
          let target = y[i * C + c] - low, slope = (exp(row[c] - level) * mass - target) / Double(t)
          value -= target * (row[c] - level) / Double(t)
          dP[i * C + c] = slope * temperature
          dTemp += slope * row[c]
        }
      }
    } else {
      for k in 0..<(t * C) {
        let e = P[k] - y[k]
        value += e * e / Double(2 * t * C)
        dP[k] = e / Double(t * C)
      }
    }
    guard let cache else { return value }
    let dA = try product(Kts, true, dP, false, s, C, t), dR = try LinearAlgebra.solvePositive(K, dA, s, C)
    let dK = try product(dR, false, A, true, s, s, C), dKts = try product(dP, false, A, true, t, s, C)
    let both = (0..<(s * s)).map { -dK[$0] - dK[$0 % s * s + $0 / s] }
    let own = try product(both, false, F, false, s, d, s), cross = try product(dKts, true, G, false, s, d, t)
    try cache.keep("features_s", numbers: zip(own, cross).map { $0 + $1 }, T.self)
    try cache.keep("features_t", numbers: try product(dKts, false, F, false, t, d, s), T.self)
    try cache.keep("labels", numbers: dR, T.self)
    try cache.keep("outputs_s", numbers: dR.map { -$0 }, T.self)
    try cache.keep("outputs_t", numbers: dP, T.self)
    if x.optional("log_temp") != nil { try cache.keep("log_temp", numbers: [dTemp], T.self) }
    return value
  }

  private func logSum(_ row: UnsafeBufferPointer<Double>) -> Double {
    let top = row.max() ?? 0
    return top + log(row.reduce(0) { $0 + exp($1 - top) })
  }
}

/// A direct and an implicit gradient, the implicit one kept from being the longer.
///
///     combined = direct + implicit·min(1, ‖direct‖/‖implicit‖);   value = ‖combined‖
///
/// direct, implicit (...), one tensor a call. Entries that are NaN or infinite count as 0. direct = 0 gives 0.
/// Source   Loo, Hasani, Lechner and Rus, 2023, arXiv:2302.06755.
struct RCIGCombine: Objective {
  static let method = Method(
    "rcig_combine", .objective, "A direct and an implicit gradient, the implicit one kept from being the longer.",
    rule: "combined = direct + implicit*min(1, |direct|/|implicit|);  value = |combined|",
    source: "Loo, Hasani, Lechner, Rus, 2023, arXiv:2302.06755",
    inputs: [
      .constant("direct", "...", "the direct gradient"), .constant("implicit", "...", "the implicit one"),
      .result("combined", "...", "their sum"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes.samples
    func clean(_ p: UnsafePointer<T>) throws(Failure) -> [Double] { try doubles(p, n).map { $0.isFinite ? $0 : 0 } }
    let direct = try clean(try x["direct"]), implicit = try clean(try x["implicit"])
    let size = Flat.norm(direct, n), other = Flat.norm(implicit, n), scale = other > size ? size / other : 1
    let sum = zip(direct, implicit).map { $0 + scale * $1 }
    try cache?.keep("combined", numbers: sum, T.self)
    return Flat.norm(sum, n)
  }
}
