import Glibc
import ThalwegCore

/// Gradient steps preconditioned by a polynomial of a matrix B that bounds the curvature.
///
///     sympoly:  P = Σ_k (−1)ᵏ·e_{τ−k}·Bᵏ, the e of Newton's identities in tr Bⁱ;   x ← x − P·g/divisor
///               (the eigenvalue of P at eigenvalue i of B is the symmetric polynomial of degree τ in the others)
///     krylov:   K = [g, B·g, ..., B^τ·g];  d = −K·(Kᵀ·B·K)⁺·Kᵀ·g;   x ← x + d/L
///               adaptive: L doubles until f(x + d/L) ≤ f + ⟨g, d⟩/L + ⟨d, B·d⟩/(2·L), and is halved after the step
///
/// M none: L·λ_max(B·P). τ beyond n − 1 counts as n − 1, where P = det(B)·B⁻¹.
/// Ends     converged: |g| ≤ gtol; max_iter; line_search_failed: L has left the range of numbers; nonfinite.
/// Differs  K has its columns scaled to length 1, which changes no step; singular values below 1e-12 of the largest
///          count as 0. The adaptive details are UNVERIFIED; its test allows for the rounding of the two values (32
///          units in the last place). The fast-gradient form is not carried.
/// Source   Doikov, Rodomanov, 2023, arXiv:2301.13194.
struct PolyPrecond: Driver {
  static let method = Method.solver(
    "poly_precond", "Gradient steps preconditioned by a polynomial of a matrix that bounds the curvature.",
    rule: """
      sympoly: P = sum_k (-1)^k e_(tau-k) B^k;  x <- x - P g/M
      krylov: K = [g, B g, ..., B^tau g];  d = -K (K'B K)^+ K'g;  x <- x + d/L
      """,
    source: "Doikov, Rodomanov, 2023, arXiv:2301.13194",
    parameters: [
      .integer("tau", 2, .within(0, 4096), "degree; n - 1 where it is larger"),
      .choice("mode", ["krylov", "sympoly"], "the polynomial"),
      .number("L", 1, .above(0), "curvature scale, at first"), .flag("adaptive", true, "search for L (krylov)"),
      .maybe("M", .above(0), "divisor of the step (sympoly); none: L times the largest eigenvalue of B P"),
    ] + Minimiser.stop,
    inputs: [Minimiser.start, .constant("b", "n, n", "B, symmetric positive definite")] + Minimiser.results + [
      .result("L", "", "curvature scale"), .result("trials", "", "values asked for"),
    ], asks: [.valueGradientAt, .valueAt],
    kept: [
      .kept("g", "n", "gradient"), .kept("d", "n", "direction"), .kept("y", "n", "trial"), .kept("f", "", "value"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, gradient, trial }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], g = try io["g"], d = try io["d"], y = try io["y"], n = x.count
    let degree = min(h.integer("tau"), n - 1)
    switch phase {
    case .start:
      x.copy(try io["x0"])
      io.L = h.L
      return .ask("value_gradient", [x], [g], then: .gradient)
    case .gradient:
      io.f = io.value
      io.gradient_norm = g.norm
      guard io.f.isFinite, io.gradient_norm.isFinite else { return .done(.nonfinite) }
      if io.gradient_norm <= h.gtol { return .done(.converged) }
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      let b = try io["b"]
      if h.is("mode", "sympoly") {
        let divisor = try polynomial(b, g, degree, d, io.L)
        return take(io, x, d, g, -1 / divisor)
      }
      try krylov(b, g, degree, d)
      return h.adaptive ? trial(io, x, d, y) : take(io, x, d, g, 1 / io.L)
    case .trial:
      io.trials += 1
      let c = try model(try io["b"], g, d), l = io.L
      let bound = io.f + c.slope / l + c.bend / (2 * l)
      if io.value <= bound + 32 * Double(T.ulpOfOne) * max(abs(io.f), abs(bound)) {
        io.L = l / 2
        return take(io, x, d, g, 1 / l)
      }
      io.L = 2 * l
      return io.L < 1e300 ? trial(io, x, d, y) : .done(.lineSearchFailed)
    }
  }

