import ThalwegCore

/// The lines that `axis` names, or the whole tensor as one.
struct Lines: Sendable {
  let axis: Int?
  init(_ h: Hyper) { axis = h.has("axis") ? h.integer("axis") : nil }
  func slices(_ shape: Shape) -> Slices { axis.map { .along($0, shape) } ?? .whole(shape) }

  /// body(line): its entries in double, in and out.
  func each<T: Real>(_ x: UnsafeMutablePointer<T>, _ shape: Shape, _ body: (inout [Double]) -> Bool) {
    let lines = slices(shape)
    if lines.length == 0 { return }
    var line = [Double](unsafeUninitializedCapacity: lines.length) { $1 = lines.length }
    for s in 0..<lines.count {
      let p = x + lines.start(s)
      line.withUnsafeMutableBufferPointer { line in
        if lines.inner == 1 {
          for k in line.indices { line[k] = Double(p[k]) }
        } else {
          for k in line.indices { line[k] = Double(p[k &* lines.inner]) }
        }
      }
      // false: the line stays bit for bit
      if body(&line) { for k in line.indices { p[k &* lines.inner] = T(line[k]) } }
    }
  }
}

/// A sum within rounding of its bound counts as right: a relative 1e-15 an entry, and the rounding of float32.
func slack<T: Real>(_ count: Int, _: T.Type) -> Double { 1e-15 * Double(count) + (T.isDouble ? 0 : Double(T.ulpOfOne)) }

/// The L1 ball Σ|w| ≤ r; the whole tensor, or every line along an axis.
///
///     project = sign(w)·P(|w|) outside, P the projection on the simplex of sum r
///     argmin⟨g, u⟩ = −r·sign(g_i)·e_i, i the first largest |g|
///
/// Source   Duchi, Shalev-Shwartz, Singer and Chandra, 2008.
struct L1Ball: WholeConstraint {
  static let method = Method(
    "l1_ball", .constraint, "The L1 ball sum|w| <= radius; the whole tensor, or every line along an axis.",
    rule: """
      project = sign(w)*max(|w| - theta, 0) outside, theta such that the sum of magnitudes is radius
      argmin <g, u> = -radius*sign(g_i) at the first largest |g_i|
      """,
    source: "Duchi, Shalev-Shwartz, Singer, Chandra, 2008",
    parameters: [
      .number("radius", 1, .atLeast(0), "the radius"), .axis("the axis of the lines, or none for the whole tensor"),
    ])
  static var needsFinite: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try axisExists(h, shape, "l1_ball") }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { lineGrain(h, shape) }

  let radius: Double, lines: Lines
  init(_ h: Hyper) { (radius, lines) = (h.radius, Lines(h)) }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, "l1_ball")
    let lines = lines.slices(w.shape), reach = radius * (1 + slack(lines.length, T.self))
    for s in 0..<(lines.length == 0 ? 0 : lines.count) {
      let p = w.v + lines.start(s)
      let line = SimplexLine(p, lines.length, lines.inner, magnitudes: true), bounds = line.bounds
      if bounds.sum <= reach { continue }
      if radius > 0 {
        line.project(radius, top: bounds.top)
      } else {
        for k in 0..<lines.length { p[k &* lines.inner] = 0 }
      }
    }
  }
  static var minimises: Bool { true }
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, "l1_ball")
    lines.each(w.v, w.shape) { g in
      let top = g.indices.reduce(0) { abs(g[$1]) > abs(g[$0]) ? $1 : $0 }
      let value = g[top] == 0 ? 0 : -radius * signOf(g[top])
      for i in g.indices { g[i] = i == top ? value : 0 }
      return true
    }
  }
}

