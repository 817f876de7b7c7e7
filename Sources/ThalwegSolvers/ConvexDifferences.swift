import Glibc
import ThalwegCore

/// The difference-of-convex algorithm: the concave part is replaced by its tangent, again and again.
///
///     f − g:  y ∈ ∂g(x);   x ← argmin_u f(u) − ⟨y, u⟩
///
/// Ends     converged: the value fell by at most tol; max_iter.
/// Source   Tao, An, 1997; as here: El Halabi, Orfanides, Hoheisel, 2023, arXiv:2305.11046.
struct DCA: Driver {
  static let method = Method.solver(
    "dca", "The difference-of-convex algorithm, from subgradients of g and minimisers of f - <y, .>.",
    rule: "y in dg(x);  x <- argmin_u f(u) - <y, u>", source: "Tao, An, 1997; El Halabi et al., 2023, arXiv:2305.11046",
    parameters: [
      .integer("max_iter", 100, .atLeast(0), "most steps"), .number("tol", 1e-6, .atLeast(0), "decrease that ends it"),
    ],
    inputs: [
      .constant("x0", "...", "where it starts"), .result("x", "...", "the point"),
      .result("iterations", "", "steps"), .result("residual", "", "the last decrease"),
    ],
    asks: [
      RequestKind(
        "value_subgradient", "f - g, and a subgradient of g", given: [.given("point", "...", "where")],
        wanted: [.wanted("value", "", "f - g there"), .wanted("subgradient", "...", "subgradient of g there")]),
      RequestKind(
        "argmin", "the minimiser of f - <y, .>", given: [.given("y", "...", "a subgradient of g")],
        wanted: [.wanted("minimiser", "...", "the minimiser")]),
    ], kept: [.kept("y", "...", "subgradient"), .kept("next", "...", "minimiser"), .kept("last", "", "value before")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, minimise, moved }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], next = try io["next"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      (io.last, io.residual) = (.infinity, .infinity)
      return h.max_iter == 0 ? .done(.maxIter) : .ask("value_subgradient", [x], [y], then: .minimise)
    case .minimise:
      io.residual = io.last - io.value
      if io.residual <= h.tol { return .done(.converged) }
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      io.last = io.value
      return .ask("argmin", [y], [next], then: .moved)
    case .moved:
      x.copy(next)
      io.iterations += 1
      return .ask("value_subgradient", [x], [y], then: .minimise)
    }
  }
}

