import ThalwegCore

/// Damped Gauss-Newton for least squares.
///
///     A = Jᵀ·J, g = Jᵀ·r;  d = −(A + μ·diag S)⁻¹·g;  gain = (|r|² − |r⁺|²)/(d·(μ·S·d − g))
///     gain > 0: x + d is taken, μ ← μ·max(⅓, 1 − (2·gain − 1)³), ν = 2; else μ ← μ·ν, ν ← 2·ν
///
/// `marquardt`: S is the running maximum of diag A (1 where that is 0), μ = tau at first; `identity`: S = 1, μ =
/// tau·max diag A. r0 are the residuals at x0: their number is that of the residuals. A trial whose residuals are not
/// finite is refused; so is one whose damped matrix is not positive definite. `refused` counts both, and those
/// without a gain.
/// Ends     converged: max|g| ≤ gtol, or |d| ≤ xtol·(|x| + xtol); max_iter; nonfinite: a Jacobian that is not finite.
/// Errors   TW_ERROR_NUMERIC: the damped matrix is not positive definite, even at a μ of 1e300.
/// Source   Levenberg, 1944; Marquardt, 1963; the update of μ: Nielsen, 1999.
struct LevenbergMarquardt: Driver {
  static let method = Method.solver(
    "levenberg_marquardt", "Damped Gauss-Newton for least squares.",
    rule: """
      d = -(J'J + mu diag S)^-1 J'r;  gain = (|r|^2 - |r_new|^2)/(d.(mu S d - g))
      gain > 0: take d, mu <- mu max(1/3, 1 - (2 gain - 1)^3), nu = 2;  else mu <- mu nu, nu <- 2 nu
      """,
    source: "Levenberg, 1944; Marquardt, 1963; Nielsen, 1999",
    parameters: [
      .number("tau", 1e-3, .above(0), "scale of the first damping"),
      .choice("scaling", ["marquardt", "identity"], "of the damping"),
      .number("gtol", 1e-10, .atLeast(0), "largest entry of the gradient that ends it"),
      .number("xtol", 1e-12, .atLeast(0), "relative step that ends it"),
      .integer("max_iter", 100, .atLeast(0), "most trials"),
    ],
    inputs: [
      .constant("x0", "n", "where it starts"), .constant("r0", "m", "residuals there"),
      .result("x", "n", "the minimiser"), .result("residuals", "m", "residuals there"),
      .result("iterations", "", "trials"), .result("value", "", "half of their squares"),
      .result("gradient_max", "", "largest entry of the gradient"), .result("damping", "", "mu"),
      .result("refused", "", "trials that were not taken"),
    ],
    asks: [
      RequestKind(
        "jacobian", "the derivatives of the residuals", given: [.given("point", "n", "where")],
        wanted: [.wanted("jacobian", "m, n", "one row a residual")]),
      RequestKind(
        "residual", "the residuals", given: [.given("point", "n", "where")],
        wanted: [.wanted("trial", "m", "residuals there")], takesNonfinite: true),
    ],
    kept: [
      .kept("j", "m, n", "Jacobian"), .kept("g", "n", "gradient"), .kept("d", "n", "step"), .kept("s", "n", "scaling"),
      .kept("y", "n", "trial point"), .kept("t", "m", "residuals there"), .kept("nu", "", "factor of a refused trial"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, jacobian, step, trial }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], r = try io["residuals"], j = try io["j"], g = try io["g"], d = try io["d"], s = try io["s"]
    let y = try io["y"], t = try io["t"], n = x.count, m = r.count
    switch phase {
    case .start:
      x.copy(try io["x0"])
      r.copy(try io["r0"])
      guard r.isFinite else { return .done(.nonfinite) }
      io.value = r.dot(r) / 2
      return .ask("jacobian", [x], [j], then: .jacobian)
    case .jacobian:
      g.fill(0)
      var largest = 0.0
      for i in 0..<m { g.add(j.row(i), times: Double(r.p[i])) }
      for k in 0..<n {
        var square = 0.0
        for i in 0..<m { square += Double(j.p[i * n + k]) * Double(j.p[i * n + k]) }
        largest = max(largest, square)
        s.p[k] = h.is("scaling", "identity") ? 1 : max(s.p[k], T(square))
      }
      if io.nu == 0 {
        io.damping = h.tau * (h.is("scaling", "identity") ? largest : 1)
        io.nu = 2
      }
      io.gradient_max = (0..<n).reduce(0) { max($0, abs(Double(g.p[$1]))) }
      if io.gradient_max <= h.gtol { return .done(.converged) }
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      do throws(Failure) { try solve(j, g, s, io.damping, d) } catch {
        guard error.status == Int32(Status.numeric), io.damping < 1e300 else { throw error }
        io.iterations += 1
        return refuse(io)
      }
      if d.norm <= h.xtol * (x.norm + h.xtol) { return .done(.converged) }
      y.set(1, x, 1, d)
      io.iterations += 1
      return .ask("residual", [y], [t], then: .trial)
    case .trial:
      var model = -d.dot(g)
      for k in 0..<n { model += io.damping * scale(s, k) * Double(d.p[k]) * Double(d.p[k]) }
      let gain = t.isFinite ? (r.dot(r) - t.dot(t)) / model : -1
      if gain > 0 {
        x.copy(y)
        r.copy(t)
        io.value = r.dot(r) / 2
        let u = 2 * gain - 1
        io.damping *= max(1.0 / 3, 1 - u * u * u)
        io.nu = 2
        return .ask("jacobian", [x], [j], then: .jacobian)
      }
      return io.damping < 1e300 ? refuse(io) : .done(.lineSearchFailed)
    }
  }
  private func refuse<T: Real>(_ io: DriverIO<T>) -> Verdict<Phase> {
    io.refused += 1
    io.damping *= io.nu
    io.nu *= 2
    return .go(.step)
  }

  private func scale<T: Real>(_ s: Vector<T>, _ k: Int) -> Double { s.p[k] == 0 ? 1 : Double(s.p[k]) }

  /// d ← −(Jᵀ·J + μ·diag S)⁻¹·g.
  private func solve<T: Real>(_ j: Vector<T>, _ g: Vector<T>, _ s: Vector<T>, _ damping: Double, _ d: Vector<T>)
    throws(Failure)
  {
    let n = g.count, m = j.rows
    try Memory.ask(8 * n * (n + 4) + 8 * m * n)
    let wide = (0..<m * n).map { Double(j.p[$0]) }
    var a = [Double](repeating: 0, count: n * n)
    try LinearAlgebra.gram(wide, transposed: true, into: &a, n, m)
    for k in 0..<n { a[k * n + k] += damping * scale(s, k) }
    let solution = try LinearAlgebra.solvePositive(a, (0..<n).map { -Double(g.p[$0]) }, n, 1)
    for k in 0..<n { d.p[k] = T(solution[k]) }
  }
}
