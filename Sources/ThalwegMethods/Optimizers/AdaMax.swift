import ThalwegCore

/// AdaMax: Adam with a decaying maximum in place of the second moment.
///
///     m ← β₁·m + (1 − β₁)·g          u ← max(β₂·u, |g| + ε)
///     θ ← θ − lr/c₁ · m/u,   c₁ = 1 − β₁ᵗ
///
/// State    m, u.
/// Differs  nothing from torch.optim.Adamax and optax.adamax; the paper has no ε. With ε = 0 and u = 0 the step of m =
///          0 is 0. Decay is coupled.
/// Source   Kingma and Ba, 2014, arXiv:1412.6980.
struct AdaMax: ElementRule {
  static let method = Method(
    "adamax", .optimizer, "AdaMax: Adam with a decaying maximum in place of the second moment.",
    rule: """
      m <- beta1*m + (1 - beta1)*g
      u <- max(beta2*u, |g| + eps)
      theta <- theta - lr/c1 * m/u,  c1 = 1 - beta1^t
      """,
    source: "Kingma, Ba, 2014, arXiv:1412.6980",
    parameters: [
      .lr(2e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "decay of the maximum"),
      .eps(1e-8, "added to |g| inside the maximum"), .weightDecay(0, "coupled weight decay"),
    ],
    slots: [.moment("exp_avg", "first moment m"), .square("exp_inf", "decaying maximum u")])

  static func decay(_ h: Hyper) -> Decay { .coupled }

  let beta1, beta2, eps, r1: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    r1 = 1 / (1 - power(beta1, c.t))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let u = L.max(beta2 * s[1], g.magnitude + eps)
    s[0] = m
    s[1] = u
    return L.select(L.equal(u, L(0)), L(0), (m * r1) / u)
  }
}
