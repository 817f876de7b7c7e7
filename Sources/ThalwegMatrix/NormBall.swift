import ThalwegCore

/// Balls of norms of weights, on the matrix view (out, rest).
enum NormBall {
  /// t.v ← the point T of the unit ball that maximises ⟨t.v, T⟩. `schulz` nil: polar factors are exact; else its work
  /// space begins `offset` bytes into that of t.
  static func farthest<T: Real>(_ t: Whole<T>, _ norm: String, _ schulz: NewtonSchulz?, _ offset: Int) throws(Failure) {
    let n = t.count, out = Double(t.rows), fanIn = Double(t.columns)
    func polar(_ factor: Double) throws(Failure) {
      if let schulz {
        return try schulz.apply(t.v, t.rows, t.columns, scale: factor, t.workspace + aligned(offset))
      }
      let svd = try LinearAlgebra.SVD(t.v, t.rows, t.columns)
      let floor = (svd.s.first ?? 0) * max(out, fanIn) * Double(T.ulpOfOne)
      try svd.compose(t.v) { $0 > floor ? factor : 0 }
    }
    func lines(_ slices: Slices, _ factor: Double) throws(Failure) {
      slices.scale(t.v, by: try slices.norms(t.v).map { $0 == 0 ? 0 : factor / $0 })
    }
    func signs(_ size: Double) {
      for i in 0..<n { t.v[i] = t.v[i] > 0 ? T(size) : t.v[i] < 0 ? T(-size) : 0 }
    }
    switch norm {
    case "l2", "frobenius": try lines(.whole(t.shape), 1)
    case "rms": try lines(.whole(t.shape), Double(n).squareRoot())
    case "linf": signs(1)
    case "sign_scaled": signs(1 / fanIn)
    case "spectral": try polar(1)
    case "rms_to_rms": try polar((out / fanIn).squareRoot())
    case "l1_to_l2": try lines(.columns(t.shape), 1)
    case "l1_to_rms": try lines(.columns(t.shape), out.squareRoot())
    case "l2_to_linf": try lines(.rows(t.shape), 1)
    case "rms_to_linf": try lines(.rows(t.shape), 1 / fanIn.squareRoot())
    default:
      let svd = try LinearAlgebra.SVD(t.v, t.rows, t.columns)
      let r = svd.r, top = svd.s.first ?? 0
      for i in 0..<t.rows {
        for j in 0..<t.columns { t.v[i * t.columns + j] = top > 0 ? T(svd.u[i * r] * svd.vt[j]) : 0 }
      }
    }
  }
}

/// The ball of a norm of weights, for linear minimisation; and the nearest point in it.
///
///     argmin⟨G, S⟩ = −radius·T,  T = argmax⟨G, T⟩ over the unit ball
///     l2, frobenius G/‖G‖;  rms G/rms(G);  linf sign(G);  sign_scaled sign(G)/in
///     spectral U·Vᵀ;  rms_to_rms √(out/in)·U·Vᵀ;  nuclear u₁·v₁ᵀ
///     l1_to_l2 normalised columns;  l1_to_rms √out times them;  l2_to_linf normalised rows;  rms_to_linf over √in
///
/// project: the point of the ball nearest in the Frobenius norm; it keeps a point that is inside.
/// Differs  a row, a column or a singular value of 0 stays 0; a vector is one row. ortho=newton_schulz has the default
///          triples and steps.
/// Source   Bernstein and Newhouse, 2024, arXiv:2409.20325; Pethick et al., 2025, arXiv:2502.07529.
struct NormLMO: WholeConstraint {
  static let norms = [
    "l2", "frobenius", "linf", "rms", "spectral", "rms_to_rms", "nuclear", "l1_to_l2", "l1_to_rms", "l2_to_linf",
    "rms_to_linf", "sign_scaled",
  ]
  static let method = Method(
    "norm_lmo", .constraint, "The ball of a norm of weights, for linear minimisation.",
    rule: "argmin <g, s> = -radius*T, T = argmax <g, T> over the unit ball of the norm;  project: the nearest point",
    source: "Bernstein, Newhouse, 2024, arXiv:2409.20325; Pethick et al., 2025, arXiv:2502.07529",
    parameters: [
      .choice("norm", norms, "of the ball"), .number("radius", 1, .above(0), "the radius"),
      .choice("ortho", ["svd", "newton_schulz"], "how polar factors are made"),
    ])
  static var mayFail: Bool { true }
  private static func word(_ h: Hyper) -> String { norms.first { h.is("norm", $0) } ?? "l2" }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try LinearAlgebra.require() }

  let norm: String, radius: Double, exact: Bool
  init(_ h: Hyper) { (norm, radius, exact) = (NormLMO.word(h), h.radius, h.is("ortho", "svd")) }

  static var minimises: Bool { true }
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    guard Flat.isFinite(w.v, w.count) else {
      throw Failure(Status.nonfinite, "norm_lmo: elements that are NaN or infinite have no minimiser")
    }
    if exact || !["spectral", "rms_to_rms"].contains(norm) {
      try NormBall.farthest(w, norm, nil, 0)
    } else {
      let schulz = NewtonSchulz(simpleSteps: 5)
      let room = try Memory(NewtonSchulz.room(w.rows, w.columns, MemoryLayout<T>.stride), .current, zeroed: false)
      defer { withExtendedLifetime(room) {} }
      var t = w
      t.workspace = room.base
      try NormBall.farthest(t, norm, schulz, 0)
    }
    Flat.scale(w.v, by: -radius, into: w.v, w.count)
  }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let out = Double(w.rows), fanIn = Double(w.columns), n = w.count
    func lines(_ slices: Slices, _ most: Double) throws(Failure) {
      slices.scale(w.v, by: try slices.norms(w.v).map { $0 > most ? most / $0 : 1 })
    }
    func box(_ most: Double) {
      for i in 0..<n { w.v[i] = w.v[i] > T(most) ? T(most) : w.v[i] < T(-most) ? T(-most) : w.v[i] }
    }
    func singular(_ f: ([Double]) -> [Double]) throws(Failure) {
      let svd = try LinearAlgebra.SVD(w.v, w.rows, w.columns), new = f(svd.s)
      // to rounding of the decomposition it is inside
      let slack = Double(16 + min(w.rows, w.columns)) * Double(T.ulpOfOne) * (svd.s.first ?? 0)
      if zip(new, svd.s).allSatisfy({ abs($0 - $1) <= slack }) { return }
      var k = -1
      try svd.compose(w.v) { _ in
        k += 1
        return new[k]
      }
    }
    switch norm {
    case "l2", "frobenius": try lines(.whole(w.shape), radius)
    case "rms": try lines(.whole(w.shape), radius * Double(n).squareRoot())
    case "linf": box(radius)
    case "sign_scaled": box(radius / fanIn)
    case "l1_to_l2": try lines(.columns(w.shape), radius)
    case "l1_to_rms": try lines(.columns(w.shape), radius * out.squareRoot())
    case "l2_to_linf": try lines(.rows(w.shape), radius)
    case "rms_to_linf": try lines(.rows(w.shape), radius / fanIn.squareRoot())
    case "nuclear": try singular { s in s.reduce(0, +) <= radius ? s : simplexProjection(s, radius) }
    default:
      let most = norm == "spectral" ? radius : radius * (out / fanIn).squareRoot()
      try singular { s in s.map { min($0, most) } }
    }
  }
}
