import ThalwegCore

/// The ellipsoid method for small convex problems: one cut through the centre a step.
///
///     s = √(gᵀ·H·g);  c ← c − H·g/((n+1)·s);  H ← n²/(n²−1)·(H − 2/(n+1)·H·g·gᵀ·H/s²),  H = radius²·I at first
///
/// The best centre is kept. With one unknown it is bisection.
/// Ends     converged: s ≤ tol, a bound of the distance to the least value; max_iter.
/// Source   Yudin, Nemirovski, 1976; Shor, 1977.
struct Ellipsoid: Driver {
  static let method = Method.solver(
    "ellipsoid", "The ellipsoid method for small convex problems.",
    rule: "s = sqrt(g'H g);  c <- c - H g/((n+1) s);  H <- n^2/(n^2-1) (H - 2/(n+1) H g g'H/s^2)",
    source: "Yudin, Nemirovski, 1976; Shor, 1977",
    parameters: [
      .number("radius", nil, .above(0), "of the ball about the centre that holds a minimiser"),
      .integer("max_iter", 100, .atLeast(0), "cuts"), .number("tol", 0, .atLeast(0), "bound of the gap that ends it"),
    ],
    inputs: [
      .constant("center", "n", "centre of the ball"), .result("x", "n", "the best centre"),
      .result("value", "", "value there"), .result("iterations", "", "cuts"),
      .result("residual", "", "s: the last centre's value is at most this above the least"),
    ],
    asks: [
      RequestKind(
        "subgradient", "value and a subgradient", given: [.given("point", "n", "where")],
        wanted: [.wanted("phi", "", "value there"), .wanted("gradient", "n", "a subgradient there")])
    ],
    kept: [
      .kept("c", "n", "centre"), .kept("g", "n", "subgradient"), .kept("shape", "n, n", "H"), .kept("v", "n", "H g"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, cut }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let c = try io["c"], g = try io["g"], shape = try io["shape"], v = try io["v"], n = c.count
    if phase == .start {
      c.copy(try io["center"])
      try io["x"].copy(c)
      for i in 0..<n { shape.p[i * n + i] = T(h.radius * h.radius) }
      io.value = .infinity
      return .ask("subgradient", [c], [g], then: .cut)
    }
    if io.phi < io.value {
      io.value = io.phi
      try io["x"].copy(c)
    }
    for i in 0..<n { v.p[i] = T(shape.row(i).dot(g)) }
    let s = max(0, v.dot(g)).squareRoot(), k = Double(n)
    io.residual = s
    if s <= h.tol || s == 0 { return .done(.converged) }
    if io.iterations >= h.max_iter { return .done(.maxIter) }
    io.iterations += 1
    c.add(v, times: -1 / ((k + 1) * s))
    // one unknown: the half of the interval, which the formula for more of them does not give
    let grow = n == 1 ? 1.0 / 4 : k * k / (k * k - 1), cut = n == 1 ? 0 : 2 / ((k + 1) * s * s)
    for i in 0..<n {
      for j in 0..<n {
        shape.p[i * n + j] = T(grow * (Double(shape.p[i * n + j]) - cut * Double(v.p[i]) * Double(v.p[j])))
      }
    }
    return .ask("subgradient", [c], [g], then: .cut)
  }
}
