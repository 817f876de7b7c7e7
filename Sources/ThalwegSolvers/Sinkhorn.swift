import Glibc
import ThalwegCore

/// Entropic optimal transport by Sinkhorn's scaling, in logarithms.
///
///     g_j = ε·(log b_j − LSE_i((f_i − C_ij)/ε));  f_i = ε·(log a_i − LSE_j((g_j − C_ij)/ε))
///     P_ij = e^((f_i+g_j−C_ij)/ε)
///
/// Row marginals are exact after an update of f. The error is |Pᵀ·1 − b|₂, before P is rounded to its type. f0 (and
/// g0, where max_iter is 0) start it. A weight of 0, or a cost of infinity, gives entries of 0. Logarithms and long
/// sums are taken in double. After a sweep in logarithms others scale the matrix of exponentials, until a factor
/// leaves its range (see `Sweeps`).
/// Errors   TW_ERROR_RANGE: a weight that is negative or not finite, sums of a and b that differ, or a cost that is NaN
///          or −∞.
/// Ends     converged: error ≤ tol, looked at every check_every iterations and at the last; infeasible: a weight all of
///          whose pairs are forbidden (no iteration then); max_iter, also where some pairs too many are forbidden;
///          nonfinite: a plan that leaves the range of numbers.
/// Source   Cuturi, 2013, arXiv:1306.0895; the logarithmic form: Schmitzer, 2019, arXiv:1610.06519.
struct Sinkhorn: Driver {
  static let method = Method.solver(
    "sinkhorn", "Entropic optimal transport by Sinkhorn's scaling in the logarithmic domain.",
    rule: """
      g_j = epsilon (log b_j - LSE_i((f_i - C_ij)/epsilon));  f_i = epsilon (log a_i - LSE_j((g_j - C_ij)/epsilon))
      P_ij = exp((f_i + g_j - C_ij)/epsilon)
      """,
    source: "Cuturi, 2013, arXiv:1306.0895; Schmitzer, 2019, arXiv:1610.06519",
    parameters: [
      .number("epsilon", 0.1, .above(0), "entropic regularisation"),
      .integer("max_iter", 1000, .atLeast(0), "most iterations"),
      .number("tol", 1e-9, .atLeast(0), "error of the column marginal that ends it"),
      .integer("check_every", 10, .atLeast(1), "iterations between looks at the error"),
    ],
    inputs: [
      .constant("cost", "n, m", "costs").orNonfinite, .constant("a", "n", "weights of the rows"),
      .constant("b", "m", "weights of the columns"),
      .constant("f0", "n", "row potentials that start it; 0 when left out", optional: true).orNonfinite,
      .constant("g0", "m", "column potentials that start it; 0 when left out", optional: true).orNonfinite,
      .result("plan", "n, m", "the coupling"), .result("f", "n", "row potentials"),
      .result("g", "m", "column potentials"), .result("iterations", "", "iterations"),
      .result("residual", "", "error of the column marginal"), .result("value", "", "cost of the plan"),
      .result("dual", "", "f.a + g.b"),
    ])

  let epsilon: Double, limit: Int, tolerance: Double, every: Int
  init(_ h: Hyper) {
    (epsilon, limit, tolerance, every) = (h.epsilon, h.integer("max_iter"), h.tol, h.integer("check_every"))
  }

  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let a = try io["a"], b = try io["b"], f = try io["f"], g = try io["g"], p = try io["plan"]
    let problem = Scaling(try io["cost"], epsilon, io.sizes["n"], io.sizes["m"])
    try Weights.check(a, "a", b, "b")
    guard try problem.feasible(a, b) else { return .done(.infeasible) }
    // an earlier result has −∞ where a weight is 0
    for (start, x, w) in [("f0", f, a), ("g0", g, b)] {
      guard let given = io.optional(start) else { continue }
      guard (0..<w.count).allSatisfy({ given.p[$0].isFinite || w.p[$0] == 0 }) else { return .done(.nonfinite) }
      x.copy(given)
    }
    let scaled = try Sweeps(problem, a, b, p)
    var end = Ending.maxIter, k = 0, residual: Double?
    while k < limit {
      k += 1
      let isScaled = scaled.advance()
      if isScaled {
        scaled.accept()
      } else {
        scaled.leave(f, g)
        problem.columns(f, b, into: g)
        problem.rows(g, a, into: f)
        scaled.enter(f, g)
      }
      guard k % every == 0 || k == limit else { continue }
      residual = isScaled ? scaled.error : problem.error(f, g, b)
      if residual ?? .nan <= tolerance {
        end = .converged
        break
      }
    }
    io.iterations = Double(k)
    io.value = scaled.finish(f, g)
    io.residual = residual ?? problem.error(f, g, b)
    if !p.isFinite { end = .nonfinite }
    io.dual = Weights.product(f, a) + Weights.product(g, b)
    return .done(end)
  }
}

