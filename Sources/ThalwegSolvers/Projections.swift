import ThalwegCore

extension RequestKind {
  static let project = RequestKind(
    "project", "the nearest point of a set",
    given: [.given("point", "...", "a point"), .given("set", "", "which set, from 0")],
    wanted: [.wanted("projection", "...", "the nearest point of that set")])
}

/// The nearest point of an intersection of convex sets, from projections on each of them.
///
///     for every set i: y = P_i(x + p_i);  p_i ← x + p_i − y;  x ← y
///
/// Ends     converged: a sweep that moved x by at most tol·max(1, |x|); max_iter, also where the sets do not meet.
/// Source   Boyle, Dykstra, 1986.
struct Dykstra: Driver {
  static let method = Method.solver(
    "dykstra", "Dykstra's projections on an intersection of convex sets.",
    rule: "for every set i: y = P_i(x + p_i);  p_i <- x + p_i - y;  x <- y", source: "Boyle, Dykstra, 1986",
    parameters: Cyclic.parameters, inputs: Cyclic.inputs, asks: [.project],
    kept: Cyclic.kept + [
      .kept("p", "sets, ...", "correction of every set"), .kept("v", "...", "the corrected point"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, ask, projection }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], p = try io["p"]
    if phase == .start { Cyclic.begin(io, x, try io["x0"], try io["last"]) }
    if phase == .projection {
      let k = try io.count("set", p.rows - 1)
      p.row(k).add(x)
      p.row(k).add(y, times: -1)
      x.copy(y)
      if let end = Cyclic.finish(io, x, try io["last"], h) { return .done(end) }
    }
    let v = try io["v"]
    v.set(1, x, 1, p.row(try io.count("set", p.rows - 1)))
    return .ask("project", [v], [y], then: .projection)
  }
}

/// A point of an intersection of convex sets, by projecting on one after the other.
///
///     for every set i: x ← x + relaxation·(P_i(x) − x)
///
/// Ends     converged: a sweep that moved x by at most tol·max(1, |x|); max_iter.
/// Source   von Neumann, 1933; Bregman, 1965.
struct POCS: Driver {
  static let method = Method.solver(
    "pocs", "Cyclic projections on convex sets.", rule: "for every set i: x <- x + relaxation (P_i(x) - x)",
    source: "von Neumann, 1933; Bregman, 1965",
    parameters: Cyclic.parameters + [
      .number("relaxation", 1, .between(0, 2, lowOpen: true, highOpen: true), "over-relaxation")
    ], inputs: Cyclic.inputs, asks: [.project], kept: Cyclic.kept)

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, ask, projection }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"]
    if phase == .start { Cyclic.begin(io, x, try io["x0"], try io["last"]) }
    if phase == .projection {
      y.add(x, times: -1)
      x.add(y, times: h.relaxation)
      if let end = Cyclic.finish(io, x, try io["last"], h) { return .done(end) }
    }
    return .ask("project", [x], [y], then: .projection)
  }
}

/// Sweeps over several sets.
private enum Cyclic {
  static let parameters: [Parameter] = [
    .integer("sets", 2, .atLeast(1), "number of sets"),
    .integer("max_iter", 50, .atLeast(1), "most sweeps"),
    .number("tol", 0, .atLeast(0), "relative change of a sweep that ends it"),
  ]
  static let inputs: [Input] = [
    .constant("x0", "...", "where it starts"), .result("x", "...", "the point"), .result("iterations", "", "sweeps"),
    .result("residual", "", "the change of the last sweep over max(1, |x|)"),
  ]
  static let kept: [Input] = [
    .kept("y", "...", "projection"), .kept("last", "...", "the point before this sweep"),
  ]
  static func begin<T: Real>(_ io: DriverIO<T>, _ x: Vector<T>, _ x0: Vector<T>, _ last: Vector<T>) {
    x.copy(x0)
    last.copy(x0)
  }
  /// After the projection on one set: on with the next, or the end.
  static func finish<T: Real>(_ io: DriverIO<T>, _ x: Vector<T>, _ last: Vector<T>, _ h: Hyper) -> Ending? {
    io.set += 1
    guard io.set >= h.sets else { return nil }
    io.set = 0
    io.iterations += 1
    io.residual = x.distance(last) / max(1, x.norm)
    if io.residual <= h.tol { return .converged }
    last.copy(x)
    return io.iterations >= h.max_iter ? .maxIter : nil
  }
}

