/// The box lo ≤ w ≤ hi.
///
///     project = min(max(w, lo), hi)     argmin⟨g, u⟩: lo where g > 0, hi where g < 0, the point nearest 0 where g = 0
///
/// Differs  nothing. A bound may be infinite; the minimiser is then infinite too in that direction. NaN stays, in its own entry.
struct Box: ElementConstraint {
  static let method = Method(
    "box", .constraint, "The box lo <= w <= hi.",
    rule: "project = min(max(w, lo), hi);  argmin <g, u>: lo where g > 0, hi where g < 0, 0 clipped where g = 0", source: "textbook",
    parameters: [
      .number("lo", -1, .any, "lower bound, -inf for none").orInfinite(), .number("hi", 1, .any, "upper bound, inf for none").orInfinite(),
    ],
    validate: { (h) throws(Failure) in
      let lo: Double = h.lo, hi: Double = h.hi
      guard !(lo > hi) else { throw Failure(Status.range, "box: `lo` must not be above `hi`, got \(text(lo)) and \(text(hi))") }
    })

  let lo, hi: Double
  init(_ h: Hyper) { (lo, hi) = (h.lo, h.hi) }

  @inline(__always) func project<L: Lane>(_ w: L) -> L { L.min(L.max(w, lo), hi) }
  @inline(__always) func minimise<L: Lane>(_ g: L) -> L {
    let zero = L(0)
    let flat = L.select(L.equal(g, zero), L(min(max(0, lo), hi)), g)   // NaN stays
    return L.select(L.less(zero, g), L(lo), L.select(L.less(g, zero), L(hi), flat))
  }
}
