import CThalweg

/// Products of small matrices: a call of OpenBLAS would cost more than their arithmetic.
///
/// Four rows of the result, a vector wide, stay in registers while the inner index runs; b is copied where its rows are
/// not vectors. The order of additions is that of the inner index, so that a·aᵀ is symmetric to the last bit.
enum SmallProducts {
  /// The longest side that is taken.
  private static let side = 64

  static func takes(_ m: Int, _ n: Int, _ k: Int) -> Bool { m <= side && n <= side && k <= side }

  /// c ← alpha·op(a)·op(b) + beta·c, as `LinearAlgebra.multiply`.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  static func multiply<T: Real>(
    _ a: UnsafePointer<T>, transposed ta: Bool, _ b: UnsafePointer<T>, transposed tb: Bool,
    into c: UnsafeMutablePointer<T>, _ m: Int, _ n: Int, _ k: Int, alpha: Double, beta: Double
  ) {
    let width = T.Vector.width, columns = (n &+ width &- 1) / width &* width
    let (down, across) = ta ? (1, m) : (k, 1)
    if !tb, columns == n {
      return tiles(a, down, across, b, n, c, m, n, k, alpha, beta)
    }
    withUnsafeTemporaryAllocation(of: T.self, capacity: columns &* k) { room in
      guard let packed = room.baseAddress else { return }
      if tb {
        turn(b, n, k, into: packed, columns)
      } else {
        for i in 0..<k { (packed + i &* columns).update(from: b + i &* n, count: n) }
      }
      for i in 0..<(n < columns ? k : 0) { (packed + (i &* columns &+ n)).update(repeating: 0, count: columns &- n) }
      tiles(a, down, across, packed, columns, c, m, n, k, alpha, beta)
    }
  }

  /// out ← bᵀ for b of n rows of k, rows of out `columns` apart: four by four in registers.
  @inline(__always)
  private static func turn<T: Real>(
    _ b: UnsafePointer<T>, _ n: Int, _ k: Int, into out: UnsafeMutablePointer<T>, _ columns: Int
  ) {
    let (fullN, fullK) = (n & ~3, k & ~3)
    for j in stride(from: 0, to: fullN, by: 4) {
      for i in stride(from: 0, to: fullK, by: 4) {
        turnFour(b + (j &* k &+ i), k, out + (i &* columns &+ j), columns)
      }
    }
    for j in 0..<n {
      for i in (j < fullN ? fullK : 0)..<k { out[i &* columns &+ j] = b[j &* k &+ i] }
    }
  }
  /// A square whose rows are `down` elements apart, turned into one whose rows are `across` elements apart.
  @inline(__always)
  private static func turnFour<T: Real>(
    _ from: UnsafePointer<T>, _ down: Int, _ to: UnsafeMutablePointer<T>, _ across: Int
  ) {
    func row(_ k: Int) -> SIMD4<T> { UnsafeRawPointer(from + k &* down).loadUnaligned(as: SIMD4<T>.self) }
    func put(_ k: Int, _ top: SIMD2<T>, _ bottom: SIMD2<T>) {
      UnsafeMutableRawPointer(to + k &* across).storeBytes(of: SIMD4(lowHalf: top, highHalf: bottom), as: SIMD4<T>.self)
    }
    let (a, b, c, d) = (row(0), row(1), row(2), row(3))
    let (top, bottom) = (SIMD4(lowHalf: a.lowHalf, highHalf: b.lowHalf), SIMD4(lowHalf: c.lowHalf, highHalf: d.lowHalf))
    put(0, top.evenHalf, bottom.evenHalf)
    put(1, top.oddHalf, bottom.oddHalf)
    let (high, low) = (
      SIMD4(lowHalf: a.highHalf, highHalf: b.highHalf), SIMD4(lowHalf: c.highHalf, highHalf: d.highHalf)
    )
    put(2, high.evenHalf, low.evenHalf)
    put(3, high.oddHalf, low.oddHalf)
  }

  @inline(__always)
  private static func tiles<T: Real>(
    _ a: UnsafePointer<T>, _ down: Int, _ across: Int, _ b: UnsafePointer<T>, _ columns: Int,
    _ c: UnsafeMutablePointer<T>, _ m: Int, _ n: Int, _ k: Int, _ alpha: Double, _ beta: Double
  ) {
    let width = T.Vector.width
    withUnsafeTemporaryAllocation(of: T.self, capacity: 4 &* width) { room in
      guard let tile = room.baseAddress else { return }
      for i in stride(from: 0, to: m, by: 4) {
        // beyond the last a row stands for another, and nobody takes its result
        func row(_ r: Int) -> UnsafeRawPointer { UnsafeRawPointer(a + min(i &+ r, m &- 1) &* down) }
        let rows = (row(0), row(1), row(2), row(3))
        for j in stride(from: 0, to: columns, by: width) {
          let right = UnsafeRawPointer(b + j), out = UnsafeMutableRawPointer(tile)
          if T.isDouble {
            doubles(rows, 8 &* across, right, 8 &* columns, k, out)
          } else {
            floats(rows, 4 &* across, right, 4 &* columns, k, out)
          }
          let some = min(width, n &- j)
          for r in 0..<min(4, m &- i) {
            let from = tile + r &* width, to = c + ((i &+ r) &* n &+ j)
            if some == width {
              let v = T.Vector.load(from)
              (beta != 0 ? alpha * v + beta * T.Vector.load(to) : alpha == 1 ? v : alpha * v).store(to)
            } else if beta == 0 {
              for x in 0..<some { to[x] = T(alpha) * from[x] }
            } else {
              for x in 0..<some { to[x] = T(alpha) * from[x] + T(beta) * to[x] }
            }
          }
        }
      }
    }
  }

  private typealias Rows = (UnsafeRawPointer, UnsafeRawPointer, UnsafeRawPointer, UnsafeRawPointer)

  @inline(never)
  private static func doubles(
    _ rows: Rows, _ across: Int, _ b: UnsafeRawPointer, _ down: Int, _ k: Int, _ out: UnsafeMutableRawPointer
  ) {
    tile(rows, across, b, down, k, out, SIMD8<Double>.self)
  }
  @inline(never)
  private static func floats(
    _ rows: Rows, _ across: Int, _ b: UnsafeRawPointer, _ down: Int, _ k: Int, _ out: UnsafeMutableRawPointer
  ) {
    tile(rows, across, b, down, k, out, SIMD16<Float>.self)
  }

  /// Four rows of numbers that are `across` bytes apart, times k rows of a vector that are `down` bytes apart.
  @inline(__always)
  private static func tile<V: SIMD>(
    _ rows: Rows, _ across: Int, _ b: UnsafeRawPointer, _ down: Int, _ k: Int, _ out: UnsafeMutableRawPointer,
    _: V.Type
  ) where V.Scalar: FloatingPoint {
    let zero = V(repeating: 0)
    var (p, q, r, s) = (zero, zero, zero, zero), at = 0, right = b
    for _ in 0..<k {
      let y = right.loadUnaligned(as: V.self)
      p = InnerProducts.fused(p, V(repeating: rows.0.load(fromByteOffset: at, as: V.Scalar.self)), y)
      q = InnerProducts.fused(q, V(repeating: rows.1.load(fromByteOffset: at, as: V.Scalar.self)), y)
      r = InnerProducts.fused(r, V(repeating: rows.2.load(fromByteOffset: at, as: V.Scalar.self)), y)
      s = InnerProducts.fused(s, V(repeating: rows.3.load(fromByteOffset: at, as: V.Scalar.self)), y)
      at &+= across
      right += down
    }
    let size = MemoryLayout<V>.stride
    out.storeBytes(of: p, as: V.self)
    out.storeBytes(of: q, toByteOffset: size, as: V.self)
    out.storeBytes(of: r, toByteOffset: 2 &* size, as: V.self)
    out.storeBytes(of: s, toByteOffset: 3 &* size, as: V.self)
  }
}
