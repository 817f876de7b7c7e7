import ThalwegCore

/// Conjugate gradients with a preconditioner that the host applies.
///
///     r = b − A·x, z = M·r, p = z;  a = r·z/p·Ap;  x ← x + a·p;  r ← r − a·Ap;  z ← M·r;  p ← z + (r·z/r₀·z₀)·p
///
/// Ends     converged: |r| ≤ max(rtol·|b|, atol), before the preconditioner is asked; negative_curvature: p·Ap ≤ 0, the
///          operator is not positive definite; max_iter.
/// Differs  the tolerance is named rtol as in `cg`; with M = I the iterates are those of `cg`.
/// Source   Hestenes, Stiefel, 1952; Concus, Golub, O'Leary, 1976.
struct PCG: Driver {
  static let method = Method.solver(
    "pcg", "Preconditioned conjugate gradients for a symmetric positive definite operator.",
    rule: """
      r = b - A x;  z = M r;  p = z
      a = r.z / p.Ap;  x <- x + a p;  r <- r - a Ap;  z <- M r;  p <- z + (r.z / old r.z) p
      """,
    source: "Hestenes, Stiefel, 1952; Concus, Golub, O'Leary, 1976",
    parameters: KrylovStop.parameters(rtol: 1e-10), inputs: KrylovStop.inputs + KrylovStop.results,
    asks: [
      .product,
      RequestKind(
        "precondition", "the preconditioner times the residual", given: [.given("residual_vector", "...", "residual")],
        wanted: [.wanted("preconditioned", "...", "the preconditioner times it")]),
    ],
    kept: KrylovStop.kept + [.kept("z", "...", "preconditioned residual")])

  let stop: KrylovStop
  init(_ h: Hyper) { stop = KrylovStop(h) }

  enum Phase: Int { case start, residual, direction, curvature }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], r = try io["r"], p = try io["p"], q = try io["q"], z = try io["z"]
    switch phase {
    case .start:
      guard try stop.begin(io) else { return .done(.converged) }
      if io.optional("x0") != nil { return .ask("product", [x], [q], then: .residual) }
      return precondition(io, r, z)
    case .residual:
      r.add(q, times: -1)
      return precondition(io, r, z)
    case .direction:
      let product = r.dot(z)
      if io.iterations == 0 { p.copy(z) } else { p.set(1, z, product / io.rz, p) }
      io.rz = product
      return .ask("product", [p], [q], then: .curvature)
    case .curvature:
      if let end = ConjugateGradients.step(io, x, r, p, q) { return .done(end) }
      io.iterations += 1
      return precondition(io, r, z)
    }
  }

  private func precondition<T: Real>(_ io: DriverIO<T>, _ r: Vector<T>, _ z: Vector<T>) -> Verdict<Phase> {
    io.residual = r.norm
    if let end = stop.check(io) { return .done(end) }
    return .ask("precondition", [r], [z], then: .direction)
  }
}