  private func take<T: Real>(_ io: DriverIO<T>, _ x: Vector<T>, _ d: Vector<T>, _ g: Vector<T>, _ t: Double)
    -> Verdict<Phase>
  {
    x.add(d, times: t)
    io.iterations += 1
    return .ask("value_gradient", [x], [g], then: .gradient)
  }
  private func trial<T: Real>(_ io: DriverIO<T>, _ x: Vector<T>, _ d: Vector<T>, _ y: Vector<T>) -> Verdict<Phase> {
    y.set(1, x, 1 / io.L, d)
    return .ask("value", [y], [], then: .trial)
  }

  private func times(_ b: [Double], _ v: [Double]) throws(Failure) -> [Double] {
    var out = v
    try LinearAlgebra.multiply(b, v, into: &out, v.count, 1, v.count)
    return out
  }
  private func dense<T: Real>(_ b: Vector<T>) throws(Failure) -> [Double] {
    try Memory.ask(8 * b.count)
    return (0..<b.count).map { Double(b.p[$0]) }
  }
  private func model<T: Real>(_ b: Vector<T>, _ g: Vector<T>, _ d: Vector<T>) throws(Failure)
    -> (slope: Double, bend: Double)
  {
    let wide = (0..<d.count).map { Double(d.p[$0]) }
    return (g.dot(d), zip(wide, try times(try dense(b), wide)).reduce(0) { $0 + $1.0 * $1.1 })
  }

  /// d ← P·g; returns the divisor.
  private func polynomial<T: Real>(_ b: Vector<T>, _ g: Vector<T>, _ degree: Int, _ d: Vector<T>, _ l: Double)
    throws(Failure) -> Double
  {
    let n = g.count, a = try dense(b)
    let w = try LinearAlgebra.Eigen(a, n).values
    // e_0 ... e_degree of all eigenvalues, and of all but one
    let e = PolyPrecond.symmetric(w, degree)
    var v = (0..<n).map { Double(g.p[$0]) }, sum = [Double](repeating: 0, count: n)
    for k in 0...degree {
      let factor = (k % 2 == 0 ? 1 : -1) * e[degree - k]
      for i in 0..<n { sum[i] += factor * v[i] }
      if k < degree { v = try times(a, v) }
    }
    for i in 0..<n { d.p[i] = T(sum[i]) }
    if h.has("M") { return h.M }
    let top =
      w.indices.map { i in
        var others = w
        others.remove(at: i)
        return w[i] * PolyPrecond.symmetric(others, degree)[degree]
      }.max() ?? 1
    return l * top
  }
  /// The elementary symmetric polynomials up to a degree: all terms of one sign where the numbers are.
  static func symmetric(_ w: [Double], _ degree: Int) -> [Double] {
    var e = [1.0] + [Double](repeating: 0, count: degree)
    for x in w { for k in stride(from: degree, to: 0, by: -1) { e[k] += x * e[k - 1] } }
    return e
  }

  private func krylov<T: Real>(_ b: Vector<T>, _ g: Vector<T>, _ degree: Int, _ d: Vector<T>) throws(Failure) {
    let n = g.count, a = try dense(b), m = degree + 1
    try Memory.ask(8 * 3 * n * m)
    var columns: [[Double]] = [], images: [[Double]] = []
    var v = (0..<n).map { Double(g.p[$0]) }
    for _ in 0..<m {
      let size = v.reduce(0) { $0 + $1 * $1 }.squareRoot()
      if size > 0 { v = v.map { $0 / size } }
      columns.append(v)
      v = try times(a, v)
      images.append(v)
    }
    func dot(_ p: [Double], _ q: [Double]) -> Double { zip(p, q).reduce(0) { $0 + $1.0 * $1.1 } }
    let wide = (0..<n).map { Double(g.p[$0]) }
    let gram = (0..<m * m).map { dot(columns[$0 / m], images[$0 % m]) }, right = columns.map { dot($0, wide) }
    let eigen = try LinearAlgebra.Eigen(gram, m), floor = 1e-12 * abs(eigen.values[0])
    d.fill(0)
    var sum = [Double](repeating: 0, count: n)
    for k in 0..<m where eigen.values[k] > floor {
      let along = (0..<m).reduce(0) { $0 + eigen.vectors[$1 * m + k] * right[$1] } / eigen.values[k]
      for i in 0..<m { for r in 0..<n { sum[r] -= along * eigen.vectors[i * m + k] * columns[i][r] } }
    }
    for i in 0..<n { d.p[i] = T(sum[i]) }
  }
}
