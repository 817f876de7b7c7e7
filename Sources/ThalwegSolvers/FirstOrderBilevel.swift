import Glibc
import ThalwegCore

/// The fully first-order method for stochastic bilevel problems: no second derivative is asked for.
///
///     λ = γ/(2α), α = c_alpha·(k+k0)^−a, γ = c_gamma·(k+k0)^−c, k = 0, 1, ...
///     `inner` times, other samples each time: z ← z − γ·g_y(x, z);  y ← y − α·(F_y(x, y) + λ·g_y(x, y))
///     x ← x − xi·α·(F_x(x, y) + λ·(g_x(x, y) − g_x(x, z)))
///
/// z begins at y0 like y. With lambda0 the multiplier is lambda0 + k·delta. All of one inner step, and all of the step
/// of x, are of one sample.
/// Differs  the momentum form (F3SA) is not here: its decay is nowhere given.
/// Source   Kwon, Kwon, Wright, Nowak, 2023, arXiv:2301.10945.
struct F2SA: Driver {
  static let method = Method.solver(
    "f2sa", "Fully first-order stochastic bilevel method.",
    rule: """
      inner times: z <- z - gamma g_y(x, z);  y <- y - alpha (F_y(x, y) + lambda g_y(x, y))
      x <- x - xi alpha (F_x(x, y) + lambda (g_x(x, y) - g_x(x, z)))
      """,
    source: "Kwon, Kwon, Wright, Nowak, 2023, arXiv:2301.10945",
    parameters: [
      Bilevel.limit, .integer("inner", 10, .atLeast(1), "inner steps"),
      .number("c_alpha", 0.1, .above(0), "step of y"), .number("c_gamma", 0.1, .above(0), "step of z"),
      .number("k0", 1, .above(0), "offset of the step count"),
      .number("a", 5.0 / 7, .atLeast(0), "exponent of alpha"), .number("c", 4.0 / 7, .atLeast(0), "exponent of gamma"),
      .number("xi", 1, .above(0), "step of x over that of y"),
      .maybe("lambda0", .above(0), "multiplier at first; none: gamma/(2 alpha)"),
      .number("delta", 0, .atLeast(0), "what it grows by each step"),
    ],
    inputs: Bilevel.starts + Bilevel.results + [.result("z", "n", "minimiser of the lower function alone")],
    asks: [Bilevel.upperGradient, Bilevel.lowerGradient],
    kept: [
      .kept("fx", "p", "dF/dx"), .kept("fy", "n", "dF/dy"), .kept("gx", "p", "dg/dx at (x, y)"),
      .kept("gy", "n", "dg/dy"), .kept("hx", "p", "dg/dx at (x, z)"), .kept("hy", "n", "dg/dy at (x, z)"),
      .kept("tries", "", "inner steps done"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  enum Phase: Int { case start, inner, lowerZ, upperY, lowerY, upperX, lowerX, outer }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], z = try io["z"]
    let f = [try io["fx"], try io["fy"]], g = [try io["gx"], try io["gy"]], u = [try io["hx"], try io["hy"]]
    let k = io.iterations, alpha = h.c_alpha * pow(k + h.k0, -h.a), gamma = h.c_gamma * pow(k + h.k0, -h.c)
    let lambda = h.has("lambda0") ? h.lambda0 + k * h.delta : gamma / (2 * alpha)
    switch phase {
    case .start:
      try Bilevel.begin(io)
      z.copy(y)
      return .go(h.max_iter == 0 ? .outer : .inner)
    case .inner: return .ask("lower_gradient", [x, z], u, fresh: true, then: .lowerZ)
    case .lowerZ: return .ask("upper_gradient", [x, y], f, then: .upperY)
    case .upperY: return .ask("lower_gradient", [x, y], g, then: .lowerY)
    case .lowerY:
      z.add(u[1], times: -gamma)
      y.add(f[1], times: -alpha)
      y.add(g[1], times: -alpha * lambda)
      io.tries += 1
      if io.tries < h.inner { return .go(.inner) }
      io.tries = 0
      return .ask("upper_gradient", [x, y], f, fresh: true, then: .upperX)
    case .upperX: return .ask("lower_gradient", [x, y], g, then: .lowerX)
    case .lowerX: return .ask("lower_gradient", [x, z], u, then: .outer)
    case .outer:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      let step = h.xi * alpha
      x.add(f[0], times: -step)
      x.add(g[0], times: -step * lambda)
      x.add(u[0], times: step * lambda)
      io.iterations += 1
      return io.iterations >= h.max_iter ? .done(.maxIter) : .go(.inner)
    }
  }
}

/// A single-loop, Hessian-free bilevel method through the Moreau envelope of the lower function.
///
///     c_k = c0·(k+1)^p;  θ ← prox(θ − η·(g_y(x, θ) + (θ − y)/γ), η)
///     x ← P(x − α·(F_x(x, y)/c_k + g_x(x, y) − g_x(x, θ)))
///     y ← prox(y − β·(F_y(x, y)/c_k + g_y(x, y) − (y − θ)/γ), β), at the new x
///
/// θ begins at y0. The samples of a step are one. P projects onto `domain`, the prox is that of `regularizer`, the
/// non-smooth part of g; without them both do nothing.
/// Differs  the order θ, x, y is the paper's (a library takes y first, at the old x).
/// Source   R. Liu, Z. Liu, Yao, Zeng, Zhang, 2024, arXiv:2405.09927.
struct MEHA: Driver {
  static let method = Method.solver(
    "meha", "Moreau-envelope, single-loop, Hessian-free bilevel method.",
    rule: """
      c_k = c0 (k+1)^p;  theta <- prox(theta - eta (g_y(x, theta) + (theta - y)/gamma), eta)
      x <- P(x - alpha (F_x/c_k + g_x(x, y) - g_x(x, theta)))
      y <- prox(y - beta (F_y/c_k + g_y - (y - theta)/gamma), beta)
      """,
    source: "R. Liu, Z. Liu, Yao, Zeng, Zhang, 2024, arXiv:2405.09927",
    parameters: [
      Bilevel.limit, .number("alpha", 0.05, .above(0), "step of x"), .number("beta", 0.05, .above(0), "step of y"),
      .number("eta", 0.05, .above(0), "step of theta"),
      Parameter.number("gamma", 10, .above(0), "Moreau parameter; inf: no envelope").orInfinite(),
      .number("c0", 2, .above(0), "first penalty"),
      .number("p", 0.25, .between(0, 0.5, lowOpen: false, highOpen: true), "growth of the penalty"),
      .object("domain", .constraint, standard: nil, "a set that x is projected onto"),
      HeldProx.parameter("regularizer", "the non-smooth part of g in y"),
    ],
    inputs: Bilevel.starts + Bilevel.results + [.result("theta", "n", "point of the envelope")],
    asks: [Bilevel.upperGradient, Bilevel.lowerGradient],
    kept: [
      .kept("fx", "p", "dF/dx"), .kept("fy", "n", "dF/dy"), .kept("gx", "p", "dg/dx at (x, y)"),
      .kept("gy", "n", "dg/dy at (x, y)"), .kept("hx", "p", "dg/dx at (x, theta)"),
      .kept("hy", "n", "dg/dy at (x, theta)"),
    ])

