import Glibc
import ThalwegCore

/// The averaged method of multipliers for bilevel problems, in one loop.
///
///     μ = mu0·(k+1)^(−1/p);  φ = μ·F + (1−μ)·g
///     y ← y − beta·φ_y;  v ← v − eta0·η·(φ_yy·v − F_y);  x ← x − alpha0·α·(F_x − φ_xy·v), all at the old point
///     η = (k+1)^(−τ/2)·(μ² for s1, μ for s2, 1 for s3);  α = (k+1)^(−3τ/2)·(μ⁷, μ⁵, μ³)
///
/// v starts at 0, or at v0.
/// Differs  the exponents of s1 and s2 are those of a library.
/// Source   R. Liu, Y. Liu, Yao, Zeng, Zhang, 2023, arXiv:2302.03407.
struct SLBAMM: Driver {
  static let method = Method.solver(
    "sl_bamm", "Averaged method of multipliers for bilevel problems, in one loop.",
    rule: """
      mu = mu0 (k+1)^(-1/p);  phi = mu F + (1 - mu) g
      y <- y - beta phi_y;  v <- v - eta0 eta (phi_yy v - F_y);  x <- x - alpha0 alpha (F_x - phi_xy v)
      """,
    source: "R. Liu, Y. Liu, Yao, Zeng, Zhang, 2023, arXiv:2302.03407",
    parameters: [
      Bilevel.limit, .number("mu0", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "first weight of F"),
      .number("p", 10, .above(0), "its slowness"), .number("beta", 0.1, .above(0), "step of y"),
      .number("eta0", 0.1, .above(0), "step of v"), .number("alpha0", 0.1, .above(0), "step of x"),
      .number("tau", 0.025, .atLeast(0), "decay"), .choice("strategy", ["s3", "s2", "s1"], "how steps follow mu"),
    ],
    inputs: Bilevel.starts + [.constant("v0", "n", "start of the linear system", optional: true)] + Bilevel.results
      + [.result("v", "n", "multiplier")],
    asks: [
      Bilevel.upperGradient, Bilevel.lowerGradient, Bilevel.upperHVP, Bilevel.lowerHVP, Bilevel.upperMixed,
      Bilevel.lowerMixed,
    ],
    kept: [
      .kept("fx", "p", "dF/dx"), .kept("fy", "n", "dF/dy"), .kept("gx", "p", "dg/dx"), .kept("gy", "n", "dg/dy"),
      .kept("a", "n", "upper Hessian product"), .kept("b", "n", "lower Hessian product"),
      .kept("c", "p", "upper mixed product"), .kept("d", "p", "lower mixed product"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  enum Phase: Int { case start, step, upper, lower, upperHVP, lowerHVP, upperMixed, lowerMixed }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], v = try io["v"], point = [x, y, v]
    let a = try io["a"], b = try io["b"], c = try io["c"], d = try io["d"]
    switch phase {
    case .start:
      try Bilevel.begin(io)
      if let v0 = io.optional("v0") { v.copy(v0) }
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("upper_gradient", [x, y], [try io["fx"], try io["fy"]], fresh: true, then: .upper)
    case .upper: return .ask("lower_gradient", [x, y], [try io["gx"], try io["gy"]], then: .lower)
    case .lower: return .ask("upper_hvp", point, [a], then: .upperHVP)
    case .upperHVP: return .ask("lower_hvp", point, [b], then: .lowerHVP)
    case .lowerHVP: return .ask("upper_mixed", point, [c], then: .upperMixed)
    case .upperMixed: return .ask("lower_mixed", point, [d], then: .lowerMixed)
    case .lowerMixed:
      let k = io.iterations + 1, mu = h.mu0 * pow(k, -1 / h.p)
      let (low, high) = h.is("strategy", "s1") ? (2.0, 7.0) : h.is("strategy", "s2") ? (1, 5) : (0, 3)
      let eta = h.eta0 * pow(k, -h.tau / 2) * pow(mu, low), alpha = h.alpha0 * pow(k, -1.5 * h.tau) * pow(mu, high)
      y.add(try io["fy"], times: -h.beta * mu)
      y.add(try io["gy"], times: -h.beta * (1 - mu))
      v.add(a, times: -eta * mu)
      v.add(b, times: -eta * (1 - mu))
      v.add(try io["fy"], times: eta)
      x.add(try io["fx"], times: -alpha)
      x.add(c, times: alpha * mu)
      x.add(d, times: alpha * (1 - mu))
      io.iterations = k
      return .go(.step)
    }
  }
}

/// Normalised momentum on the outer variable, with an initial refinement of the inner one and periodic updates of it.
///
///     `warm` times y ← y − lr_y·g_y;  then, at every `period`-th step but the first, `inner` times the same, within
///     `radius` of where the period began
///     e = F_x − d/dx⟨g_y, z⟩;  m = e at first, then beta·m + (1−beta)·e
///     z ← z − lr_z·(H·z − F_y);  x ← x − lr_x·m/(|m|+eps)
///
/// The estimate takes z before its update, as the paper does; with `z_first` the new one, as the authors' code does.
/// Differs  the ball has one radius, and no inner iterates are averaged (neither is told).
/// Source   Hao, Gong, Liu, 2024, arXiv:2401.09587.
struct BOREP: Driver {
  static let method = Method.solver(
    "bo_rep", "Bilevel method with normalised momentum and periodic inner updates.",
    rule: """
      e = F_x - d/dx <g_y, z>;  m = beta m + (1 - beta) e;  z <- z - lr_z (H z - F_y);  x <- x - lr_x m/(|m| + eps)
      every period-th step: inner gradient steps on y, within radius of where they began
      """,
    source: "Hao, Gong, Liu, 2024, arXiv:2401.09587",
    parameters: [
      Bilevel.limit, .integer("warm", 50, .atLeast(0), "steps of y before the first"),
      .integer("period", 2, .atLeast(1), "outer steps between updates of y"),
      .integer("inner", 5, .atLeast(1), "steps of y at an update"), .maybe("radius", .above(0), "of the ball"),
      .number("lr_y", 0.1, .above(0), "step of y"), .number("lr_z", 0.1, .above(0), "step of z"),
      .number("lr_x", 0.01, .above(0), "length of a step of x"), .rate("beta", 0.9, "decay of the momentum"),
      .number("eps", 1e-10, .above(0), "added to the norm"),
      .flag("z_first", false, "z moves before the estimate is made"),
    ],
    inputs: Bilevel.starts + [.constant("z0", "n", "start of the linear system", optional: true)] + Bilevel.results
      + [.result("z", "n", "the inverse Hessian times dF/dy"), .result("momentum", "p", "m")],
    asks: [Bilevel.upperGradient, Bilevel.lowerGradient, Bilevel.lowerHVP, Bilevel.lowerMixed],
    kept: [
      .kept("fx", "p", "dF/dx"), .kept("fy", "n", "dF/dy"), .kept("gx", "p", "dg/dx"), .kept("gy", "n", "dg/dy"),
      .kept("w", "n", "Hessian product"), .kept("e", "p", "mixed product"), .kept("center", "n", "of the ball"),
      .kept("tries", "", "inner steps to take"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  enum Phase: Int { case start, inner, refined, step, upper, product, mixed }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], z = try io["z"], g = [try io["gx"], try io["gy"]]
    let w = try io["w"], e = try io["e"], center = try io["center"], m = try io["momentum"]
    switch phase {
    case .start:
      try Bilevel.begin(io)
      if let z0 = io.optional("z0") { z.copy(z0) }
      io.tries = h.warm
      return .go(.inner)
    case .inner:
      if io.tries <= 0 { return .go(.step) }
      return .ask("lower_gradient", [x, y], g, fresh: true, then: .refined)
    case .refined:
      y.add(g[1], times: -h.lr_y)
      let away = y.distance(center)
      // the refinement before the first step is in no ball
      if io.iterations > 0, h.has("radius"), away > h.radius {
        y.set(h.radius / away, y, 1 - h.radius / away, center)
      }
      io.tries -= 1
      return .go(.inner)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("upper_gradient", [x, y], [try io["fx"], try io["fy"]], fresh: true, then: .upper)
    case .upper: return .ask("lower_hvp", [x, y, z], [w], then: .product)
    case .product:
      if h.z_first { follow(z, w, try io["fy"]) }
      return .ask("lower_mixed", [x, y, z], [e], then: .mixed)
    case .mixed:
      e.set(1, try io["fx"], -1, e)
      if io.iterations == 0 { m.copy(e) } else { m.set(h.beta, m, 1 - h.beta, e) }
      if !h.z_first { follow(z, w, try io["fy"]) }
      x.add(m, times: -h.lr_x / (m.norm + h.eps))
      io.iterations += 1
      if io.iterations.truncatingRemainder(dividingBy: h.period) == 0, io.iterations < h.max_iter {
        center.copy(y)
        io.tries = h.inner
      }
      return .go(.inner)
    }
  }

  /// z ← z − lr_z·(H·z − F_y), where w = H·z.
  private func follow<T: Real>(_ z: Vector<T>, _ w: Vector<T>, _ fy: Vector<T>) {
    z.add(w, times: -h.lr_z)
    z.add(fy, times: h.lr_z)
  }
}

/// The one-step unrolled hypergradient of architecture search, with its second derivative from a finite difference.
///
///     y' = y − xi·(momentum·buffer + g_y(x, y) + weight_decay·y);  (d_x, d_y) = ∇F(x, y');  R = r/|d_y|
///     hypergradient = d_x − xi·(g_x(x, y + R·d_y) − g_x(x, y − R·d_y))/(2·R)
///
/// order 1: F_x(x, y) alone. d_y = 0: d_x. All requests are of one sample a function: the host takes training data for
/// g and validation data for F.
/// Source   H. Liu, Simonyan, Yang, 2018, arXiv:1806.09055; Zela et al., 2020, arXiv:1909.09656.
struct DARTSUnrolled: Driver {
  static let method = Method.solver(
    "darts_unrolled", "One-step unrolled hypergradient of architecture search.",
    rule: """
      y' = y - xi (momentum buffer + g_y + weight_decay y);  (d_x, d_y) = grad F(x, y');  R = r/|d_y|
      hypergradient = d_x - xi (g_x(x, y + R d_y) - g_x(x, y - R d_y))/(2 R)
      """,
    source: "H. Liu, Simonyan, Yang, 2018, arXiv:1806.09055; Zela et al., 2020, arXiv:1909.09656",
    parameters: [
      .number("xi", nil, .above(0), "unrolled step: the learning rate of the weights"),
      .number("r", 1e-2, .above(0), "radius of the finite difference"),
      .integer("order", 2, .within(1, 2), "1: no unrolling"), .number("momentum", 0, .atLeast(0), "of the weights"),
      .weightDecay(0, "weight decay of the weights"),
    ],
    inputs: [
      .constant("x", "p", "architecture"), .constant("y", "n", "weights"),
      .constant("buffer", "n", "momentum buffer of the weights", optional: true),
      .result("hypergradient", "p", "the gradient"),
    ], asks: [Bilevel.lowerGradient, Bilevel.upperGradient],
    kept: [
      .kept("z", "n", "weights where a gradient is taken"), .kept("dx", "p", "dF/dx"), .kept("dy", "n", "dF/dy"),
      .kept("gx", "p", "dg/dx at y + R d_y"), .kept("hx", "p", "dg/dx at y - R d_y"), .kept("gy", "n", "dg/dy"),
      .kept("radius", "", "R"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  enum Phase: Int { case start, unrolled, upper, plus, minus }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], z = try io["z"], dx = try io["dx"], dy = try io["dy"], gy = try io["gy"]
    let gx = try io["gx"], hx = try io["hx"], out = try io["hypergradient"]
    switch phase {
    case .start:
      if h.order == 1 { return .ask("upper_gradient", [x, y], [dx, dy], then: .upper) }
      return .ask("lower_gradient", [x, y], [gx, gy], then: .unrolled)
    case .unrolled:
      z.set(1 - h.xi * h.weight_decay, y, -h.xi, gy)
      if let buffer = io.optional("buffer") { z.add(buffer, times: -h.xi * h.momentum) }
      return .ask("upper_gradient", [x, z], [dx, dy], then: .upper)
    case .upper:
      out.copy(dx)
      let size = dy.norm
      if h.order == 1 || size == 0 { return .done(.converged) }
      io.radius = h.r / size
      z.set(1, y, io.radius, dy)
      return .ask("lower_gradient", [x, z], [gx, gy], then: .plus)
    case .plus:
      z.set(1, y, -io.radius, dy)
      return .ask("lower_gradient", [x, z], [hx, gy], then: .minus)
    case .minus:
      out.add(gx, times: -h.xi / (2 * io.radius))
      out.add(hx, times: h.xi / (2 * io.radius))
      return .done(.converged)
    }
  }
}
