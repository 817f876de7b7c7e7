import ThalwegCore

/// Curl descent: some units of a layer learn against the gradient.
///
///     s = −1 for ⌊fraction·n + ½⌋ of the n units, drawn once, or for the `units` given; +1 for the others
///     g ← g·s along the axis;  1: all synapses that leave a unit, the columns of (out, in, ...);  0: those that reach
///     it, the rows
///
/// State    s, one number a unit.
/// Errors   TW_ERROR_SHAPE when a tensor has no unit of a given number.
/// Differs  nothing from the paper, whose choice is at random. Drawn are the units with the largest of n normal
///          numbers. Tensors of rank below 2 keep their gradient; `route` says which layers. The fixed points are those
///          of gradient descent, their stability is not.
/// Source   Ninou, Kadmon and Cayco-Gajic, 2025, arXiv:2510.02765.
struct CurlDescent: WholeRule {
  static let method = Method(
    "curl_descent", .transform, "Curl descent: some units of a layer learn against the gradient.",
    rule: """
      s = -1 for floor(fraction*n + 1/2) of the n units, drawn once, or for the given units;  +1 for the others
      g <- g*s along the axis;  tensors of rank below 2 keep their gradient
      """,
    source: "Ninou, Kadmon, Cayco-Gajic, 2025, arXiv:2510.02765",
    parameters: [
      .integer(
        "axis", 1, .within(0, 1), "1: synapses that leave a unit (columns of (out, in)); 0: those that reach it (rows)",
        live: false),
      .number("fraction", 0.1, .within(0, 1), "share of the units that are flipped").fixed,
      .integer("seed", 0, .atLeast(0), "of the draw", live: false),
      .list("units", nil, "the units to flip, counted from 0, instead of a draw", optional: true),
    ],
    slots: [Slot("sign", "the sign s of every unit")],
    validate: { (h) throws(Failure) in
      let units = h.list("units")
      guard units.allSatisfy({ $0 >= 0 && $0 < 9e15 && $0 == $0.rounded() }) else {
        throw Failure(
          Status.range,
          "curl_descent: `units` must be whole numbers from 0 on, got "
            + "[\(units.map { text($0) }.joined(separator: ", "))]"
        )
      }
      if h.fraction == 1, !h.given("units") { Log.warn("curl_descent: with `fraction` 1 all units of a layer ascend") }
    })

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    guard shape.ndim >= 2, shape.count > 0 else { return [] }
    var sign = method.slots[0]
    sign.count = shape.dimensions[h.integer("axis")]
    return [sign]
  }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    guard shape.ndim >= 2 else { return }
    let axis = h.integer("axis"), n = shape.dimensions[axis]
    if let u = h.list("units").first(where: { $0 >= Double(n) }) {
      throw Failure(
        Status.shape, "curl_descent: a tensor of shape \(shape.dimensions) has no unit \(text(u)) along axis \(axis)")
    }
  }

  let axis: Int
  let fraction: Double
  let units: [Double]?
  let key: UInt64

  init(_ h: Hyper, _ c: StepContext) {
    (axis, fraction) = (h.integer("axis"), h.fraction)
    units = h.given("units") ? h.list("units") : nil
    // of `seed` alone, and not of the step: always the same units
    key = Random.key(
      seed: UInt64(max(0, h.integer("seed"))), stream: c.stream, step: 0, tensor: UInt32(truncatingIfNeeded: c.tensor))
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let d = t.shape.dimensions
    guard d.count >= 2, t.count > 0 else { return }
    let n = d[axis], length = d.dropFirst(axis + 1).reduce(1, *), s = t.slots[0]
    if s[0] == 0 { choose(s, n) }
    if length == 1 {
      // the units lie side by side
      for row in stride(from: t.v, to: t.v + t.count, by: n) {
        for i in stride(from: 0, to: n, by: T.Vector.width) {
          let g = T.Vector.load(row + i, first: n - i), unit = T.Vector.load(s + i, first: n - i)
          T.Vector.select(T.Vector.less(unit, T.Vector(0)), -g, g).store(row + i, first: n - i)
        }
      }
      return
    }
    for block in stride(from: t.v, to: t.v + t.count, by: n * length) {
      for unit in 0..<n where s[unit] < 0 {
        let v = block + unit * length
        Flat.scale(v, by: -1, into: v, length)
      }
    }
  }

  private func choose<T: Real>(_ s: UnsafeMutablePointer<T>, _ n: Int) {
    for i in 0..<n { s[i] = 1 }
    if let units {
      for u in units where u < Double(n) { s[Int(u)] = -1 }
      return
    }
    let score = (0..<n).map { Random.normal(key, $0) }
    let order = score.indices.sorted { score[$0] > score[$1] || (score[$0] == score[$1] && $0 < $1) }
    for u in order.prefix(Int(fraction * Double(n) + 0.5)) { s[u] = -1 }
  }
}
