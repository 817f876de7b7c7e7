import Glibc
import ThalwegCore

/// Iterative hard thresholding: gradient steps that keep the k entries of largest magnitude.
///
///     x ← keep_k(x − lr·g)
///
/// Of equal magnitudes the earlier entry stays.
/// Ends     converged: |x − x before| ≤ tol·max(1, |x|); max_iter.
/// Differs  lr has no default: the card's 1/L is the host's to know.
/// Source   Blumensath, Davies, 2009, arXiv:0805.0510.
struct IHT: Driver {
  static let method = Method.solver(
    "iht", "Iterative hard thresholding: gradient steps that keep the largest entries.",
    rule: "x <- the k entries of largest magnitude of x - lr g", source: "Blumensath, Davies, 2009, arXiv:0805.0510",
    parameters: [
      .integer("k", nil, .atLeast(1), "entries that are kept"), .number("lr", nil, .above(0), "step"),
      .integer("max_iter", 100, .atLeast(0), "most steps"),
      .number("tol", 1e-8, .atLeast(0), "relative change that ends it"),
    ],
    inputs: [
      .constant("x0", "...", "where it starts"), .result("x", "...", "the sparse point"),
      .result("iterations", "", "steps"), .result("residual", "", "the last change over max(1, |x|)"),
    ],
    asks: [.gradient], kept: [.kept("g", "...", "gradient"), .kept("last", "...", "the point before")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, gradient }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], g = try io["g"], last = try io["last"]
    if phase == .start {
      x.copy(try io["x0"])
    } else {
      last.copy(x)
      x.add(g, times: -h.lr)
      keep(x, h.integer("k"))
      io.iterations += 1
      io.residual = x.distance(last) / max(1, x.norm)
      if io.residual <= h.tol { return .done(.converged) }
    }
    if io.iterations >= h.max_iter { return .done(.maxIter) }
    return .ask("gradient", [x], [g], then: .gradient)
  }

  private func keep<T: Real>(_ x: Vector<T>, _ k: Int) {
    guard k < x.count else { return }
    let border = Flat.largest(x.p, x.count, k - 1)
    var room = k
    for i in 0..<x.count where Double(abs(x.p[i])) > border { room -= 1 }
    for i in 0..<x.count {
      let size = Double(abs(x.p[i]))
      if size > border { continue }
      if size == border, room > 0 { room -= 1 } else { x.p[i] = 0 }
    }
  }
}

/// The lasso and the elastic net, by cyclic coordinate descent.
///
///     ½/n·|y − X·w|² + α·ρ·|w|₁ + ½·α·(1−ρ)·|w|²,  ρ = l1_ratio
///     w_j ← S_{αρ}(x_j·r/n + q_j·w_j)/(q_j + α·(1−ρ)),  q_j = |x_j|²/n;  the residual r is kept
///
/// The weight of a column of zeros goes to 0; without a penalty it stays.
/// Ends     converged: no weight moved by more than tol in a sweep; max_iter; nonfinite: NaN or infinite in the data.
/// Source   Friedman, Hastie, Tibshirani, 2010.
struct LassoCD: Driver {
  static let method = Method.solver(
    "lasso_cd", "Lasso and elastic net by cyclic coordinate descent.",
    rule: """
      minimise |y - X w|^2/(2 n) + alpha l1_ratio |w|_1 + alpha (1 - l1_ratio)/2 |w|^2
      w_j <- S(x_j.r/n + q_j w_j; alpha l1_ratio)/(q_j + alpha (1 - l1_ratio)),  q_j = |x_j|^2/n
      """,
    source: "Friedman, Hastie, Tibshirani, 2010",
    parameters: [
      .number("alpha", nil, .atLeast(0), "coefficient of the penalty"),
      .number("l1_ratio", 1, .between(0, 1, lowOpen: true, highOpen: false), "share of the L1 norm"),
      .number("tol", 1e-8, .atLeast(0), "largest change of a sweep that ends it"),
      .integer("max_iter", 1000, .atLeast(0), "most sweeps"),
    ],
    inputs: [
      .constant("design", "n, p", "X, one row a sample").byColumns.orNonfinite,
      .constant("targets", "n", "y").orNonfinite,
      .constant("w0", "p", "weights to start with; 0 when left out", optional: true),
      .result("w", "p", "the weights"), .result("iterations", "", "sweeps"),
      .result("residual", "", "largest change of the last sweep"), .result("value", "", "the objective"),
    ], kept: [.kept("r", "n", "residual")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let columns = try io["design"], w = try io["w"], r = try io["r"]
    if let w0 = io.optional("w0") { w.copy(w0) }
    r.copy(try io["targets"])
    let lasso = try Lasso(columns, h.l1_ratio)
    guard lasso.isFinite, r.isFinite, w.isFinite else { return .done(.nonfinite) }
    for j in 0..<w.count where w.p[j] != 0 { r.add(columns.row(j), times: -Double(w.p[j])) }
    let found = lasso.solve(w, r, h.alpha, h.tol, h.integer("max_iter"))
    (io.iterations, io.residual) = (Double(found.sweeps), found.change)
    io.value = lasso.value(w, r, h.alpha)
    return .done(found.change <= h.tol && found.sweeps > 0 ? .converged : .maxIter)
  }
}

/// The lasso or elastic net along a path of penalties, each from the solution before.
///
///     α from max_j |x_j·y|/n/l1_ratio down to path_eps times that, evenly in logarithms
///
/// Ends     as lasso_cd, of all penalties.
/// Source   Friedman, Hastie, Tibshirani, 2010.
struct LassoPath: Driver {
  static let method = Method.solver(
    "lasso_path", "A path of lasso or elastic-net solutions, warm started.",
    rule: "alpha from max |X'y|/(n l1_ratio) down to path_eps times that, log-spaced; lasso_cd at each",
    source: "Friedman, Hastie, Tibshirani, 2010",
    parameters: [
      .number("l1_ratio", 1, .between(0, 1, lowOpen: true, highOpen: false), "share of the L1 norm"),
      .number("tol", 1e-8, .atLeast(0), "largest change of a sweep that ends a point"),
      .integer("max_iter", 1000, .atLeast(0), "most sweeps for each"),
      .integer("alphas", 100, .atLeast(1), "points of the path"),
      .number("path_eps", 1e-3, .between(0, 1, lowOpen: true, highOpen: true), "last penalty over the first"),
    ],
    inputs: [
      .constant("design", "n, p", "X, one row a sample").byColumns.orNonfinite,
      .constant("targets", "n", "y").orNonfinite, .result("penalties", "alphas", "the penalties, falling"),
      .result("w", "alphas, p", "weights for each"),
      .result("iterations", "", "sweeps in all"), .result("residual", "", "largest change of any last sweep"),
    ],
    kept: [.kept("r", "n", "residual")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let columns = try io["design"], w = try io["w"], r = try io["r"], penalties = try io["penalties"]
    r.copy(try io["targets"])
    let lasso = try Lasso(columns, h.l1_ratio), count = penalties.count
    guard lasso.isFinite, r.isFinite else { return .done(.nonfinite) }
    var top = 0.0, failed = false
    for j in 0..<columns.rows { top = max(top, abs(columns.row(j).dot(r)) / Double(r.count) / h.l1_ratio) }
    for k in 0..<count {
      let alpha = top * pow(h.path_eps, Double(k) / Double(max(1, count - 1)))
      penalties.p[k] = T(alpha)
      if k > 0 { w.row(k).copy(w.row(k - 1)) }
      let found = lasso.solve(w.row(k), r, alpha, h.tol, h.integer("max_iter"))
      failed = failed || found.change > h.tol
      io.iterations += Double(found.sweeps)
      io.residual = max(io.residual, found.change)
    }
    return .done(failed ? .maxIter : .converged)
  }
}

/// Coordinate descent on one design matrix, kept by columns.
///
/// A weight of 0 stays while |x_j·r|/n is within the threshold. Since x_j was last read that number has moved by at
/// most √q_j·Σ √q_k·|step|, over the steps of all weights since: columns that this keeps within are not read. The steps
/// are those of plain sweeps.
private final class Lasso<T: Real> {
  let x: Vector<T>, l1: Double, q: [Double], roots: [Double]
  /// The way of the residual, and for every weight that is 0 what |x_j·r|/n is at most, less √q_j times the way.
  private var way = 0.0, least: [Double]

