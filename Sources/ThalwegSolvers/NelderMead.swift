import ThalwegCore

/// Nelder and Mead's simplex: the worst point is replaced, or all shrink towards the best.
///
///     x̄ = mean of all but the worst;  reflection (1+ρ)·x̄ − ρ·worst;   better than the best: expansion by ρ·χ, the
///     better of the two;   better than the second worst: kept;   better than the worst: outside contraction by ψ·ρ,
///     kept if not above the reflection;   else inside contraction by ψ, kept if below the worst;   else all shrink
///
/// A value that is NaN counts as infinite. The points start at x0 and at x0 with each entry times 1.05 (0 → 0.00025),
/// which counts as the first step.
/// Ends     converged: points and values within xatol and fatol of the best; max_iter.
/// Differs  nothing from scipy, counts and limit of steps among it, but for the order of equal values, which is stable.
/// Source   Nelder and Mead, 1965; Gao and Han, 2012 (adaptive).
struct NelderMead: Driver {
  static let method = Method.solver(
    "nelder_mead", "Nelder and Mead's simplex search.",
    rule: """
      replace the worst point by its reflection, expansion or contraction at the mean of the others
      else shrink all points towards the best
      """,
    source: "Nelder, Mead, 1965; Gao, Han, 2012",
    parameters: [
      .number("xatol", 1e-4, .atLeast(0), "distance of the points from the best that ends it"),
      .number("fatol", 1e-4, .atLeast(0), "the same of their values"),
      .maybeInteger("max_iter", .atLeast(0), "steps; none: 200 n"),
      .number("nonzdelt", 0.05, .above(0), "relative size of the first simplex"),
      .number("zdelt", 0.00025, .above(0), "its size along entries that are 0"),
      .flag("adaptive", false, "coefficients for many variables"),
    ],
    inputs: [
      .constant("x0", "n", "the point to start with"), .result("x", "n", "the best point"),
      .result("value", "", "its value"), .result("iterations", "", "steps"), .result("evaluations", "", "values"),
    ],
    asks: [
      RequestKind(
        "point_value", "the function at a point", given: [.given("point", "n", "a point")],
        wanted: [.wanted("f", "", "value there; NaN counts as infinite")], takesNonfinite: true)
    ],
    kept: [
      .kept("simplex", "corners, n", "the points, best first"), .kept("values", "corners", "their values"),
      .kept("trial", "n", "point that is tried"), .kept("other", "n", "the reflection"),
      .kept("f_other", "", "value there"), .kept("corner", "", "which corner is valued"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { ["corners": sizes["n"] &+ 1] }
  enum Phase: Int { case start, first, step, reflected, expanded, outside, inside, shrink, shrunk }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let s = try io["simplex"], f = try io["values"], trial = try io["trial"], other = try io["other"], x = try io["x"]
    let n = x.count, size = Double(n), adapts: Bool = h.adaptive
    let (chi, psi, sigma) = adapts ? (1 + 2 / size, 0.75 - 1 / (2 * size), 1 - 1 / size) : (2.0, 0.5, 0.5)
    let value = io.f.isNaN ? Double.infinity : io.f
    func ask(_ then: Phase) -> Verdict<Phase> {
      io.evaluations += 1
      return .ask("point_value", [trial], [], then: then)
    }
    /// a·x̄ + b·(the worst).
    func place(_ a: Double, _ b: Double) {
      for j in 0..<n {
        let mean = (0..<n).reduce(0.0) { $0 + Double(s.p[$1 * n + j]) } / size
        trial.p[j] = T(a * mean + b * Double(s.p[n * n + j]))
      }
    }
    func accept(_ point: Vector<T>, _ value: Double) -> Verdict<Phase> {
      s.row(n).copy(point)
      f.p[n] = T(value)
      return next()
    }
    func next() -> Verdict<Phase> {
      io.iterations += 1
      return .go(.step)
    }
    switch phase {
    case .start:
      let x0 = try io["x0"]
      x.copy(x0)
      for k in 0...n {
        let row = s.row(k)
        row.copy(x0)
        guard k > 0 else { continue }
        let v = Double(row.p[k - 1])
        row.p[k - 1] = T(v != 0 ? (1 + h.nonzdelt) * v : h.zdelt)
      }
      trial.copy(s.row(0))
      return ask(.first)
    case .first:
      let k = try io.count("corner", n)
      f.p[k] = T(value)
      io.corner += 1
      guard k < n else { return next() }
      trial.copy(s.row(k + 1))
      return ask(.first)
    case .step:
      let values = (0...n).map { Double(f.p[$0]) }, points = (0..<s.count).map { s.p[$0] }
      let order = values.indices.sorted { values[$0] < values[$1] || (values[$0] == values[$1] && $0 < $1) }
      for (k, i) in order.enumerated() {
        f.p[k] = T(values[i])
        for j in 0..<n { s.p[k * n + j] = points[i * n + j] }
      }
      x.copy(s.row(0))
      io.value = Double(f.p[0])
      var far = 0.0, steep = 0.0
      for k in 1...n {
        let d = Double(f.p[k]) - Double(f.p[0])
        steep = max(steep, d.isNaN ? .infinity : abs(d))
        for j in 0..<n { far = max(far, abs(Double(s.p[k * n + j]) - Double(s.p[j]))) }
      }
      if io.iterations >= (h.has("max_iter") ? h.max_iter : 200 * size) {
        return .done(.maxIter)
      }
      if far <= h.xatol, steep <= h.fatol { return .done(.converged) }
      place(2, -1)
      return ask(.reflected)
    case .reflected:
      other.copy(trial)
      io.f_other = value
      if value < Double(f.p[0]) {
        place(1 + chi, -chi)
        return ask(.expanded)
      }
      if value < Double(f.p[n - 1]) { return accept(trial, value) }
      if value < Double(f.p[n]) {
        place(1 + psi, -psi)
        return ask(.outside)
      }
      place(1 - psi, psi)
      return ask(.inside)
    case .expanded: return value < io.f_other ? accept(trial, value) : accept(other, io.f_other)
    case .outside: return value <= io.f_other ? accept(trial, value) : shrink(io)
    case .inside: return value < Double(f.p[n]) ? accept(trial, value) : shrink(io)
    case .shrink, .shrunk:
      var k = try io.count("corner", n)
      if phase == .shrunk {
        f.p[k] = T(value)
        k += 1
        if k > n { return next() }
      }
      let row = s.row(k)
      for j in 0..<n { row.p[j] = T(Double(s.p[j]) + sigma * (Double(row.p[j]) - Double(s.p[j]))) }
      trial.copy(row)
      io.corner = Double(k)
      return ask(.shrunk)
    }
  }
  private func shrink<T: Real>(_ io: DriverIO<T>) -> Verdict<Phase> {
    io.corner = 1
    return .go(.shrink)
  }
}
