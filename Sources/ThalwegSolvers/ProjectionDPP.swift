import ThalwegCore

/// A draw from a projection determinantal point process: m of N candidates that span a space well.
///
///     V = U;  m times: pick i with probability |V_i|²/Σ|V|², by the inverse of the distribution in index order
///             j: the column with the largest |V_ij|;  V ← V − V_:j·V_i/V_ij without column j, made orthonormal again
///     P(S) = det (U·Uᵀ)_S     weights_i = m/|U_i|² (inverse Christoffel)
///
/// u is (N, m) with orthonormal columns; draws is (m,), uniform numbers of the host. With the weights, the least
/// squares of the chosen rows are those of optimal sampling.
/// Errors   TW_ERROR_RANGE: columns that are not orthonormal, or a draw outside [0, 1).
/// Source   Derezinski, Warmuth, Hsu, 2018, arXiv:1802.06749; Nouy, Michel, 2023, arXiv:2312.14057.
struct ProjectionDPP: Driver {
  static let method = Method.solver(
    "projection_dpp", "A draw from a projection determinantal point process.",
    rule: """
      m times: pick i with probability |V_i|^2/sum |V|^2;  eliminate row i from V, drop a column, orthonormalise
      P(S) = det (U U')_S;  weights = m/|U_i|^2
      """,
    source: "Derezinski, Warmuth, Hsu, 2018, arXiv:1802.06749; Nouy, Michel, 2023, arXiv:2312.14057",
    inputs: [
      .constant("u", "N, m", "orthonormal columns, one row a candidate"), .constant("draws", "m", "uniform numbers"),
      .result("indices", "m", "the rows that were drawn, in their order"),
      .result("weights", "m", "their weights in least squares"),
    ])

  init(_ h: Hyper) {}
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let u = try io["u"], draws = try io["draws"], indices = try io["indices"], weights = try io["weights"]
    let n = u.rows, m = draws.count
    try orthonormal(u, n, m)
    try Memory.ask(16 * n * m)
    var v = (0..<(n * m)).map { Double(u.p[$0]) }
    for step in 0..<m {
      let columns = m - step, draw = Double(draws.p[step])
      guard draw >= 0, draw < 1 else {
        throw Failure(Status.range, "`draws` must lie in [0, 1), got \(text(draw)) at element \(step)")
      }
      let lengths = (0..<n).map { i in Flat.squaredNorm(Array(v[(i * columns)..<((i + 1) * columns)]), columns) }
      let bound = draw * lengths.reduce(0, +)
      var chosen = 0, sum = 0.0
      for i in 0..<n where lengths[i] > 0 && sum <= bound {
        chosen = i
        sum += lengths[i]
      }
      indices.p[step] = T(chosen)
      weights.p[step] = T(Double(m) / Flat.squaredNorm(UnsafePointer(u.p + chosen * m), m))
      if columns == 1 { break }
      let row = Array(v[(chosen * columns)..<((chosen + 1) * columns)])
      var pivot = 0
      for j in 0..<columns where abs(row[j]) > abs(row[pivot]) { pivot = j }
      guard row[pivot] != 0 else { throw Failure(Status.range, "the columns of `u` are not independent") }
      var rest: [Double] = []
      rest.reserveCapacity(n * (columns - 1))
      for i in 0..<n {
        // what has been chosen has nothing left, whatever rounding says
        let factor = v[i * columns + pivot] / row[pivot]
        for j in 0..<columns where j != pivot { rest.append(i == chosen ? 0 : v[i * columns + j] - factor * row[j]) }
      }
      v = try LinearAlgebra.orthonormal(rest, n, columns - 1)
    }
    return .done(.converged)
  }

  private func orthonormal<T: Real>(_ u: Vector<T>, _ n: Int, _ m: Int) throws(Failure) {
    guard n >= m else {
      throw Failure(Status.shape, "`u` has \(m) columns of length \(n), which cannot be orthonormal")
    }
    for a in 0..<m {
      for b in a..<m {
        var product = 0.0
        for i in 0..<n { product += Double(u.p[i * m + a]) * Double(u.p[i * m + b]) }
        guard abs(product - (a == b ? 1 : 0)) <= (T.isDouble ? 1e-8 : 1e-4) else {
          throw Failure(
            Status.range, "the columns of `u` must be orthonormal; \(a) and \(b) have the product \(text(product))")
        }
      }
    }
  }
}
