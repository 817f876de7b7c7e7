import Glibc
import ThalwegCore

/// How far a minimum is from where a step size would leave it: margins, negative where it is unstable.
///
///     gd = 2/lr − λ_max     sgd = 2/lr − tr H     noise = √(B/alignment)/lr − |H|_F
///
/// lambda_max, trace and frobenius are numbers, any of them: `power_iteration` and `hutchinson_trace` find them. A
/// margin whose number is missing is NaN. They hold near minima that interpolate. The value is the smallest margin.
/// Errors   TW_ERROR_NEEDS: none of the three.
/// Differs  the constant of the Frobenius margin is the card's; the paper's is not verified.
/// Source   Wu, Ma, E, 2018; Wu, Su, 2023, arXiv:2305.17490.
struct StabilityLimits: Objective {
  static let method = Method(
    "stability_limits", .diagnostic, "Margins of linear stability of a minimum; negative is unstable.",
    rule: "gd = 2/lr - lambda_max;  sgd = 2/lr - tr H;  noise = sqrt(batch_size/alignment)/lr - |H|_F",
    source: "Wu, Ma, E, 2018; Wu, Su, 2023, arXiv:2305.17490",
    parameters: [
      .lr(nil, .above(0)), .number("batch_size", 1, .above(0), "samples of a gradient"),
      .number("alignment", 1, .above(0), "of the noise with the curvature"),
    ],
    inputs: [
      .constant("lambda_max", "", "largest eigenvalue of the Hessian", optional: true),
      .constant("trace", "", "trace of the Hessian", optional: true),
      .constant("frobenius", "", "Frobenius norm of the Hessian", optional: true),
      .result("gd", "", "margin of gradient descent"), .result("sgd", "", "margin of single samples"),
      .result("noise", "", "margin of minibatches with aligned noise"),
    ])
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let lr: Double = h.lr, batch: Double = h.batch_size, alignment: Double = h.alignment
    let limits = [2 / lr, 2 / lr, (batch / alignment).squareRoot() / lr]
    var least = Double.infinity, any = false
    for ((name, input), limit) in zip([("gd", "lambda_max"), ("sgd", "trace"), ("noise", "frobenius")], limits) {
      var margin = Double.nan
      if let number = x.optional(input) {
        margin = limit - Double(number.pointee)
        (least, any) = (smaller(least, margin), true)
      }
      try cache?.keep(name, numbers: [margin], T.self)
    }
    guard any else { throw Failure(Status.needs, "one of `lambda_max`, `trace` and `frobenius` is needed") }
    return least
  }
}

/// The top eigenvalue of a batch's Hessian, from that of all data and the noise of its entries: a spiked Wigner matrix.
private struct SpikedBatch {
  /// Where the bulk ends, and the top of the batch.
  static func top(_ lambda: Double, _ sigma: Double, _ dimension: Double, _ batch: Double) -> (Double, Double) {
    let t = (dimension / batch).squareRoot() * sigma
    if lambda.isNaN || sigma.isNaN { return (2 * t, .nan) }
    return (2 * t, lambda > t ? lambda + t * t / lambda : 2 * t)
  }
  static let inputs: [Input] = [
    .constant("lam", "", "largest eigenvalue for all data"),
    .constant("sigma", "", "standard deviation of the entries of one sample's Hessian"),
  ]
  static func read<T: Real>(_ x: Inputs<T>) throws(Failure) -> (Double, Double) {
    let sigma = Double(try x["sigma"].pointee)
    guard !(sigma < 0) else { throw Failure(Status.range, "`sigma` must be at least 0, got \(text(sigma))") }
    return (Double(try x["lam"].pointee), sigma)
  }
}

