import ThalwegCore

/// The spectral density of a symmetric operator, by Lanczos runs from random vectors.
///
///     every start v: Lanczos gives a tridiagonal T;  its eigenvalues are points, the squared first components of its
///     eigenvectors their weights;   the points of all starts, with the mean of the weights
///
/// eigenvalues and weights are (starts, steps at most the number of unknowns), ascending in each row; a run that ends
/// early, β ≤ 1e-12·(the largest entry of T), leaves points of weight 0 at 0. `trace` is the number of unknowns
/// times Σ weight·eigenvalue. For the spectrum of a class the products are those of its loss.
/// Ends     converged.
/// Errors   TW_ERROR_RANGE: a start vector of zeros.
/// Differs  nothing from PyHessian, which has no re-orthogonalisation by default. Smoothing of the points is the
///          host's.
/// Source   Lin, Saad and Yang, 2016; Ghorbani, Krishnan and Xiao, 2019, arXiv:1901.10159.
struct SpectralDensity: Driver {
  static let method = Method.solver(
    "hessian_spectrum_slq", "The spectral density of a Hessian, by Lanczos runs from random vectors.",
    rule: """
      every start: points = eigenvalues of the Lanczos matrix T, weights = squared first components of its vectors
      weights are averaged over the starts;  trace = n * sum weight*eigenvalue
      """,
    source: "Lin, Saad, Yang, 2016; Ghorbani, Krishnan, Xiao, 2019, arXiv:1901.10159",
    parameters: [
      .integer("steps", 80, .within(1, 0x1p20), "products of a start, at most the number of unknowns"),
      .integer("starts", 1, .within(1, 0x1p20), "random vectors"),
      .flag("reorthogonalise", true, "twice against all vectors before"),
      .integer("seed", 0, .atLeast(0), "of the start vectors"),
    ],
    inputs: [
      .constant("like", "...", "an array of the shape of the unknowns; its values do not count", optional: true)
        .orNonfinite,
      .constant("start", "...", "the first start vector; drawn when left out", optional: true),
      .result("eigenvalues", "starts, rows", "points"), .result("weights", "starts, rows", "their weights"),
      .result("trace", "", "estimate of the trace"), .result("iterations", "", "products"),
    ], asks: [.product],
    kept: [
      .kept("basis", "rows, ...", "Lanczos vectors"), .kept("w", "...", "product"), .kept("alpha", "rows", "diagonal"),
      .kept("beta", "rows", "what stands beside it"), .kept("drawn", "...", "the start"),
      .kept("place", "", "step of this run"), .kept("run", "", "runs that are over"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    ["rows": min(h.integer("steps"), max(1, sizes.samples)), "starts": h.integer("starts")]
  }
  enum Phase: Int { case start, product }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let basis = try io["basis"], w = try io["w"], alpha = try io["alpha"], beta = try io["beta"]
    if phase == .start { return try begin(0, io) }
    let k = try io.count("place", basis.rows - 1)
    io.iterations += 1
    if step(k, basis, w, alpha.p, beta.p) {
      io.place += 1
      return .ask("product", [basis.row(k + 1)], [w], then: .product)
    }
    let starts = h.integer("starts"), run = try io.count("run", starts - 1)
    let t = try Tridiagonal(alpha.p, beta.p, k + 1), rows = basis.rows
    let points = try io["eigenvalues"].p + run * rows, weights = try io["weights"].p + run * rows
    for i in 0..<rows {
      let share = i > k ? 0 : t.first(i) * t.first(i) / Double(starts)
      points[i] = i > k ? 0 : T(t.values[i])
      weights[i] = T(share)
      if i <= k { io.trace += Double(w.count) * share * t.values[i] }
    }
    io.run += 1
    return run + 1 < starts ? try begin(run + 1, io) : .done(.converged)
  }

  private func begin<T: Real>(_ run: Int, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let basis = try io["basis"], start = try io["drawn"]
    if run == 0, let given = io.optional("start") {
      start.copy(given)
    } else {
      let seed = UInt64(bitPattern: Int64(h.integer("seed")))
      start.draw(Random.key(seed: seed, stream: 0, step: UInt64(run), tensor: 0))
    }
    try LanczosStep.begin(io, start, basis)
    io.place = 0
    return .ask("product", [basis.row(0)], [try io["w"]], then: .product)
  }

  /// One Lanczos step; false when it was the last of its run.
  private func step<T: Real>(
    _ k: Int, _ basis: Vector<T>, _ w: Vector<T>, _ alpha: UnsafeMutablePointer<T>, _ beta: UnsafeMutablePointer<T>
  ) -> Bool {
    LanczosStep.take(k, basis, w, alpha, beta, 1e-12, reorthogonal: h.reorthogonalise)
  }
}
