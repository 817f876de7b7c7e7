import Glibc
import ThalwegCore

/// The alternating direction method of multipliers for f(x) + g(x), from the proxes of both.
///
///     x = prox_f(z − u, 1/rho);  h = relax·x + (1−relax)·z;  z' = prox_g(h + u, 1/rho);  u ← u + h − z'
///
/// r = |x − z'|, s = rho·|z' − z|. With `adapt`: r > 10·s doubles rho and halves u, s > 10·r the reverse.
/// Ends     converged: r ≤ tol·max(1, |x|, |z'|) and s ≤ tol·max(1, rho·|u|); max_iter.
/// Source   Boyd, Parikh, Chu, Peleato, Eckstein, 2011.
struct ADMM: Driver {
  static let method = Method.solver(
    "admm", "Alternating direction method of multipliers, from two proxes.",
    rule: "x = prox_f(z - u, 1/rho);  h = relax x + (1 - relax) z;  z <- prox_g(h + u, 1/rho);  u <- u + h - z",
    source: "Boyd, Parikh, Chu, Peleato, Eckstein, 2011",
    parameters: [
      .number("rho", 1, .above(0), "penalty"),
      .number("relax", 1.5, .between(0, 2, lowOpen: true, highOpen: true), "over-relaxation"),
      .flag("adapt", true, "rho follows the residuals"), .integer("max_iter", 100, .atLeast(0), "most iterations"),
      .number("tol", 1e-6, .atLeast(0), "relative residuals that end it"),
    ],
    inputs: [
      .constant("z0", "...", "where it starts"), .constant("u0", "...", "scaled dual to start with", optional: true),
      .result("x", "...", "the point of f"), .result("z", "...", "the point of g"),
      .result("u", "...", "scaled dual"), .result("iterations", "", "iterations"),
      .result("residual", "", "primal residual"), .result("dual_residual", "", "dual residual"),
      .result("penalty", "", "rho"),
    ],
    asks: ["f", "g"].map { name in
      RequestKind(
        "prox_" + name, "argmin_w |w - v|^2/2 + step * \(name)(w)",
        given: [.given("v", "...", "a point"), .given("step", "", "factor of the function")],
        wanted: [.wanted("prox", "...", "the minimiser")])
    },
    kept: [.kept("v", "...", "whose prox is taken"), .kept("p", "...", "prox")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step, first, second }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], z = try io["z"], u = try io["u"], v = try io["v"], p = try io["p"]
    switch phase {
    case .start:
      z.copy(try io["z0"])
      x.copy(z)
      if let u0 = io.optional("u0") { u.copy(u0) }
      io.penalty = h.rho
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      v.set(1, z, -1, u)
      io.step = 1 / io.penalty
      return .ask("prox_f", [v], [p], then: .first)
    case .first:
      x.copy(p)
      v.set(1, u, h.relax, x)
      v.add(z, times: 1 - h.relax)
      return .ask("prox_g", [v], [p], then: .second)
    case .second:
      let moved = p.distance(z)
      z.copy(p)
      u.set(1, v, -1, z)
      io.iterations += 1
      (io.residual, io.dual_residual) = (x.distance(z), io.penalty * moved)
      let small = io.residual <= h.tol * max(1, x.norm, z.norm)
      if small, io.dual_residual <= h.tol * max(1, io.penalty * u.norm) { return .done(.converged) }
      if h.adapt, io.residual > 10 * io.dual_residual {
        io.penalty *= 2
        u.set(0.5, u)
      } else if h.adapt, io.dual_residual > 10 * io.residual {
        io.penalty /= 2
        u.set(2, u)
      }
      return .go(.step)
    }
  }
}

