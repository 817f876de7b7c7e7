import ThalwegCore

/// RAdam: Adam whose step is rectified for the variance of its early second moment.
///
///     ρ∞ = 2/(1 − β₂) − 1,   ρ = ρ∞ − 2t·β₂ᵗ/c₂;   m, v as Adam
///     ρ > 5:  θ ← θ − lr · r·√c₂ · (m/c₁)/(√v + ε),   r² = (ρ − 4)(ρ − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρ)
///     else:   θ ← θ − lr · m/c₁
///
/// State    m, v.
/// Differs  nothing from torch.optim.RAdam; optax.radam adds ε to the corrected root. β₂ ≤ 0.6 never adapts (ρ∞ ≤ 4).
/// Source   Liu et al., 2019, arXiv:1908.03265.
struct RAdam: ElementRule {
  static let method = Method(
    "radam", .optimizer, "RAdam: Adam rectified for the variance of its early second moment.",
    rule: """
      rho_inf = 2/(1 - beta2) - 1;  rho = rho_inf - 2*t*beta2^t/c2;  m, v as adam
      rho > 5: theta <- theta - lr * r*sqrt(c2) * (m/c1)/(sqrt(v) + eps),
               r^2 = (rho - 4)(rho - 2)*rho_inf / ((rho_inf - 4)(rho_inf - 2)*rho)
      else:    theta <- theta - lr * m/c1
      """,
    source: "Liu et al., 2019, arXiv:1908.03265",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8),
      .weightDecay(), .flag("decoupled", false, "decay is decoupled", live: false),
    ],
    slots: Adam.moments)

  static func decay(_ h: Hyper) -> Decay { h.decoupled ? .decoupled : .coupled }

  let beta1, beta2, eps, factor: Double
  let adapted: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    let decayed = power(beta2, c.t), c2 = 1 - decayed, r1 = 1 / (1 - power(beta1, c.t))
    let limit = 2 / (1 - beta2) - 1, rho = limit - 2 * c.time * decayed / c2
    adapted = rho > 5
    factor = adapted ? r1 * ((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho) * c2).squareRoot() : r1
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = m
    s[1] = v
    let d = m * factor
    if !adapted { return d }
    return (v.squareRoot() + eps).divide(d)
  }
}
