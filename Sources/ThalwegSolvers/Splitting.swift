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
/// P: `simplex` multiplies by e^(−lr·F) and scales every line along `axis` to the sum `radius`; `orthant` multiplies
/// alone; `pnorm` subtracts in the mirror of the p-norm, as `mirror_descent`; `l2` subtracts, and asks for a projection
/// with `ask_project`. Zeros stay zero in the first two. Two lines of one length are the players of a matrix game.
/// Ends     max_iter.
/// Errors   TW_ERROR_RANGE: a start with negative entries, or a line of zeros, on the simplex and the orthant.
///          TW_ERROR_SHAPE: no such axis.
/// Source   Nemirovski, 2004.
struct MirrorProx: Driver {
  static let method = Method.solver(
    "mirror_prox", "Mirror-prox for monotone operators and saddle points.",
    rule: "y = P(x - lr F(x));  x <- P(x - lr F(y));  the mean of the y is the answer", source: "Nemirovski, 2004",
    parameters: [
      .number("lr", 0.1, .above(0), "step"),
      .choice("geometry", ["simplex", "orthant", "pnorm", "l2"], "what P is"),
      .number("p", 1.5, .between(1, 2, lowOpen: true, highOpen: false), "exponent of pnorm"),
      .number("radius", 1, .above(0), "sum of a line of the simplex"),
      .integer("axis", -1, .within(-64, 63), "the axis of the lines"),
      .flag("ask_project", false, "l2: ask for projections"),
      .integer("max_iter", 100, .atLeast(0), "steps"),
    ],
    inputs: [
      .constant("x0", "...", "where it starts"), .result("average", "...", "the mean of the middle points"),
      .result("x", "...", "the last point"), .result("iterations", "", "steps"),
      .result("residual", "", "|x - P(x - lr F(x))|/lr at the x of the last step, 0 at a solution"),
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
      io.residual = .infinity
      if h.is("geometry", "simplex") || h.is("geometry", "orthant") {
        guard x.count == 0 || ((0..<x.count).allSatisfy { x.p[$0] >= 0 } && x.norm > 0) else {
          throw Failure(Status.range, "`x0` must have entries of at least 0, and one above")
        }
        if h.is("geometry", "simplex") { try scale(x) }
      }
      mean.copy(x)
      try io["x"].copy(x)
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("operator", [x], [f], then: .first)
    case .first: return try move(x, f, y, v, then: .middle)
    case .middle:
      io.residual = x.distance(y) / h.lr
      return .ask("operator", [y], [f], then: .second)
    case .second: return try move(x, f, x, v, then: .end)
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
    throws(Failure) -> Verdict<Phase>
  {
    if h.is("geometry", "l2") {
      guard h.ask_project else {
        out.set(1, x, -h.lr, f)
        return .go(then)
      }
      v.set(1, x, -h.lr, f)
      return .ask("project", [v], [out], then: then)
    }
    if h.is("geometry", "pnorm") {
      try Memory.ask(8 &* x.count)
      let p: Double = h.p
      var z = (0..<x.count).map { Double(x.p[$0]) }
      mirror(&z, p)
      for i in z.indices { z[i] -= h.lr * Double(f.p[i]) }
      mirror(&z, p / (p - 1))
      for i in z.indices { out.p[i] = T(z[i]) }
      return .go(then)
    }
    let simplex = h.is("geometry", "simplex"), lines = simplex ? try lines(x) : .whole(Shape(dimensions: x.shape))
    for s in 0..<lines.count {
      let first = lines.start(s)
      // the largest factor of a line of the simplex is 1: the rest scales away
      var least = simplex ? T.infinity : 0
      for k in 0..<lines.length where simplex && x.p[first &+ k &* lines.inner] > 0 {
        least = min(least, f.p[first &+ k &* lines.inner])
      }
      for k in 0..<lines.length {
        let i = first &+ k &* lines.inner
        out.p[i] = x.p[i] > 0 ? x.p[i] * T(exp(-h.lr * Double(f.p[i] - least))) : 0
      }
    }
    if simplex { try scale(out) }
    return .go(then)
  }
  private func lines<T: Real>(_ x: Vector<T>) throws(Failure) -> Slices {
    let rank = x.shape.count, axis = h.integer("axis")
    guard rank == 0 || (axis >= -rank && axis < rank) else {
      throw Failure(Status.shape, "mirror_prox: a tensor of rank \(rank) has no axis \(axis)")
    }
    return .along(axis, Shape(dimensions: x.shape))
  }
  /// Every line over its sum, times the radius.
  private func scale<T: Real>(_ x: Vector<T>) throws(Failure) {
    let lines = try lines(x)
    for s in 0..<lines.count {
      let first = lines.start(s)
      let sum = (0..<lines.length).reduce(0.0) { $0 + Double(x.p[first &+ $1 &* lines.inner]) }
      guard sum > 0 else { throw Failure(Status.range, "`x0` must have an entry above 0 in every line") }
      for k in 0..<lines.length {
        let i = first &+ k &* lines.inner
        x.p[i] = T(h.radius / sum * Double(x.p[i]))
      }
    }
  }
}
