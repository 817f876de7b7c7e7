import ThalwegCore

/// O2NC: online gradient descent chooses the move, and the gradient is taken at a random point of it.
///
///     Δ ← Π(Δ − η·g), the nearest point with ‖Δ‖ ≤ radius;   next query = x + s·Δ, s uniform in (0, 1);   x ← x + Δ
///     candidate = the mean of the queries of an epoch;   the first query is θ₀, with Δ = 0;   ‖·‖ over all tensors
///
/// State    x, Δ, the mean of this epoch, the candidate. The parameters hold the query; evaluation mode writes the
///          candidate.
/// Differs  the candidate is that of the latest whole epoch (in the first epoch its mean so far); a host that wants a
///          uniformly chosen one keeps them. s is the normal distribution function at one normal draw, the same for all
///          tensors. Epochs count a tensor's own steps.
///          The optimistic learner for smooth functions is not carried.
/// Source   Cutkosky, Mehta and Orabona, 2023, arXiv:2302.03775.
struct O2NC: ElementRule {
  static let method = Method(
    "o2nc", .optimizer,
    "O2NC: online gradient descent chooses the move, and the gradient is taken at a random point of it.",
    rule: """
      delta <- delta - eta*g, scaled to |delta| <= radius
      next query = x + s*delta, s uniform in (0, 1);  x <- x + delta
      candidate = the mean of the queries of the latest epoch
      """,
    source: "Cutkosky, Mehta, Orabona, 2023, arXiv:2302.03775",
    parameters: [
      .number("radius", 1e-2, .atLeast(0), "longest move").forAll,
      .number("eta", 1e-2, .atLeast(0), "step of the learner"),
      .integer("epoch", 10, .atLeast(1), "steps to a candidate", live: false),
    ],
    slots: [
      Slot("iterate", "the iterate x", start: .iterate()), Slot("delta", "the move"),
      Slot("mean", "the mean of the queries of this epoch"),
      Slot("candidate", "the mean of the latest epoch"),
    ],
    requests: "own-step")

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("norm")] }
  static var evaluates: Bool { true }

  let eta, scale, share, along: Double
  let emits: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let epoch = max(1, h.integer("epoch")), place = (c.t - 1) % epoch + 1
    let norm = c.scalars[0], radius: Double = h.radius
    (eta, scale, share) = (h.eta, norm > radius ? radius / norm : 1, 1 / Double(place))
    along = Random.fraction(seed: c.seed, stream: c.stream, step: c.step)
    emits = place == epoch || c.t <= epoch
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    let move = s[1] - eta * g
    s[1] = move
    sums.add(0, move, times: move)
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }

  @inline(__always) func query<L: Lane>(_ x: L, _ s: Slots<L>) -> L {
    let mean = (1 - share) * s[2] + share * x
    s[2] = mean
    if emits { s[3] = mean }
    let iterate = s[0], move = scale * s[1]
    s[1] = move
    s[0] = iterate + move
    return iterate + along * move
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { x - query(x, s) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { query(x, s) }
  @inline(__always) func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { s[3] }
}
