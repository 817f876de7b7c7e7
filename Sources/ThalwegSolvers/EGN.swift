import Glibc
import ThalwegCore

/// Exact (generalised) Gauss-Newton steps, solved in the space of the outputs where that is the smaller one.
///
///     (Q·J·Jᵀ + b·λ·I)·δ = r;   d = −Jᵀ·δ = −(Jᵀ·Q·J/b + λ·I)⁻¹·Jᵀ·r/b
///     v ← μ·v + (1 − μ)·d;   d = v/(1 − μᵗ);   x ← x + α·d
///
/// r (b, c): the derivatives of the loss of each sample at its outputs; J (b, c, n) those of the outputs; Q (b, c, c)
/// the Hessians of the losses at the outputs, the identity with curvature=identity. The function is the mean of the
/// losses. line_search: α is halved (times `shrink`) until f(x + α·d) ≤ f + c1·α·⟨g, d⟩, g = Jᵀ·r/b; after max_ls the
/// last counts. adaptive: with pred = −(α·⟨g, d⟩ + α²/(2·b)·⟨Jd, Q·Jd⟩) and ρ = (f − f⁺)/pred (−1 where pred ≤ 0), λ
/// grows by lam_up where ρ < rho_low, shrinks by lam_down where ρ > rho_high; it stays where |pred| ≤ 1e-14·|f|.
/// Errors   TW_ERROR_NUMERIC: the system is singular (λ = 0 and dependent rows).
/// Ends     converged: |g| ≤ gtol; max_iter; nonfinite: the value at the new point.
/// Differs  the defaults of momentum and λ are UNVERIFIED. Every step may be of another batch: the host decides.
/// Source   Korbit, Adeoye, Bemporad, Zanon, 2024, arXiv:2405.14402.
struct EGN: Driver {
  static let method = Method.solver(
    "egn", "Exact Gauss-Newton steps, solved in the space of the outputs where that is the smaller one.",
    rule: """
      (Q J J' + b lam I) delta = r;  d = -J' delta = -(J'Q J/b + lam I)^-1 J'r/b
      v <- momentum v + (1 - momentum) d;  x <- x + lr v/(1 - momentum^t)
      """,
    source: "Korbit, Adeoye, Bemporad, Zanon, 2024, arXiv:2405.14402",
    parameters: [
      .lr(1, .above(0)), .number("lam", 1, .atLeast(0), "damping, at first"),
      .rate("momentum", 0, "rate of the average of the directions, bias-corrected"),
      .choice("curvature", ["identity", "asked"], "Hessians of the losses at the outputs"),
      .flag("line_search", false, "shorten steps until the value falls enough"),
      .number("c1", 1e-4, .between(0, 1, lowOpen: true, highOpen: true), "sufficient decrease"),
      .number("shrink", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "factor of a step that is too long"),
      .integer("max_ls", 20, .atLeast(1), "most trials of a step"), .flag("adaptive", false, "adapt the damping"),
      .number("lam_up", 1.5, .above(1), "growth of the damping"),
      .number("lam_down", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "its fall"),
      .number("rho_low", 0.25, .between(0, 1, lowOpen: true, highOpen: true), "gain below which the damping grows"),
      .number("rho_high", 0.75, .between(0, 1, lowOpen: true, highOpen: true), "gain above which it falls"),
      .number("lam_min", 1e-12, .above(0), "least damping"), .number("lam_max", 1e6, .above(0), "largest damping"),
    ] + Minimiser.stop,
    inputs: [
      Minimiser.start,
      .constant("like", "b, c", "an array of the shape of the outputs; its values do not count").orNonfinite,
    ] + Minimiser.results + [
      .result("damping", "", "lam"),
      .result("direction", "n", "the last direction"),
    ],
    asks: [
      RequestKind(
        "jacobian", "derivatives of the losses at the outputs, and of the outputs",
        given: [.given("point", "n", "where")],
        wanted: [
          .wanted("residual", "b, c", "of the loss of each sample"), .wanted("jacobian", "b, c, n", "of the outputs"),
        ]),
      RequestKind(
        "output_hessian", "second derivatives of the losses at the outputs", given: [.given("point", "n", "where")],
        wanted: [.wanted("curvature", "b, c, c", "one matrix a sample")]), .valueAt,
    ],
    kept: [
      .kept("r", "b, c", "residuals"), .kept("j", "b, c, n", "Jacobian"), .kept("q", "b, c, c", "output Hessians"),
      .kept("v", "n", "average of the directions"), .kept("g", "n", "gradient"), .kept("y", "n", "trial"),
      .kept("f", "", "value at x"), .kept("alpha", "", "length of the step"), .kept("tried", "", "trials of it"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, ready, jacobian, curvature, value, trial }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], d = try io["direction"], g = try io["g"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      io.damping = h.lam
      return .go(.ready)
    case .ready:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("jacobian", [x], [try io["r"], try io["j"]], then: .jacobian)
    case .jacobian:
      return h.is("curvature", "asked") ? .ask("output_hessian", [x], [try io["q"]], then: .curvature) : .go(.curvature)
    case .curvature:
      let system = try System(io, asked: h.is("curvature", "asked"))
      for k in 0..<g.count { g.p[k] = T(system.gradient[k]) }
      io.gradient_norm = g.norm
      if io.gradient_norm <= h.gtol { return .done(.converged) }
      let own = try system.direction(io.damping), v = try io["v"], momentum: Double = h.momentum
      io.iterations += 1
      let correction = 1 / (1 - pow(momentum, io.iterations))
      for k in 0..<g.count {
        v.p[k] = T(momentum * Double(v.p[k]) + (1 - momentum) * own[k])
        d.p[k] = T(Double(v.p[k]) * correction)
      }
      (io.alpha, io.tried) = (h.lr, 0)
      if h.line_search || h.adaptive { return .ask("value", [x], [], then: .value) }
      return move(io, x, d)
    case .value:
      io.f = io.value
      guard io.f.isFinite else { return .done(.nonfinite) }
      return trial(x, y, d, io)
    case .trial:
      io.tried += 1
      let slope = g.dot(d)
      if h.line_search, !(io.value <= io.f + h.c1 * io.alpha * slope), io.tried < h.max_ls {
        io.alpha *= h.shrink
        return trial(x, y, d, io)
      }
      guard io.value.isFinite else { return .done(.nonfinite) }
      if h.adaptive { try adapt(io, slope) }
      return move(io, x, d)
    }
  }

