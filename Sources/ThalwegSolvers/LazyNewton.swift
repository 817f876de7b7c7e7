import ThalwegCore

/// Cubic Newton steps with a Hessian that is used several times.
///
///     H ← the Hessian, every m steps;   h = argmin ⟨g, h⟩ + ½·hᵀ·H·h + M/6·|h|³,  g the gradient now;   x ←
///     x + h
///
/// The eigenvectors of H are found once in m steps; the rest of a step costs n². M is in theory proportional
/// to m times the Lipschitz constant of the Hessian (the factor is UNVERIFIED).
/// Ends     converged: |g| ≤ gtol where H has no eigenvalue below −gtol; max_iter; nonfinite.
/// Differs  at a saddle, where g = 0, it goes on along the lowest eigenvector. The search for M is not carried.
/// Source   Doikov, Chayti, Jaggi, 2022, arXiv:2212.00781.
struct LazyCubicNewton: Driver {
  static let method = Method.solver(
    "lazy_cubic_newton", "Cubic Newton steps with a Hessian that is used several times.",
    rule: """
      H <- the Hessian, every m steps
      h = argmin <g, h> + h'H h/2 + M/6 |h|^3, g the gradient now;  x <- x + h
      """,
    source: "Doikov, Chayti, Jaggi, 2022, arXiv:2212.00781",
    parameters: [
      .number("M", 1, .above(0), "cubic constant"), LazyNewton.interval,
      .number("tol", 1e-12, .above(0), "relative width of the bracket of the length of a step"),
    ] + Minimiser.stop,
    inputs: [Minimiser.start] + Minimiser.results, asks: [.gradientAt, .hessianAt], kept: LazyNewton.kept)

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func advance<T: Real>(_ phase: LazyNewton.Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<LazyNewton.Phase> {
    let model: CubicModel
    switch try LazyNewton.advance(phase, io, interval: h.integer("m")) {
    case .verdict(let v): return v
    case .step(let m): model = m
    }
    if io.gradient_norm <= h.gtol, (model.w.last ?? 0) >= -h.gtol { return .done(.converged) }
    if io.iterations >= h.max_iter { return .done(.maxIter) }
    let d = try io["d"]
    model.minimiser(try io["g"], cubic: h.M, tol: h.tol).step(into: d)
    return try LazyNewton.move(io, d)
  }
  typealias Phase = LazyNewton.Phase
}

/// Newton steps with a Hessian that is used several times, regularised by the gradient: for convex functions.
///
///     H ← the Hessian, every m steps;   x ← x − (H + √(M·|g|)·I)⁻¹·g,  g the gradient now
///
/// The eigenvectors of H are found once in m steps; the rest of a step costs n².
/// Ends     converged: |g| ≤ gtol; negative_curvature: H + √(M·|g|)·I is not positive definite; max_iter; nonfinite.
/// Differs  the constant inside the root is UNVERIFIED; with m=1 it is the method of Mishchenko, 2021, for M the
///          Lipschitz constant of the Hessian.
/// Source   Doikov, Chayti, Jaggi, 2022, arXiv:2212.00781.
struct LazyRegularizedNewton: Driver {
  static let method = Method.solver(
    "lazy_regularized_newton", "Newton steps with a Hessian that is used several times, regularised by the gradient.",
    rule: "H <- the Hessian, every m steps;  x <- x - (H + sqrt(M |g|) I)^-1 g, g the gradient now",
    source: "Doikov, Chayti, Jaggi, 2022, arXiv:2212.00781",
    parameters: [.number("M", 1, .above(0), "cubic constant"), LazyNewton.interval] + Minimiser.stop,
    inputs: [Minimiser.start] + Minimiser.results, asks: [.gradientAt, .hessianAt], kept: LazyNewton.kept)

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func advance<T: Real>(_ phase: LazyNewton.Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<LazyNewton.Phase> {
    let model: CubicModel
    switch try LazyNewton.advance(phase, io, interval: h.integer("m")) {
    case .verdict(let v): return v
    case .step(let m): model = m
    }
    if io.gradient_norm <= h.gtol { return .done(.converged) }
    if io.iterations >= h.max_iter { return .done(.maxIter) }
    let shift = (h.M * io.gradient_norm).squareRoot(), d = try io["d"]
    guard (model.w.last ?? 0) + shift > 0 else { return .done(.negativeCurvature) }
    let c = model.coordinates(try io["g"])
    model.vector(zip(c, model.w).map { -$0 / ($1 + shift) }, into: d)
    return try LazyNewton.move(io, d)
  }
  typealias Phase = LazyNewton.Phase
}

/// What both have in common: the gradient of every step, and a Hessian now and then.
enum LazyNewton {
  static let interval = Parameter.integer("m", 1, .atLeast(1), "steps of one Hessian; about n is best")
  static let kept: [Input] = [
    .kept("g", "n", "gradient"), .kept("h", "n, n", "Hessian"), .kept("values", "n", "its eigenvalues"),
    .kept("vectors", "n, n", "its eigenvectors, columns"), .kept("d", "n", "step"),
  ]
  enum Phase: Int { case start, gradient, hessian, step }
  enum Next {
    case verdict(Verdict<Phase>), step(CubicModel)
  }

  /// Until everything is there for a step.
  static func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>, interval: Int) throws(Failure) -> Next {
    let x = try io["x"], g = try io["g"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .verdict(.ask("gradient", [x], [g], then: .gradient))
    case .gradient:
      io.gradient_norm = g.norm
      let due = try io.count("iterations") % max(1, interval) == 0
      return .verdict(due ? .ask("hessian", [x], [try io["h"]], then: .hessian) : .go(.step))
    case .hessian:
      try CubicModel(try io["h"]).keep(try io["values"], try io["vectors"])
      return .verdict(.go(.step))
    case .step: return .step(CubicModel(values: try io["values"], vectors: try io["vectors"]))
    }
  }
  /// Takes the step, and asks for the gradient behind it.
  static func move<T: Real>(_ io: DriverIO<T>, _ d: Vector<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"]
    x.add(d)
    io.iterations += 1
    return .ask("gradient", [x], [try io["g"]], then: .gradient)
  }
}
