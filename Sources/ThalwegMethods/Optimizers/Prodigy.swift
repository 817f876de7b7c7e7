import Glibc
import ThalwegCore

/// Prodigy: Adam whose step size is an estimate of the distance to the solution, made while training.
///
///     b = √(1 − β₂ᵏ)/(1 − β₁ᵏ) with bias correction, else 1
///     a ← β₃·a + (d²/d₀)·lr·b·⟨g, θ₀ − θ⟩;   s ← β₃·s + (d²/d₀)·lr·b·g
///     m ← β₁·m + (1 − β₁)·d·g;   v ← β₂·v + (1 − β₂)·d²·g²
///     d̂ = d_coef·a/‖s‖₁;   d' = max(d, d̂) at first, then the largest d̂ so far, growing by at most growth_rate
///     θ ← θ − lr·d·b · (m/(√v + d'·ε) + wd·θ)
///
/// State    m, v, s, θ₀; d, the largest d̂, a, k (steps with ‖s‖₁ > 0). Sums run over all tensors.
/// Differs  nothing from the authors' prodigyopt; its slicing of s and θ₀ is not carried. The numbers of the estimate
///          are one for all groups; a group with lr = 0 stays where it is and adds nothing to a.
/// Source   Mishchenko and Defazio, 2023, arXiv:2306.06101.
struct Prodigy: ElementRule {
  static let method = Method(
    "prodigy", .optimizer,
    "Prodigy: Adam whose step size is an estimate of the distance to the solution, made while training.",
    rule: """
      b = sqrt(1 - beta2^k)/(1 - beta1^k) with bias correction, else 1
      a <- beta3*a + d^2/d0*lr*b*<g, theta_0 - theta>;  s <- beta3*s + d^2/d0*lr*b*g  (safeguard_warmup: without lr*b)
      m <- beta1*m + (1 - beta1)*d*g;  v <- beta2*v + (1 - beta2)*d^2*g^2
      d^ = d_coef*a/|s|_1;  d' = max(d, d^) at first, then the largest d^ so far, at most d*growth_rate
      theta <- theta - lr*d*b * (m/(sqrt(v) + d'*eps) + weight_decay*theta)
      """,
    source: "Mishchenko, Defazio, 2023, arXiv:2306.06101",
    parameters: [
      .lr(1).equalInAll, .rate("beta1", 0.9, "rate of the first moment").forAll,
      .rate("beta2", 0.999, "rate of the second moment").forAll,
      .maybe("beta3", .rate, "rate of the statistics of d; none: the root of beta2").forAll,
      .number("eps", 1e-8, .above(0), "added to the denominator, times d"), .weightDecay(),
      .flag("decouple", true, "weight decay is decoupled", live: false),
      .flag("use_bias_correction", false, "Adam's bias correction of the step").forAll,
      .flag("safeguard_warmup", false, "the statistics of d leave out lr").forAll,
      .number("d0", 1e-6, .above(0), "first estimate of the distance").forAll,
      .number("d_coef", 1, .above(0), "factor of the estimate").forAll,
      .number("growth_rate", .infinity, .atLeast(1), "largest growth of d in a step").forAll,
    ],
    slots: Adam.moments + [Slot("s", "weighted sum of gradients"), DoG.origin])

  static func decay(_ h: Hyper) -> Decay { h.decouple ? .rule : .coupled }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("d"), Scalar("d_max"), Scalar("d_numerator"), Scalar("k"), Scalar("d_of_step"), Scalar("moved")]
  }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    if s[0] == 0 { (s[0], s[1]) = (h.d0, h.d0) }
    s[3] += s[5]
    (s[4], s[5]) = (s[0], 0)
  }

  static func correction(_ h: Hyper, _ k: Double) -> Double {
    h.use_bias_correction ? (1 - pow(h.beta2, k + 1)).squareRoot() / (1 - pow(h.beta1, k + 1)) : 1
  }
  static func beta3(_ h: Hyper) -> Double {
    let beta2: Double = h.beta2; return h.has("beta3") ? h.beta3 : beta2.squareRoot()
  }

  let beta1, beta2, beta3, eps, decay, d, weight, factor: Double
  let moves: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let s = c.scalars, d0: Double = h.d0, b = Prodigy.correction(h, s[3])
    (beta1, beta2, beta3, d) = (h.beta1, h.beta2, Prodigy.beta3(h), s[4])
    eps = s[0] * h.eps
    decay = h.decouple ? c.weightDecay : 0
    weight = d / d0 * (h.safeguard_warmup ? d : d * c.lr * b)
    factor = s[5] * d * b
    moves = c.lr != 0
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    let dg = d * g
    s[0] = beta1 * s[0] + (1 - beta1) * dg
    s[1] = beta2 * s[1] + (1 - beta2) * (dg * dg)
    let sum = beta3 * s[2] + weight * g
    s[2] = sum
    if moves { sums.add(0, g, times: s[3] - x) }
    sums.add(1, sum.magnitude)
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let d0: Double = h.d0, d = s[0]
    s[2] = beta3(h) * s[2] + d / d0 * (d * c.lr * correction(h, s[3])) * totals[0]
    if totals[1] == 0 { return }
    let found = h.d_coef * s[2] / totals[1]
    s[1] = max(s[1], found)
    s[0] = min(s[1], (d == d0 ? max(d, found) : d) * h.growth_rate)
    s[5] = 1
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    factor * ((s[1].squareRoot() + eps).divide(s[0]) + decay * x)
  }
}
