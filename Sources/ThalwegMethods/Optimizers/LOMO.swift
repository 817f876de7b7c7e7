import ThalwegCore

/// The rule of LOMO: clipped gradient descent, made for hosts that step inside the backward pass.
///
///     clip_value:  g ← clip(g, −c, c);   clip_norm:  g ← g·min(1, clip_norm/(N + 10⁻⁶)),  N = ‖g‖ over all tensors,
///     before any clipping;   θ ← θ − lr·g
///
/// State    none.
/// Differs  nothing from OpenLMLab/LOMO but the precision. That a tensor is stepped as soon as its gradient is there is
///          the host's part.
/// Source   Lv et al., 2023, arXiv:2306.09782.
struct LOMO: ElementRule {
  static let method = Method(
    "lomo", .optimizer, "The rule of LOMO: gradient descent with clipped gradients, and no state.",
    rule: """
      clip_value: g <- clip(g, -clip_value, clip_value)
      clip_norm: g <- g*min(1, clip_norm/(N + 1e-6)), N = |g| over all tensors before any clipping
      theta <- theta - lr*g
      """,
    source: "Lv et al., 2023, arXiv:2306.09782",
    parameters: [
      .lr(1e-3), .maybe("clip_norm", .above(0), "largest norm of all gradients").fixed.forAll,
      .maybe("clip_value", .above(0), "bound of every entry"),
    ])

  static func phases(_ h: Hyper) -> Int { h.given("clip_norm") ? 1 : 0 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("norm")] }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }

  let factor, bound: Double
  let bounded: Bool

  init(_ h: Hyper, _ c: StepContext) {
    factor = h.has("clip_norm") ? smaller(1, h.clip_norm / (c.scalars[0] + 1e-6)) : 1
    (bound, bounded) = (h.clip_value, h.has("clip_value"))
  }

  @inline(__always) func squares(_ phase: Int) -> Bool { true }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    factor * (bounded ? g.clipped(to: bound) : g)
  }
}
