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
  func entries(_ b: Int) -> [Int] { Array(first(b)..<(first(b) + length(b))) }
  func number(of entry: Int) -> Int { entry / size }
}

extension Vector {
  /// A run of entries of a vector.
  fileprivate func run(_ first: Int, _ length: Int) -> Vector { Vector(name, offset + first, p + first, [length]) }
}

/// Block coordinate descent with greedy rules: the block that promises the largest decrease is updated.
///
///     score of block b: gs |g_b|²;  gsl |g_b|²/L_b;  gsd Σ g_i²/L_i;  gsq g_bᵀ·H_bb⁻¹·g_b;  cyclic, random: none
///     update: lipschitz x_b ← prox(x_b − g_b/L_b, 1/L_b);  matrix x_b ← x_b − H_bb⁻¹·g_b;
///       newton x_b ← x_b − t·H_bb⁻¹·g_b with the Hessian at x, t halved from 1 until f falls by 1e-4·t·g_bᵀ·H_bb⁻¹·g_b
///     blocks=variable: the `block` entries of largest g_i² (gs), g_i²/L_i (gsl), g_i²/Σ_j |H_ij| (gsd); gsq: those of
///       d after ten steps d ← the `block` largest of d − (g + H·d)/λ_max
///     backtrack: L_b doubles until f(x + d) ≤ f(x) + ⟨g, d⟩ + L_b/2·|d|², d the step
///
/// Of equal scores the lower block wins. L_i are `lipschitz`, or the diagonal of `hessian` (a bound of the Hessian), or
/// with `backtrack` 1 at first; L_b are `block_lipschitz`, or the sums of the L_i of a block. With a regularizer a
/// greedy block is scored by what its prox step takes off the model, −⟨g_b, d_b⟩ − L_b/2·|d_b|² − R(x_b + d_b) +
/// R(x_b).
/// Random blocks come from uniform draws: `uniforms` of the host, or those of `seed`.
/// Errors   TW_ERROR_NEEDS: no Lipschitz constants where they count, or gsq, matrix or variable gsd without hessian.
/// Ends     converged: |g| ≤ tol, or with a regularizer Σ L_b·|d_b|² ≤ tol² over all blocks (variable: entries);
///          max_iter; line_search_failed: 60 halvings, or L_b, in vain.
/// Differs  the authors' code scores by L1 norms of blocks. Message passing on trees is not here: H_bb is factorised.
/// Source   Nutini, Laradji, Schmidt, 2022, arXiv:1712.08859.
struct BCD: Driver {
  static let method = Method.solver(
    "bcd", "Block coordinate descent with greedy rules.",
    rule: """
      gs |g_b|^2;  gsl |g_b|^2/L_b;  gsd sum g_i^2/L_i;  gsq g_b' H_bb^-1 g_b: the block of the largest score
      lipschitz x_b <- prox(x_b - g_b/L_b, 1/L_b);  matrix x_b <- x_b - H_bb^-1 g_b;  newton: with a line search
      blocks=variable: the entries of the largest scores;  backtrack: L_b doubles until the model bounds f
      """,
    source: "Nutini, Laradji, Schmidt, 2022, arXiv:1712.08859",
    parameters: [
      .choice("rule", ["gsl", "gs", "gsd", "gsq", "cyclic", "random"], "which block"),
      .choice("update", ["lipschitz", "matrix", "newton"], "what is done with it"), Blocks.size,
      .choice("blocks", ["partition", "variable"], "runs of entries, or the best entries of each step"),
      .flag("backtrack", false, "lipschitz: double L_b until the model bounds the function"),
      .integer("max_iter", 100, .atLeast(0), "most updates"),
      .number("tol", 1e-8, .atLeast(0), "gradient that ends it"), .integer("seed", 0, .atLeast(0), "of random blocks"),
      HeldProx.parameter("regularizer", "of the proximal update, separable"),
    ],
    inputs: [
      .constant("x0", "n", "where it starts"), .constant("lipschitz", "n", "L_i", optional: true),
      .constant("block_lipschitz", "blocks", "L_b", optional: true),
      .constant("hessian", "n, n", "a bound of the Hessian", optional: true),
      .constant("uniforms", "steps", "draws in [0, 1) of random blocks, one a step", optional: true),
      .result("x", "n", "the point"), .result("iterations", "", "updates"),
      .result("residual", "", "norm of the gradient, or of all prox steps"),
    ],
    asks: [
      RequestKind(
        "gradient", "the gradient", given: [.given("point", "n", "where")],
        wanted: [.wanted("gradient", "n", "gradient there")]),
      RequestKind(
        "value", "the value of the smooth part", given: [.given("point", "n", "where")],
        wanted: [.wanted("value", "", "value there")], takesNonfinite: true),
      RequestKind(
        "second", "the Hessian", given: [.given("point", "n", "where")],
        wanted: [.wanted("second", "n, n", "Hessian there")]),
    ],
    kept: [
      .kept("g", "n", "gradient"), .kept("bounds", "n", "L_i"), .kept("chosen", "n", "1 in the block"),
      .kept("move", "n", "its step"), .kept("trial", "n", "trial point"), .kept("h", "n, n", "Hessian at x"),
      .kept("f", "", "value at x"), .kept("scale", "", "step of the line search"),
      .kept("top", "", "largest eigenvalue of hessian"),
    ],
    validate: { (h) throws(Failure) in
      guard !h.given("regularizer") || (h.is("update", "lipschitz") && !h.is("rule", "gsq")) else {
        throw Failure(Status.range, "bcd: a `regularizer` goes with update=lipschitz, and not with rule=gsq")
      }
      guard !h.backtrack || h.is("update", "lipschitz") else {
        throw Failure(Status.range, "bcd: `backtrack` goes with update=lipschitz")
      }
      let isGreedy = !h.is("rule", "cyclic") && !h.is("rule", "random")
      guard h.is("blocks", "partition") || isGreedy else {
        throw Failure(Status.range, "bcd: blocks=variable goes with a greedy rule")
      }
    })

