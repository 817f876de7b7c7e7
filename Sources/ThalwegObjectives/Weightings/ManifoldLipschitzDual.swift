import ThalwegCore

/// The dual weights of a smooth function on a manifold: samples where it is steep weigh more, and so does the loss
/// while it is above its bound.
///
///     s_i = ½·Σ_j w_ij·|f_i − f_j|²;   λ ← n·P((λ + lr_lam·s)/n), P onto the simplex;
///       μ ← max(0, μ + lr_mu·(loss − loss_bound))
///     value = μ·loss + Σ_i λ_i·s_i with the new weights
///
/// f (n, c) are outputs on the stored samples, w (n, n) their similarities, symmetric. The weights λ begin at 1; they
/// are those of `laplacian_smoothness`.
/// State    λ, μ.
/// Errors   TW_ERROR_RANGE: an input that is not finite.
/// Differs  the paper's normalisation of the dual step is UNVERIFIED.
/// Source   Cerviño, Chamon, Haeffele, Vidal, Ribeiro, 2023, arXiv:2210.00301.
struct ManifoldLipschitzDual: Objective {
  static let method = Method(
    "manifold_lipschitz_dual", .weighting, "The dual weights of a smooth function on a manifold.",
    rule: """
      s_i = 1/2*sum_j w_ij*|f_i - f_j|^2;  lam <- n*P_simplex((lam + lr_lam*s)/n)
      mu <- max(0, mu + lr_mu*(loss - loss_bound));  value = mu*loss + sum_i lam_i*s_i
      """,
    source: "Cervino, Chamon, Haeffele, Vidal, Ribeiro, 2023, arXiv:2210.00301",
    parameters: [
      .number("loss_bound", 0.1, .atLeast(0), "allowed mean loss"),
      .number("lr_lam", 0.1, .above(0), "dual step of the weights"),
      .number("lr_mu", 0.1, .above(0), "dual step of the multiplier"),
      .number("mu0", 1, .atLeast(0), "first multiplier"),
    ],
    inputs: [
      .constant("f", "n, c", "outputs"), .constant("w", "n, n", "similarities"), .constant("loss", "", "mean loss"),
      .result("weights", "n", "the weights lam"), .result("multiplier", "", "mu"),
    ])
  static func state(_ h: Hyper) -> [Recollection] {
    [Recollection("lam", "n", start: 1), Recollection("mu", start: h.mu0)]
  }
  let bound, rate, rateMu: Double
  init(_ h: Hyper) { (bound, rate, rateMu) = (h.loss_bound, h.lr_lam, h.lr_mu) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let f = try x["f"], w = try x["w"], loss = try x["loss"], n = x.sizes["n"], c = x.sizes["c"]
    try refuseNonFinite(f, n * c, "f")
    try refuseNonFinite(w, n * n, "w")
    try refuseNonFinite(loss, 1, "loss")
    let lam = try x.memory["lam"], mu = try x.memory["mu"]
    try Memory.ask(24 &* n)
    let steep = (0..<n).map { i -> Double in
      (0..<n).reduce(0.0) { sum, j in
        let square = (0..<c).reduce(0.0) { part, k in
          let d = Double(f[i * c + k]) - Double(f[j * c + k])
          return part + d * d
        }
        return sum + Double(w[i * n + j]) * square / 2
      }
    }
    // n·P(v/n) is the projection on the simplex of sum n
    let theta = threshold((0..<n).map { lam[$0] + rate * steep[$0] }, Double(n))
    for i in 0..<n { lam[i] = max(lam[i] + rate * steep[i] - theta, 0) }
    mu[0] = max(0, mu[0] + rateMu * (Double(loss[0]) - bound))
    if let weights = try cache?.keep("weights", n, T.self) { for i in 0..<n { weights[i] = T(lam[i]) } }
    try cache?.keep("multiplier", 1, T.self)[0] = T(mu[0])
    return mu[0] * Double(loss[0]) + (0..<n).reduce(0.0) { $0 + lam[$1] * steep[$1] }
  }

  /// θ with Σ max(x − θ, 0) = r.
  private func threshold(_ x: [Double], _ r: Double) -> Double {
    var sum = 0.0, theta = 0.0
    for (k, v) in x.sorted(by: >).enumerated() {
      sum += v
      let t = (sum - r) / Double(k + 1)
      if v <= t { break }
      theta = t
    }
    return theta
  }
}
