import Glibc
import ThalwegCore

/// AdEMAMix: Adam with a second, slow average of the gradient.
///
///     m₁ ← β₁·m₁ + (1 − β₁)·g;   m₂ ← β₃·m₂ + (1 − β₃)·g;   v ← β₂·v + (1 − β₂)·g²
///     θ ← θ·(1 − lr·wd) − lr · (m₁/c₁ + α·m₂)/(√(v/c₂) + ε)
///
/// α warms up linearly over `t_alpha` steps; β₃ over `t_beta3` steps from β₁, linearly in its half-life. A length of 0
/// is off.
///
/// State    m₂, v; m₁ when β₁ ≠ 0.
/// Differs  the authors' code adds 1e-8 inside the logarithms of the half-lives. m₂ has no bias correction; β₁ = 0 has
///          half-life 0.
/// Source   Pagliardini, Ablin and Grangier, 2024, arXiv:2409.03137.
struct AdEMAMix: ElementRule {
  static let slow: [Slot] = [.moment("exp_avg_slow", "slow average m2"), .square("exp_avg_sq", "second moment v")]
  static let fast: [Slot] = [.moment("exp_avg_fast", "fast average m1")]
  static let method = Method(
    "ademamix", .optimizer, "AdEMAMix: Adam with a second, slow average of the gradient.",
    rule: """
      m1 <- beta1*m1 + (1 - beta1)*g;  m2 <- beta3_t*m2 + (1 - beta3_t)*g;  v <- beta2*v + (1 - beta2)*g^2
      theta <- theta*(1 - lr*weight_decay) - lr * (m1/c1 + alpha_t*m2)/(sqrt(v/c2) + eps)
      alpha_t = alpha*min(t/t_alpha, 1);  beta3_t goes from beta1 to beta3 linearly in half-life over t_beta3 steps
      """,
    source: "Pagliardini, Ablin, Grangier, 2024, arXiv:2409.03137",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the fast average"), .rate("beta2", 0.999, "rate of the second moment"),
      .rate("beta3", 0.9999, "final rate of the slow average"),
      .number("alpha", 5, .atLeast(0), "final weight of the slow average"),
      .integer("t_alpha", 0, .atLeast(0), "steps over which alpha warms up"),
      .integer("t_beta3", 0, .atLeast(0), "steps over which beta3 warms up"),
      .eps(1e-8), .weightDecay(0, "decoupled weight decay"),
    ],
    slots: slow + fast)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let beta1: Double = h.beta1
    return beta1 != 0 ? slow + fast : slow
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2, beta3, alpha, eps, r1, r2: Double
  let plain: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    plain = beta1 == 0
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
    let top: Double = h.alpha, last: Double = h.beta3, warm: Double = h.t_alpha, length: Double = h.t_beta3
    alpha = c.time < warm ? top * c.time / warm : top
    if c.time < length {
      let a = c.time / length, life = (1 - a) * AdEMAMix.halfLife(beta1) + a * AdEMAMix.halfLife(last)
      beta3 = life > 0 ? min(exp2(-1 / life), last) : 0
    } else {
      beta3 = last
    }
  }

  static func halfLife(_ beta: Double) -> Double { beta > 0 ? log(0.5) / log(beta) : 0 }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let slow = beta3 * s[0] + (1 - beta3) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = slow
    s[1] = v
    var fast = g
    if !plain {
      fast = beta1 * s[2] + (1 - beta1) * g
      s[2] = fast
    }
    return ((v * r2).squareRoot() + eps).divide(fast * r1 + alpha * slow)
  }
}
