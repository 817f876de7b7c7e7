import Glibc
import ThalwegCore

/// The noise that makes the release of a number private once.
///
///     classic: σ = s·√(2·ln(1.25/δ))/ε, ε ≤ 1
///     analytic: the smallest σ with Φ(s/2σ − ε·σ/s) − e^ε·Φ(−s/2σ − ε·σ/s) ≤ δ, by bisection to 10⁻¹² of it
///
/// sensitivity is a number s; the value is σ. Perturbed inputs have N(0, σ²) added to every released value once;
/// training costs nothing more.
/// Errors   TW_ERROR_RANGE: a sensitivity below 0, or classic with epsilon above 1.
/// Source   Dwork, Roth, 2014; Balle, Wang, 2018, arXiv:1805.06530.
struct GaussianMechanism: Objective {
  static let method = Method(
    "gaussian_mechanism", .diagnostic, "The Gaussian noise that makes one release private.",
    rule: """
      classic: sigma = s sqrt(2 ln(1.25/delta))/epsilon
      analytic: the least sigma with Phi(a - b) - e^epsilon Phi(-a - b) <= delta, a = s/(2 sigma), b = epsilon sigma/s
      """,
    source: "Dwork, Roth, 2014; Balle, Wang, 2018, arXiv:1805.06530",
    parameters: [
      .number("epsilon", nil, .above(0), "privacy"),
      .number("delta", nil, .between(0, 1, lowOpen: true, highOpen: true), "probability that it fails"),
      .choice("mode", ["analytic", "classic"], "the calibration"),
    ], inputs: [.constant("sensitivity", "", "how much one record changes the number")],
    validate: { (h) throws(Failure) in
      guard h.is("mode", "analytic") || h.epsilon <= 1 else {
        throw Failure(
          Status.range, "gaussian_mechanism: mode=classic needs `epsilon` of at most 1, got \(text(h.epsilon))")
      }
    })
  let epsilon: Double, delta: Double, classic: Bool
  init(_ h: Hyper) { (epsilon, delta, classic) = (h.epsilon, h.delta, h.is("mode", "classic")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let s = Double(try x["sensitivity"].pointee)
    guard s >= 0, s.isFinite else {
      throw Failure(Status.range, "`sensitivity` must be finite and at least 0, got \(text(s))")
    }
    if s == 0 { return 0 }
    if classic { return s * (2 * log(1.25 / delta)).squareRoot() / epsilon }
    // for s = 1: σ scales with it
    func fails(_ sigma: Double) -> Bool { spent(sigma) > delta }
    var low = 1.0, high = 1.0
    while fails(high), high < 1e300 { high *= 2 }
    while !fails(low), low > 1e-300 { low /= 2 }
    for _ in 0..<200 where high - low > 1e-12 * high {
      let middle = low + (high - low) / 2
      if fails(middle) { low = middle } else { high = middle }
    }
    return s * high
  }

  /// The δ that a σ achieves.
  private func spent(_ sigma: Double) -> Double {
    let a = 1 / (2 * sigma), b = epsilon * sigma
    return 0.5 * erfc((b - a) / 2.0.squareRoot()) - exp(epsilon + logHalfErfc((a + b) / 2.0.squareRoot()))
  }
  /// log(erfc(x)/2) for x ≥ 0, where erfc itself is 0 too.
  private func logHalfErfc(_ x: Double) -> Double {
    if x < 20 { return log(0.5 * erfc(x)) }
    let y = 1 / (2 * x * x)
    return -x * x - log(2 * x * Double.pi.squareRoot()) + log1p(y * (-1 + y * (3 - 15 * y)))
  }
}

/// The mean squared length of gradients of samples over draws of the weights: what PAC-Bayesian bounds ask for.
///
///     value = mean over draws k and samples i of |g_ki|²
///
/// g is (n, ...), the gradients at one draw from the posterior (or prior); every pass is one more draw. `gaussian_kl`
/// is the divergence that stands beside it.
/// State    the mean so far, and how many samples it has.
/// Differs  the constant of the bound is not verified: there are its ingredients only.
/// Source   Gat, Adi, Schwing, Hazan, 2022, arXiv:2210.06143.
struct PACBayesGradNorm: Objective {
  static let method = Method(
    "pac_bayes_grad_norm", .diagnostic, "Mean squared length of gradients of samples, over draws of the weights.",
    rule: "value = mean over draws and samples of |g|^2", source: "Gat, Adi, Schwing, Hazan, 2022, arXiv:2210.06143",
    inputs: [.constant("g", "n, ...", "gradients of samples at one draw of the weights")])
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("mean"), Recollection("count")] }
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let mean = try x.memory["mean"], count = try x.memory["count"], n = Double(x.sizes["n"])
    let sum = Flat.squaredNorm(try x["g"], x.sizes["n"] * x.sizes.samples)
    count[0] += n
    mean[0] += (sum / n - mean[0]) * (n / count[0])
    return mean[0]
  }
}

