import Glibc
import ThalwegCore

/// Mirror descent: the gradient step is taken in the mirror of the parameters, whose map fits the set they live in.
///
///     simplex   θ ∝ θ·exp(−lr·g) along an axis, with sum `radius`, in logarithms
///     orthant   θ ← θ·exp(−lr·g)
///     pnorm     z = ∇(½|θ|_p²) = sign(θ)|θ|^(p−1)/|θ|_p^(p−2);   z ← z − lr·g;   θ = the same of z, with q = p/(p − 1)
///     l2        θ ← θ − lr·g
///
/// Exact zeros stay zero on the simplex and in the orthant.
///
/// State    none.
/// Differs  on the simplex and in the orthant an entry below zero counts as zero, and a slice of the simplex without a
///          positive entry becomes uniform; the norm of pnorm is that of the whole tensor. A step with lr = 0 leaves
///          all as it is.
/// Source   Nemirovski, Yudin, 1983; Beck, Teboulle, 2003; Bubeck, 2015, arXiv:1405.4980.
struct MirrorDescent: WholeRule {
  static let method = Method(
    "mirror_descent", .optimizer, "Mirror descent on the simplex, the orthant, in a p-norm, or as it is.",
    rule: """
      simplex: theta ~ theta*exp(-lr*g) along the axis, with sum radius;  orthant: theta <- theta*exp(-lr*g)
      pnorm: z = sign(theta)*|theta|^(p-1)/|theta|_p^(p-2), z <- z - lr*g, back with q = p/(p-1);  l2: theta - lr*g
      """,
    source: "Nemirovski, Yudin, 1983; Beck, Teboulle, 2003; Bubeck, 2015, arXiv:1405.4980",
    parameters: [
      .lr(0.1), .choice("geometry", ["simplex", "orthant", "pnorm", "l2"], "the mirror map"),
      .number("p", 1.5, .between(1, 2, lowOpen: true, highOpen: false), "exponent of pnorm"),
      .number("radius", 1, .above(0), "sum of a slice of the simplex"),
      .integer("axis", -1, .within(-64, 63), "the axis of the slices", live: false),
    ],
    requests: "own-step")

  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    if shape.ndim > 0, h.is("geometry", "simplex") { try axisExists(h, shape, "mirror_descent") }
  }

  /// A number in double for every element: of the groups at work on the simplex, of the tensor in a p-norm.
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    let width = 64 / size, groups = SimplexGroups(shape, h.integer("axis"), width)
    return 8 &* max(groups.parts.count &* groups.room, (shape.count &+ width &- 1) / width &* width)
  }

  static var leavesPoint: Bool { true }

  let lr, p, radius: Double, axis: Int, h: Hyper
  init(_ h: Hyper, _ c: StepContext) {
    (lr, p, radius, axis, self.h) = (c.lr, h.p, h.radius, h.integer("axis"), h)
  }

  func apply<T: Real>(_ t: Whole<T>) {
    if lr == 0 { return t.v.update(from: t.w, count: t.count) }
    if h.is("geometry", "l2") { return t.change(Plain(lr: lr)) }
    if h.is("geometry", "simplex") { return simplex(t) }
    if h.is("geometry", "pnorm") { return pnorm(t) }
    t.change(Orthant(lr: lr))
  }

  struct Plain: ElementOperation {
    let lr: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = g - lr * x }
  }
  struct Orthant: ElementOperation {
    let lr: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let v = x.wide, w = g.wide
      let low = raised(w.low, by: -lr * v.low)
      x = L(wide: low, L.width == 16 ? raised(w.high, by: -lr * v.high) : low)
    }
  }

  private func simplex<T: Real>(_ t: Whole<T>) {
    let groups = SimplexGroups(t.shape, axis, T.Vector.width), room = t.workspace.assumingMemoryBound(to: Double.self)
    groups.parts.forEach { part, list in
      for k in list {
        let (first, lanes) = groups.place(k)
        SimplexGroup(
          g: t.v + first, x: t.w + first, terms: room + part &* groups.room, count: groups.vectors, step: groups.step,
          length: groups.lines.length, lanes: lanes, together: groups.together, lr: lr, radius: radius
        ).move()
      }
    }
  }

  private func pnorm<T: Real>(_ t: Whole<T>) {
    let m = Mirrored(t)
    m.take(t.w, times: 1, factor: 0)
    m.take(t.v, times: -lr, factor: m.map(p))
    m.leave(m.map(p / (p - 1)))
  }
}

