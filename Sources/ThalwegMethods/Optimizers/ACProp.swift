import ThalwegCore

/// ACProp: the gradient over the centred second moment of the steps before.
///
///     u = g/(√(s/(1 − β₂ᵗ⁻¹)) + ε),  g/(1 + ε) at the first step;   θ ← θ·(1 − lr·wd) − lr·u
///     r = g − m;   m ← β₁·m + (1 − β₁)·g;   s ← β₂·s + (1 − β₂)·r² + eps_root
///
/// State    m, s.
/// Differs  nothing from optax.contrib.acprop: the first step is plain gradient descent, and r is taken from the m
///          before (the authors take the new one).
/// Source   Zhuang et al., 2021, arXiv:2110.05454.
struct ACProp: ElementRule {
  static let method = Method(
    "acprop", .optimizer, "The gradient over the centred second moment of the steps before.",
    rule: """
      u = g/(sqrt(s/(1 - beta2^(t-1))) + eps), g/(1 + eps) at the first step
      theta <- theta*(1 - lr*weight_decay) - lr*u
      r = g - m;  m <- beta1*m + (1 - beta1)*g;  s <- beta2*s + (1 - beta2)*r^2 + eps_root
      """,
    source: "Zhuang et al., 2021, arXiv:2110.05454",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the mean"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-16), .number("eps_root", 1e-16, .atLeast(0), "added to the second moment at every step"),
      .weightDecay(0, "decoupled weight decay"),
    ],
    slots: [.moment("exp_avg", "mean m"), .square("exp_avg_var", "centred second moment s")])

  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2, eps, floor, r2: Double
  let first: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, floor, first) = (h.beta1, h.beta2, h.eps, h.eps_root, c.t == 1)
    r2 = first ? 1 : 1 / (1 - power(beta2, c.t - 1))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = s[0], v = s[1], r = g - m
    s[0] = beta1 * m + (1 - beta1) * g
    s[1] = beta2 * v + (1 - beta2) * (r * r) + floor
    return first ? g / (1 + eps) : ((v * r2).squareRoot() + eps).divide(g)
  }
}
