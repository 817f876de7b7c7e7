import ThalwegCore

/// The piecewise constant signal nearest to a given one, with a price for every jump: exactly, by dynamic programming
/// over the ends of segments.
///
///     minimise Σ (u − y)² + nu·#jumps
///
/// Of equal costs the longer last segment wins.
/// Source   Mumford, Shah, 1989; the recursion: Winkler, Liebscher, 2002.
struct Potts1D: Driver {
  static let method = Method.solver(
    "potts_1d", "The nearest piecewise constant signal, with a price for jumps.",
    rule: "minimise sum (u - y)^2 + nu #jumps", source: "Mumford, Shah, 1989; Winkler, Liebscher, 2002",
    parameters: [.number("nu", 0.1, .above(0), "price of a jump")], inputs: Segments.inputs, kept: Segments.kept)

  let nu: Double
  init(_ h: Hyper) { nu = h.nu }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    try Segments.solve(io, nu, alpha: .infinity)
    return .done(.converged)
  }
}

/// The piecewise smooth signal nearest to a given one, with a price for every jump: exactly, by the same recursion.
///
///     minimise Σ (u − y)² + alpha·Σ (u_{i+1} − u_i)² inside segments + nu·#jumps
///
/// Source   Mumford, Shah, 1989; Blake, Zisserman, 1987.
struct MumfordShah1D: Driver {
  static let method = Method.solver(
    "mumford_shah_1d", "The nearest piecewise smooth signal, with a price for jumps.",
    rule: "minimise sum (u - y)^2 + alpha sum (du)^2 inside segments + nu #jumps",
    source: "Mumford, Shah, 1989; Blake, Zisserman, 1987",
    parameters: [
      .number("alpha", 1, .above(0), "smoothness"), .number("nu", 0.1, .above(0), "price of a jump"),
    ], inputs: Segments.inputs, kept: Segments.kept)

  let nu: Double, alpha: Double
  init(_ h: Hyper) { (nu, alpha) = (h.nu, h.alpha) }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    try Segments.solve(io, nu, alpha: alpha)
    return .done(.converged)
  }
}

/// Signals cut into segments.
private enum Segments {
  static let inputs: [Input] = [
    .constant("y", "n", "the signal"), .result("u", "n", "the nearest one"), .result("value", "", "its cost"),
    .result("jumps", "", "jumps"),
  ]
  static let kept: [Input] = [
    .kept("best", "n", "least cost up to each element"), .kept("start", "n", "where its last segment begins"),
    .kept("weights", "n", "of a segment's recursion"), .kept("means", "n", "of a segment's recursion"),
  ]

  /// The cost of the elements left of a one u, as a function of u: weight·(u − mean)² + rest.
  private struct Cost {
    var weight = 0.0, mean = 0.0, rest = 0.0
    /// Goes on to the next element, with the price alpha of a slope (infinite: none may be), and its datum y.
    mutating func extend(_ y: Double, _ alpha: Double) {
      let carried = alpha == .infinity ? weight : weight * alpha / (weight + alpha)
      let sum = carried + 1, difference = y - mean
      rest += carried / sum * difference * difference
      mean += difference / sum
      weight = sum
    }
  }

  static func solve<T: Real>(_ io: DriverIO<T>, _ nu: Double, alpha: Double) throws(Failure) {
    let y = try io["y"], u = try io["u"], best = try io["best"], start = try io["start"], n = y.count
    guard y.isFinite else { throw Failure(Status.range, "`y` must be finite") }
    try Memory.ask(8 * n)
    var least = [Double](repeating: 0, count: n)
    for right in 0..<n {
      var cost = Cost(), value = Double.infinity, from = right
      // backwards: a segment seen from its end has the same cost
      for left in stride(from: right, through: 0, by: -1) {
        cost.extend(Double(y.p[left]), alpha)
        if cost.rest > value { break }  // it never falls
        let all = cost.rest + (left > 0 ? least[left - 1] + nu : 0)
        if all <= value { (value, from) = (all, left) }
      }
      least[right] = value
      (best.p[right], start.p[right]) = (T(value), T(from))
    }
    io.value = least[n - 1]
    var right = n - 1
    while right >= 0 {
      let left = min(max(Int(start.p[right]), 0), right)
      fill(y, u, left, right, alpha, try io["weights"], try io["means"])
      right = left - 1
      if right >= 0 { io.jumps += 1 }
    }
  }

  /// The best u on a segment: forwards for the costs, backwards for the values.
  private static func fill<T: Real>(
    _ y: Vector<T>, _ u: Vector<T>, _ left: Int, _ right: Int, _ alpha: Double, _ weights: Vector<T>, _ means: Vector<T>
  ) {
    var cost = Cost()
    for i in left...right {
      cost.extend(Double(y.p[i]), alpha)
      (weights.p[i], means.p[i]) = (T(cost.weight), T(cost.mean))
    }
    u.p[right] = T(cost.mean)
    for i in stride(from: right - 1, through: left, by: -1) {
      let w = Double(weights.p[i]), next = Double(u.p[i + 1])
      u.p[i] = alpha == .infinity ? T(next) : T((w * Double(means.p[i]) + alpha * next) / (w + alpha))
    }
  }
}