/// The capped simplex: 0 ≤ w ≤ cap with a given sum; the whole tensor, or every line along an axis.
///
///     project = clip(w − θ, 0, cap), θ such that the sum is `total`
///     argmin⟨g, u⟩: cap at the least g until the total is spent, the lower index first on ties
///
/// θ lies between two of the numbers w_i − cap and w_i, where the sum bends, which are found by selection; there it is
/// solved for.
/// Errors   TW_ERROR_SHAPE where a line is too short: total > length·cap.
/// Source   Wang and Lu, 2015, arXiv:1503.01002.
struct CappedSimplex: WholeConstraint {
  static let method = Method(
    "capped_simplex", .constraint,
    "The capped simplex 0 <= w <= cap with sum `total`; the whole tensor, or every line along an axis.",
    rule: """
      project = min(max(w - theta, 0), cap), theta such that the sum is total
      argmin <g, u>: cap at the least g until the total is spent, the lower index first
      """,
    source: "Wang, Lu, 2015, arXiv:1503.01002",
    parameters: [
      .number("total", 1, .atLeast(0), "the sum"), .number("cap", 1, .above(0), "largest entry"),
      .axis("the axis of the lines, or none for the whole tensor"),
    ])
  static var needsFinite: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try axisExists(h, shape, "capped_simplex")
    let n = Lines(h).slices(shape).length, total: Double = h.total, cap: Double = h.cap
    // (a total that the product falls short of by rounding alone is all of it)
    guard n == 0 || total * (1 - 4 * Double.ulpOfOne) <= Double(n) * cap else {
      throw Failure(
        Status.shape, "capped_simplex: \(n) entries of at most \(text(cap)) cannot have the sum \(text(total))")
    }
  }

  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { lineGrain(h, shape) }

  let total, cap: Double, lines: Lines
  init(_ h: Hyper) { (total, cap, lines) = (h.total, h.cap, Lines(h)) }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, "capped_simplex")
    lines.each(w.v, w.shape) { line in
      line.withUnsafeMutableBufferPointer { x in
        let cap = cap
        if total >= Double(x.count) * cap {
          let changes = x.contains { $0 != cap }
          for i in x.indices { x[i] = cap }
          return changes
        }
        if let sum = sumInside(UnsafeBufferPointer(x)), abs(sum - total) <= total * slack(x.count, T.self) {
          return false
        }
        var theta = shift(UnsafeBufferPointer(x), total)
        var off = spent(UnsafeBufferPointer(x), theta) - total
        if abs(off) > 1e-9 * total {
          // numbers so large that the sum is lost in them: again, from the one next above theta
          let sorted = x.sorted()
          var low = 0, high = sorted.count - 1
          while low < high {
            let middle = (low + high) / 2
            if spent(UnsafeBufferPointer(x), sorted[middle]) > total { low = middle + 1 } else { high = middle }
          }
          for i in x.indices { x[i] -= sorted[high] }
          theta = shift(UnsafeBufferPointer(x), total)
          off = spent(UnsafeBufferPointer(x), theta) - total
        }
        // once more at the size of the result: theta is only as exact as the largest numbers. An entry at a bound
        // moves too, where it is there by a hair.
        let shift = SIMD8<Double>(repeating: theta), zero = SIMD8<Double>(repeating: 0), one = zero + 1,
          most = zero + cap
        @inline(__always) func isFree(_ d: SIMD8<Double>) -> SIMDMask<SIMD8<Int64>> {
          (off < 0 ? d .>= zero : d .> zero) .& (off > 0 ? d .<= most : d .< most)
        }
        var free = zero
        eights(x, changes: false) { free += zero.replacing(with: one, where: isFree($0 - shift) .& $1) }
        let move = SIMD8<Double>(repeating: off / free.sum())
        eights(x) { a, _ in
          let d = a - shift
          a = d.replacing(with: d - move, where: isFree(d)).clamped(zero, most)
        }
        return true
      }
    }
  }

  /// body(eight numbers, which of them there are), over all of x.
  @inline(__always)
  private func eights(
    _ x: UnsafeMutableBufferPointer<Double>, changes: Bool = true,
    _ body: (inout SIMD8<Double>, SIMDMask<SIMD8<Int64>>) -> Void
  ) {
    guard let p = x.baseAddress else { return }
    let all = SIMDMask<SIMD8<Int64>>(repeating: true), whole = x.count & ~7, left = x.count - whole
    for i in Swift.stride(from: 0, to: whole, by: 8) {
      var a = SIMD8<Double>.load(p + i)
      body(&a, all)
      if changes { a.store(p + i) }
    }
    guard left > 0 else { return }
    var a = SIMD8<Double>.load(p + whole, first: left)
    body(&a, SIMD8<Int64>(0, 1, 2, 3, 4, 5, 6, 7) .< SIMD8(repeating: Int64(left)))
    if changes { a.store(p + whole, first: left) }
  }

  /// The sum, nil where an entry is below 0 or above the cap.
  private func sumInside(_ x: UnsafeBufferPointer<Double>) -> Double? {
    guard let p = x.baseAddress else { return 0 }
    var sums = SIMD8<Double>(repeating: 0), least = sums, most = sums, i = 0
    while i < x.count {
      let a = i &+ 8 <= x.count ? SIMD8<Double>.load(p + i) : .load(p + i, first: x.count &- i)
      sums += a
      least = pointwiseMin(least, a)
      most = pointwiseMax(most, a)
      i &+= 8
    }
    return least.min() >= 0 && most.max() <= cap ? sums.sum() : nil
  }

  /// Σ min(max(x − θ, 0), cap).
  private func spent(_ x: UnsafeBufferPointer<Double>, _ theta: Double) -> Double {
    let zero = SIMD8<Double>(repeating: 0), most = SIMD8<Double>(repeating: cap)
    let edge = SIMD8<Double>(repeating: theta)
    var sums = zero, i = 0, rest = 0.0
    guard let p = x.baseAddress else { return 0 }
    while i &+ 8 <= x.count {
      sums += (SIMD8<Double>.load(p + i) - edge).clamped(zero, most)
      i &+= 8
    }
    while i < x.count {
      rest += min(max(p[i] - theta, 0), cap)
      i &+= 1
    }
    return sums.sum() + rest
  }

  /// How many entries lie above `low`, those apart that are at the cap for every θ up to `high`.
  private func counted(_ x: UnsafeBufferPointer<Double>, _ low: Double, _ high: Double) -> (full: Double, open: Double)
  {
    guard let p = x.baseAddress else { return (0, 0) }
    let zero = SIMD8<Double>(repeating: 0), one = zero + 1
    let bottom = zero + low, top = zero + high, cap = zero + self.cap
    var above = zero, full = zero, i = 0
    while i &+ 8 <= x.count {
      let a = SIMD8<Double>.load(p + i), isIn = a .> bottom
      above += zero.replacing(with: one, where: isIn)
      full += zero.replacing(with: one, where: isIn .& (a - cap .>= top))
      i &+= 8
    }
    var (rest, capped) = (above.sum(), full.sum())
    while i < x.count {
      rest += p[i] > low ? 1 : 0
      capped += p[i] > low && p[i] - self.cap >= high ? 1 : 0
      i &+= 1
    }
    return (capped, rest - capped)
  }

  /// The θ of the projection to the sum `total`. The sum falls as θ rises, and bends at the numbers x_i and x_i − cap:
  /// the interval that holds θ is cut at one of them, drawn at random, and entries that do not bend within it are only
  /// counted: linear time, on the average of the draws. Of many entries a few, drawn at random, tell an interval first.
  private func shift(_ x: UnsafeBufferPointer<Double>, _ total: Double) -> Double {
    var low = -Double.infinity, high = Double.infinity  // too large a sum, too small a sum
    var capped = 0.0, free = 0.0, freeSum = 0.0, base = 0.0  // of those that are free within, from the first of them
    var seed: UInt64 = 0x9e37_79b9_7f4a_7c15
    func draw(_ n: Int) -> Int {
      seed = seed &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Int((seed >> 33) % UInt64(max(1, n)))
    }
    if x.count >= 1 << 16 {
      let few = (0..<2048).map { _ in x[draw(x.count)] }, share = Double(few.count) / Double(x.count)
      // a term lies in [0, cap], so that the variance of a sum of them is at most cap times their mean
      let margin = 5 * (share * total * cap).squareRoot()
      few.withUnsafeBufferPointer { few in
        func look(_ sum: Double) {
          if sum <= 0 || sum >= Double(few.count) * cap { return }
          let cut = shift(few, sum)
          if !(cut > low && cut < high) { return }
          if spent(x, cut) >= total { low = cut } else { high = cut }
        }
        look(share * total + margin)
        look(share * total - margin)
      }
    }
    // the entries that may bend within; without branches, for half of the entries may be either
    let most = counted(x, low, high)
    capped = most.full
    var open = [Double](unsafeUninitializedCapacity: Int(most.open) &+ 1) { room, count in
      for a in x where count < Int(most.open) {
        room[count] = a
        count &+= isAbove(a, low) & isAbove(high, a - cap)
      }
    }
    while true {
      var kept = 0
      for k in open.indices {
        let a = open[k]
        if a <= low { continue }
        if a - cap >= high {
          capped += 1
        } else if a - cap <= low, a >= high {
          if free == 0 { base = a }
          (free, freeSum) = (free + 1, freeSum + (a - base))
        } else {
          open[kept] = a
          kept += 1
        }
      }
      open.removeSubrange(kept...)
      if open.isEmpty { break }
      let drawn = open[draw(open.count)]
      let cut = drawn > low && drawn < high ? drawn : drawn - cap
      var sum = capped * cap + (free > 0 ? freeSum + free * (base - cut) : 0) - total
      sum += open.withUnsafeBufferPointer { spent($0, cut) }
      if sum >= 0 { low = cut } else { high = cut }
    }
    guard free > 0 else { return low.isFinite ? low : high }
    return min(max(base + (capped * cap + freeSum - total) / free, low), high)
  }
  static var minimises: Bool { true }
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, "capped_simplex")
    lines.each(w.v, w.shape) { g in
      var rest = total
      for i in g.indices.sorted(by: { g[$0] != g[$1] ? g[$0] < g[$1] : $0 < $1 }) {
        g[i] = min(cap, rest)
        rest -= g[i]
      }
      return true
    }
  }
}

