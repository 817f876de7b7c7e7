import ThalwegCore

/// AdaBelief: Adam whose second moment is that of the gradient's deviation from its average.
///
///     m ← β₁·m + (1 − β₁)·g;   s ← β₂·s + (1 − β₂)·(g − m)² + ε_root   (with the new m)
///     θ ← θ − lr · (m/c₁)/(√(s/c₂) + ε)
///
/// State    m, s.
/// Differs  nothing from optax.adabelief; the authors' package rectifies by default. Under a constant gradient s falls
///          to ε_root/(1 − β₂), and steps grow.
/// Source   Zhuang et al., 2020, arXiv:2010.07468.
struct AdaBelief: ElementRule {
  static let method = Method(
    "adabelief", .optimizer,
    "AdaBelief: Adam whose second moment is that of the gradient's deviation from its average.",
    rule: """
      m <- beta1*m + (1 - beta1)*g;  s <- beta2*s + (1 - beta2)*(g - m)^2 + eps_root
      theta <- theta - lr * (m/c1)/(sqrt(s/c2) + eps)
      """,
    source: "Zhuang et al., 2020, arXiv:2010.07468",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-16),
      .number("eps_root", 1e-16, .atLeast(0), "added to s at every step"), .weightDecay(),
      .flag("decoupled", true, "decay is decoupled", live: false),
    ],
    slots: [.moment("exp_avg", "first moment m"), .square("exp_avg_var", "second moment s of g - m")])

  static func decay(_ h: Hyper) -> Decay { h.decoupled ? .decoupled : .coupled }

  let beta1, beta2, eps, root, r1, r2: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, root) = (h.beta1, h.beta2, h.eps, h.eps_root)
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let e = g - m
    let v = beta2 * s[1] + (1 - beta2) * (e * e) + root
    s[0] = m
    s[1] = v
    return ((v * r2).squareRoot() + eps).divide(m * r1)
  }
}
