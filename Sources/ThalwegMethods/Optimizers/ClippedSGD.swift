import ThalwegCore

/// Gradient descent with clipped norms.
///
///     θ ← θ − lr·min(1, clip/‖g‖)·g,   ‖·‖ over all tensors
///
/// State    `norm`, the last ‖g‖.
/// Differs  nothing: nothing is added to the norm, so that the theory holds as it stands. It is clip_global_norm | sgd.
/// Source   Koloskova, Hendrikx and Stich, 2023, arXiv:2305.01588.
struct ClippedSGD: ElementRule {
  static let method = Method(
    "clipped_sgd", .optimizer, "Gradient descent with clipped norms.",
    rule: "theta <- theta - lr * min(1, clip/|g|) * g,  the norm over all tensors",
    source: "Koloskova, Hendrikx, Stich, 2023, arXiv:2305.01588",
    parameters: [.lr(0.1), .number("clip", 1, .above(0), "largest norm").forAll])

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("norm")] }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }

  let factor: Double
  init(_ h: Hyper, _ c: StepContext) {
    let most: Double = h.clip
    factor = c.scalars[0] <= most ? 1 : most / c.scalars[0]
  }

  @inline(__always) func squares(_ phase: Int) -> Bool { true }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { factor * g }
}
