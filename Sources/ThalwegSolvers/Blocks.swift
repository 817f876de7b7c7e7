import Glibc
import ThalwegCore

/// Blocks of coordinates: runs of `block` entries, the last one maybe shorter.
private struct Blocks {
  static let size = Parameter.integer("block", 1, .atLeast(1), "entries of a block")
  static let part: [Input] = [.given("first", "", "first entry"), .given("length", "", "how many")]
  let n: Int, size: Int
  init(_ h: Hyper, _ n: Int) { (self.n, size) = (n, max(1, min(h.integer("block"), n))) }
  var count: Int { (n + size - 1) / size }
  func first(_ b: Int) -> Int { b * size }
  func length(_ b: Int) -> Int { min(size, n - b * size) }
}

extension Vector {
  /// A run of entries of a vector.
  fileprivate func run(_ first: Int, _ length: Int) -> Vector { Vector(name, offset + first, p + first, [length]) }
}

/// Block coordinate descent with greedy rules: the block that promises the largest decrease is updated.
///
///     score of block b: gs |g_b|²;  gsl |g_b|²/L_b;  gsd Σ g_i²/L_i;  gsq g_bᵀ·H_bb⁻¹·g_b;  cyclic: in turn
///     update: lipschitz x_b ← prox(x_b − g_b/L_b, 1/L_b);  matrix x_b ← x_b − H_bb⁻¹·g_b
///
/// Of equal scores the lower block wins. L_i are `lipschitz`, or the diagonal of `hessian` (a bound of the Hessian);
/// L_b are `block_lipschitz`, or the sums of the L_i of a block. With a regularizer a greedy block is scored by
/// L_b·|d_b|², d_b its prox step.
/// Errors   TW_ERROR_NEEDS: neither lipschitz nor hessian, or gsq or matrix without hessian.
/// Ends     converged: |g| ≤ tol, or with a regularizer Σ L_b·|d_b|² ≤ tol² over all blocks; max_iter.
/// Differs  the authors' code scores by L1 norms of blocks. Random blocks are `rcd`; variable blocks are not here.
/// Source   Nutini, Laradji, Schmidt, 2022, arXiv:1712.08859.
struct BCD: Driver {
  static let method = Method.solver(
    "bcd", "Block coordinate descent with greedy rules.",
    rule: """
      gs |g_b|^2;  gsl |g_b|^2/L_b;  gsd sum g_i^2/L_i;  gsq g_b' H_bb^-1 g_b: the block of the largest score
      lipschitz x_b <- prox(x_b - g_b/L_b, 1/L_b);  matrix x_b <- x_b - H_bb^-1 g_b
      """,
    source: "Nutini, Laradji, Schmidt, 2022, arXiv:1712.08859",
    parameters: [
      .choice("rule", ["gsl", "gs", "gsd", "gsq", "cyclic"], "which block"),
      .choice("update", ["lipschitz", "matrix"], "what is done with it"), Blocks.size,
      .integer("max_iter", 100, .atLeast(0), "most updates"),
      .number("tol", 1e-8, .atLeast(0), "gradient that ends it"),
      HeldProx.parameter("regularizer", "of the proximal update, separable"),
    ],
    inputs: [
      .constant("x0", "n", "where it starts"), .constant("lipschitz", "n", "L_i", optional: true),
      .constant("block_lipschitz", "blocks", "L_b", optional: true),
      .constant("hessian", "n, n", "a bound of the Hessian", optional: true), .result("x", "n", "the point"),
      .result("iterations", "", "updates"), .result("residual", "", "norm of the gradient, or of all prox steps"),
    ],
    asks: [
      RequestKind(
        "gradient", "the gradient", given: [.given("point", "n", "where")],
        wanted: [.wanted("gradient", "n", "gradient there")])
    ], kept: [.kept("g", "n", "gradient"), .kept("step", "n", "steps of all blocks")],
    validate: { (h) throws(Failure) in
      guard !h.given("regularizer") || (h.is("update", "lipschitz") && !h.is("rule", "gsq")) else {
        throw Failure(Status.range, "bcd: a `regularizer` goes with update=lipschitz, and not with rule=gsq")
      }
    })

  let h: Hyper, prox: HeldProx?
  init(_ h: Hyper) throws(Failure) {
    self.h = h
    prox = try HeldProx(h, "regularizer")
  }
  enum Phase: Int { case start, gradient }