/// What curvature a batch of B samples has, when all data have the top eigenvalue λ and the noise σ.
///
///     t = √(P/B)·σ     edge = 2t     top = λ + P·σ²/(B·λ) where λ > t, else 2t     max_lr = 2/top
///
/// lam and sigma are numbers, P is `dimension`. The value is `top`. An estimate of P·σ² is B·(E|H_B·v|² − |H·v|²) over
/// random unit vectors v, or what the edge of a batch's bulk says.
/// Errors   TW_ERROR_RANGE: a negative sigma.
/// Source   Granziol, Zohren, Roberts, 2022, arXiv:2006.09092.
struct BatchHessianTop: Objective {
  static let method = Method(
    "batch_hessian_top", .diagnostic, "The top eigenvalue of a batch's Hessian, from that of all data and its noise.",
    rule: "t = sqrt(P/B) sigma;  top = lam + P sigma^2/(B lam) where lam > t, else 2t;  edge = 2t;  max_lr = 2/top",
    source: "Granziol, Zohren, Roberts, 2022, arXiv:2006.09092",
    parameters: [
      .number("dimension", nil, .above(0), "P, number of parameters"),
      .number("batch_size", nil, .above(0), "B, samples of the batch"),
    ],
    inputs: SpikedBatch.inputs + [
      .result("top", "", "largest eigenvalue of the batch"), .result("edge", "", "where the bulk of the noise ends"),
      .result("max_lr", "", "2/top"),
    ])
  let dimension: Double, batch: Double
  init(_ h: Hyper) { (dimension, batch) = (h.dimension, h.batch_size) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let (lambda, sigma) = try SpikedBatch.read(x), (edge, top) = SpikedBatch.top(lambda, sigma, dimension, batch)
    for (name, value) in [("top", top), ("edge", edge), ("max_lr", 2 / top)] {
      try cache?.keep(name, numbers: [value], T.self)
    }
    return top
  }
}

/// The step size for another batch size, by the curvature of both.
///
///     sgd: lr·top(B) stays what it was;   adaptive: lr·√top(B)
///
/// The value is the step size for `batch_size` that matches `lr` at `from`; top is that of `batch_hessian_top`. It
/// grows with the batch size, or its root, while the noise rules, and stops where λ does.
/// Errors   TW_ERROR_RANGE: a negative sigma.
/// Differs  the constant for adaptive methods is not verified; only the ratio counts here.
/// Source   Granziol, Zohren, Roberts, 2022, arXiv:2006.09092.
struct LRForBatch: Objective {
  static let method = Method(
    "lr_for_batch", .diagnostic, "The step size for another batch size, by the curvature of both.",
    rule: "lr*top(from)/top(batch_size) for sgd, lr*sqrt(top(from)/top(batch_size)) for adaptive methods",
    source: "Granziol, Zohren, Roberts, 2022, arXiv:2006.09092",
    parameters: [
      .lr(nil), .number("from", nil, .above(0), "the batch size that lr is for"),
      .number("batch_size", nil, .above(0), "the other batch size"),
      .number("dimension", nil, .above(0), "P, number of parameters"),
      .choice("optimizer", ["sgd", "adaptive"], "kind of the optimizer"),
    ], inputs: SpikedBatch.inputs)
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let (lambda, sigma) = try SpikedBatch.read(x)
    let ratio =
      SpikedBatch.top(lambda, sigma, h.dimension, h.from).1
      / SpikedBatch.top(lambda, sigma, h.dimension, h.batch_size).1
    return h.lr * (h.is("optimizer", "sgd") ? ratio : ratio.squareRoot())
  }
}

/// The outliers of a spectrum, and its degeneracy.
///
///     |λ| descending     gap: outliers = argmax_k |λ_k|/|λ_{k+1}|, k ≤ max(1, n/2)     edge: how many |λ| > edge
///     degeneracy = share of |λ| ≤ 10⁻³·|λ_1|     excess = outliers − num_expected
///
/// lam is (n,), eigenvalues or Ritz values. A spectrum of zeros has one outlier and the degeneracy 1; 0 over 0 is no
/// gap. Without num_expected the excess is NaN. The value is `outliers`.
/// Errors   TW_ERROR_RANGE: an eigenvalue that is not finite, or rule=edge without an edge.
/// Differs  the gap rule is the card's.
/// Source   Sagun, Evci, Güney, Dauphin, Bottou, 2017, arXiv:1706.04454.
struct HessianBulkOutliers: Objective {
  static let method = Method(
    "hessian_bulk_outliers", .diagnostic, "How many eigenvalues stand outside the bulk of a spectrum.",
    rule: """
      gap: outliers = argmax_k |lam_k|/|lam_(k+1)| over the upper half, |lam| descending;  edge: how many |lam| > edge
      degeneracy = share of |lam| <= 1e-3 max |lam|
      """,
    source: "Sagun, Evci, Guney, Dauphin, Bottou, 2017, arXiv:1706.04454",
    parameters: [
      .choice("rule", ["gap", "edge"], "how outliers are told from the bulk"),
      .maybe("edge", .above(0), "where the bulk ends, for rule=edge"),
      .maybeInteger("num_expected", .atLeast(1), "outliers that are expected: one a class"),
    ],
    inputs: [
      .constant("lam", "n", "eigenvalues"), .result("outliers", "", "eigenvalues outside the bulk"),
      .result("degeneracy", "", "share of eigenvalues near 0"), .result("excess", "", "outliers - num_expected"),
    ],
    validate: { (h) throws(Failure) in
      guard h.is("rule", "gap") || h.has("edge") else {
        throw Failure(Status.range, "hessian_bulk_outliers: rule=edge needs an `edge` above 0")
      }
    })
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let lambda = try x["lam"], n = x.sizes["n"]
    try refuseNonFinite(lambda, n, "lam")
    let sorted = (0..<n).map { abs(Double(lambda[$0])) }.sorted(by: >)
    var outliers = 1
    if h.is("rule", "edge") {
      let edge: Double = h.edge
      outliers = sorted.count { $0 > edge }
    } else {
      var widest = 0.0
      for k in 0..<min(n - 1, max(1, n / 2)) {
        let ratio = sorted[k] == 0 ? 0 : sorted[k] / sorted[k + 1]
        if ratio > widest { (widest, outliers) = (ratio, k + 1) }
      }
    }
    let degenerate = Double(sorted.count { $0 <= 1e-3 * sorted[0] }) / Double(n)
    let excess = h.has("num_expected") ? Double(outliers - h.integer("num_expected")) : .nan
    for (name, value) in [("outliers", Double(outliers)), ("degeneracy", degenerate), ("excess", excess)] {
      try cache?.keep(name, numbers: [value], T.self)
    }
    return Double(outliers)
  }
}

