import ThalwegCore

/// LAMB: Adam's step of each tensor, scaled to the norm of its weights.
///
///     m, v as adam;  u = (m/c₁) / (√(v/c₂) + ε) + wd·θ
///     θ ← θ − lr · φ·u,   φ = min(‖θ‖, max_trust)/‖u‖, or 1 where either is 0; norms of each tensor
///
/// State    m, v.
/// Differs  the decay stands inside the trust ratio, as in the paper. Peers clamp ‖θ‖ at 10 or clip the gradient first:
///          here `max_trust` clamps and is off, and `clip_global_norm` is a stage of its own.
/// Source   You et al., 2019, arXiv:1904.00962.
struct LAMB: ElementRule {
  static let method = Method(
    "lamb", .optimizer, "LAMB: Adam's step of each tensor, scaled to the norm of its weights.",
    rule: """
      m, v as adam;  u = (m/c1) / (sqrt(v/c2) + eps) + weight_decay*theta
      theta <- theta - lr * phi*u,  phi = min(|theta|, max_trust) / |u| per tensor, 1 where either is 0
      """,
    source: "You et al., 2019, arXiv:1904.00962",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-6),
      .weightDecay(0, "weight decay, inside the trust ratio"),
      .flag("bias_correction", true, "divide the moments by 1 - beta^t"),
      .number("max_trust", .infinity, .above(0), "the largest norm of weights that counts"),
    ],
    slots: Adam.moments)

  static func decay(_ h: Hyper) -> Decay { .rule }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("trust_ratio", 1)] }

  let beta1, beta2, eps, decay, r1, r2, trust: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, decay, trust) = (h.beta1, h.beta2, h.eps, c.weightDecay, c.scalars[0])
    (r1, r2) = h.bias_correction ? (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t))) : (1, 1)
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    s[0] = beta1 * s[0] + (1 - beta1) * g
    s[1] = beta2 * s[1] + (1 - beta2) * (g * g)
    let u = update(x, s)
    sums.add(0, x, times: x)
    sums.add(1, u, times: u)
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let a = smaller(totals.root(0), h.max_trust), b = totals.root(1)
    s[0] = a == 0 || b == 0 ? 1 : a / b
  }

  @inline(__always) func update<L: Lane>(_ x: L, _ s: Slots<L>) -> L {
    ((s[1] * r2).squareRoot() + eps).divide(s[0] * r1) + decay * x
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { trust * update(x, s) }
}