/// The largest clip norm that clips anything, from the features of a linear last layer.
///
///     constants_i = √2·|x_i|, with a bias √(2·(|x_i|² + 1))     value = their quantile, 0: the minimum
///
/// x is (n, d). Gradients of softmax cross-entropy are never longer: search clip norms up to the value only. Between
/// two samples the quantile is linear. What it says about private data is itself a release.
/// Errors   TW_ERROR_RANGE: features that are not finite.
/// Source   Das, Kale, Xu, Zhang, Sanghavi, 2023, arXiv:2206.10713.
struct DPClipNormBound: Objective {
  static let method = Method(
    "dp_clip_norm_bound", .diagnostic, "The largest clip norm that clips anything, from features of a last layer.",
    rule: "constants_i = sqrt(2)*|x_i|, with a bias sqrt(2(|x_i|^2 + 1));  value = quantile of the constants",
    source: "Das, Kale, Xu, Zhang, Sanghavi, 2023, arXiv:2206.10713",
    parameters: [
      .flag("bias", false, "the layer has a bias"), .number("quantile", 0, .within(0, 1), "0 is the minimum"),
    ],
    inputs: [
      .constant("x", "n, d", "features"), .result("constants", "n", "longest gradient of each sample"),
      .result("bound", "", "their quantile"),
    ])
  let bias: Bool, quantile: Double
  init(_ h: Hyper) { (bias, quantile) = (h.bias, h.quantile) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = try x["x"], n = x.sizes["n"], d = x.sizes["d"]
    try refuseNonFinite(rows, n * d, "x")
    let constants = (0..<n).map { 2.0.squareRoot() * hypot(Flat.norm(rows + $0 * d, d), bias ? 1 : 0) }
    let sorted = constants.sorted(), at = quantile * Double(n - 1), low = min(Int(at), n - 1)
    let bound = sorted[low] + (at - Double(low)) * (sorted[min(low + 1, n - 1)] - sorted[low])
    try cache?.keep("constants", numbers: constants, T.self)
    try cache?.keep("bound", numbers: [bound], T.self)
    return bound
  }
}

