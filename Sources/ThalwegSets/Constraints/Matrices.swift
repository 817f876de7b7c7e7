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
  var squaredNorm: Double { a.reduce(0) { $0 + $1 * $1 } }
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
  var symmetric: Matrix64 { 0.5 * (self + transposed) }

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
