import Glibc
import ThalwegCore

/// Simplified AdEMAMix: Adam with a momentum that sums, and the current gradient beside it.
///
///     m ← β·m + g;   v ← β₂·v + (1 − β₂)·g²;   θ ← θ·(1 − lr·wd) − lr·(m + α·g)/(√(v/c₂) + ε)
///     warm-up: while t < beta1_warmup, β has the half-life that lies at t/beta1_warmup between those of min_beta1 and
///     beta1
///
/// State    m, v.
/// Differs  nothing from optax, which has no warm-up. m is a sum, without bias correction: directions grow to
///          α + 1/(1 − β), and lr is about 1 − β times Adam's.
/// Source   Morwani, Vyas, Zhang and Kakade, 2025, arXiv:2502.02431.
struct SimplifiedAdEMAMix: ElementRule {
  static let method = Method(
    "simplified_ademamix", .optimizer, "Adam with a momentum that sums, and the current gradient beside it.",
    rule: """
      m <- beta*m + g;  v <- beta2*v + (1 - beta2)*g^2
      theta <- theta*(1 - lr*weight_decay) - lr*(m + alpha*g)/(sqrt(v/c2) + eps)
      beta = beta1; while t < beta1_warmup: the half-life goes linearly from that of min_beta1 to that of beta1
      """,
    source: "Morwani, Vyas, Zhang, Kakade, 2025, arXiv:2502.02431",
    parameters: [
      .lr(1e-4), .rate("beta1", 0.99, "rate of the momentum"), .rate("beta2", 0.95, "rate of the second moment"),
      .number("alpha", 0, .atLeast(0), "weight of the current gradient"), .eps(1e-8),
      .weightDecay(0, "decoupled weight decay"),
      .integer("beta1_warmup", 0, .atLeast(0), "steps from min_beta1 to beta1"),
      .rate("min_beta1", 0.9, "where the warm-up begins"),
    ],
    slots: Adam.moments)

  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2, alpha, eps, r2: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta2, alpha, eps) = (h.beta2, h.alpha, h.eps)
    r2 = 1 / (1 - power(beta2, c.t))
    let last: Double = h.beta1, warmup: Double = h.beta1_warmup
    func halfLife(_ x: Double) -> Double { log(0.5) / log(x) - 1 }
    if c.time < warmup {
      let share = c.time / warmup
      beta1 = pow(0.5, 1 / ((1 - share) * halfLife(h.min_beta1) + share * halfLife(last) + 1))
    } else {
      beta1 = last
    }
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = m
    s[1] = v
    return ((v * r2).squareRoot() + eps).divide(alpha == 0 ? m : m + alpha * g)
  }
}
