import Glibc
import ThalwegCore

/// Minimises a function over couplings of two weights, one gradient and one half of Sinkhorn's scaling a step.
///
///     P = a·bᵀ;  t = 1, 2, ...:  η = √(δ/t)/bound, δ = max|log a| + max|log b|;  P ← P·e^(−η·∇f(P)), scaled to the row
///     marginals where t is even, to those of the columns where it is odd;  the mean of all P is the answer
///
/// With `round` the mean is made an exact coupling: rows are scaled by min(a/row, 1), columns likewise, and what is
/// missing is added as a product. The scaling is one factor with the exponential, whose largest exponent is taken out.
/// Entries of 0 stay 0; δ looks at positive weights alone.
/// Ends     max_iter.
/// Source   Ballu, Berthet, 2022, arXiv:2211.10420; the rounding: Altschuler, Weed, Rigollet, 2017, arXiv:1705.09634.
struct MirrorSinkhorn: Driver {
  static let method = Method.solver(
    "mirror_sinkhorn", "Single-loop minimisation over transport plans.",
    rule: """
      eta = sqrt(delta/t)/bound;  P <- P exp(-eta grad f(P));  rows scaled to a (t even) or columns to b (t odd)
      average = (t average + P)/(t + 1)
      """,
    source: "Ballu, Berthet, 2022, arXiv:2211.10420; Altschuler, Weed, Rigollet, 2017, arXiv:1705.09634",
    parameters: [
      .number("bound", 1, .above(0), "largest magnitude of an entry of the gradient"),
      .integer("max_iter", 1000, .atLeast(0), "steps"), .flag("round", true, "make the mean an exact coupling"),
    ],
    inputs: [
      .constant("a", "n", "weights of the rows"), .constant("b", "m", "weights of the columns"),
      .result("plan", "n, m", "the mean of the couplings"), .result("last", "n, m", "the last one"),
      .result("iterations", "", "steps"),
    ],
    asks: [
      RequestKind(
        "gradient", "the gradient at a plan", given: [.given("plan", "n, m", "a coupling, of one marginal at least")],
        wanted: [.wanted("gradient", "n, m", "gradient there")])
    ], kept: [.kept("g", "n, m", "gradient"), .kept("sums", "m", "sums of columns")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, gradient }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let a = try io["a"], b = try io["b"], mean = try io["plan"], p = try io["last"], g = try io["g"]
    let sums = try io["sums"]
    if phase == .start {
      try Weights.check(a, "a", b, "b")
      for i in 0..<a.count { for j in 0..<b.count { p.p[i * b.count + j] = a.p[i] * b.p[j] } }
      mean.copy(p)
    } else {
      let t = io.iterations + 1
      let delta = spread(a) + spread(b), eta = (delta / t).squareRoot() / h.bound
      var least = T.infinity
      for i in 0..<g.count where p.p[i] > 0 { least = min(least, g.p[i]) }
      for i in 0..<g.count where p.p[i] > 0 { p.p[i] *= T(exp(-eta * Double(g.p[i] - least))) }
      if t.truncatingRemainder(dividingBy: 2) == 0 {
        Plan.scaleRows(p, a, atMost: .infinity)
      } else {
        Plan.scaleColumns(p, b, sums, atMost: .infinity)
      }
      mean.set(t / (t + 1), mean, 1 / (t + 1), p)
      io.iterations = t
    }
    if io.iterations < h.max_iter { return .ask("gradient", [p], [g], then: .gradient) }
    if h.round { try Plan.round(mean, a, b, sums) }
    return .done(.maxIter)
  }

  private func spread<T: Real>(_ w: Vector<T>) -> Double {
    var most = 0.0
    for i in 0..<w.count where w.p[i] > 0 { most = max(most, abs(log(Double(w.p[i])))) }
    return most
  }
}

/// A plan that is made to have given marginals.
///
///     rows by min(a/row, 1), columns by min(b/column, 1), then + (a − rows)·(b − columns)ᵀ/|a − rows|₁
///
/// Source   Altschuler, Weed, Rigollet, 2017, arXiv:1705.09634.
struct RoundTransport: Driver {
  static let method = Method.solver(
    "round_transport", "The coupling near a plan that has exact marginals.",
    rule: "rows by min(a/row, 1);  columns by min(b/column, 1);  P += (a - rows)(b - columns)'/|a - rows|_1",
    source: "Altschuler, Weed, Rigollet, 2017, arXiv:1705.09634",
    inputs: [
      .constant("plan0", "n, m", "a plan, of entries of at least 0"), .constant("a", "n", "weights of the rows"),
      .constant("b", "m", "weights of the columns"), .result("plan", "n, m", "the coupling"),
    ], kept: [.kept("sums", "m", "sums of columns")])

  init(_ h: Hyper) {}
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let plan = try io["plan"], given = try io["plan0"]
    for i in 0..<given.count where !(given.p[i] >= 0) {
      throw Failure(Status.range, "`plan0` must hold numbers of at least 0, got \(given.p[i]) at element \(i)")
    }
    plan.copy(given)
    try Weights.check(try io["a"], "a", try io["b"], "b")
    try Plan.round(plan, try io["a"], try io["b"], try io["sums"])
    return .done(.converged)
  }
}

/// Matrices of entries of at least 0, scaled to marginals.
private enum Plan {
  static func row<T: Real>(_ p: Vector<T>, _ i: Int, _ m: Int) -> Double {
    var sum = 0.0
    for j in 0..<m { sum += Double(p.p[i * m + j]) }
    return sum
  }
  static func columns<T: Real>(_ p: Vector<T>, _ sums: Vector<T>) {
    let m = sums.count
    var wide = [Double](repeating: 0, count: m)
    for i in 0..<p.rows { for j in 0..<m { wide[j] += Double(p.p[i * m + j]) } }
    for j in 0..<m { sums.p[j] = T(wide[j]) }
  }
  static func scaleRows<T: Real>(_ p: Vector<T>, _ a: Vector<T>, atMost limit: Double) {
    let m = p.count / max(1, a.count)
    for i in 0..<a.count {
      let sum = row(p, i, m)
      if sum > 0 { Flat.scale(p.p + i * m, by: min(Double(a.p[i]) / sum, limit), into: p.p + i * m, m) }
    }
  }
  static func scaleColumns<T: Real>(_ p: Vector<T>, _ b: Vector<T>, _ sums: Vector<T>, atMost limit: Double) {
    columns(p, sums)
    let m = b.count
    for j in 0..<m { sums.p[j] = sums.p[j] > 0 ? T(min(Double(b.p[j]) / Double(sums.p[j]), limit)) : 1 }
    for i in 0..<p.rows { for j in 0..<m { p.p[i * m + j] *= sums.p[j] } }
  }

  static func round<T: Real>(_ p: Vector<T>, _ a: Vector<T>, _ b: Vector<T>, _ sums: Vector<T>) throws(Failure) {
    scaleRows(p, a, atMost: 1)
    scaleColumns(p, b, sums, atMost: 1)
    columns(p, sums)
    let m = b.count
    var missing = 0.0
    for i in 0..<a.count { missing += max(0, Double(a.p[i]) - row(p, i, m)) }
    guard missing > 0 else { return }
    for i in 0..<a.count {
      let left = max(0, Double(a.p[i]) - row(p, i, m)) / missing
      if left > 0 { for j in 0..<m { p.p[i * m + j] += T(left * max(0, Double(b.p[j]) - Double(sums.p[j]))) } }
    }
  }
}