/// Entropic optimal transport relative to the product of the weights: the potentials begin at 0 and hold no logarithms
/// of weights.
///
///     f_i = −reg·LSE_j((g_j − C_ij)/reg + log b_j);  g_j = −reg·LSE_i((f_i − C_ij)/reg + log a_i)
///     P_ij = a_i·b_j·e^((f_i + g_j − C_ij)/reg)
///
/// Column marginals are exact. The error is |P·1 − a|₂, before P is rounded to its type: P keeps what f and g lose when
/// they are rounded. A weight of 0 gives entries, and a potential, of 0.
/// Errors   as of `sinkhorn`.
/// Ends     as of `sinkhorn`; the error is looked at in every iteration.
/// Differs  the plan is that of `sinkhorn`, whose rows are exact: f and g are its potentials less reg·log of the
///          weights.
/// Source   Cuturi, 2013, arXiv:1306.0895; Peyré, Cuturi, 2019, arXiv:1803.00567.
struct OTSinkhorn: Driver {
  static let method = Method.solver(
    "ot_sinkhorn", "Entropic optimal transport relative to the product of the weights.",
    rule: """
      f_i = -reg LSE_j((g_j - C_ij)/reg + log b_j);  g_j = -reg LSE_i((f_i - C_ij)/reg + log a_i)
      P_ij = a_i b_j exp((f_i + g_j - C_ij)/reg)
      """,
    source: "Cuturi, 2013, arXiv:1306.0895; Peyre, Cuturi, 2019, arXiv:1803.00567",
    parameters: [
      .number("reg", 0.1, .above(0), "entropic regularisation"), .integer("max_iter", 100, .atLeast(0), "most sweeps"),
      .number("tol", 1e-6, .atLeast(0), "error of the row marginal that ends it"),
    ],
    inputs: [
      .constant("cost", "n, m", "costs").orNonfinite, .constant("a", "n", "weights of the rows"),
      .constant("b", "m", "weights of the columns"), .result("plan", "n, m", "the coupling"),
      .result("f", "n", "row potentials"), .result("g", "m", "column potentials"), .result("iterations", "", "sweeps"),
      .result("residual", "", "error of the row marginal"), .result("value", "", "cost of the plan"),
    ], kept: [.kept("next", "n", "the row potentials of the next sweep")])

  let reg: Double, limit: Int, tolerance: Double
  init(_ h: Hyper) { (reg, limit, tolerance) = (h.reg, h.integer("max_iter"), h.tol) }

  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let a = try io["a"], b = try io["b"], f = try io["f"], g = try io["g"], next = try io["next"]
    let problem = Scaling(try io["cost"], reg, io.sizes["n"], io.sizes["m"])
    try Weights.check(a, "a", b, "b")
    guard try problem.feasible(a, b) else { return .done(.infeasible) }
    func logarithms(_ w: Vector<T>, _ x: Vector<T>, _ sign: Double) {
      for i in 0..<w.count {
        x.p[i] = w.p[i] > 0 ? x.p[i] + T(sign * reg * log(Double(w.p[i]))) : sign > 0 ? -.infinity : 0
      }
    }
    // with the logarithms of the weights in them the sweeps are those of `sinkhorn`
    logarithms(a, f, 1)
    logarithms(b, g, 1)
    var end = Ending.maxIter
    let plan = try io["plan"], scaled = try Sweeps(problem, a, b, plan)
    while true {
      let isScaled = scaled.advance()
      if isScaled {
        io.residual = scaled.change
      } else {
        scaled.leave(f, g, ahead: true)
        io.residual = problem.rows(g, a, into: next, from: f).squareRoot()
      }
      if io.residual <= tolerance, io.iterations > 0 {
        end = .converged
        break
      }
      if io.iterations >= Double(limit) { break }
      if isScaled {
        scaled.accept()
      } else {
        f.copy(next)
        problem.columns(f, b, into: g)
        scaled.enter(f, g)
      }
      io.iterations += 1
    }
    io.value = scaled.finish(f, g, ahead: true)
    if !plan.isFinite { end = .nonfinite }
    logarithms(a, f, -1)
    logarithms(b, g, -1)
    return .done(end)
  }
}

/// Weights of rows and columns that are to be coupled.
enum Weights {
  static func check<T: Real>(_ a: Vector<T>, _ first: String, _ b: Vector<T>, _ second: String) throws(Failure) {
    var sums = [0.0, 0.0]
    for (k, (v, name)) in [(a, first), (b, second)].enumerated() {
      for i in 0..<v.count {
        let x = Double(v.p[i])
        guard x >= 0, x.isFinite else {
          throw Failure(Status.range, "`\(name)` must hold weights of at least 0, got \(text(x)) at element \(i)")
        }
        sums[k] += x
      }
    }
    guard sums[0] > 0, abs(sums[0] - sums[1]) <= (T.isDouble ? 1e-9 : 1e-4) * sums[0] else {
      throw Failure(
        Status.range,
        "`\(first)` and `\(second)` must have the same positive sum, got \(text(sums[0])) and \(text(sums[1]))")
    }
  }
  /// Σ x·w, where a weight of 0 counts for nothing.
  static func product<T: Real>(_ x: Vector<T>, _ w: Vector<T>) -> Double {
    var sum = 0.0
    for i in 0..<w.count where w.p[i] > 0 { sum += Double(x.p[i]) * Double(w.p[i]) }
    return sum
  }
}
