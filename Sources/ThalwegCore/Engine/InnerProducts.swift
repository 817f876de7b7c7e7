import CThalweg

/// All inner products of several rows of equal length, in one pass over their memory.
///
/// Rows are taken in runs that stay in the first-level cache, and there four rows with three at a time. Products of
/// doubles, and of floats where `exact`, are formed and added in double. Else floats are multiplied and added in float,
/// at most sixty-four in a lane, and only the sums of runs in double: what is rounded within the runs averages out over
/// them, and is about 2⁻²⁴ over the square root of their number. The order of additions depends on the length alone.
/// While a run is multiplied the next one is fetched: the processor itself does not see it coming in so many rows.
public enum InnerProducts {
  /// From so many elements on products of floats are added in float within a run: less does not average out.
  public static let exactBelow = 1 << 16
  /// Elements of a run.
  static let run = 512

  /// Adds the product of row i and row j ≤ i to `sums[i·(i + 1)/2 + j − first·(first + 1)/2]`, for the rows
  /// `first`..<`end`; `first` is a multiple of four.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func add<T: Real>(
    _ rows: [UnsafePointer<T>], from first: Int, to end: Int, _ n: Int, exact: Bool,
    into sums: UnsafeMutablePointer<Double>
  ) {
    guard first < end, end <= rows.count, n > 0 else { return }
    let whole = n / run * run
    for at in stride(from: 0, to: whole, by: run) { blocks(rows, at, first, end, exact, sums) }
    guard whole < n else { return }
    // the last run is filled up with zeros
    withUnsafeTemporaryAllocation(of: T.self, capacity: end * run) { buffer in
      guard let base = buffer.baseAddress else { return }
      base.initialize(repeating: 0, count: end * run)
      for k in 0..<end { (base + k * run).update(from: rows[k] + whole, count: n - whole) }
      blocks((0..<end).map { UnsafePointer(base + $0 * run) }, 0, first, end, exact, sums)
    }
  }

  /// The run of all rows that begins at `at`.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private static func blocks<T: Real>(
    _ rows: [UnsafePointer<T>], _ at: Int, _ first: Int, _ end: Int, _ exact: Bool,
    _ sums: UnsafeMutablePointer<Double>
  ) {
    withUnsafeTemporaryAllocation(of: Double.self, capacity: 12) { parts in
      guard let twelve = parts.baseAddress else { return }
      // (what lies beyond the end of a row is fetched for nothing)
      let fetched = rows.map { UnsafeRawPointer($0 + at) + run &* MemoryLayout<T>.stride }
      // evenly over the blocks, so that memory is never idle
      let all = stride(from: first, to: end, by: 4).reduce(0) { $0 + (min($1 + 4, end) + 2) / 3 }
      var block = 0
      for i in stride(from: first, to: end, by: 4) {
        for j in stride(from: 0, to: min(i + 4, end), by: 3) {
          // beyond the end a row stands for another, and nobody takes its products
          func row(_ k: Int) -> UnsafeRawPointer { UnsafeRawPointer(rows[min(k, end - 1)] + at) }
          let r = (row(i), row(i + 1), row(i + 2), row(i + 3)), q = (row(j), row(j + 1), row(j + 2))
          let next = block * end / all, ahead: Fetched
          block += 1
          ahead = (fetched[next], fetched[min(next + 1, end - 1)], block * end / all > next + 1)
          if T.isDouble {
            multiplyDoubles(r, q, ahead, twelve)
          } else if exact {
            multiplyExactly(r, q, ahead, twelve)
          } else {
            multiplyFloats(r, q, ahead, twelve)
          }
          for k in i..<min(i + 4, end) {
            let line = sums + (k * (k + 1) / 2 - first * (first + 1) / 2)
            for c in j..<max(j, min(j + 3, k + 1)) { line[c] += twelve[3 * (k - i) + c - j] }
          }
        }
      }
    }
  }

  private typealias Four = (UnsafeRawPointer, UnsafeRawPointer, UnsafeRawPointer, UnsafeRawPointer)
  /// One or two runs.
  private typealias Fetched = (UnsafeRawPointer, UnsafeRawPointer, both: Bool)
  private typealias Three = (UnsafeRawPointer, UnsafeRawPointer, UnsafeRawPointer)

  @inline(never)
  private static func multiplyDoubles(_ r: Four, _ q: Three, _ ahead: Fetched, _ out: UnsafeMutablePointer<Double>) {
    multiply(r, q, ahead, 8, out, { $0.loadUnaligned(fromByteOffset: 8 &* $1, as: SIMD4<Double>.self) }, { $0.sum() })
  }
  @inline(never)
  private static func multiplyExactly(_ r: Four, _ q: Three, _ ahead: Fetched, _ out: UnsafeMutablePointer<Double>) {
    multiply(
      r, q, ahead, 4, out,
      { twi_widen4($0.loadUnaligned(fromByteOffset: 4 &* $1, as: SIMD4<Float>.self)) }, { $0.sum() })
  }
  @inline(never)
  private static func multiplyFloats(_ r: Four, _ q: Three, _ ahead: Fetched, _ out: UnsafeMutablePointer<Double>) {
    multiply(
      r, q, ahead, 4, out, { $0.loadUnaligned(fromByteOffset: 4 &* $1, as: SIMD8<Float>.self) }, { twi_widen($0).sum() }
    )
  }

  /// The products of four rows with one.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func products<T: Real>(
    _ rows: Rows4<T>, _ x: UnsafePointer<T>, _ n: Int, exact: Bool
  ) -> SIMD4<Double> {
    typealias L = T.Vector
    var sums = SIMD4<Double>(repeating: 0), i = 0
    while i &+ L.width <= n {
      let zero = L(0), end = min(i &+ run, n &- (n &- i) % L.width)
      if T.isDouble || !exact {
        var (a, b, c, d) = (zero, zero, zero, zero)
        while i < end {
          let y = L.load(x + i)
          a = a + y * L.load(rows.a + i)
          b = b + y * L.load(rows.b + i)
          c = c + y * L.load(rows.c + i)
          d = d + y * L.load(rows.d + i)
          i &+= L.width
        }
        sums += SIMD4(total(a), total(b), total(c), total(d))
      } else {
        let none = SIMD8<Double>(repeating: 0)
        var (a, b, c, d) = (none, none, none, none)
        @inline(__always) func product(_ y: L, _ p: UnsafePointer<T>) -> SIMD8<Double> {
          let (u, v) = (y.wide, L.load(p + i).wide)
          return u.low * v.low + u.high * v.high
        }
        while i < end {
          let y = L.load(x + i)
          a += product(y, rows.a)
          b += product(y, rows.b)
          c += product(y, rows.c)
          d += product(y, rows.d)
          i &+= L.width
        }
        sums += SIMD4(a.sum(), b.sum(), c.sum(), d.sum())
      }
    }
    while i < n {
      let y = Double(x[i])
      sums += SIMD4(Double(rows.a[i]), Double(rows.b[i]), Double(rows.c[i]), Double(rows.d[i])) * y
      i &+= 1
    }
    return sums
  }
  @inline(__always) private static func total<L: Lane>(_ x: L) -> Double {
    let w = x.wide
    return (w.low + w.high).sum()
  }

  /// The twelve products of four rows with three: as many sums as there are registers beside the operands.
  @inline(__always)
  private static func multiply<V: SIMD>(
    _ r: Four, _ q: Three, _ ahead: Fetched, _ bytes: Int, _ out: UnsafeMutablePointer<Double>,
    _ load: (UnsafeRawPointer, _ element: Int) -> V,
    _ total: (V) -> Double
  ) where V.Scalar: FloatingPoint {
    let zero = V(repeating: 0)
    var (a0, a1, a2, b0, b1, b2) = (zero, zero, zero, zero, zero, zero)
    var (c0, c1, c2, d0, d1, d2) = (zero, zero, zero, zero, zero, zero)
    @inline(__always) func step(_ i: Int) {
      let x = load(q.0, i), y = load(q.1, i), z = load(q.2, i)
      let a = load(r.0, i)
      a0 = fused(a0, a, x)
      a1 = fused(a1, a, y)
      a2 = fused(a2, a, z)
      let b = load(r.1, i)
      b0 = fused(b0, b, x)
      b1 = fused(b1, b, y)
      b2 = fused(b2, b, z)
      let c = load(r.2, i)
      c0 = fused(c0, c, x)
      c1 = fused(c1, c, y)
      c2 = fused(c2, c, z)
      let d = load(r.3, i)
      d0 = fused(d0, d, x)
      d1 = fused(d1, d, y)
      d2 = fused(d2, d, z)
    }
    // two at a time: a line is asked for once
    var i = 0
    while i < run {
      twi_prefetch(ahead.0 + i &* bytes)
      if ahead.both { twi_prefetch(ahead.1 + i &* bytes) }
      step(i)
      step(i &+ V.scalarCount)
      i &+= 2 &* V.scalarCount
    }
    (out[0], out[1], out[2], out[3], out[4], out[5]) = (
      total(a0), total(a1), total(a2), total(b0), total(b1), total(b2)
    )
    (out[6], out[7], out[8], out[9], out[10], out[11]) = (
      total(c0), total(c1), total(c2), total(d0), total(d1), total(d2)
    )
  }

  /// sum + x·y; in one instruction, without rounding the product, where the processor has it.
  @inline(__always)
  static func fused<V: SIMD>(_ sum: V, _ x: V, _ y: V) -> V where V.Scalar: FloatingPoint {
    TWI_FMA != 0 ? sum.addingProduct(x, y) : sum + x * y
  }
}
