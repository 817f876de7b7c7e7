import ThalwegCore

/// One step of Riemannian descent on a manifold that is learned as a mixture of charts.
///
///     r_k = (J_kᵀ·J_k)⁻¹·g_k for each chart k
///     project: p_k = D_k(E_k(x − lr·J_k·r_k))     chart: p_k = D_k(u_k − lr·r_k)
///     x ← Σ w_k·p_k/Σ w_k over the charts with w_k ≥ skip
///
/// x0 is (D,); of K charts: coordinates u (K, d) of x0, jacobians J (K, D, d) of their decoders there, gradients g
/// (K, d) of the objective in the coordinates, weights w (K,). The host encodes and decodes. adaptive: a point whose
/// objective is at most 1.001 of the one before is taken, and lr grows by 1.5; else lr is halved and the step tried
/// again, at most 20 times; `lr` is the one for the next step.
/// Errors   TW_ERROR_NUMERIC: JᵀJ is singular (no ridge is added); TW_ERROR_RANGE: no chart's weight reaches `skip`.
/// Ends     converged; line_search_failed: 20 tries, and x is where it was.
/// Differs  the authors' step of fixed length does not divide by the weights that were kept. That lr is halved is not
///          verified.
/// Source   Alberti, Hertrich, Santacesaria, Sciutto, 2023, arXiv:2303.15244.
struct ChartStep: Driver {
  static let method = Method.solver(
    "chart_step", "A step of Riemannian descent on a mixture of charts.",
    rule: """
      r = (J'J)^-1 g;  project: p = decode(encode(x - lr J r));  chart: p = decode(u - lr r)
      x <- sum w p/sum w over the charts with w >= skip
      """,
    source: "Alberti, Hertrich, Santacesaria, Sciutto, 2023, arXiv:2303.15244",
    parameters: [
      .lr(nil, .above(0)), .choice("retraction", ["project", "chart"], "how a chart moves"),
      .number("skip", 1e-6, .rate, "charts of less weight are left out"),
      .flag("adaptive", false, "choose lr by the objective"),
    ],
    inputs: [
      .constant("x0", "D", "the point"), .constant("coordinates", "K, d", "of the point, in each chart"),
      .constant("jacobians", "K, D, d", "of the decoders"), .constant("gradients", "K, d", "in the coordinates"),
      .constant("weights", "K", "of the charts at the point"),
      .result("x", "D", "the new point"), .result("lr", "", "step size for the next step"),
      .result("iterations", "", "tries"),
    ],
    asks: [
      RequestKind(
        "project", "decode(encode(point)) of a chart",
        given: [.given("chart", "", "which chart, from 0"), .given("point", "D", "an ambient point")],
        wanted: [.wanted("decoded", "D", "the point of the chart")]),
      RequestKind(
        "decode", "decode(u) of a chart",
        given: [.given("chart", "", "which chart, from 0"), .given("u", "d", "coordinates")],
        wanted: [.wanted("decoded", "D", "the point of the chart")]),
      RequestKind(
        "value", "the objective", given: [.given("point", "D", "where")], wanted: [.wanted("value", "", "there")],
        takesNonfinite: true),
    ],
    kept: [
      .kept("r", "K, d", "steps of length 1"), .kept("ambient", "D", "ambient step"),
      .kept("local", "d", "coordinates"),
      .kept("decoded", "D", "point of a chart"), .kept("sum", "D", "weighted points"), .kept("chart", "", "the chart"),
      .kept("before", "", "objective at x0"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, first, chart, decoded, tried }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], sum = try io["sum"], weights = try io["weights"], decoded = try io["decoded"]
    switch phase {
    case .start:
      try directions(io)
      (io.lr, io.chart) = (h.lr, -1)
      x.copy(try io["x0"])
      return h.adaptive ? .ask("value", [x], [], then: .first) : .go(.chart)
    case .first:
      io.before = io.value
      return .go(.chart)
    case .chart:
      if io.chart < 0 { sum.fill(0) }
      io.chart += 1
      if io.chart >= Double(weights.count) { return try finish(io) }
      return Double(weights.p[try chart(io)]) < h.skip ? .go(.chart) : try ask(io)
    case .decoded:
      sum.add(decoded, times: Double(weights.p[try chart(io)]))
      return .go(.chart)
    case .tried:
      if io.value <= 1.001 * io.before {
        x.copy(sum)
        io.lr *= 1.5
        return .done(.converged)
      }
      io.lr /= 2
      if io.iterations >= 20 { return .done(.lineSearchFailed) }
      io.chart = -1
      return .go(.chart)
    }
  }

  private func chart<T: Real>(_ io: DriverIO<T>) throws(Failure) -> Int {
    try io.count("chart", max(0, try io["weights"].count - 1))
  }
  /// r of every chart that counts.
  private func directions<T: Real>(_ io: DriverIO<T>) throws(Failure) {
    let weights = try io["weights"], g = try io["gradients"], jacobians = try io["jacobians"], r = try io["r"]
    let d = r.row(0).count, high = try io["x0"].count
    try Memory.ask(16 * d * d)
    var kept = 0
    for k in 0..<weights.count where Double(weights.p[k]) >= h.skip {
      let j = jacobians.row(k).p
      var gram = [Double](repeating: 0, count: d * d)
      for i in 0..<high {
        for a in 0..<d { for b in 0..<d { gram[a * d + b] += Double(j[i * d + a]) * Double(j[i * d + b]) } }
      }
      let right = (0..<d).map { Double(g.p[k * d + $0]) }
      let solved: [Double]
      // squares of what the entries are rounded by are no rank
      let least = T.isDouble ? Double.ulpOfOne : Double(Float.ulpOfOne) * Double(Float.ulpOfOne)
      do { solved = try LinearAlgebra.solvePositive(gram, right, d, 1, least: 8 * Double(d + high) * least) } catch {
        throw Failure(Int(error.status), "J'J of chart \(k) is singular: \(error.message)")
      }
      for a in 0..<d { r.p[k * d + a] = T(solved[a]) }
      kept += 1
    }
    guard kept > 0 else { throw Failure(Status.range, "no chart has a weight of at least `skip`, \(text(h.skip))") }
  }
  private func ask<T: Real>(_ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let k = try chart(io), r = try io["r"].row(k), decoded = try io["decoded"]
    if h.is("retraction", "chart") {
      let local = try io["local"]
      local.set(1, try io["coordinates"].row(k), -io.lr, r)
      return .ask("decode", [local], [decoded], then: .decoded)
    }
    let ambient = try io["ambient"], x0 = try io["x0"], j = try io["jacobians"].row(k).p
    for i in 0..<x0.count {
      var along = 0.0
      for a in 0..<r.count { along += Double(j[i * r.count + a]) * Double(r.p[a]) }
      ambient.p[i] = T(Double(x0.p[i]) - io.lr * along)
    }
    return .ask("project", [ambient], [decoded], then: .decoded)
  }
  /// All charts have been asked.
  private func finish<T: Real>(_ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let weights = try io["weights"], sum = try io["sum"]
    var total = 0.0
    for k in 0..<weights.count where Double(weights.p[k]) >= h.skip { total += Double(weights.p[k]) }
    sum.set(1 / total, sum)
    io.iterations += 1
    if h.adaptive { return .ask("value", [sum], [], then: .tried) }
    try io["x"].copy(sum)
    return .done(.converged)
  }
}
