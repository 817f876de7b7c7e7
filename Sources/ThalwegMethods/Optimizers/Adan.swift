import ThalwegCore

/// Adan: Nesterov momentum rewritten with differences of gradients.
///
///     δ = g − g_prev  (0 at the first step);   m ← β₁·m + (1 − β₁)·g;   d ← β₂·d + (1 − β₂)·δ
///     n ← β₃·n + (1 − β₃)·(g + β₂·δ)²;   u = (m/c₁ + β₂·d/c₂)/(√(n/c₃) + ε)
///     prox: θ ← (θ − lr·u)/(1 + lr·wd);   else θ ← θ·(1 − lr·wd) − lr·u
///
/// State    m, d, n, the previous gradient.
/// Differs  nothing from the authors' code; β's are the rates of the averages. optax.adan weighs δ by 1 − β₂: another
///          method. The proximal form is computed as θ − lr·(u + wd·θ)/(1 + lr·wd), so that its decay is part of the
///          direction.
/// Source   Xie et al., 2022, arXiv:2208.06677.
struct Adan: ElementRule {
  static let method = Method(
    "adan", .optimizer, "Adan: Nesterov momentum rewritten with differences of gradients.",
    rule: """
      delta = g - g_prev (0 at the first step);  m <- beta1*m + (1 - beta1)*g;  d <- beta2*d + (1 - beta2)*delta
      n <- beta3*n + (1 - beta3)*(g + beta2*delta)^2;  u = (m/c1 + beta2*d/c2)/(sqrt(n/c3) + eps)
      prox: theta <- (theta - lr*u)/(1 + lr*weight_decay), else theta*(1 - lr*weight_decay) - lr*u
      """,
    source: "Xie et al., 2022, arXiv:2208.06677",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.98, "rate of the average gradient"),
      .rate("beta2", 0.92, "rate of the average difference"),
      .rate("beta3", 0.99, "rate of the second moment"), .eps(1e-8), .weightDecay(0, "decay, as `prox` says"),
      .flag(
        "prox", true, "divide by 1 + lr*weight_decay after the step; false: multiply by 1 - lr*weight_decay before it",
        live: false),
    ],
    slots: [
      .moment("exp_avg", "average gradient m"), .moment("exp_avg_diff", "average difference d"),
      .square("exp_avg_sq", "second moment n"),
      Slot("previous_grad", "previous gradient"),
    ])

  static func decay(_ h: Hyper) -> Decay { h.prox ? .rule : .decoupled }

  let beta1, beta2, beta3, eps, r1, r2, r3, shrink, pull: Double
  let first: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, beta3, eps) = (h.beta1, h.beta2, h.beta3, h.eps)
    (r1, r2, r3) = (1 / (1 - power(beta1, c.t)), beta2 / (1 - power(beta2, c.t)), 1 / (1 - power(beta3, c.t)))
    first = c.t == 1
    let decay = h.prox ? c.weightDecay : 0
    shrink = 1 / (1 + c.lr * decay)
    pull = decay * shrink
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let previous = first ? g : s[3]
    let delta = g - previous
    let m = beta1 * s[0] + (1 - beta1) * g
    let d = beta2 * s[1] + (1 - beta2) * delta
    let ahead = g + beta2 * delta
    let n = beta3 * s[2] + (1 - beta3) * (ahead * ahead)
    s[0] = m
    s[1] = d
    s[2] = n
    s[3] = g
    let u = ((n * r3).squareRoot() + eps).divide(m * (r1 * shrink) + d * (r2 * shrink))
    return u + pull * x
  }
}
