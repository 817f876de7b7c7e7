import ThalwegCore

/// Raises updates that are short beside the weights.
///
///     u ← u·max(1, floor·max(‖θ‖, ε)/max(‖u‖, ε)),   norms of the tensor, or of each row of the matrix view
///
/// u is the direction before the step size, θ the parameters before the step.
///
/// State    none.
/// Differs  nothing from the speed runs that it comes from; rows of tensors of rank 0 and 1 are the tensor. An update
///          of zeros stays.
/// Source   modded-nanogpt, 2025 (track 3).
struct UpdateFloor: WholeRule {
  static let method = Method(
    "update_floor", .update, "Raises updates that are short beside the weights.",
    rule: "u <- u*max(1, floor*max(|theta|, eps)/max(|u|, eps)), norms of the tensor or of each row",
    source: "modded-nanogpt, 2025 (track 3)",
    parameters: [
      .number("floor", 0.35, .atLeast(0), "least norm of an update, over that of the weights"),
      .choice("by", ["tensor", "row"], "whose norms"), .eps(1e-8, "floor of both norms", .above(0)),
    ], needsFinite: true)

  let floor, eps: Double
  let rows: Bool
  init(_ h: Hyper, _ c: StepContext) { (floor, eps, rows) = (h.floor, h.eps, h.is("by", "row")) }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let slices = rows ? Slices.rows(t.shape) : Slices.whole(t.shape)
    let u = try slices.norms(t.v), x = try slices.norms(t.w)
    slices.scale(t.v, by: zip(u, x).map { max(1, floor * max($0.1, eps) / max($0.0, eps)) })
  }
}
