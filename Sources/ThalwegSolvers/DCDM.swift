import ThalwegCore

/// Conjugate directions that the host proposes: a network, a multigrid cycle, any function of the residual.
///
///     q = predict(r/|r|);   q ← q − Σ_j p_j·(q₀·Ap_j)/(p_j·Ap_j) over the last `memory` directions
///     x ← x + q·(q·r)/(q·Aq);   r = b − A·x, made anew
///
/// All coefficients are those of the proposal q₀. memory=0: steepest descent along the proposals.
/// Ends     converged: |r| ≤ max(rtol·|r₀|, atol); negative_curvature: q·Aq ≤ 0; max_iter.
/// Differs  the tolerance is named rtol as in `cg`.
/// Source   Kaneda et al., 2023, arXiv:2205.10763.
struct DCDM: Driver {
  static let method = Method.solver(
    "dcdm", "Conjugate directions that the host proposes, for a symmetric positive definite operator.",
    rule: """
      q = predict(r/|r|);  q <- q - sum p_j (q0.Ap_j)/(p_j.Ap_j) over the last directions
      x <- x + q (q.r)/(q.Aq);  r = b - A x
      """,
    source: "Kaneda et al., 2023, arXiv:2205.10763",
    parameters: [
      .integer("memory", 2, .within(0, 1024), "directions that a new one is conjugate to"),
      .number("rtol", 1e-10, .atLeast(0), "residual that ends it, relative to the first one"),
      .number("atol", 0, .atLeast(0), "residual that ends it"),
      .integer("max_iter", 100, .atLeast(0), "most iterations"),
      .flag("normalize", true, "show the residual with length 1"),
    ],
    inputs: KrylovStop.inputs + KrylovStop.results,
    asks: [
      RequestKind(
        "predict", "a direction for a residual",
        given: [.given("residual_vector", "...", "residual, or its direction")],
        wanted: [.wanted("direction", "...", "the proposal")]), .product,
    ],
    kept: [
      .kept("r", "...", "residual"), .kept("shown", "...", "what the host sees of it"),
      .kept("q", "...", "proposal, then direction"), .kept("product", "...", "product"),
      .kept("directions", "slots, ...", "the last directions"), .kept("images", "slots, ...", "A times them"),
      .kept("curvatures", "slots", "directions times images"), .kept("tolerance", "", "residual that ends it"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { ["slots": max(1, h.integer("memory"))] }
  enum Phase: Int { case start, residual, predicted, curvature }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], r = try io["r"], q = try io["q"], a = try io["product"], b = try io["b"]
    let directions = try io["directions"], images = try io["images"], curvatures = try io["curvatures"]
    let memory = h.integer("memory"), done = try io.count("iterations")
    switch phase {
    case .start:
      r.copy(b)
      guard let x0 = io.optional("x0") else { return try begin(io, r) }
      x.copy(x0)
      return .ask("product", [x], [a], then: .residual)
    case .residual:
      r.set(1, b, -1, a)
      return try begin(io, r)
    case .predicted:
      let known = min(memory, done)
      let parts = (0..<known).map { q.dot(images.row($0)) / Double(curvatures.p[$0]) }
      for j in 0..<known { q.add(directions.row(j), times: -parts[j]) }
      return .ask("product", [q], [a], then: .curvature)
    case .curvature:
      let bend = q.dot(a)
      guard bend > 0 else { return .done(bend.isNaN ? .nonfinite : .negativeCurvature) }
      x.add(q, times: q.dot(r) / bend)
      if memory > 0 {
        let k = done % memory
        directions.row(k).copy(q)
        images.row(k).copy(a)
        curvatures.p[k] = T(bend)
      }
      io.iterations += 1
      return .ask("product", [x], [a], then: .residual)
    }
  }

  /// The residual is there: the end, or another direction.
  private func begin<T: Real>(_ io: DriverIO<T>, _ r: Vector<T>) throws(Failure) -> Verdict<Phase> {
    io.residual = r.norm
    if io.iterations == 0 { io.tolerance = max(h.rtol * io.residual, h.atol) }
    if !io.residual.isFinite { return .done(.nonfinite) }
    if io.residual <= io.tolerance || io.residual == 0 { return .done(.converged) }
    if io.iterations >= h.max_iter { return .done(.maxIter) }
    let shown = try io["shown"]
    shown.set(h.normalize ? 1 / io.residual : 1, r)
    return .ask("predict", [shown], [try io["q"]], then: .predicted)
  }
}
