import ThalwegCore

// What solvers that minimise a function of n numbers share: their requests and their ends.

extension RequestKind {
  static let gradientAt = RequestKind(
    "gradient", "the gradient", given: [.given("point", "n", "where")], wanted: [.wanted("gradient", "n", "there")])
  static let hessianAt = RequestKind(
    "hessian", "the Hessian or what stands for it, symmetric", given: [.given("point", "n", "where")],
    wanted: [.wanted("hessian", "n, n", "there")])
  static let valueAt = RequestKind(
    "value", "the value", given: [.given("point", "n", "where")], wanted: [.wanted("value", "", "there")],
    takesNonfinite: true)
  /// At a trial point the function may have no value.
  static let valueGradientAt = RequestKind(
    "value_gradient", "value and gradient", given: [.given("point", "n", "where")],
    wanted: [.wanted("value", "", "value there"), .wanted("gradient", "n", "gradient there")], takesNonfinite: true)
}

enum Minimiser {
  static let start = Input.constant("x0", "n", "where it starts")
  static let results: [Input] = [
    .result("x", "n", "the minimiser"), .result("iterations", "", "steps"),
    .result("gradient_norm", "", "norm of the last gradient"),
  ]
  static let stop: [Parameter] = [
    .number("gtol", 1e-8, .atLeast(0), "norm of the gradient that ends it"),
    .integer("max_iter", 100, .atLeast(0), "most steps"),
  ]

  /// Solves (H + shift·I)·d = −g by Cholesky; throws where that is not positive definite.
  static func newton<T: Real>(_ hessian: Vector<T>, _ g: Vector<T>, shift: Double, into d: Vector<T>) throws(Failure) {
    let n = g.count
    try Memory.ask(8 * n * (n + 1))
    var a = (0..<n * n).map { (Double(hessian.p[$0]) + Double(hessian.p[$0 % n * n + $0 / n])) / 2 }
    for k in 0..<n { a[k * (n + 1)] += shift }
    let solution = try LinearAlgebra.solvePositive(a, (0..<n).map { -Double(g.p[$0]) }, n, 1)
    for k in 0..<n { d.p[k] = T(solution[k]) }
  }
}
