import Glibc
import ThalwegCore

/// Bilevel problems: minimise F(x, y*(x)) over x, where y*(x) minimises g(x, ·). x are hyper-parameters ("p" of them),
/// y weights ("n"), both as flat vectors.
enum Bilevel {
  static let point: [Input] = [.given("x", "p", "outer variable"), .given("y", "n", "inner variable")]
  static let vector = point + [.given("vector", "n", "a vector of inner size")]

  static let upper = RequestKind(
    "upper", "the upper function and its partial gradients", given: point,
    wanted: [
      .wanted("upper_value", "", "F"), .wanted("upper_x", "p", "dF/dx"), .wanted("upper_y", "n", "dF/dy"),
    ])
  static let upperGradient = RequestKind(
    "upper_gradient", "the partial gradients of the upper function", given: point,
    wanted: [.wanted("upper_x", "p", "dF/dx"), .wanted("upper_y", "n", "dF/dy")])
  static let lowerGradient = RequestKind(
    "lower_gradient", "the partial gradients of the lower function", given: point,
    wanted: [.wanted("lower_x", "p", "dg/dx"), .wanted("lower_y", "n", "dg/dy")])
  static let lowerValue = RequestKind(
    "lower_value", "the lower function", given: point, wanted: [.wanted("lower_value", "", "g")])
  static let lowerHVP = RequestKind(
    "lower_hvp", "the Hessian of the lower function in y, times the vector", given: vector,
    wanted: [.wanted("product", "n", "d2g/dy2 times the vector")])
  static let lowerMixed = RequestKind(
    "lower_mixed", "d/dx of <dg/dy, vector>, the vector held constant", given: vector,
    wanted: [.wanted("mixed", "p", "the mixed second derivative times the vector")])
  static let upperHVP = RequestKind(
    "upper_hvp", "the Hessian of the upper function in y, times the vector", given: vector,
    wanted: [.wanted("upper_product", "n", "d2F/dy2 times the vector")])
  static let upperMixed = RequestKind(
    "upper_mixed", "d/dx of <dF/dy, vector>, the vector held constant", given: vector,
    wanted: [.wanted("upper_mixed", "p", "the mixed second derivative times the vector")])
  static let solveLower = RequestKind(
    "solve_lower", "the minimiser of the lower function in y, to a tolerance",
    given: point + [.given("tolerance", "", "norm of the lower gradient, relative to that at the first call")],
    wanted: [.wanted("solution", "n", "the minimiser, found from y")])

  static let starts: [Input] = [
    .constant("x0", "p", "outer variable to start with"), .constant("y0", "n", "inner variable to start with"),
  ]
  static let results: [Input] = [
    .result("x", "p", "outer variable"), .result("y", "n", "inner variable"), .result("iterations", "", "outer steps"),
  ]
  static let limit = Parameter.integer("max_iter", 100, .atLeast(0), "outer steps")

  static func begin<T: Real>(_ io: DriverIO<T>) throws(Failure) {
    try io["x"].copy(try io["x0"])
    try io["y"].copy(try io["y0"])
  }
}