/// Mirror-prox for monotone operators: two operator values a step, and the average of the middle points.
///
///     y = P(x − lr·F(x));  x ← P(x − lr·F(y));  output: the mean of all y
///
/// P: `simplex` multiplies by e^(−lr·F) and scales to the sum `radius`; `orthant` multiplies alone; `l2` subtracts, and
/// asks for a projection with `ask_project`. Zeros stay zero in the first two.
/// Ends     max_iter.
/// Errors   TW_ERROR_RANGE: a start with negative entries, or of zeros, on the simplex and the orthant.
/// Differs  the p-norm geometry is not here.
/// Source   Nemirovski, 2004.
struct MirrorProx: Driver {
  static let method = Method.solver(
    "mirror_prox", "Mirror-prox for monotone operators and saddle points.",
    rule: "y = P(x - lr F(x));  x <- P(x - lr F(y));  the mean of the y is the answer", source: "Nemirovski, 2004",
    parameters: [
      .number("lr", 0.1, .above(0), "step"),
      .choice("geometry", ["simplex", "orthant", "l2"], "what P is"),
      .number("radius", 1, .above(0), "sum on the simplex"), .flag("ask_project", false, "l2: ask for projections"),
      .integer("max_iter", 100, .atLeast(0), "steps"),
    ],
    inputs: [
      .constant("x0", "...", "where it starts"), .result("average", "...", "the mean of the middle points"),
      .result("x", "...", "the last point"), .result("iterations", "", "steps"),
    ],
    asks: [
      RequestKind(
        "operator", "the operator", given: [.given("point", "...", "where")],
        wanted: [.wanted("values", "...", "the operator there")]),
      RequestKind(
        "project", "the nearest point of the set", given: [.given("v", "...", "a point")],
        wanted: [.wanted("projection", "...", "the nearest point")]),
    ],
    kept: [
      .kept("y", "...", "middle point"), .kept("p", "...", "the point"), .kept("f", "...", "operator"),
      .kept("v", "...", "to be projected"),
    ],
    validate: { (h) throws(Failure) in
      guard !h.ask_project || h.is("geometry", "l2") else {
        throw Failure(Status.range, "mirror_prox: `ask_project` goes with geometry=l2")
      }
    })

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step, first, middle, second, end }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["p"], y = try io["y"], f = try io["f"], v = try io["v"], mean = try io["average"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      if !h.is("geometry", "l2") {
        guard (0..<x.count).allSatisfy({ x.p[$0] >= 0 }), x.norm > 0 else {
          throw Failure(Status.range, "`x0` must have entries of at least 0, and one above")
        }
        if h.is("geometry", "simplex") { scale(x) }
      }
      mean.copy(x)
      try io["x"].copy(x)
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("operator", [x], [f], then: .first)
    case .first: return move(x, f, y, v, then: .middle)
    case .middle: return .ask("operator", [y], [f], then: .second)
    case .second: return move(x, f, x, v, then: .end)
    case .end:
      let k = io.iterations
      mean.set(k / (k + 1), mean, 1 / (k + 1), y)
      try io["x"].copy(x)
      io.iterations = k + 1
      return .go(.step)
    }
  }

  /// out ← P(x − lr·f).
  private func move<T: Real>(_ x: Vector<T>, _ f: Vector<T>, _ out: Vector<T>, _ v: Vector<T>, then: Phase)
    -> Verdict<Phase>
  {
    if h.is("geometry", "l2") {
      guard h.ask_project else {
        out.set(1, x, -h.lr, f)
        return .go(then)
      }
      v.set(1, x, -h.lr, f)
      return .ask("project", [v], [out], then: then)
    }
    let simplex = h.is("geometry", "simplex")
    var least = T.infinity
    for i in 0..<x.count where x.p[i] > 0 { least = min(least, f.p[i]) }
    for i in 0..<x.count where x.p[i] >= 0 {
      out.p[i] = x.p[i] > 0 ? x.p[i] * T(exp(-h.lr * Double(simplex ? f.p[i] - least : f.p[i]))) : 0
    }
    if simplex { scale(out) }
    return .go(then)
  }
  private func scale<T: Real>(_ x: Vector<T>) {
    var sum = 0.0
    for i in 0..<x.count { sum += Double(x.p[i]) }
    x.set(h.radius / sum, x)
  }
}