  init(_ columns: Vector<T>, _ l1Ratio: Double) throws(Failure) {
    try Memory.ask(3 * 8 * columns.rows)
    (x, l1) = (columns, l1Ratio)
    let n = Double(max(1, columns.count / columns.rows))
    q = (0..<columns.rows).map { columns.row($0).dot(columns.row($0)) / n }
    roots = q.map { $0.squareRoot() }
    least = q.map { _ in .infinity }
  }
  /// (squares may overflow where no number does)
  var isFinite: Bool { q.allSatisfy(\.isFinite) || x.isFinite }

  /// Sweeps until no weight moves; r is the residual of w.
  func solve(_ w: Vector<T>, _ r: Vector<T>, _ alpha: Double, _ tolerance: Double, _ limit: Int)
    -> (sweeps: Int, change: Double)
  {
    let threshold = alpha * l1, ridge = alpha * (1 - l1), length = r.count, n = Double(length)
    let within = threshold * (T.isDouble ? 1 - 1e-9 : 1 - 1e-5)  // by more than sums are rounded
    var change = Double.infinity, k = 0
    while k < limit {
      k += 1
      change = 0
      // a weight that nothing depends on: the penalty is least at 0
      for j in 0..<w.count where q[j] == 0 && alpha > 0 {
        change = max(change, abs(Double(w.p[j])))
        w.p[j] = 0
      }
      for j in 0..<w.count where q[j] > 0 {
        let old = Double(w.p[j])
        if old == 0, least[j] + roots[j] * way < within { continue }
        let column = Vector(x.name, x.offset &+ j &* length, x.p + j &* length, r.shape)
        let rho = column.dot(r) / n + q[j] * old
        let new = T((abs(rho) > threshold ? rho - (rho < 0 ? -threshold : threshold) : 0) / (q[j] + ridge))
        let step = Double(new) - old
        if step != 0 {
          r.add(column, times: -step)
          w.p[j] = new
          way += roots[j] * abs(step)
        }
        least[j] = abs(rho) - roots[j] * way
        change = max(change, abs(step))
      }
      if change <= tolerance { break }
    }
    return (k, change)
  }
  func value(_ w: Vector<T>, _ r: Vector<T>, _ alpha: Double) -> Double {
    var sum = 0.0
    for j in 0..<w.count { sum += abs(Double(w.p[j])) }
    return r.dot(r) / (2 * Double(r.count)) + alpha * l1 * sum + alpha * (1 - l1) / 2 * w.dot(w)
  }
}
