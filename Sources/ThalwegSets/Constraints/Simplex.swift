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
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { lineGrain(h, shape) }

  let radius: Double, axis: Int?
  init(_ h: Hyper) { (radius, axis) = (h.radius, h.has("axis") ? h.integer("axis") : nil) }

  private func lines(_ shape: Shape) -> Slices { axis.map { .along($0, shape) } ?? .whole(shape) }
  private func check<T: Real>(_ w: Whole<T>) throws(Failure) {
    guard Flat.isFinite(w.v, w.count) else { throw Failure(Status.nonfinite, "simplex: elements are NaN or infinite") }
  }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let lines = lines(w.shape), tolerance = radius * slack(lines.length, T.self)
    if lines.count > 1 || lines.inner > 1 { try check(w) }  // else the sum of the one line says it
    for s in 0..<(lines.length == 0 ? 0 : lines.count) {
      let line = SimplexLine(w.v + lines.start(s), lines.length, lines.inner, magnitudes: false)
      let bounds = line.bounds
      if !bounds.sum.isFinite { try check(w) }
      if bounds.least < 0 || abs(bounds.sum - radius) > tolerance { line.project(radius, top: bounds.top) }
    }
  }

  static var minimises: Bool { true }
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

/// A line of finite numbers, or of their magnitudes, on its way to the simplex.
struct SimplexLine<T: Real> {
  private typealias L = T.Vector
  private let p: UnsafeMutablePointer<T>, length: Int, step: Int, magnitudes: Bool
  /// Entries that are looked at together: a multiple of the width of a vector.
  private var stretch: Int { 64 }
  /// As many entries are copied rather than counted.
  private static var few: Int { 4096 }

  init(_ p: UnsafeMutablePointer<T>, _ length: Int, _ step: Int, magnitudes: Bool) {
    (self.p, self.length, self.step, self.magnitudes) = (p, length, step, magnitudes)
  }

  @inline(__always) private func load(_ i: Int) -> L {
    fetchAhead(p + i)
    let x = L.load(p + i)
    return magnitudes ? x.magnitude : x
  }
  @inline(__always) private func entry(_ k: Int) -> Double {
    let x = Double(p[k &* step])
    return magnitudes ? x.magnitude : x
  }

  /// Numbers ← max(number − θ, 0) with the sum `radius` > 0, with their signs where magnitudes count; `top` is the
  /// largest.
  func project(_ radius: Double, top: Double) {
    // θ lies in [top − r, top): differences to the top are exact where it matters
    var bound = step == 1 ? lowerBound(radius, top) : -radius
    if step == 1, length > SimplexLine.few {
      // Where many entries stay (there are ties, say) they are counted where they lie, until they are few or settled.
      var before = 0
      for _ in 0..<32 {
        let (sum, count) = above(bound, top)
        if count <= max(length / 8, SimplexLine.few) { break }
        let mean = (sum - radius) / Double(count)
        if count == before { return subtract(top, mean) }  // as many are above their own mean as made it
        (before, bound) = (count, mean)
      }
    }
    let theta = withUnsafeTemporaryAllocation(of: Double.self, capacity: length) { active in
      var kept = 0
      func take(_ k: Int) {
        let x = entry(k) - top
        active[kept] = x
        kept &+= isAbove(x, bound)
      }
      var k = 0
      while step == 1, k &+ stretch <= length {
        if reaches(top + bound, k, stretch) { for i in k..<(k &+ stretch) { take(i) } }
        k &+= stretch
      }
      for i in k..<length { take(i) }
      return simplexThresholdBelow(UnsafeMutableBufferPointer(rebasing: active[..<kept]), radius)
    }
    subtract(top, theta)
  }

