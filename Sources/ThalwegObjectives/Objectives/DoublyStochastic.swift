import Glibc
import ThalwegCore

/// The doubly stochastic matrix nearest to similarities, smoothed by entropy: a layer.
///
///     Π = argmin −⟨S, P⟩ + η·Σ P·log P over P ≥ 0 with rows and columns of sum 1, by Sinkhorn's iteration in
///     logarithms
///     ∂S = (Π∘G − Π∘(a·1ᵀ + 1·bᵀ))/η, with a and b such that the rows and columns of ∂S sum to 0; G = dpi
///
/// s is (n, n). The pull-back gives Π (take it with a factor of 1); given dpi, the derivatives of the host's loss by
/// it,
/// the value is Σ dpi·Π and the gradient of s the vector-Jacobian product. Without dpi it counts as 0.
/// Sweeps end when no row is off by tol, or after `iters` of them; the gradient is that of the marginals as they are.
/// Errors   TW_ERROR_NUMERIC: the two equations have no solution.
/// Source   Sinkhorn, 1964; Ding et al., 2023, arXiv:2301.01805.
struct SinkhornDoublyStochastic: Objective {
  static let method = Method(
    "sinkhorn_doubly_stochastic", .objective, "The doubly stochastic matrix nearest to similarities: a layer.",
    rule: """
      pi = argmin -<s, P> + eta*sum P*log P, rows and columns of sum 1;  value = sum dpi*pi
      gradient for s: pi*(dpi - a - b)/eta with row and column sums of 0
      """,
    source: "Ding et al., 2023, arXiv:2301.01805",
    parameters: [
      .number("eta", 0.1, .above(0), "weight of the entropy"), .integer("iters", 10_000, .atLeast(1), "most sweeps"),
      .number("tol", 1e-12, .above(0), "largest error of a row that is left"),
    ],
    inputs: [
      .variable("s", "n, n", "similarities"), .constant("dpi", "n, n", "derivatives by pi; none: 0", optional: true),
      .result("pi", "n, n", "the matrix"),
    ])
  let eta: Double, sweeps: Int, tolerance: Double
  init(_ h: Hyper) { (eta, sweeps, tolerance) = (h.eta, h.integer("iters"), h.tol) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let s = try x["s"], upstream = x.optional("dpi"), n = x.sizes["n"], space = Workspace()
    defer { space.close() }
    try refuseNonFinite(s, n * n, "s")
    let p = try space.room(area(n, n), Double.self)
    try plan(s, n, p, space)
    if let pi = try cache?.keep("pi", n * n, T.self) { for i in 0..<(n * n) { pi[i] = T(p[i]) } }
    let g = try cache?.keep("s", n * n, T.self)
    guard let upstream else { return 0 }
    if let g {
      let (a, b) = try marginals(upstream, p, n)
      for i in 0..<(n * n) { g[i] = T(p[i] * (Double(upstream[i]) - a[i / n] - b[i % n]) / eta) }
    }
    return Rows.sum(n, work: 2 * n) { i in
      (0..<n).reduce(0) { $0 + Double(upstream[i * n + $1]) * p[i * n + $1] }
    }
  }

  /// p ← exp((s + f + g)/η).
  private func plan<T: Real>(
    _ s: UnsafePointer<T>, _ n: Int, _ p: UnsafeMutablePointer<Double>, _ space: Workspace
  ) throws(Failure) {
    let rows = try space.room(n, Double.self), columns = try space.room(n, Double.self)
    for _ in 0..<sweeps {
      for i in 0..<n {
        var sum = LogSum()
        for j in 0..<n { sum.add(Double(s[i * n + j]) / eta + columns[j]) }
        rows[i] = -sum.value
      }
      for j in 0..<n {
        var sum = LogSum()
        for i in 0..<n { sum.add(Double(s[i * n + j]) / eta + rows[i]) }
        columns[j] = -sum.value
      }
      var error = 0.0
      for i in 0..<n {
        var sum = 0.0
        for j in 0..<n {
          p[i * n + j] = exp(Double(s[i * n + j]) / eta + rows[i] + columns[j])
          sum += p[i * n + j]
        }
        error = larger(error, abs(sum - 1))
      }
      if error < tolerance { return }
    }
  }
  /// a and b with Σ_j p·(g − a − b) = 0 in each row and Σ_i in each column; b sums to 0, as only their sum counts.
  private func marginals<T: Real>(_ g: UnsafePointer<T>, _ p: UnsafePointer<Double>, _ n: Int) throws(Failure)
    -> ([Double], [Double])
  {
    try Memory.ask(8 * (n * n + 6 * n))
    let zeros = [Double](repeating: 0, count: n)
    var rows = zeros, mass = zeros, right = zeros, system = [Double](repeating: 1 / Double(n), count: n * n)
    for i in 0..<n {
      for j in 0..<n {
        rows[i] += p[i * n + j] * Double(g[i * n + j])
        mass[i] += p[i * n + j]
      }
    }
    for j in 0..<n {
      for i in 0..<n {
        right[j] += p[i * n + j] * (Double(g[i * n + j]) - rows[i] / mass[i])
        system[j * n + j] += p[i * n + j]
      }
    }
    for i in 0..<n {
      for a in 0..<n { for b in 0..<n { system[a * n + b] -= p[i * n + a] * p[i * n + b] / mass[i] } }
    }
    let columns = try LinearAlgebra.solve(system, right, n, 1)
    for i in 0..<n {
      for j in 0..<n { rows[i] -= p[i * n + j] * columns[j] }
      rows[i] /= mass[i]
    }
    return (rows, columns)
  }
}