/// w·exp(a), and 0 where w is not above 0. In double: the factor alone may be beyond the largest float.
@inline(__always) private func raised(_ w: SIMD8<Double>, by a: SIMD8<Double>) -> SIMD8<Double> {
  let zero = SIMD8<Double>(repeating: 0)
  return (w * SIMD8<Double>.exp(a)).replacing(with: zero, where: w .<= zero)
}
/// The lines of a tensor in groups: where they run through memory each by itself, else as many as a vector has lanes.
private struct SimplexGroups {
  let lines: Slices, width: Int
  let parts: Parts
  var together: Bool { lines.inner == 1 }
  /// Groups of the lines that lie side by side.
  private var strips: Int { (lines.inner &+ width &- 1) / width }
  /// Vectors of a group, and how far apart they lie.
  var vectors: Int { together ? (lines.length &+ width &- 1) / width : lines.length }
  var step: Int { together ? width : lines.inner }
  /// Numbers of a group.
  var room: Int { vectors &* width }

  init(_ shape: Shape, _ axis: Int, _ width: Int) {
    lines = shape.ndim == 0 ? .whole(shape) : .along(axis, shape)
    self.width = width
    let strips = (lines.inner &+ width &- 1) / width
    parts = Parts(lines.outer &* strips, of: lines.length &* min(lines.inner, width))
  }
  /// Where group k begins, and how many lines it has.
  func place(_ k: Int) -> (first: Int, lanes: Int) {
    let strip = k % strips &* width
    return (k / strips &* lines.length &* lines.inner &+ strip, min(width, lines.inner &- strip))
  }
}

/// A step of some lines on the simplex. Together the lanes are one line; else every one is a line of its own.
private struct SimplexGroup<T: Real> {
  typealias L = T.Vector
  typealias Pair = (low: SIMD8<Double>, high: SIMD8<Double>)
  let g, x: UnsafeMutablePointer<T>, terms: UnsafeMutablePointer<Double>
  let count, step, length, lanes: Int, together: Bool
  let lr, radius: Double

  @inline(__always) private func entries(_ k: Int) -> Int {
    together ? min(L.width, length &- k &* L.width) : lanes
  }

  func move() {
    var top = largestExponents(), sums = add(less: top)
    // Sums as far from 1 as this lose small terms: the next ones are relative to them.
    if isFar(sums.low) || L.width == 16 && isFar(sums.high) {
      top = (top.low + shift(sums.low), L.width == 16 ? top.high + shift(sums.high) : top.high)
      sums = add(less: top)
    }
    let low = share(top.low, sums.low), high = share(top.high, sums.high)
    for k in 0..<count {
      let n = entries(k), at = k &* step, p = UnsafePointer(terms + k &* L.width)
      let a = low.of(SIMD8<Double>.load(p))
      let new = L(wide: a, L.width == 16 ? high.of(SIMD8<Double>.load(p + 8)) : a)
      new.store(g + at, first: n)
    }
  }

  /// The largest −lr·g of the positive entries of every line.
  private func largestExponents() -> Pair {
    var top = Pair(SIMD8(repeating: -.infinity), SIMD8(repeating: -.infinity))
    for k in 0..<count {
      let n = entries(k), at = k &* step
      let w = L.load(x + at, first: n).wide, v = L.load(g + at, first: n).wide
      top.low = .max(top.low, exponent(w.low, v.low))
      if L.width == 16 { top.high = .max(top.high, exponent(w.high, v.high)) }
    }
    return together ? both(SIMD8<Double>.max(top.low, top.high).largest) : top
  }
  /// An entry that is not finite makes its line NaN.
  @inline(__always) private func exponent(_ w: SIMD8<Double>, _ v: SIMD8<Double>) -> SIMD8<Double> {
    (-lr * v + (w - w)).replacing(with: SIMD8(repeating: -.infinity), where: w .<= SIMD8(repeating: 0))
  }
  /// Terms θ·exp(−lr·g − top), and their sums.
  private func add(less top: Pair) -> Pair {
    var sums = Pair(SIMD8(repeating: 0), SIMD8(repeating: 0))
    for k in 0..<count {
      let n = entries(k), at = k &* step
      let w = L.load(x + at, first: n).wide, v = L.load(g + at, first: n).wide
      let low = raised(w.low, by: -lr * v.low - top.low)
      low.store(terms + k &* L.width)
      sums.low += low
      if L.width == 16 {
        let high = raised(w.high, by: -lr * v.high - top.high)
        high.store(terms + (k &* L.width &+ 8))
        sums.high += high
      }
    }
    return together ? both((sums.low + sums.high).sum()) : sums
  }
  private func both(_ x: Double) -> Pair { (SIMD8(repeating: x), SIMD8(repeating: x)) }

