import Glibc
import ThalwegCore

extension RequestKind {
  /// The primal variables are the host's: the solver sees what the constraints are at them, and says with which weights
  /// they enter its next steps.
  static let constraints = RequestKind(
    "constraints", "the constraints at the host's variables; NaN where one was not observed", given: [],
    wanted: [.wanted("values", "m", "inequalities (at most 0), then equalities (0)")], takesNonfinite: true)
  static let bothConstraints = RequestKind(
    "constraints", "the constraints at the host's variables; NaN where one was not observed", given: [],
    wanted: [
      .wanted("values", "m", "inequalities (at most 0), then equalities (0)"),
      .wanted("strict", "m", "what the multipliers follow: `values` once more, or what has no gradient"),
    ], takesNonfinite: true)
  static let descend = RequestKind(
    "descend", "steps of the host's variables along the gradient of f + sum_i weights_i values_i",
    given: [.given("weights", "m", "factors of the constraints")], wanted: [])
}

/// Projected dual ascent beside any optimizer of the host's variables, with dual restarts.
///
///     l = λ_i + lr·(strict_i − weight_decay·λ_i);  0 where `restart` and strict_i < 0 (inequalities)
///     λ_i = clip(l, 0, max) for inequalities, clip(l, −max, max) for equalities; not observed (NaN): as it was
///
/// `order`: dual_first asks for the constraints, moves λ, and lets the host descend with it (one forward pass a step);
/// primal_first lets it descend first; simultaneous descends with the old λ.
/// Ends     max_iter, after `max_iter` steps: the host stops when it likes; nonfinite: a constraint is infinite.
/// Source   Chamon, Paternain, Calvo-Fullana, Ribeiro, 2023, arXiv:2103.05134; Gallego-Posada et al., 2022,
///          arXiv:2208.04425.
struct PrimalDual: Driver {
  static let method = Method.solver(
    "primal_dual", "Projected dual ascent beside any primal optimizer, with dual restarts.",
    rule: """
      l = lambda_i + lr_dual (strict_i - weight_decay lambda_i);  0 if restart and strict_i < 0
      lambda_i = clip(l, 0, max) for inequalities, clip(l, -max, max) for equalities
      """,
    source: "Chamon et al., 2023, arXiv:2103.05134; Gallego-Posada et al., 2022, arXiv:2208.04425",
    parameters: [
      .integer("inequalities", nil, .atLeast(0), "how many constraints are inequalities; the rest are equalities"),
      .integer("equalities", 0, .atLeast(0), "how many are equalities"),
      .number("lr_dual", 1e-2, .above(0), "step of the multipliers"),
      .number("init", 0, .atLeast(0), "multipliers of inequalities at first"),
      .flag("restart", false, "a satisfied inequality loses its multiplier"),
      .number("weight_decay", 0, .atLeast(0), "dual decay"),
      Parameter.number("max_multiplier", .infinity, .above(0), "largest multiplier").orInfinite(),
      .choice("order", ["dual_first", "primal_first", "simultaneous"], "which moves first"),
      .integer("max_iter", 1000, .atLeast(0), "steps"),
    ],
    inputs: Duals.inputs + [.result("multipliers", "m", "multipliers"), .result("iterations", "", "steps")],
    asks: [.bothConstraints, .descend],
    kept: [
      .kept("values", "m", "constraints"), .kept("strict", "m", "those that the multipliers follow"),
      .kept("weights", "m", "what the host descends with"),
    ],
    validate: Duals.validate("primal_dual"))

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { Duals.axes(h) }

  enum Phase: Int { case start, step, constraints, descended }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let multipliers = try io["multipliers"], weights = try io["weights"]
    let values = try io["values"], strict = try io["strict"]
    let primalFirst = h.is("order", "primal_first"), together = h.is("order", "simultaneous")
    func measure() -> Verdict<Phase> { .ask("constraints", [], [values, strict], fresh: true, then: .constraints) }
    func descend() -> Verdict<Phase> { .ask("descend", [weights], [], then: .descended) }
    /// Weights of the constraints that were observed.
    func weigh() {
      weights.copy(multipliers)
      for i in 0..<weights.count where values.p[i].isNaN { weights.p[i] = 0 }
    }
    switch phase {
    case .start:
      Duals.begin(io, multipliers, h)
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      if !primalFirst { return measure() }
      weights.copy(multipliers)
      return descend()
    case .constraints:
      guard Duals.isBounded(values), Duals.isBounded(strict) else { return .done(.nonfinite) }
      if together { weigh() }
      let most = h.max_multiplier as Double
      for i in 0..<multipliers.count where !strict.p[i].isNaN {
        let old = Double(multipliers.p[i]), c = Double(strict.p[i])
        var l = old + h.lr_dual * (c - h.weight_decay * old)
        let inequality = Double(i) < h.inequalities
        if inequality, h.restart, c < 0 { l = 0 }
        multipliers.p[i] = T(min(max(l, inequality ? 0 : -most), most))
      }
      if primalFirst { return next(io) }
      if !together { weigh() }
      return descend()
    case .descended: return primalFirst ? measure() : next(io)
    }
  }
  private func next<T: Real>(_ io: DriverIO<T>) -> Verdict<Phase> {
    io.iterations += 1
    return .go(.step)
  }
}