  private func check<T: Real>(_ io: DriverIO<T>, _ blocks: Blocks) throws(Failure) {
    guard io.optional("lipschitz") != nil || io.optional("hessian") != nil else {
      throw Failure(Status.needs, "bcd needs `lipschitz` or `hessian`")
    }
    guard io.optional("hessian") != nil || (h.is("update", "lipschitz") && !h.is("rule", "gsq")) else {
      throw Failure(Status.needs, "bcd: gsq and update=matrix need `hessian`")
    }
    if let bounds = io.optional("block_lipschitz"), bounds.count != blocks.count {
      throw Failure(
        Status.shape, "`block_lipschitz` must have \(blocks.count) elements, one a block, got \(bounds.count)")
    }
    for i in 0..<blocks.n {
      let l = bound(io, i)
      guard l > 0, l.isFinite else {
        throw Failure(Status.range, "bcd: Lipschitz constants must be positive and finite, got \(text(l)) at \(i)")
      }
    }
  }
  /// L_i.
  private func bound<T: Real>(_ io: DriverIO<T>, _ i: Int) -> Double {
    if let l = io.optional("lipschitz") { return Double(l.p[i]) }
    return io.optional("hessian").map { Double($0.p[i * io.sizes["n"] + i]) } ?? .nan
  }
  /// L_b.
  private func bound<T: Real>(_ io: DriverIO<T>, block b: Int, _ blocks: Blocks) -> Double {
    if let l = io.optional("block_lipschitz") { return Double(l.p[b]) }
    return (blocks.first(b)..<(blocks.first(b) + blocks.length(b))).reduce(0.0) { $0 + bound(io, $1) }
  }
  /// H_bb⁻¹·g_b.
  private func newton<T: Real>(_ io: DriverIO<T>, _ b: Int, _ blocks: Blocks, _ g: Vector<T>) throws(Failure)
    -> [Double]
  {
    guard let hessian = io.optional("hessian") else { return [] }
    let first = blocks.first(b), n = blocks.length(b)
    try Memory.ask(16 &* n &* n)
    var a = [Double](repeating: 0, count: n * n)
    for i in 0..<n { for j in 0..<n { a[i * n + j] = Double(hessian.p[(first + i) * blocks.n + first + j]) } }
    return try LinearAlgebra.solvePositive(a, (0..<n).map { Double(g.p[first + $0]) }, n, 1)
  }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], g = try io["g"], step = try io["step"], blocks = Blocks(h, x.count)
    if phase == .start {
      x.copy(try io["x0"])
      try check(io, blocks)
      return h.max_iter == 0 ? .done(.maxIter) : .ask("gradient", [x], [g], then: .gradient)
    }
    var best = -1.0, chosen = 0, all = 0.0
    for b in 0..<blocks.count {
      let part = step.run(blocks.first(b), blocks.length(b)), own = g.run(blocks.first(b), blocks.length(b))
      let l = bound(io, block: b, blocks)
      var score = own.dot(own)
      if let prox {
        part.set(1, x.run(blocks.first(b), blocks.length(b)), -1 / l, own)
        try prox.apply(part, 1 / l)
        part.add(x.run(blocks.first(b), blocks.length(b)), times: -1)
        score = l * part.dot(part)
        all += score
      } else {
        all += score
        if h.is("rule", "gsl") { score /= l }
        if h.is("rule", "gsd") {
          score = (0..<own.count).reduce(0.0) { sum, i in
            sum + Double(own.p[i]) * Double(own.p[i]) / bound(io, blocks.first(b) + i)
          }
        }
        if h.is("rule", "gsq") {
          let d = try newton(io, b, blocks, g)
          score = d.indices.reduce(0.0) { $0 + d[$1] * Double(own.p[$1]) }
        }
      }
      if score > best { (best, chosen) = (score, b) }
    }
    io.residual = all.squareRoot()
    if io.residual <= h.tol { return .done(.converged) }
    if h.is("rule", "cyclic") { chosen = try io.count("iterations") % blocks.count }
    let first = blocks.first(chosen), part = x.run(first, blocks.length(chosen))
    if prox != nil {
      part.add(step.run(first, part.count))
    } else if h.is("update", "matrix") {
      let d = try newton(io, chosen, blocks, g)
      for i in d.indices { part.p[i] = T(Double(part.p[i]) - d[i]) }
    } else {
      part.add(g.run(first, part.count), times: -1 / bound(io, block: chosen, blocks))
    }
    io.iterations += 1
    if io.iterations >= h.max_iter { return .done(.maxIter) }
    return .ask("gradient", [x], [g], then: .gradient)
  }
}

