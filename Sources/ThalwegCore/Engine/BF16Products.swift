import CThalweg

/// Products of float32 matrices whose operands are rounded to bfloat16; sums and results are float32.
///
/// The operands are packed into `space`, where the processor multiplies bfloat16 in tiles or in pairs of numbers;
/// elsewhere rounded into it.
public struct BF16Products {
  /// What multiplies.
  public enum Means: Sendable, CaseIterable {
    case tiles, pairs, floats
    public var available: Bool {
      switch self {
      case .tiles: twi_tiles_available()
      case .pairs: twi_pairs_available()
      case .floats: true
      }
    }
    public static var best: Means { allCases.first(where: \.available) ?? .floats }
    var rows: Int { Int(self == .tiles ? TWI_TILES_LINES : TWI_PAIRS_ROWS) }
    var columns: Int { Int(self == .tiles ? TWI_TILES_LINES : TWI_PAIRS_COLUMNS) }
    var depth: Int { self == .tiles ? Int(TWI_TILES_DEPTH) : 2 }
    var bytes: Int { self == .floats ? 4 : 2 }
  }

  private let space: UnsafeMutableRawPointer, means: Means
  /// `space` is aligned to 64 bytes.
  public init(_ space: UnsafeMutableRawPointer, by means: Means = .best) { (self.space, self.means) = (space, means) }

  /// Bytes for products whose operands have at most `lines` lines in all, and `inner` numbers to multiply.
  public static func space(lines: Int, inner: Int) -> Int {
    aligned((lines &+ 64) &* (inner &+ Int(TWI_TILES_DEPTH)) &* Means.best.bytes) &+ 64
  }

  /// c ← alpha·op(a)·op(b) + beta·c, as `LinearAlgebra.multiply`.
  public func multiply(
    _ a: UnsafePointer<Float>, transposed ta: Bool = false, _ b: UnsafePointer<Float>, transposed tb: Bool = false,
    into c: UnsafeMutablePointer<Float>, _ m: Int, _ n: Int, _ k: Int, alpha: Double = 1, beta: Double = 0
  ) throws(Failure) {
    guard means == .floats else {
      return run(
        a, along: !ta, b, along: tb, (ta ? m : k, tb ? k : n), into: c, m, n, k, alpha, beta, upper: false)
    }
    let left = rounded(a, m &* k, space), right = rounded(b, k &* n, space + aligned(m &* k &* 4))
    try LinearAlgebra.multiply(
      left, transposed: ta, right, transposed: tb, into: c, m, n, k, alpha: alpha, beta: beta)
  }

  /// c ← alpha·a·aᵀ + beta·base (aᵀ·a when `transposed`), both triangles filled; a is (n, k), or (k, n) when
  /// transposed, `base` c itself unless it is given.
  public func gram(
    _ a: UnsafePointer<Float>, transposed: Bool = false, into c: UnsafeMutablePointer<Float>, _ n: Int, _ k: Int,
    alpha: Double = 1, beta: Double = 0, base: UnsafePointer<Float>? = nil
  ) throws(Failure) {
    guard means == .floats else {
      let ld = transposed ? n : k
      run(
        a, along: !transposed, a, along: !transposed, (ld, ld), into: c, n, n, k, alpha, beta, base: base, upper: true)
      return mirror(c, n, parallel: LinearAlgebra.isLarge(n, n, k))
    }
    if let base { c.update(from: base, count: n &* n) }
    try LinearAlgebra.gram(
      rounded(a, n &* k, space), transposed: transposed, into: c, n, k, alpha: alpha, beta: beta)
  }

  private func mirror(_ c: UnsafeMutablePointer<Float>, _ n: Int, parallel: Bool) {
    guard means == .tiles else { return LinearAlgebra.mirror(c, n) }
    let stripe = 128
    Threads.run((n + stripe - 1) / stripe, parallel: parallel) { p in
      twi_tiles_mirror(c, Int64(n), Int64(p * stripe), Int64(min((p + 1) * stripe, n)))
    }
  }

  private func run(
    _ a: UnsafePointer<Float>, along alongA: Bool, _ b: UnsafePointer<Float>, along alongB: Bool,
    _ ld: (a: Int, b: Int), into c: UnsafeMutablePointer<Float>,
    _ m: Int, _ n: Int, _ k: Int, _ alpha: Double, _ beta: Double, base: UnsafePointer<Float>? = nil, upper: Bool
  ) {
    let rows = means.rows, columns = means.columns, tiles = means == .tiles
    let panelsA = (m + rows - 1) / rows, panelsB = (n + columns - 1) / columns
    let packedA = space, packedB = space + aligned(panelsA &* rows &* rounded(k, to: means.depth) &* 2)
    let parallel = LinearAlgebra.isLarge(m, n, k)
    Threads.run(panelsA + panelsB, parallel: parallel) { p in
      let left = p < panelsA
      let (x, ld, along, lines, out, panel) =
        left ? (a, ld.a, alongA, m, packedA, p) : (b, ld.b, alongB, n, packedB, p - panelsA)
      if tiles {
        twi_tiles_pack(x, Int64(ld), along, Int64(lines), Int64(k), left, out, Int64(panel))
      } else {
        let width = left ? rows : columns
        twi_pairs_pack(x, Int64(ld), along, Int64(lines), Int64(k), Int32(width), out, Int64(panel * width))
      }
    }
    // rows of a stripe: their packed numbers stay in cache
    let stripe = m >= 1024 && tiles ? 256 : 128
    Threads.run((m + stripe - 1) / stripe, parallel: parallel) { p in
      let first = p * stripe
      (tiles ? twi_tiles_multiply : twi_pairs_multiply)(
        packedA, packedB, Int64(first), Int64(min(first + stripe, m)), Int64(n), Int64(k), Float(alpha), Float(beta),
        base ?? UnsafePointer(c), c, Int64(n), upper)
    }
  }

  private func rounded(_ x: Int, to unit: Int) -> Int { (x &+ unit &- 1) / unit &* unit }
  private func rounded(_ x: UnsafePointer<Float>, _ n: Int, _ room: UnsafeMutableRawPointer) -> UnsafePointer<Float> {
    let y = room.assumingMemoryBound(to: Float.self)
    for i in 0..<n { y[i] = floatFromBF16(bf16FromFloat(x[i])) }
    return UnsafePointer(y)
  }
}
