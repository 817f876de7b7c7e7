import ThalwegCore

/// QHAdam: Adam with the current gradient and its square mixed in beside the moments.
///
///     m, v as Adam;   θ ← θ − lr · ((1 − ν₁)·g + ν₁·m/c₁) / (√((1 − ν₂)·g² + ν₂·v/c₂) + ε)
///
/// State    m, v.
/// Differs  nothing from facebookresearch/qhoptim. ν₁ = ν₂ = 1 is Adam.
/// Source   Ma and Yarats, 2018, arXiv:1810.06801.
struct QHAdam: ElementRule {
  static let method = Method(
    "qhadam", .optimizer, "Adam with the current gradient and its square mixed in beside the moments.",
    rule: """
      m, v as adam
      theta <- theta - lr*((1 - nu1)*g + nu1*m/c1) / (sqrt((1 - nu2)*g^2 + nu2*v/c2) + eps)
      """,
    source: "Ma, Yarats, 2018, arXiv:1810.06801",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .number("nu1", 1, .within(0, 1), "share of the first moment"),
      .number("nu2", 1, .within(0, 1), "share of the second moment"), .eps(1e-8),
      .weightDecay(), .flag("decoupled", false, "decay is decoupled", live: false),
    ],
    slots: Adam.moments)

  static func decay(_ h: Hyper) -> Decay { h.decoupled ? .decoupled : .coupled }

  let beta1, beta2, eps, m1, m2, g1, g2: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    let nu1: Double = h.nu1, nu2: Double = h.nu2
    (m1, m2) = (nu1 / (1 - power(beta1, c.t)), nu2 / (1 - power(beta2, c.t)))
    (g1, g2) = (1 - nu1, 1 - nu2)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = m
    s[1] = v
    // a share of 0 of a square that is infinite is none
    let second = g2 == 0 ? m2 * v : m2 == 0 ? g2 * (g * g) : g2 * (g * g) + m2 * v
    return (second.squareRoot() + eps).divide(g1 * g + m1 * m)
  }
}
