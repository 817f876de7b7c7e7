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
      for i in 0..<k {
        let row = packed + i &* columns
        if tb {
          for j in 0..<n { row[j] = b[j &* k &+ i] }
        } else {
          row.update(from: b + i &* n, count: n)
        }
        for j in n..<columns { row[j] = 0 }
      }
      tiles(a, down, across, packed, columns, c, m, n, k, alpha, beta)
    }
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
            if alpha == 1, beta == 0 {
              to.update(from: from, count: some)
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
