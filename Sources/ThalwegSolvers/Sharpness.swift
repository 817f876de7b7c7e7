import ThalwegCore

/// The worst loss in a ball around a point, by normalised ascent.
///
///     l2:    e ← e + a·g/|g|, back onto the ball     linf: e ← clip(e + a·sign g, ±rho)     g at w + e
///     sharpness = max of the losses met − L(w);   relative: 100 times it over 1 + L(w)
///
/// e begins with 0, or with `start`: give one at a critical point, where there is no gradient to follow. One step of
/// length rho is the estimate of SAM. The weights are never changed: points are copies.
/// Source   Keskar et al., 2017, arXiv:1609.04836 (relative); Foret et al., 2021, arXiv:2010.01412.
struct SharpnessAtRadius: Driver {
  static let method = Method.solver(
    "sharpness_at_radius", "The worst loss in a ball around a point, by normalised ascent.",
    rule: """
      l2: e <- e + a g/|g|, back onto the ball;  linf: e <- clip(e + a sign(g), -rho, rho);  g at w + e
      sharpness = max loss - L(w);  relative: 100 (max loss - L(w))/(1 + L(w))
      """,
    source: "Keskar et al., 2017, arXiv:1609.04836; Foret et al., 2021, arXiv:2010.01412",
    parameters: [
      .number("rho", 0.05, .above(0), "radius of the ball"), .integer("steps", 1, .atLeast(1), "steps of ascent"),
      .maybe("step_size", .above(0), "length of a step; none: rho"), .choice("norm", ["l2", "linf"], "of the ball"),
      .flag("relative", false, "relative to the loss"),
    ],
    inputs: [
      .constant("w", "...", "the point"), .constant("start", "...", "where e begins; 0 when left out", optional: true),
      .result("sharpness", "", "how much the loss rises"), .result("loss", "", "loss at the point"),
      .result("worst", "", "largest loss that was met"), .result("perturbation", "...", "e at the largest loss"),
      .result("iterations", "", "steps"),
    ], asks: [.valueGradient, .value],
    kept: [
      .kept("e", "...", "perturbation"), .kept("point", "...", "w + e"), .kept("g", "...", "gradient"),
      .kept("met", "", "losses that were met"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, loss, gradient, end }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let w = try io["w"], e = try io["e"], point = try io["point"], g = try io["g"]
    switch phase {
    case .start:
      point.copy(w)
      guard let start = io.optional("start") else { return .ask("value_gradient", [point], [g], then: .gradient) }
      e.copy(start)
      confine(e)
      return .ask("value", [point], [], then: .loss)
    case .loss:
      try note(io)
      point.set(1, w, 1, e)
      return .ask("value_gradient", [point], [g], then: .gradient)
    case .gradient:
      try note(io)
      let rho: Double = h.rho, step: Double = h.step_size, length = step.isNaN ? rho : step, norm = g.norm
      if h.is("norm", "linf") {
        for i in 0..<e.count { e.p[i] += T(length * signOf(Double(g.p[i]))) }
      } else if norm > 0 {
        e.add(g, times: length / norm)
      }
      confine(e)
      io.iterations += 1
      point.set(1, w, 1, e)
      if io.iterations < h.steps { return .ask("value_gradient", [point], [g], then: .gradient) }
      return .ask("value", [point], [], then: .end)
    case .end:
      try note(io)
      let rise = io.worst - io.loss
      io.sharpness = h.relative ? 100 * rise / (1 + io.loss) : rise
      return .done(.converged)
    }
  }

  /// A loss that was met; the first one is that of the point itself.
  private func note<T: Real>(_ io: DriverIO<T>) throws(Failure) {
    if io.met == 0 { (io.loss, io.worst) = (io.value, io.value) }
    io.met += 1
    guard io.value > io.worst || io.value.isNaN else { return }
    io.worst = io.value
    try io["perturbation"].copy(try io["e"])
  }
  private func confine<T: Real>(_ e: Vector<T>) {
    let rho: Double = h.rho
    if h.is("norm", "linf") {
      e.map(e) { min(max($0, T(-rho)), T(rho)) }
    } else {
      let size = e.norm
      if size > rho { e.set(rho / size, e) }
    }
  }
}

/// How much the loss rises at the perturbed point of SAM.
///
///     sharpness = L(w + rho·g/(|g| + eps)) − L(w)
///
/// Without a gradient it is 0.
/// Source   Foret, Kleiner, Mobahi, Neyshabur, 2021, arXiv:2010.01412.
struct SAMSharpness: Driver {
  static let method = Method.solver(
    "sam_sharpness", "How much the loss rises at the perturbed point of SAM.",
    rule: "sharpness = L(w + rho g/(|g| + eps)) - L(w)",
    source: "Foret, Kleiner, Mobahi, Neyshabur, 2021, arXiv:2010.01412",
    parameters: [.number("rho", 0.05, .atLeast(0), "radius"), .eps(1e-12, "added to the norm")],
    inputs: [
      .constant("w", "...", "the point"), .result("sharpness", "", "how much the loss rises"),
      .result("loss", "", "loss at the point"), .result("gradient_norm", "", "norm of the gradient"),
    ], asks: [.valueGradient, .value], kept: [.kept("point", "...", "perturbed point"), .kept("g", "...", "gradient")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, gradient, end }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let w = try io["w"], point = try io["point"], g = try io["g"]
    switch phase {
    case .start: return .ask("value_gradient", [w], [g], then: .gradient)
    case .gradient:
      (io.loss, io.gradient_norm) = (io.value, g.norm)
      if io.gradient_norm == 0 { return .done(.converged) }
      point.set(1, w, h.rho / (io.gradient_norm + h.eps), g)
      return .ask("value", [point], [], then: .end)
    case .end:
      io.sharpness = io.value - io.loss
      return .done(.converged)
    }
  }
}

/// How much higher a loss is on the line between two points than between their losses.
///
///     barrier = max over t of L((1 − t)·w1 + t·w2) − ((1 − t)·L(w1) + t·L(w2)), t on an even grid with both ends
///
/// It is 0 at least. A NaN on the way stays.
/// Source   Frankle, Dziugaite, Roy, Carbin, 2020, arXiv:1912.05671.
struct LossBarrier: Driver {
  static let method = Method.solver(
    "loss_barrier", "How much higher a loss is on the line between two points.",
    rule: "barrier = max over t of L((1 - t) w1 + t w2) - ((1 - t) L(w1) + t L(w2))",
    source: "Frankle, Dziugaite, Roy, Carbin, 2020, arXiv:1912.05671",
    parameters: [.integer("points", 11, .atLeast(2), "points of the grid, both ends among them")],
    inputs: [
      .constant("w1", "...", "one end"), .constant("w2", "...", "the other"), .result("barrier", "", "the barrier"),
      .result("position", "", "t at the barrier"), .result("losses", "points", "losses on the grid").orNonfinite,
    ], asks: [.value], kept: [.kept("point", "...", "point of the line"), .kept("done", "", "losses known")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, loss }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let w1 = try io["w1"], w2 = try io["w2"], point = try io["point"], losses = try io["losses"], n = losses.count
    if phase == .loss {
      losses.p[try io.count("done", n - 1)] = T(io.value)
      io.done += 1
    }
    let k = try io.count("done", n)
    func at(_ k: Int) -> Double { Double(k) / Double(n - 1) }
    if k < n {
      if k == 0 { point.copy(w1) } else if k == n - 1 { point.copy(w2) } else { point.set(1 - at(k), w1, at(k), w2) }
      return .ask("value", [point], [], then: .loss)
    }
    let first = Double(losses.p[0]), last = Double(losses.p[n - 1])
    for k in 0..<n {
      let rise = k == 0 || k == n - 1 ? 0 : Double(losses.p[k]) - ((1 - at(k)) * first + at(k) * last)
      if rise > io.barrier || rise.isNaN { (io.barrier, io.position) = (rise, at(k)) }
    }
    return .done(.converged)
  }
}

/// The eigenvalue of largest magnitude of a symmetric operator, by power iteration.
///
///     y = A·v;  λ = v·y;  residual = |y − λ·v|;  v ← y/|y|
///
/// λ has its sign. A vector in the null space has the value 0. Spectra without a gap converge slowly: look at the
/// residual. For more than one eigenpair there are `power_iteration` and `lanczos`.
/// Ends     converged: |λ − λ before| ≤ tol·max(1, |λ|); max_iter, after `iters` products.
/// Source   von Mises, Pollaczek-Geiringer, 1929.
struct HessianMaxEig: Driver {
  static let method = Method.solver(
    "hessian_max_eig", "The eigenvalue of largest magnitude, by power iteration.",
    rule: "y = A v;  lambda = v.y;  residual = |y - lambda v|;  v <- y/|y|",
    source: "von Mises, Pollaczek-Geiringer, 1929",
    parameters: [
      .integer("iters", 100, .atLeast(1), "most products"),
      .number("tol", 1e-6, .atLeast(0), "change that ends it, relative to max(1, |lambda|)"),
      .integer("seed", 0, .atLeast(0), "of the start vector"),
    ],
    inputs: [
      .constant(
        "like", "...", "an array of the shape that the operator takes; its values do not count", optional: true
      ).orNonfinite,
      .constant("start", "...", "start vector; drawn when left out", optional: true),
      .result("eigenvalue", "", "lambda"), .result("vector", "...", "its vector, of length 1"),
      .result("residual", "", "|A v - lambda v|"), .result("iterations", "", "products"),
    ], asks: [.product], kept: [.kept("y", "...", "product"), .kept("last", "", "value before")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, product }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let v = try io["vector"], y = try io["y"]
    if phase == .start {
      if let start = io.optional("start") {
        v.copy(start)
      } else {
        v.draw(Random.key(seed: UInt64(bitPattern: Int64(h.integer("seed"))), stream: 0, step: 0, tensor: 0))
      }
      let size = v.norm
      guard size > 0, size.isFinite else {
        throw Failure(Status.range, "the start vector must be finite and not zero; its norm is \(text(size))")
      }
      v.set(1 / size, v)
      io.last = .nan
      return .ask("product", [v], [y], then: .product)
    }
    let size = y.norm, value = v.dot(y)
    io.eigenvalue = value
    io.iterations += 1
    if abs(value - io.last) <= h.tol * max(1, abs(value)) || size == 0 || io.iterations >= h.iters {
      let settled = abs(value - io.last) <= h.tol * max(1, abs(value)) || size == 0
      y.add(v, times: -value)
      io.residual = y.norm
      return .done(settled ? .converged : .maxIter)
    }
    io.last = value
    v.set(1 / size, y)
    return .ask("product", [v], [y], then: .product)
  }
}

/// The step size and momentum of the heavy-ball method for the spectrum of a batch's Hessian.
///
///     Lanczos: λ₁ the largest Ritz value, λ_p the smallest above floor
///     lr = (2/(√λ₁ + √λ_p))²     momentum = ((√λ₁ − √λ_p)/(√λ₁ + √λ_p))²
///
/// The products are those of a batch of the training's size, asked for again every few epochs. Without a Ritz value
/// above the floor the numbers stay lr0 and momentum0, NaN where they are not given.
/// Differs  closed form and interval are the card's, the paper's are not verified.
/// Source   Granziol, Zohren, Roberts, 2022, arXiv:2006.09092; Polyak, 1964.
struct LanczosLRMomentum: Driver {
  static let method = Method.solver(
    "lanczos_lr_momentum", "Step size and momentum of heavy-ball descent, from a Lanczos run.",
    rule: """
      lr = (2/(sqrt(l1) + sqrt(lp)))^2;  momentum = ((sqrt(l1) - sqrt(lp))/(sqrt(l1) + sqrt(lp)))^2
      l1 the largest Ritz value, lp the smallest above floor
      """,
    source: "Granziol, Zohren, Roberts, 2022, arXiv:2006.09092; Polyak, 1964",
    parameters: [
      .integer("steps", 10, .atLeast(2), "products; at most the number of unknowns"),
      .number("floor", 0, .atLeast(0), "Ritz values up to it are no curvature"),
      .number("tol", 1e-12, .atLeast(0), "length that ends it, relative to the largest entry of T"),
    ],
    inputs: [
      .constant("start", "...", "start vector"), .constant("lr0", "", "the step size before", optional: true),
      .constant("momentum0", "", "the momentum before", optional: true), .result("lr", "", "step size"),
      .result("momentum", "", "momentum"), .result("highest", "", "largest Ritz value"),
      .result("lowest", "", "smallest Ritz value above floor"), .result("rank", "", "steps that were taken"),
    ], asks: [.product],
    kept: [
      .kept("basis", "steps, ...", "Lanczos vectors"), .kept("w", "...", "product"),
      .kept("alpha", "steps", "diagonal"),
      .kept("beta", "steps", "beside it"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    ["steps": min(h.integer("steps"), max(1, sizes.samples))]
  }
  enum Phase: Int { case start, product }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let basis = try io["basis"], w = try io["w"], alpha = try io["alpha"], beta = try io["beta"]
    if phase == .start {
      try LanczosStep.begin(io, try io["start"], basis)
      return .ask("product", [basis.row(0)], [w], then: .product)
    }
    let k = try io.count("rank", basis.rows - 1)
    let more = LanczosStep.take(k, basis, w, alpha.p, beta.p, h.tol)
    io.rank += 1
    if more { return .ask("product", [basis.row(k + 1)], [w], then: .product) }
    let curvatures = try Tridiagonal(alpha.p, beta.p, k + 1).values.filter { $0 > h.floor }
    (io.lr, io.momentum) = (io.lr0, io.momentum0)
    if let least = curvatures.first, let most = curvatures.last {
      let (a, b) = (most.squareRoot(), least.squareRoot())
      (io.highest, io.lowest) = (most, least)
      io.lr = (2 / (a + b)) * (2 / (a + b))
      io.momentum = ((a - b) / (a + b)) * ((a - b) / (a + b))
    }
    return .done(.converged)
  }
}
