import ThalwegCore

/// Lion: the sign of an interpolation between momentum and gradient.
///
///     θ ← θ·(1 − lr·wd) − lr·sign(β₁·m + (1 − β₁)·g);   m ← β₂·m + (1 − β₂)·g
///
/// State    m.
/// Differs  nothing from the authors' code and optax.lion. An interpolant of exactly 0 does not move.
/// Source   Chen et al., 2023, arXiv:2302.06675.
struct Lion: ElementRule {
  static let method = Method(
    "lion", .optimizer, "Lion: the sign of an interpolation between momentum and gradient.",
    rule: """
      theta <- theta*(1 - lr*weight_decay) - lr*sign(beta1*m + (1 - beta1)*g)
      m <- beta2*m + (1 - beta2)*g
      """,
    source: "Chen et al., 2023, arXiv:2302.06675",
    parameters: [
      .lr(1e-4), .rate("beta1", 0.9, "share of the momentum in the step"), .rate("beta2", 0.99, "rate of the momentum"),
      .weightDecay(0, "decoupled weight decay"),
    ],
    slots: Signum.moments)

  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2: Double

  init(_ h: Hyper, _ c: StepContext) { (beta1, beta2) = (h.beta1, h.beta2) }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = s[0]
    s[0] = beta2 * m + (1 - beta2) * g
    return (beta1 * m + (1 - beta1) * g).sign
  }
}
