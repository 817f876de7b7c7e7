import ThalwegCore

/// Replaces an update by its polar factor: all singular values become (about) one.
///
///     U ← NewtonSchulz(U as (rows, rest)),  or exactly U·Vᵀ of its decomposition
///
/// Differs  a zero singular value stays zero. After the last triple it repeats, or (simple, cubic, quintic, aol) the
///          set begins again; fewer steps than triples take the first (optax takes the last). form=gram is the same in
///          exact arithmetic, and cheaper where a matrix is much longer than wide.
/// Source   Björck and Bowie, 1971; Jordan et al., 2024; Polar Express: Amsel et al., 2025, arXiv:2505.16932.
struct Orthogonalize: WholeRule {
  static let method = Method(
    "orthogonalize", .update, "Replaces an update by its polar factor, approximately by Newton-Schulz or exactly.",
    rule: """
      X <- U/(|U|*safety + eps), or U/max(|U|*safety, eps), as (rows, rest), |.| the Frobenius norm
      ns_steps times: A = X X';  X <- a*X + (b*A + c*A*A) X
      """,
    source: "Bjoerck, Bowie, 1971; Jordan et al., 2024; Amsel, Persson, Musco, Gower, 2025, arXiv:2505.16932",
    parameters: NewtonSchulz.parameters() + [
      .eps(1e-7, "floor of the norm that divides", .above(0)),
      .choice("eps_mode", ["add", "clamp"], "divide by norm + eps, or by max(norm, eps)"),
      .maybe("safety", .atLeast(1), "the norm counts times this; none is 1.02 for polar_express, else 1"),
      .choice("method", ["ns", "svd"], "Newton-Schulz, or the exact factor"), NewtonSchulz.precision,
      .choice(
        "scaling", ["set", "frobenius", "spectral", "aol", "schatten"],
        "what the matrix is divided by: as the set has it, a norm, or bounds of the rows of its Gram matrix"),
      .choice("form", ["standard", "gram"], "iterate the matrix, or its smaller Gram matrix", live: false),
      .list("resets", [2], "iterations (from 0) before which the Gram form multiplies out"),
    ],
    needsFinite: true, validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "orthogonalize") })

  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "orthogonalize") }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    NewtonSchulz.space(h, shape.rows, shape.columns, size)
  }

  let schulz: NewtonSchulz, exact: Bool
  init(_ h: Hyper, _ c: StepContext) { (schulz, exact) = (NewtonSchulz(h), h.is("method", "svd")) }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    if exact {
      let svd = try LinearAlgebra.SVD(t.v, t.rows, t.columns)
      let floor = (svd.s.first ?? 0) * Double(max(t.rows, t.columns)) * Double(T.ulpOfOne)
      return try svd.compose(t.v) { $0 > floor ? 1 : 0 }
    }
    try schulz.apply(t.v, t.rows, t.columns, scale: 1, t.workspace)
  }
}
