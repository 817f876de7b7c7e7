import ThalwegCore

/// The nearest weights that keep a margin on every row: a step of training to convergence on separable data, for a
/// sequence of tasks one after the other.
///
///     w = argmin |w − w0|² with y_i·⟨x_i, w⟩ ≥ margin; Hildreth, rows in turn:
///     d = max((margin − y_i·⟨x_i, w⟩)/|x_i|², −λ_i);  λ_i += d;  w += d·y_i·x_i
///
/// A row of zeros is left out.
/// Errors   TW_ERROR_RANGE: a label that is not −1 or 1.
/// Ends     converged: |d| ≤ tol in a sweep; max_iter: `worst` tells the least margin.
/// Source   Hildreth, 1957; Evron et al., 2023, arXiv:2306.03534.
struct SequentialMaxMargin: Driver {
  static let method = Method.solver(
    "sequential_max_margin", "Projection of weights on the margin polyhedron of a task.",
    rule: """
      w = argmin |w - w0|^2 with y_i <x_i, w> >= margin
      d = max((margin - y_i <x_i, w>)/|x_i|^2, -lambda_i);  lambda_i += d;  w += d y_i x_i
      """,
    source: "Hildreth, 1957; Evron et al., 2023, arXiv:2306.03534",
    parameters: [
      .number("margin", 1, .above(0), "required margin"), .integer("max_iter", 1000, .atLeast(1), "most sweeps"),
      .number("tol", 1e-8, .atLeast(0), "largest change of a multiplier that ends it"),
    ],
    inputs: [
      .constant("features", "n, d", "one row a sample"), .integer("labels", "n", "-1 or 1"),
      .constant("w0", "d", "weights before; 0 when left out", optional: true), .result("w", "d", "the weights"),
      .result("multipliers", "n", "multipliers"), .result("iterations", "", "sweeps"),
      .result("residual", "", "largest change of a multiplier in the last sweep"),
      .result("worst", "", "least margin of a row"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["features"], y = try io.integers("labels"), w = try io["w"], multipliers = try io["multipliers"]
    for i in 0..<x.rows where y[i] != 1 && y[i] != -1 {
      throw Failure(Status.range, "`labels` must be -1 or 1, got \(y[i]) at element \(i)")
    }
    if let w0 = io.optional("w0") { w.copy(w0) }
    repeat {
      var change = 0.0
      for i in 0..<x.rows {
        let row = x.row(i), size = row.dot(row), sign = Double(y[i])
        guard size > 0 else { continue }
        let d = max((h.margin - sign * row.dot(w)) / size, -Double(multipliers.p[i]))
        multipliers.p[i] += T(d)
        w.add(row, times: d * sign)
        change = max(change, abs(d))
      }
      io.iterations += 1
      io.residual = change
    } while io.residual > h.tol && io.iterations < h.max_iter
    io.worst = (0..<x.rows).reduce(Double.infinity) { min($0, Double(y[$1]) * x.row($1).dot(w)) }
    return .done(io.residual <= h.tol ? .converged : .maxIter)
  }
}
