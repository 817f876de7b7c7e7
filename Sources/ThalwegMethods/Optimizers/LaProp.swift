import ThalwegCore

/// LaProp: the gradient is normalised before it enters the momentum.
///
///     v ← β₂·v + (1 − β₂)·g²;   m ← β₁·m + (1 − β₁)·g/(√(v/c₂) + ε);   θ ← θ·(1 − lr·wd) − lr·m/c₁
///
/// State    m, v.
/// Differs  the authors keep lr inside m and correct with an average of it: the same for a constant lr.
/// Source   Ziyin, Wang and Ueda, 2020, arXiv:2002.04839.
struct LaProp: ElementRule {
  static let method = Method(
    "laprop", .optimizer, "LaProp: the gradient is normalised before it enters the momentum.",
    rule: """
      v <- beta2*v + (1 - beta2)*g^2
      m <- beta1*m + (1 - beta1)*g/(sqrt(v/c2) + eps)
      theta <- theta*(1 - lr*weight_decay) - lr*m/c1
      """,
    source: "Ziyin, Wang, Ueda, 2020, arXiv:2002.04839",
    parameters: [
      .lr(4e-4), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-15),
      .weightDecay(0, "decoupled weight decay"),
    ],
    slots: Adam.moments)

  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2, eps, r1, r2: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    let m = beta1 * s[0] + ((v * r2).squareRoot() + eps).divide((1 - beta1) * g)
    s[0] = m
    s[1] = v
    return m * r1
  }
}
