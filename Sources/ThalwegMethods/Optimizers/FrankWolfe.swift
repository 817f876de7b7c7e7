import ThalwegCore

/// Frank-Wolfe: steps toward the corner of a set that the gradient points to, so that the parameters never leave it.
///
///     ḡ ← μ·ḡ + (1 − μ)·g, the first g as it is;   s = argmin over the set of ⟨ḡ, s⟩;   gap = ⟨ḡ, θ − s⟩
///     θ ← θ + γ·(s − θ);   open: γ = 2/(t + 2), t from 0;   short: γ = min(1, gap/(curvature·|s − θ|²));   constant
///
/// The set is one for each tensor. For convex losses the gap bounds the distance to the optimum.
///
/// State    ḡ with momentum; the gap of each tensor.
/// Errors   TW_ERROR_UNSUPPORTED: a set without a linear minimisation, when it is made; one that is unbounded in the
///          direction of a gradient, at that step.
/// Differs  the first step projects the parameters onto the set before it moves them; its gradient is that of where
///          the host started.
/// Source   Frank, Wolfe, 1956; Jaggi, 2013.
struct FrankWolfe: WholeRule {
  static let method = Method(
    "frank_wolfe", .optimizer, "Frank-Wolfe: steps toward the corner of a set that the gradient points to.",
    rule: """
      g_avg <- momentum*g_avg + (1 - momentum)*g, the first g as it is;  s = argmin over the set of <g_avg, s>
      theta <- theta + gamma*(s - theta);  open: gamma = 2/(t + 2), t from 0
      short: gamma = min(1, <g_avg, theta - s>/(curvature*|s - theta|^2));  constant: gamma
      """,
    source: "Frank, Wolfe, 1956; Jaggi, 2013",
    parameters: [
      .object("set", .constraint, "the set"), .choice("rule", ["open", "short", "constant"], "how gamma is found"),
      .number("curvature", 1, .above(0), "L of the short rule"),
      .number("gamma", 0.01, .between(0, 1, lowOpen: true, highOpen: false), "step of the constant rule"),
      .rate("momentum", 0, "share of the average gradient that is kept").fixed,
    ],
    slots: [Slot("average", "average of gradients")], requests: "own-step", needsFinite: true,
    validate: { (h) throws(Failure) in
      guard let held = h.held("set"), try !HeldSet(held).kernels.minimises else { return }
      throw Failure(
        Status.unsupported,
        "frank_wolfe: `set` must have a linear minimisation, as simplex and l1_ball have; \(held.method.name) has none")
    })

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let momentum: Double = h.momentum
    return momentum == 0 ? [] : method.slots
  }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("gap")] }
  static var mayFail: Bool { true }
  static var leavesPoint: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { 2 &* aligned(shape.count &* size) }

  let h: Hyper, c: StepContext
  init(_ h: Hyper, _ c: StepContext) { (self.h, self.c) = (h, c) }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    guard let held = h.held("set") else { throw Failure(Status.internal, "frank_wolfe has no set") }
    let set = try HeldSet(held), n = t.count, momentum: Double = h.momentum
    let s = t.workspace.bindMemory(to: T.self, capacity: n)
    let point = (t.workspace + aligned(n &* MemoryLayout<T>.stride)).bindMemory(to: T.self, capacity: n)
    if momentum != 0 {
      let g = t.slots[0]
      if c.t == 1 {
        g.update(from: t.v, count: n)
      } else {
        Flat.blend(momentum, g, 1 - momentum, t.v, into: g, n)
        t.v.update(from: g, count: n)
      }
    }
    s.initialize(from: t.v, count: n)
    try set.minimise(s, t.shape)
    point.initialize(from: t.w, count: n)
    if c.t == 1 { try set.project(point, t.shape) }
    let all = Whole(v: t.v, w: t.w, slots: [s, point], shape: t.shape, workspace: t.workspace)
    let sums = all.sums(Gap(), slots: 0..<2), gap = sums[0] - sums[1], square = sums[2]
    c.scalars[0] = gap
    var gamma: Double = h.gamma
    if h.is("rule", "open") { gamma = 2 / (Double(c.t) + 1) }
    if h.is("rule", "short") { gamma = square == 0 ? 0 : smaller(1, larger(0, gap) / (h.curvature * square)) }
    all.change(Step(gamma: gamma), slots: 0..<2)
  }

  /// ⟨ḡ, θ⟩, ⟨ḡ, s⟩ and |θ − s|².
  struct Gap: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      let corner = s[0], point = s[1], d = point - corner
      sums.add(0, x, times: point)
      sums.add(1, x, times: corner)
      sums.add(2, d, times: d)
    }
  }
  /// In double, so that the new point is in the set to one rounding.
  struct Step: ElementOperation {
    let gamma: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let corner = s[0].wide, point = s[1].wide
      let low = point.low + gamma * (corner.low - point.low)
      let high = L.width == 16 ? point.high + gamma * (corner.high - point.high) : low
      x = gamma == 1 ? s[0] : L(wide: low, high)
    }
  }
}

extension HeldSet {
  /// What lies there becomes a minimiser of its inner product with itself over the set.
  fileprivate func minimise<T: Real>(_ v: UnsafeMutablePointer<T>, _ shape: Shape) throws(Failure) {
    try runOnce(kernels.minimise(hyper), hyper, v, v, shape, t: 0)
    guard Flat.isFinite(UnsafePointer(v), shape.count) else {
      throw Failure(Status.unsupported, "frank_wolfe: `set` is unbounded in the direction of the gradient")
    }
  }
}