/// The method of multipliers: a quadratic penalty beside the multipliers.
///
///     w_i = max(λ_i + ρ_i·c_i, 0) for inequalities, λ_i + ρ_i·c_i for equalities
///     `inner_steps` times the host descends with w; then λ_i = clip(w_i, ±max_multiplier)
///     where |v_i| > shrink·(|v_i| before): ρ_i ← min(growth·ρ_i, max_penalty)
///     v_i = max(c_i, −λ_i/ρ_i) for inequalities, c_i for equalities, with λ before its update
///
/// ρ never grows at the first update. Each constraint has its ρ.
/// Ends     converged: every |v_i| ≤ tol and no λ moved by more than tol; max_iter; nonfinite: a constraint is
///          infinite.
/// Source   Hestenes, 1969; Powell, 1969; Nocedal, Wright, 2006, chapter 17.
struct AugmentedLagrangian: Driver {
  static let method = Method.solver(
    "augmented_lagrangian", "The method of multipliers, beside any primal optimizer.",
    rule: """
      w_i = max(lambda_i + rho_i c_i, 0), or lambda_i + rho_i c_i for equalities;  inner_steps of descent with w
      lambda_i = w_i;  v_i = |max(c_i, -lambda_i/rho_i)|;  rho_i <- growth rho_i where v_i > shrink (v_i before)
      """,
    source: "Hestenes, 1969; Powell, 1969; Nocedal, Wright, 2006",
    parameters: [
      .integer("inequalities", nil, .atLeast(0), "how many constraints are inequalities; the rest are equalities"),
      .integer("equalities", 0, .atLeast(0), "how many are equalities"),
      .number("penalty", 1, .above(0), "rho, at first"), .number("growth", 10, .atLeast(1), "factor of rho"),
      .number("shrink", 0.25, .between(0, 1, lowOpen: true, highOpen: true), "required decrease of the violation"),
      .number("max_penalty", 1e8, .above(0), "largest rho"),
      .number("max_multiplier", 1e8, .above(0), "largest multiplier"),
      .integer("inner_steps", 100, .atLeast(1), "requests to descend between two updates"),
      .integer("max_iter", 50, .atLeast(0), "updates"),
      .number("tol", 0, .atLeast(0), "violation, and change of a multiplier, that end it"),
      .number("init", 0, .atLeast(0), "multipliers of inequalities at first"),
    ],
    inputs: Duals.inputs + [
      .result("multipliers", "m", "multipliers"), .result("penalties", "m", "rho of each constraint"),
      .result("iterations", "", "updates"), .result("residual", "", "largest violation"),
    ], asks: [.constraints, .descend],
    kept: [
      .kept("values", "m", "constraints"), .kept("weights", "m", "what the host descends with"),
      .kept("violations", "m", "violations at the update before"), .kept("tries", "", "descents since the update"),
    ],
    validate: Duals.validate("augmented_lagrangian"))

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { Duals.axes(h) }

  enum Phase: Int { case start, measured, descended, update }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let multipliers = try io["multipliers"], rho = try io["penalties"], weights = try io["weights"]
    let c = try io["values"], before = try io["violations"]
    func measure(_ then: Phase) -> Verdict<Phase> { .ask("constraints", [], [c], fresh: true, then: then) }
    func weight(_ i: Int) -> T {
      if c.p[i].isNaN { return 0 }
      let w = multipliers.p[i] + rho.p[i] * c.p[i]
      return Double(i) < h.inequalities ? max(w, 0) : w
    }
    switch phase {
    case .start:
      Duals.begin(io, multipliers, h)
      rho.fill(h.penalty)
      before.fill(.infinity)
      return h.max_iter == 0 ? .done(.maxIter) : measure(.measured)
    case .measured:
      guard Duals.isBounded(c) else { return .done(.nonfinite) }
      for i in 0..<c.count { weights.p[i] = weight(i) }
      return .ask("descend", [weights], [], then: .descended)
    case .descended:
      io.tries += 1
      return measure(io.tries < h.inner_steps ? .measured : .update)
    case .update:
      guard Duals.isBounded(c) else { return .done(.nonfinite) }
      var worst = 0.0, moved = 0.0
      for i in 0..<c.count where !c.p[i].isNaN {
        let bound = Double(i) < h.inequalities ? -multipliers.p[i] / rho.p[i] : -.infinity
        let v = abs(Double(max(c.p[i], bound))), most = T(h.max_multiplier), old = multipliers.p[i]
        multipliers.p[i] = min(max(weight(i), -most), most)
        moved = max(moved, abs(Double(multipliers.p[i] - old)))
        if v > h.shrink * Double(before.p[i]) { rho.p[i] = T(min(h.growth * Double(rho.p[i]), h.max_penalty)) }
        before.p[i] = T(v)
        worst = max(worst, v)
      }
      io.residual = worst
      io.iterations += 1
      io.tries = 0
      if worst <= h.tol, moved <= h.tol { return .done(.converged) }
      return io.iterations >= h.max_iter ? .done(.maxIter) : .go(.measured)
    }
  }
}