/// The gradient of F(x, y*(x)) at a given pair, by the implicit function theorem.
///
///     q ≈ H⁻¹·F_y, H = d²g/dy²;  hypergradient = F_x − d/dx⟨dg/dy, q⟩
///
/// `neumann`: q = α·Σ_{j ≤ terms} (I − α(H + damping))ʲ·F_y; `cg`: conjugate gradients, from q0; `identity`: q = α·F_y.
/// Ends     converged; max_iter and negative_curvature are those of cg; diverged: a Neumann term above 1000·|F_y|.
/// Differs  terms counts products, not summands.
/// Source   Lorraine, Vicol, Duvenaud, 2019, arXiv:1911.02590.
struct IFTHypergradient: Driver {
  static let method = Method.solver(
    "ift_hypergradient", "Implicit hypergradient with a Neumann, conjugate-gradient or identity inverse.",
    rule: "q = H^-1 F_y, H = d2g/dy2;  hypergradient = F_x - d/dx <dg/dy, q>",
    source: "Lorraine, Vicol, Duvenaud, 2019, arXiv:1911.02590",
    parameters: [
      .choice("solver", ["neumann", "cg", "identity"], "how the inverse Hessian is applied"),
      .number("alpha", 0.1, .above(0), "Neumann step; below two over the largest eigenvalue"),
      .integer("terms", 20, .atLeast(0), "Neumann products"),
      .number("rtol", 1e-8, .atLeast(0), "relative residual of cg"),
      .maybeInteger("max_iter", .atLeast(0), "most products of cg; none: as many as unknowns"),
      .number("damping", 0, .atLeast(0), "added to the Hessian"),
    ],
    inputs: [
      .constant("x", "p", "outer variable"), .constant("y", "n", "inner variable, at its minimum"),
      .constant("q0", "n", "where cg starts", optional: true), .result("hypergradient", "p", "the gradient"),
      .result("q", "n", "the inverse Hessian times dF/dy"), .result("iterations", "", "Hessian products"),
      .result("residual", "", "norm of the last Neumann term or of the residual, relative to dF/dy"),
    ], asks: [Bilevel.upperGradient, Bilevel.lowerHVP, Bilevel.lowerMixed],
    kept: [
      .kept("fx", "p", "dF/dx"), .kept("fy", "n", "dF/dy"), .kept("r", "n", "residual, or the last term"),
      .kept("v", "n", "direction"), .kept("w", "n", "product"), .kept("m", "p", "mixed product"),
      .kept("rz", "", "square of the residual"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  enum Phase: Int { case start, upper, term, residual, curvature, mixed }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], q = try io["q"], fy = try io["fy"], r = try io["r"]
    let v = try io["v"], w = try io["w"]
    func mixed() throws(Failure) -> Verdict<Phase> { .ask("lower_mixed", [x, y, q], [try io["m"]], then: .mixed) }
    switch phase {
    case .start: return .ask("upper_gradient", [x, y], [try io["fx"], fy], then: .upper)
    case .upper:
      r.copy(fy)
      if h.is("solver", "cg") {
        if let q0 = io.optional("q0") {
          q.copy(q0)
          return .ask("lower_hvp", [x, y, q], [w], then: .residual)
        }
        return try direction(io, mixed, first: true)
      }
      q.set(h.alpha, fy)
      if h.is("solver", "identity") || h.terms == 0 { return try mixed() }
      return .ask("lower_hvp", [x, y, r], [w], then: .term)
    case .term:
      w.add(r, times: h.damping)
      r.add(w, times: -h.alpha)
      q.add(r, times: h.alpha)
      io.iterations += 1
      let size = fy.norm
      io.residual = size == 0 ? 0 : r.norm / size
      if io.residual > 1000 { return .done(.diverged) }
      if io.iterations >= h.terms { return try mixed() }
      return .ask("lower_hvp", [x, y, r], [w], then: .term)
    case .residual:
      r.add(w, times: -1)
      r.add(q, times: -h.damping)
      return try direction(io, mixed, first: true)
    case .curvature:
      w.add(v, times: h.damping)
      if let end = ConjugateGradients.step(io, q, r, v, w) { return .done(end) }
      io.iterations += 1
      return try direction(io, mixed, first: false)
    case .mixed:
      try io["hypergradient"].set(1, try io["fx"], -1, try io["m"])
      let cut = h.is("solver", "cg") && io.residual > h.rtol
      return .done(cut ? .maxIter : .converged)
    }
  }

  private func direction<T: Real>(
    _ io: DriverIO<T>, _ mixed: () throws(Failure) -> Verdict<Phase>, first: Bool
  ) throws(Failure) -> Verdict<Phase> {
    let r = try io["r"], v = try io["v"], size = try io["fy"].norm, squared = r.dot(r)
    io.residual = size == 0 ? 0 : squared.squareRoot() / size
    let limit = h.has("max_iter") ? h.max_iter : Double(r.count)
    if io.residual <= h.rtol || io.iterations >= limit { return try mixed() }
    ConjugateGradients.turn(io, r, v, squared, first: first)
    return .ask("lower_hvp", [try io["x"], try io["y"], v], [try io["w"]], then: .curvature)
  }
}

/// Hyper-parameter optimisation with approximate gradients: the inner problem and the linear system are solved to
/// tolerances that fall.
///
///     y: |dg/dy| ≤ ε_k·(its norm at the first call);  q: conjugate gradients on H·q = F_y to ε_k, from the last q
///     p = F_x − d/dx⟨dg/dy, q⟩;  x ← clip(x − p/L)
///
/// From the second step on, with D = |x − x_prev|: where F ≤ F_prev + C·ε_k + ε_{k−1}·(C+M)·D − M·L·D², L ← shrink·L;
/// else where F − F_prev ≥ 0.2·|F_prev| the step is taken back, L ← 2·L and ε_k ← max(ε_k/2, tol_min); else L ←
/// inflate·L.
/// Ends     converged: |p| ≤ gtol; max_iter; negative_curvature: the lower Hessian is not positive definite along a
///          direction.
/// Differs  inflate is ours (1 is the paper's). One step of p/L an iteration, where the authors' release takes two in
///          two of three branches, and scales the tolerance by the size of a logarithmic penalty.
/// Source   Pedregosa, 2016, arXiv:1602.02355.
struct HOAG: Driver {
  static let method = Method.solver(
    "hoag", "Hyper-parameter optimisation with approximate gradients.",
    rule: """
      y: |dg/dy| <= eps_k (norm at the first call);  q: H q = F_y by cg to eps_k, warm
      p = F_x - d/dx <dg/dy, q>;  x <- clip(x - p/L);  L falls where F did as the model says, doubles where F rose
      """,
    source: "Pedregosa, 2016, arXiv:1602.02355",
    parameters: [
      Bilevel.limit, .number("tol_init", 1e-3, .above(0), "first tolerance"),
      .choice("decrease", ["exponential", "quadratic", "cubic", "exact"], "how the tolerance falls"),
      .number("factor", 0.9, .between(0, 1, lowOpen: true, highOpen: true), "of the exponential decrease"),
      .number("tol_min", 1e-12, .above(0), "least tolerance"),
      .number("C", 0.25, .above(0), "constant of the test of a step"),
      .number("M", 1, .above(0), "constant of the test of a step"),
      .maybe("lipschitz", .above(0), "L at first; none: from the first gradient"),
      .number("shrink", 0.95, .between(0, 1, lowOpen: true, highOpen: false), "factor of L after a good step"),
      .number("inflate", 1, .atLeast(1), "factor of L after a doubtful one"),
      .maybe("lower", .any, "least value of x"), .maybe("upper", .any, "largest value of x"),
      .number("gtol", 0, .atLeast(0), "norm of the gradient that ends it"),
    ],
    inputs: Bilevel.starts + [.constant("q0", "n", "where the first linear system starts", optional: true)]
      + Bilevel.results + [
        .result("q", "n", "solution of the last linear system"), .result("value", "", "upper value"),
        .result("residual", "", "norm of the hypergradient"), .result("curvature", "", "L"),
        .result("tolerance", "", "the last tolerance"),
      ], asks: [Bilevel.solveLower, Bilevel.upper, Bilevel.lowerHVP, Bilevel.lowerMixed],
    kept: [
      .kept("solution", "n", "answer of the inner solve"), .kept("fx", "p", "dF/dx"), .kept("fy", "n", "dF/dy"),
      .kept("x_last", "p", "outer variable before"), .kept("y_last", "n", "inner variable before"),
      .kept("r", "n", "residual of the system"), .kept("v", "n", "direction"), .kept("w", "n", "product"),
      .kept("mixed", "p", "mixed product"), .kept("value_last", "", "upper value before"),
      .kept("tolerance_last", "", "tolerance before"), .kept("rz", "", "square of the residual"),
      .kept("products", "", "products of this system"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  enum Phase: Int { case start, solve, solved, upper, again, system, residual, curvature, mixed }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], q = try io["q"], xLast = try io["x_last"], yLast = try io["y_last"]
    let fx = try io["fx"], fy = try io["fy"], r = try io["r"], v = try io["v"], w = try io["w"]
    switch phase {
    case .start:
      try Bilevel.begin(io)
      if let q0 = io.optional("q0") { q.copy(q0) }
      io.tolerance = h.is("decrease", "exact") ? h.tol_min : h.tol_init
      return .go(.solve)
    case .solve:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("solve_lower", [x, y], [try io["solution"]], then: .solved)
    case .solved:
      y.copy(try io["solution"])
      return .ask("upper", [x, y], [fx, fy], then: .upper)
    case .upper:
      io.value = io.upper_value
      if io.iterations > 0 {
        let d = x.distance(xLast), c = h.C as Double, m = h.M as Double
        let bound = c * io.tolerance + io.tolerance_last * (c + m) * d - m * io.curvature * d * d
        if io.value <= io.value_last + bound {
          io.curvature *= h.shrink
        } else if io.value - io.value_last >= 0.2 * abs(io.value_last) {
          x.copy(xLast)
          y.copy(yLast)
          io.curvature *= 2
          io.tolerance = max(io.tolerance / 2, h.tol_min)
          return .ask("upper", [x, y], [fx, fy], then: .again)
        } else {
          io.curvature *= h.inflate
        }
      }
      return .go(.system)
    case .again:
      io.value = io.upper_value
      return .go(.system)
    case .system:
      io.products = 0
      return .ask("lower_hvp", [x, y, q], [w], then: .residual)
    case .residual:
      r.set(1, fy, -1, w)
      return try direction(io, first: true)
    case .curvature:
      if let end = ConjugateGradients.step(io, q, r, v, w) { return .done(end) }
      io.products += 1
      return try direction(io, first: false)
    case .mixed:
      let p = try io["mixed"]
      p.set(1, fx, -1, p)
      io.residual = p.norm
      if io.iterations == 0 {
        let own = io.residual > 1e-3 ? io.residual / Double(x.count).squareRoot() : 1
        io.curvature = h.has("lipschitz") ? h.lipschitz : own
      }
      if io.residual <= h.gtol, h.gtol > 0 { return .done(.converged) }
      xLast.copy(x)
      yLast.copy(y)
      (io.value_last, io.tolerance_last) = (io.value, io.tolerance)
      x.add(p, times: -1 / io.curvature)
      let low = h.has("lower") ? T(h.lower) : -.infinity, high = h.has("upper") ? T(h.upper) : .infinity
      x.map(x) { min(max($0, low), high) }
      io.iterations += 1
      io.tolerance = next(io.tolerance, io.iterations + 1)
      return .go(.solve)
    }
  }

  /// The tolerance of step k.
  private func next(_ tolerance: Double, _ k: Double) -> Double {
    let wanted =
      h.is("decrease", "quadratic")
      ? h.tol_init / (k * k)
      : h.is("decrease", "cubic")
        ? h.tol_init / (k * k * k) : h.is("decrease", "exact") ? h.tol_min : tolerance * h.factor
    return max(min(wanted, tolerance), h.tol_min)
  }

  private func direction<T: Real>(_ io: DriverIO<T>, first: Bool) throws(Failure) -> Verdict<Phase> {
    let r = try io["r"], v = try io["v"], squared = r.dot(r), size = try io["fy"].norm
    let point = [try io["x"], try io["y"]]
    if squared.squareRoot() <= io.tolerance * size || io.products >= 10 * Double(r.count) {
      return .ask("lower_mixed", point + [try io["q"]], [try io["mixed"]], then: .mixed)
    }
    ConjugateGradients.turn(io, r, v, squared, first: first)
    return .ask("lower_hvp", point + [v], [try io["w"]], then: .curvature)
  }
}
