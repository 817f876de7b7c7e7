import Glibc
import ThalwegCore

/// Frank-Wolfe without gradients: an average of difference quotients, and the corner of the set against it.
///
///     T = t + 8;  d ← (1 − ρ)·d + ρ·g;   v = argmin over the set of ⟨d, v⟩;   x ← x + 2/T·(v − x)
///     kwsa:   g by coordinates, ρ = 4/T^(2/3), c = 2/(√n·T^(1/3))
///     rdsa:   g = (f(x + c·z) − f(x))/c·z,  ρ = 4/(n^(1/3)·T^(2/3)), c = 2/(n^(3/2)·T^(1/3))
///     irdsa:  the mean of m such,  ρ = 4/((1 + n/m)^(1/3)·T^(2/3)), c = 2√m/(n^(3/2)·T^(1/3))
///
/// ρ is at most 1, c at least `floor`. All values of a step are of one sample.
/// Ends     max_iter.
/// Source   Sahu, Zaheer and Kar, 2018, arXiv:1810.03233.
struct ZOFrankWolfe: Driver {
  static let method = Method.solver(
    "zo_frank_wolfe", "Frank-Wolfe without gradients and without projections.",
    rule: """
      T = t + 8;  d <- (1 - rho) d + rho g, g by differences of length c;  v = argmin <d, v> over the set
      x <- x + 2/T (v - x)
      """,
    source: "Sahu, Zaheer, Kar, 2018, arXiv:1810.03233",
    parameters: [
      .choice("kind", ["irdsa", "rdsa", "kwsa"], "several random directions, one, or all coordinates"),
      .integer("m", 6, .atLeast(1), "directions of irdsa"), .number("floor", 1e-8, .above(0), "least length c"),
      .integer("max_iter", 100, .atLeast(0), "steps"), Population.seed,
    ],
    inputs: [
      .constant("x0", "n", "a point of the set"), .result("x", "n", "the point"), .result("iterations", "", "steps"),
      .result("direction", "n", "the averaged gradient d"),
    ],
    asks: [
      RequestKind(
        "point_value", "the function at a point", given: [.given("point", "n", "a point")],
        wanted: [.wanted("f", "", "value there")]),
      RequestKind(
        "minimise_linear", "the point of the set with the least inner product",
        given: [.given("slope", "n", "the direction")], wanted: [.wanted("corner", "n", "the point")]),
    ],
    kept: [
      .kept("trial", "n", "point that is tried"), .kept("z", "n", "direction"), .kept("g", "n", "gradient"),
      .kept("v", "n", "corner"), .kept("base", "", "value at x"), .kept("turn", "", "directions done"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step, base, trial, corner }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], trial = try io["trial"], z = try io["z"], g = try io["g"], d = try io["direction"]
    let v = try io["v"], n = Double(x.count), t = io.iterations + 8, root = cbrt(t)
    let coordinates = h.is("kind", "kwsa"), m: Double = h.is("kind", "irdsa") ? h.m : 1
    let length =
      coordinates ? 2 / (n.squareRoot() * root) : 2 * m.squareRoot() / (pow(n, 1.5) * root)
    let rate =
      4 / (root * root) / (coordinates ? 1 : h.is("kind", "irdsa") ? cbrt(1 + n / m) : cbrt(n))
    let c = max(length, h.floor), rho = min(rate, 1), count = coordinates ? n : m
    func probe() throws(Failure) -> Verdict<Phase> {
      if coordinates {
        z.fill(0)
        z.p[try io.count("turn", x.count - 1)] = 1
      } else {
        z.draw(Population.key(h, io.iterations * count + io.turn))
      }
      trial.set(1, x, c, z)
      return .ask("point_value", [trial], [], then: .trial)
    }
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("point_value", [x], [], fresh: true, then: .base)
    case .base:
      io.base = io.f
      io.turn = 0
      g.fill(0)
      return try probe()
    case .trial:
      g.add(z, times: (io.f - io.base) / c / (coordinates ? 1 : count))
      io.turn += 1
      if io.turn < count { return try probe() }
      d.set(1 - rho, d, rho, g)
      return .ask("minimise_linear", [d], [v], then: .corner)
    case .corner:
      x.set(1 - 2 / t, x, 2 / t, v)
      io.iterations += 1
      return .go(.step)
    }
  }
}