/// The spectrum of sample covariances of pure noise.
///
///     edges = σ²·(1 ∓ √ratio)²     density(x) = √((b − x)(x − a))/(2π·ratio·σ²·x) between them
///
/// points is (n,); ratio = p/n of the data. Above 1 a share 1 − 1/ratio of the eigenvalues is 0, which the density
/// leaves out. The value is the upper edge.
/// Source   Marchenko, Pastur, 1967.
struct MarchenkoPastur: Objective {
  static let method = Method(
    "marchenko_pastur", .diagnostic, "The spectrum of sample covariances of pure noise.",
    rule: "edges = sigma^2 (1 -+ sqrt(ratio))^2;  density = sqrt((b - x)(x - a))/(2 pi ratio sigma^2 x)",
    source: "Marchenko, Pastur, 1967",
    parameters: [
      .number("ratio", nil, .above(0), "dimensions over samples"), .number("sigma", 1, .above(0), "of the noise"),
    ],
    inputs: [
      .constant("points", "n", "where the density is wanted"), .result("density", "n", "there"),
      .result("lower", "", "lower edge"), .result("upper", "", "upper edge"),
    ])
  let ratio: Double, variance: Double
  init(_ h: Hyper) {
    let sigma: Double = h.sigma
    (ratio, variance) = (h.ratio, sigma * sigma)
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let points = try x["points"], root = ratio.squareRoot()
    let a = variance * (1 - root) * (1 - root), b = variance * (1 + root) * (1 + root)
    if let cache {
      let density = try doubles(points, x.sizes["n"]).map { x in
        x.isNaN ? x : x <= a || x >= b ? 0 : ((b - x) * (x - a)).squareRoot() / (2 * Double.pi * ratio * variance * x)
      }
      try cache.keep("density", numbers: density, T.self)
      try cache.keep("lower", numbers: [a], T.self)
      try cache.keep("upper", numbers: [b], T.self)
    }
    return b
  }
}

/// The spectrum of symmetric matrices of pure noise.
///
///     edges = ∓2σ     density(x) = √(4σ² − x²)/(2π·σ²) between them
///
/// points is (n,). The value is the upper edge.
/// Source   Wigner, 1958.
struct Semicircle: Objective {
  static let method = Method(
    "semicircle", .diagnostic, "The spectrum of symmetric matrices of pure noise.",
    rule: "edges = -+2 sigma;  density = sqrt(4 sigma^2 - x^2)/(2 pi sigma^2)", source: "Wigner, 1958",
    parameters: [.number("sigma", 1, .above(0), "of the entries, times the root of the dimension")],
    inputs: [.constant("points", "n", "where the density is wanted"), .result("density", "n", "there")])
  let sigma: Double
  init(_ h: Hyper) { sigma = h.sigma }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let points = try x["points"]
    if let cache {
      let density = try doubles(points, x.sizes["n"]).map { x in
        x.isNaN
          ? x : abs(x) >= 2 * sigma ? 0 : (4 * sigma * sigma - x * x).squareRoot() / (2 * Double.pi * sigma * sigma)
      }
      try cache.keep("density", numbers: density, T.self)
    }
    return 2 * sigma
  }
}