/// Rows of the matrix view with norm at most max_norm; a vector is one row.
///
///     project: rows that are longer are scaled to max_norm     argmin⟨g, u⟩ = −max_norm·g_r/‖g_r‖, 0 when g_r = 0
///
/// Differs  Keras' MaxNorm works along the first axis of (inputs, outputs) kernels, which are our rows, and divides by
///          ε + norm even inside; here rows inside stay bit for bit.
/// Source   Srebro, Rennie and Jaakkola, 2004; Hinton et al., 2012, arXiv:1207.0580.
struct MaxNorm: WholeConstraint {
  static let method = Method(
    "max_norm", .constraint, "Rows of the matrix view with norm at most max_norm; a vector is one row.",
    rule: "project: w_r*min(1, max_norm/|w_r|);  argmin <g, u> = -max_norm*g_r/|g_r|, 0 when g_r = 0",
    source: "Hinton et al., 2012, arXiv:1207.0580",
    parameters: [.number("max_norm", 3, .above(0), "largest norm of a row")])
  static var needsFinite: Bool { true }

  let bound: Double
  init(_ h: Hyper) { bound = h.max_norm }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let rows = Slices.rows(w.shape), reach = bound * (1 + 4 * Double(T.ulpOfOne))
    rows.scale(w.v, by: try rows.norms(w.v).map { $0 > reach ? bound / $0 : 1 })
  }
  static var minimises: Bool { true }
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    let rows = Slices.rows(w.shape)
    rows.scale(w.v, by: try rows.norms(w.v).map { $0 > 0 ? -bound / $0 : 1 })
  }
}

/// Tensors with at most k entries that are not zero. Not convex.
///
///     project: the k largest magnitudes stay, the lower index first on ties
///
/// Errors   TW_ERROR_SHAPE where k is larger than the tensor. Unbounded: no linear minimisation.
/// Source   Blumensath and Davies, 2008.
struct L0Ball: WholeConstraint {
  static let method = Method(
    "l0_ball", .constraint, "Tensors with at most k entries that are not zero.",
    rule: "project: the k largest magnitudes stay, the lower index first on ties",
    source: "Blumensath, Davies, 2008",
    parameters: [.integer("k", nil, .atLeast(0), "entries that are kept")])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    guard h.integer("k") <= shape.count else {
      throw Failure(
        Status.shape, "l0_ball: `k` is \(h.integer("k")), a tensor of shape \(shape.dimensions) has \(shape.count)")
    }
  }

  let k: Int
  init(_ h: Hyper) { k = h.integer("k") }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, "l0_ball")
    try Memory.ask(16 &* w.count)
    let x = w.v
    let order = (0..<w.count).sorted {
      x[$0].magnitude != x[$1].magnitude ? x[$0].magnitude > x[$1].magnitude : $0 < $1
    }
    for i in order.dropFirst(k) { x[i] = 0 }
  }
}
