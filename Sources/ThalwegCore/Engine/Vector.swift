/// Numbers in dense memory that a solver keeps: sums are taken in double, changes are rounded once an element.
///
/// Long vectors are cut into blocks by their length alone; blocks run side by side and their sums are added in order,
/// so that the bits do not depend on the number of threads.
public struct Vector<T: Real>: @unchecked Sendable {
  /// The name under which it is kept, and where in it this part begins.
  public let name: String
  public let offset: Int
  public let p: UnsafeMutablePointer<T>
  public let shape: [Int]
  public let count: Int

  public init(_ name: String, _ offset: Int, _ p: UnsafeMutablePointer<T>, _ shape: [Int]) {
    (self.name, self.offset, self.p, self.shape) = (name, offset, p, shape)
    count = shape.reduce(1, &*)
  }

  public static var block: Int { 16_384 }
  private static func blocks(_ n: Int) -> Int { n / block &+ (n % block == 0 ? 0 : 1) }
  /// Calls `body` with the first element and the length of every block.
  private static func each(_ n: Int, _ body: (Int, Int) -> Void) {
    let count = blocks(n)
    if count <= 1 { return n > 0 ? body(0, n) : () }
    Threads.run(count, parallel: n >= Walker.parallelFrom) { b in body(b &* block, min(block, n &- b &* block)) }
  }

  /// Row k of a tensor of two or more axes; k is kept within them.
  public func row(_ k: Int) -> Vector {
    let axes = Array(shape.dropFirst()), length = axes.reduce(1, &*),
      at = min(max(k, 0), max(0, (shape.first ?? 1) - 1))
    return Vector(name, offset &+ at &* length, p + at &* length, axes)
  }
  public var rows: Int { shape.first ?? 1 }

  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func dot(_ y: Vector) -> Double {
    let n = min(count, y.count), blocks = Vector.blocks(n)
    if blocks <= 1 { return Flat.dot(UnsafePointer(p), UnsafePointer(y.p), n) }
    return withUnsafeTemporaryAllocation(of: Double.self, capacity: blocks) { sums in
      nonisolated(unsafe) let out = sums
      Vector.each(n) { at, length in
        out[at / Vector.block] = Flat.dot(UnsafePointer(p + at), UnsafePointer(y.p + at), length)
      }
      return sums.reduce(0, +)
    }
  }
  /// The Euclidean norm; infinite or NaN when an element is, but not because a square overflows.
  public var norm: Double {
    let sum = dot(self)
    return sum > 1e-280 && sum < 1e280 ? sum.squareRoot() : Flat.norm(UnsafePointer(p), count)
  }
  public var isFinite: Bool { Flat.isFinite(UnsafePointer(p), count) }

  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func fill(_ value: Double) { p.update(repeating: T(value), count: count) }
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func copy(_ x: Vector) { p.update(from: x.p, count: min(count, x.count)) }
  /// self ← self + a·x.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func add(_ x: Vector, times a: Double = 1) {
    Vector.each(min(count, x.count)) { at, n in Flat.add(UnsafePointer(x.p + at), times: a, into: p + at, n) }
  }
  /// self ← a·x; x may be self.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func set(_ a: Double, _ x: Vector) {
    Vector.each(min(count, x.count)) { at, n in Flat.scale(UnsafePointer(x.p + at), by: a, into: p + at, n) }
  }
  /// self ← a·x + b·y; either may be self.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func set(_ a: Double, _ x: Vector, _ b: Double, _ y: Vector) {
    Vector.each(min(count, x.count, y.count)) { at, n in
      Flat.combine(a, UnsafePointer(x.p + at), b, UnsafePointer(y.p + at), into: p + at, n)
    }
  }
  /// self ← body of every element, in the compute type.
  @inlinable public func map(_ x: Vector, _ body: (T) -> T) {
    for i in 0..<min(count, x.count) { p[i] = body(x.p[i]) }
  }
  /// The distance to y.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func distance(_ y: Vector) -> Double {
    var sum = 0.0
    for i in 0..<min(count, y.count) {
      let d = Double(p[i]) - Double(y.p[i])
      sum += d * d
    }
    return sum.squareRoot()
  }
  /// Standard normal draws of a key, or their signs.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func draw(_ key: UInt64, signs: Bool = false) {
    for i in 0..<count {
      let x = Random.normal(key, i)
      p[i] = signs ? (x < 0 ? -1 : 1) : T(x)
    }
  }
}