/// Binomial means that are shrunk together, as much as an unbiased estimate of the risk says.
///
///     p = x/n, m: centres, the pooled rate Σ x/Σ n unless given     estimate = w·p + (1 − w)·m
///     trials: w_i = n_i/(n_i + lam), lam of the grid (0 and 400 points from 10⁻² to 10⁶) with the least risk
///     (`binomial_ure`)
///     common: one w = clip(1 − Σ v/Σ (p − m)², 0, 1), v = p(1 − p)/(n − 1)
///
/// x, n and m are (N,). Items of one trial are shrunk, but do not choose. lam is NaN for common. The value is the risk.
/// Errors   TW_ERROR_RANGE: successes outside [0, n], centres outside [0, 1], trials below 1 or not whole, or no item
///          with two trials.
/// Differs  weights for general estimators and their grid are the card's; the paper's are not verified.
/// Source   Compound Estimation for Binomials, 2025, arXiv:2512.25042.
struct CompoundBinomial: Objective {
  static let method = Method(
    "compound_binomial", .diagnostic, "Binomial means that are shrunk together, by an unbiased estimate of the risk.",
    rule: """
      estimate = w x/n + (1 - w) m;  trials: w = n/(n + lam), lam with the least binomial_ure
      common: w = clip(1 - sum v/sum (x/n - m)^2, 0, 1), v = p(1 - p)/(n - 1)
      """,
    source: "Compound Estimation for Binomials, 2025, arXiv:2512.25042",
    parameters: [
      .choice("rule", ["trials", "common"], "weights by the trials, or one for all"),
      .list("grid", nil, "candidates for lam; none: 0 and 400 points from 1e-2 to 1e6", optional: true),
    ],
    inputs: [
      .constant("x", "N", "successes"), .constant("n", "N", "trials"),
      .constant("m", "N", "centres; the pooled rate when left out", optional: true),
      .result("estimate", "N", "the means"), .result("weights", "N", "weights of what was seen"),
      .result("lam", "", "strength of the shrinkage"), .result("risk", "", "unbiased estimate of the risk"),
    ],
    validate: { (h) throws(Failure) in
      guard h.list("grid").allSatisfy({ $0 >= 0 && $0.isFinite }) else {
        throw Failure(Status.range, "compound_binomial: `grid` must hold finite numbers of at least 0")
      }
    })
  let common: Bool, grid: [Double]
  init(_ h: Hyper) {
    common = h.is("rule", "common")
    let own = h.list("grid")
    grid = own.isEmpty ? (0...400).map { $0 == 0 ? 0 : pow(10, -2 + 8 * Double($0 - 1) / 399) } : own
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let count = x.sizes["N"], hits = try doubles(x["x"], count), trials = try doubles(x["n"], count)
    for i in 0..<count {
      guard trials[i] >= 1, trials[i] == trials[i].rounded(), trials[i].isFinite, hits[i] >= 0, hits[i] <= trials[i]
      else {
        throw Failure(
          Status.range,
          "`x` must lie between 0 and `n`, `n` be whole and at least 1, got "
            + "\(text(hits[i])) and \(text(trials[i])) at element \(i)")
      }
    }
    let given = x.optional("m")
    if let given, let i = (0..<count).first(where: { !(given[$0] >= 0 && given[$0] <= 1) }) {
      throw Failure(Status.range, "`m` must lie between 0 and 1, got \(text(Double(given[i]))) at element \(i)")
    }
    let pooled = hits.reduce(0, +) / trials.reduce(0, +),
      m = (0..<count).map { i in given.map { Double($0[i]) } ?? pooled }
    let p = zip(hits, trials).map { $0 / $1 }, choosing = (0..<count).filter { trials[$0] >= 2 }
    guard !choosing.isEmpty else { throw Failure(Status.range, "`n` has no item of at least 2 trials") }
    func noise(_ i: Int) -> Double { p[i] * (1 - p[i]) / (trials[i] - 1) }
    func risk(_ w: (Int) -> Double) -> Double {
      choosing.reduce(0) { sum, i in
        let a = w(i), apart = p[i] - m[i], v = noise(i)
        return sum + a * a * v + (1 - a) * (1 - a) * (apart * apart - v)
      } / Double(choosing.count)
    }
    var lambda = Double.nan, weights: [Double]
    if common {
      let spread = choosing.reduce(0) { $0 + (p[$1] - m[$1]) * (p[$1] - m[$1]) }
      let w = spread == 0 ? 0 : min(max(1 - choosing.reduce(0) { $0 + noise($1) } / spread, 0), 1)
      weights = [Double](repeating: w, count: count)
    } else {
      var least = Double.infinity
      for candidate in grid {
        let value = risk { trials[$0] / (trials[$0] + candidate) }
        if value < least { (least, lambda) = (value, candidate) }
      }
      weights = trials.map { $0 / ($0 + lambda) }
    }
    let value = risk { weights[$0] }
    try cache?.keep("estimate", numbers: (0..<count).map { weights[$0] * p[$0] + (1 - weights[$0]) * m[$0] }, T.self)
    try cache?.keep("weights", numbers: weights, T.self)
    try cache?.keep("lam", numbers: [lambda], T.self)
    try cache?.keep("risk", numbers: [value], T.self)
    return value
  }
}