/// The gradient of a Moreau envelope at an input: an explanation of a score that noise and sparsity make stable.
///
///     d ← prox_{lr·l1|·|}(d − lr·(g + d/rho)), from 0;   gradient = −mean of the last `tail` d/rho
///     g = mean over `samples` copies of ∇f(x + d + sigma·(max x − min x)·z), z ~ N(0, 1)
///     group: soft threshold of whole tiles, group x group of the last two axes, all other axes together
///
/// The host answers with the gradient of the score it explains, `fresh` each time. Copy j of step k draws z from
/// (seed, 0, k·samples + j, 0), k and j from 0.
/// Ends     max_iter.
/// Errors   TW_ERROR_SHAPE: tiles of a tensor of rank below 2.
/// Differs  the authors' code gives the mean of d itself. The card's noise, 0.1 in 32 copies, is off unless it is asked
///          for, and so are its tiles of 14: a host may also average noisy copies of its own.
/// Source   Zhang, Farnia, 2023, arXiv:2302.05294.
struct MoreauGrad: Driver {
  static let method = Method.solver(
    "moreau_grad", "The gradient of a Moreau envelope at an input, plain, sparse, or sparse in tiles.",
    rule: """
      d <- prox(d - lr (g + d/rho), lr l1);  envelope_gradient = -mean of the last `tail` d/rho
      g = mean over the samples of grad f(x + d + sigma (max x - min x) z), z ~ N(0, 1)
      """,
    source: "Zhang, Farnia, 2023, arXiv:2302.05294",
    parameters: [
      .number("rho", 1, .above(0), "of the envelope"), .number("lr", 0.1, .above(0), "step"),
      .integer("max_iter", 300, .atLeast(1), "steps"), .integer("tail", 100, .atLeast(1), "moves averaged at the end"),
      .number("l1", 0, .atLeast(0), "coefficient of the sparse forms"),
      .maybeInteger("group", .atLeast(1), "side of the tiles; none: entries"),
      .number("sigma", 0, .atLeast(0), "noise on the input, over its range"),
      .integer("samples", 1, .within(1, 0x1p20), "noisy copies of a step"), Population.seed,
    ],
    inputs: [
      .constant("x", "...", "the input"), .result("envelope_gradient", "...", "gradient of the envelope"),
      .result("move", "...", "the last d"), .result("iterations", "", "steps"),
    ],
    asks: [
      RequestKind(
        "gradient", "the gradient of the score", given: [.given("point", "...", "where")],
        wanted: [.wanted("slope", "...", "gradient there")])
    ],
    kept: [
      .kept("point", "...", "where the gradient is asked"), .kept("g", "...", "gradient there"),
      .kept("total", "...", "mean of the copies' gradients"), .kept("turn", "", "copies done"),
    ],
    validate: { (h) throws(Failure) in
      guard h.integer("tail") <= h.integer("max_iter") else {
        throw Failure(
          Status.range,
          "moreau_grad: `tail` must not be above `max_iter`, got \(h.integer("tail")) and \(h.integer("max_iter"))")
      }
    })

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], d = try io["move"], point = try io["point"], g = try io["g"]
    let mean = try io["envelope_gradient"], total = try io["total"], samples: Double = h.samples
    func ask() -> Verdict<Phase> {
      if h.sigma > 0 {
        point.draw(Population.key(h, io.iterations * samples + io.turn))
        point.set(h.sigma * range(x), point, 1, d)
        point.add(x, times: 1)
      } else {
        point.set(1, x, 1, d)
      }
      return .ask("gradient", [point], [g], fresh: true, then: .step)
    }
    if phase == .start {
      guard !h.has("group") || x.shape.count >= 2 else {
        throw Failure(Status.shape, "moreau_grad: tiles need a tensor of rank 2 or more, got rank \(x.shape.count)")
      }
      return ask()
    }
    if io.turn == 0 { total.set(1 / samples, g) } else { total.add(g, times: 1 / samples) }
    io.turn += 1
    if io.turn < samples { return ask() }
    io.turn = 0
    d.set(1 - h.lr / h.rho, d, -h.lr, total)
    if h.l1 > 0 { threshold(d, h.lr * h.l1) }
    io.iterations += 1
    if io.iterations > h.max_iter - h.tail { mean.add(d, times: -1 / (h.tail * h.rho)) }
    return io.iterations >= h.max_iter ? .done(.maxIter) : ask()
  }

  private func range<T: Real>(_ x: Vector<T>) -> Double {
    guard x.count > 0 else { return 0 }
    var (low, high) = (x.p[0], x.p[0])
    for i in 0..<x.count { (low, high) = (min(low, x.p[i]), max(high, x.p[i])) }
    return Double(high) - Double(low)
  }
  private func threshold<T: Real>(_ d: Vector<T>, _ k: Double) {
    guard h.has("group") else {
      return d.map(d) { T(shrunk(Double($0), by: k)) }
    }
    let side = h.integer("group"), width = d.shape.last ?? 1, height = d.shape.dropLast().last ?? 1
    let planes = d.count / max(1, width * height)
    for y in stride(from: 0, to: height, by: side) {
      for x in stride(from: 0, to: width, by: side) {
        var square = 0.0
        func forEach(_ body: (Int) -> Void) {
          for p in 0..<planes {
            for r in y..<min(y + side, height) {
              for c in x..<min(x + side, width) { body((p * height + r) * width + c) }
            }
          }
        }
        forEach { square += Double(d.p[$0]) * Double(d.p[$0]) }
        let norm = square.squareRoot(), factor = norm <= k ? 0 : 1 - k / norm
        forEach { d.p[$0] = T(Double(d.p[$0]) * factor) }
      }
    }
  }
}
