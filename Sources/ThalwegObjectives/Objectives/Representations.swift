import Glibc
import ThalwegCore

/// The unconstrained-features model with a pull to given features.
///
///     value = ‖W·H − Y‖²/(2N) + λ_w/(2K)·‖W‖² + λ_h/(2N)·‖H − H₀‖²
///     ∂H = Wᵀ(W·H − Y)/N + λ_h·(H − H₀)/N     ∂W = (W·H − Y)·Hᵀ/N + λ_w·W/K
///
/// h and h0 are (d, N), y is (K, N), w is (K, d).
/// Differs  the normalisation and the weights are the card's; the paper's are not verified.
/// Source   Tirer, Huang and Niles-Weed, 2023, arXiv:2210.16658.
struct UFMProximity: Objective {
  static let method = Method(
    "ufm_proximity", .objective, "The unconstrained-features model with a pull to given features.",
    rule: """
      value = |W H - Y|^2/(2N) + lam_w/(2K)*|W|^2 + lam_h/(2N)*|H - H0|^2
      gradients for H: (W'(W H - Y) + lam_h*(H - H0))/N;  for W: (W H - Y) H'/N + lam_w*W/K
      """,
    source: "Tirer, Huang, Niles-Weed, 2023, arXiv:2210.16658",
    parameters: [
      .number("lam_w", 5e-3, .above(0), "weight of |W|^2"), .number("lam_h", 5e-3, .above(0), "pull of H to H0"),
    ],
    inputs: [
      .variable("h", "d, N", "features"), .variable("w", "K, d", "weights"),
      .constant("h0", "d, N", "features to stay near"),
      .constant("y", "K, N", "targets"),
    ])
  let weights: Double, pull: Double
  init(_ h: Hyper) { (weights, pull) = (h.lam_w, h.lam_h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let h = try x["h"], w = try x["w"], h0 = try x["h0"], y = try x["y"], space = Workspace()
    let d = x.sizes["d"], n = x.sizes["N"], k = x.sizes["K"], scale = 1 / Double(n)
    defer { space.close() }
    let rest = try space.room(area(k, n), T.self), apart = try space.room(d * n, T.self)
    rest.update(from: y, count: k * n)
    try LinearAlgebra.multiply(w, h, into: rest, k, n, d, beta: -1)
    for i in 0..<(d * n) { apart[i] = h[i] - h0[i] }
    if let cache {
      let gh = try cache.keep("h", d * n, T.self), gw = try cache.keep("w", k * d, T.self)
      Flat.scale(apart, by: pull * scale, into: gh, d * n)
      Flat.scale(w, by: weights / Double(k), into: gw, k * d)
      try LinearAlgebra.multiply(w, transposed: true, rest, into: gh, d, n, k, alpha: scale, beta: 1)
      try LinearAlgebra.multiply(rest, transposed: false, h, transposed: true, into: gw, k, d, n, alpha: scale, beta: 1)
    }
    return scale / 2 * (Flat.squaredNorm(rest, k * n) + pull * Flat.squaredNorm(apart, d * n))
      + weights / (2 * Double(k)) * Flat.squaredNorm(w, k * d)
  }
}

/// Frechet cumulative covariance: how much a representation depends on responses of which only distances are known. It
/// is to be maximised.
///
///     v_ab = (1/n)·Σ_i (u_i − mean u)·[D_ai < D_ab]     FCCov = (1/n²)·Σ_ab ‖v_ab‖²
///     value = FCCov − ridge·‖Cov(u) − I‖²
///
/// u is (n, d), distances is (n, n). Each row of distances is sorted once: v_ab are sums of its first entries, the
/// gradient those of its last, O(n²·(log n + d)) in all. Equal distances do not count as smaller.
/// Differs  the weight of the penalty is the card's; the paper's is not verified. A single row gives 0.
/// Source   Yuan et al., 2025, arXiv:2502.15374.
struct FCCov: Objective {
  static let method = Method(
    "fccov", .objective, "How much a representation depends on responses with given distances; to be maximised.",
    rule: """
      v_ab = 1/n*sum_i (u_i - mean u)*[D_ai < D_ab];  value = 1/n^2*sum_ab |v_ab|^2 - ridge*|Cov(u) - I|^2
      """,
    source: "Yuan et al., 2025, arXiv:2502.15374",
    parameters: [.number("ridge", 1, .atLeast(0), "weight of the distance from unit covariance")],
    inputs: [
      .variable("u", "n, d", "representation"), .constant("distances", "n, n", "distances between the responses"),
    ])
  let ridge: Double
  init(_ h: Hyper) { ridge = h.ridge }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let u = try x["u"], distances = try x["distances"], n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    if let k = (0..<(n * n)).first(where: { distances[$0].isNaN }) {
      throw Failure(Status.range, "`distances` must be numbers, got NaN at element \(k)")
    }
    let g = try cache?.keep("u", n * d, T.self)
    if n < 2 {  // one row depends on nothing
      g?.update(repeating: 0, count: n * d)
      return 0
    }
    let c = try space.room(n * d, Double.self), slope = try space.room(n * d, Double.self)
    let sums = try space.room(area(n, d), Double.self), covariance = try space.room(area(d, d), Double.self)
    let running = try space.room(d, Double.self), weight = 1 / Double(n)
    for k in 0..<d {
      let mean = (0..<n).reduce(0) { $0 + weight * Double(u[$1 * d + k]) }
      for i in 0..<n { c[i * d + k] = Double(u[i * d + k]) - mean }
    }
    var value = 0.0
    for a in 0..<n {
      let row = distances + a * n
      let order = (0..<n).sorted { (row[$0], $0) < (row[$1], $1) }
      // sums[b]: over those nearer than b, in this order; those at one distance share it
      var first = 0
      for k in 0..<d { running[k] = 0 }
      for b in 0..<n {
        if row[order[b]] != row[order[first]] {
          for i in first..<b { for k in 0..<d { running[k] += c[order[i] * d + k] } }
          first = b
        }
        for k in 0..<d {
          sums[b * d + k] = running[k]
          value += weight * weight * weight * weight * running[k] * running[k]
        }
      }
      guard cache != nil else { continue }
      for k in 0..<d { running[k] = 0 }
      var last = n - 1
      for b in stride(from: n - 1, through: 0, by: -1) {
        if row[order[b]] != row[order[last]] {
          for i in (b + 1)...last { for k in 0..<d { running[k] += sums[i * d + k] } }
          last = b
        }
        for k in 0..<d { slope[order[b] * d + k] += 2 * weight * weight * weight * weight * running[k] }
      }
    }
    try LinearAlgebra.multiply(c, transposed: true, c, into: covariance, d, d, n, alpha: weight)
    for k in 0..<d { covariance[k * d + k] -= 1 }
    value -= ridge * Flat.squaredNorm(covariance, d * d)
    if let g {
      try LinearAlgebra.multiply(c, covariance, into: slope, n, d, d, alpha: -4 * ridge * weight, beta: 1)
      for k in 0..<d {
        let mean = (0..<n).reduce(0) { $0 + weight * slope[$1 * d + k] }
        for i in 0..<n { g[i * d + k] = T(slope[i * d + k] - mean) }
      }
    }
    return value
  }
}

