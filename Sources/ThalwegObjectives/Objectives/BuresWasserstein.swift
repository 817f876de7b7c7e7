import Glibc
import ThalwegCore

/// tr(A + τI) + tr B − 2·tr M^½ of positive semi-definite matrices, M = B^½·(A + τI)·B^½.
private struct Bures {
  let tau: Double, rtol: Double
  static let parameters: [Parameter] = [
    .number("tau", 0, .atLeast(0), "added to the diagonal of A"),
    .number("rtol", 1e-12, .above(0), "eigenvalues of M up to this times the largest have no inverse"),
  ]
  init(_ h: Hyper) { (tau, rtol) = (h.tau, h.rtol) }

  /// The value, and on demand its gradient by A.
  func evaluate(_ covariance: [Double], _ b: [Double], _ d: Int, slopes: Bool) throws(Failure)
    -> (value: Double, slope: [Double])
  {
    var a = covariance, value = 0.0
    for i in 0..<d {
      a[i * d + i] += tau
      value += a[i * d + i] + b[i * d + i]
    }
    // tr M^½ is the sum of the singular values of (A + τI)^½·B^½: no root is taken of a rounding error
    let root = try squareRoot(b, d), inner = try LinearAlgebra.SVD(try product(squareRoot(a, d), root, d), d, d)
    for s in inner.s { value -= 2 * s }
    guard slopes else { return (value, []) }
    // M = V·S²·Vᵀ, and (B^½·V)·S⁻¹·(B^½·V)ᵀ is T
    let least = rtol.squareRoot() * (inner.s.first ?? 0)
    try Memory.ask(16 * d * d)
    var left = [Double](repeating: 0, count: d * d), t = left
    try LinearAlgebra.multiply(root, transposed: false, inner.vt, transposed: true, into: &left, d, d, d)
    var scaled = left
    for k in 0..<(d * d) { scaled[k] *= inner.s[k % d] > least ? 1 / inner.s[k % d] : 0 }
    try LinearAlgebra.multiply(scaled, transposed: false, left, transposed: true, into: &t, d, d, d)
    var slope = [Double](repeating: 0, count: d * d)
    for i in 0..<d { for j in 0..<d { slope[i * d + j] = (i == j ? 1 : 0) - (t[i * d + j] + t[j * d + i]) / 2 } }
    return (value, slope)
  }

  /// Of a positive semi-definite matrix: eigenvalues below 0, or above it by rounding alone, are 0.
  private func squareRoot(_ a: [Double], _ n: Int) throws(Failure) -> [Double] {
    let eigen = try LinearAlgebra.Eigen(a, n), least = Double(n) * .ulpOfOne * (eigen.values.first ?? 0)
    var out = [Double](repeating: 0, count: n * n)
    try out.withUnsafeMutableBufferPointer { (p) throws(Failure) in
      guard let p = p.baseAddress else { return }
      try eigen.compose(p) { $0 > larger(0, least) ? $0.squareRoot() : 0 }
    }
    return out
  }
  private func product(_ a: [Double], _ b: [Double], _ n: Int) throws(Failure) -> [Double] {
    try Memory.ask(8 * n * n)
    var out = [Double](repeating: 0, count: n * n)
    try LinearAlgebra.multiply(a, b, into: &out, n, n, n)
    return out
  }
}

