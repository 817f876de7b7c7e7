/// Flooding: below a level of the loss the gradient is turned, so that the loss stays around it.
///
///     F = |L − b| + b;   g ← sign(L − b)·g,   sign(0) = 0
///
/// State    none.
/// Differs  the whole minibatch is flooded; flooding each sample is the host's loss. The loss that other stages and the
///          host see is L.
/// Source   Ishida, Yamane, Sakai, Niu and Sugiyama, 2020, arXiv:2002.08709.
struct Flooding: ElementRule {
  static let method = Method(
    "flooding", .transform, "Below a level of the loss the gradient is turned, so that the loss stays around it.",
    rule: "g <- sign(L - b)*g, the gradient of |L - b| + b",
    source: "Ishida, Yamane, Sakai, Niu, Sugiyama, 2020, arXiv:2002.08709",
    parameters: [.number("b", 0, .atLeast(0), "the level")], needsLoss: true)

  let sign: Double
  init(_ h: Hyper, _ c: StepContext) {
    let b: Double = h.b
    sign = c.loss > b ? 1 : c.loss < b ? -1 : c.loss - b  // a NaN stays
  }
  var multiplies: Double? { sign }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v * sign }
}
