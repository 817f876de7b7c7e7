import Glibc
import ThalwegCore

/// Symmetric positive definite matrices with the affine-invariant metric.
///
///     tangent: X·sym(G)·X     project: sym(W) with eigenvalues max(λ, ε)
///     retract: exp     X^½·expm(X^−½ U X^−½)·X^½
///              second  X + U + U X⁻¹U/2
///     transport: E·U·Eᵀ, E = X^½(X^−½ Y X^−½)^½ X^−½     inner: tr(X⁻¹U X⁻¹V)
///     log: X^½·logm(X^−½ Y X^−½)·X^½     distance: ‖logm(X^−½ Y X^−½)‖
///
/// Results are symmetric. A symmetric matrix whose eigenvalues reach ε to rounding is not changed by `project`.
/// Errors   TW_ERROR_SHAPE where the matrix view is not square, TW_ERROR_NUMERIC where a point is not positive
///          definite.
/// Differs  pymanopt's default retraction is `second`.
/// Source   Bhatia, 2007; Jeuris, Vandebril and Vandereycken, 2012.
struct SPD: Manifold {
  static let method = Method(
    "spd", .constraint, "Symmetric positive definite matrices with the affine-invariant metric.",
    rule: """
      tangent: X sym(G) X;  project: sym(w), eigenvalues max(lambda, eps)
      retract: X^(1/2) expm(X^(-1/2) U X^(-1/2)) X^(1/2) (exp), or X + U + U X^-1 U/2 (second)
      """,
    source: "Bhatia, 2007; Jeuris, Vandebril, Vandereycken, 2012",
    parameters: [
      .choice("retraction", ["exp", "second"], "how a tangent step becomes a point"),
      .eps(1e-10, "smallest eigenvalue of a projection", .above(0)),
    ])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try square(shape, "spd") }

  let geodesic: Bool, eps: Double
  init(_ h: Hyper) { (geodesic, eps) = (h.is("retraction", "exp"), h.eps) }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) { try projectEigenvalues(w, eps, "spd", above: true) }

  func tangent<T: Real>(_ w: Whole<T>) throws(Failure) {
    let x = try read(w.w, w)
    try x.times(read(w.v, w)).times(x).symmetric.write(w.v)
  }
  func orthogonal<T: Real>(_ w: Whole<T>) throws(Failure) {
    try read(w.v, w).write(w.v)
  }
  private func read<T: Real>(_ x: UnsafeMutablePointer<T>, _ w: Whole<T>) throws(Failure) -> Matrix64 {
    try Matrix64(x, w.rows, w.columns, "spd").symmetric
  }
  // The metric does not see a change of coordinates: with X = F·Fᵀ all is as at the identity for F⁻¹·U·F⁻ᵀ.

  /// ‖X^−½ U X^−½‖².
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) {
    w.slots[0][0] = T(try SquareRoot(read(w.w, w), "spd").inside(read(w.v, w)).squaredNorm)
  }
  /// E·U·Eᵀ, E = X^½(X^−½ Y X^−½)^½ X^−½.
  func transport<T: Real>(_ w: Whole<T>) throws(Failure) {
    let x = try SquareRoot(read(w.w, w), "spd"), y = try read(w.slots[0], w)
    _ = try SquareRoot(y, "spd")  // which says where it is none
    let turn = try x.inside(y).root()
    try x.outside(turn.times(x.inside(read(w.v, w))).times(turn).symmetric).write(w.v)
  }
  func inner<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] {
    let x = try SquareRoot(read(w.w, w), "spd"), u = try x.inside(read(w.v, w)), v = try x.inside(read(w.slots[0], w))
    return [Flat.dot(u.a, v.a, u.a.count)]
  }
  /// The logarithm of F⁻¹·Y·F⁻ᵀ, X = F·Fᵀ, as eigenvalues and vectors; of points close by from their difference.
  private func logarithm<T: Real>(_ root: SquareRoot, _ w: Whole<T>) throws(Failure) -> (Eigen, (Double) -> Double) {
    let x = try read(w.w, w), y = try read(w.v, w)
    _ = try SquareRoot(y, "spd")  // which says where it is none
    let away = try root.inside(y - x)
    if away.isNear { return (try Eigen(away), { log1p($0) }) }
    return (try Eigen(root.inside(y)), { log(max($0, Double.leastNormalMagnitude)) })
  }
  func logarithm<T: Real>(_ w: Whole<T>) throws(Failure) {
    let root = try SquareRoot(read(w.w, w), "spd"), (inside, log) = try logarithm(root, w)
    try root.outside(inside.compose(log)).write(w.v)
  }
  func distances<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] {
    let (inside, log) = try logarithm(SquareRoot(read(w.w, w), "spd"), w)
    return [Flat.norm(inside.values.map(log), inside.values.count)]
  }
  func retract<T: Real>(_ w: Whole<T>) throws(Failure) { try retract(w, geodesic) }
  func exponential<T: Real>(_ w: Whole<T>) throws(Failure) { try retract(w, true) }
  private func retract<T: Real>(_ w: Whole<T>, _ geodesic: Bool) throws(Failure) {
    let x = try read(w.w, w), u = try read(w.v, w), root = try SquareRoot(x, "spd")
    if !geodesic {
      let half = try root.divide(u)
      return (x + u + 0.5 * (try half.times(half, transposed: true))).symmetric.write(w.v)
    }
    let y = try root.outside(root.inside(u).exponential())
    guard y.a.allSatisfy(\.isFinite) else {
      throw Failure(Status.numeric, "spd: the step leaves the range of numbers")
    }
    y.write(w.v)
  }
}
