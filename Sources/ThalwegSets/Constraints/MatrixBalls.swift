import ThalwegCore

/// Matrices with spectral norm at most r.
///
///     project: singular values min(σ, r)     argmin⟨G, U⟩ = −r·UVᵀ over the singular values of G that are not zero
///
/// A matrix that is inside to rounding stays bit for bit. Singular values up to 1e-12 of the largest (1e-6 in float32)
/// count as zero.
/// Source   textbook.
struct SpectralBall: WholeConstraint {
  static let method = Method(
    "spectral_ball", .constraint, "Matrices with spectral norm at most radius.",
    rule: "project: singular values min(sigma, radius);  argmin <g, u> = -radius*U*V'", source: "textbook",
    parameters: [.number("radius", 1, .atLeast(0), "the radius")])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "spectral_ball") }

  let radius: Double
  init(_ h: Hyper) { radius = h.radius }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let svd = try LinearAlgebra.SVD(w.v, w.rows, w.columns)
    if (svd.s.first ?? 0) <= radius * (1 + rounding(w)) { return }
    try svd.compose(w.v) { min($0, radius) }
  }
  static var minimises: Bool { true }
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    let svd = try LinearAlgebra.SVD(w.v, w.rows, w.columns)
    let floor = (svd.s.first ?? 0) * (T.isDouble ? 1e-12 : 1e-6)
    try svd.compose(w.v) { $0 > floor ? -radius : 0 }
  }
}

/// How far the singular values of a matrix are from those of its rounded entries, relative to the largest.
private func rounding<T: Real>(_ w: Whole<T>) -> Double { Double(16 + min(w.rows, w.columns)) * Double(T.ulpOfOne) }

/// Matrices with nuclear norm at most r.
///
///     project: singular values projected on the L1 ball of r     argmin⟨G, U⟩ = −r·u₁v₁ᵀ
///
/// A matrix that is inside to rounding stays bit for bit. G = 0 gives 0.
/// Source   Jaggi, 2013.
struct NuclearBall: WholeConstraint {
  static let method = Method(
    "nuclear_ball", .constraint, "Matrices with nuclear norm at most radius.",
    rule: "project: singular values on the L1 ball of radius;  argmin <g, u> = -radius*u_1*v_1'", source: "Jaggi, 2013",
    parameters: [.number("radius", 1, .atLeast(0), "the radius")])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "nuclear_ball") }

  let radius: Double
  init(_ h: Hyper) { radius = h.radius }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let svd = try LinearAlgebra.SVD(w.v, w.rows, w.columns)
    if svd.s.reduce(0, +) <= radius * (1 + rounding(w)) { return }
    let kept = simplexProjection(svd.s, radius)
    var k = -1
    try svd.compose(w.v) { _ in
      k += 1
      return kept[k]
    }
  }
  static var minimises: Bool { true }
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    let svd = try LinearAlgebra.SVD(w.v, w.rows, w.columns), n = w.columns
    guard let top = svd.s.first, top > 0 else { return }
    for i in 0..<w.rows { for j in 0..<n { w.v[i * n + j] = T(-radius * svd.u[i * svd.r] * svd.vt[j]) } }
  }
}

/// Matrices of rank at most `rank`. Not convex.
///
///     project: the largest singular triplets stay; of equal ones, those that the decomposition puts first
///
/// A matrix that has the rank to rounding stays bit for bit.
/// Errors   TW_ERROR_SHAPE where rank is larger than the short side. Unbounded: no linear minimisation.
/// Source   Eckart and Young, 1936.
struct LowRank: WholeConstraint {
  static let method = Method(
    "low_rank", .constraint, "Matrices of rank at most `rank`.",
    rule: "project: the largest singular triplets stay", source: "Eckart, Young, 1936",
    parameters: [.integer("rank", nil, .atLeast(1), "singular triplets that are kept")])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try matrix(shape, "low_rank")
    guard h.integer("rank") <= min(shape.rows, shape.columns) || shape.count == 0 else {
      throw Failure(
        Status.shape,
        "low_rank: `rank` is \(h.integer("rank")), a matrix of \(shape.rows) x \(shape.columns) has a lower one")
    }
  }

  let rank: Int
  init(_ h: Hyper) { rank = h.integer("rank") }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let svd = try LinearAlgebra.SVD(w.v, w.rows, w.columns)
    if svd.r <= rank || svd.s[rank] <= svd.s[0] * rounding(w) { return }
    var kept = 0
    try svd.compose(w.v) {
      kept += 1
      return kept <= rank ? $0 : 0
    }
  }
}