  private func trial<T: Real>(_ x: Vector<T>, _ y: Vector<T>, _ d: Vector<T>, _ io: DriverIO<T>) -> Verdict<Phase> {
    y.set(1, x, io.alpha, d)
    return .ask("value", [y], [], then: .trial)
  }
  private func move<T: Real>(_ io: DriverIO<T>, _ x: Vector<T>, _ d: Vector<T>) -> Verdict<Phase> {
    x.add(d, times: io.alpha)
    return .go(.ready)
  }

  private func adapt<T: Real>(_ io: DriverIO<T>, _ slope: Double) throws(Failure) {
    let bend = try System(io, asked: h.is("curvature", "asked")).bend(try io["direction"])
    let predicted = -(io.alpha * slope + io.alpha * io.alpha / 2 * bend)
    if abs(predicted) <= 1e-14 * abs(io.f) { return }
    let gain = predicted > 0 ? (io.f - io.value) / predicted : -1
    if gain < h.rho_low { io.damping *= h.lam_up }
    if gain > h.rho_high { io.damping *= h.lam_down }
    io.damping = min(max(io.damping, h.lam_min), h.lam_max)
  }

  /// The linear model of one batch, in double.
  private struct System {
    let b: Int, c: Int, n: Int
    let j: [Double], r: [Double], q: [Double]?
    let gradient: [Double]

    init<T: Real>(_ io: DriverIO<T>, asked: Bool) throws(Failure) {
      let rv = try io["r"], jv = try io["j"], qv = try io["q"]
      (b, c, n) = (rv.rows, rv.shape.count > 1 ? rv.shape[1] : 1, try io["x"].count)
      try Memory.ask(8 * (jv.count + rv.count + qv.count))
      j = (0..<jv.count).map { Double(jv.p[$0]) }
      r = (0..<rv.count).map { Double(rv.p[$0]) }
      q = asked ? (0..<qv.count).map { Double(qv.p[$0]) } : nil
      var g = [Double](repeating: 0, count: n)
      try LinearAlgebra.multiply(j, transposed: true, r, into: &g, n, 1, b * c, alpha: 1 / Double(b))
      gradient = g
    }
    /// Q·m for a matrix of b·c rows.
    private func curved(_ m: [Double], _ columns: Int) throws(Failure) -> [Double] {
      guard let q else { return m }
      try Memory.ask(8 * m.count)
      var out = [Double](repeating: 0, count: m.count)
      for s in 0..<b {
        for i in 0..<c {
          for k in 0..<c {
            let f = q[(s * c + i) * c + k]
            if f == 0 { continue }
            for col in 0..<columns { out[(s * c + i) * columns + col] += f * m[(s * c + k) * columns + col] }
          }
        }
      }
      return out
    }
    func direction(_ lam: Double) throws(Failure) -> [Double] {
      let rows = b * c, curvedJ = try curved(j, n)
      // without damping a pivot that rounding has left is none
      let least = lam == 0 ? Double(max(rows, n)) * 0x1p-50 : 0
      var d = [Double](repeating: 0, count: n)
      if rows > n {
        try Memory.ask(8 * n * n)
        var a = [Double](repeating: 0, count: n * n)
        try LinearAlgebra.multiply(j, transposed: true, curvedJ, into: &a, n, n, rows, alpha: 1 / Double(b))
        for k in 0..<n { a[k * (n + 1)] += lam }
        let right = gradient.map { -$0 }
        if q == nil { return try LinearAlgebra.solvePositive(a, right, n, 1, least: least) }
        return try LinearAlgebra.solve(a, right, n, 1)
      }
      try Memory.ask(8 * rows * rows)
      var a = [Double](repeating: 0, count: rows * rows)
      try LinearAlgebra.multiply(curvedJ, transposed: false, j, transposed: true, into: &a, rows, rows, n)
      for k in 0..<rows { a[k * (rows + 1)] += Double(b) * lam }
      let delta =
        try q == nil
        ? LinearAlgebra.solvePositive(a, r, rows, 1, least: least) : LinearAlgebra.solve(a, r, rows, 1)
      try LinearAlgebra.multiply(j, transposed: true, delta, into: &d, n, 1, rows, alpha: -1)
      return d
    }
    /// ⟨Jd, Q·Jd⟩/b.
    func bend<T: Real>(_ d: Vector<T>) throws(Failure) -> Double {
      var jd = [Double](repeating: 0, count: b * c)
      try LinearAlgebra.multiply(j, (0..<n).map { Double(d.p[$0]) }, into: &jd, b * c, 1, n)
      return zip(jd, try curved(jd, 1)).reduce(0) { $0 + $1.0 * $1.1 } / Double(b)
    }
  }
}