/// A point of two sets, from reflections on each in turn.
///
///     x ← (1 − r)·x + r·R_B(R_A(x)),  R = 2·P − I;  the answer is P_A(x)
///
/// `residual` is the gap |P_A(x) − P_B(R_A(x))| of the last iteration: where the sets do not meet, x drifts and the gap
/// stays.
/// Ends     converged: gap ≤ tol; max_iter: after that many steps of x, and one more projection for the answer.
/// Source   Douglas, Rachford, 1956; Lions, Mercier, 1979.
struct DouglasRachford: Driver {
  static let method = Method.solver(
    "douglas_rachford", "Douglas-Rachford reflections for a point of two sets.",
    rule: "x <- (1 - r) x + r R_B(R_A(x)),  R = 2 P - I;  the answer is P_A(x)",
    source: "Douglas, Rachford, 1956; Lions, Mercier, 1979",
    parameters: TwoSets.parameters + [
      .number("relaxation", 0.5, .between(0, 1, lowOpen: true, highOpen: false), "averaging")
    ], inputs: TwoSets.inputs, asks: [.project],
    kept: TwoSets.kept + [.kept("r", "...", "reflection")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, first, second, answer }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["z"], a = try io["a"], b = try io["b"], r = try io["r"]
    switch phase {
    case .start: x.copy(try io["x0"])
    case .first:
      try io["x"].copy(a)
      r.set(2, a, -1, x)
      io.set = 1
      return .ask("project", [r], [b], then: .second)
    case .second:
      io.iterations += 1
      io.residual = a.distance(b)
      if io.residual <= h.tol { return .done(.converged) }
      r.set(2, b, -1, r)
      r.add(x, times: -1)
      x.add(r, times: h.relaxation)
    case .answer:
      try io["x"].copy(a)
      return .done(.maxIter)
    }
    io.set = 0
    return .ask("project", [x], [a], then: io.iterations >= h.max_iter ? .answer : .first)
  }
}

/// A point of two sets, that need not be convex, by the difference map.
///
///     f_A = P_A(x) − (P_A(x) − x)/β;  f_B = P_B(x) + (P_B(x) − x)/β;  x ← x + β·(P_A(f_B) − P_B(f_A))
///
/// The answer is P_A(f_B); `residual` is |P_A(f_B) − P_B(f_A)|. β = 1 takes three projections: f_A = x.
/// Ends     converged: residual ≤ tol; max_iter.
/// Source   Elser, 2003.
struct DifferenceMap: Driver {
  static let method = Method.solver(
    "difference_map", "The difference map for a point of two sets.",
    rule: "f_A = P_A(x) - (P_A(x) - x)/beta;  f_B = P_B(x) + (P_B(x) - x)/beta;  x += beta (P_A(f_B) - P_B(f_A))",
    source: "Elser, 2003",
    parameters: TwoSets.parameters + [.number("beta", 1, .any, "parameter; not 0")], inputs: TwoSets.inputs,
    asks: [.project], kept: TwoSets.kept + [.kept("y", "...", "projection"), .kept("f", "...", "f_A or f_B")],
    validate: { (h) throws(Failure) in
      guard h.beta != 0 else { throw Failure(Status.range, "difference_map: `beta` must not be 0") }
    })

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, first, onSecond, second, onFirst }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["z"], a = try io["a"], b = try io["b"], y = try io["y"], f = try io["f"]
    let beta = h.beta as Double
    /// Asks for the projection of p on set k.
    func ask(_ k: Int, _ p: Vector<T>, _ out: Vector<T>, _ then: Phase) -> Verdict<Phase> {
      io.set = Double(k)
      return .ask("project", [p], [out], then: then)
    }
    switch phase {
    case .start: x.copy(try io["x0"])
    case .first:
      f.set(1, y, -1, x)
      f.set(1, y, -1 / beta, f)
      return ask(1, f, b, .onSecond)
    case .onSecond: return ask(1, x, y, .second)
    case .second:
      if beta == 1 { b.copy(y) }  // f_A is x
      f.set(1, y, -1, x)
      f.set(1, y, 1 / beta, f)
      return ask(0, f, a, .onFirst)
    case .onFirst:
      try io["x"].copy(a)
      io.iterations += 1
      io.residual = a.distance(b)
      if io.residual <= h.tol { return .done(.converged) }
      x.add(a, times: beta)
      x.add(b, times: -beta)
      if io.iterations >= h.max_iter { return .done(.maxIter) }
    }
    return beta == 1 ? ask(1, x, y, .second) : ask(0, x, y, .first)
  }
}

private enum TwoSets {
  static let parameters: [Parameter] = [
    .integer("max_iter", 50, .atLeast(1), "most iterations"),
    .number("tol", 0, .atLeast(0), "gap that ends it"),
  ]
  static let inputs: [Input] = [
    .constant("x0", "...", "where it starts"), .result("x", "...", "the point of the first set"),
    .result("z", "...", "where the iteration stands"), .result("iterations", "", "iterations"),
    .result("residual", "", "gap between the two projections"),
  ]
  static let kept: [Input] = [
    .kept("a", "...", "projection on the first set"), .kept("b", "...", "projection on the second set"),
  ]
}
