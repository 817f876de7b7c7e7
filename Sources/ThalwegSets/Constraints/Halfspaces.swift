import ThalwegCore

/// The half-space ⟨a, w⟩ ≤ b.
///
///     project = w − max(⟨a, w⟩ − b, 0)/‖a‖²·a; the identity when a = 0
///
/// Errors   TW_ERROR_RANGE for a = 0 and b < 0, an empty set; TW_ERROR_SHAPE where a does not have as many numbers as
///          the tensor. Unbounded: no linear minimisation.
/// Source   textbook.
struct Halfspace: WholeConstraint {
  static let method = Method(
    "halfspace", .constraint, "The half-space <a, w> <= b.",
    rule: "project = w - max(<a, w> - b, 0)/|a|^2*a;  the identity when a = 0", source: "textbook",
    parameters: [.list("a", nil, "normal, one number for each entry"), .number("b", nil, .any, "offset")],
    validate: { (h) throws(Failure) in
      try finiteLists(h, ["a"], "halfspace")
      guard h.list("a").contains(where: { $0 != 0 }) || h.b >= 0 else {
        throw Failure(Status.range, "halfspace: `b` must be at least 0 where `a` is 0, else the set is empty")
      }
    })
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try oneEach(h, shape, "halfspace") }

  let a: [Double], b: Double
  init(_ h: Hyper) { (a, b) = (h.list("a"), h.b) }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) { try towards(w, a, b, oneSided: true, "halfspace") }
}

/// The hyperplane ⟨a, w⟩ = b.
///
///     project = w − (⟨a, w⟩ − b)/‖a‖²·a; the identity when a = 0
///
/// Errors   TW_ERROR_RANGE for a = 0 and b ≠ 0, an empty set; TW_ERROR_SHAPE where a does not have as many numbers as
///          the tensor. Unbounded: no linear minimisation.
/// Source   textbook.
struct Hyperplane: WholeConstraint {
  static let method = Method(
    "hyperplane", .constraint, "The hyperplane <a, w> = b.",
    rule: "project = w - (<a, w> - b)/|a|^2*a;  the identity when a = 0", source: "textbook",
    parameters: [.list("a", nil, "normal, one number for each entry"), .number("b", nil, .any, "offset")],
    validate: { (h) throws(Failure) in
      try finiteLists(h, ["a"], "hyperplane")
      guard h.list("a").contains(where: { $0 != 0 }) || h.b == 0 else {
        throw Failure(Status.range, "hyperplane: `b` must be 0 where `a` is 0, else the set is empty")
      }
    })
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try oneEach(h, shape, "hyperplane") }

  let a: [Double], b: Double
  init(_ h: Hyper) { (a, b) = (h.list("a"), h.b) }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) { try towards(w, a, b, oneSided: false, "hyperplane") }
}

private func towards<T: Real>(_ w: Whole<T>, _ a: [Double], _ b: Double, oneSided: Bool, _ method: String)
  throws(Failure)
{
  let x = try doubles(w.v, w.count, method), square = a.reduce(0) { $0 + $1 * $1 }
  let excess = zip(a, x).reduce(-b) { $0 + $1.0 * $1.1 }
  // what the rounding of the entries makes of the excess of a point on the plane
  let size = zip(a, x).reduce(abs(b)) { $0 + abs($1.0 * $1.1) }
  if square == 0 || (oneSided && excess <= 0) || abs(excess) <= 2 * Double(T.ulpOfOne) * size { return }
  for i in x.indices { w.v[i] = T(x[i] - excess / square * a[i]) }
}
private func oneEach(_ h: Hyper, _ shape: Shape, _ method: String) throws(Failure) {
  guard h.list("a").count == shape.count else {
    throw Failure(
      Status.shape,
      "\(method): `a` has \(h.list("a").count) numbers, a tensor of shape \(shape.dimensions) has \(shape.count)")
  }
}
private func finiteLists(_ h: Hyper, _ names: [String], _ method: String) throws(Failure) {
  for name in names where !h.list(name).allSatisfy(\.isFinite) {
    throw Failure(Status.range, "\(method): `\(name)` must be finite")
  }
}

