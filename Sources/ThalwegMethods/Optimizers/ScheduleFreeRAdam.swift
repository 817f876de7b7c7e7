import ThalwegCore

/// Schedule-Free RAdam: the rectification of RAdam takes the place of a warm-up.
///
///     ρ∞ = 2/(1 − β₂) − 1,  ρ = ρ∞ − 2t·β₂ᵗ/c₂;   v ← β₂·v + (1 − β₂)·g²
///     ρ > 4:  γ = lr·√((ρ − 4)(ρ − 2)ρ∞/((ρ∞ − 4)(ρ∞ − 2)ρ)),  u = g/(√(v/c₂) + ε)
///     else:   γ = 0, or lr without silent_sgd_phase,  u = g
///     z, x and y as schedule_free with the step γ and the decay at y; evaluation weights: x
///
/// State    z, x, v; lr_max, W and c, for each tensor.
/// Differs  schedulefree keeps y and z, see schedule_free. β₂ ≤ 0.6 is never rectified.
/// Source   Defazio et al., 2024, arXiv:2405.15682; Liu et al., 2019, arXiv:1908.03265.
struct ScheduleFreeRAdam: ElementRule {
  static let method = Method(
    "schedule_free_radam", .optimizer, "RAdam with an average in place of momentum, warm-up and a decaying rate.",
    rule: """
      rho_inf = 2/(1 - beta2) - 1;  rho = rho_inf - 2*t*beta2^t/c2;  v <- beta2*v + (1 - beta2)*g^2
      rho > 4: step = lr*sqrt((rho - 4)(rho - 2)*rho_inf/((rho_inf - 4)(rho_inf - 2)*rho)),  u = g/(sqrt(v/c2) + eps)
      else:    step = 0 (lr without silent_sgd_phase),  u = g

      """ + Interpolation.rule,
    source: Interpolation.source + "; Liu et al., 2019, arXiv:1908.03265",
    parameters: [
      .lr(2.5e-3), .rate("beta1", 0.9, "interpolation beta between z and x"),
      .rate("beta2", 0.999, "rate of the second moment"), .eps(1e-8),
      .weightDecay(0, "decay at y, in the step of z"),
      .number("r", 0, .atLeast(0), "power of the step in the weights"),
      .number("weight_lr_power", 2, .atLeast(0), "power of the largest step size in the weights"),
      .flag("silent_sgd_phase", true, "no step while the variance cannot be rectified"),
    ],
    slots: Interpolation.slots + [.square("exp_avg_sq", "second moment v")], requests: "own-step, no-updates")

  /// γ/lr; nil: not rectified.
  private static func rectification(_ h: Hyper, _ t: Double) -> Double? {
    let beta2: Double = h.beta2, decayed = power(beta2, Int(t))
    let limit = 2 / (1 - beta2) - 1, rho = limit - 2 * t * decayed / (1 - decayed)
    return rho > 4 ? ((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)).squareRoot() : nil
  }
  /// The context with the rectified step size.
  private static func rectified(_ h: Hyper, _ c: StepContext) -> StepContext {
    var c = c
    c.lr *= rectification(h, c.time) ?? (h.silent_sgd_phase ? 0 : 1)
    return c
  }

  static func scalars(_ h: Hyper) -> [Scalar] { Interpolation.scalars }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    Interpolation.begin(s, h, rectified(h, c))
  }
  static var evaluates: Bool { true }

  let point: Interpolation, beta2, eps, r2, decay: Double
  let adapted: Bool

  init(_ h: Hyper, _ c: StepContext) {
    point = Interpolation(h, ScheduleFreeRAdam.rectified(h, c), beta: h.beta1)
    (beta2, eps, decay) = (h.beta2, h.eps, c.weightDecay)
    (r2, adapted) = (1 / (1 - power(beta2, c.t)), ScheduleFreeRAdam.rectification(h, c.time) != nil)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ y: L, _ s: Slots<L>) -> L {
    let v = beta2 * s[2] + (1 - beta2) * (g * g)
    s[2] = v
    return (adapted ? ((v * r2).squareRoot() + eps).divide(g) : g) + decay * y
  }
  @inline(__always) func step<L: Lane>(_ g: L, _ y: L, _ s: Slots<L>, _ a: Apply) -> L {
    point.step(direction(g, y, s), s, 0)
  }
  @inline(__always) func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { s[1] }
}
