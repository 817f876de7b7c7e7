import ThalwegCore

/// Three cones by one name, each with the nearest point and with a radial step into it.
///
///     nonneg: all entries ≥ 0;   soc: (t, x), the first entry t ≥ ‖x‖;   psd: symmetric, no eigenvalue below 0
///     euclidean: max(w, 0);   (t, x) where ‖x‖ ≤ t, 0 where ‖x‖ ≤ −t, else (t + ‖x‖)/2·(1, x/‖x‖);
///                eigenvalues max(λ, 0)
///     radial: w plus the least multiple of an interior ray that is inside: of ones, of (1, 0), of the identity
///
/// Errors   TW_ERROR_SHAPE where the matrix view for psd is not square. Unbounded: no linear minimisation.
/// Differs  t is the first entry, as in the paper; `second_order_cone` has it last. psd takes the symmetric part first.
/// Source   Tanneau and Van Hentenryck, 2024, arXiv:2402.03086.
struct ConicProjection: WholeConstraint {
  static let method = Method(
    "conic_projection", .constraint, "Cones of numbers, vectors and matrices, by the nearest point or along a ray.",
    rule: """
      euclidean: max(w, 0);  (t, x) outside: 0 where |x| <= -t, else (t + |x|)/2*(1, x/|x|);  eigenvalues max(lambda, 0)
      radial: w + max(0, -min w)*1;  t + max(0, |x| - t);  w + max(0, -lambda_min)*I
      """,
    source: "Tanneau, Van Hentenryck, 2024, arXiv:2402.03086",
    parameters: [
      .choice("cone", ["nonneg", "soc", "psd"], "which cone", live: false),
      .choice("kind", ["euclidean", "radial"], "the nearest point, or the first one along the ray"),
    ])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    if h.is("cone", "psd") { try square(shape, "conic_projection") }
  }

  let soc, psd, radial: Bool
  init(_ h: Hyper) { (soc, psd, radial) = (h.is("cone", "soc"), h.is("cone", "psd"), h.is("kind", "radial")) }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, "conic_projection")
    guard w.count > 0 else { return }
    if psd { return try matrix(w) }
    if soc { return second(w) }
    var least = T(0)
    for i in 0..<w.count { least = min(least, w.v[i]) }
    for i in 0..<w.count { w.v[i] = radial ? w.v[i] - least : max(w.v[i], 0) }
  }

  private func second<T: Real>(_ w: Whole<T>) {
    let norm = Flat.norm(w.v + 1, w.count - 1), t = Double(w.v[0])
    if norm <= t + 4 * Double(T.ulpOfOne) * abs(t) { return }
    let c = radial ? norm : norm <= -t ? 0 : (norm + t) / 2
    w.v[0] = T(c)
    if radial { return }
    for i in 1..<w.count { w.v[i] = c == 0 ? 0 : T(Double(w.v[i]) * (c / norm)) }
  }

  private func matrix<T: Real>(_ w: Whole<T>) throws(Failure) {
    guard radial else { return try projectEigenvalues(w, 0, "conic_projection") }
    let x = try Matrix64(w.v, w.rows, w.columns, "conic_projection"), n = x.n,
      least = try Eigen(x.symmetric).values.min()
    var s = x.symmetric
    for i in 0..<n { s.a[i * n + i] += max(0, -(least ?? 0)) }
    s.write(w.v)
  }
}