/// The squared Bures-Wasserstein distance of covariances, or of Gaussians.
///
///     M = B^½·(A + τI)·B^½     value = tr(A + τI) + tr B − 2·tr M^½ (+ ‖m_A − m_B‖²)
///     ∂A = I − T, T = B^½·M^{−½}·B^½ (pseudo-inverse)
///
/// a and b are (d, d); their symmetric parts count, and negative eigenvalues count as 0. Eigenvalues of M up to rtol
/// times the largest have no inverse in T: across a change of rank the true derivative is unbounded, which τ > 0
/// avoids. For factors, A = W·Wᵀ, the gradient of W is 2·(∂A)·W.
/// Errors   TW_ERROR_NEEDS: only one of the means; TW_ERROR_NONFINITE: entries that are not finite.
/// Differs  POT returns the root.
/// Source   Brechet et al., 2023, arXiv:2303.03027.
struct BuresWasserstein: Objective {
  static let method = Method(
    "bures_wasserstein", .objective, "The squared Bures-Wasserstein distance of covariances, or of Gaussians.",
    rule: """
      M = B^1/2 (A + tau I) B^1/2;  value = tr(A + tau I) + tr B - 2*tr M^1/2 + |mean_a - mean_b|^2
      gradient for a: I - B^1/2 M^(-1/2) B^1/2
      """,
    source: "Brechet et al., 2023, arXiv:2303.03027",
    parameters: Bures.parameters,
    inputs: [
      .variable("a", "d, d", "covariance"), .constant("b", "d, d", "covariance to reach"),
      .variable("mean_a", "d", "mean", optional: true), .constant("mean_b", "d", "mean to reach", optional: true),
    ])
  private let bures: Bures
  init(_ h: Hyper) { bures = Bures(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let d = x.sizes["d"]
    let (distance, slope) = try bures.evaluate(symmetric(x["a"], d), symmetric(x["b"], d), d, slopes: cache != nil)
    if let g = try cache?.keep("a", d * d, T.self) { for k in 0..<(d * d) { g[k] = T(slope[k]) } }
    var value = distance
    switch (x.optional("mean_a"), x.optional("mean_b")) {
    case (let p?, let q?):
      let g = try cache?.keep("mean_a", d, T.self)
      for k in 0..<d {
        let apart = Double(p[k]) - Double(q[k])
        value += apart * apart
        g?[k] = T(2 * apart)
      }
    case (nil, nil): break
    default: throw Failure(Status.needs, "`mean_a` and `mean_b` belong together")
    }
    return value
  }
}

/// The Bures-Wasserstein loss of a deep linear network that generates: its output has the covariance W·Wᵀ.
///
///     W = W_N···W_1, A = W·Wᵀ     value and ∂A as of `bures_wasserstein`
///     ∂W = 2·∂A·W     ∂W_j = (W_N···W_{j+1})ᵀ·∂W·(W_{j−1}···W_1)ᵀ
///
/// Up to four factors, w1 (h1, h0), w2 (h2, h1), ..., the last with as many rows as b, (d, d).
/// Errors   TW_ERROR_SHAPE: another number of rows; TW_ERROR_NEEDS: a factor without the one before it.
/// Source   Brechet et al., 2023, arXiv:2303.03027.
struct BuresWassersteinDeepLinear: Objective {
  static let method = Method(
    "bures_wasserstein_deep_linear", .objective, "The Bures-Wasserstein loss of a deep linear network that generates.",
    rule: """
      W = w4 w3 w2 w1 (those given), A = W W';  value of bures_wasserstein at A and b
      gradients: dW = 2*dA W, dw_j = (factors behind)' dW (factors before)'
      """,
    source: "Brechet et al., 2023, arXiv:2303.03027", parameters: Bures.parameters,
    inputs: [
      .variable("w1", "h1, h0", "the first factor"), .constant("b", "d, d", "covariance to reach"),
      .variable("w2", "h2, h1", "the second factor", optional: true),
      .variable("w3", "h3, h2", "the third factor", optional: true),
      .variable("w4", "h4, h3", "the fourth factor", optional: true),
    ])
  private let bures: Bures
  init(_ h: Hyper) { bures = Bures(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    var factors: [UnsafePointer<Double>] = [], sides = [x.sizes["h0"]]
    for k in 1...4 {
      guard let w = x.optional("w\(k)") else { continue }
      guard factors.count == k - 1 else { throw Failure(Status.needs, "`w\(k)` needs `w\(k - 1)`") }
      sides.append(x.sizes["h\(k)"])
      factors.append(UnsafePointer(try widened(w, sides[k] * sides[k - 1], space)))
    }
    let depth = factors.count, inner = sides[0]
    guard sides[depth] == d else {
      throw Failure(Status.shape, "`w\(depth)` has \(sides[depth]) rows, `b` has \(d)")
    }
    // before[k] = W_k···W_1
    var before = [factors[0]]
    for k in 1..<depth {
      let next = try space.room(area(sides[k + 1], inner), Double.self)
      try LinearAlgebra.multiply(factors[k], before[k - 1], into: next, sides[k + 1], inner, sides[k])
      before.append(UnsafePointer(next))
    }
    let whole = before[depth - 1]
    try Memory.ask(8 * area(d, d))
    var a = [Double](repeating: 0, count: d * d)
    try LinearAlgebra.gram(whole, into: &a, d, inner)
    let (value, slope) = try bures.evaluate(a, symmetric(x["b"], d), d, slopes: cache != nil)
    guard let cache else { return value }
    // from the last factor to the first: back = (W_N···W_{j+1})ᵀ·∂W
    var back = try space.room(d * inner, Double.self)
    try LinearAlgebra.multiply(slope, whole, into: back, d, inner, d, alpha: 2)
    for k in stride(from: depth - 1, through: 0, by: -1) {
      let rows = sides[k + 1], columns = sides[k], g = try cache.keep("w\(k + 1)", rows * columns, T.self)
      if k == 0 {
        for i in 0..<(rows * columns) { g[i] = T(back[i]) }
        break
      }
      let own = try space.room(rows * columns, Double.self), next = try space.room(area(columns, inner), Double.self)
      try LinearAlgebra.multiply(
        back, transposed: false, before[k - 1], transposed: true, into: own, rows, columns, inner)
      for i in 0..<(rows * columns) { g[i] = T(own[i]) }
      try LinearAlgebra.multiply(factors[k], transposed: true, back, into: next, columns, inner, rows)
      back = next
    }
    return value
  }
}