/// Dual ascent with minimisers of the Lagrangian that the host finds, exactly or nearly.
///
///     the host minimises f + Σ λ_i·c_i;  λ ← max(0, λ + lr·c), for equalities without the maximum
///
/// `feasible` counts from 1 the last step whose point kept all constraints to `tol` (0: none did), `chosen` the step
/// whose point is the answer: the last, the last feasible one (the last, where there is none), or one drawn evenly from
/// all. After every answer they tell the host, who has the points, which of them to keep.
/// Ends     max_iter.
/// Differs  `random` keeps step t (from 1) with probability 1/t: where the normal distribution function at the first
///          draw of (seed, 0, t − 1, 0) is below it.
/// Source   Elenter, Chamon, Ribeiro, 2024, arXiv:2403.11844.
struct DualAscent: Driver {
  static let method = Method.solver(
    "dual_ascent", "Dual ascent with (near) minimisers of the Lagrangian.",
    rule: "x minimises f + lambda.c;  lambda <- max(0, lambda + lr c)",
    source: "Elenter, Chamon, Ribeiro, 2024, arXiv:2403.11844",
    parameters: [
      .integer("inequalities", nil, .atLeast(0), "how many constraints are inequalities; the rest are equalities"),
      .integer("equalities", 0, .atLeast(0), "how many are equalities"),
      .number("lr", 0.1, .above(0), "step of the multipliers"), .integer("max_iter", 100, .atLeast(0), "steps"),
      .number("tol", 0, .atLeast(0), "violation that counts as none"),
      .number("init", 0, .atLeast(0), "multipliers of inequalities at first"),
      .choice("output", ["last", "best_feasible", "random"], "which step's point is the answer"), Population.seed,
    ],
    inputs: Duals.inputs + [
      .result("multipliers", "m", "multipliers"), .result("iterations", "", "steps"),
      .result("residual", "", "largest violation"), .result("feasible", "", "last step that was feasible"),
      .result("chosen", "", "step whose point is the answer"),
    ],
    asks: [
      RequestKind(
        "minimise", "the host's variables at a minimum of f + sum_i weights_i values_i, and the constraints there",
        given: [.given("weights", "m", "the multipliers")], wanted: [.wanted("values", "m", "constraints there")])
    ],
    kept: [.kept("values", "m", "constraints")], validate: Duals.validate("dual_ascent"))

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { Duals.axes(h) }

  enum Phase: Int { case start, minimised }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let multipliers = try io["multipliers"], c = try io["values"]
    if phase == .start {
      Duals.begin(io, multipliers, h)
    } else {
      var worst = 0.0
      for i in 0..<c.count {
        let inequality = Double(i) < h.inequalities
        worst = max(worst, inequality ? Double(c.p[i]) : abs(Double(c.p[i])))
        let l = multipliers.p[i] + T(h.lr) * c.p[i]
        multipliers.p[i] = inequality ? max(0, l) : l
      }
      io.iterations += 1
      io.residual = worst
      if worst <= h.tol { io.feasible = io.iterations }
      let draw = Random.normal(Population.key(h, io.iterations - 1), 0)
      if h.is("output", "last") || (h.is("output", "best_feasible") && (io.feasible == 0 || worst <= h.tol))
        || (h.is("output", "random") && 0.5 * erfc(-draw * 0.5.squareRoot()) < 1 / io.iterations)
      {
        io.chosen = io.iterations
      }
    }
    if io.iterations >= h.max_iter { return .done(.maxIter) }
    return .ask("minimise", [multipliers], [c], fresh: true, then: .minimised)
  }
}

/// Multipliers of inequalities, then of equalities.
private enum Duals {
  static let inputs: [Input] = [
    .constant(
      "multipliers0", "m", "multipliers to start with; `init`, and 0 for equalities, when left out",
      optional: true)
  ]
  static func axes(_ h: Hyper) -> [String: Int] { ["m": h.integer("inequalities") &+ h.integer("equalities")] }
  static func validate(_ name: String) -> @Sendable (Hyper) throws(Failure) -> Void {
    { (h) throws(Failure) in
      guard h.inequalities + h.equalities > 0 else {
        throw Failure(Status.range, "\(name): there must be at least one constraint")
      }
    }
  }
  /// None is infinite; NaN is a constraint that was not observed.
  static func isBounded<T: Real>(_ c: Vector<T>) -> Bool { (0..<c.count).allSatisfy { !c.p[$0].isInfinite } }
  static func begin<T: Real>(_ io: DriverIO<T>, _ multipliers: Vector<T>, _ h: Hyper) {
    if let given = io.optional("multipliers0") { return multipliers.copy(given) }
    for i in 0..<multipliers.count where Double(i) < h.inequalities { multipliers.p[i] = T(h.`init`) }
  }
}
