import Glibc
import ThalwegCore

/// Symmetric positive definite matrices with the affine-invariant metric.
///
///     tangent: X·sym(G)·X     project: sym(W) with eigenvalues max(λ, ε)
///     retract: exp     X^½·expm(X^−½ U X^−½)·X^½
///              second  X + U + U X⁻¹U/2
///     transport: E·U·Eᵀ, E = X^½(X^−½ Y X^−½)^½ X^−½     inner: tr(X⁻¹U X⁻¹V)
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

  let exponential: Bool, eps: Double
  init(_ h: Hyper) { (exponential, eps) = (h.is("retraction", "exp"), h.eps) }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) { try projectEigenvalues(w, eps, "spd", above: true) }

  func tangent<T: Real>(_ w: Whole<T>) throws(Failure) {
    let x = try Matrix64(w.w, w.rows, w.columns, "spd").symmetric
    let g = try Matrix64(w.v, w.rows, w.columns, "spd").symmetric
    try x.times(g).times(x).symmetric.write(w.v)
  }
  func orthogonal<T: Real>(_ w: Whole<T>) throws(Failure) {
    try Matrix64(w.v, w.rows, w.columns, "spd").symmetric.write(w.v)
  }
  /// The eigenvalues of a point, all positive.
  private func eigen(_ x: Matrix64) throws(Failure) -> Eigen {
    let e = try Eigen(x)
    if let least = e.values.first, !(least > 0) {
      throw Failure(Status.numeric, "spd: a point is not positive definite, its least eigenvalue is \(text(least))")
    }
    return e
  }
  /// ‖X^−½ U X^−½‖².
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) {
    let inverse = try eigen(try Matrix64(w.w, w.rows, w.columns, "spd").symmetric).compose { 1 / $0.squareRoot() }
    let u = try Matrix64(w.v, w.rows, w.columns, "spd").symmetric
    w.slots[0][0] = T(try inverse.times(u).times(inverse).squaredNorm)
  }
  /// E·U·Eᵀ, E = X^½(X^−½ Y X^−½)^½ X^−½.
  func transport<T: Real>(_ w: Whole<T>) throws(Failure) {
    let e = try eigen(try Matrix64(w.w, w.rows, w.columns, "spd").symmetric)
    let root = try e.compose { $0.squareRoot() }, inverse = try e.compose { 1 / $0.squareRoot() }
    let y = try Matrix64(w.slots[0], w.rows, w.columns, "spd").symmetric
    let middle = try eigen(try inverse.times(y).times(inverse).symmetric).compose { $0.squareRoot() }
    let turn = try root.times(middle).times(inverse)
    let u = try Matrix64(w.v, w.rows, w.columns, "spd").symmetric
    try turn.times(u).times(turn, transposed: false, true).symmetric.write(w.v)
  }
  func retract<T: Real>(_ w: Whole<T>) throws(Failure) {
    let x = try Matrix64(w.w, w.rows, w.columns, "spd").symmetric
    let u = try Matrix64(w.v, w.rows, w.columns, "spd").symmetric
    let e = try eigen(x)
    if !exponential {
      let inverse = try e.compose { 1 / $0 }
      return (x + u + 0.5 * (try u.times(inverse).times(u))).symmetric.write(w.v)
    }
    let root = try e.compose { $0.squareRoot() }, inverse = try e.compose { 1 / $0.squareRoot() }
    let inner = try Eigen(inverse.times(u).times(inverse).symmetric).compose { exp($0) }
    let y = try root.times(inner).times(root).symmetric
    guard y.a.allSatisfy(\.isFinite) else {
      throw Failure(Status.numeric, "spd: the step leaves the range of numbers")
    }
    y.write(w.v)
  }
}
