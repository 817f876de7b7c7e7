import Glibc
import ThalwegCore

/// Subspaces, each as an orthonormal basis of its vectors: the columns of a tall matrix, or the rows of a wide one.
///
///     X is the matrix view or its transpose, n × p with n ≥ p, XᵀX = I
///     tangent: G − X(XᵀG)     project: the polar factor
///     retract: polar  the polar factor of X + U
///              qr     the Q of X + U, the diagonal of R positive
///              exp    X·V·cos(S)·Vᵀ + P·sin(S)·Vᵀ, U = P·S·Vᵀ a thin decomposition
///     transport: the tangent part at the new point
///     log: Σ θ_k/‖z_k‖·z_k·q_kᵀ, XᵀY = Q·C·Rᵀ, Z = Y·R − X·Q·C, θ_k = atan2(‖z_k‖, c_k) the principal angles
///     distance: √Σθ_k²
///
/// A matrix that is orthonormal to rounding is not changed by `project`. All in double.
/// Differs  pymanopt may give another basis of the same subspace: compare X·Xᵀ.
/// Source   Edelman, Arias and Smith, 1998, arXiv:physics/9806030.
struct Grassmann: Manifold {
  static let method = Method(
    "grassmann", .constraint, "Subspaces, as orthonormal columns, or rows when there are fewer of them.",
    rule: """
      X the matrix view or its transpose, n x p, n >= p;  tangent: G - X(X'G);  project: polar factor
      retract: polar factor of X + U (polar), its Q (qr), or X V cos(S) V' + P sin(S) V', U = P S V' (exp)
      """,
    source: "Edelman, Arias, Smith, 1998, arXiv:physics/9806030",
    parameters: [.choice("retraction", ["polar", "qr", "exp"], "how a tangent step becomes a point")])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "grassmann") }

  private enum Retraction { case polar, qr, exp }
  private let retraction: Retraction
  init(_ h: Hyper) {
    retraction = h.is("retraction", "polar") ? .polar : h.is("retraction", "qr") ? .qr : .exp
  }

  private func tall<T: Real>(_ x: UnsafePointer<T>, _ w: Whole<T>) throws(Failure) -> Matrix64 {
    let a = try Matrix64(x, w.rows, w.columns, "grassmann")
    return w.rows < w.columns ? a.transposed : a
  }
  private func put<T: Real>(_ a: Matrix64, _ w: Whole<T>) { (w.rows < w.columns ? a.transposed : a).write(w.v) }
  private func polar(_ a: Matrix64) throws(Failure) -> Matrix64 {
    var out = a
    try LinearAlgebra.SVD(a.a, a.m, a.n).compose(&out.a) { _ in 1 }
    return out
  }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let x = try tall(w.v, w), error = try x.times(x, transposed: true) - Matrix64.identity(x.n)
    if error.a.allSatisfy({ abs($0) <= Double(16 + x.n) * Double(T.ulpOfOne) }) { return }
    put(try polar(x), w)
  }
  func tangent<T: Real>(_ w: Whole<T>) throws(Failure) {
    let x = try tall(w.w, w), g = try tall(w.v, w)
    put(g - (try x.times(x.times(g, transposed: true))), w)
  }
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) { try squaredLengths(w, .whole(w.shape)) }
  func inner<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] { products(w, .whole(w.shape)) }
  func retract<T: Real>(_ w: Whole<T>) throws(Failure) { try retract(w, retraction) }
  func exponential<T: Real>(_ w: Whole<T>) throws(Failure) { try retract(w, .exp) }
  private func retract<T: Real>(_ w: Whole<T>, _ retraction: Retraction) throws(Failure) {
    let x = try tall(w.w, w), u = try tall(w.v, w), moved = x + u
    switch retraction {
    case .polar: put(try polar(moved), w)
    case .qr: put(Matrix64(try LinearAlgebra.orthonormal(moved.a, x.m, x.n), x.m, x.n), w)
    case .exp:
      let svd = try LinearAlgebra.SVD(u.a, u.m, u.n), v = Matrix64(svd.vt, svd.r, u.n)
      var turned = v, along = Matrix64(svd.u, u.m, svd.r)
      for k in 0..<svd.r {
        for j in 0..<u.n { turned[k, j] *= cos(svd.s[k]) }
        for i in 0..<u.m { along[i, k] *= sin(svd.s[k]) }
      }
      // Vᵀ·cos(S)·V is the whole of ℝᵖ, for r = p
      put(try x.times(v.times(turned, transposed: true)) + along.times(v), w)
    }
  }
  /// The principal angles between two subspaces, and the moves in their planes: a column z_k orthogonal to X, of length
  /// sin θ_k (columns are orthogonal, so that no cosine is needed for small angles), and q_k in the rows of `turned`.
  private func angles(_ x: Matrix64, _ y: Matrix64) throws(Failure) -> (
    angles: [Double], sines: [Double], moves: Matrix64, turned: Matrix64
  ) {
    let p = x.n, between = try x.times(y, transposed: true)
    let svd = try LinearAlgebra.SVD(between.a, p, p)
    let q = Matrix64(svd.u, p, p), r = Matrix64(svd.vt, p, p)
    let aligned = try y.times(r, transposed: false, true)
    let z = aligned - (try x.times(x.times(aligned, transposed: true)))
    var sines = [Double](repeating: 0, count: p)
    for i in 0..<z.m { for k in 0..<p { sines[k] += z[i, k] * z[i, k] } }
    for k in 0..<p { sines[k] = sines[k].squareRoot() }
    return (zip(sines, svd.s).map { atan2($0, $1) }, sines, z, q.transposed)
  }
  func logarithm<T: Real>(_ w: Whole<T>) throws(Failure) {
    var (angles, sines, moves, turned) = try angles(tall(w.w, w), tall(w.v, w))
    for k in angles.indices where sines[k] > 0 {
      for i in 0..<moves.m { moves[i, k] *= angles[k] / sines[k] }
    }
    put(try moves.times(turned), w)
  }
  func distances<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] {
    let angles = try angles(tall(w.w, w), tall(w.v, w)).angles
    return [Flat.norm(angles, angles.count)]
  }
}
