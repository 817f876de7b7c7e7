import ThalwegCore

/// Newton steps with an approximate Hessian, regularised by the norm of the gradient over a radius that adapts.
///
///     λ = |g|/(γ + ε);   (H + λ·I)·d = −g by Cholesky
///     taken where f(x) − f(x + d) ≥ |g(x + d)|²/(8·λ):  γ ← max(2·γ, gamma_min);   else γ ← γ/2, and again with the
///     same H
///
/// H is any symmetric matrix that stands for the Hessian: Gauss-Newton, Fisher, zero (then they are gradient steps of
/// length γ). A failed factorisation halves γ too. adaptive=false: every step is taken, γ stays.
/// Ends     converged: |g| ≤ gtol; max_iter; line_search_failed: no trial could be factorised; nonfinite.
/// Differs  after `max_search` trials the last one is taken where its value is finite. The form with a metric and that
///          of rank one are not carried.
/// Source   Semenov, Jaggi, Doikov, 2025, arXiv:2506.13710.
struct GradNormSmooth: Driver {
  static let method = Method.solver(
    "grad_norm_smooth",
    "Newton steps with an approximate Hessian, regularised by the gradient over an adaptive radius.",
    rule: """
      lambda = |g|/(gamma + eps);  (H + lambda I) d = -g
      f(x) - f(x + d) >= |g(x + d)|^2/(8 lambda): take d, gamma <- max(2 gamma, gamma_min);  else gamma <- gamma/2
      """,
    source: "Semenov, Jaggi, Doikov, 2025, arXiv:2506.13710",
    parameters: [
      .number("gamma", 1, .above(0), "radius, at first"),
      .number("gamma_min", 1e-9, .above(0), "floor of a radius that has grown"),
      .number("eps", 1e-8, .atLeast(0), "added to the radius"),
      .integer("max_search", 40, .atLeast(1), "most trials of a step"),
      .flag("adaptive", true, "search for the radius"),
    ] + Minimiser.stop,
    inputs: [Minimiser.start] + Minimiser.results + [
      .result("value", "", "value there"), .result("gamma", "", "the radius"),
      .result("trials", "", "trials of all steps"),
    ], asks: [.valueGradientAt, .hessianAt],
    kept: [
      .kept("g", "n", "gradient"), .kept("h", "n, n", "Hessian"), .kept("d", "n", "step"), .kept("y", "n", "trial"),
      .kept("g_trial", "n", "gradient there"), .kept("f", "", "value"), .kept("lambda", "", "regularisation"),
      .kept("tried", "", "trials of this step"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, first, ready, hessian, trial }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], g = try io["g"], d = try io["d"], y = try io["y"], next = try io["g_trial"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      io.gamma = h.gamma
      return .ask("value_gradient", [x], [g], then: .first)
    case .first:
      io.f = io.value
      return .go(.ready)
    case .ready:
      io.value = io.f
      io.gradient_norm = g.norm
      guard io.f.isFinite, io.gradient_norm.isFinite else { return .done(.nonfinite) }
      if io.gradient_norm <= h.gtol { return .done(.converged) }
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      io.tried = 0
      return .ask("hessian", [x], [try io["h"]], then: .hessian)
    case .hessian:
      while true {
        io.lambda = io.gradient_norm / (io.gamma + h.eps)
        io.trials += 1
        io.tried += 1
        do throws(Failure) {
          try Minimiser.newton(try io["h"], g, shift: io.lambda, into: d)
          break
        } catch {
          guard error.status == Int32(Status.numeric) else { throw error }
          guard h.adaptive, io.tried < h.max_search else {
            io.value = io.f
            return .done(.lineSearchFailed)
          }
          io.gamma /= 2
        }
      }
      y.set(1, x, 1, d)
      return .ask("value_gradient", [y], [next], then: .trial)
    case .trial:
      let size = next.norm, finite = io.value.isFinite && size.isFinite
      let falls = finite && io.f - io.value >= size * size / (8 * io.lambda)
      if h.adaptive, !falls {
        io.gamma /= 2
        if io.tried < h.max_search { return .go(.hessian) }
      }
      guard finite else {
        io.value = io.f
        return .done(.lineSearchFailed)
      }
      if h.adaptive, falls { io.gamma = max(2 * io.gamma, h.gamma_min) }
      x.copy(y)
      g.copy(next)
      io.f = io.value
      io.iterations += 1
      return .go(.ready)
    }
  }
}