/// The affine set A·w = b of the flattened tensor.
///
///     project = w − A⁺(A·w − b)
///
/// A has one row an equation, read one after the other. Singular values up to 1e-12 of the largest count as zero.
/// With `least_squares`, equations that contradict each other are met in the sense of least squares.
/// Errors   TW_ERROR_RANGE for equations that contradict each other, an empty set; TW_ERROR_SHAPE where A does not have
///          rows·entries numbers. Unbounded: no linear minimisation.
/// Source   textbook.
struct Affine: WholeConstraint {
  static let method = Method(
    "affine", .constraint, "The affine set A*w = b of the flattened tensor.",
    rule: "project = w - pinv(A)*(A*w - b)", source: "textbook",
    parameters: [
      .list("A", nil, "one row an equation, one number an entry"),
      .list("b", nil, "right side, one number an equation"),
      .flag("least_squares", false, "take equations that contradict each other, and come nearest to all"),
    ],
    validate: { (h) throws(Failure) in
      try finiteLists(h, ["A", "b"], "affine")
      let (a, b) = (h.list("A").count, h.list("b").count)
      guard b > 0, a % b == 0 else {
        throw Failure(Status.range, "affine: `A` has \(a) numbers, which do not make \(b) equations")
      }
      let residual = h.least_squares ? 0 : try contradiction(h.list("A"), h.list("b"))
      guard residual == 0 else {
        throw Failure(
          Status.range,
          "affine: the equations contradict each other, the set is empty: `b` is \(text(residual)) away from the "
            + "nearest right side that A can reach; least_squares=true comes nearest to all")
      }
    })
  /// The distance of b from the range of A, 0 to rounding. (Where there is no LAPACK, no tensor is accepted either.)
  private static func contradiction(_ a: [Double], _ b: [Double]) throws(Failure) -> Double {
    let m = b.count, n = a.count / m
    do { try LinearAlgebra.require() } catch { return 0 }
    var rest = b
    if n > 0 {
      let svd = try LinearAlgebra.SVD(a, m, n)
      for k in 0..<svd.r where svd.s[k] > 1e-12 * svd.s[0] {
        let along = (0..<m).reduce(0.0) { $0 + svd.u[$1 * svd.r + k] * b[$1] }
        for i in 0..<m { rest[i] -= along * svd.u[i * svd.r + k] }
      }
    }
    let residual = Flat.norm(rest, m)
    return residual > 1e-9 * Flat.norm(b, m) ? residual : 0
  }
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try LinearAlgebra.require()
    let (a, b) = (h.list("A").count, h.list("b").count)
    guard a == b &* shape.count else {
      throw Failure(
        Status.shape,
        "affine: `A` has \(a) numbers; \(b) equations of shape \(shape.dimensions) have \(b &* shape.count)"
      )
    }
  }

  let a, b: [Double]
  init(_ h: Hyper) { (a, b) = (h.list("A"), h.list("b")) }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let x = try doubles(w.v, w.count, "affine"), n = w.count, m = b.count
    if n == 0 { return }
    let svd = try LinearAlgebra.SVD(a, m, n), floor = 1e-12 * svd.s[0]
    // in the coordinates of the singular vectors: A⁺(Ax − b) = Σ v_k·(⟨v_k, x⟩ − ⟨u_k, b⟩/σ_k)
    var move = [Double](repeating: 0, count: n)
    for k in 0..<svd.r where svd.s[k] > floor {
      let along = (0..<n).reduce(0.0) { $0 + svd.vt[k * n + $1] * x[$1] }
      let right = (0..<m).reduce(0.0) { $0 + svd.u[$1 * svd.r + k] * b[$1] } / svd.s[k]
      for i in 0..<n { move[i] += svd.vt[k * n + i] * (along - right) }
    }
    for i in 0..<n { w.v[i] = T(x[i] - move[i]) }
  }
}

/// The second-order cone: the norm of all entries but the last is at most the last.
///
///     w = (x, s)     project: w inside, 0 where ‖x‖ ≤ −s, else c·(x/‖x‖, 1) with c = (‖x‖ + s)/2
///
/// Errors   unbounded: no linear minimisation.
/// Source   textbook.
struct SecondOrderCone: WholeConstraint {
  static let method = Method(
    "second_order_cone", .constraint, "The second-order cone: the norm of all entries but the last is at most it.",
    rule: "w = (x, s);  project: w inside, 0 where |x| <= -s, else c*(x/|x|, 1), c = (|x| + s)/2", source: "textbook")
  static var needsFinite: Bool { true }
  init(_ h: Hyper) {}

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, "second_order_cone")
    guard w.count > 0 else { return }
    let last = w.count - 1, norm = Flat.norm(w.v, last), s = Double(w.v[last])
    if norm <= s + 4 * Double(T.ulpOfOne) * abs(s) { return }
    let c = norm <= -s ? 0 : (norm + s) / 2
    for i in 0..<last { w.v[i] = c == 0 ? 0 : T(Double(w.v[i]) * (c / norm)) }
    w.v[last] = T(c)
  }
}

/// Symmetric matrices whose eigenvalues are at least eps.
///
///     project: (W + Wᵀ)/2, then eigenvalues max(λ, ε)
///
/// A symmetric matrix whose eigenvalues reach ε to rounding stays bit for bit.
/// Errors   TW_ERROR_SHAPE where the matrix view is not square. Unbounded: no linear minimisation.
/// Source   Higham, 1988.
struct PSDCone: WholeConstraint {
  static let method = Method(
    "psd_cone", .constraint, "Symmetric matrices whose eigenvalues are at least eps.",
    rule: "project: (w + w')/2, then eigenvalues max(lambda, eps)", source: "Higham, 1988",
    parameters: [.eps(0, "smallest eigenvalue")])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try square(shape, "psd_cone") }

  let eps: Double
  init(_ h: Hyper) { eps = h.eps }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) { try projectEigenvalues(w, eps, "psd_cone") }
}

/// The nearest symmetric matrix with eigenvalues of at least eps, in place.
///
/// `above`: the rounding of the entries must leave them positive, however small eps is.
func projectEigenvalues<T: Real>(_ w: Whole<T>, _ eps: Double, _ method: String, above: Bool = false) throws(Failure) {
  let x = try Matrix64(w.v, w.rows, w.columns, method), s = x.symmetric, e = try Eigen(s)
  let top = e.values.reduce(0) { max($0, abs($1)) }, least = e.values.first ?? 0
  let rounding = Double(T.ulpOfOne) * top, floor = above ? Double(s.n) * rounding : 0
  if least >= eps - Double(16 + s.n) * rounding, least >= floor / 2 || !above {
    if s.a != x.a { s.write(w.v) }
    return
  }
  try e.compose { max($0, eps, floor) }.write(w.v)
}
