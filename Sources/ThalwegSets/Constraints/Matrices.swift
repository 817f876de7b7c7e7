import Glibc
import ThalwegCore

/// A dense row-major matrix in double: what sets and penalties of matrices compute with.
struct Matrix64 {
  var a: [Double]
  let m: Int, n: Int

  init(_ a: [Double], _ m: Int, _ n: Int) { (self.a, self.m, self.n) = (a, m, n) }
  init(zeros m: Int, _ n: Int) throws(Failure) {
    try Memory.ask(8 &* m &* n)
    self.init([Double](repeating: 0, count: m * n), m, n)
  }
  static func identity(_ n: Int) throws(Failure) -> Matrix64 {
    var i = try Matrix64(zeros: n, n)
    for k in 0..<n { i.a[k * n + k] = 1 }
    return i
  }
  /// A copy; all finite.
  init<T: Real>(_ x: UnsafePointer<T>, _ m: Int, _ n: Int, _ method: String) throws(Failure) {
    self.init(try doubles(x, m * n, method), m, n)
  }

  subscript(_ i: Int, _ j: Int) -> Double {
    get { a[i * n + j] }
    set { a[i * n + j] = newValue }
  }
  var transposed: Matrix64 { Matrix64(LinearAlgebra.transposed(a, m, n), n, m) }
  var squaredNorm: Double { Flat.squaredNorm(a, a.count) }
  /// op(self)·op(b).
  func times(_ b: Matrix64, transposed ta: Bool = false, _ tb: Bool = false) throws(Failure) -> Matrix64 {
    var c = try Matrix64(zeros: ta ? n : m, tb ? b.m : b.n)
    try LinearAlgebra.multiply(a, transposed: ta, b.a, transposed: tb, into: &c.a, c.m, c.n, ta ? m : n)
    return c
  }
  static func + (a: Matrix64, b: Matrix64) -> Matrix64 { Matrix64(zip(a.a, b.a).map { $0 + $1 }, a.m, a.n) }
  static func - (a: Matrix64, b: Matrix64) -> Matrix64 { Matrix64(zip(a.a, b.a).map { $0 - $1 }, a.m, a.n) }
  static func * (x: Double, a: Matrix64) -> Matrix64 { Matrix64(a.a.map { x * $0 }, a.m, a.n) }
  /// (a + aᵀ)/2 of a square matrix.
  var symmetric: Matrix64 {
    var s = self
    for i in 0..<n {
      for j in 0..<i {
        let x = 0.5 * (a[i &* n &+ j] + a[j &* n &+ i])
        (s.a[i &* n &+ j], s.a[j &* n &+ i]) = (x, x)
      }
    }
    return s
  }
  /// How far it is from the identity.
  var awayFromIdentity: Matrix64 {
    var d = self
    for k in 0..<n { d.a[k * n + k] -= 1 }
    return d
  }

  func write<T: Real>(_ x: UnsafeMutablePointer<T>) { for i in a.indices { x[i] = T(a[i]) } }
  func add<T: Real>(to x: UnsafeMutablePointer<T>, times factor: Double) {
    for i in a.indices { x[i] += T(factor * a[i]) }
  }
}

/// The eigenvalues of a symmetric matrix, ascending, and its eigenvectors in rows.
struct Eigen {
  let values: [Double], vectors: Matrix64

  init(_ s: Matrix64) throws(Failure) {
    let n = s.n, e = try LinearAlgebra.Eigen(s.a, n)
    var rows = try Matrix64(zeros: n, n)
    for k in 0..<n { for j in 0..<n { rows[k, j] = e.vectors[j * n + n - 1 - k] } }
    (values, vectors) = (e.values.reversed(), rows)
  }

  /// Σ f(λ)·v vᵀ, symmetric to the last bit.
  func compose(_ f: (Double) -> Double) throws(Failure) -> Matrix64 {
    var scaled = vectors
    for k in values.indices {
      let x = f(values[k])
      for j in 0..<scaled.n { scaled[k, j] *= x }
    }
    return try vectors.times(scaled, transposed: true).symmetric
  }
}

extension Matrix64 {
  /// I + Σ c_k·aᵏ, c_k = ratio(k)·c_{k−1} and c_0 = 1, to rounding: for a norm well below 1 and coefficients that do
  /// not grow.
  private func series(_ ratio: (Int) -> Double) throws(Failure) -> Matrix64 {
    let norm = squaredNorm.squareRoot()
    var sum = try Matrix64.identity(n), power = self
    var (k, c, size) = (1, ratio(1), norm)
    while abs(c) * size > 0x1p-56 {
      Flat.add(power.a, times: c, into: &sum.a, n * n)
      k += 1
      (c, size) = (c * ratio(k), size * norm)
      power = try power.times(self)
    }
    return sum
  }
  /// Whether the series below are short.
  var isNear: Bool { squaredNorm <= 1 / 16 }

