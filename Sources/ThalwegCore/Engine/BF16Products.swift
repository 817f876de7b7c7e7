import CThalweg

/// Products of float32 matrices whose operands are rounded to bfloat16; sums and results are float32.
///
/// Where the processor multiplies bfloat16 the operands are packed into `space`: in tiles, or in pairs of numbers;
/// elsewhere they are rounded where they lie.
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
  }

  private let space: UnsafeMutableRawPointer, means: Means
  /// `space` is aligned to 64 bytes.
  public init(_ space: UnsafeMutableRawPointer, by means: Means = .best) { (self.space, self.means) = (space, means) }

  /// Bytes for products whose operands have at most `lines` lines in all, and `inner` numbers to multiply.
  public static func space(lines: Int, inner: Int) -> Int {
    aligned((lines &+ 64) &* (inner &+ Int(TWI_TILES_DEPTH)) &* 2) &+ 64
  }

  /// c ← alpha·a·b + beta·c; a is (m, k), b is (k, n). May round a and b.
  public func multiply(
    _ a: UnsafeMutablePointer<Float>, _ b: UnsafeMutablePointer<Float>, into c: UnsafeMutablePointer<Float>, _ m: Int,
    _ n: Int, _ k: Int, alpha: Double
  ) throws(Failure) {
    guard means == .floats else {
      return run(a, along: true, b, along: false, (k, n), into: c, m, n, k, alpha, 0, upper: false)
    }
    round(a, m &* k)
    round(b, k &* n)
    try LinearAlgebra.multiply(a, b, into: c, m, n, k, alpha: alpha)
  }

  /// c ← alpha·a·aᵀ + beta·c (aᵀ·a when `transposed`), both triangles filled; a is (n, k), or (k, n) when transposed.
  /// May round a.
  public func gram(
    _ a: UnsafeMutablePointer<Float>, transposed: Bool = false, into c: UnsafeMutablePointer<Float>, _ n: Int, _ k: Int,
    alpha: Double = 1, beta: Double = 0
  ) throws(Failure) {
    guard means == .floats else {
      let ld = transposed ? n : k
      run(a, along: !transposed, a, along: !transposed, (ld, ld), into: c, n, n, k, alpha, beta, upper: true)
      return LinearAlgebra.mirror(c, n)
    }
    round(a, n &* k)
    try LinearAlgebra.gram(a, transposed: transposed, into: c, n, k, alpha: alpha, beta: beta)
  }

  private func run(
    _ a: UnsafePointer<Float>, along alongA: Bool, _ b: UnsafePointer<Float>, along alongB: Bool,
    _ ld: (a: Int, b: Int), into c: UnsafeMutablePointer<Float>,
    _ m: Int, _ n: Int, _ k: Int, _ alpha: Double, _ beta: Double, upper: Bool
  ) {
    let rows = means.rows, columns = means.columns, tiles = means == .tiles
    let panelsA = (m + rows - 1) / rows, panelsB = (n + columns - 1) / columns
    let packedA = space, packedB = space + aligned(panelsA &* rows &* rounded(k, to: means.depth) &* 2)
    let parallel = Double(m) * Double(n) * Double(k) >= 0x1p24
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
        packedA, packedB, Int64(first), Int64(min(first + stripe, m)), Int64(n), Int64(k), Float(alpha), Float(beta), c,
        Int64(n), upper)
    }
  }

  private func rounded(_ x: Int, to unit: Int) -> Int { (x &+ unit &- 1) / unit &* unit }
  private func round(_ p: UnsafeMutablePointer<Float>, _ n: Int) {
    for i in 0..<n { p[i] = floatFromBF16(bf16FromFloat(p[i])) }
  }
}
