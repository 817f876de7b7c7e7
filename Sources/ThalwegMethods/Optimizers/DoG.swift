import ThalwegCore

/// DoG: the farthest distance from the start, over the root of the summed squared gradient norms, is the step size.
///
///     r ← max(r, ‖θ − θ₀‖), from reps_rel·(1 + ‖θ₀‖);   G ← G + ‖g‖², from ε
///     θ ← θ − lr · r/√G · g;   norms over all tensors, or (layerwise: L-DoG) over each
///
/// State    θ₀; r, G.
/// Differs  nothing from dog-optimizer. Meant to be evaluated at an average of the iterates (`poly_decay_average`).
///          Decay is coupled.
/// Source   Ivgi, Hinder and Carmon, 2023, arXiv:2302.12022.
struct DoG: ElementRule {
  static let origin = Slot("init", "the first parameters", start: .iterate())
  static let method = Method(
    "dog", .optimizer,
    "DoG: the farthest distance from the start over the root of the summed squared gradients is the step size.",
    rule: """
      r <- max(r, |theta - theta_0|), from reps_rel*(1 + |theta_0|);  G <- G + |g|^2, from eps
      theta <- theta - lr * r/sqrt(G) * g;  norms over all tensors, or over each with layerwise
      """,
    source: "Ivgi, Hinder, Carmon, 2023, arXiv:2302.12022",
    parameters: [
      .lr(1),
      .number("reps_rel", 1e-6, .above(0), "first distance, relative to 1 + |theta_0|").forAll(unless: "layerwise"),
      .number("eps", 1e-8, .above(0), "first value of G").forAll(unless: "layerwise"),
      .flag("layerwise", false, "every tensor has a step size of its own", live: false),
      .weightDecay(0, "coupled weight decay"),
    ],
    slots: [origin], refusesStochastic: roundingIsDistance)
  static let roundingIsDistance =
    "the noise of the rounding would count as distance from the start and lengthen every step"

  static func decay(_ h: Hyper) -> Decay { .coupled }
  static func scope(_ h: Hyper) -> Scope { h.layerwise ? .tensor : .global }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("distance"), Scalar("squares")] }

  let first: Bool
  let factor: Double

  init(_ h: Hyper, _ c: StepContext) {
    first = c.scalars[0] == 0
    factor = c.scalars[0] / Squares(c.scalars[1]).root
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    let away = x - s[0]
    sums.add(0, away, times: away)
    sums.add(1, g, times: g)
    if first { sums.add(2, s[0], times: s[0]) }
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    if s[0] == 0 { (s[0], s[1]) = (h.reps_rel * (1 + totals.root(2)), h.eps) }
    s[0] = larger(s[0], totals.root(0))
    var squares = Squares(s[1])
    squares.add(Squares(totals, 1))
    s[1] = squares.number
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { factor * g }
}

/// DoWG: distance over weighted gradients.
///
///     r² ← max(r², ‖θ − θ₀‖²), from r_eps²;   v ← v + r²·‖g‖²
///     θ ← θ − r²/(√v + ε) · g;   norms over all tensors
///
/// State    θ₀; r², v.
/// Differs  nothing from optax.contrib.dowg. No move while all gradients have been 0.
/// Source   Khaled, Mishchenko and Jin, 2023, arXiv:2305.16284.
struct DoWG: ElementRule {
  static let method = Method(
    "dowg", .optimizer, "DoWG: distance over weighted gradients is the step size.",
    rule: """
      r^2 <- max(r^2, |theta - theta_0|^2), from r_eps^2;  v <- v + r^2*|g|^2
      theta <- theta - r^2/(sqrt(v) + eps) * g
      """,
    source: "Khaled, Mishchenko, Jin, 2023, arXiv:2305.16284",
    parameters: [.number("r_eps", 1e-4, .above(0), "first distance").forAll, .eps(0, "added to the root of v")],
    slots: [DoG.origin], refusesStochastic: DoG.roundingIsDistance)

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("distance_squared"), Scalar("squares")] }

  let factor: Double

  init(_ h: Hyper, _ c: StepContext) {
    let root = Squares(c.scalars[1]).root + h.eps
    factor = root == 0 ? 0 : c.scalars[0] / root
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    let away = x - s[0]
    sums.add(0, away, times: away)
    sums.add(1, g, times: g)
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let first: Double = h.r_eps
    s[0] = larger(s[0] == 0 ? first * first : s[0], totals[0])
    var squares = Squares(s[1])
    squares.add(Squares(totals, 1), times: s[0].squareRoot())
    s[1] = squares.number
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { factor * g }
}
