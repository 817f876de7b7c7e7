import ThalwegCore

/// diffGrad: Adam's step held back where the gradient changes little.
///
///     m, v as Adam;   ξ = 1/(1 + exp(−|g_prev − g|));   θ ← θ − lr · ξ · (m/c₁)/(√(v/c₂) + ε);   g_prev ← g
///
/// State    m, v, the previous gradient (0 at the start).
/// Differs  the friction ξ acts on the step, not on the stored m; the previous gradient is a copy, as in the authors'
///          second version (the first stored a reference, whose difference is 0). `eps_mode` as in `grams`. Decay is
///          coupled, and part of the stored gradient.
/// Source   Dubey et al., 2019, arXiv:1909.11015.
struct DiffGrad: ElementRule {
  static let method = Method(
    "diffgrad", .optimizer, "diffGrad: Adam's step held back where the gradient changes little.",
    rule: """
      m, v as adam;  xi = 1/(1 + exp(-|g_prev - g|))
      theta <- theta - lr * xi * (m/c1)/(sqrt(v/c2) + eps);  g_prev <- g
      eps_mode released: xi * sqrt(c2)/c1 * m/(sqrt(v) + eps)
      """,
    source: "Dubey et al., 2019, arXiv:1909.11015",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8),
      .weightDecay(0, "coupled weight decay"),
      .choice("eps_mode", ["paper", "released"], "eps on the corrected root, or on the plain one"),
    ],
    slots: Adam.moments + [Slot("previous_grad", "previous gradient")])

  static func decay(_ h: Hyper) -> Decay { .coupled }

  let beta1, beta2: Double
  let ratio: AdamRatio

  init(_ h: Hyper, _ c: StepContext) { (beta1, beta2, ratio) = (h.beta1, h.beta2, AdamRatio(h, c)) }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    let friction = 1 + L.exp(-(s[2] - g).magnitude)
    s[0] = m
    s[1] = v
    s[2] = g
    return (ratio.root(v) * friction).divide(m * ratio.r1)
  }
}
