import ThalwegCore

/// The Euclidean ball ‖w − c‖ ≤ r; the whole tensor, or every line along an axis.
///
///     project = c + (w − c)·min(1, r/‖w − c‖)     argmin⟨g, u⟩ = c − r·g/‖g‖, c when g = 0
///
/// c is the origin, one number for all entries, or one for each: the rows of nested lists are read one after the other.
/// Errors   TW_ERROR_SHAPE where c does not have as many numbers as the tensor.
/// Differs  Keras' MaxNorm divides by ε + norm even inside the ball; here a point inside (to the last rounding) stays
///          bit for bit.
struct L2Ball: WholeConstraint {
  static let method = Method(
    "l2_ball", .constraint, "The Euclidean ball |w - center| <= radius; the whole tensor, or every line along an axis.",
    rule: "project = c + (w - c)*min(1, radius/|w - c|);  argmin <g, u> = c - radius*g/|g|, c when g = 0",
    source: "textbook",
    parameters: [
      .number("radius", 1, .atLeast(0), "the radius"),
      .list(
        "center", nil, "the centre c, a number for each entry or [one] for all; none and zero are the origin",
        optional: true,
        presets: [("zero", [])]),
      .axis("the axis of the lines, or none for the whole tensor"),
    ],
    validate: { (h) throws(Failure) in
      guard h.list("center").allSatisfy(\.isFinite) else {
        throw Failure(Status.range, "l2_ball: `center` must be finite")
      }
    })
  static var needsFinite: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try axisExists(h, shape, "l2_ball")
    try fits(h.list("center"), "center", shape, "l2_ball")
  }

  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { h.list("center").count > 1 ? nil : lineGrain(h, shape) }

  let radius: Double, axis: Int?, center: [Double]
  init(_ h: Hyper) { (radius, axis, center) = (h.radius, h.has("axis") ? h.integer("axis") : nil, h.list("center")) }

  private func lines(_ shape: Shape) -> Slices { axis.map { .along($0, shape) } ?? .whole(shape) }
  private func center<T: Real>(_ i: Int) -> T { T(center[center.count == 1 ? 0 : i]) }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let lines = lines(w.shape), reach = radius * (1 + 4 * Double(T.ulpOfOne))
    func factor(_ norm: Double) -> Double { norm > reach ? radius / norm : 1 }
    if center.isEmpty { return lines.scale(w.v, by: try lines.norms(w.v).map(factor)) }
    var away = (0..<w.count).map { w.v[$0] - center($0) }
    let factors = try away.withUnsafeMutableBufferPointer { (p) throws(Failure) in
      try p.baseAddress.map { (p) throws(Failure) in try lines.norms(p).map(factor) } ?? []
    }
    for (s, f) in factors.enumerated() where f != 1 {
      for k in 0..<lines.length {
        let i = lines.start(s) &+ k &* lines.inner
        w.v[i] = center(i) + (f == 0 ? 0 : T(f) * away[i])
      }
    }
  }
  static var minimises: Bool { true }
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    let lines = lines(w.shape)
    _ = try lines.setNorms(w.v) { _ in -radius }
    if !center.isEmpty { for i in 0..<w.count { w.v[i] += center(i) } }
  }
}
