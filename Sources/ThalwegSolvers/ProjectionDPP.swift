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
    let chosen = try DPP.draw((0..<(n * m)).map { Double(u.p[$0]) }, n, m, (0..<m).map { Double(draws.p[$0]) })
    for (step, i) in chosen.enumerated() {
      indices.p[step] = T(i)
      weights.p[step] = T(Double(m) / Flat.squaredNorm(UnsafePointer(u.p + i * m), m))
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

/// The chain rule of projection determinantal point processes.
enum DPP {
  /// m rows of V (N, m), whose columns are orthonormal, by uniform draws.
  static func draw(_ start: [Double], _ n: Int, _ m: Int, _ draws: [Double]) throws(Failure) -> [Int] {
    var v = start, out: [Int] = []
    for step in 0..<m {
      let columns = m - step
      let lengths = (0..<n).map { i in (0..<columns).reduce(0) { $0 + v[i * columns + $1] * v[i * columns + $1] } }
      let chosen = try pick(lengths, draws[step], step)
      out.append(chosen)
      if columns == 1 { break }
      let row = Array(v[(chosen * columns)..<((chosen + 1) * columns)])
      var pivot = 0
      for j in 0..<columns where abs(row[j]) > abs(row[pivot]) { pivot = j }
      guard row[pivot] != 0 else { throw Failure(Status.range, "the columns are not independent") }
      var rest: [Double] = []
      rest.reserveCapacity(n * (columns - 1))
      for i in 0..<n {
        // what has been chosen has nothing left, whatever rounding says
        let factor = v[i * columns + pivot] / row[pivot]
        for j in 0..<columns where j != pivot { rest.append(i == chosen ? 0 : v[i * columns + j] - factor * row[j]) }
      }
      v = try LinearAlgebra.orthonormal(rest, n, columns - 1)
    }
    return out
  }
  /// The index that a draw falls on, with probabilities like these lengths.
  static func pick(_ lengths: [Double], _ draw: Double, _ step: Int) throws(Failure) -> Int {
    guard draw >= 0, draw < 1 else {
      throw Failure(Status.range, "`draws` must lie in [0, 1), got \(text(draw)) at element \(step)")
    }
    let bound = draw * lengths.reduce(0, +)
    var chosen = 0, sum = 0.0
    for i in lengths.indices where lengths[i] > 0 && sum <= bound {
      chosen = i
      sum += lengths[i]
    }
    return chosen
  }
}

/// A draw of k candidates from a determinantal point process, given a kernel.
///
///     L = W·diag(λ)·Wᵀ;   k of the vectors by elementary symmetric polynomials, from the last to the first:
///       vector j with probability λ_j·e_{r−1}(λ_1..λ_{j−1})/e_r(λ_1..λ_j), r what is still wanted
///     then a projection process on them     P(S) = det L_S/e_k(λ)
///
/// kernel is (N, N), positive semidefinite, eigenvalues descending; draws is (N + k,): N for the vectors, from the last
/// on, k for the candidates. Eigenvalues up to 10⁻¹² of the largest (10⁻⁶ in float32) count as 0.
/// Errors   TW_ERROR_RANGE: k above the rank of the kernel, a kernel that is not finite, or a draw outside [0, 1).
/// Source   Kulesza, Taskar, 2011; Nouy, Michel, 2023, arXiv:2312.14057.
struct KDPP: Driver {
  static let method = Method.solver(
    "k_dpp", "A draw of k candidates from a determinantal point process.",
    rule: "k eigenvectors by elementary symmetric polynomials, then a projection process on them;  P(S) = det L_S/e_k",
    source: "Kulesza, Taskar, 2011; Nouy, Michel, 2023, arXiv:2312.14057",
    parameters: [.integer("k", nil, .atLeast(1), "candidates of a draw")],
    inputs: [
      .constant("kernel", "N, N", "positive semidefinite"), .constant("draws", "r", "N + k uniform numbers"),
      .result("indices", "k", "the candidates that were drawn, in their order"),
    ])

  let k: Int
  init(_ h: Hyper) { k = h.integer("k") }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let kernel = try io["kernel"], draws = try io["draws"], indices = try io["indices"], n = kernel.rows
    guard draws.count == n + k else {
      throw Failure(Status.shape, "`draws` must hold N + k = \(n + k) numbers, got \(draws.count)")
    }
    guard kernel.isFinite else { throw Failure(Status.range, "`kernel` must be finite") }
    let eigen = try LinearAlgebra.Eigen(UnsafePointer(kernel.p), n), top = max(eigen.values.first ?? 0, 0)
    let rank = eigen.values.count { $0 > (T.isDouble ? 1e-12 : 1e-6) * top }
    guard k <= rank else { throw Failure(Status.range, "`k` must be at most the rank \(rank) of the kernel, got \(k)") }
    try Memory.ask(8 * (rank + 1) * (k + 1) + 8 * n * k)
    // e[j][r] over the first j eigenvalues, which are scaled so that no sum is too large
    var e = [[Double]](repeating: [Double](repeating: 0, count: k + 1), count: rank + 1)
    e[0][0] = 1
    for j in 1...rank {
      let value = eigen.values[j - 1] / top
      e[j][0] = 1
      for r in 1...k { e[j][r] = e[j - 1][r] + value * e[j - 1][r - 1] }
    }
    var wanted = k, columns: [Int] = []
    for j in stride(from: rank, to: 0, by: -1) where wanted > 0 {
      let draw = Double(draws.p[rank - j])
      guard draw >= 0, draw < 1 else {
        throw Failure(Status.range, "`draws` must lie in [0, 1), got \(text(draw)) at element \(rank - j)")
      }
      let share = wanted == j ? 1 : eigen.values[j - 1] / top * e[j - 1][wanted - 1] / e[j][wanted]
      if draw < share {
        columns.append(j - 1)
        wanted -= 1
      }
    }
    var v: [Double] = []
    for i in 0..<n { for c in columns { v.append(eigen.vectors[i * n + c]) } }
    let rest = (0..<k).map { Double(draws.p[n + $0]) }
    for (step, i) in try DPP.draw(v, n, k, rest).enumerated() { indices.p[step] = T(i) }
    return .done(.converged)
  }
}