  let h: Hyper, domain: HeldSet?, prox: HeldProx?
  init(_ h: Hyper) throws(Failure) {
    self.h = h
    domain = try h.held("domain").map { (held) throws(Failure) in try HeldSet(held) }
    prox = try HeldProx(h, "regularizer")
  }

  enum Phase: Int { case start, step, theta, upper, lower, envelope, upperY, lowerY }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], theta = try io["theta"]
    let f = [try io["fx"], try io["fy"]], g = [try io["gx"], try io["gy"]], u = [try io["hx"], try io["hy"]]
    let c = h.c0 * pow(io.iterations + 1, h.p), pull = 1 / h.gamma
    switch phase {
    case .start:
      try Bilevel.begin(io)
      theta.copy(y)
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("lower_gradient", [x, theta], u, fresh: true, then: .theta)
    case .theta:
      u[1].add(theta, times: pull)
      u[1].add(y, times: -pull)
      theta.add(u[1], times: -h.eta)
      try prox?.apply(theta, h.eta)
      return .ask("upper_gradient", [x, y], f, then: .upper)
    case .upper: return .ask("lower_gradient", [x, y], g, then: .lower)
    case .lower: return .ask("lower_gradient", [x, theta], u, then: .envelope)
    case .envelope:
      x.add(f[0], times: -h.alpha / c)
      x.add(g[0], times: -h.alpha)
      x.add(u[0], times: h.alpha)
      try domain?.project(x.p, Shape(dimensions: x.shape))
      return .ask("upper_gradient", [x, y], f, then: .upperY)
    case .upperY: return .ask("lower_gradient", [x, y], g, then: .lowerY)
    case .lowerY:
      g[1].add(f[1], times: 1 / c)
      g[1].add(y, times: -pull)
      g[1].add(theta, times: pull)
      y.add(g[1], times: -h.beta)
      try prox?.apply(y, h.beta)
      io.iterations += 1
      return .go(.step)
    }
  }
}

