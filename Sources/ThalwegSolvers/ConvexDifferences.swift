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
///     d ← prox_{lr·l1|·|}(d − lr·(∇f(x + d) + d/rho)), from 0;   gradient = −mean of the last `tail` d/rho
///     group: soft threshold of whole tiles, group x group of the last two axes, all other axes together
///
/// The host answers with the gradient of the score it explains, averaged over its noisy copies: `fresh` each time.
/// Ends     max_iter.
/// Errors   TW_ERROR_SHAPE: tiles of a tensor of rank below 2.
/// Differs  the authors' code gives the mean of d itself. Noise and copies are the host's.
/// Source   Zhang, Farnia, 2023, arXiv:2302.05294.
struct MoreauGrad: Driver {
  static let method = Method.solver(
    "moreau_grad", "The gradient of a Moreau envelope at an input, plain, sparse, or sparse in tiles.",
    rule: "d <- prox(d - lr (grad f(x + d) + d/rho), lr l1);  envelope_gradient = -mean of the last `tail` d/rho",
    source: "Zhang, Farnia, 2023, arXiv:2302.05294",
    parameters: [
      .number("rho", 1, .above(0), "of the envelope"), .number("lr", 0.1, .above(0), "step"),
      .integer("max_iter", 300, .atLeast(1), "steps"), .integer("tail", 100, .atLeast(1), "moves averaged at the end"),
      .number("l1", 0, .atLeast(0), "coefficient of the sparse forms"),
      .maybeInteger("group", .atLeast(1), "side of the tiles; none: entries"),
    ],
    inputs: [
      .constant("x", "...", "the input"), .result("envelope_gradient", "...", "gradient of the envelope"),
      .result("move", "...", "the last d"), .result("iterations", "", "steps"),
    ],
    asks: [
      RequestKind(
        "gradient", "the gradient of the score", given: [.given("point", "...", "where")],
        wanted: [.wanted("slope", "...", "gradient there")])
    ], kept: [.kept("point", "...", "x + d"), .kept("g", "...", "gradient")],
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
    let mean = try io["envelope_gradient"]
    if phase == .start {
      guard !h.has("group") || x.shape.count >= 2 else {
        throw Failure(Status.shape, "moreau_grad: tiles need a tensor of rank 2 or more, got rank \(x.shape.count)")
      }
    } else {
      d.set(1 - h.lr / h.rho, d, -h.lr, g)
      if h.l1 > 0 { threshold(d, h.lr * h.l1) }
      io.iterations += 1
      if io.iterations > h.max_iter - h.tail { mean.add(d, times: -1 / (h.tail * h.rho)) }
      if io.iterations >= h.max_iter { return .done(.maxIter) }
    }
    point.set(1, x, 1, d)
    return .ask("gradient", [point], [g], fresh: true, then: .step)
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
