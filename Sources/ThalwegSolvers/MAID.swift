import Glibc
import ThalwegCore

/// Adaptively inexact descent for bilevel problems, with a backtracking that certifies decrease.
///
///     y: |y − y*(x)| ≤ ε;  q: |H·q − F_y| ≤ δ;  z = F_x − d/dx⟨dg/dy, q⟩;  B ≥ |d²g/dydx|
///     ω = c·ε + (B/μ)·δ + (l_g·l_b/μ)·ε²,  c = l_g·B/μ + l_inv·|F_y|·B + l_b·|F_y|/μ
///     while ω > (1−η)·|z|: ε ← ν·ε, δ ← ν·δ, and again at the same x
///     x⁺ = x − a·z is taken when F⁺ + |F_y⁺|·ε⁺ + l_g·ε⁺²/2 − (F − |F_y|·ε − l_g·ε²/2) + λ·a·|z|² ≤ 0,  ε⁺ = ν̄·ε
///     then α = ρ̄·a, ε and δ grow by ν̄; else a ← ρ·a; after j trials without success ε and δ fall, j ← j + 1
///
/// Ends     converged: |z| and ω at most tol; max_iter, after max_iter steps or max_solves inner solves;
///          negative_curvature: the lower Hessian is not positive definite along a direction.
/// Differs  l_inv and l_b are given, not estimated from secants.
/// Source   Salehi, Mukherjee, Roberts, Ehrhardt, 2023, arXiv:2308.10098.
struct MAID: Driver {
  static let method = Method.solver(
    "maid", "Adaptively inexact descent with backtracking for bilevel problems.",
    rule: """
      omega = c eps + (B/mu) delta + (l_g l_b/mu) eps^2;  accuracies fall while omega > (1 - eta) |z|
      x - a z is taken when (upper bound there) - (lower bound here) + lambda a |z|^2 <= 0
      """,
    source: "Salehi, Mukherjee, Roberts, Ehrhardt, 2023, arXiv:2308.10098",
    parameters: [
      .number("mu", nil, .above(0), "strong convexity of g in y"),
      .number("l_g", nil, .above(0), "Lipschitz constant of dF/dy in y"),
      .number("l_inv", 0, .atLeast(0), "Lipschitz constant of the inverse Hessian in y"),
      .number("l_b", 0, .atLeast(0), "Lipschitz constant of the mixed derivative in y"),
      .number("eps0", 0.1, .above(0), "first accuracy of y"), .number("delta0", 0.1, .above(0), "first accuracy of q"),
      .number("alpha0", 0.01, .above(0), "first step"),
      .number("rho", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "factor of a step that failed"),
      .number("rho_bar", 1.25, .above(1), "factor of a step that was taken"),
      .number("nu", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "factor of accuracies that do not suffice"),
      .number("nu_bar", 1.25, .above(1), "factor of accuracies after a step"),
      .number("eta", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "margin of the direction"),
      .number("lam", 0.1, .between(0, 1, lowOpen: true, highOpen: true), "lambda, Armijo's fraction; below eta"),
      .integer("max_bt", 10, .atLeast(1), "trials of the first backtracking"),
      .flag("convex", false, "F is convex in y: the lower bound needs no quadratic term"),
      .number("tol", 0, .atLeast(0), "norm of z, and omega, that end it"), Bilevel.limit,
      .integer("max_solves", 10_000, .atLeast(0), "most inner solves"),
    ],
    inputs: Bilevel.starts + Bilevel.results + [
      .result("value", "", "upper value"), .result("residual", "", "norm of z"), .result("omega", "", "its error"),
      .result("accuracy", "", "eps"), .result("alpha", "", "step"), .result("solves", "", "inner solves"),
    ],
    asks: [
      RequestKind(
        "solve_lower", "the minimiser of the lower function in y, to an absolute accuracy",
        given: Bilevel.point + [.given("accuracy", "", "distance from the minimiser")],
        wanted: [.wanted("solution", "n", "the minimiser, found from y")]),
      Bilevel.upper, Bilevel.lowerHVP, Bilevel.lowerMixed,
      RequestKind(
        "mixed_norm", "an upper bound of the norm of d2g/dydx", given: Bilevel.point,
        wanted: [.wanted("bound", "", "the bound")]),
    ],
    kept: [
      .kept("solution", "n", "answer of the inner solve"), .kept("q", "n", "solution of the linear system"),
      .kept("fx", "p", "dF/dx"), .kept("fy", "n", "dF/dy"), .kept("z", "p", "direction"), .kept("r", "n", "residual"),
      .kept("v", "n", "direction of the system"), .kept("w", "n", "product"), .kept("trial", "p", "trial point"),
      .kept("gx", "p", "dF/dx there"), .kept("gy", "n", "dF/dy there"), .kept("delta", "", "accuracy of q"),
      .kept("rz", "", "square of the residual"), .kept("slope", "", "norm of dF/dy"), .kept("trials", "", "done"),
      .kept("budget", "", "trials allowed"), .kept("step", "", "step that is tried"),
      .kept("products", "", "products of this system"),
    ],
    validate: { (h) throws(Failure) in
      guard h.lam < h.eta else {
        throw Failure(Status.range, "maid: `lam` must be below `eta`, got \(text(h.lam)) and \(text(h.eta))")
      }
    })

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  enum Phase: Int { case start, solve, solved, upper, residual, curvature, mixed, bound, attempt, tried, there }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], z = try io["z"], q = try io["q"], trial = try io["trial"]
    let fx = try io["fx"], fy = try io["fy"], r = try io["r"], v = try io["v"], w = try io["w"]
    let solution = try io["solution"], mu = h.mu as Double, lg = h.l_g as Double
    switch phase {
    case .start:
      try Bilevel.begin(io)
      (io.accuracy, io.delta, io.alpha, io.budget) = (h.eps0, h.delta0, h.alpha0, h.max_bt)
      return .go(.solve)
    case .solve:
      if io.iterations >= h.max_iter || io.solves >= h.max_solves { return .done(.maxIter) }
      return .ask("solve_lower", [x, y], [solution], then: .solved)
    case .solved:
      io.solves += 1
      y.copy(solution)
      return .ask("upper", [x, y], [fx, fy], then: .upper)
    case .upper:
      (io.value, io.slope, io.products) = (io.upper_value, fy.norm, 0)
      return .ask("lower_hvp", [x, y, q], [w], then: .residual)
    case .residual:
      r.set(1, fy, -1, w)
      return try direction(io, first: true)
    case .curvature:
      if let end = ConjugateGradients.step(io, q, r, v, w) { return .done(end) }
      io.products += 1
      return try direction(io, first: false)
    case .mixed:
      z.set(1, fx, -1, z)
      io.residual = z.norm
      return .ask("mixed_norm", [x, y], [], then: .bound)
    case .bound:
      let b = io.bound, eps = io.accuracy
      let c = lg * b / mu + h.l_inv * io.slope * b + h.l_b * io.slope / mu
      io.omega = c * eps + b / mu * io.delta + lg * h.l_b / mu * eps * eps
      if io.residual <= h.tol, io.omega <= h.tol { return .done(.converged) }
      if io.omega > (1 - h.eta) * io.residual { return finer(io) }
      (io.trials, io.step) = (0, io.alpha)
      return .go(.attempt)
    case .attempt:
      if io.solves >= h.max_solves { return .done(.maxIter) }
      trial.set(1, x, -io.step, z)
      return .ask("solve_lower", [trial, y], [solution], then: .tried)
    case .tried:
      io.solves += 1
      return .ask("upper", [trial, solution], [try io["gx"], try io["gy"]], then: .there)
    case .there:
      let eps = io.accuracy, far = h.nu_bar * eps
      let low = io.value - io.slope * eps - (h.convex ? 0 : lg * eps * eps / 2)
      let up = io.upper_value + (try io["gy"].norm) * far + lg * far * far / 2
      if up - low + h.lam * io.step * io.residual * io.residual <= 0 {
        x.copy(trial)
        y.copy(solution)
        io.alpha = h.rho_bar * io.step
        (io.accuracy, io.delta, io.budget) = (far, h.nu_bar * io.delta, h.max_bt)
        io.value = io.upper_value
        io.iterations += 1
        return .go(.solve)
      }
      io.trials += 1
      io.step *= h.rho
      if io.trials < io.budget { return .go(.attempt) }
      io.budget += 1
      return finer(io)
    }
  }

  private func finer<T: Real>(_ io: DriverIO<T>) -> Verdict<Phase> {
    io.accuracy *= h.nu
    io.delta *= h.nu
    return .go(.solve)
  }

  private func direction<T: Real>(_ io: DriverIO<T>, first: Bool) throws(Failure) -> Verdict<Phase> {
    let r = try io["r"], v = try io["v"], squared = r.dot(r), point = [try io["x"], try io["y"]]
    if squared.squareRoot() <= io.delta || io.products >= 10 * Double(r.count) {
      return .ask("lower_mixed", point + [try io["q"]], [try io["z"]], then: .mixed)
    }
    ConjugateGradients.turn(io, r, v, squared, first: first)
    return .ask("lower_hvp", point + [v], [try io["w"]], then: .curvature)
  }
}
