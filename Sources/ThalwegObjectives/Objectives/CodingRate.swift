import Glibc
import ThalwegCore

/// ½·t/n·log det(I + c·Xᵀ·diag(w)·X), the rate that codes weighted rows, with c = d/(t·ε²), t = Σ w.
private struct Rate {
  let value: Double
  /// (I + c·Xᵀ·diag(w)·X)⁻¹, c and the logarithm of the determinant.
  let inverse: [Double], c: Double, logDeterminant: Double, t: Double

  /// `x` in double; nil for a group of no weight.
  init?(_ x: UnsafePointer<Double>, _ w: [Double], _ n: Int, _ d: Int, _ eps: Double) throws(Failure) {
    let t = w.reduce(0, +), c = Double(d) / (t * eps * eps)
    guard t > 0 || t.isNaN else { return nil }
    let space = Workspace()
    defer { space.close() }
    let scaled = try space.room(area(n, d), Double.self)
    for i in 0..<n { for k in (i * d)..<((i + 1) * d) { scaled[k] = w[i] * x[k] } }
    try Memory.ask(8 * area(d, d))
    var a = [Double](repeating: 0, count: d * d)
    try a.withUnsafeMutableBufferPointer { (out) throws(Failure) in
      guard let out = out.baseAddress else { return }
      try LinearAlgebra.multiply(scaled, transposed: true, x, into: out, d, d, n, alpha: c)
    }
    for i in 0..<d {
      a[i * d + i] += 1
      for j in 0..<i { a[i * d + j] = a[j * d + i] }
    }
    let factored = try PositiveDefinite(a, d, "I + c*X'diag(w)X")
    (inverse, self.c, logDeterminant, self.t) = (factored.inverse, c, factored.logDeterminant, t)
    value = t / (2 * Double(n)) * logDeterminant
  }
}

private let distortion = Parameter.eps(0.5, "distortion", .above(0))

/// The coding rate of rows.
///
///     value = ½·log det(I + d/(n·ε²)·XᵀX)     ∂X = d/(n·ε²)·X·(I + d/(n·ε²)·XᵀX)⁻¹
///
/// x is (n, d), usually of normalised rows.
/// Differs  the authors write ε where ε² stands here.
/// Source   Yu et al., 2020, arXiv:2006.08558.
struct CodingRate: Objective {
  static let method = Method(
    "coding_rate", .objective, "The rate that codes the rows of a matrix up to a distortion.",
    rule: "c = d/(n*eps^2);  value = log det(I + c*X'X)/2;  gradient for x: c*X (I + c*X'X)^-1",
    source: "Yu et al., 2020, arXiv:2006.08558", parameters: [distortion],
    inputs: [.variable("x", "n, d", "features")])
  let eps: Double
  init(_ h: Hyper) { eps = h.eps }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let rows = try widened(x["x"], n * d, space)
    guard let rate = try Rate(rows, [Double](repeating: 1, count: n), n, d, eps) else { return 0 }
    if let g = try cache?.keep("x", n * d, T.self) {
      let product = try space.room(n * d, Double.self)
      try LinearAlgebra.multiply(rows, rate.inverse, into: product, n, d, d, alpha: rate.c)
      for k in 0..<(n * d) { g[k] = T(product[k]) }
    }
    return rate.value
  }
}

/// Maximal coding-rate reduction: all rows take much room, those of a group little.
///
///     R = ½·log det(I + d/(n·ε²)·XᵀX)     Rc = Σ_j t_j/(2n)·log det A_j, A_j = I + d/(t_j·ε²)·Xᵀ·diag(w_j)·X, t = Σ w
///     value = −(R − Rc) + γ/2·‖Π‖²
///
/// x is (n, d), usually of normalised rows, pi is (n, k) with the memberships w_j in its columns. A group of no weight
/// is left out. The systems are (d, d).
/// Errors   TW_ERROR_NUMERIC: negative memberships that leave a matrix indefinite.
/// Differs  the authors write ε where ε² stands here. The doubly stochastic memberships of the clustering form are not
///          made here.
/// Source   Yu et al., 2020, arXiv:2006.08558; Ding et al., 2023, arXiv:2301.01805.
struct MCR2: Objective {
  static let method = Method(
    "mcr2", .objective, "All rows take much room, those of a group little: maximal coding-rate reduction.",
    rule: """
      R = log det(I + d/(n*eps^2)*X'X)/2;  Rc = sum_j t_j/(2n)*log det(I + d/(t_j*eps^2)*X'diag(w_j)X), t = sum w
      value = -(R - Rc) + gamma_pi/2*|Pi|^2, w_j the columns of Pi
      """,
    source: "Yu et al., 2020, arXiv:2006.08558; Ding et al., 2023, arXiv:2301.01805",
    parameters: [distortion, .number("gamma_pi", 0, .atLeast(0), "weight of |Pi|^2/2")],
    inputs: [.variable("x", "n, d", "features"), .variable("pi", "n, k", "memberships of the groups, at least 0")])
  let eps: Double, gamma: Double
  init(_ h: Hyper) { (eps, gamma) = (h.eps, h.gamma_pi) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let pi = try x["pi"], n = x.sizes["n"], d = x.sizes["d"], groups = x.sizes["k"], space = Workspace()
    if let k = (0..<(n * groups)).first(where: { pi[$0] < 0 }) {
      throw Failure(Status.range, "mcr2: `pi` must be at least 0, got \(text(Double(pi[k]))) at element \(k)")
    }
    defer { space.close() }
    let rows = try widened(x["x"], n * d, space), product = try space.room(n * d, Double.self)
    let sum = try space.room(n * d, Double.self), dp = try cache?.keep("pi", n * groups, T.self)
    var value = gamma / 2 * Flat.squaredNorm(pi, n * groups)
    if let dp { Flat.scale(pi, by: gamma, into: dp, n * groups) }
    for j in -1..<groups {  // the whole first
      let w = (0..<n).map { j < 0 ? 1 : Double(pi[$0 * groups + j]) }
      guard let rate = try Rate(rows, w, n, d, eps) else { continue }
      value += j < 0 ? -rate.value : rate.value
      guard cache != nil else { continue }
      try LinearAlgebra.multiply(rows, rate.inverse, into: product, n, d, d)
      let factor = (j < 0 ? -1 : 1) * rate.t / Double(n) * rate.c
      let trace = Double(d) - (0..<d).reduce(0) { $0 + rate.inverse[$1 * d + $1] }
      for i in 0..<n {
        Flat.add(product + i * d, times: factor * w[i], into: sum + i * d, d)
        if j >= 0, let dp {
          let own = rate.c * rate.t * Flat.dot(rows + i * d, product + i * d, d)
          dp[i * groups + j] += T((rate.logDeterminant + own - trace) / (2 * Double(n)))
        }
      }
    }
    if let g = try cache?.keep("x", n * d, T.self) { for k in 0..<(n * d) { g[k] = T(sum[k]) } }
    return value
  }
}
