/// Sums and changes of dense memory, in vectors of the compute type; sums are taken in double. The loops stand here one
/// by one: with their bodies as closures the optimiser makes a call of every vector.
public enum Flat {
  @inlinable @inline(never)
  public static func change<T: Real>(
    _ op: some ElementOperation, _ x: UnsafeMutablePointer<T>, _ y: UnsafeMutablePointer<T>, _ n: Int,
    writesG: Bool = true
  ) {
    let kernel = plainKernel(op, T.Vector.self, writesG: writesG)
    withUnsafeTemporaryAllocation(byteCount: Operands.padBytes, alignment: 64) { pad in
      guard let pad = pad.baseAddress else { return }
      kernel(
        Operands(
          x: UnsafeMutableRawPointer(x), g: UnsafeMutableRawPointer(y), slots: SlotPointers(repeating: pad), used: 0,
          count: n,
          index: 0, pad: pad))
    }
  }
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func squaredNorm<T: Real>(_ x: UnsafePointer<T>, _ n: Int) -> Double { dot(x, x, n) }

  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func dot<T: Real>(_ x: UnsafePointer<T>, _ y: UnsafePointer<T>, _ n: Int) -> Double {
    var sums = Sums()
    var i = 0, rest = 0.0
    while i &+ T.Vector.width <= n {
      fetchAhead(x + i)
      fetchAhead(y + i)
      sums.add(0, T.Vector.load(x + i), times: T.Vector.load(y + i))
      i &+= T.Vector.width
    }
    while i < n {
      rest += Double(x[i]) * Double(y[i])
      i &+= 1
    }
    return sums.first + rest
  }
  /// The products of two rows with themselves and each other, from one pass.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func products<T: Real>(_ x: UnsafePointer<T>, _ y: UnsafePointer<T>, _ n: Int)
    -> (xx: Double, yy: Double, xy: Double)
  {
    typealias L = T.Vector
    let zero = SIMD8<Double>(repeating: 0)
    var (a, b, c) = (zero, zero, zero)
    @inline(__always) func add(_ u: L, _ v: L) {
      let (p, q) = (u.wide, v.wide)
      a += p.low * p.low
      b += q.low * q.low
      c += p.low * q.low
      if L.width == 16 {
        a += p.high * p.high
        b += q.high * q.high
        c += p.high * q.high
      }
    }
    var i = 0, (xx, yy, xy) = (0.0, 0.0, 0.0)
    while i &+ L.width <= n {
      add(L.load(x + i), L.load(y + i))
      i &+= L.width
    }
    while i < n {
      let (p, q) = (Double(x[i]), Double(y[i]))
      (xx, yy, xy) = (xx + p * p, yy + q * q, xy + p * q)
      i &+= 1
    }
    return (xx + a.sum(), yy + b.sum(), xy + c.sum())
  }
  /// The products of three rows, but that of the last with itself.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func products<T: Real>(
    _ x: UnsafePointer<T>, _ y: UnsafePointer<T>, _ u: UnsafePointer<T>, _ n: Int
  ) -> (xx: Double, yy: Double, xy: Double, xu: Double, yu: Double) {
    typealias L = T.Vector
    let zero = SIMD8<Double>(repeating: 0)
    var (a, b, c, d, e) = (zero, zero, zero, zero, zero)
    @inline(__always) func add(_ p: SIMD8<Double>, _ q: SIMD8<Double>, _ r: SIMD8<Double>) {
      a += p * p
      b += q * q
      c += p * q
      d += p * r
      e += q * r
    }
    var i = 0, (xx, yy, xy, xu, yu) = (0.0, 0.0, 0.0, 0.0, 0.0)
    while i &+ L.width <= n {
      let (p, q, r) = (L.load(x + i).wide, L.load(y + i).wide, L.load(u + i).wide)
      add(p.low, q.low, r.low)
      if L.width == 16 { add(p.high, q.high, r.high) }
      i &+= L.width
    }
    while i < n {
      let (p, q, r) = (Double(x[i]), Double(y[i]), Double(u[i]))
      (xx, yy, xy, xu, yu) = (xx + p * p, yy + q * q, xy + p * q, xu + p * r, yu + q * r)
      i &+= 1
    }
    return (xx + a.sum(), yy + b.sum(), xy + c.sum(), xu + d.sum(), yu + e.sum())
  }
  /// The norm of a row with this square; throws when an element is not finite.
  public static func norm<T: Real>(_ square: Double, of x: UnsafePointer<T>, _ n: Int) throws(Failure) -> Double {
    let norm = square > 1e-280 && square < 1e280 ? square.squareRoot() : Flat.norm(x, n)
    guard norm.isFinite else { throw noNorm }
    return norm
  }
  static var noNorm: Failure {
    Failure(Status.nonfinite, "elements that are NaN or infinite have no norm; nothing was changed")
  }
  /// Adds the squares of x to `columns`; returns their sum.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func addSquares<T: Real>(_ x: UnsafePointer<T>, _ n: Int, to columns: UnsafeMutablePointer<Double>)
    -> Double
  {
    typealias L = T.Vector
    var low = SIMD8<Double>(repeating: 0), high = low, rest = 0.0
    var i = 0
    while i &+ L.width <= n {
      fetchAhead(x + i)
      let w = L.load(x + i).wide
      let a = w.low * w.low
      low += a
      (SIMD8<Double>.load(UnsafePointer(columns + i)) + a).store(columns + i)
      if L.width == 16 {
        let b = w.high * w.high
        high += b
        (SIMD8<Double>.load(UnsafePointer(columns + (i &+ 8))) + b).store(columns + (i &+ 8))
      }
      i &+= L.width
    }
    while i < n {
      let a = Double(x[i]) * Double(x[i])
      rest += a
      columns[i] += a
      i &+= 1
    }
    return (low + high).sum() + rest
  }
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func isFinite<T: Real>(_ x: UnsafePointer<T>, _ n: Int) -> Bool {
    var sum = T.Vector(0), i = 0, rest: T = 0
    while i &+ T.Vector.width <= n {
      fetchAhead(x + i)
      let v = T.Vector.load(x + i)
      sum = sum + (v - v)  // 0, or NaN where v is not finite
      i &+= T.Vector.width
    }
    while i < n {
      rest += x[i] - x[i]
      i &+= 1
    }
    return sum.wide.low.sum() + sum.wide.high.sum() + Double(rest) == 0
  }
  /// Σ x.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func sum<T: Real>(_ x: UnsafePointer<T>, _ n: Int) -> Double {
    typealias L = T.Vector
    var low = SIMD8<Double>(repeating: 0), high = low, rest = 0.0
    var i = 0
    while i &+ L.width <= n {
      fetchAhead(x + i)
      let w = L.load(x + i).wide
      low += w.low
      if L.width == 16 { high += w.high }
      i &+= L.width
    }
    while i < n {
      rest += Double(x[i])
      i &+= 1
    }
    return (low + high).sum() + rest
  }
  /// x ← x + a.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func shift<T: Real>(_ x: UnsafeMutablePointer<T>, by a: Double, _ n: Int) {
    let f = T.Vector(a)
    var i = 0
    while i &+ T.Vector.width <= n {
      fetchAhead(x + i)
      (T.Vector.load(x + i) + f).store(x + i)
      i &+= T.Vector.width
    }
    while i < n {
      x[i] += T(a)
      i &+= 1
    }
  }
  /// y ← factor·x.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func scale<T: Real>(
    _ x: UnsafePointer<T>, by factor: Double, into y: UnsafeMutablePointer<T>, _ n: Int
  ) {
    if !T.holds(factor) {
      let two = Factor(factor)
      scale(x, by: two.first, into: y, n)
      return scale(y, by: two.second, into: y, n)
    }
    let f = T.Vector(factor)
    var i = 0
    while i &+ T.Vector.width <= n {
      fetchAhead(x + i)
      (T.Vector.load(x + i) * f).store(y + i)
      i &+= T.Vector.width
    }
    while i < n {
      y[i] = x[i] * T(factor)
      i &+= 1
    }
  }
  /// y ← y + factor·x.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func add<T: Real>(
    _ x: UnsafePointer<T>, times factor: Double, into y: UnsafeMutablePointer<T>, _ n: Int
  ) {
    if !T.holds(factor) { return blend(1, y, factor, x, into: y, n) }
    let f = T.Vector(factor)
    var i = 0
    while i &+ T.Vector.width <= n {
      (T.Vector.load(y + i) + T.Vector.load(x + i) * f).store(y + i)
      i &+= T.Vector.width
    }
    while i < n {
      y[i] += x[i] * T(factor)
      i &+= 1
    }
  }
  /// z ← a·x + b·y + c·w, in double and rounded once; z may be one of them.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func blend<T: Real>(
    _ a: Double, _ x: UnsafePointer<T>, _ b: Double, _ y: UnsafePointer<T>, _ c: Double, _ w: UnsafePointer<T>,
    into z: UnsafeMutablePointer<T>, _ n: Int
  ) {
    typealias L = T.Vector
    var i = 0
    while i &+ L.width <= n {
      let (u, v, t) = (L.load(x + i).wide, L.load(y + i).wide, L.load(w + i).wide)
      L(wide: a * u.low + b * v.low + c * t.low, a * u.high + b * v.high + c * t.high).store(z + i)
      i &+= L.width
    }
    while i < n {
      z[i] = T(a * Double(x[i]) + b * Double(y[i]) + c * Double(w[i]))
      i &+= 1
    }
  }
  /// z ← a·x + b·y, in the same way.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func blend<T: Real>(
    _ a: Double, _ x: UnsafePointer<T>, _ b: Double, _ y: UnsafePointer<T>, into z: UnsafeMutablePointer<T>, _ n: Int
  ) {
    typealias L = T.Vector
    var i = 0
    while i &+ L.width <= n {
      let (u, v) = (L.load(x + i).wide, L.load(y + i).wide)
      L(wide: a * u.low + b * v.low, a * u.high + b * v.high).store(z + i)
      i &+= L.width
    }
    while i < n {
      z[i] = T(a * Double(x[i]) + b * Double(y[i]))
      i &+= 1
    }
  }
  /// x ← x + Σ factor·row, one row after the other.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  static func add<T: Real>(
    _ rows: Rows4<T>, times factors: SIMD4<Double>, into x: UnsafeMutablePointer<T>, _ n: Int
  ) {
    typealias L = T.Vector
    let (a, b, c, d) = (L(factors[0]), L(factors[1]), L(factors[2]), L(factors[3]))
    var i = 0
    while i &+ L.width <= n {
      var y = L.load(x + i) + L.load(rows.a + i) * a
      y = y + L.load(rows.b + i) * b
      y = y + L.load(rows.c + i) * c
      y = y + L.load(rows.d + i) * d
      y.store(x + i)
      i &+= L.width
    }
    while i < n {
      x[i] += rows.a[i] * T(factors[0])
      x[i] += rows.b[i] * T(factors[1])
      x[i] += rows.c[i] * T(factors[2])
      x[i] += rows.d[i] * T(factors[3])
      i &+= 1
    }
  }
  /// The Euclidean norm; numbers whose squares leave the range are scaled first. Not finite when an element is not.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func norm<T: Real>(_ x: UnsafePointer<T>, _ n: Int, stride: Int = 1) -> Double {
    let sum = stride == 1 ? squaredNorm(x, n) : strided(x, n, stride, 1)
    if sum > 1e-280, sum < 1e280 { return sum.squareRoot() }
    var top = 0.0
    for i in 0..<n {
      let a = abs(Double(x[i &* stride]))
      if !a.isFinite { return a }
      top = max(top, a)
    }
    return top == 0 ? 0 : top * strided(x, n, stride, top).squareRoot()
  }
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private static func strided<T: Real>(_ x: UnsafePointer<T>, _ n: Int, _ stride: Int, _ unit: Double) -> Double {
    var sum = 0.0
    for i in 0..<n {
      let a = Double(x[i &* stride]) / unit
      sum += a * a
    }
    return sum
  }

  /// The magnitude with k others above it, digit by digit of its bits (those of magnitudes are ordered as they are);
  /// NaN is the largest.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func largest<T: Real>(_ v: UnsafePointer<T>, _ n: Int, _ k: Int) -> Double {
    var found: UInt64 = 0, mask: UInt64 = 0, k = k
    var counts = [Int](repeating: 0, count: 2048)
    for shift: UInt64 in T.isDouble ? [53, 42, 31, 20, 9, 0] : [53, 42, 31, 20] {
      for b in 0..<2048 { counts[b] = 0 }
      for i in 0..<n {
        let bits = Double(v[i]).magnitude.bitPattern
        if bits & mask == found { counts[Int(truncatingIfNeeded: bits &>> shift) & 2047] += 1 }
      }
      let width: UInt64 = shift == 0 ? 511 : 2047
      if shift == 0 {
        for b in 512..<2048 { counts[b & 511] += counts[b] }
      }
      var digit = Int(width)
      while digit > 0, k >= counts[digit] {
        k -= counts[digit]
        digit -= 1
      }
      found |= UInt64(digit) << shift
      mask |= width << shift
    }
    return Double(bitPattern: found)
  }
  /// The same with room for some numbers: of many, only those of an interval that a sample tells are sorted out. Where
  /// the sample misleads, or there are more than there is room for, all of them.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func largest<T: Real>(
    _ v: UnsafePointer<T>, _ n: Int, _ k: Int, room: UnsafeMutablePointer<T>, _ size: Int
  ) -> Double {
    let few = 1024
    guard n >= 16 * few, size >= few else { return largest(v, n, k) }
    var seed: UInt64 = 0x9e37_79b9_7f4a_7c15
    for i in 0..<few {
      seed = seed &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      room[i] = v[Int((seed >> 33) % UInt64(n))]
    }
    // four standard deviations of the rank within the sample
    let share = (Double(k) + 0.5) / Double(n), rank = share * Double(few)
    let margin = 4 * (rank * (1 - share)).squareRoot() + 2
    let first = Int((rank - margin).rounded(.down)), last = Int(rank + margin)
    let high = first < 0 ? UInt64.max >> 1 : largest(room, few, first).bitPattern
    let low = last >= few ? 0 : largest(room, few, last).bitPattern
    // bits of magnitudes are ordered as they are; no branches, for a guess would often fail
    var above: UInt64 = 0, found = 0, i = 0
    while i < n {
      let end = min(i &+ few, n)
      if found &+ (end &- i) > size { return largest(v, n, k) }
      while i < end {
        let x = v[i], bits = Double(x).magnitude.bitPattern
        room[found] = x
        above &+= (high &- bits) &>> 63
        found &+= Int(truncatingIfNeeded: ~((high &- bits) | (bits &- low)) &>> 63)
        i &+= 1
      }
    }
    let rest = k &- Int(truncatingIfNeeded: above)
    return rest >= 0 && rest < found ? largest(room, found, rest) : largest(v, n, k)
  }
}

/// Four rows that are read side by side: memory gives more than to one after the other, and what they have in common is
/// loaded once.
public struct Rows4<T> {
  public let a, b, c, d: UnsafePointer<T>
  public init(_ row: (Int) -> UnsafePointer<T>) { (a, b, c, d) = (row(0), row(1), row(2), row(3)) }
}