  private func isFar(_ sum: SIMD8<Double>) -> Bool {
    (0..<8).contains { sum[$0] > 0 && sum[$0] < 1e-30 || sum[$0] > 1e30 }
  }
  /// Not all of the way where the sum is next to nothing: terms stay below the largest double.
  private func shift(_ sum: SIMD8<Double>) -> SIMD8<Double> {
    SIMD8<Double>.log(sum).clamped(SIMD8(repeating: -700), SIMD8(repeating: 700))
  }

  /// What makes entries of terms: radius/sum, or the uniform line where no entry is positive.
  private struct Share {
    let inverse, uniform: SIMD8<Double>, radius: Double, isUniform: SIMDMask<SIMD8<Int64>>
    @inline(__always) func of(_ term: SIMD8<Double>) -> SIMD8<Double> {
      (radius * (term * inverse)).replacing(with: uniform, where: isUniform)
    }
  }
  private func share(_ top: SIMD8<Double>, _ sum: SIMD8<Double>) -> Share {
    Share(
      inverse: 1 / sum, uniform: SIMD8(repeating: radius / Double(length)), radius: radius,
      isUniform: top .== SIMD8(repeating: -.infinity))
  }
}

/// The tensor of a p-norm in its mirror: numbers in double, whole vectors of them.
private struct Mirrored<T: Real> {
  typealias L = T.Vector
  private let t: Whole<T>, z: Whole<Double>, vectors: Parts

  init(_ t: Whole<T>) {
    self.t = t
    let p = t.workspace.assumingMemoryBound(to: Double.self)
    z = Whole(v: p, w: p, slots: [p], shape: t.shape, workspace: t.workspace)
    vectors = Parts((t.count &+ L.width &- 1) / L.width, of: L.width)
  }

  /// z ← factor·z + rate·x; a factor of 0 leaves nothing of what was there.
  func take(_ x: UnsafeMutablePointer<T>, times rate: Double, factor: Double) {
    vectors.forEach { _, list in
      for k in list {
        let i = k &* L.width, new = L.load(x + i, first: t.count &- i).wide
        place(i, new.low, rate, factor)
        if L.width == 16 { place(i &+ 8, new.high, rate, factor) }
      }
    }
  }
  @inline(__always) private func place(_ i: Int, _ x: SIMD8<Double>, _ rate: Double, _ factor: Double) {
    let new = rate * x
    (factor == 0 ? new : factor * SIMD8<Double>.load(z.v + i) + new).store(z.v + i)
  }
  /// What factor·z is in the storage's type.
  func leave(_ factor: Double) {
    vectors.forEach { _, list in
      for k in list {
        let i = k &* L.width, n = t.count &- i, low = factor * SIMD8<Double>.load(z.v + i)
        let new = L(wide: low, L.width == 16 ? factor * SIMD8<Double>.load(z.v + (i &+ 8)) : low)
        new.store(t.v + i, first: n)
      }
    }
  }

  /// z ← sign(z)·(|z|/top)^(p−1), top its largest magnitude; returned is top/|z/top|_p^(p−2), by which that is short of
  /// the mirror.
  func map(_ p: Double) -> Double {
    let top = z.sums(LargestValue()).top.largest
    if top == 0 { return 1 }
    let sum = z.sums(Powers(top: top, power: p - 1), slots: 0..<1).first
    return top / pow(sum, (p - 2) / p)
  }
  /// Sum 0 is that of |z/top|^p.
  private struct Powers: ElementSum {
    let top, power: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      let a = x.magnitude / top
      let b = power == 0.5 ? a.squareRoot() : power == 1 ? a : power == 2 ? a * a : L.pow(a, power)
      s[0] = x.sign * b
      sums.add(0, a, times: b)
    }
  }
}
