import Glibc
import ThalwegCore

/// NAdam: Adam with Nesterov momentum on a schedule.
///
///     μₜ = β₁·(1 − ½·0.96^(t·ψ)),   μ' = μₜ₊₁,   Π ← Π·μₜ  (Π₀ = 1);   m, v as Adam;   q = √(v/c₂) + ε
///     θ ← θ − lr·(1 − μₜ)/(1 − Π) · g/q − lr·μ'/(1 − Π·μ') · m/q
///
/// State    m, v; the product Π of each tensor.
/// Differs  nothing from torch.optim.NAdam, which keeps Π in single precision. optax.nadam has no schedule of μ.
/// Source   Dozat, 2016.
struct NAdam: ElementRule {
  static let method = Method(
    "nadam", .optimizer, "NAdam: Adam with Nesterov momentum on a schedule.",
    rule: """
      mu_t = beta1*(1 - 0.96^(t*momentum_decay)/2);  product <- product*mu_t
      m, v as adam;  q = sqrt(v/c2) + eps
      theta <- theta - lr*(1 - mu_t)/(1 - product) * g/q - lr*mu_t+1/(1 - product*mu_t+1) * m/q
      """,
    source: "Dozat, 2016",
    parameters: [
      .lr(2e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8),
      .number("momentum_decay", 4e-3, .atLeast(0), "speed psi at which the momentum approaches beta1"), .weightDecay(),
      .flag("decoupled", false, "decay is decoupled", live: false),
    ],
    slots: Adam.moments)

  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("mu_product", 1)] }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func decay(_ h: Hyper) -> Decay { h.decoupled ? .decoupled : .coupled }

  static func mu(_ h: Hyper, _ t: Double) -> Double {
    let beta1: Double = h.beta1, speed: Double = h.momentum_decay
    return beta1 * (1 - 0.5 * pow(0.96, t * speed))
  }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) { s[0] *= mu(h, c.time) }

  let beta1, beta2, eps, r2, onGradient, onMoment: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    r2 = 1 / (1 - power(beta2, c.t))
    let now = NAdam.mu(h, c.time), next = NAdam.mu(h, c.time + 1), product = c.scalars[0]
    (onGradient, onMoment) = ((1 - now) / (1 - product), next / (1 - product * next))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = m
    s[1] = v
    return ((v * r2).squareRoot() + eps).divide(onGradient * g + onMoment * m)
  }
}