/// Gradient sliding: many cheap steps on a nonsmooth part for each gradient of the smooth one.
///
///     k = 1..N:  x_u = (1 − g_k)·x̄ + g_k·x;  G = ∇f(x_u);  u = ũ = x
///       t = 1..T_k:  p = t/2, θ = 2(t+1)/(t(t+3)), s = b_k·(1 + p);   u = prox((b_k·x + b_k·p·u − G − h'(u))/s, s)
///                    ũ ← (1 − θ)·ũ + θ·u;       x ← u;  x̄ ← (1 − g_k)·x̄ + g_k·ũ
///     fixed:  g = 2/(k+1), b = 2L/k, T = ⌈M²·N·k²/(D·L²)⌉
///     any:    g = 3/(k+2), T = ⌈M²(k+1)³/(D·L²)⌉, b = 9L(1 − 2/((T+1)(T+2)))/(2(k+1))
///     strong: g = min(1, √(mu/L)), b = L·g, T = ⌈T₁·(1 − g)^(1−k)⌉ with T₁ that of fixed at k = 1
///
/// prox(v, s) = argmin χ(u) + s/2·|u − v|²; h' is a subgradient. T is at most `most`.
/// Ends     max_iter.
/// Differs  the strongly convex schedule is derived for this library: the paper's own is not known.
/// Source   Lan, 2014, arXiv:1406.0919; Wu, Xu and Zhang, 2026, arXiv:2602.04161.
struct GradientSliding: Driver {
  static let method = Method.solver(
    "gradient_sliding", "Gradient sliding: many cheap steps on a nonsmooth part for each smooth gradient.",
    rule: """
      xu = (1 - g) xbar + g x;  G = grad f(xu);  T times: u = prox((b x + b p u - G - h'(u))/s, s), s = b (1 + p)
      u~ <- (1 - th) u~ + th u;  x <- u;  xbar <- (1 - g) xbar + g u~
      """,
    source: "Lan, 2014, arXiv:1406.0919; Wu, Xu, Zhang, 2026, arXiv:2602.04161",
    parameters: [
      .number("L", nil, .above(0), "Lipschitz constant of the smooth gradient"),
      .number("M", nil, .above(0), "bound of the subgradients"),
      .number("D", 1, .above(0), "squared distance, a guess"),
      .choice("schedule", ["any", "fixed", "strong"], "of g, b and T"),
      .number("mu", 0, .atLeast(0), "strong convexity of chi, for strong"),
      .integer("most", 100_000, .atLeast(1), "most inner steps of one outer step"),
      .integer("max_iter", 30, .atLeast(1), "gradients of the smooth part, N"),
    ],
    inputs: [
      .constant("x0", "n", "the point to start with"), .result("x", "n", "the averaged point"),
      .result("iterations", "", "gradients of the smooth part"), .result("steps", "", "subgradients"),
    ],
    asks: [
      .fullGradient,
      RequestKind(
        "subgradient", "a subgradient of the nonsmooth part", given: [.given("point", "n", "where")],
        wanted: [.wanted("subgradient", "n", "a subgradient there")]),
      RequestKind(
        "prox", "the minimiser of chi(u) + weight/2 |u - point|^2",
        given: [.given("point", "n", "v"), .given("weight", "", "s")], wanted: [.wanted("minimiser", "n", "u")]),
    ],
    kept: [
      .kept("last", "n", "x"), .kept("look", "n", "where the gradient is taken"), .kept("g", "n", "smooth gradient"),
      .kept("sub", "n", "subgradient"), .kept("u", "n", "inner iterate"), .kept("mean", "n", "averaged inner iterate"),
      .kept("v", "n", "point of the prox"), .kept("weight", "", "s"), .kept("tries", "", "inner steps done"),
    ],
    validate: { (h) throws(Failure) in
      guard !h.is("schedule", "strong") || h.mu > 0 else {
        throw Failure(Status.range, "gradient_sliding: schedule=strong needs `mu` above 0, got 0")
      }
    })

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, outer, gradient, subgradient, prox }

  private func plan(_ k: Double) -> (g: Double, b: Double, T: Double) {
    let L: Double = h.L, ratio = h.M * h.M / (h.D * L * L), N: Double = h.max_iter
    func capped(_ T: Double) -> Double { min(max(1, T.rounded(.up)), h.most) }
    if h.is("schedule", "fixed") { return (2 / (k + 1), 2 * L / k, capped(ratio * N * k * k)) }
    if h.is("schedule", "strong") {
      let g = min(1, (h.mu / L).squareRoot())
      return (g, L * g, capped(ratio * N * pow(1 - g, 1 - k)))
    }
    let T = capped(ratio * pow(k + 1, 3))
    return (3 / (k + 2), 9 * L * (1 - 2 / ((T + 1) * (T + 2))) / (2 * (k + 1)), T)
  }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], last = try io["last"], look = try io["look"], g = try io["g"], sub = try io["sub"]
    let u = try io["u"], mean = try io["mean"], v = try io["v"]
    let plan = plan(io.iterations + 1)
    switch phase {
    case .start:
      x.copy(try io["x0"])
      last.copy(x)
      return .go(.outer)
    case .outer:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      look.set(1 - plan.g, x, plan.g, last)
      return .ask("full_gradient", [look], [g], then: .gradient)
    case .gradient:
      u.copy(last)
      mean.copy(last)
      io.tries = 0
      return .ask("subgradient", [u], [sub], then: .subgradient)
    case .subgradient:
      let p = (io.tries + 1) / 2
      io.weight = plan.b * (1 + p)
      v.set(plan.b, last, plan.b * p, u)
      v.add(g, times: -1)
      v.add(sub, times: -1)
      v.set(1 / io.weight, v)
      return .ask("prox", [v], [u], then: .prox)
    case .prox:
      io.tries += 1
      io.steps += 1
      let t = io.tries, theta = 2 * (t + 1) / (t * (t + 3))
      mean.set(1 - theta, mean, theta, u)
      if t < plan.T { return .ask("subgradient", [u], [sub], then: .subgradient) }
      last.copy(u)
      x.set(1 - plan.g, x, plan.g, mean)
      io.iterations += 1
      return .go(.outer)
    }
  }
}

