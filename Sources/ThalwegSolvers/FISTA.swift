import ThalwegCore

extension RequestKind {
  static let valueGradient = RequestKind(
    "value_gradient", "value and gradient of the smooth part", given: [.given("point", "...", "where")],
    wanted: [.wanted("value", "", "value there"), .wanted("gradient", "...", "gradient there")])
  static let value = RequestKind(
    "value", "value of the smooth part", given: [.given("point", "...", "where")],
    wanted: [.wanted("value", "", "value there")], takesNonfinite: true)
  static let prox = RequestKind(
    "prox", "argmin_u |u - v|^2/2 + step * penalty(u)",
    given: [.given("v", "...", "a point"), .given("step", "", "factor of the penalty")],
    wanted: [.wanted("prox", "...", "the minimiser")])
}

/// Proximal gradient steps with Nesterov's momentum.
///
///     z = prox(y − g/L, 1/L);  L doubles while f(z) > f(y) + ⟨g, z−y⟩ + L/2·|z−y|²
///     t' = (1+√(1+4t²))/2;  y = z + (t−1)/t'·(z−x);  x = z
///
/// `accelerate=false` is ISTA: y = z. With `restart=gradient` t starts again at 1 where ⟨y−z, z−x⟩ > 0. mu > 0: the
/// momentum is (1−√(mu/L))/(1+√(mu/L)). The prox is that of `regularizer`, or is asked for with `ask_prox`, or there is
/// none. L never falls.
/// Ends     converged: |z−x| ≤ tol·max(1, |x|); max_iter; line_search_failed: L has left the range of numbers.
/// Differs  the test of the model allows for the rounding of its two values (32 units in the last place): without that
///          L doubles for ever at the minimum.
/// Source   Beck, Teboulle, 2009; the restart: O'Donoghue, Candès, 2015, arXiv:1204.3982.
struct FISTA: Driver {
  static let method = Method.solver(
    "fista", "Accelerated proximal gradient method.",
    rule: """
      z = prox(y - g/L, 1/L);  L <- 2 L while f(z) > f(y) + <g, z - y> + L/2 |z - y|^2
      t' = (1 + sqrt(1 + 4 t^2))/2;  y = z + (t - 1)/t' (z - x);  x = z
      """,
    source: "Beck, Teboulle, 2009; O'Donoghue, Candes, 2015, arXiv:1204.3982",
    parameters: [
      .number("curvature", 1, .above(0), "L, at first"),
      .flag("backtrack", true, "double L until the model bounds the function"),
      .flag("accelerate", true, "momentum; without it ISTA"),
      .choice("restart", ["gradient", "none"], "when the momentum starts again"),
      .number("mu", 0, .atLeast(0), "strong convexity"),
      .integer("max_iter", 100, .atLeast(0), "most iterations"),
      .number("tol", 1e-6, .atLeast(0), "relative change that ends it"),
      HeldProx.parameter("regularizer", "its prox is taken"),
      .flag("ask_prox", false, "ask the host for the prox"),
    ],
    inputs: [
      .constant("x0", "...", "where it starts"), .result("x", "...", "the minimiser"),
      .result("iterations", "", "iterations"), .result("residual", "", "the last change over max(1, |x|)"),
      .result("curvature", "", "L"),
    ], asks: [.valueGradient, .value, .prox],
    kept: [
      .kept("y", "...", "where the gradient was taken"), .kept("z", "...", "the new point"),
      .kept("g", "...", "gradient"), .kept("v", "...", "the point whose prox is asked for"),
      .kept("t", "", "counts the momentum"), .kept("f", "", "value at y"),
    ],
    validate: { (h) throws(Failure) in
      guard !h.ask_prox || !h.given("regularizer") else {
        throw Failure(Status.range, "fista: the prox is either that of `regularizer` or asked for, not both")
      }
    })

  let h: Hyper, prox: HeldProx?
  init(_ h: Hyper) throws(Failure) {
    self.h = h
    prox = try HeldProx(h, "regularizer")
  }

  enum Phase: Int { case start, gradient, step, trial, model, accept }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], z = try io["z"], g = try io["g"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      y.copy(x)
      (io.curvature, io.t) = (h.curvature, 1)
      if h.max_iter == 0 { return .done(.maxIter) }
      return .ask("value_gradient", [y], [g], then: .gradient)
    case .gradient:
      io.f = io.value
      return .go(.step)
    case .step:
      io.step = 1 / io.curvature
      if h.ask_prox {
        let v = try io["v"]
        v.set(1, y, -io.step, g)
        return .ask("prox", [v], [z], then: .trial)
      }
      z.set(1, y, -io.step, g)
      try prox?.apply(z, io.step)
      return .go(.trial)
    case .trial:
      return h.backtrack ? .ask("value", [z], [], then: .model) : .go(.accept)
    case .model:
      let moved = z.distance(y), slope = g.dot(z) - g.dot(y)
      if Trial.lowers(io.f, io.value, T.self, by: slope + io.curvature / 2 * moved * moved) { return .go(.accept) }
      io.curvature *= 2
      return io.curvature < 1e300 ? .go(.step) : .done(.lineSearchFailed)
    case .accept:
      let change = z.distance(x), size = x.norm
      io.iterations += 1
      io.residual = change / max(1, size)
      var t = io.t
      if h.is("restart", "gradient"), y.dot(z) - y.dot(x) - z.dot(z) + z.dot(x) > 0 { t = 1 }
      let next = (1 + (1 + 4 * t * t).squareRoot()) / 2
      let ratio = (h.mu / io.curvature).squareRoot()
      let momentum = !h.accelerate ? 0 : h.mu > 0 ? (1 - ratio) / (1 + ratio) : (t - 1) / next
      y.set(1 + momentum, z, -momentum, x)
      io.t = next
      x.copy(z)
      if io.residual <= h.tol { return .done(.converged) }
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("value_gradient", [y], [g], then: .gradient)
    }
  }
}
