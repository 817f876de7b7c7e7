import ThalwegCore

/// The products of the rows of two matrices, S = x·yᵀ with x (n, d) and y (m, d), a tile at a time: S itself is never
/// held.
struct Tiles<T: Real> {
  let x: UnsafePointer<T>, n: Int, y: UnsafePointer<T>, m: Int, d: Int

  /// What is done with the products of row i of x with the rows j, j + 1, ... of y.
  typealias Row = (_ i: Int, _ j: Int, _ products: UnsafeMutablePointer<T>, _ count: Int) -> Void

  /// For one i the products come in the order of j; different i run side by side.
  func forEachRow(_ body: Row) throws(Failure) { try walk(nil, body) }

  /// out ← out + G·y, where `slopes` puts G in the place of the products.
  func pull(into out: UnsafeMutablePointer<T>, _ slopes: Row) throws(Failure) { try walk(out, slopes) }

  private func walk(_ out: UnsafeMutablePointer<T>?, _ body: Row) throws(Failure) {
    // wide enough for the product, narrow enough for the cache
    let height = min(n, 2048), width = min(m, 256), space = Workspace()
    defer { space.close() }
    let tile = try space.room(height * width, T.self)
    for i in stride(from: 0, to: n, by: height) {
      let rows = min(height, n - i)
      for j in stride(from: 0, to: m, by: width) {
        let columns = min(width, m - j)
        try LinearAlgebra.multiply(
          x + i * d, transposed: false, y + j * d, transposed: true, into: tile, rows, columns, d)
        _ = Rows.sum(rows, work: 16 * columns) { r in
          body(i + r, j, tile + r * columns, columns)
          return 0
        }
        if let out { try LinearAlgebra.multiply(tile, y + j * d, into: out + i * d, rows, d, columns, beta: 1) }
      }
    }
  }
}

/// Squared distances between rows, in the same way. They are those of the rows less the mean of x: what all rows have
/// in common would cancel in |x|² + |y|² − 2·x·y, and cost its digits.
struct DistanceTiles<T: Real> {
  private let tiles: Tiles<T>
  private let left: [Double], right: [Double]
  /// What the copies of the rows are multiplied by, a power of two: 1, but where squares could leave the range.
  private let unit: Double

  /// The copies of the rows live in `space`.
  init(_ x: UnsafePointer<T>, _ n: Int, _ y: UnsafePointer<T>, _ m: Int, _ d: Int, _ space: Workspace) throws(Failure) {
    let mean = try space.room(d, Double.self)
    for i in 0..<n { for k in 0..<d { mean[k] += Double(x[i * d + k]) / Double(n) } }
    // one row that is not finite must not spoil the others
    for k in 0..<d where !mean[k].isFinite { mean[k] = 0 }
    var top = 0.0
    for (rows, count) in [(x, n), (y, m)] {
      for i in 0..<count {
        for k in 0..<d {
          let size = abs(Double(rows[i * d + k]) - mean[k])
          if size > top, size.isFinite { top = size }
        }
      }
    }
    let isFar = top > 0x1p50 || (top < 0x1p-50 && top > 0)
    let unit = isFar ? 1 / Double(sign: .plus, exponent: top.exponent, significand: 1) : 1
    self.unit = unit
    func centred(_ rows: UnsafePointer<T>, _ count: Int) throws(Failure) -> UnsafePointer<T> {
      let out = try space.room(count * d, T.self)
      for i in 0..<count { for k in 0..<d { out[i * d + k] = T(unit * (Double(rows[i * d + k]) - mean[k])) } }
      return UnsafePointer(out)
    }
    let own = try centred(x, n), same = x == y && n == m, other = same ? own : try centred(y, m)
    tiles = Tiles(x: own, n: n, y: other, m: m, d: d)
    left = (0..<n).map { Flat.squaredNorm(own + $0 * d, d) }
    right = same ? left : (0..<m).map { Flat.squaredNorm(other + $0 * d, d) }
  }

  func forEachRow(_ body: (_ i: Int, _ j: Int, _ squared: Double) -> Void) throws(Failure) {
    try tiles.forEachRow { i, j, s, count in
      for k in 0..<count { body(i, j + k, distance(i, j + k, s[k])) }
    }
  }

  /// out_i ← out_i + Σ_j 2·c_ij·(x_i − y_j), with `slope` giving c_ij.
  func pull(into out: UnsafeMutablePointer<T>, _ slope: (_ i: Int, _ j: Int, _ squared: Double) -> Double)
    throws(Failure)
  {
    let space = Workspace(), d = tiles.d
    defer { space.close() }
    let mass = try space.room(tiles.n, Double.self)
    try tiles.pull(into: out) { i, j, s, count in
      for k in 0..<count {
        let c = 2 * slope(i, j + k, distance(i, j + k, s[k])) / unit
        mass[i] += c
        s[k] = T(-c)
      }
    }
    for i in 0..<tiles.n { Flat.add(tiles.x + i * d, times: mass[i], into: out + i * d, d) }
  }

  private func distance(_ i: Int, _ j: Int, _ product: T) -> Double {
    tiles.x == tiles.y && i == j ? 0 : larger(0, left[i] + right[j] - 2 * Double(product)) / unit / unit
  }
}

/// Rows scaled to length 1, u = x/max(‖x‖, 10⁻¹²), and the way back.
enum Directions {
  static func take<T: Real>(
    _ x: UnsafePointer<T>, _ n: Int, _ d: Int, into u: UnsafeMutablePointer<T>, norms: UnsafeMutablePointer<Double>
  ) {
    _ = Rows.sum(n, work: 2 * d) { i in
      norms[i] = Flat.norm(x + i * d, d)
      let length = larger(norms[i], 1e-12)
      for k in (i * d)..<((i + 1) * d) { u[k] = T(Double(x[k]) / length) }
      return 0
    }
  }
  /// g ← the gradient by x, from that by u. Below 10⁻¹² the length counts as constant.
  static func pull<T: Real>(
    _ g: UnsafeMutablePointer<T>, _ n: Int, _ d: Int, _ u: UnsafePointer<T>, norms: UnsafePointer<Double>
  ) {
    _ = Rows.sum(n, work: 4 * d) { i in
      let row = g + i * d, own = u + i * d
      let along = norms[i] > 1e-12 ? Flat.dot(row, own, d) : 0, length = larger(norms[i], 1e-12)
      for k in 0..<d { row[k] = T((Double(row[k]) - along * Double(own[k])) / length) }
      return 0
    }
  }
}