/// A single-loop bilevel method: inner variable, linear system and outer variable move together.
///
///     y ← y − lr_in·g_y;  v ← v − lr_in·(H·v + F_y);  x ← x − lr_out·(F_x + d/dx⟨g_y, v⟩)
///     all at the old point
///
/// v tends to −H⁻¹·F_y; v0 starts it, else it is 0.
/// Source   Dagréou, Ablin, Vaiter, Moreau, 2022, arXiv:2201.13409.
struct SOBA: Driver {
  static let method = Method.solver(
    "soba", "Single-loop stochastic bilevel method with a simultaneous linear system.",
    rule: "y <- y - lr_in g_y;  v <- v - lr_in (H v + F_y);  x <- x - lr_out (F_x + d/dx <g_y, v>)",
    source: "Dagreou, Ablin, Vaiter, Moreau, 2022, arXiv:2201.13409",
    parameters: [
      Bilevel.limit, .number("lr_in", 0.1, .above(0), "step of y and v"),
      .number("lr_out", 0.05, .above(0), "step of x"),
    ],
    inputs: Bilevel.starts + [.constant("v0", "n", "start of the linear system", optional: true)] + Bilevel.results
      + [.result("v", "n", "minus the inverse Hessian times dF/dy")],
    asks: [Bilevel.upperGradient, Bilevel.lowerGradient, Bilevel.lowerHVP, Bilevel.lowerMixed],
    kept: [
      .kept("fx", "p", "dF/dx"), .kept("fy", "n", "dF/dy"), .kept("gx", "p", "dg/dx"), .kept("gy", "n", "dg/dy"),
      .kept("w", "n", "Hessian product"), .kept("m", "p", "mixed product"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  enum Phase: Int { case start, step, upper, lower, product, mixed }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], v = try io["v"], w = try io["w"], m = try io["m"]
    let f = [try io["fx"], try io["fy"]], g = [try io["gx"], try io["gy"]]
    switch phase {
    case .start:
      try Bilevel.begin(io)
      if let v0 = io.optional("v0") { v.copy(v0) }
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("upper_gradient", [x, y], f, fresh: true, then: .upper)
    case .upper: return .ask("lower_gradient", [x, y], g, then: .lower)
    case .lower: return .ask("lower_hvp", [x, y, v], [w], then: .product)
    case .product: return .ask("lower_mixed", [x, y, v], [m], then: .mixed)
    case .mixed:
      y.add(g[1], times: -h.lr_in)
      w.add(f[1])
      v.add(w, times: -h.lr_in)
      m.add(f[0])
      x.add(m, times: -h.lr_out)
      io.iterations += 1
      return .go(.step)
    }
  }
}

/// A first-order bilevel method that moves both variables along F while the gap of the lower problem falls.
///
///     y_T: `inner` gradient steps on g from y;  q = (g_x(x, y) − g_x(x, y_T), g_y(x, y))
///     λ = max((φ − ⟨∇F, q⟩)/|q|², 0);  (x, y) ← (x, y) − lr·(∇F + λ·q)
///     control grad: φ = η·|q|²;  value: φ = η·(g(x, y) − g(x, y_T))
///
/// λ = 0 where |q|² < 1e-24.
/// Source   B. Liu, Ye, Wright, Stone, Liu, 2022, arXiv:2209.08709.
struct BOME: Driver {
  static let method = Method.solver(
    "bome", "First-order bilevel method with a dynamic barrier.",
    rule: """
      y_T: inner gradient steps on g from y;  q = (g_x(x, y) - g_x(x, y_T), g_y(x, y))
      lambda = max((phi - <grad F, q>)/(|q|^2 + 1e-12), 0);  (x, y) <- (x, y) - lr (grad F + lambda q)
      phi = eta |q|^2 (grad), or eta (g(x, y) - g(x, y_T)) (value)
      """,
    source: "B. Liu, Ye, Wright, Stone, Liu, 2022, arXiv:2209.08709",
    parameters: [
      Bilevel.limit, .integer("inner", 10, .atLeast(1), "inner steps"),
      .number("lr_y", 0.1, .above(0), "inner step"), .number("lr", 0.05, .above(0), "step"),
      .number("eta", 0.5, .above(0), "speed at which the gap falls"),
      .choice("control", ["grad", "value"], "what eta multiplies: the squared gradient, or the gap"),
    ],
    inputs: Bilevel.starts + Bilevel.results + [.result("lambda", "", "the last multiplier")],
    asks: [Bilevel.upperGradient, Bilevel.lowerGradient, Bilevel.lowerValue],
    kept: [
      .kept("fx", "p", "dF/dx"), .kept("fy", "n", "dF/dy"), .kept("gx", "p", "dg/dx at (x, y)"),
      .kept("gy", "n", "dg/dy at (x, y)"), .kept("hx", "p", "dg/dx at (x, y_T)"), .kept("hy", "n", "dg/dy there"),
      .kept("z", "n", "y_T"), .kept("tries", "", "inner steps done"), .kept("gap", "", "g(x, y), then less g(x, y_T)"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  enum Phase: Int { case start, step, inner, last, lower, upper, here, there, move }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], z = try io["z"]
    let f = [try io["fx"], try io["fy"]], g = [try io["gx"], try io["gy"]], u = [try io["hx"], try io["hy"]]
    switch phase {
    case .start:
      try Bilevel.begin(io)
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      z.copy(y)
      io.tries = 0
      return .ask("lower_gradient", [x, z], u, fresh: true, then: .inner)
    case .inner:
      z.add(u[1], times: -h.lr_y)
      io.tries += 1
      return .ask("lower_gradient", [x, z], u, then: io.tries < h.inner ? .inner : .last)
    case .last: return .ask("lower_gradient", [x, y], g, then: .lower)
    case .lower: return .ask("upper_gradient", [x, y], f, then: .upper)
    case .upper:
      if h.is("control", "grad") { return .go(.move) }
      return .ask("lower_value", [x, y], [], then: .here)
    case .here:
      io.gap = io.lower_value
      return .ask("lower_value", [x, z], [], then: .there)
    case .there:
      io.gap -= io.lower_value
      return .go(.move)
    case .move:
      g[0].add(u[0], times: -1)
      let n = g[0].dot(g[0]) + g[1].dot(g[1]), along = f[0].dot(g[0]) + f[1].dot(g[1])
      let phi = h.eta * (h.is("control", "grad") ? n : io.gap)
      guard n.isFinite, along.isFinite, phi.isFinite else { return .done(.nonfinite) }
      io.lambda = n < 1e-24 ? 0 : max((phi - along) / (n + 1e-12), 0)
      for (v, (a, b)) in zip([x, y], zip(f, g)) {
        v.add(a, times: -h.lr)
        v.add(b, times: -h.lr * io.lambda)
      }
      io.iterations += 1
      return .go(.step)
    }
  }
}