/// Sketch and project: a linear system by projections on random combinations of its rows.
///
///     kaczmarz: row i at random, x ← x − (r_i/|a_i|²)·a_i;   gaussian: a = Aᵀ·s, x ← x − (s·r/|a|²)·a,  s ~ N(0, I)
///     r = A·x − b is asked for anew after every step; zero rows are skipped
///
/// Ends     converged: |r| ≤ tol; max_iter.
/// Differs  row i of step k is ⌊m·u⌋, u the normal distribution function at the first draw of (seed, 0, k, 0).
/// Source   Gower and Richtarik, 2015, arXiv:1506.03296.
struct RandomizedSketchSolver: Driver {
  static let method = Method.solver(
    "randomized_sketch_solver", "Sketch and project: a linear system by projections on combinations of its rows.",
    rule: "kaczmarz: x <- x - r_i/|a_i|^2 a_i, row i at random;  gaussian: a = A' s, x <- x - (s.r)/|a|^2 a",
    source: "Gower, Richtarik, 2015, arXiv:1506.03296",
    parameters: [
      .choice("sketch", ["kaczmarz", "gaussian"], "single rows, or normal combinations"),
      .number("tol", 1e-8, .atLeast(0), "norm of the residual that ends it"),
      .integer("max_iter", 100_000, .atLeast(0), "steps"), Population.seed,
    ],
    inputs: [
      .constant("b", "m", "right side"), .constant("x0", "n", "the point to start with"),
      .result("x", "n", "the solution"), .result("iterations", "", "steps"),
      .result("residual", "", "norm of A x - b"),
    ],
    asks: [
      RequestKind(
        "matrix_product", "A times a vector", given: [.given("point", "n", "the vector")],
        wanted: [.wanted("image", "m", "the product")]),
      RequestKind(
        "combination", "the transpose of A times a vector: one row, or a combination of rows",
        given: [.given("factors", "m", "the vector")], wanted: [.wanted("row", "n", "the product")]),
    ],
    kept: [.kept("r", "m", "A x - b"), .kept("s", "m", "sketch"), .kept("a", "n", "A' s")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, residual, row }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], r = try io["r"], s = try io["s"], a = try io["a"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .ask("matrix_product", [x], [r], then: .residual)
    case .residual:
      r.add(try io["b"], times: -1)
      io.residual = r.norm
      if io.residual <= h.tol { return .done(.converged) }
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      let key = Population.key(h, io.iterations)
      if h.is("sketch", "gaussian") {
        s.draw(key)
      } else {
        let u = 0.5 * erfc(-Random.normal(key, 0) * 0.5.squareRoot())
        s.fill(0)
        s.p[min(s.count - 1, max(0, Int(u * Double(s.count))))] = 1
      }
      return .ask("combination", [s], [a], then: .row)
    case .row:
      let size = a.dot(a)
      if size > 0 { x.add(a, times: -s.dot(r) / size) }
      io.iterations += 1
      return .ask("matrix_product", [x], [r], then: .residual)
    }
  }
}

