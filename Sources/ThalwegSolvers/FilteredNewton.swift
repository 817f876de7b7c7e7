import ThalwegCore

/// Stochastic Newton steps whose gradient and Hessian come out of a filter.
///
///     S = β/(1 − α²)·I;   first batch: μ = f, Σ = Q;  later μ ← α·μ, Σ ← α²·Σ + β·I, then
///     Q ← (Q⁻¹ + S⁻¹)⁻¹ where Q⁻¹ − S⁻¹ is not positive definite;   N = Σ⁻¹ + Q⁻¹ − S⁻¹
///     μ ← N⁻¹·(Σ⁻¹·μ + Q⁻¹·f);   Σ ← N⁻¹;   d = −(Σ + jitter·I)⁻¹·μ
///     x ← x + t·d, t = 1, ½, ..., the first with loss(x + t·d) − loss(x) ≤ c·t·⟨d, f⟩ on the same batch, else the
///     last tried
///
/// f, Q: gradient and Hessian of a batch; every step takes another one (its first request says so). For small n.
/// Ends     max_iter; converged: |f| ≤ gtol; nonfinite.
/// Errors   TW_ERROR_NUMERIC: a matrix that cannot be inverted even with the jitter.
/// Differs  Q is inverted as it is, and with `jitter` on its diagonal where that fails; `jittered` counts how often.
/// Source   Burkhart, 2021, arXiv:2104.12949.
struct FilteredNewton: Driver {
  static let method = Method.solver(
    "filtered_newton", "Stochastic Newton steps whose gradient and Hessian come out of a filter.",
    rule: """
      mu <- alpha mu;  Sigma <- alpha^2 Sigma + beta I;  N = Sigma^-1 + Q^-1 - S^-1, S = beta/(1 - alpha^2) I
      mu <- N^-1 (Sigma^-1 mu + Q^-1 f);  Sigma <- N^-1;  d = -(Sigma + jitter I)^-1 mu
      x <- x + t d, t = 1, 1/2, ...: loss(x + t d) - loss(x) <= c t <d, f>
      """,
    source: "Burkhart, 2021, arXiv:2104.12949",
    parameters: [
      .number("alpha", 0.9, .between(0, 1, lowOpen: true, highOpen: true), "decay of the state"),
      .number("beta", 0.2, .above(0), "noise of the state"),
      .number("c", 0.95, .between(0, 1, lowOpen: true, highOpen: true), "sufficient decrease"),
      .integer("max_halvings", 5, .atLeast(1), "most lengths of a step that are tried"),
      .number("jitter", 1e-12, .atLeast(0), "added to Sigma in the solve"),
      .number("guard", 1e-6, .atLeast(0), "eigenvalue below which Q is mixed with S"),
      .number("gtol", 0, .atLeast(0), "norm of a batch's gradient that ends it"),
      .integer("max_iter", 100, .atLeast(0), "most steps"),
    ],
    inputs: [Minimiser.start] + Minimiser.results + [
      .result("mu", "n", "filtered gradient"), .result("sigma", "n, n", "filtered Hessian"),
      .result("jittered", "", "batches whose Hessian was inverted with the jitter"),
    ], asks: [.valueGradientAt, .hessianAt, .valueAt],
    kept: [
      .kept("f", "n", "gradient of the batch"), .kept("q", "n, n", "its Hessian"), .kept("d", "n", "direction"),
      .kept("y", "n", "trial"), .kept("before", "", "value at x"), .kept("t", "", "length"),
      .kept("tried", "", "lengths tried"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, ready, gradient, hessian, trial }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], f = try io["f"], d = try io["d"], y = try io["y"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .go(.ready)
    case .ready:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("value_gradient", [x], [f], fresh: io.iterations > 0, then: .gradient)
    case .gradient:
      io.before = io.value
      io.gradient_norm = f.norm
      guard io.before.isFinite, io.gradient_norm.isFinite else { return .done(.nonfinite) }
      if io.gradient_norm <= h.gtol { return .done(.converged) }
      return .ask("hessian", [x], [try io["q"]], then: .hessian)
    case .hessian:
      try filter(io)
      (io.t, io.tried) = (1, 0)
      y.set(1, x, 1, d)
      return .ask("value", [y], [], then: .trial)
    case .trial:
      io.tried += 1
      if io.value - io.before <= h.c * io.t * d.dot(f) || io.tried >= h.max_halvings {
        guard io.value.isFinite else { return .done(.nonfinite) }
        x.copy(y)
        io.iterations += 1
        return .go(.ready)
      }
      io.t /= 2
      y.set(1, x, io.t, d)
      return .ask("value", [y], [], then: .trial)
    }
  }

  private func filter<T: Real>(_ io: DriverIO<T>) throws(Failure) {
    let f = try io["f"], q = try io["q"], mu = try io["mu"], sigma = try io["sigma"], d = try io["d"], n = f.count
    try Memory.ask(8 * 8 * n * n)
    func wide(_ v: Vector<T>) -> [Double] { (0..<v.count).map { Double(v.p[$0]) } }
    var identity = [Double](repeating: 0, count: n * n)
    for k in 0..<n { identity[k * (n + 1)] = 1 }
    func shifted(_ a: [Double], _ s: Double) -> [Double] {
      var b = a
      for k in 0..<n { b[k * (n + 1)] += s }
      return b
    }
    func inverse(_ a: [Double]) throws(Failure) -> [Double] { try LinearAlgebra.solve(a, identity, n, n) }
    var Q = wide(q)
    for i in 0..<n { for j in 0..<i { (Q[i * n + j], Q[j * n + i]) = twice((Q[i * n + j] + Q[j * n + i]) / 2) } }
    if io.iterations == 0 {
      mu.copy(f)
      for i in 0..<n * n { sigma.p[i] = T(Q[i]) }
    } else {
      let alpha: Double = h.alpha, beta: Double = h.beta, prior = (1 - alpha * alpha) / beta
      let state = shifted(wide(sigma).map { alpha * alpha * $0 }, beta), mean = wide(mu).map { alpha * $0 }
      var inverseQ: [Double]
      do throws(Failure) { inverseQ = try inverse(Q) } catch {
        inverseQ = try inverse(shifted(Q, h.jitter))
        io.jittered += 1
      }
      let lowest = try LinearAlgebra.Eigen(shifted(inverseQ, -prior), n).values.last ?? 0
      if lowest <= h.guard { inverseQ = shifted(inverseQ, prior) }
      let inverseState = try inverse(state)
      let precision = shifted(zip(inverseState, inverseQ).map { $0 + $1 }, -prior)
      var right = [Double](repeating: 0, count: n)
      try LinearAlgebra.multiply(inverseState, mean, into: &right, n, 1, n)
      try LinearAlgebra.multiply(inverseQ, wide(f), into: &right, n, 1, n, beta: 1)
      let next = try LinearAlgebra.solve(precision, right, n, 1), spread = try inverse(precision)
      for k in 0..<n { mu.p[k] = T(next[k]) }
      for k in 0..<n * n { sigma.p[k] = T(spread[k]) }
    }
    let step = try LinearAlgebra.solve(shifted(wide(sigma), h.jitter), wide(mu), n, 1)
    for k in 0..<n { d.p[k] = T(-step[k]) }
  }
  private func twice(_ x: Double) -> (Double, Double) { (x, x) }
}
