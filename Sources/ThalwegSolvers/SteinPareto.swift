import Glibc
import ThalwegCore

/// The direction of a network that learns a Pareto set, with a kernel that keeps its points apart.
///
///     v = mean − lcb·deviation;   scalar_i = max_o (v_io − z_o)·r_io,  active_i where it is taken
///     local:  K_ij = Σ_o [o = active_j]·exp(−(v_io − v_jo)²/h_o);   global:  K_ij = exp(−|v_i − v_j|²/h)
///     h = c·med²/log n, med the median of the n² squared differences
///     J = gradients of the scalars, each column divided by its norm over the n points;   R_i = ∇ Σ_l K_il
///     direction = Σ_i ((K·J)_i + alpha·R_i)/n,  to descend along
///
/// Gradients are those in the p parameters of the network. The host back-propagates twice: weights (n, m) of the values
/// into one row of J each, and weights (n, n, m), row i of them all values, into row i of R.
/// Ends     converged; nonfinite: NaN or infinite among the values, or in the kernel's derivative.
/// Differs  where med is 0, h is 5e-6 (local) or c·1e-6 (global), as in the authors' code; 1 for a single point. A
///          column of J without norm stays 0. Of equal maxima the first is taken. Signs are those of the code.
/// Source   Nguyen et al., 2024, arXiv:2412.17312; the kernel form Liu, Tong, Liu, 2021.
struct SVHPSL: Driver {
  static let method = Method.solver(
    "svh_psl", "The direction of a network that learns a Pareto set, with a kernel that keeps its points apart.",
    rule: """
      scalar_i = max_o (v_io - z_o) r_io, v = mean - lcb deviation;  J = their gradients, columns normalised
      K_ij = sum_o [o = active_j] exp(-(v_io - v_jo)^2/h_o), h_o = c med_o^2/log n;  R_i = grad sum_l K_il
      direction = sum_i ((K J)_i + alpha R_i)/n
      """,
    source: "Nguyen et al., 2024, arXiv:2412.17312",
    parameters: [
      .choice("kernel", ["local", "global"], "of the active objective, or of all"),
      .number("c", 1, .above(0), "factor of the kernel's width"),
      .number("alpha", 1e-3, .atLeast(0), "weight of the kernel's own gradient"),
      .number("lcb", 0.1, .atLeast(0), "deviations below the mean"),
    ],
    inputs: [
      .constant("mean", "n, m", "predicted objectives of the points, one for each preference"),
      .constant("deviation", "n, m", "their standard deviations", optional: true),
      .constant("preferences", "n, m", "r"), .constant("reference", "m", "z, below what was seen"),
      .constant("parameters", "p", "of the network: their number is read"),
      .result("direction", "p", "to descend along"), .result("scalars", "n", "Chebyshev's scalars"),
      .result("similarity", "n, n", "K"),
    ],
    asks: [
      RequestKind(
        "scalar_gradients", "row i: the gradient, in the parameters, of the sum of weights_io values_io over o",
        given: [.given("weights", "n, m", "factors of the values")],
        wanted: [.wanted("rows", "n, p", "the gradients")]),
      RequestKind(
        "kernel_gradients", "row i: the gradient, in the parameters, of the sum of weights_ijo values_jo over j and o",
        given: [.given("all_weights", "n, n, m", "factors of the values")],
        wanted: [.wanted("rows", "n, p", "the gradients")]),
    ],
    kept: [
      .kept("v", "n, m", "values"), .kept("active", "n", "objectives of the scalars"),
      .kept("weights", "n, m", "of the scalars"),
      .kept("pull", "n, n, m", "of the kernel's sums"), .kept("J", "n, p", "gradients of the scalars"),
      .kept("R", "n, p", "gradients of the kernel's sums"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, scalars, kernel }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let v = try io["v"], J = try io["J"], R = try io["R"], K = try io["similarity"], direction = try io["direction"]
    let n = v.rows, p = direction.count
    switch phase {
    case .start:
      v.copy(try io["mean"])
      if let deviation = io.optional("deviation") { v.add(deviation, times: -h.lcb) }
      guard v.isFinite, try io["reference"].isFinite, try io["preferences"].isFinite else { return .done(.nonfinite) }
      return .ask("scalar_gradients", [try scalars(io, v)], [J], then: .scalars)
    case .scalars:
      try similarity(io, v, K)
      guard try io["pull"].isFinite else { return .done(.nonfinite) }
      return .ask("kernel_gradients", [try io["pull"]], [R], then: .kernel)
    case .kernel:
      // Σ_i K_ij is what row j of J counts
      let column = (0..<n).map { j in (0..<n).reduce(0.0) { $0 + Double(K.p[$1 * n + j]) } }
      for k in 0..<p {
        var square = 0.0, sum = 0.0, apart = 0.0
        for i in 0..<n {
          let g = Double(J.p[i * p + k])
          square += g * g
          sum += column[i] * g
          apart += Double(R.p[i * p + k])
        }
        let mean = square > 0 ? sum / square.squareRoot() : 0
        direction.p[k] = T((mean + h.alpha * apart) / Double(n))
      }
      return .done(.converged)
    }
  }

  /// Chebyshev's scalars; what their gradients weigh the values with.
  private func scalars<T: Real>(_ io: DriverIO<T>, _ v: Vector<T>) throws(Failure) -> Vector<T> {
    let r = try io["preferences"], z = try io["reference"], weights = try io["weights"], out = try io["scalars"]
    let active = try io["active"], m = z.count
    weights.fill(0)
    for i in 0..<v.rows {
      var top = 0
      func scalar(_ o: Int) -> Double { (Double(v.p[i * m + o]) - Double(z.p[o])) * Double(r.p[i * m + o]) }
      for o in 0..<m where scalar(o) > scalar(top) { top = o }
      if m > 0 { (out.p[i], active.p[i], weights.p[i * m + top]) = (T(scalar(top)), T(top), r.p[i * m + top]) }
    }
    return weights
  }

  /// K, and the derivative of each of its row sums in all values.
  private func similarity<T: Real>(_ io: DriverIO<T>, _ v: Vector<T>, _ K: Vector<T>) throws(Failure) {
    let pull = try io["pull"], active = try io["active"], n = v.rows, m = v.count / max(1, n)
    let local = h.is("kernel", "local")
    try Memory.ask(16 &* n &* n)
    func difference(_ i: Int, _ j: Int, _ o: Int) -> Double { Double(v.p[i * m + o]) - Double(v.p[j * m + o]) }
    func width(_ squares: [Double]) -> Double {
      if n == 1 { return 1 }
      let s = squares.sorted(), k = s.count / 2, median = s.count % 2 == 1 ? s[k] : (s[k - 1] + s[k]) / 2
      if median == 0 { return local ? 5e-6 : h.c * 1e-6 }
      return h.c * median * median / log(Double(n))
    }
    K.fill(0)
    pull.fill(0)
    /// Entry (i, j) falls with the squared differences of some objectives.
    func add(_ i: Int, _ j: Int, _ objectives: Swift.Range<Int>, _ h: Double) {
      let distance = objectives.reduce(0.0) { $0 + difference(i, j, $1) * difference(i, j, $1) }, e = exp(-distance / h)
      K.p[i * n + j] += T(e)
      for o in objectives {
        let slope = T(-2 * difference(i, j, o) / h * e)
        pull.p[(i * n + i) * m + o] += slope
        pull.p[(i * n + j) * m + o] -= slope
      }
    }
    let groups = local ? (0..<m).map { $0..<$0 + 1 } : [0..<m]
    for group in groups {
      let h = width(
        (0..<n * n).map { k in group.reduce(0.0) { $0 + difference(k / n, k % n, $1) * difference(k / n, k % n, $1) } })
      for i in 0..<n {
        for j in 0..<n where !local || active.p[j] == T(group.lowerBound) { add(i, j, group, h) }
      }
    }
  }
}
