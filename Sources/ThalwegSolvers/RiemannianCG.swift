import Glibc
import ThalwegCore

/// Nonlinear conjugate gradients on a manifold.
///
///     r = tangent part of the gradient;  d = −r
///     Armijo backtracking along the retraction of a·d, from min(2·last a, 10⁶)
///     β = max(0, ⟨r', r' − T(r)⟩/⟨r, r⟩) at the new point, T the transport to it;  d ← −r' + β·T(d)
///     d that does not descend begins anew at −r
///
/// Ends     converged: |r| ≤ tol; line_search_failed: 60 halvings in vain, x as it was; max_iter.
/// Errors   TW_ERROR_UNSUPPORTED: a set that is no manifold.
/// Differs  where values differ by rounding alone, Armijo's condition is that of the slopes: ⟨r', T(d)⟩ ≤
///          (2·c1 − 1)·⟨r, d⟩. Inner products and norms are those of the manifold.
/// Source   Absil, Mahony, Sepulchre, 2008; for these subspaces: Wang, Cherian, 2019, arXiv:1908.05884.
struct RiemannianCG: Driver {
  static let method = Method.solver(
    "riemannian_cg", "Nonlinear conjugate gradients on a manifold.",
    rule: """
      d = -r;  Armijo backtracking along retract(x, a d);  beta = max(0, <r', r' - T(r)>/<r, r>);  d <- -r' + beta T(d)
      """,
    source: "Absil, Mahony, Sepulchre, 2008; Wang, Cherian, 2019, arXiv:1908.05884",
    parameters: [
      .object("set", .constraint, "the manifold"), .integer("max_iter", 100, .atLeast(0), "most steps"),
      .number("tol", 1e-8, .atLeast(0), "norm of the gradient that ends it"),
      .number("c1", 1e-4, .between(0, 1, lowOpen: true, highOpen: true), "Armijo's constant"),
      .number("shrink", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "backtracking factor"),
      .number("step0", 1, .above(0), "first trial step"),
    ],
    inputs: [
      .constant("x0", "...", "where it starts, on the manifold"), .result("x", "...", "the point"),
      .result("iterations", "", "steps"), .result("residual", "", "norm of the tangent gradient"),
    ],
    asks: [
      RequestKind(
        "value_gradient", "the value and the gradient in the surrounding space",
        given: [.given("point", "...", "where")],
        wanted: [.wanted("value", "", "value there"), .wanted("gradient", "...", "gradient there")],
        takesNonfinite: true)
    ],
    kept: [
      .kept("r", "...", "tangent gradient"), .kept("d", "...", "direction"), .kept("trial", "...", "trial point"),
      .kept("g", "...", "gradient"), .kept("moved", "...", "a vector at the new point"),
      .kept("s", "...", "sum or difference"), .kept("squares", "...", "squares of the factors of the manifold"),
      .kept("f", "", "value"),
      .kept("step", "", "step"), .kept("slope", "", "<r, d>"), .kept("halvings", "", "halvings so far"),
    ])

  let h: Hyper, manifold: HeldManifold
  init(_ h: Hyper) throws(Failure) {
    self.h = h
    manifold = try h.manifold("set", of: "riemannian_cg")
  }

  enum Phase: Int { case start, begun, search, trial }

  /// v ← the Riemannian gradient of the gradient v at x.
  private func tangent<T: Real>(_ v: Vector<T>, at x: Vector<T>) throws(Failure) {
    let shape = Shape(dimensions: v.shape)
    try manifold.accepts(shape)
    try manifold.tangent(v.p, at: x.p, shape)
  }
  /// ⟨a, b⟩ at x, by the squares of sum and difference.
  private func inner<T: Real>(_ a: Vector<T>, _ b: Vector<T>, at x: Vector<T>, _ io: DriverIO<T>) throws(Failure)
    -> Double
  {
    let s = try io["s"], out = try io["squares"], shape = Shape(dimensions: x.shape)
    func square(_ sign: Double) throws(Failure) -> Double {
      s.set(1, a, sign, b)
      try manifold.squares(s.p, at: x.p, into: out.p, shape)
      return (0..<manifold.factors(shape).count).reduce(0.0) { $0 + Double(out.p[$1]) }
    }
    return a.p == b.p ? try square(1) / 4 : try (square(1) - square(-1)) / 4
  }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], r = try io["r"], d = try io["d"], trial = try io["trial"], g = try io["g"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      io.step = h.step0 / 2
      return .ask("value_gradient", [x], [g], then: .begun)
    case .begun:
      guard io.value.isFinite, g.isFinite else { return .done(.nonfinite) }
      io.f = io.value
      r.copy(g)
      try tangent(r, at: x)
      d.set(-1, r)
      io.residual = try inner(r, r, at: x, io).squareRoot()
      return try begin(io)
    case .search:
      trial.set(io.step, d)
      try manifold.retract(trial.p, from: x.p, Shape(dimensions: x.shape))
      return .ask("value_gradient", [trial], [g], then: .trial)
    case .trial:
      let moved = try io["moved"], slack = 4 * (T.isDouble ? 0x1p-52 : 0x1p-23) * abs(io.f)
      let shape = Shape(dimensions: x.shape)
      var accepted = false
      if io.value.isFinite, g.isFinite {
        try tangent(g, at: trial)
        accepted = io.value <= io.f + h.c1 * io.step * io.slope
        if !accepted, abs(io.value - io.f) <= slack {
          moved.copy(d)
          try manifold.transport(moved.p, from: x.p, to: trial.p, shape)
          accepted = try inner(g, moved, at: trial, io) <= (2 * h.c1 - 1) * io.slope
        }
      }
      guard accepted else {
        io.halvings += 1
        if io.halvings > 60 { return .done(.lineSearchFailed) }
        io.step *= h.shrink
        return .go(.search)
      }
      io.f = io.value
      moved.copy(r)
      try manifold.transport(moved.p, from: x.p, to: trial.p, shape)
      let before = io.residual * io.residual, square = try inner(g, g, at: trial, io)
      let beta = max(0, (square - (try inner(g, moved, at: trial, io))) / before)
      moved.copy(d)
      try manifold.transport(moved.p, from: x.p, to: trial.p, shape)
      d.set(-1, g, beta, moved)
      r.copy(g)
      x.copy(trial)
      if try inner(r, d, at: x, io) >= 0 { d.set(-1, r) }
      io.iterations += 1
      io.residual = square.squareRoot()
      return try begin(io)
    }
  }
  /// The next line search, or the end.
  private func begin<T: Real>(_ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    if io.residual <= h.tol { return .done(.converged) }
    if io.iterations >= h.max_iter { return .done(.maxIter) }
    io.slope = try inner(io["r"], io["d"], at: io["x"], io)
    io.step = min(2 * io.step, 1e6)
    io.halvings = 0
    return .go(.search)
  }
}