extension Vector {
  /// self ← self less what lies along the first `used` of some orthonormal rows; a second time where the first left
  /// more there than rounding does. What lay along each of them, and the norm of what is left.
  ///
  /// All products are taken in one pass over the rows, and the next ones in the pass that subtracts. In long vectors
  /// floats are added as `InnerProducts` does.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func orthogonalise(against rows: Vector, _ used: Int) -> (along: [Double], norm: Double) {
    let n = count, blocks = Vector.blocks(n), width = used + 1, piece = 4096, exact = n < InnerProducts.exactBelow
    let bases = (0..<used).map { UnsafePointer(rows.row($0).p) }, fours = stride(from: 0, to: used, by: 4)
    var parts = [Double](repeating: 0, count: blocks * width)
    /// Subtracts; then the products with all rows, and the square.
    func pass(less factors: [Double]) -> [Double] {
      parts.withUnsafeMutableBufferPointer { all in
        nonisolated(unsafe) let all = all
        Vector.each(n) { at, length in
          let line = all[(at / Vector.block * width)..<((at / Vector.block + 1) * width)]
          line.update(repeating: 0)
          for start in stride(from: at, to: at + length, by: piece) {
            let m = min(piece, at + length - start), x = p + start
            // beyond the last a row stands for another: with factor 0, and nobody takes its product
            func four(_ k: Int) -> Rows4<T> { Rows4 { bases[min(k + $0, used - 1)] + start } }
            for k in fours where !factors.isEmpty {
              let a = SIMD4<Double>((0..<4).map { k + $0 < used ? -factors[k + $0] : 0 })
              Flat.add(four(k), times: a, into: x, m)
            }
            for k in fours {
              let products = InnerProducts.products(four(k), UnsafePointer(x), m, exact: exact)
              for i in k..<min(k + 4, used) { all[line.startIndex + i] += products[i - k] }
            }
            all[line.startIndex + used] += Flat.squaredNorm(UnsafePointer(x), m)
          }
        }
      }
      return (0..<width).map { k in (0..<blocks).reduce(0) { $0 + parts[$1 * width + k] } }
    }
    let along = Array(pass(less: []).prefix(used))
    var left = pass(less: along)
    let rounding = 16 * (T.isDouble ? 0x1p-52 : 0x1p-23)
    if left.dropLast().reduce(0, { $0 + $1 * $1 }) > rounding * rounding * left[used] {
      left = pass(less: Array(left.dropLast()))
    }
    return (along, left[used] > 1e-280 && left[used] < 1e280 ? left[used].squareRoot() : norm)
  }
}

extension Flat {
  /// z ← a·x + b·y.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func combine<T: Real>(
    _ a: Double, _ x: UnsafePointer<T>, _ b: Double, _ y: UnsafePointer<T>, into z: UnsafeMutablePointer<T>, _ n: Int
  ) {
    if !T.holds(a) || !T.holds(b) { return blend(a, x, b, y, into: z, n) }
    let f = T.Vector(a), g = T.Vector(b)
    var i = 0
    while i &+ T.Vector.width <= n {
      (T.Vector.load(x + i) * f + T.Vector.load(y + i) * g).store(z + i)
      i &+= T.Vector.width
    }
    while i < n {
      z[i] = x[i] * T(a) + y[i] * T(b)
      i &+= 1
    }
  }
}