  let h: Hyper, prox: HeldProx?
  init(_ h: Hyper) throws(Failure) {
    self.h = h
    prox = try HeldProx(h, "regularizer")
  }
  enum Phase: Int { case start, gradient, hessian, value, trial }

  private var isVariable: Bool { h.is("blocks", "variable") }

  private func check<T: Real>(_ io: DriverIO<T>, _ blocks: Blocks) throws(Failure) {
    let hessian = io.optional("hessian"), given = io.optional("lipschitz"), bounds = try io["bounds"]
    let ofBlocks = h.is("update", "lipschitz") || h.is("rule", "gsl"), ofEntries = h.is("rule", "gsd") && !isVariable
    let isBounded = given != nil || hessian != nil || h.backtrack
    guard isBounded || !ofEntries else { throw Failure(Status.needs, "bcd: rule=gsd needs `lipschitz` or `hessian`") }
    guard isBounded || !ofBlocks || io.optional("block_lipschitz") != nil else {
      throw Failure(Status.needs, "bcd needs `lipschitz`, `block_lipschitz` or `hessian`")
    }
    guard
      hessian != nil
        || !(h.is("update", "matrix") || h.is("rule", "gsq") || (h.is("rule", "gsd") && isVariable))
    else { throw Failure(Status.needs, "bcd: gsq, variable gsd and update=matrix need `hessian`") }
    if let own = io.optional("block_lipschitz") {
      for b in 0..<own.count where !(own.p[b] > 0 && own.p[b].isFinite) {
        throw Failure(
          Status.range, "bcd: `block_lipschitz` must be positive and finite, got \(text(Double(own.p[b]))) at \(b)")
      }
      guard !isVariable, !h.backtrack else {
        throw Failure(Status.range, "bcd: `block_lipschitz` goes with fixed blocks, and without `backtrack`")
      }
      guard own.count == blocks.count else {
        throw Failure(
          Status.shape, "`block_lipschitz` must have \(blocks.count) elements, one a block, got \(own.count)")
      }
    }
    for i in 0..<blocks.n {
      let l = given.map { Double($0.p[i]) } ?? hessian.map { Double($0.p[i * blocks.n + i]) } ?? 1
      guard l > 0, l.isFinite else {
        throw Failure(Status.range, "bcd: Lipschitz constants must be positive and finite, got \(text(l)) at \(i)")
      }
      bounds.p[i] = T(l)
    }
  }
  /// L_b of a block, or of some entries (b nil).
  private func bound<T: Real>(_ io: DriverIO<T>, _ b: Int?, _ entries: [Int]) throws(Failure) -> Double {
    if let b, let l = io.optional("block_lipschitz") { return Double(l.p[b]) }
    let bounds = try io["bounds"]
    return entries.reduce(0.0) { $0 + Double(bounds.p[$1]) }
  }
  /// H_bb⁻¹·g_b.
  private func newton<T: Real>(_ a: Vector<T>, _ entries: [Int], _ g: Vector<T>) throws(Failure) -> [Double] {
    let n = entries.count, size = g.count
    try Memory.ask(16 &* n &* n)
    var block = [Double](repeating: 0, count: n * n)
    for i in 0..<n { for j in 0..<n { block[i * n + j] = Double(a.p[entries[i] * size + entries[j]]) } }
    return try LinearAlgebra.solvePositive(block, entries.map { Double(g.p[$0]) }, n, 1)
  }
  /// The proximal gradient step of some entries with the bound l, and what it takes off the model.
  private func step<T: Real>(_ x: Vector<T>, _ g: Vector<T>, _ entries: [Int], _ l: Double) throws(Failure)
    -> (d: [Double], fall: Double)
  {
    guard let prox else {
      let d = entries.map { -Double(g.p[$0]) / l }
      return (d, d.reduce(0) { $0 + l / 2 * $1 * $1 })
    }
    var old = entries.map { x.p[$0] }, new = entries.map { T(Double(x.p[$0]) - Double(g.p[$0]) / l) }
    let shape = Shape(dimensions: [entries.count])
    var fall = 0.0
    try new.withUnsafeMutableBufferPointer { (p) throws(Failure) in
      guard let p = p.baseAddress else { return }
      try prox.apply(p, shape, 1 / l)
      fall -= try prox.value(p, shape)
    }
    try old.withUnsafeMutableBufferPointer { (p) throws(Failure) in
      if let p = p.baseAddress { fall += try prox.value(p, shape) }
    }
    let d = zip(new, old).map { Double($0) - Double($1) }
    for (k, i) in entries.enumerated() {
      let slope = Double(g.p[i])
      fall -= slope * d[k] + l / 2 * d[k] * d[k]
    }
    return (d, fall)
  }

