import ThalwegCore

/// The simplex: w ≥ 0 with sum r; the whole tensor, or every line along an axis.
///
///     project = max(w − θ, 0) with θ such that the sum is r     argmin⟨g, u⟩ = r·e_i, i the lowest index of the least
///     g
///
/// Differs  θ comes from Michelot's pivoting, relative to the largest entry, and from a sort where that is slow; both
///          give the θ of the sorted formula. A point is inside, and stays bit for bit, when its sum is right to 1e-15
///          times its length (and the
///          rounding of float32).
/// Source   Held, Wolfe and Crowder, 1974; Duchi et al., 2008; Michelot, 1986; Condat, 2016.
struct Simplex: WholeConstraint {
  static let method = Method(
    "simplex", .constraint, "The simplex: w >= 0 with sum `radius`; the whole tensor, or every line along an axis.",
    rule:
      "project = max(w - theta, 0), theta such that the sum is radius;  argmin <g, u> = radius at the least g, "
      + "lowest index",
    source: "Held, Wolfe, Crowder, 1974; Duchi, Shalev-Shwartz, Singer, Chandra, 2008; Michelot, 1986",
    parameters: [
      .number("radius", 1, .above(0), "the sum"), .axis("the axis of the lines, or none for the whole tensor"),
    ])
  static var needsFinite: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try axisExists(h, shape, "simplex") }

  let radius: Double, axis: Int?
  init(_ h: Hyper) { (radius, axis) = (h.radius, h.has("axis") ? h.integer("axis") : nil) }

  private func lines(_ shape: Shape) -> Slices { axis.map { .along($0, shape) } ?? .whole(shape) }
  private func check<T: Real>(_ w: Whole<T>) throws(Failure) {
    guard Flat.isFinite(w.v, w.count) else { throw Failure(Status.nonfinite, "simplex: elements are NaN or infinite") }
  }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    try check(w)
    let lines = lines(w.shape)
    if lines.length == 0 { return }
    let tolerance = radius * (1e-15 * Double(lines.length) + (T.isDouble ? 0 : Double(T.ulpOfOne)))
    for s in 0..<lines.count {
      let p = w.v + lines.start(s), step = lines.inner
      let (sum, top, least) = step == 1 ? bounds(p, lines.length) : bounds(p, lines.length, step)
      if least >= 0, abs(sum - radius) <= tolerance { continue }
      // θ lies in [top − r, top): differences to the top are exact where it matters
      let bound = step == 1 ? lowerBound(p, lines.length, top) : -radius
      let theta = withUnsafeTemporaryAllocation(of: Double.self, capacity: lines.length) { active in
        var kept = 0
        for k in 0..<lines.length {
          let x = Double(p[k &* step]) - top
          active[kept] = x
          kept &+= isAbove(x, bound)
        }
        return simplexThresholdBelow(UnsafeMutableBufferPointer(rebasing: active[..<kept]), radius)
      }
      for k in 0..<lines.length {
        p[k &* step] = T(positivePart(Double(p[k &* step]) - top - theta))
      }
    }
  }

  /// Below θ, less the top, for neighbours in memory: the mean excess over r of any entries is such a bound, and so is
  /// −r. Those above the bound so far raise it, stretch by stretch, alone or with those before; soon even the largest
  /// entry of most stretches is below.
  private func lowerBound<T: Real>(_ p: UnsafePointer<T>, _ n: Int, _ top: Double) -> Double {
    typealias L = T.Vector
    let stretch = 64, shift = SIMD8<Double>(repeating: top)
    let zero = SIMD8<Double>(repeating: 0), one = SIMD8<Double>(repeating: 1)
    var bound = -radius, sum = 0.0, count = 0.0
    for first in stride(from: 0, through: n &- stretch, by: stretch) {
      if !(largest(p + first, stretch) - top > bound) { continue }
      let edge = SIMD8<Double>(repeating: bound)
      var more = zero, found = zero
      for k in stride(from: first, to: first &+ stretch, by: L.width) {
        let w = L.load(p + k).wide, low = w.low - shift
        more += zero.replacing(with: low, where: low .> edge)
        found += zero.replacing(with: one, where: low .> edge)
        if L.width == 16 {
          let high = w.high - shift
          more += zero.replacing(with: high, where: high .> edge)
          found += zero.replacing(with: one, where: high .> edge)
        }
      }
      let (s, c) = (more.sum(), found.sum())
      if c == 0 { continue }
      let alone = (s - radius) / c, together = (sum + s - radius) / (count + c)
      (sum, count) = alone > together ? (s, c) : (sum + s, count + c)
      bound = max(bound, max(alone, together))
    }
    return max(bound - 1e-9 * (radius + abs(bound)), -radius)  // less what rounding may have added
  }

  /// Sum, largest and least entry of a line.
  private func bounds<T: Real>(_ p: UnsafePointer<T>, _ n: Int, _ step: Int) -> (Double, Double, Double) {
    var (sum, top, least) = (0.0, -Double.infinity, Double.infinity)
    for k in 0..<n {
      let x = Double(p[k &* step])
      (sum, top, least) = (sum + x, max(top, x), min(least, x))
    }
    return (sum, top, least)
  }
  /// The same of neighbours in memory.
  private func bounds<T: Real>(_ p: UnsafePointer<T>, _ n: Int) -> (Double, Double, Double) {
    typealias L = T.Vector
    var sum = SIMD8<Double>(repeating: 0), top = SIMD8<Double>(repeating: -.infinity), least = -top, i = 0
    func take(_ x: SIMD8<Double>) {
      sum += x
      top.replace(with: x, where: x .> top)
      least.replace(with: x, where: x .< least)
    }
    while i &+ L.width <= n {
      let w = L.load(p + i).wide
      take(w.low)
      if L.width == 16 { take(w.high) }
      i &+= L.width
    }
    let rest = bounds(p + i, n &- i, 1)
    return (sum.sum() + rest.0, max(top.max(), rest.1), min(least.min(), rest.2))
  }
  /// Of n finite entries, a multiple of the width of a vector.
  private func largest<T: Real>(_ p: UnsafePointer<T>, _ n: Int) -> Double {
    typealias L = T.Vector
    var top = L.load(p)
    for i in stride(from: L.width, to: n, by: L.width) { top = L.max(top, L.load(p + i)) }
    let w = top.wide
    return L.width == 16 ? max(w.low.max(), w.high.max()) : w.low.max()
  }

  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    try check(w)
    let lines = lines(w.shape)
    if lines.length == 0 { return }
    for s in 0..<lines.count {
      let p = w.v + lines.start(s), step = lines.inner
      var least = 0
      for k in 0..<lines.length where p[k &* step] < p[least &* step] { least = k }
      for k in 0..<lines.length { p[k &* step] = k == least ? T(radius) : 0 }
    }
  }
}