/// Continuation: descent from an easy function to the whole one, the data's weight growing stage by stage.
///
///     stage i of N:  w = i·weight/N;   K times: x ← x − lr·(∇base(x) + w·∇data(x)),  from where the stage before ended
///
/// Ends     max_iter: all stages are done.
/// Differs  plain descent inside; that the weight grows linearly is the card's reading of the paper.
/// Source   T. Liu, Yang, et al., 2022, arXiv:2210.13983.
struct Continuation: Driver {
  static let method = Method.solver(
    "continuation", "Continuation: descent from an easy function to the whole one, stage by stage.",
    rule: "stage i: w = i weight/stages;  steps times: x <- x - lr (grad base + w grad data)",
    source: "T. Liu, Yang, et al., 2022, arXiv:2210.13983",
    parameters: [
      .number("weight", nil, .atLeast(0), "weight of the data at the end"),
      .integer("stages", 10, .atLeast(1), "stages"), .integer("steps", 20, .atLeast(1), "steps of a stage"),
      .number("lr", nil, .above(0), "step size"),
    ],
    inputs: [
      .constant("x0", "n", "the minimiser of the base"), .result("x", "n", "the point"),
      .result("iterations", "", "stages done"),
    ],
    asks: [
      RequestKind(
        "base_gradient", "the gradient of the easy function", given: [.given("point", "n", "where")],
        wanted: [.wanted("gradient", "n", "the gradient there")]),
      RequestKind(
        "data_gradient", "the gradient of the data's term", given: [.given("point", "n", "where")],
        wanted: [.wanted("gradient", "n", "the gradient there")]),
    ],
    kept: [.kept("g", "n", "of the base"), .kept("q", "n", "of the data"), .kept("tries", "", "steps of the stage")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, base, data }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], g = try io["g"], q = try io["q"]
    switch phase {
    case .start: x.copy(try io["x0"])
    case .base: return .ask("data_gradient", [x], [q], then: .data)
    case .data:
      x.add(g, times: -h.lr)
      x.add(q, times: -h.lr * (io.iterations + 1) * h.weight / h.stages)
      io.tries += 1
      if io.tries >= h.steps {
        io.tries = 0
        io.iterations += 1
      }
    }
    if io.iterations >= h.stages { return .done(.maxIter) }
    return .ask("base_gradient", [x], [g], fresh: true, then: .base)
  }
}

/// When a search of architectures must stop: the largest eigenvalue of the validation Hessian grows.
///
///     every `freq` epochs: ev;  from ⌈window/2⌉ of them on: mean of the last window (fewer: of all), which stands for
///     the epoch freq·⌊window/2⌋ before;  back = that epoch − freq·delta
///     back ≥ start and mean/(mean delta checks before) > factor: stop, and go back to epoch `back`
///
/// Ends     converged: stopped, `back` says where to; max_iter: it never grew so.
/// Differs  the eigenvalue is the host's, by power_iteration for instance.
/// Source   Zela, Elsken, Saikia, Marrakchi, Brox and Hutter, 2019, arXiv:1909.09656.
struct DARTSES: Driver {
  static let method = Method.solver(
    "darts_es", "When a search of architectures must stop: the largest eigenvalue grows.",
    rule: """
      every freq epochs: the mean of the last `window` eigenvalues
      stop when it is more than `factor` times the one delta checks before, from epoch `start` on
      """,
    source: "Zela, Elsken, Saikia, Marrakchi, Brox, Hutter, 2019, arXiv:1909.09656",
    parameters: [
      .integer("window", 5, .within(1, 4096), "eigenvalues of a mean"),
      .integer("freq", 2, .atLeast(1), "epochs between checks"),
      .integer("delta", 4, .within(1, 4096), "checks between the means that are compared"),
      .number("factor", 1.3, .above(0), "growth that stops"),
      .integer("start", 10, .atLeast(0), "earliest epoch to go back to"),
      .integer("checks", 25, .within(1, 0x1p20), "most checks"),
    ],
    inputs: [
      .result("back", "", "the epoch to go back to; -1: none"), .result("iterations", "", "checks"),
      .result("averages", "checks", "the means, as far as there are any"),
    ],
    asks: [
      RequestKind(
        "eigenvalue", "the largest eigenvalue of the validation Hessian after an epoch",
        given: [.given("epoch", "", "the epoch, from 0")], wanted: [.wanted("ev", "", "the eigenvalue")])
    ],
    kept: [
      .kept("values", "checks", "eigenvalues"), .kept("means", "", "how many means there are"),
      .kept("epoch", "", "the epoch"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, check }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let values = try io["values"], averages = try io["averages"], window = h.integer("window")
    let freq: Double = h.freq, delta = h.integer("delta")
    if phase == .start { io.back = -1 }
    if phase == .check {
      let k = try io.count("iterations", values.count - 1)
      values.p[k] = T(io.ev)
      io.iterations += 1
      if k + 1 >= (window + 1) / 2 {
        let size = min(window, k + 1), last = try io.count("means", values.count - 1)
        let mean = (0..<size).reduce(0.0) { $0 + Double(values.p[k - $1]) } / Double(size)
        averages.p[last] = T(mean)
        io.means += 1
        let back = io.epoch - freq * Double(window / 2) - freq * Double(delta)
        if back >= h.start, last >= delta, mean / Double(averages.p[last - delta]) > h.factor {
          io.back = back
          return .done(.converged)
        }
      }
    }
    if io.iterations >= h.checks { return .done(.maxIter) }
    io.epoch = io.iterations * freq
    return .ask("eigenvalue", fresh: true, then: .check)
  }
}
