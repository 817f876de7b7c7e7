import ThalwegCore

/// Matrices with orthonormal columns, or rows when there are fewer of them.
///
///     X is the matrix view or its transpose, n × p with n ≥ p, XᵀX = I
///     tangent: G − X·sym(XᵀG) (euclidean),  G − X·Gᵀ·X (canonical)
///     retract: qr    the Q of X + U, the diagonal of R positive
///              polar the polar factor of X + U
///              cayley (I − A/2)·Y = (I + A/2)·X,  A = PUXᵀ − XUᵀP,  P = I − XXᵀ/2
///     project: the polar factor
///     inner: tr UᵀV (euclidean), tr Uᵀ(I − XXᵀ/2)V (canonical);  transport: the tangent part at the new point
///     no exponential map, logarithm or distance
///
/// Differs  geoopt's Cayley step takes A = UXᵀ − XUᵀ, which doubles the part of U along X: not followed. All in double.
///          A matrix that is orthonormal to rounding is not changed by `project`.
/// Source   Edelman, Arias and Smith, 1998, arXiv:physics/9806030; Wen and Yin, 2013.
struct Stiefel: Manifold {
  static let method = Method(
    "stiefel", .constraint, "Matrices with orthonormal columns, or rows when there are fewer of them.",
    rule: """
      X the matrix view or its transpose, n x p, n >= p
      tangent: G - X sym(X'G) (euclidean), G - X G'X (canonical);  project: polar factor
      retract: Q of X + U (qr), polar factor of X + U, or (I - A/2)Y = (I + A/2)X, A = PUX' - XU'P, P = I - XX'/2 \
      (cayley)
      """,
    source: "Edelman, Arias, Smith, 1998, arXiv:physics/9806030; Wen, Yin, 2013",
    parameters: [
      .choice("metric", ["euclidean", "canonical"], "how a gradient becomes a tangent"),
      .choice("retraction", ["qr", "polar", "cayley"], "how a tangent step becomes a point"),
    ])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "stiefel") }

  let canonical: Bool, retraction: Int
  init(_ h: Hyper) {
    canonical = h.is("metric", "canonical")
    retraction = h.is("retraction", "qr") ? 0 : h.is("retraction", "polar") ? 1 : 2
  }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let size = Size(w)
    let x = try size.read(w.v)
    let error = try gram(x, size).awayFromIdentity.a.reduce(0) { max($0, abs($1)) }
    if error <= Double(16 + size.p) * Double(T.ulpOfOne) { return }
    size.write(try polar(x, size), w.v)
  }

  func tangent<T: Real>(_ w: Whole<T>) throws(Failure) { try tangent(w, canonical) }
  func orthogonal<T: Real>(_ w: Whole<T>) throws(Failure) { try tangent(w, false) }
  private func tangent<T: Real>(_ w: Whole<T>, _ canonical: Bool) throws(Failure) {
    let size = Size(w), p = size.p
    let x = try size.read(w.w), g = try size.read(w.v)
    let a = try product(x, g, p, p, size.n, transposed: true)  // XᵀG
    var s = LinearAlgebra.transposed(a, p, p)  // GᵀX
    if !canonical { for i in s.indices { s[i] = (s[i] + a[i]) / 2 } }
    size.write(try combine(g, 1, x, s, -1, size.n, p, p), w.v)
  }
  /// tr UᵀU, or tr Uᵀ(I − XXᵀ/2)U in the canonical metric.
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) {
    try squaredLengths(w, .whole(w.shape))
    guard canonical else { return }
    let size = Size(w),
      along = try product(
        size.read(w.w), size.read(w.v), size.p, size.p, size.n, transposed: true)
    w.slots[0][0] -= T(along.reduce(0) { $0 + $1 * $1 } / 2)
  }

  func inner<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] {
    let flat = products(w, .whole(w.shape))
    guard canonical else { return flat }
    let size = Size(w), p = size.p, x = try size.read(w.w)
    let u = try product(x, size.read(w.v), p, p, size.n, transposed: true)
    let v = try product(x, size.read(w.slots[0]), p, p, size.n, transposed: true)
    return [flat[0] - Flat.dot(u, v, p * p) / 2]
  }

  func retract<T: Real>(_ w: Whole<T>) throws(Failure) {
    let size = Size(w), n = size.n, p = size.p
    let x = try size.read(w.w), u = try size.read(w.v)
    if retraction == 2 { return size.write(try cayley(x, u, n, p), w.v) }
    var moved = x
    Flat.add(u, times: 1, into: &moved, n &* p)
    size.write(retraction == 0 ? try orthonormal(moved, size) : try polar(moved, size), w.v)
  }

  /// Y = X + (I − A/2)⁻¹·A·X with A = L·Rᵀ, L = [PU, X], R = [X, −PU]: a system of size n, or of size 2p where that is
  /// smaller.
  private func cayley(_ x: [Double], _ u: [Double], _ n: Int, _ p: Int) throws(Failure) -> [Double] {
    let pu = try combine(u, 1, x, try product(x, u, p, p, n, transposed: true), -0.5, n, p, p)
    try Memory.ask(32 * n * p)
    var l = [Double](repeating: 0, count: n * 2 * p), r = l
    for i in 0..<n {
      for j in 0..<p {
        (l[i * 2 * p + j], l[i * 2 * p + p + j]) = (pu[i * p + j], x[i * p + j])
        (r[i * 2 * p + j], r[i * 2 * p + p + j]) = (x[i * p + j], -pu[i * p + j])
      }
    }
    let rx = try product(r, x, 2 * p, p, n, transposed: true)
    if 2 * p < n {
      var m = try product(r, l, 2 * p, 2 * p, n, transposed: true)
      for i in m.indices { m[i] = (i / (2 * p) == i % (2 * p) ? 1 : 0) - m[i] / 2 }
      return try combine(x, 1, l, try LinearAlgebra.solve(m, rx, 2 * p, p), 1, n, p, 2 * p)
    }
    let ax = try product(l, rx, n, p, 2 * p)
    var m = try product(l, LinearAlgebra.transposed(r, n, 2 * p), n, n, 2 * p)
    for i in m.indices { m[i] = (i / n == i % n ? 1 : 0) - m[i] / 2 }
    return zip(x, try LinearAlgebra.solve(m, ax, n, p)).map { $0 + $1 }
  }

  private func gram(_ x: [Double], _ size: Size) throws(Failure) -> Matrix64 {
    Matrix64(try product(x, x, size.p, size.p, size.n, transposed: true), size.p, size.p)
  }
  /// The Q of X = QR: Qᵀ = R⁻ᵀXᵀ with XᵀX = RᵀR where the columns are nearly orthonormal, as after a short step.
  private func orthonormal(_ x: [Double], _ size: Size) throws(Failure) -> [Double] {
    let gram = try gram(x, size)
    // its condition number is at most 3
    guard gram.awayFromIdentity.squaredNorm <= 0.25 else { return try LinearAlgebra.orthonormal(x, size.n, size.p) }
    let turned = Matrix64(LinearAlgebra.transposed(x, size.n, size.p), size.p, size.n)
    return try SquareRoot(gram, "stiefel").divide(turned).transposed.a
  }
  /// X·(XᵀX)^−½, by the singular values where that is no short series.
  private func polar(_ x: [Double], _ size: Size) throws(Failure) -> [Double] {
    let gram = try gram(x, size)
    if gram.awayFromIdentity.isNear {
      return try product(x, gram.root(inverse: true).a, size.n, size.p, size.p)
    }
    var out = x
    try LinearAlgebra.SVD(x, size.n, size.p).compose(&out) { _ in 1 }
    return out
  }
  /// a·b, or aᵀ·b, of shape (m, n) with k the inner size.
  private func product(_ a: [Double], _ b: [Double], _ m: Int, _ n: Int, _ k: Int, transposed: Bool = false)
    throws(Failure) -> [Double]
  {
    try Memory.ask(8 * m * n)
    var c = [Double](repeating: 0, count: m * n)
    try LinearAlgebra.multiply(a, transposed: transposed, b, into: &c, m, n, k)
    return c
  }
  /// beta·c + alpha·a·b.
  private func combine(
    _ c: [Double], _ beta: Double, _ a: [Double], _ b: [Double], _ alpha: Double, _ m: Int, _ n: Int, _ k: Int
  ) throws(Failure) -> [Double] {
    var out = c
    try LinearAlgebra.multiply(a, b, into: &out, m, n, k, alpha: alpha, beta: beta)
    return out
  }

  /// The tall view of a tensor: n × p, transposed where the matrix view is wide.
  private struct Size {
    let n: Int, p: Int, wide: Bool, rows: Int, columns: Int
    init<T: Real>(_ w: Whole<T>) {
      (rows, columns) = (w.rows, w.columns)
      wide = rows < columns
      (n, p) = wide ? (columns, rows) : (rows, columns)
    }
    func read<T: Real>(_ x: UnsafeMutablePointer<T>) throws(Failure) -> [Double] {
      guard Flat.isFinite(x, n &* p) else { throw Failure(Status.nonfinite, "stiefel: elements are NaN or infinite") }
      try Memory.ask(16 * n * p)
      let a = [Double](unsafeUninitializedCapacity: n &* p) { to, count in
        for i in 0..<(n &* p) { to[i] = Double(x[i]) }
        count = n &* p
      }
      return wide ? LinearAlgebra.transposed(a, rows, columns) : a
    }
    func write<T: Real>(_ a: [Double], _ x: UnsafeMutablePointer<T>) {
      let b = wide ? LinearAlgebra.transposed(a, n, p) : a
      for i in b.indices { x[i] = T(b[i]) }
    }
  }
}
