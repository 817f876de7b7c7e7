import ThalwegCore

/// Grams: Adam's magnitude with the sign of the current gradient.
///
///     m, v as Adam;   θ ← θ·(1 − lr·wd) − lr · sign(g) · |m/c₁| / (√(v/c₂) + ε)
///
/// State    m, v.
/// Differs  `eps_mode` `paper` adds ε to the corrected root; `released`, the authors' code, divides √c₂/c₁·|m| by √v +
///          ε. An entry whose gradient is 0 does not move.
/// Source   Cao, Li and Song, 2024, arXiv:2412.17107.
struct Grams: ElementRule {
  static let method = Method(
    "grams", .optimizer, "Grams: Adam's magnitude with the sign of the current gradient.",
    rule: """
      m, v as adam
      theta <- theta*(1 - lr*weight_decay) - lr * sign(g) * |m/c1| / (sqrt(v/c2) + eps)
      eps_mode released: sqrt(c2)/c1 * |m| / (sqrt(v) + eps)
      """,
    source: "Cao, Li, Song, 2024, arXiv:2412.17107",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-6),
      .weightDecay(0, "decoupled weight decay"),
      .choice("eps_mode", ["paper", "released"], "eps on the corrected root, or on the plain one"),
    ],
    slots: Adam.moments)

  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2: Double
  let ratio: AdamRatio

  init(_ h: Hyper, _ c: StepContext) { (beta1, beta2, ratio) = (h.beta1, h.beta2, AdamRatio(h, c)) }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = m
    s[1] = v
    return ratio.root(v).divide(m.magnitude * ratio.r1) * g.sign
  }
}

/// Adam's ratio with ε on the corrected root, r₁·m/(√(r₂·v) + ε) with rᵢ = 1/cᵢ, or on the plain one: r₁ = √c₂/c₁, r₂ =
/// 1.
struct AdamRatio: BitwiseCopyable, Sendable {
  let r1, r2, eps: Double

  init(_ h: Hyper, _ c: StepContext) {
    let c1 = 1 - power(h.beta1, c.t), c2 = 1 - power(h.beta2, c.t)
    eps = h.eps
    (r1, r2) = h.is("eps_mode", "paper") ? (1 / c1, 1 / c2) : (c2.squareRoot() / c1, 1)
  }

  @inline(__always) func root<L: Lane>(_ v: L) -> L { (v * r2).squareRoot() + eps }
}