  /// The exponential of a symmetric matrix: by its series where it is short, else by eigenvalues.
  func exponential() throws(Failure) -> Matrix64 {
    isNear ? try series { 1 / Double($0) }.symmetric : try Eigen(self).compose { exp($0) }
  }
  /// The power 1/2 or −1/2 of a positive definite matrix, in the same way around the identity.
  func root(inverse: Bool = false) throws(Failure) -> Matrix64 {
    let away = awayFromIdentity, exponent = inverse ? -0.5 : 0.5
    if away.isNear { return try away.series { (exponent + 1 - Double($0)) / Double($0) }.symmetric }
    return try Eigen(self).compose { inverse ? 1 / $0.squareRoot() : $0.squareRoot() }
  }
}

/// X = F·Fᵀ of a symmetric positive definite matrix: F lower triangular, or X^½ where rounding leaves no positive
/// pivot.
struct SquareRoot {
  private let f: Matrix64, inverse: Matrix64?

  /// Throws TW_ERROR_NUMERIC where it is not positive definite.
  init(_ x: Matrix64, _ method: String) throws(Failure) {
    if let lower = SquareRoot.triangle(x) {
      (f, inverse) = (lower, nil)
      return
    }
    let e = try Eigen(x)
    if let least = e.values.first, !(least > 0) {
      throw Failure(
        Status.numeric, "\(method): a point is not positive definite, its least eigenvalue is \(text(least))")
    }
    (f, inverse) = (try e.compose { $0.squareRoot() }, try e.compose { 1 / $0.squareRoot() })
  }

  /// Cholesky's factor, row by row; nil where a pivot is not positive.
  private static func triangle(_ x: Matrix64) -> Matrix64? {
    let n = x.n
    var f = x
    let complete = f.a.withUnsafeMutableBufferPointer { (all) -> Bool in
      guard let a = all.baseAddress else { return true }
      for i in 0..<n {
        let row = a + i &* n
        for j in 0..<i {
          let other = a + j &* n
          row[j] = (row[j] - Flat.dot(UnsafePointer(row), UnsafePointer(other), j)) / other[j]
        }
        let pivot = row[i] - Flat.squaredNorm(UnsafePointer(row), i)
        guard pivot > 0, pivot < .infinity else { return false }
        row[i] = pivot.squareRoot()
        for j in (i &+ 1)..<max(n, i &+ 1) { row[j] = 0 }
      }
      return true
    }
    return complete ? f : nil
  }

  /// F⁻¹·b.
  func divide(_ b: Matrix64) throws(Failure) -> Matrix64 {
    if let inverse { return try inverse.times(b) }
    let n = f.n, width = b.n
    var out = b
    out.a.withUnsafeMutableBufferPointer { all in
      guard let a = all.baseAddress else { return }
      for i in 0..<n {
        let row = a + i &* width
        for k in 0..<i {
          Flat.add(UnsafePointer(a + k &* width), times: -f.a[i &* n &+ k], into: row, width)
        }
        Flat.scale(UnsafePointer(row), by: 1 / f.a[i &* n &+ i], into: row, width)
      }
    }
    return out
  }
  /// F⁻¹·u·F⁻ᵀ of a symmetric matrix.
  func inside(_ u: Matrix64) throws(Failure) -> Matrix64 { try divide(divide(u).transposed).symmetric }
  /// F·u·Fᵀ of a symmetric matrix.
  func outside(_ u: Matrix64) throws(Failure) -> Matrix64 {
    try f.times(u).times(f, transposed: false, true).symmetric
  }
}

/// For `accepts`: square matrices.
func square(_ shape: Shape, _ method: String) throws(Failure) {
  try matrix(shape, method)
  guard shape.rows == shape.columns else {
    throw Failure(
      Status.shape, "\(method) needs a square matrix view, got \(shape.rows) rows and \(shape.columns) columns")
  }
}

/// A fixed unit vector that is orthogonal to no structured one: where power iterations start.
func startVector(_ n: Int) -> [Double] {
  let v = (0..<n).map { i in
    let x = Double(i + 1) * 0.618_033_988_749_894_9
    return x - x.rounded(.down) - 0.5
  }
  let norm = v.reduce(0) { $0 + $1 * $1 }.squareRoot()
  return v.map { $0 / norm }
}