  /// The entries to update, and the measure that ends the run.
  private func choose<T: Real>(_ io: DriverIO<T>, _ blocks: Blocks) throws(Failure) -> (entries: [Int], size: Double) {
    let x = try io["x"], g = try io["g"], bounds = try io["bounds"], n = blocks.n
    let all = isVariable ? (0..<n).map { [$0] } : (0..<blocks.count).map { blocks.entries($0) }
    var scores = [Double](repeating: 0, count: all.count), size = 0.0
    for (b, entries) in all.enumerated() {
      let square = entries.reduce(0.0) { $0 + Double(g.p[$1]) * Double(g.p[$1]) }
      if prox != nil {
        let l = try bound(io, isVariable ? nil : b, entries), (d, fall) = try step(x, g, entries, l)
        scores[b] = fall
        size += l * d.reduce(0) { $0 + $1 * $1 }
        continue
      }
      size += square
      if h.is("rule", "gs") {
        scores[b] = square
      } else if h.is("rule", "gsl") {
        scores[b] = square / (try bound(io, isVariable ? nil : b, entries))
      } else if h.is("rule", "gsd") {
        scores[b] = entries.reduce(0.0) { sum, i in
          var l = Double(bounds.p[i])
          if isVariable, let row = io.optional("hessian")?.row(i) {
            l = 0
            for j in 0..<n { l += Double(abs(row.p[j])) }
          }
          return sum + Double(g.p[i]) * Double(g.p[i]) / l
        }
      } else if h.is("rule", "gsq"), !isVariable, let a = io.optional("hessian") {
        let d = try newton(a, entries, g)
        scores[b] = d.indices.reduce(0.0) { $0 + d[$1] * Double(g.p[entries[$1]]) }
      }
    }
    if isVariable {
      if h.is("rule", "gsq"), let a = io.optional("hessian") { scores = try sparse(io, a, g, blocks.size) }
      return (largest(scores, blocks.size), size.squareRoot())
    }
    var chosen = 0
    if h.is("rule", "cyclic") {
      chosen = try io.count("iterations") % all.count
    } else if h.is("rule", "random") {
      let k = try io.count("iterations"),
        key = Random.key(seed: UInt64(h.integer("seed")), stream: 0, step: 0, tensor: 0)
      let draw = io.optional("uniforms").map { Double($0.p[min(k, $0.count - 1)]) } ?? Random.uniform(key, UInt64(k))
      guard draw >= 0, draw < 1 else { throw Failure(Status.range, "`uniforms` must be in [0, 1), got \(text(draw))") }
      chosen = min(Int(draw * Double(all.count)), all.count - 1)
    } else {
      for b in all.indices where scores[b] > scores[chosen] { chosen = b }
    }
    return (all[chosen], size.squareRoot())
  }
  /// Where the largest numbers are, the lower index first in a tie, in rising order.
  private func largest(_ x: [Double], _ count: Int) -> [Int] {
    let order = x.indices.sorted { (a: Int, b: Int) -> Bool in x[a] == x[b] ? a < b : x[a] > x[b] }
    return order.prefix(count).sorted()
  }
  /// |d| after ten steps of hard thresholding on ⟨g, d⟩ + ½·dᵀ·H·d.
  private func sparse<T: Real>(_ io: DriverIO<T>, _ a: Vector<T>, _ g: Vector<T>, _ keep: Int) throws(Failure)
    -> [Double]
  {
    let n = g.count, wide = (0..<a.count).map { Double(a.p[$0]) }
    if io.top == 0 { io.top = try LinearAlgebra.Eigen(wide, n).values.first ?? 0 }
    guard io.top > 0 else { throw Failure(Status.numeric, "bcd: `hessian` must be positive definite") }
    var d = [Double](repeating: 0, count: n), moved = d
    for _ in 0..<10 {
      for i in 0..<n {
        var slope = Double(g.p[i])
        for j in 0..<n { slope += wide[i * n + j] * d[j] }
        moved[i] = d[i] - slope / io.top
      }
      d = [Double](repeating: 0, count: n)
      for i in largest(moved.map { abs($0) }, keep) { d[i] = moved[i] }
    }
    return d.map { abs($0) }
  }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], g = try io["g"], chosen = try io["chosen"], move = try io["move"], trial = try io["trial"]
    let blocks = Blocks(h, x.count)
    func entries() -> [Int] { (0..<x.count).filter { chosen.p[$0] == 1 } }
    func put(_ d: [Double], _ at: [Int]) {
      move.fill(0)
      for (k, i) in at.enumerated() { move.p[i] = T(d[k]) }
    }
    switch phase {
    case .start:
      x.copy(try io["x0"])
      try check(io, blocks)
      return h.max_iter == 0 ? .done(.maxIter) : .ask("gradient", [x], [g], then: .gradient)
    case .gradient:
      let (at, size) = try choose(io, blocks)
      io.residual = size
      if size <= h.tol { return .done(.converged) }
      chosen.fill(0)
      for i in at { chosen.p[i] = 1 }
      if h.is("update", "newton") {
        guard let own = io.optional("hessian") else { return .ask("second", [x], [try io["h"]], then: .hessian) }
        try io["h"].copy(own)
        return .go(.hessian)
      }
      if h.is("update", "matrix"), let a = io.optional("hessian") {
        put(try newton(a, at, g), at)
        x.add(move, times: -1)
        return next(io, x, g)
      }
      if h.backtrack { return .ask("value", [x], [], then: .value) }
      let block = isVariable ? nil : blocks.number(of: at[0])
      put(try step(x, g, at, bound(io, block, at)).d, at)
      x.add(move)
      return next(io, x, g)
    case .hessian:
      let at = entries()
      put(try newton(try io["h"], at, g).map { -$0 }, at)
      io.scale = 1
      return .ask("value", [x], [], then: .value)
    case .value:
      io.f = io.value
      guard io.f.isFinite else { return .done(.nonfinite) }
      if h.backtrack { put(try step(x, g, entries(), bound(io, nil, entries())).d, entries()) }
      trial.set(1, x, h.backtrack ? 1 : io.scale, move)
      return .ask("value", [trial], [], then: .trial)
    case .trial:
      let slope = g.dot(move)
      let model = h.backtrack ? slope + (try bound(io, nil, entries())) / 2 * move.dot(move) : 1e-4 * io.scale * slope
      if Trial.lowers(io.f, io.value, T.self, by: model) {
        x.copy(trial)
        return next(io, x, g)
      }
      if h.backtrack {
        let bounds = try io["bounds"], at = entries()
        for i in at { bounds.p[i] *= 2 }
        guard at.allSatisfy({ bounds.p[$0] < T(1e37) }) else { return .done(.lineSearchFailed) }
        put(try step(x, g, at, bound(io, nil, at)).d, at)
        trial.set(1, x, 1, move)
      } else {
        io.scale /= 2
        guard io.scale > 0x1p-60 else { return .done(.lineSearchFailed) }
        trial.set(1, x, io.scale, move)
      }
      return .ask("value", [trial], [], then: .trial)
    }
  }
  private func next<T: Real>(_ io: DriverIO<T>, _ x: Vector<T>, _ g: Vector<T>) -> Verdict<Phase> {
    io.iterations += 1
    let spent =
      h.is("rule", "random") ? io.optional("uniforms").map { io.iterations >= Double($0.count) } ?? false : false
    if io.iterations >= h.max_iter || spent { return .done(.maxIter) }
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
      .result("residual", "", "norm of the prox steps of the last sweep, over lr"),
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
      io.residual = .infinity
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
        io.residual = x.distance(old) / h.lr
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
