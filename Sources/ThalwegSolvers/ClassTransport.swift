import ThalwegCore

/// Optimal transport whose rows fuse: rows of one class are drawn to the same targets.
///
///     min ⟨C, Q⟩ + lam·Σ_{i<j} |Q_i − Q_j| over the couplings of a and b; pairs inside a class, or all
///     ADMM: Q = P(Z − U − C/rho);  Z = prox of the sum of norms at Q + U, step 1/rho;  U += Q − Z
///
/// P is the projection on the couplings, by Dykstra between the marginals and Q ≥ 0. The plan is Q, its marginals right
/// to rounding and its entries above −tol.
/// Errors   TW_ERROR_RANGE: weights as of `sinkhorn`, or a cost that is not finite.
/// Ends     converged: |Q − Z| and rho·|Z − Z before| ≤ tol; max_iter.
/// Differs  the paper's accelerated scheme is not followed; the problem is of its family.
/// Source   "Recovery Bounds on Class-Based Optimal Transport: A Sum-of-Norms Regularization Framework".
struct ClassOT: Driver {
  static let method = Method.solver(
    "class_ot", "Optimal transport whose rows fuse inside classes, by a sum of norms.",
    rule: """
      min <C, Q> + lam sum_(i<j) |Q_i - Q_j| over the couplings of a and b, pairs inside a class
      Q = P(Z - U - C/rho);  Z = prox(Q + U, 1/rho);  U += Q - Z
      """,
    source: "Recovery Bounds on Class-Based Optimal Transport: A Sum-of-Norms Regularization Framework",
    parameters: [
      .number("lam", 0.1, .atLeast(0), "fusion weight"), .number("rho", 1, .above(0), "penalty"),
      .integer("max_iter", 300, .atLeast(1), "most iterations"),
      .number("tol", 1e-6, .atLeast(0), "residuals that end it"),
      .integer("inner_iter", 1000, .atLeast(1), "most sweeps of a projection"),
    ],
    inputs: [
      .constant("cost", "n, m", "costs"), .constant("a", "n", "weights of the rows"),
      .constant("b", "m", "weights of the columns"),
      .integer("row_labels", "n", "class of each row; all in one when left out", optional: true),
      .result("plan", "n, m", "the coupling Q"), .result("fused", "n, m", "Z, whose fused rows are equal"),
      .result("iterations", "", "iterations"), .result("residual", "", "|Q - Z|"),
      .result("value", "", "the objective"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let cost = try io["cost"], a = try io["a"], b = try io["b"], n = a.count, m = b.count
    try Weights.check(a, "a", b, "b")
    guard cost.isFinite else { throw Failure(Status.range, "`cost` must be finite") }
    try Memory.ask(8 &* (7 &* n &* m + 2 &* n &* n))
    let same = try? io.integers("row_labels")
    let pair = { (i: Int, j: Int) in i != j && (same.map { $0[i] == $0[j] } ?? true) }
    var coefficients: [ValueNode] = []
    for i in 0..<n { for j in 0..<n { coefficients.append(.number(pair(i, j) ? 1 : 0)) } }
    let node = StageNode(
      name: "sum_of_norms",
      arguments: [("weight", ValueNode.number(h.lam)), ("coef", .list(coefficients))].map {
        ArgumentNode(name: $0.0, value: $0.1, position: 0)
      }, position: 0)
    let (entry, inner) = try Registry.component(node, .regularizer)
    guard case .regularizer(let norms) = entry.component else {
      throw Failure(Status.internal, "sum_of_norms is no regularizer")
    }
    let mass = (0..<n).reduce(0.0) { $0 + Double(a.p[$1]) }
    var z = (0..<(n * m)).map { Double(a.p[$0 / m]) * Double(b.p[$0 % m]) / mass }
    var u = [Double](repeating: 0, count: n * m), q = z
    var end = Ending.maxIter
    while io.iterations < h.max_iter {
      for i in q.indices { q[i] = z[i] - u[i] - Double(cost.p[i]) / h.rho }
      project(&q, a, b)
      let last = z
      for i in z.indices { z[i] = q[i] + u[i] }
      if h.lam > 0, n > 1 {
        try z.withUnsafeMutableBufferPointer { (p) throws(Failure) in
          guard let v = p.baseAddress else { return }
          try runOnce(norms.proximal(inner), inner, v, v, Shape(dimensions: [n, m]), t: 1 / h.rho)
        }
      }
      var apart = 0.0, moved = 0.0
      for i in z.indices {
        u[i] += q[i] - z[i]
        apart += (q[i] - z[i]) * (q[i] - z[i])
        moved += (z[i] - last[i]) * (z[i] - last[i])
      }
      io.iterations += 1
      io.residual = apart.squareRoot()
      if io.residual <= h.tol, h.rho * moved.squareRoot() <= h.tol {
        end = .converged
        break
      }
    }
    let plan = try io["plan"], fused = try io["fused"]
    for i in q.indices {
      io.value += Double(cost.p[i]) * q[i]
      (plan.p[i], fused.p[i]) = (T(q[i]), T(z[i]))
    }
    for i in 0..<n {
      for j in 0..<i where pair(i, j) {
        let square = (0..<m).reduce(0.0) { sum, k in
          let d = q[i * m + k] - q[j * m + k]
          return sum + d * d
        }
        io.value += h.lam * square.squareRoot()
      }
    }
    return .done(end)
  }

  /// The nearest coupling.
  private func project<T: Real>(_ q: inout [Double], _ a: Vector<T>, _ b: Vector<T>) {
    let n = a.count, m = b.count
    var correction = [Double](repeating: 0, count: n * m), rows = [Double](repeating: 0, count: n)
    var columns = [Double](repeating: 0, count: m)
    /// Onto the marginals; the least entry there.
    func balance() -> Double {
      for i in 0..<n { rows[i] = (0..<m).reduce(-Double(a.p[i])) { $0 + q[i * m + $1] } }
      for j in 0..<m { columns[j] = (0..<n).reduce(-Double(b.p[j])) { $0 + q[$1 * m + j] } }
      let all = rows.reduce(0, +) / Double(n * m)
      var least = 0.0
      for i in 0..<n {
        for j in 0..<m {
          q[i * m + j] += all - rows[i] / Double(m) - columns[j] / Double(n)
          least = min(least, q[i * m + j])
        }
      }
      return least
    }
    for _ in 0..<h.integer("inner_iter") {
      if balance() >= -h.tol / 100 { return }
      for i in q.indices {
        let y = q[i] + correction[i]
        q[i] = max(y, 0)
        correction[i] = y - q[i]
      }
    }
    _ = balance()
  }
}