/// The candidates with the largest determinant, greedily.
///
///     i = argmax of det L_{S ∪ i}/det L_S, by an incremental Cholesky factor;  until k, or a gain of at most tol
///
/// kernel is (N, N), positive semidefinite. Of equal gains the first candidate is taken. Entries of indices behind
/// `chosen` are −1.
/// Errors   TW_ERROR_RANGE: a kernel that is not finite.
/// Source   Chen, Zhang, Zhou, 2018, arXiv:1709.05135; Nouy, Michel, 2023, arXiv:2312.14057.
struct DPPMap: Driver {
  static let method = Method.solver(
    "dpp_map", "The candidates with the largest determinant, greedily.",
    rule: "i = argmax det L_(S + i)/det L_S, by an incremental Cholesky factor;  until k, or a gain of at most tol",
    source: "Chen, Zhang, Zhou, 2018, arXiv:1709.05135; Nouy, Michel, 2023, arXiv:2312.14057",
    parameters: [
      .integer("k", nil, .atLeast(1), "most candidates"), .number("tol", 1e-12, .atLeast(0), "gain that ends it"),
    ],
    inputs: [
      .constant("kernel", "N, N", "positive semidefinite"), .result("indices", "k", "candidates, in their order"),
      .result("gains", "k", "by which factor the determinant grew"), .result("chosen", "", "candidates"),
    ])

  let k: Int, tol: Double
  init(_ h: Hyper) { (k, tol) = (h.integer("k"), h.tol) }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let kernel = try io["kernel"], indices = try io["indices"], gains = try io["gains"], n = kernel.rows
    guard kernel.isFinite else { throw Failure(Status.range, "`kernel` must be finite") }
    indices.fill(-1)
    let most = min(k, n)
    try Memory.ask(8 * n * (most + 1))
    var rest = (0..<n).map { Double(kernel.p[$0 * n + $0]) }, factor: [[Double]] = []
    var free = [Bool](repeating: true, count: n)
    for step in 0..<most {
      var best = -1
      for i in 0..<n where free[i] && (best < 0 || rest[i] > rest[best]) { best = i }
      guard best >= 0, rest[best] > tol else { break }
      (indices.p[step], gains.p[step]) = (T(best), T(rest[best]))
      io.chosen += 1
      free[best] = false
      let root = rest[best].squareRoot(), own = factor.map { $0[best] }
      var column = [Double](repeating: 0, count: n)
      for i in 0..<n where free[i] {
        var inner = Double(kernel.p[best * n + i])
        for (c, f) in zip(factor, own) { inner -= f * c[i] }
        column[i] = inner / root
        rest[i] -= column[i] * column[i]
      }
      factor.append(column)
    }
    return .done(.converged)
  }
}