/// Block descent with a proximal term: each block goes to the minimiser of its own problem near where it was.
///
///     θ_i ← argmin f(…, θ_i, …) + lam/2·|θ_i − θ_i,old|², the host's; blocks in turn
///     radius: the move of a block is cut to radius/(k + 1) in sweep k, from 0
///
/// An inexact answer will do, if its gaps have a finite sum.
/// Ends     converged: no block moved by more than tol in a sweep; max_iter.
/// Source   Kwon, Lyu, 2023, arXiv:2306.02420.
struct BCDProx: Driver {
  static let method = Method.solver(
    "bcd_prox", "Block descent with a proximal term, from minimisers of single blocks.",
    rule: """
      theta_i <- argmin f(.., theta_i, ..) + lam/2 |theta_i - theta_i,old|^2, blocks in turn
      radius: a move is cut to radius/(k + 1) in sweep k
      """,
    source: "Kwon, Lyu, 2023, arXiv:2306.02420",
    parameters: [
      .number("lam", 1, .above(0), "proximal weight"),
      .maybe("radius", .above(0), "cap of the moves of the first sweep"),
      Blocks.size, .integer("max_iter", 50, .atLeast(0), "most sweeps"),
      .number("tol", 0, .atLeast(0), "largest move of a sweep that ends it"),
    ],
    inputs: [
      .constant("x0", "n", "where it starts"), .result("x", "n", "the point"), .result("iterations", "", "sweeps"),
      .result("residual", "", "largest move of the last sweep"),
    ],
    asks: [
      RequestKind(
        "solve", "the minimiser over some entries of f + lam/2 |block - block of the point|^2",
        given: [.given("point", "n", "where"), .given("lam", "", "proximal weight")] + Blocks.part,
        wanted: [.wanted("solution", "n", "only those entries count")])
    ],
    kept: [.kept("answer", "n", "answer"), .kept("block", "", "which block"), .kept("move", "", "largest move so far")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, ask, solved }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], answer = try io["answer"], blocks = Blocks(h, x.count)
    if phase == .start {
      x.copy(try io["x0"])
      io.lam = h.lam
      return .go(.ask)
    }
    if phase == .solved {
      let b = try io.count("block", blocks.count - 1), part = x.run(blocks.first(b), blocks.length(b))
      let found = answer.run(blocks.first(b), part.count), length = found.distance(part)
      let cap = h.given("radius") ? h.radius / (io.iterations + 1) : Double.infinity
      if length > cap { part.set(1 - cap / length, part, cap / length, found) } else { part.copy(found) }
      io.move = max(io.move, min(length, cap))
      io.block += 1
      if io.block >= Double(blocks.count) {
        (io.residual, io.move, io.block) = (io.move, 0, 0)
        io.iterations += 1
        if io.residual <= h.tol { return .done(.converged) }
      }
      return .go(.ask)
    }
    if io.iterations >= h.max_iter { return .done(.maxIter) }
    let b = try io.count("block", blocks.count - 1)
    (io.first, io.length) = (Double(blocks.first(b)), Double(blocks.length(b)))
    return .ask("solve", [x], [answer], then: .solved)
  }
}

