import COpenBLAS
import CThalweg
import Glibc

/// Dense matrices in row-major order, on OpenBLAS but for small products. Small factorisations run in double whatever
/// the tensor's type.
public enum LinearAlgebra {
  /// Throws TW_ERROR_UNSUPPORTED when OpenBLAS is missing.
  public static func require() throws(Failure) {
    guard twb_available() else { throw Failure(Status.unsupported, String(cString: twb_description())) }
  }
  /// Rows of a panel. Large products are cut into panels by size alone and the panels run side by side, each on one
  /// thread of OpenBLAS: the same bits for any number of threads, which OpenBLAS's own threads do not promise.
  private static let panel = 256
  private static func large(_ m: Int, _ n: Int, _ k: Int) -> Bool { m > panel && isLarge(m, n, k) }
  /// A product that is worth more threads than one.
  static func isLarge(_ m: Int, _ n: Int, _ k: Int) -> Bool { Double(m) * Double(n) * Double(k) >= 0x1p24 }

  /// OpenBLAS counts in 32 bits: sides, and (in LAPACK) elements and work space too.
  private static func fits(_ sizes: Int...) throws(Failure) {
    guard sizes.allSatisfy({ $0 <= Int(Int32.max) }) else {
      throw Failure(Status.shape, "the matrix is too large for the installed LAPACK")
    }
  }

