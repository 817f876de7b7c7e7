import Glibc
import ThalwegCore

/// Complete dictionary learning by maximising the p-norm of the codes over orthogonal matrices.
///
///     S = A·Y;  G = (|S|^(p−1)·sign S)·Yᵀ;  A ← U·Vᵀ of the singular value decomposition of G
///
/// |A·Y|_p^p never falls. D = Aᵀ recovers an orthogonal dictionary up to signs and order; another is whitened by the
/// host first. A has as many rows as are sought: one alone is the step on the sphere, q ← G/|G|.
/// Ends     converged: |A − A before| ≤ tol; max_iter.
/// Source   Shen, Xue, Zhang, Letaief, Lau, 2020, arXiv:2002.10043.
struct GPM: Driver {
  static let method = Method.solver(
    "gpm", "Generalised power method for dictionary learning by p-norm maximisation.",
    rule: "S = A Y;  G = (|S|^(p-1) sign S) Y';  A <- U V' of svd(G)",
    source: "Shen, Xue, Zhang, Letaief, Lau, 2020, arXiv:2002.10043",
    parameters: [
      .number("p", 3, .above(2), "exponent"), .integer("max_iter", 100, .atLeast(0), "steps"),
      .number("tol", 1e-10, .atLeast(0), "change that ends it"),
    ],
    inputs: [
      .constant("data", "n, m", "Y: one column a sample"), .constant("a0", "r, n", "orthonormal rows to start with"),
      .result("a", "r, n", "A"), .result("iterations", "", "steps"), .result("residual", "", "last change"),
      .result("value", "", "|A Y|_p^p before the last step"),
    ], kept: [.kept("codes", "r, m", "A Y"), .kept("g", "r, n", "G")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let y = try io["data"], a = try io["a"], s = try io["codes"], g = try io["g"], r = a.rows
    let n = y.rows, m = s.count / r
    a.copy(try io["a0"])
    guard r <= n else { throw Failure(Status.shape, "`a0` must not have more than \(n) rows, got \(r)") }
    guard y.isFinite, a.isFinite else { throw Failure(Status.nonfinite, "`data` and `a0` must be finite") }
    while io.iterations < h.max_iter {
      try LinearAlgebra.multiply(a.p, y.p, into: s.p, r, m, n)
      var value = 0.0
      for i in 0..<s.count {
        let size = pow(abs(Double(s.p[i])), h.p - 1)
        value += size * abs(Double(s.p[i]))
        s.p[i] = T(s.p[i] < 0 ? -size : size)
      }
      io.value = value
      try LinearAlgebra.multiply(s.p, transposed: false, y.p, transposed: true, into: g.p, r, n, m)
      try LinearAlgebra.SVD(g.p, r, n).compose(g.p) { _ in 1 }
      io.residual = g.distance(a)
      a.copy(g)
      io.iterations += 1
      if io.residual <= h.tol { return .done(.converged) }
    }
    return .done(.maxIter)
  }
}