/// Cyclic block descent with a recursive estimate of each block's gradient: large batches now and then, differences on
/// small ones otherwise.
///
///     step k, one coin for all blocks, heads with probability p (k = 0: heads); blocks i in turn
///     mixed point x_k,i: blocks before i new, the others old
///     heads: e_i = gradient of block i on a large batch;  tails: e_i += ∇_i(x_k,i) − ∇_i(x_k−1,i) on one small batch
///     x_i ← prox(x_i − lr·e_i, lr)
///
/// The coin of step k comes from a uniform draw: `uniforms` of the host, or those of `seed`; heads below p.
/// Ends     max_iter.
/// Differs  p has no default: b/(b + B) of the batch sizes is the host's to know. That the blocks share the coin is
///          UNVERIFIED.
/// Source   Cai, Song, Wright, Diakonikolas, 2023, arXiv:2212.05088.
struct VRCyclicBCD: Driver {
  static let method = Method.solver(
    "vr_cyclic_bcd", "Cyclic block descent with a recursive estimate of each block's gradient.",
    rule: """
      heads: e_i = large-batch gradient of block i at x_k,i;  tails: e_i += grad_i(x_k,i) - grad_i(x_k-1,i)
      x_i <- prox(x_i - lr e_i, lr);  x_k,i: new blocks before i, old ones from i on
      """,
    source: "Cai, Song, Wright, Diakonikolas, 2023, arXiv:2212.05088",
    parameters: [
      .number("lr", nil, .above(0), "step size"),
      .number("p", nil, .between(0, 1, lowOpen: true, highOpen: false), "probability of a large batch"),
      Blocks.size, .integer("max_iter", 100, .atLeast(0), "steps"), .integer("seed", 0, .atLeast(0), "of the coins"),
      HeldProx.parameter("regularizer", "of the prox, separable"),
    ],
    inputs: [
      .constant("x0", "n", "where it starts"),
      .constant("uniforms", "steps", "draws in [0, 1), one a step; from `seed` when left out", optional: true),
      .result("x", "n", "the point"), .result("iterations", "", "steps"), .result("large", "", "steps with heads"),
    ],
    asks: [
      RequestKind(
        "large_gradient", "some entries of the gradient on a large batch",
        given: [.given("point", "n", "where")] + Blocks.part,
        wanted: [.wanted("gradient", "n", "gradient; only those entries count")]),
      RequestKind(
        "difference", "some entries of the difference of two gradients on one small batch",
        given: [.given("point", "n", "where"), .given("before", "n", "the point whose gradient is subtracted")]
          + Blocks.part,
        wanted: [.wanted("gradient", "n", "difference; only those entries count")]),
    ],
    kept: [
      .kept("e", "n", "estimates"), .kept("answer", "n", "answer"),
      .kept("last", "n", "mixed point of the step before"),
      .kept("old", "n", "parameters before this step"), .kept("block", "", "which block"),
      .kept("heads", "", "the coin"),
    ])

  let h: Hyper, prox: HeldProx?
  init(_ h: Hyper) throws(Failure) {
    self.h = h
    prox = try HeldProx(h, "regularizer")
  }
  enum Phase: Int { case start, step, ask, answered }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], e = try io["e"], answer = try io["answer"], last = try io["last"], old = try io["old"]
    let blocks = Blocks(h, x.count)
    switch phase {
    case .start:
      for each in [x, last, old] { each.copy(try io["x0"]) }
      return .go(.step)
    case .step:
      let k = try io.count("iterations"), uniforms = io.optional("uniforms")
      if io.iterations >= h.max_iter || (uniforms.map { k >= $0.count } ?? false) { return .done(.maxIter) }
      let key = Random.key(seed: UInt64(h.integer("seed")), stream: 0, step: 0, tensor: 0)
      let draw = uniforms.map { Double($0.p[k]) } ?? Random.uniform(key, UInt64(k))
      io.heads = k == 0 || draw < h.p ? 1 : 0
      io.large += io.heads
      io.block = 0
      // `last` walks from the parameters before the previous step to those after it, block by block
      old.copy(x)
      return .go(.ask)
    case .ask:
      let b = try io.count("block", blocks.count)
      if b == blocks.count {
        // now `last` is what `old` is: the next step's mixed points begin there
        last.copy(old)
        io.iterations += 1
        return .go(.step)
      }
      (io.first, io.length) = (Double(blocks.first(b)), Double(blocks.length(b)))
      if io.heads == 1 { return .ask("large_gradient", [x], [answer], fresh: b == 0, then: .answered) }
      return .ask("difference", [x, last], [answer], fresh: true, then: .answered)
    case .answered:
      let b = try io.count("block", blocks.count - 1), first = blocks.first(b), n = blocks.length(b)
      let own = e.run(first, n), part = x.run(first, n)
      if io.heads == 1 { own.copy(answer.run(first, n)) } else { own.add(answer.run(first, n)) }
      part.add(own, times: -h.lr)
      try prox?.apply(part, h.lr)
      last.run(first, n).copy(old.run(first, n))
      io.block += 1
      return .go(.ask)
    }
  }
}