/// Squared error with its weight on the edges of an image.
///
///     value = mean (w_e·m² + w_o·(1 − m)²)·(p − t)² on even steps before `until`, else mean (p − t)²
///
/// p and t are (..., K), mask is (...): how much of an edge each pixel is, 0 to 1. Without `step` the mask counts.
/// Errors   TW_ERROR_RANGE: a step below 0.
/// Source   Chen et al., 2024, arXiv:2402.13252.
struct EdgeGuidedMSE: Objective {
  static let method = Method(
    "edge_guided_mse", .objective, "Squared error with its weight on the edges of an image.",
    rule: """
      value = mean (edge_factor*m^2 + other_factor*(1 - m)^2)*(p - t)^2 on even steps before until
      value = mean (p - t)^2 on all others
      """,
    source: "Chen et al., 2024, arXiv:2402.13252",
    parameters: [
      .number("edge_factor", 1.5, .atLeast(0), "weight on edges"),
      .number("other_factor", 0.5, .atLeast(0), "weight elsewhere"),
      .integer("until", 8000, .atLeast(0), "the first step without the mask"),
    ],
    inputs: [
      .variable("p", "..., K", "predicted pixels"), .constant("t", "..., K", "pixels to reach"),
      .constant("mask", "...", "edges, 0 to 1"), .integer("step", "", "the running step, from 0 on", optional: true),
    ])
  let edge: Double, other: Double, until: Int
  init(_ h: Hyper) { (edge, other, until) = (h.edge_factor, h.other_factor, h.integer("until")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let p = try x["p"], t = try x["t"], mask = try x["mask"], channels = x.sizes["K"]
    let count = x.sizes.samples * channels, weight = 1 / Double(count), step = x.optionalIntegers("step")?.pointee
    if let step, step < 0 { throw Failure(Status.range, "`step` must be at least 0, got \(step)") }
    let masks = step.map { $0 % 2 == 0 && $0 < until } ?? true
    let g = try cache?.keep("p", count, T.self)
    return weight
      * Rows.sum(count, work: 8) { i in
        let m = Double(mask[i / channels]), apart = Double(p[i]) - Double(t[i])
        let w = masks ? edge * m * m + other * (1 - m) * (1 - m) : 1
        g?[i] = T(weight * 2 * w * apart)
        return w * apart * apart
      }
  }
}

/// The unbiased risk estimate of binomial means that are shrunk to centres.
///
///     p = x/n, v = p(1 − p)/(n − 1)     value = mean [w²·v + (1 − w)²·((p − m)² − v)]
///     ∂m = −2(1 − w)²·(p − m)/N     ∂w = [2w·v − 2(1 − w)·((p − m)² − v)]/N
///
/// x, n, m and w are (N,): successes, trials, centres and weights of what was seen. The N items with at least two
/// trials count; the others have no such estimate.
/// Errors   TW_ERROR_RANGE: a trial count below 1, successes outside [0, n], or no item with two trials.
/// Source   Compound Estimation for Binomials, 2025, arXiv:2512.25042.
struct BinomialURE: Objective {
  static let method = Method(
    "binomial_ure", .objective, "The unbiased risk estimate of binomial means that are shrunk to centres.",
    rule: "p = x/n, v = p*(1 - p)/(n - 1);  value = mean of w^2*v + (1 - w)^2*((p - m)^2 - v) over items with n >= 2",
    source: "Compound Estimation for Binomials, 2025, arXiv:2512.25042",
    inputs: [
      .integer("x", "N", "successes"), .integer("n", "N", "trials"), .variable("m", "N", "centres"),
      .variable("w", "N", "weights of what was seen"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let hits = try x.integers("x"), trials = try x.integers("n"), m = try x["m"], w = try x["w"], count = x.sizes["N"]
    var kept = 0
    for i in 0..<count {
      guard trials[i] >= 1, hits[i] >= 0, hits[i] <= trials[i] else {
        throw Failure(
          Status.range,
          "`x` must lie between 0 and `n`, `n` be at least 1, got \(hits[i]) and \(trials[i]) at element \(i)")
      }
      kept += trials[i] > 1 ? 1 : 0
    }
    guard kept > 0 else { throw Failure(Status.range, "`n` has no item of at least 2 trials") }
    let gm = try cache?.keep("m", count, T.self), gw = try cache?.keep("w", count, T.self), weight = 1 / Double(kept)
    return weight
      * Rows.sum(count, work: 8) { i in
        if trials[i] < 2 { return 0 }
        let p = Double(hits[i]) / Double(trials[i]), v = p * (1 - p) / (Double(trials[i]) - 1)
        let a = Double(w[i]), apart = p - Double(m[i]), bias = apart * apart - v
        gm?[i] = T(-2 * weight * (1 - a) * (1 - a) * apart)
        gw?[i] = T(2 * weight * (a * v - (1 - a) * bias))
        return a * a * v + (1 - a) * (1 - a) * bias
      }
  }
}

/// Feature gradients: scores of features by how well polynomials of few of them tell a response.
///
///     s = σ(scores), A = the strict upper triangle of X·diag(s)·Xᵀ, never formed
///     z = Σ_i c_i/binom(n, i + 2)·yᵀA^{i+1}y     f = 1 − z, or ½·(1 − √clip(z, 0, 1)) for classes
///     value = (1 − w)·f + w·mean s, w = C/(C + 1)
///
/// scores is (D,), x is (n, D), standardised, y is (n,), standardised or −1 and 1. It costs O(order²·n·D). Beyond the
/// clip the derivative is ±10⁻², so that scores find their way back; √z has 10⁻⁸ added in its derivative. Features
/// with s above ½ are selected.
/// Errors   TW_ERROR_RANGE: classes other than −1 and 1.
/// Differs  coefficients are known for orders up to 4.
/// Source   Sheth and Fusi, 2020, arXiv:1908.10382.
struct FeatureGradients: Objective {
  static let method = Method(
    "feature_gradients", .objective, "Scores of features, by how well polynomials of few of them tell a response.",
    rule: """
      s = sigma(scores), A = strict upper triangle of X diag(s) X';  z = sum_i c_i/binom(n, i + 2)*y'A^(i+1) y
      value = (1 - w)*f + w*mean s, w = penalty/(penalty + 1), f = 1 - z or (1 - sqrt(clip(z, 0, 1)))/2
      """,
    source: "Sheth, Fusi, 2020, arXiv:1908.10382",
    parameters: [
      .integer("order", 4, .within(1, 4), "order of the polynomials"),
      .number("penalty", 1, .atLeast(0), "C, weighs the number of features"),
      .flag("classification", false, "y are classes"),
    ],
    inputs: [
      .variable("scores", "D", "scores of the features"),
      .constant("x", "n, D", "features of a minibatch, standardised"),
      .constant("y", "n", "responses, standardised, or classes -1 and 1"),
    ])
  private static let coefficients: [[Double]] = [
    [0.60355337], [1.52705001, -0.34841729], [2.90254224, -1.87216745, 0], [4.63445685, -5.19936195, 0, 1.50391676],
  ]
  let order: Int, share: Double, classes: Bool
  init(_ h: Hyper) {
    let penalty: Double = h.penalty
    (order, share, classes) = (h.integer("order"), penalty / (penalty + 1), h.classification)
  }

  /// A·r, or Aᵀ·r: sums over the rows behind, or before.
  private func product<T: Real>(
    _ x: UnsafePointer<T>, _ s: [Double], _ n: Int, _ r: UnsafePointer<Double>, transposed: Bool,
    into out: UnsafeMutablePointer<Double>
  ) {
    let d = s.count
    var sums = [Double](repeating: 0, count: d)
    for k in 0..<n {
      let i = transposed ? k : n - 1 - k, row = x + i * d
      for c in 0..<d {
        out[i] += s[c] * Double(row[c]) * sums[c]
        sums[c] += Double(row[c]) * r[i]
      }
    }
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let scores = try x["scores"], rows = try x["x"], y = try x["y"], n = x.sizes["n"], d = x.sizes["D"]
    let space = Workspace(), s = (0..<d).map { sigmoid(Double(scores[$0])) }
    defer { space.close() }
    for i in 0..<n where classes && abs(y[i]) != 1 {
      throw Failure(Status.range, "`y` must hold the classes -1 and 1, got \(text(Double(y[i]))) at element \(i)")
    }
    // Aᵏ·y and (Aᵀ)ᵏ·y
    let right = try space.room((order + 1) * n, Double.self), left = try space.room((order + 1) * n, Double.self)
    for i in 0..<n { (right[i], left[i]) = (Double(y[i]), Double(y[i])) }
    var factors: [Double] = [], binomial = Double(n), z = 0.0
    for k in 0..<order {
      binomial *= Double(n - k - 1) / Double(k + 2)
      factors.append(binomial > 0 ? FeatureGradients.coefficients[order - 1][k] / binomial : 0)
      product(rows, s, n, right + k * n, transposed: false, into: right + (k + 1) * n)
      product(rows, s, n, left + k * n, transposed: true, into: left + (k + 1) * n)
      z += factors[k] * Flat.dot(UnsafePointer(right), right + (k + 1) * n, n)
    }
    var f = 1 - z, slope = -1.0
    if classes {
      let root = smaller(1, larger(0, z)).squareRoot()
      (f, slope) = ((1 - root) / 2, -0.25 / (root + 1e-8) * (z < 0 ? 1e-2 : z > 1 ? -1e-2 : 1))
    }
    let mean = s.reduce(0, +) / Double(d)
    if let g = try cache?.keep("scores", d, T.self) {
      _ = Rows.sum(d, work: 4 * order * order * n) { c in
        var sums = SIMD4<Double>.zero, total = 0.0
        for i in stride(from: n - 1, through: 0, by: -1) {
          let a = Double(rows[i * d + c])
          for j in 0..<order {
            for k in 0..<(order - j) { total += factors[j + k] * left[j * n + i] * a * sums[k] }
          }
          for k in 0..<order { sums[k] += a * right[k * n + i] }
        }
        g[c] = T(((1 - share) * slope * total + share / Double(d)) * s[c] * sigmoid(-Double(scores[c])))
        return 0
      }
    }
    return (1 - share) * f + share * mean
  }
}
