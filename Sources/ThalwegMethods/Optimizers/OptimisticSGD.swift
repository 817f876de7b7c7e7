import ThalwegCore

/// Optimistic gradient descent: the last gradient is a guess of the next one.
///
///     θ ← θ − lr·((α + β)·g − β·g_prev);   at the first step g_prev = g
///
/// State    the previous gradient.
/// Differs  nothing from optax.optimistic_gradient_descent. β may be 1 and more: the method's own default is 1.
/// Source   Popov, 1980; Daskalakis et al., 2017, arXiv:1711.00141; studied in arXiv:2302.04552.
struct OptimisticSGD: ElementRule {
  static let method = Method(
    "optimistic_sgd", .optimizer, "Optimistic gradient descent: the last gradient is a guess of the next one.",
    rule: "theta <- theta - lr*((alpha + beta)*g - beta*g_prev);  g_prev <- g",
    source: "Popov, 1980; Daskalakis, Ilyas, Syrgkanis, Zeng, 2017, arXiv:1711.00141",
    parameters: [
      .lr(1e-2), .number("alpha", 1, .atLeast(0), "weight of the gradient"),
      .number("beta", 1, .atLeast(0), "weight of its change"),
    ],
    slots: [Slot("previous_grad", "previous gradient")])

  let alpha, beta: Double
  let first: Bool

  init(_ h: Hyper, _ c: StepContext) { self.init(alpha: h.alpha, beta: h.beta, c) }
  init(alpha: Double, beta: Double, _ c: StepContext) { (self.alpha, self.beta, first) = (alpha, beta, c.t == 1) }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let previous = first ? g : s[0]
    s[0] = g
    return (alpha + beta) * g - beta * previous
  }
}
