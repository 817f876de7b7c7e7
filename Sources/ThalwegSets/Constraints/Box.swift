import ThalwegCore

/// The box lo ≤ w ≤ hi; a bound is one number, or one for each entry.
///
///     project = min(max(w, lo), hi)     argmin⟨g, u⟩: lo where g > 0, hi where g < 0, the point nearest 0 where g = 0
///
/// Errors   TW_ERROR_SHAPE where a list does not have as many numbers as the tensor.
/// Differs  nothing. A bound may be infinite; the minimiser is then infinite too in that direction. NaN stays, in its
///          own entry.
struct Box: ElementConstraint {
  static let method = Method(
    "box", .constraint, "The box lo <= w <= hi.",
    rule: "project = min(max(w, lo), hi);  argmin <g, u>: lo where g > 0, hi where g < 0, 0 clipped where g = 0",
    source: "textbook",
    parameters: [
      .number("lo", -1, .any, "lower bound, -inf for none; or one for each entry").orInfinite().orList(),
      .number("hi", 1, .any, "upper bound, inf for none; or one for each entry").orInfinite().orList(),
    ],
    validate: { (h) throws(Failure) in
      let (lo, hi) = bounds(h)
      if lo.contains(.infinity) || hi.contains(-.infinity) {
        throw Failure(Status.range, "box: `lo` must be below inf and `hi` above -inf, else the set is empty")
      }
      guard lo.count == hi.count || lo.count == 1 || hi.count == 1 else {
        throw Failure(Status.range, "box: `lo` has \(lo.count) numbers, `hi` has \(hi.count)")
      }
      for i in 0..<max(lo.count, hi.count) {
        let a = lo[lo.count == 1 ? 0 : i], b = hi[hi.count == 1 ? 0 : i]
        guard a <= b || isScheduled(h, "lo") || isScheduled(h, "hi") else {
          throw Failure(Status.range, "box: `lo` must not be above `hi`, got \(text(a)) and \(text(b))")
        }
      }
    })

  /// Its number is not known yet.
  private static func isScheduled(_ h: Hyper, _ name: String) -> Bool {
    if let i = h.index(name), case .schedule = h.values[i] { true } else { false }
  }
  /// A list of one or more numbers each.
  private static func bounds(_ h: Hyper) -> (lo: [Double], hi: [Double]) {
    func list(_ name: String) -> [Double] {
      let list = h.list(name)
      return list.isEmpty ? [h[dynamicMember: name]] : list
    }
    return (list("lo"), list("hi"))
  }

  let lo, hi: Double
  init(_ h: Hyper) { (lo, hi) = (h.lo, h.hi) }

  @inline(__always) func project<L: Lane>(_ w: L) -> L { w.clamped(L(lo), L(hi)) }
  var folds: Folds? { Folds(.clip(lo, hi)) }
  @inline(__always) func minimise<L: Lane>(_ g: L) -> L {
    let zero = L(0)
    let flat = L.select(L.equal(g, zero), L(min(max(0, lo), hi)), g)  // NaN stays
    return L.select(L.less(zero, g), L(lo), L.select(L.less(g, zero), L(hi), flat))
  }

  static let registered = Registered(
    method: method, component: .constraint(constraintKernels(Box.self, withLists: constraintKernels(ByEntry.self))))

  /// The form with lists.
  struct ByEntry: WholeConstraint {
    static var method: Method { Box.method }
    static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
      try fits(h.list("lo"), "lo", shape, "box")
      try fits(h.list("hi"), "hi", shape, "box")
    }
    let lo, hi: [Double]
    init(_ h: Hyper) { (lo, hi) = Box.bounds(h) }

    private func change<T: Real>(_ v: UnsafeMutablePointer<T>, _ n: Int, _ body: (T, T, T) -> T) {
      for i in 0..<n { v[i] = body(v[i], T(lo[lo.count == 1 ? 0 : i]), T(hi[hi.count == 1 ? 0 : i])) }
    }
    func project<T: Real>(_ w: Whole<T>) { change(w.v, w.count) { x, lo, hi in x < lo ? lo : x > hi ? hi : x } }
    static var minimises: Bool { true }
    func minimise<T: Real>(_ w: Whole<T>) {
      change(w.v, w.count) { g, lo, hi in g > 0 ? lo : g < 0 ? hi : g == 0 ? min(max(0, lo), hi) : g }
    }
  }
}
