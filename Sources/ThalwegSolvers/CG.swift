import ThalwegCore

/// Conjugate gradients: A·x = b for a symmetric positive definite operator that the host applies.
///
///     r = b − A·x, p = r;  a = r·r/p·Ap;  x ← x + a·p;  r ← r − a·Ap;  p ← r + (r·r/r₀·r₀)·p
///
/// b and x have any shape. The residual is that of the recurrence; it is computed anew every `recompute_every`
/// products.
/// Ends     converged: |r| ≤ max(rtol·|b|, atol), before any product too; negative_curvature: p·Ap < 0 with `truncate`
///          (x is then b itself, if it was the first product and there was no x0), and p·Ap = 0 always; max_iter;
///          nonfinite, also where the squares overflow.
/// Source   Hestenes, Stiefel, 1952.
struct CG: Driver {
  static let method = Method.solver(
    "cg", "Conjugate gradients for a symmetric positive definite operator.",
    rule: """
      r = b - A x;  p = r
      a = r.r / p.Ap;  x <- x + a p;  r' = r - a Ap;  p <- r' + (r'.r' / r.r) p
      """,
    source: "Hestenes, Stiefel, 1952",
    parameters: KrylovStop.parameters(rtol: 1e-5) + [
      .flag("truncate", false, "stop at negative curvature"),
      .integer("recompute_every", 0, .atLeast(0), "products between residuals computed anew; 0: never"),
    ],
    inputs: KrylovStop.inputs + KrylovStop.results, asks: [.product],
    kept: KrylovStop.kept + [.kept("residuals", "", "products since the residual was computed")])

  let stop: KrylovStop, truncate: Bool, every: Int
  init(_ h: Hyper) { (stop, truncate, every) = (KrylovStop(h), h.truncate, h.integer("recompute_every")) }

  enum Phase: Int { case start, residual, curvature, recomputed }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], r = try io["r"], p = try io["p"], q = try io["q"]
    switch phase {
    case .start:
      guard try stop.begin(io) else { return .done(.converged) }
      if io.optional("x0") != nil { return .ask("product", [x], [q], then: .residual) }
      return direction(io, r, p, q, first: true)
    case .residual:
      r.add(q, times: -1)
      return direction(io, r, p, q, first: true)
    case .curvature:
      let curvature = p.dot(q)
      if curvature == 0 || (truncate && curvature < 0) {
        if truncate, io.iterations == 0, io.optional("x0") == nil { x.copy(p) }
        return .done(.negativeCurvature)
      }
      let step = io.rz / curvature
      // squares may overflow where the vectors do not: x stays what it was
      guard step.isFinite, curvature.isFinite else { return .done(.nonfinite) }
      x.add(p, times: step)
      io.iterations += 1
      io.residuals += 1
      if every > 0, io.residuals >= Double(every) { return .ask("product", [x], [q], then: .recomputed) }
      r.add(q, times: -step)
      return direction(io, r, p, q, first: false)
    case .recomputed:
      io.residuals = 0
      r.set(1, try io["b"], -1, q)
      return direction(io, r, p, q, first: false)
    }
  }

  private func direction<T: Real>(
    _ io: DriverIO<T>, _ r: Vector<T>, _ p: Vector<T>, _ q: Vector<T>, first: Bool
  ) -> Verdict<Phase> {
    let squared = r.dot(r)
    io.residual = r.norm
    if let end = stop.check(io) { return .done(end) }
    ConjugateGradients.turn(io, r, p, squared, first: first)
    return .ask("product", [p], [q], then: .curvature)
  }
}

/// The recurrence that methods with such a system inside share; the number `rz` is the last r·r, or r·z.
enum ConjugateGradients {
  /// One step along p, where q is the product with it; or no step and the end, where the curvature is not positive or
  /// the squares overflow.
  static func step<T: Real>(_ io: DriverIO<T>, _ x: Vector<T>, _ r: Vector<T>, _ p: Vector<T>, _ q: Vector<T>)
    -> Ending?
  {
    let curvature = p.dot(q), step = io.rz / curvature
    if curvature <= 0 { return .negativeCurvature }
    guard step.isFinite, curvature.isFinite else { return .nonfinite }
    x.add(p, times: step)
    r.add(q, times: -step)
    return nil
  }
  /// The next direction, p ← r + (squared/rz)·p.
  static func turn<T: Real>(_ io: DriverIO<T>, _ r: Vector<T>, _ p: Vector<T>, _ squared: Double, first: Bool) {
    if first { p.copy(r) } else { p.set(1, r, squared / io.rz, p) }
    io.rz = squared
  }
}
