import ThalwegCore

/// Replaces an update by its polar factor: all singular values become (about) one.
///
///     U ← NewtonSchulz(U as (rows, rest)),  or exactly U·Vᵀ of its decomposition
///
/// Differs  a zero singular value stays zero. After the last triple it repeats, or (simple, cubic, quintic, aol) the
///          set begins again; fewer steps than triples take the first (optax takes the last). form=gram is the same in
///          exact arithmetic, and cheaper where a matrix is much longer than wide.
/// Source   Björck and Bowie, 1971; Jordan et al., 2024; Polar Express: Amsel et al., 2025, arXiv:2505.16932.
struct Orthogonalize: InBlocks {
  static let parameters: [Parameter] =
    NewtonSchulz.parameters() + [
      .eps(1e-7, "floor of the norm that divides", .above(0)),
      .choice("eps_mode", ["add", "clamp"], "divide by norm + eps, or by max(norm, eps)"),
      .maybe("safety", .atLeast(1), "the norm counts times this; none is 1.02 for polar_express, else 1"),
      .choice("method", ["ns", "svd"], "Newton-Schulz, or the exact factor"), NewtonSchulz.precision,
      .choice(
        "scaling", ["set", "frobenius", "spectral", "aol", "schatten"],
        "what the matrix is divided by: as the set has it, a norm, or bounds of the rows of its Gram matrix"),
      .choice("form", ["standard", "gram"], "iterate the matrix, or its smaller Gram matrix", live: false),
      .list("resets", [2], "iterations (from 0) before which the Gram form multiplies out"),
    ] + Parameter.blocks
  static let method = Method(
    "orthogonalize", .update, "Replaces an update by its polar factor, approximately by Newton-Schulz or exactly.",
    rule: """
      X <- U/(|U|*safety + eps), or U/max(|U|*safety, eps), as (rows, rest), |.| the Frobenius norm
      ns_steps times: A = X X';  X <- a*X + (b*A + c*A*A) X
      """,
    source: "Bjoerck, Bowie, 1971; Jordan et al., 2024; Amsel, Persson, Musco, Gower, 2025, arXiv:2505.16932",
    parameters: parameters,
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

/// Newton-Schulz of the gradient: `orthogonalize` before the rule.
///
/// Differs  the numbers that its card calls `quintic`, the default, are `simple` here, as in torch and the table of
///          sets; `quintic` is what the card calls `dion`.
/// Source   Björck and Bowie, 1971; Jordan et al., 2024; Polar Express: Amsel et al., 2025, arXiv:2505.16932.
struct NewtonSchulzTransform: InBlocks {
  static let method = Method(
    "newton_schulz", .transform, "Replaces a gradient by its polar factor, approximately by Newton-Schulz or exactly.",
    rule: Orthogonalize.method.rule, source: Orthogonalize.method.source, parameters: Orthogonalize.parameters,
    needsFinite: true, validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "newton_schulz") })

  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "newton_schulz") }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { Orthogonalize.workspace(h, shape, size) }

  let rule: Orthogonalize
  init(_ h: Hyper, _ c: StepContext) { rule = Orthogonalize(h, c) }
  func apply<T: Real>(_ t: Whole<T>) throws(Failure) { try rule.apply(t) }
}

/// What a set of Newton-Schulz coefficients does, step by step: its triples, and where singular values go.
///
///     σ ← a·σ + b·σ³ + c·σ⁵, once for every triple, from σ/safety
///
/// Every rule that orthogonalises takes the same names: simple, cubic, quintic (or dion), polar_express,
/// polar_express_raw, polar_express_8, polar_express_105, cans, aol, aol_2, deepseek, cubic5; or numbers.
/// `coefficients` are those of the steps that are taken; sigma are singular values of a matrix of norm 1.
/// Ends     converged.
/// Source   as `orthogonalize`.
struct CoefficientSets: Driver {
  static let method = Method.solver(
    "ns_coefficient_sets",
    "The triples of a named set of Newton-Schulz coefficients, and where they send singular values.",
    rule: "sigma <- a sigma + b sigma^3 + c sigma^5, once for every triple, from sigma/safety",
    source: Orthogonalize.method.source,
    parameters: NewtonSchulz.parameters() + [
      .maybe("safety", .atLeast(1), "the norm counts times this; none is that of the set")
    ],
    inputs: [
      .constant("sigma", "n", "singular values, at most 1"), .result("mapped", "n", "where they go"),
      .result("coefficients", "ns_steps, 3", "a, b, c of every step"), .result("safety", "", "divisor of the norm"),
      .result("cycles", "", "1 where the set begins again after its last triple, 0 where that repeats"),
      .result("scaling", "", "0 by the Frobenius norm, 2 by bounds of the rows of the Gram matrix"),
    ], validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "ns_coefficient_sets") })

  let schulz: NewtonSchulz
  init(_ h: Hyper) { schulz = NewtonSchulz(h, eps: 0, clamp: false) }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let sigma = try io["sigma"], mapped = try io["mapped"], list = try io["coefficients"]
    var values = (0..<sigma.count).map { Double(sigma.p[$0]) / schulz.safety }
    for k in 0..<schulz.steps {
      let (a, b, c) = schulz.triple(k)
      for (j, x) in [a, b, c].enumerated() { list.p[3 * k + j] = T(x) }
      values = values.map { s in s * (a + s * s * (b + s * s * c)) }
    }
    for (i, x) in values.enumerated() { mapped.p[i] = T(x) }
    io.safety = schulz.safety
    io.cycles = schulz.coefficients.cycles ? 1 : 0
    io.scaling = Double(schulz.scaling.rawValue)
    return .done(.converged)
  }
}
