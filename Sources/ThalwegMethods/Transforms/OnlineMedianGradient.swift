import ThalwegCore

/// The median of the gradients over the steps, by stochastic proximal points.
///
///     m ← argmin_z D(z − g) + ‖z − m‖²/(2τ);   with d = g − m:
///       l1:      m + clip(d, −τ, τ), entry by entry            l2:  m + min(1, τ/‖d‖)·d
///       square:  m + τ/(1 + τ)·d  (D = ½‖·‖²)
///       huber:   m + τ/(1 + τ)·d where ‖d‖ ≤ (1 + τ)·μ, else m + τ·μ/‖d‖·d
///     the rule sees m
///
/// State    m, with `carry`; without it every step starts from m = 0, which is clipping.
/// Differs  nothing. ‖·‖ is over all tensors; a tensor without a gradient keeps its m.
/// Source   Schaipp, Garrigos, Simsekli and Gower, 2024, arXiv:2402.12828.
struct OnlineMedianGradient: ElementRule {
  static let method = Method(
    "online_median_gradient", .transform, "The median of the gradients over the steps, by proximal points.",
    rule: """
      d = g - m (m = 0 without carry);  l1: m <- m + clip(d, -tau, tau);  l2: m <- m + min(1, tau/|d|)*d
      square: m <- m + tau/(1 + tau)*d;  huber: the same where |d| <= (1 + tau)*mu, else m + tau*mu/|d|*d
      g <- m
      """,
    source: "Schaipp, Garrigos, Simsekli, Gower, 2024, arXiv:2402.12828",
    parameters: [
      .number("tau", 0.1, .above(0), "step of the proximal point").forAll,
      .choice("norm", ["l1", "l2", "huber", "square"], "the distance D", standard: 1, live: false),
      .number("mu", 1, .above(0), "where Huber's distance becomes linear").forAll,
      .flag("carry", true, "keep the median from step to step", live: false),
    ],
    slots: [Slot("median", "the median m of the gradients")])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { h.carry ? method.slots : [] }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("distance")] }
  static func phases(_ h: Hyper) -> Int { h.is("norm", "l2") || h.is("norm", "huber") ? 1 : 0 }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }

  let factor, bound: Double
  let carry, clips: Bool
  init(_ h: Hyper, _ c: StepContext) {
    let tau: Double = h.tau, mu: Double = h.mu, d = c.scalars[0]
    (bound, carry, clips) = (tau, h.carry, h.is("norm", "l1"))
    if h.is("norm", "l2") {
      factor = d <= tau ? 1 : tau / d
    } else {
      factor = h.is("norm", "square") || d <= (1 + tau) * mu ? tau / (1 + tau) : tau * mu / d
    }
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ v: L, _ w: L, _ s: Slots<L>, _ sums: inout Sums) {
    let d = carry ? v - s[0] : v
    sums.add(0, d, times: d)
  }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L {
    let m = carry ? s[0] : L(0), d = v - m
    let next = m + (clips ? d.clipped(to: bound) : factor * d)
    if carry { s[0] = next }
    return next
  }
}