  /// c ← alpha·op(a)·op(b) + beta·c, with c of shape (m, n) and k the inner size; leading dimensions are those of dense
  /// operands.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func multiply<T: Real>(
    _ a: UnsafePointer<T>, transposed ta: Bool = false, _ b: UnsafePointer<T>, transposed tb: Bool = false,
    into c: UnsafeMutablePointer<T>,
    _ m: Int, _ n: Int, _ k: Int, alpha: Double = 1, beta: Double = 0
  ) throws(Failure) {
    try require()
    try fits(m, n, k)
    guard m > 0, n > 0 else { return }
    if SmallProducts.takes(m, n, k) {
      return SmallProducts.multiply(a, transposed: ta, b, transposed: tb, into: c, m, n, k, alpha: alpha, beta: beta)
    }
    let rows = large(m, n, k) ? panel : m
    let (lda, ldb) = (Int32(max(1, ta ? m : k)), Int32(max(1, tb ? k : n)))
    Threads.run((m + rows - 1) / rows, parallel: rows < m) { p in
      let i = p * rows
      let count = Int32(min(rows, m - i))
      let panel = a + (ta ? i : i * k), out = c + i * n
      if T.isDouble {
        twb_dgemm(
          ta, tb, count, Int32(n), Int32(k), alpha, rebind(panel), lda, rebind(b), ldb, beta, rebind(out), Int32(n))
      } else {
        twb_sgemm(
          ta, tb, count, Int32(n), Int32(k), Float(alpha), rebind(panel), lda, rebind(b), ldb, Float(beta), rebind(out),
          Int32(n))
      }
    }
  }

  /// c ← alpha·a·aᵀ + beta·c (aᵀ·a when `transposed`), both triangles filled; a is (n, k), or (k, n) when transposed.
  /// `symmetric`: a is so itself, to the last bit.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func gram<T: Real>(
    _ a: UnsafePointer<T>, transposed: Bool = false, symmetric: Bool = false, into c: UnsafeMutablePointer<T>,
    _ n: Int, _ k: Int, alpha: Double = 1, beta: Double = 0
  ) throws(Failure) {
    try require()
    try fits(n, k)
    guard n > 0 else { return }
    if SmallProducts.takes(n, n, k) {
      // (the right factor is read as it lies where it may be)
      let (left, right) = symmetric ? (false, false) : (transposed, !transposed)
      return SmallProducts.multiply(
        a, transposed: left, a, transposed: right, into: c, n, n, k, alpha: alpha, beta: beta)
    }
    let lda = Int32(max(1, transposed ? n : k))
    let rows = large(n, n, k) ? panel : n
    // the block on the diagonal by the symmetric kernel, what is right of it by the general one
    Threads.run((n + rows - 1) / rows, parallel: rows < n) { p in
      let i = p * rows
      let end = min(i + rows, n)
      let own = a + (transposed ? i : i * k), rest = a + (transposed ? end : end * k)
      let diagonal = c + (i * n + i), right = c + (i * n + end)
      if T.isDouble {
        twb_dsyrk(transposed, Int32(end - i), Int32(k), alpha, rebind(own), lda, beta, rebind(diagonal), Int32(n))
        if end < n {
          twb_dgemm(
            transposed, !transposed, Int32(end - i), Int32(n - end), Int32(k), alpha, rebind(own), lda, rebind(rest),
            lda, beta, rebind(right), Int32(n))
        }
      } else {
        twb_ssyrk(
          transposed, Int32(end - i), Int32(k), Float(alpha), rebind(own), lda, Float(beta), rebind(diagonal), Int32(n))
        if end < n {
          twb_sgemm(
            transposed, !transposed, Int32(end - i), Int32(n - end), Int32(k), Float(alpha), rebind(own), lda,
            rebind(rest), lda, Float(beta), rebind(right),
            Int32(n))
        }
      }
    }
    mirror(c, n)
  }

  /// b ← op(a)·b (`left`) or b·op(a), or with the inverse of op(a), for the upper triangle a of a square; b is (m, n).
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func triangle<T: Real>(
    _ a: UnsafePointer<T>, transposed: Bool, left: Bool, solves: Bool, _ b: UnsafeMutablePointer<T>, _ m: Int, _ n: Int
  ) throws(Failure) {
    try require()
    try fits(m, n)
    guard m > 0, n > 0 else { return }
    let side = left ? m : n, lines = left ? n : m
    let wide = large(lines, side, side) ? panel : lines
    Threads.run((lines + wide - 1) / wide, parallel: wide < lines) { p in
      let first = p * wide, count = Int32(min(wide, lines - first))
      let (rows, columns) = left ? (Int32(m), count) : (count, Int32(n)), part = b + (left ? first : first * n)
      if T.isDouble {
        twb_dtriangle(solves, left, transposed, rows, columns, rebind(a), Int32(side), rebind(part), Int32(n))
      } else {
        twb_striangle(solves, left, transposed, rows, columns, rebind(a), Int32(side), rebind(part), Int32(n))
      }
    }
  }

  /// Copies the upper triangle into the lower, in tiles that stay in cache.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public static func mirror<T: Real>(_ c: UnsafeMutablePointer<T>, _ n: Int) {
    let tile = 16
    var i0 = 0
    while i0 < n {
      var j0 = i0
      while j0 < n {
        let iEnd = min(i0 &+ tile, n), jEnd = min(j0 &+ tile, n)
        var j = j0
        while j < jEnd {
          let row = c + j &* n, end = min(iEnd, j)
          var i = i0
          while i < end {
            row[i] = c[i &* n &+ j]
            i &+= 1
          }
          j &+= 1
        }
        j0 &+= tile
      }
      i0 &+= tile
    }
  }

  @inlinable @inline(__always) static func rebind<T, U>(_ p: UnsafePointer<T>) -> UnsafePointer<U> {
    UnsafeRawPointer(p).assumingMemoryBound(to: U.self)
  }
  @inlinable @inline(__always) static func rebind<T, U>(_ p: UnsafeMutablePointer<T>) -> UnsafeMutablePointer<U> {
    UnsafeMutableRawPointer(p).assumingMemoryBound(to: U.self)
  }

  /// A thin singular value decomposition a = U·diag(s)·Vᵀ of an (m, n) matrix: U (m, r), s (r), Vᵀ (r, n), r = min(m,
  /// n), s descending. Signs follow the house rule: in every column of U the entry of largest magnitude is positive
  /// (lowest index on a tie).
  public struct SVD {
    public var u: [Double], s: [Double], vt: [Double]
    public var m: Int, n: Int
    public var r: Int { s.count }

    @_specialize(where T == Float)
    @_specialize(where T == Double)
    public init<T: Real>(_ a: UnsafePointer<T>, _ m: Int, _ n: Int) throws(Failure) {
      try LinearAlgebra.require()
      let r = min(m, n)
      try LinearAlgebra.fits(m, n, 8 &* r, 5 &* r &* (r &+ 8), m &* n)
      // LAPACK may never return from numbers that are not finite.
      guard Flat.isFinite(a, m &* n) else {
        throw Failure(Status.nonfinite, "a matrix to decompose has elements that are NaN or infinite")
      }
      try Memory.ask(8 * (m * n + r * (m + n + 5)))
      (self.m, self.n) = (m, n)
      // Row-major a is column-major aᵀ: LAPACK's U is our V, its Vᵀ our Uᵀ.
      var copy = (0..<(m * n)).map { Double(a[$0]) }
      s = [Double](repeating: 0, count: r)
      guard r > 0 else { (u, vt) = ([], []); return }
      var v = [Double](repeating: 0, count: n * r), ut = [Double](repeating: 0, count: r * m)
      var iwork = [Int32](repeating: 0, count: 8 * r)
      var size = [0.0]
      var info = twb_dgesdd(Int32(n), Int32(m), &copy, Int32(n), &s, &v, Int32(n), &ut, Int32(r), &size, -1, &iwork)
      let lwork = info == 0 && size[0] <= Double(Int32.max) ? Int(size[0]) : 0
      try Memory.ask(8 * lwork)
      var work = [Double](repeating: 0, count: max(1, lwork))
      info = twb_dgesdd(
        Int32(n), Int32(m), &copy, Int32(n), &s, &v, Int32(n), &ut, Int32(r), &work, Int32(work.count), &iwork)
      guard info == 0 else {
        throw Failure(Status.numeric, "the singular value decomposition did not converge (info \(info))")
      }
      // v: column-major (n, r), so row-major (r, n): our Vᵀ. ut: column-major (r, m), so row-major (m, r): our U.
      (u, vt) = (ut, v)
      for k in 0..<r {
        var top = 0
        for i in 0..<m where abs(u[i * r + k]) > abs(u[top * r + k]) { top = i }
        if u[top * r + k] < 0 {
          for i in 0..<m { u[i * r + k] = -u[i * r + k] }
          for j in 0..<n { vt[k * n + j] = -vt[k * n + j] }
        }
      }
    }

    /// out[i, j] = Σ_k U[i, k]·f(s_k)·Vᵀ[k, j].
    @_specialize(where T == Float)
    @_specialize(where T == Double)
    public func compose<T: Real>(_ out: UnsafeMutablePointer<T>, _ f: (Double) -> Double) throws(Failure) {
      let r = self.r
      try Memory.ask(8 * m * (r + n))
      var scaled = u
      for k in 0..<r {
        let x = f(s[k])
        for i in 0..<m { scaled[i * r + k] *= x }
      }
      var product = [Double](repeating: 0, count: m * n)
      let (m, n) = (self.m, self.n)
      try LinearAlgebra.multiply(scaled, vt, into: &product, m, n, r)
      for i in 0..<(m * n) { out[i] = T(product[i]) }
    }
  }

  /// The eigenvalues of a symmetric (n, n) matrix, descending, and its eigenvectors, the columns of a row-major matrix.
  /// Signs follow the house rule: in every vector the entry of largest magnitude is positive (lowest index on a tie).
  /// The upper triangle is read.
  public struct Eigen {
    public private(set) var values: [Double], vectors: [Double]
    public let n: Int

    @_specialize(where T == Float)
    @_specialize(where T == Double)
    public init<T: Real>(_ a: UnsafePointer<T>, _ n: Int) throws(Failure) {
      try LinearAlgebra.require()
      try LinearAlgebra.fits(n &* n, 2 &* n &* n &+ 6 &* n &+ 1)
      guard Flat.isFinite(a, n &* n) else {
        throw Failure(Status.nonfinite, "a matrix to decompose has elements that are NaN or infinite")
      }
      try Memory.ask(8 * (4 * n * n + 16 * n + 16))
      self.n = n
      values = [Double](repeating: 0, count: n)
      vectors = (0..<(n * n)).map { Double(a[$0]) }
      guard n > 0 else { return }
      // LAPACK's matrix is our transpose: its lower triangle is our upper one.
      LinearAlgebra.mirror(&vectors, n)
      var work = [Double](repeating: 0, count: 2 * n * n + 6 * n + 1)
      var iwork = [Int32](repeating: 0, count: 5 * n + 3)
      let info = twb_dsyevd(
        Int32(n), &vectors, Int32(n), &values, &work, Int32(work.count), &iwork, Int32(iwork.count))
      guard info == 0 else {
        throw Failure(Status.numeric, "the eigenvalue decomposition did not converge (info \(info))")
      }
      // Rows are the vectors now, eigenvalues ascending.
      values.reverse()
      arrange(vectors) { n - 1 - $0 }
    }

    /// Column k becomes row `row(k)` of `rows`, with the sign of the house.
    private mutating func arrange(_ rows: [Double], columns: Swift.Range<Int>? = nil, _ row: (Int) -> Int) {
      for k in columns ?? 0..<n {
        let v = row(k) * n
        var top = 0
        for i in 0..<n where abs(rows[v + i]) > abs(rows[v + top]) { top = i }
        let sign = rows[v + top] < 0 ? -1.0 : 1.0
        for i in 0..<n { vectors[i * n + k] = sign * rows[v + i] }
      }
    }

    /// Eigenvalues of at most `floor` times the largest count as zero, and the basis of their space becomes one that
    /// rounding does not choose: that in which diag(1, ..., n) is diagonal, descending. Of the zero matrix it is the
    /// identity with its columns reversed.
    public func canonical(below floor: Double) throws(Failure) -> Eigen {
      let kept = values.firstIndex { $0 <= floor * max(values[0], 0) } ?? n
      let z = n - kept
      guard z > 0 else { return self }
      try Memory.ask(8 * n * (n + 3 * z))
      var null = [Double](repeating: 0, count: n * z), weighted = null
      for i in 0..<n {
        for k in 0..<z {
          null[i * z + k] = vectors[i * n + kept + k]
          weighted[i * z + k] = Double(i + 1) * null[i * z + k]
        }
      }
      var small = [Double](repeating: 0, count: z * z), turned = [Double](repeating: 0, count: z * n)
      try LinearAlgebra.multiply(null, transposed: true, weighted, into: &small, z, z, n)
      let inner = try Eigen(small, z)
      try LinearAlgebra.multiply(inner.vectors, transposed: true, null, transposed: true, into: &turned, z, n, z)
      var out = self
      out.arrange(turned, columns: kept..<n) { $0 - kept }
      return out
    }

    /// out = V·diag(f(λ))·Vᵀ.
    @_specialize(where T == Float)
    @_specialize(where T == Double)
    public func compose<T: Real>(_ out: UnsafeMutablePointer<T>, _ f: (Double) -> Double) throws(Failure) {
      try Memory.ask(16 * n * n)
      var scaled = vectors, product = vectors
      let factors = values.map(f)
      for i in 0..<n { for k in 0..<n { scaled[i * n + k] *= factors[k] } }
      try LinearAlgebra.multiply(scaled, transposed: false, vectors, transposed: true, into: &product, n, n, n)
      for i in 0..<(n * n) { out[i] = T(product[i]) }
    }
  }

  /// The thin Q of a = QR where the columns of a are not far from orthogonal, by products alone, up to `loss` of
  /// orthogonality: with columns of length one, R is the Cholesky factor of their Gram matrix. nil where they are not
  /// that near.
  static func nearlyOrthonormal(_ a: [Double], _ m: Int, _ n: Int, loss: Double) throws(Failure) -> [Double]? {
    try require()
    try fits(m &* n)
    try Memory.ask(8 * n * (m + n))
    var gram = [Double](repeating: 0, count: n * n), q = a
    try LinearAlgebra.gram(a, transposed: true, into: &gram, n, m)
    let scales = (0..<n).map { 1 / gram[$0 * (n + 1)].squareRoot() }
    guard scales.allSatisfy({ $0 > 1e-150 && $0 < 1e150 }) else { return nil }
    // the upper triangle alone is read: LAPACK's lower one
    for i in 0..<n { for j in i..<n { gram[i * n + j] *= scales[i] * scales[j] } }
    guard twb_dpotrf(Int32(n), &gram, Int32(n)) == 0 else { return nil }
    let least = (0..<n).reduce(1) { min($0, gram[$1 * (n + 1)]) }
    guard least * least * loss > Double.ulpOfOne * Double(n).squareRoot() else { return nil }
    for i in 0..<m { for j in 0..<n { q[i * n + j] *= scales[j] } }
    try triangle(gram, transposed: false, left: false, solves: true, &q, m, n)
    return q
  }

  /// The thin Q of a = QR for an (m, n) row-major matrix, m ≥ n, with the diagonal of R positive.
  /// `loss`: of orthogonality, from 128 columns on, where that is more than the rounding of doubles.
  public static func orthonormal(_ a: [Double], _ m: Int, _ n: Int, loss: Double = 0) throws(Failure) -> [Double] {
    if loss > Double.ulpOfOne * Double(n).squareRoot(), n >= 128, m >= n, a.count == m &* n,
      let near = try nearlyOrthonormal(a, m, n, loss: loss)
    {
      return near
    }
    try require()
    try fits(m &* n, 64 &* n)
    guard m > 0, n > 0 else { return a }
    guard m >= n, a.count == m &* n else {
      throw Failure(Status.shape, "\(n) columns of length \(m) cannot be orthonormal")
    }
    try Memory.ask(8 * (2 * m * n + 65 * n))
    var c = [Double](repeating: 0, count: m * n)
    for i in 0..<m { for j in 0..<n { c[j * m + i] = a[i * n + j] } }
    var tau = [Double](repeating: 0, count: n)
    var work = [Double](repeating: 0, count: 64 * max(n, 1))
    var info = twb_dgeqrf(Int32(m), Int32(n), &c, Int32(m), &tau, &work, Int32(work.count))
    guard info == 0 else { throw Failure(Status.numeric, "the QR factorisation failed (info \(info))") }
    let signs = (0..<n).map { c[$0 * m + $0] < 0 ? -1.0 : 1.0 }
    info = twb_dorgqr(Int32(m), Int32(n), Int32(n), &c, Int32(m), tau, &work, Int32(work.count))
    guard info == 0 else { throw Failure(Status.numeric, "the QR factorisation failed (info \(info))") }
    var q = [Double](repeating: 0, count: m * n)
    for i in 0..<m { for j in 0..<n { q[i * n + j] = c[j * m + i] * signs[j] } }
    return q
  }

  /// Solves a·x = b for symmetric positive definite a (n, n); b is (n, k) row-major. `least`: what has to be left of an
  /// entry of the diagonal behind the columns before it.
  public static func solvePositive(
    _ a: [Double], _ b: [Double], _ n: Int, _ k: Int, least: Double = 0
  ) throws(Failure) -> [Double] {
    try require()
    try fits(n &* n, n &* k)
    guard n > 0, k > 0 else { return b }
    try Memory.ask(8 * n * (n + 2 * k))
    var l = a
    let info = twb_dpotrf(Int32(n), &l, Int32(n))
    guard info == 0, (0..<n).allSatisfy({ l[$0 * (n + 1)] * l[$0 * (n + 1)] > least * a[$0 * (n + 1)] }) else {
      throw Failure(Status.numeric, "the matrix is not positive definite (info \(info))")
    }
    var x = transposed(b, n, k)
    guard twb_dpotrs(Int32(n), Int32(k), l, Int32(n), &x, Int32(n)) == 0 else {
      throw Failure(Status.numeric, "the triangular solve failed")
    }
    return transposed(x, k, n)
  }

  /// The inverse of a symmetric positive definite matrix (n, n).
  public static func invertPositive(_ a: [Double], _ n: Int) throws(Failure) -> [Double] {
    try require()
    try fits(n &* n)
    guard n > 0 else { return a }
    try Memory.ask(8 * n * n)
    var l = a
    var info = twb_dpotrf(Int32(n), &l, Int32(n))
    if info == 0 { info = twb_dpotri(Int32(n), &l, Int32(n)) }
    guard info == 0 else { throw Failure(Status.numeric, "the matrix is not positive definite (info \(info))") }
    // LAPACK's lower triangle is our upper one
    l.withUnsafeMutableBufferPointer { if let p = $0.baseAddress { mirror(p, n) } }
    return l
  }

  /// Solves a·x = b for square a (n, n); b is (n, k) row-major.
  public static func solve(_ a: [Double], _ b: [Double], _ n: Int, _ k: Int) throws(Failure) -> [Double] {
    try require()
    try fits(n &* n, n &* k)
    guard n > 0, k > 0 else { return b }
    try Memory.ask(8 * n * (n + 2 * k + 1))
    var lu = transposed(a, n, n)
    var pivot = [Int32](repeating: 0, count: n)
    var x = transposed(b, n, k)
    let info = twb_dgesv(Int32(n), Int32(k), &lu, Int32(n), &pivot, &x, Int32(n))
    guard info == 0 else { throw Failure(Status.numeric, "the linear system is singular (info \(info))") }
    return transposed(x, k, n)
  }

  /// The transpose of an (m, n) row-major matrix.
  public static func transposed(_ a: [Double], _ m: Int, _ n: Int) -> [Double] {
    var t = [Double](repeating: 0, count: m * n)
    for i in 0..<m { for j in 0..<n { t[j * m + i] = a[i * n + j] } }
    return t
  }
}
