import Glibc
import ThalwegCore

/// Generalized sum pooling: an entropy-smoothed partial transport of local features to prototypes decides how much each
/// feature counts.
///
///     κ_j = log Σ_i exp(−γ·c_ij)     s_j = σ(τ + κ_j), τ such that mean_j s_j = μ
///     w = s/μ     a_i = 1/(m·μ)·Σ_j A_ij·s_j, A = softmax_i(−γ·c)
///
/// It is a layer: c is (n, k, m), the costs between k prototypes and m local features of each sample, and the pull-back
/// gives the pooling weights w (n, m), of mean 1, and the attributes a (n, k) (take them with a factor of 1). Given dw
/// and da, the derivatives of the host's loss by both, the value is Σ dw·w + Σ da·a, and the gradient of c is the
/// vector-Jacobian product; without them they count as 0.
/// Differs  the authors' layers iterate to the fixed point that is in closed form here; their ports disagree about μ
///          and γ.
/// Source   Gurbuz et al., 2023, arXiv:2308.09228.
struct GeneralizedSumPooling: Objective {
  static let method = Method(
    "generalized_sum_pooling", .objective,
    "Pooling weights of local features by partial transport to prototypes: a layer.",
    rule: """
      kappa_j = log sum_i exp(-gamma*c_ij), s_j = sigma(tau + kappa_j) with mean_j s_j = transport_ratio
      w = s/transport_ratio, a_i = sum_j softmax_i(-gamma*c)_ij*s_j/(m*transport_ratio);  value = sum dw*w + sum da*a
      """,
    source: "Gurbuz et al., 2023, arXiv:2308.09228",
    parameters: [
      .number(
        "transport_ratio", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "mu, share of the mass that is kept"),
      .number("gamma", 20, .above(0), "inverse smoothing"),
    ],
    inputs: [
      .variable("c", "n, k, m", "costs between prototypes and local features"),
      .constant("dw", "n, m", "derivatives by w; none: 0", optional: true),
      .constant("da", "n, k", "derivatives by a; none: 0", optional: true),
      .result("w", "n, m", "weights of the features"), .result("a", "n, k", "shares of the prototypes"),
    ])
  let mu: Double, gamma: Double
  init(_ h: Hyper) { (mu, gamma) = (h.transport_ratio, h.gamma) }

  /// The root of mean_j σ(τ + κ_j) = μ: between the solutions for the largest and the smallest κ alone.
  private func threshold(_ kappa: UnsafePointer<Double>, _ m: Int) -> Double {
    var least = kappa[0], most = kappa[0]
    for j in 0..<m { (least, most) = (smaller(least, kappa[j]), larger(most, kappa[j])) }
    let level = log(mu) - log1p(-mu)
    var low = level - most, high = level - least
    for _ in 0..<200 where low < high {
      let middle = low + (high - low) / 2
      if middle == low || middle == high { break }
      var sum = 0.0
      for j in 0..<m { sum += sigmoid(middle + kappa[j]) }
      if sum < mu * Double(m) { low = middle } else { high = middle }
    }
    return low + (high - low) / 2
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let c = try x["c"], n = x.sizes["n"], k = x.sizes["k"], m = x.sizes["m"], space = Workspace()
    defer { space.close() }
    let byWeight = x.optional("dw"), byShare = x.optional("da"), scale = 1 / (Double(m) * mu)
    let g = try cache?.keep("c", n * k * m, T.self), w = try space.room(cache, "w", n * m, T.self)
    let a = try space.room(cache, "a", n * k, T.self), kappas = try space.room(n * m, Double.self)
    return Rows.sum(n, work: 64 * k * m) { r in
      let costs = c + r * k * m, kappa = kappas + r * m
      for j in 0..<m {
        var sum = LogSum()
        for i in 0..<k { sum.add(-gamma * Double(costs[i * m + j])) }
        kappa[j] = sum.value
      }
      let tau = threshold(kappa, m)
      func kept(_ j: Int) -> Double { sigmoid(tau + kappa[j]) }
      func share(_ i: Int, _ j: Int) -> Double { exp(-gamma * Double(costs[i * m + j]) - kappa[j]) }
      var value = 0.0, mean = 0.0, mass = 0.0
      for j in 0..<m {
        w[r * m + j] = T(kept(j) / mu)
        value += kept(j) / mu * (byWeight.map { Double($0[r * m + j]) } ?? 0)
      }
      for i in 0..<k {
        var sum = 0.0
        for j in 0..<m { sum += share(i, j) * kept(j) }
        a[r * k + i] = T(scale * sum)
        value += scale * sum * (byShare.map { Double($0[r * k + i]) } ?? 0)
      }
      guard let g, byWeight != nil || byShare != nil else { return value }
      // Σ_i A_ij·da_i, then the derivative by s_j
      func attributed(_ j: Int) -> Double {
        guard let byShare else { return 0 }
        var sum = 0.0
        for i in 0..<k { sum += share(i, j) * Double(byShare[r * k + i]) }
        return sum
      }
      func slope(_ j: Int, _ attributed: Double) -> Double {
        (byWeight.map { Double($0[r * m + j]) } ?? 0) / mu + scale * attributed
      }
      for j in 0..<m {
        let spread = kept(j) * sigmoid(-tau - kappa[j])
        mean += spread * slope(j, attributed(j))
        mass += spread
      }
      if mass != 0 { mean /= mass }
      for j in 0..<m {
        let s = kept(j), own = attributed(j), byKappa = s * sigmoid(-tau - kappa[j]) * (slope(j, own) - mean)
        for i in 0..<k {
          let bySoftmax = scale * s * ((byShare.map { Double($0[r * k + i]) } ?? 0) - own)
          g[(r * k + i) * m + j] = T(-gamma * share(i, j) * (bySoftmax + byKappa))
        }
      }
      return value
    }
  }
}
