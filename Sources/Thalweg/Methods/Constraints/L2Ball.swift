/// The Euclidean ball ‖w‖ ≤ r around the origin; the whole tensor, or every line along an axis.
///
///     project = w·min(1, r/‖w‖)     argmin⟨g, u⟩ = −r·g/‖g‖, 0 when g = 0
///
/// Differs  Keras' MaxNorm divides by ε + norm even inside the ball; here a point inside (to the last rounding) stays bit for bit.
struct L2Ball: WholeConstraint {
  static let method = Method(
    "l2_ball", .constraint, "The Euclidean ball |w| <= radius; the whole tensor, or every line along an axis.",
    rule: "project = w*min(1, radius/|w|);  argmin <g, u> = -radius*g/|g|, 0 when g = 0", source: "textbook",
    parameters: [
      .number("radius", 1, .atLeast(0), "the radius"), center, .axis("the axis of the lines, or none for the whole tensor"),
    ])
  private static let center: Parameter = {
    var p = Parameter.choice("center", ["zero"], "the centre: none and zero both mean the origin", live: false)
    (p.standard, p.optional) = (Value.none, true)
    return p
  }()
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try axisExists(h, shape, "l2_ball") }

  let radius: Double, axis: Int?
  init(_ h: Hyper) { (radius, axis) = (h.radius, h.has("axis") ? h.integer("axis") : nil) }

  private func lines(_ shape: Shape) -> Slices { axis.map { .along($0, shape) } ?? .whole(shape) }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let lines = lines(w.shape), reach = radius * (1 + 4 * Double(T.ulpOfOne))
    lines.scale(w.v, by: try lines.norms(w.v).map { $0 > reach ? radius / $0 : 1 })
  }
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    let lines = lines(w.shape)
    lines.scale(w.v, by: try lines.norms(w.v).map { $0 > 0 ? -radius / $0 : 1 })
  }
}
