import ThalwegCore

/// Clips the root mean square of a tensor's update.
///
///     u ← u/max(1, rms(u)/threshold)
///
/// u is the direction before the step size; decoupled decay is outside.
///
/// State    `share`, what the last update was multiplied by.
/// Differs  nothing from optax.clip_by_block_rms. StableAdamW's clip, by the gradient over its second moment, is a
///          rule of its own: a stage does not see what a rule divides by.
/// Source   Shazeer and Stern, 2018, arXiv:1804.04235.
struct ClipUpdateRMS: ElementRule {
  static let method = Method(
    "clip_update_rms", .update, "Clips the root mean square of a tensor's update.",
    rule: "u <- u/max(1, rms(u)/threshold), per tensor", source: "Shazeer, Stern, 2018, arXiv:1804.04235",
    parameters: [.number("threshold", 1, .above(0), "largest RMS that is not clipped").orInfinite()])

  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("share", 1)] }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = 1 / larger(1, totals.root(0) / Double(max(1, c.count)).squareRoot() / h.threshold)
  }

  let share: Double
  init(_ h: Hyper, _ c: StepContext) { share = c.scalars[0] }

  @inline(__always) func squares(_ phase: Int) -> Bool { true }
  var multiplies: Double? { share }
  @inline(__always) func direction<L: Lane>(_ u: L, _ g: L, _ s: Slots<L>) -> L { share == 1 ? u : u * share }
}