  /// Σ (number − top) of the numbers above top + bound, and how many they are; neighbours in memory.
  private func above(_ bound: Double, _ top: Double) -> (sum: Double, count: Int) {
    let whole = length / L.width &* L.width, (first, found) = above(bound, top, 0..<whole)
    var sum = first, count = Int(found)
    for i in whole..<length {
      let x = entry(i) - top
      if x > bound { (sum, count) = (sum + x, count &+ 1) }
    }
    return (sum, count)
  }
  /// The same of whole vectors.
  @inline(__always)
  private func above(_ bound: Double, _ top: Double, _ range: Swift.Range<Int>) -> (sum: Double, count: Double) {
    let shift = SIMD8<Double>(repeating: top), edge = SIMD8<Double>(repeating: bound)
    let zero = SIMD8<Double>(repeating: 0), one = SIMD8<Double>(repeating: 1)
    var more = zero, found = zero, k = range.lowerBound
    while k < range.upperBound {
      let w = load(k).wide, low = w.low - shift
      more += zero.replacing(with: low, where: low .> edge)
      found += zero.replacing(with: one, where: low .> edge)
      if L.width == 16 {
        let high = w.high - shift
        more += zero.replacing(with: high, where: high .> edge)
        found += zero.replacing(with: one, where: high .> edge)
      }
      k &+= L.width
    }
    return (more.sum(), found.sum())
  }

  /// Numbers ← max(number − top − θ, 0), in double.
  private func subtract(_ top: Double, _ theta: Double) {
    let zero = SIMD8<Double>(repeating: 0), a = SIMD8<Double>(repeating: top), b = SIMD8<Double>(repeating: theta)
    var i = 0
    while step == 1, i &+ L.width <= length {
      fetchAhead(p + i)
      let x = L.load(p + i), w = (magnitudes ? x.magnitude : x).wide
      let (low, high) = ((w.low - a) - b, (w.high - a) - b)
      let moved = L(
        wide: zero.replacing(with: low, where: low .> zero), zero.replacing(with: high, where: high .> zero))
      (magnitudes ? L.select(L.less(x, L(0)), -moved, moved) : moved).store(p + i)
      i &+= L.width
    }
    while i < length {
      let x = Double(p[i &* step]), moved = positivePart((magnitudes ? x.magnitude : x) - top - theta)
      p[i &* step] = T(magnitudes && x < 0 ? -moved : moved)
      i &+= 1
    }
  }

  /// Below θ, less the top, for neighbours in memory: the mean excess over r of any entries is such a bound, and so is
  /// −r. Those above the bound so far raise it, stretch by stretch, alone or with those before; soon even the largest
  /// entry of most stretches is below.
  private func lowerBound(_ radius: Double, _ top: Double) -> Double {
    var bound = -radius, sum = 0.0, count = 0.0
    for first in Swift.stride(from: 0, through: length &- stretch, by: stretch) {
      if !reaches(top + bound, first, stretch) { continue }
      let (s, c) = above(bound, top, first..<(first &+ stretch))
      if c == 0 { continue }
      let alone = (s - radius) / c, together = (sum + s - radius) / (count + c)
      (sum, count) = alone > together ? (s, c) : (sum + s, count + c)
      bound = max(bound, max(alone, together))
    }
    return max(bound - 1e-9 * (radius + abs(bound)), -radius)  // less what rounding may have added
  }

  /// Sum, largest and least.
  var bounds: (sum: Double, top: Double, least: Double) {
    var i = 0, (sum, top, least) = (0.0, -Double.infinity, Double.infinity)
    if step == 1 {
      var sums = SIMD8<Double>(repeating: 0), more = sums, tops = L(-.infinity), leasts = L(.infinity)
      while i &+ L.width <= length {
        let x = load(i), w = x.wide
        sums += w.low
        if L.width == 16 { more += w.high }
        tops = L.select(L.less(tops, x), x, tops)
        leasts = L.select(L.less(x, leasts), x, leasts)
        i &+= L.width
      }
      sum = (sums + more).sum()
      let (a, b) = (tops.wide, leasts.wide)
      (top, least) = (a.low.max(), b.low.min())
      if L.width == 16 { (top, least) = (max(top, a.high.max()), min(least, b.high.min())) }
    }
    while i < length {
      let x = entry(i)
      (sum, top, least) = (sum + x, max(top, x), min(least, x))
      i &+= 1
    }
    return (sum, top, least)
  }
  /// Whether one of n entries, a multiple of the width of a vector, is not clearly below an edge.
  @inline(__always) private func reaches(_ edge: Double, _ first: Int, _ n: Int) -> Bool {
    let below = L(Double(T(edge).nextDown.nextDown))
    var tops = load(first)
    for i in Swift.stride(from: first &+ L.width, to: first &+ n, by: L.width) {
      let x = load(i)
      tops = L.select(L.less(tops, x), x, tops)
    }
    return L.any(L.less(below, tops))
  }
}
