import Glibc
import ThalwegCore

/// One-class discriminative subspaces: two frames of hyperplanes that enclose the normal data.
///
///     A = X·W1ᵀ + b1, B = X·W2ᵀ + b2, the rows of W orthonormal
///     value = Σ_i max(η − min_k A_ik, 0)² + max(η + max_k B_ik, 0)² + λ·(|A|² + |B|²)
///
/// The subgradient is that of the first least and largest entry. `normal` is 1 where min A > thresh and max B < thresh.
/// Differs  the frames are kept orthonormal by the host (`stiefel`). The paper's text divides the terms by 1/(2n).
/// Source   Wang, Cherian, 2019, arXiv:1908.05884.
struct GODSLoss: Objective {
  static let method = Method(
    "gods_loss", .objective, "One-class discriminative subspaces: two frames of hyperplanes around normal data.",
    rule: """
      A = X*W1' + b1, B = X*W2' + b2
      value = sum_i max(eta - min_k A_ik, 0)^2 + max(eta + max_k B_ik, 0)^2 + weight*(|A|^2 + |B|^2)
      """,
    source: "Wang, Cherian, 2019, arXiv:1908.05884",
    parameters: [
      .number("eta", 0.01, .atLeast(0), "margin"), .number("weight", 0.001, .atLeast(0), "coefficient of the squares"),
      .number("thresh", 0, .any, "offset of the decision"),
    ],
    inputs: [
      .constant("x", "n, d", "samples"), .variable("w1", "k, d", "frame below"), .variable("b1", "k", "its offsets"),
      .variable("w2", "k, d", "frame above"), .variable("b2", "k", "its offsets"),
      .result("normal", "n", "1 where a sample lies between the frames"),
    ])
  let eta, weight, thresh: Double
  init(_ h: Hyper) { (eta, weight, thresh) = (h.eta, h.weight, h.thresh) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], k = x.sizes["k"], data = try x["x"], space = Workspace()
    defer { space.close() }
    let normal = try cache?.keep("normal", n, T.self)
    normal?.update(repeating: 1, count: n)
    let scores = try space.room(area(n, k), T.self)
    var value = 0.0
    for (frame, offsets, side) in [("w1", "b1", 1.0), ("w2", "b2", -1.0)] {
      let w = try x[frame], b = try x[offsets]
      try LinearAlgebra.multiply(data, transposed: false, w, transposed: true, into: scores, n, k, d)
      for i in 0..<n {
        var nearest = 0, top = Double.infinity
        for j in 0..<k {
          let a = Double(scores[i * k + j]) + Double(b[j])
          if !(side * a >= top) { (nearest, top) = (j, side * a) }
          value += weight * a * a
          scores[i * k + j] = T(2 * weight * a)
        }
        let miss = top.isNaN ? top : max(eta - top, 0)
        value += miss * miss
        scores[i * k + nearest] = T(Double(scores[i * k + nearest]) - 2 * side * miss)
        if !(top > side * thresh) { normal?[i] = 0 }
      }
      guard let cache else { continue }
      try LinearAlgebra.multiply(scores, transposed: true, data, into: cache.keep(frame, k * d, T.self), k, d, n)
      let g = try cache.keep(offsets, k, T.self)
      for j in 0..<k { g[j] = T((0..<n).reduce(0.0) { $0 + Double(scores[$1 * k + j]) }) }
    }
    return value
  }
}

/// The proximal matching loss: what it trains is the proximal map of the data's own prior.
///
///     d_i = |f_i − x_i|;   value = mean_i (1 − exp(−d_i²/γ²));   γ = gamma_min·2^(stages − 1 − stage)
///
/// f (B, ...) are the outputs on noisy samples, x the clean ones. `progress` is the share of the run that is over:
/// before `pretrain_share` the value is the mean absolute difference; then come `stages` of one length. Without
/// `progress` γ is gamma_min.
/// Differs  the paper's factor (πγ²)^(−n/2) is left out, as in the authors' code. The default of gamma_min is
///          UNVERIFIED.
/// Source   Fang, Buchanan, Sulam, 2024, arXiv:2310.14344.
struct ProxMatching: Objective {
  static let method = Method(
    "prox_matching", .objective, "The proximal matching loss: what it trains is the prox of the data's prior.",
    rule: """
      value = mean_i (1 - exp(-|f_i - x_i|^2/gamma^2)), gamma = gamma_min*2^(stages - 1 - stage)
      before pretrain_share of the run: mean |f - x|
      """,
    source: "Fang, Buchanan, Sulam, 2024, arXiv:2310.14344",
    parameters: [
      .number("gamma_min", 0.05, .above(0), "last gamma"), .integer("stages", 4, .within(1, 1000), "halvings plus one"),
      .number("pretrain_share", 0.5, .rate, "share of the run on absolute differences"),
    ],
    inputs: [
      .variable("f", "B, ...", "outputs on noisy samples"), .constant("x", "B, ...", "clean samples"),
      .constant("progress", "", "share of the run that is over, 0 to 1", optional: true),
    ])
  let least, share: Double, stages: Int
  init(_ h: Hyper) { (least, share, stages) = (h.gamma_min, h.pretrain_share, h.integer("stages")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let f = try x["f"], target = try x["x"], b = x.sizes["B"], n = x.sizes.samples
    let g = try cache?.keep("f", b * n, T.self), over = x.optional("progress").map { Double($0[0]) }
    if let over, !(over >= 0 && over <= 1) {
      throw Failure(Status.range, "prox_matching: `progress` must be in [0, 1], got \(text(over))")
    }
    if let over, over < share {
      let weight = 1 / Double(b * n)
      return weight
        * Rows.sum(b * n, work: 2) { i in
          let d = Double(f[i]) - Double(target[i])
          g?[i] = T(weight * sign(d))
          return abs(d)
        }
    }
    let stage = over.map { min(Int(($0 - share) / (1 - share) * Double(stages)), stages - 1) } ?? stages - 1
    let gamma = scalbn(least, stages - 1 - stage)
    return Rows.sum(b, work: 4 * n) { i in
      var square = 0.0
      for k in (i * n)..<((i + 1) * n) {
        let d = (Double(f[k]) - Double(target[k])) / gamma
        square += d * d
      }
      if let g {
        let slope = 2 * exp(-square) / (Double(b) * gamma * gamma)
        for k in (i * n)..<((i + 1) * n) { g[k] = T(slope * (Double(f[k]) - Double(target[k]))) }
      }
      return -expm1(-square) / Double(b)
    }
  }
}
