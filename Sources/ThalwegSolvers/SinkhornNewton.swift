import Glibc
import ThalwegCore

/// Entropic optimal transport: some of Sinkhorn's iterations, then Newton's on the concave potential, with the Hessian
/// cut down to the largest entries of the plan.
///
///     P_ij = e^(η·(x_i + y_j − C_ij) − 1);  stage 1: x += (log a − log P·1)/η, y += (log b − log Pᵀ·1)/η
///     stage 2: M = η·[[diag P·1, S], [Sᵀ, diag Pᵀ·1]], S the ⌈keep·n·m⌉ largest entries of P
///     M·d = (a − P·1, b − Pᵀ·1) by conjugate gradients with its diagonal;  t from 1 down by `shrink` until
///     φ(z + t·d) ≥ φ(z) + ls_c·t·d·gradient
///     φ = −ΣP/η + x·a + y·b
///
/// Errors   TW_ERROR_RANGE: a weight that is not positive and finite, sums of a and b that differ, a cost that is not
///          finite.
/// Ends     converged: |P·1 − a|₁ + |Pᵀ·1 − b|₁ ≤ tol; max_iter; line_search_failed: no step rises.
/// Differs  weights of 0 are refused: they have no potential here. The test of a step allows for the rounding of the
///          two potentials (8 units in the last place), which near the solution is larger than what a step gains.
/// Source   Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying, 2024, arXiv:2401.12253.
struct SinkhornNewtonSparse: Driver {
  static let method = Method.solver(
    "sinkhorn_newton_sparse", "Entropic transport by Sinkhorn's iterations, then sparse Newton steps.",
    rule: """
      P_ij = exp(eta (x_i + y_j - C_ij) - 1);  first x += (log a - log P1)/eta, y += (log b - log P'1)/eta
      then M d = (a - P1, b - P'1), M = eta [[diag P1, S], [S', diag P'1]], S the largest entries of P; backtracking
      """,
    source: "Tang et al., 2024, arXiv:2401.12253",
    parameters: [
      .number("eta", 10, .above(0), "one over the entropic regularisation"),
      .integer("n_sinkhorn", 20, .atLeast(0), "iterations of the first stage"),
      .integer("n_newton", 10, .atLeast(0), "most steps of the second"),
      .maybe(
        "keep", .between(0, 1, lowOpen: true, highOpen: false), "share of entries kept; none: 2 over the number of rows"
      ),
      .number("ls_c", 1e-4, .between(0, 0.5, lowOpen: true, highOpen: true), "sufficient increase"),
      .number("shrink", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "factor of a step that failed"),
      .number("tol", 1e-9, .atLeast(0), "error of the marginals that ends it"),
    ],
    inputs: [
      .constant("cost", "n, m", "costs").orNonfinite, .constant("a", "n", "weights of the rows"),
      .constant("b", "m", "weights of the columns"),
      .constant("x0", "n", "row potentials that start it", optional: true),
      .constant("y0", "m", "column potentials that start it", optional: true),
      .result("plan", "n, m", "the coupling"), .result("x", "n", "row potentials"),
      .result("y", "m", "column potentials"), .result("iterations", "", "Newton steps"),
      .result("residual", "", "error of the marginals"), .result("products", "", "products with the sparse matrix"),
    ],
    kept: [
      .kept("sparse", "n, m", "the plan without its small entries"), .kept("rows", "n", "row sums"),
      .kept("columns", "m", "column sums"), .kept("d", "2, side", "direction"), .kept("r", "2, side", "residual"),
      .kept("p", "2, side", "direction of the system"), .kept("q", "2, side", "product"),
      .kept("u", "n", "trial potentials"), .kept("v", "m", "trial potentials"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { ["side": max(sizes["n"], sizes["m"])] }

  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let a = try io["a"], b = try io["b"], x = try io["x"], y = try io["y"], plan = try io["plan"]
    let rows = try io["rows"], columns = try io["columns"], cost = try io["cost"]
    try Weights.check(a, "a", b, "b")
    for (w, name) in [(a, "a"), (b, "b")] {
      if let i = (0..<w.count).first(where: { w.p[$0] == 0 }) {
        throw Failure(Status.range, "`\(name)` must be above 0, got 0 at element \(i)")
      }
    }
    guard cost.isFinite else { throw Failure(Status.range, "`cost` must be finite") }
    if let x0 = io.optional("x0") { x.copy(x0) }
    if let y0 = io.optional("y0") { y.copy(y0) }
    for _ in 0..<h.integer("n_sinkhorn") {
      raise(x, a, y, cost, transposed: false)
      raise(y, b, x, cost, transposed: true)
    }
    var value = fill(plan, x, y, cost, a, b, rows, columns)
    while true {
      io.residual = error(rows, a) + error(columns, b)
      if io.residual <= h.tol { return .done(.converged) }
      if !io.residual.isFinite { return .done(.nonfinite) }
      if io.iterations >= h.n_newton { return .done(.maxIter) }
      let slope = try direction(io, a, b)
      let d = try io["d"], u = try io["u"], v = try io["v"]
      var t = 1.0
      while true {
        for i in 0..<u.count { u.p[i] = x.p[i] + T(t) * d.row(0).p[i] }
        for j in 0..<v.count { v.p[j] = y.p[j] + T(t) * d.row(1).p[j] }
        let there = fill(plan, u, v, cost, a, b, rows, columns)
        // (it is to rise)
        if Trial.lowers(-value, -there, T.self, by: -h.ls_c * t * slope, ulps: 8) {
          value = there
          break
        }
        t *= h.shrink
        if t < 1e-12 {
          _ = fill(plan, x, y, cost, a, b, rows, columns)
          return .done(.lineSearchFailed)
        }
      }
      x.copy(u)
      y.copy(v)
      io.iterations += 1
    }
  }

  /// One of Sinkhorn's halves, in logarithms.
  private func raise<T: Real>(_ x: Vector<T>, _ w: Vector<T>, _ y: Vector<T>, _ cost: Vector<T>, transposed: Bool) {
    let n = x.count, m = y.count, eta = h.eta as Double
    _ = Rows.sum(n, work: 16 * m) { i in
      var top = -Double.infinity, sum = 0.0
      func entry(_ j: Int) -> Double { eta * (Double(y.p[j]) - Double(cost.p[transposed ? j * n + i : i * m + j])) }
      for j in 0..<m { top = max(top, entry(j)) }
      for j in 0..<m { sum += exp(entry(j) - top) }
      x.p[i] = T((log(Double(w.p[i])) + 1 - top - log(sum)) / eta)
      return 0
    }
  }

  /// P with its marginals; returns the potential.
  private func fill<T: Real>(
    _ plan: Vector<T>, _ x: Vector<T>, _ y: Vector<T>, _ cost: Vector<T>, _ a: Vector<T>, _ b: Vector<T>,
    _ rows: Vector<T>, _ columns: Vector<T>
  ) -> Double {
    let m = y.count, eta = h.eta as Double
    let total = Rows.sum(x.count, work: 16 * m) { i in
      var sum = 0.0
      for j in 0..<m {
        let e = exp(eta * (Double(x.p[i]) + Double(y.p[j]) - Double(cost.p[i * m + j])) - 1)
        plan.p[i * m + j] = T(e)
        sum += e
      }
      rows.p[i] = T(sum)
      return sum
    }
    _ = Rows.sum(m, work: 4 * x.count) { j in
      var sum = 0.0
      for i in 0..<x.count { sum += Double(plan.p[i * m + j]) }
      columns.p[j] = T(sum)
      return 0
    }
    return x.dot(a) + y.dot(b) - total / eta
  }
  private func error<T: Real>(_ sums: Vector<T>, _ w: Vector<T>) -> Double {
    (0..<w.count).reduce(0) { $0 + abs(Double(sums.p[$1]) - Double(w.p[$1])) }
  }

  /// d, by conjugate gradients on the sparse Hessian; returns d · gradient.
  private func direction<T: Real>(_ io: DriverIO<T>, _ a: Vector<T>, _ b: Vector<T>) throws(Failure) -> Double {
    let plan = try io["plan"], sparse = try io["sparse"], rows = try io["rows"], columns = try io["columns"]
    let d = try io["d"], r = try io["r"], p = try io["p"], q = try io["q"], n = a.count, m = b.count
    let share = h.has("keep") ? h.keep : min(1, 2 / Double(n))
    let count = max(1, Int((share * Double(n * m)).rounded(.up)))
    let border = count >= n * m ? 0 : Flat.largest(plan.p, n * m, count - 1)
    sparse.map(plan) { Double($0) >= border ? $0 : 0 }
    for v in [d, r, p] { v.fill(0) }
    for i in 0..<n { r.row(0).p[i] = a.p[i] - rows.p[i] }
    for j in 0..<m { r.row(1).p[j] = b.p[j] - columns.p[j] }
    q.copy(r)  // the gradient, until the first product
    let gradient = (0..<2).map { k in (0..<(k == 0 ? n : m)).map { Double(q.row(k).p[$0]) } }
    func scaled(_ k: Int, _ i: Int) -> Double {
      let diagonal = h.eta * Double(k == 0 ? rows.p[i] : columns.p[i])
      return diagonal > 0 ? Double(r.row(k).p[i]) / diagonal : 0
    }
    if count >= n * m {
      // the whole matrix maps (1, −1) to 0: what rounding leaves of it in the right side has no solution
      func sum(_ k: Int, _ count: Int) -> Double { (0..<count).reduce(0) { $0 + Double(r.row(k).p[$1]) } }
      let share = (sum(0, n) - sum(1, m)) / Double(n + m)
      for i in 0..<n { r.row(0).p[i] -= T(share) }
      for j in 0..<m { r.row(1).p[j] += T(share) }
    }
    let start = r.norm
    var rz = 0.0
    for step in 0..<(2 * (n + m)) {
      var new = 0.0
      for i in 0..<n { new += Double(r.row(0).p[i]) * scaled(0, i) }
      for j in 0..<m { new += Double(r.row(1).p[j]) * scaled(1, j) }
      if r.norm <= 1e-10 * start || new == 0 { break }
      let beta = step == 0 ? 0 : new / rz
      for i in 0..<n { p.row(0).p[i] = T(scaled(0, i) + beta * Double(p.row(0).p[i])) }
      for j in 0..<m { p.row(1).p[j] = T(scaled(1, j) + beta * Double(p.row(1).p[j])) }
      rz = new
      multiply(sparse, rows, columns, p, q)
      io.products += 1
      let curvature = p.dot(q)
      guard curvature > 0 else { break }
      d.add(p, times: rz / curvature)
      r.add(q, times: -rz / curvature)
    }
    var slope = 0.0
    for k in 0..<2 { for (i, g) in gradient[k].enumerated() { slope += g * Double(d.row(k).p[i]) } }
    return slope
  }

  /// q ← M·p.
  private func multiply<T: Real>(
    _ s: Vector<T>, _ rows: Vector<T>, _ columns: Vector<T>, _ p: Vector<T>, _ q: Vector<T>
  ) {
    let n = rows.count, m = columns.count, eta = h.eta as Double, left = p.row(0), right = p.row(1)
    q.fill(0)
    _ = Rows.sum(n, work: 2 * m) { i in
      var sum = Double(rows.p[i]) * Double(left.p[i])
      for j in 0..<m { sum += Double(s.p[i * m + j]) * Double(right.p[j]) }
      q.row(0).p[i] = T(eta * sum)
      return 0
    }
    _ = Rows.sum(m, work: 2 * n) { j in
      var sum = Double(columns.p[j]) * Double(right.p[j])
      for i in 0..<n { sum += Double(s.p[i * m + j]) * Double(left.p[i]) }
      q.row(1).p[j] = T(eta * sum)
      return 0
    }
  }
}
