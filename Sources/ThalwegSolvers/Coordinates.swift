import Glibc
import ThalwegCore

/// Randomised coordinate descent.
///
///     i with probability proportional to L_iᵞ;  x_i ← x_i − g_i/L_i
///
/// The coordinate of step k comes from a uniform draw: `uniforms` of the host, or those of `seed`.
/// Errors   TW_ERROR_RANGE: a Lipschitz constant that is not positive.
/// Ends     max_iter.
/// Source   Nesterov, 2012.
struct RCD: Driver {
  static let method = Method.solver(
    "rcd", "Randomised coordinate descent.", rule: "i with P(i) ~ L_i^gamma;  x_i <- x_i - g_i/L_i",
    source: "Nesterov, 2012",
    parameters: [
      .number("gamma", 0, .within(0, 1), "sampling power"), .integer("max_iter", 1000, .atLeast(0), "steps"),
      .integer("seed", 0, .atLeast(0), "of the draws"),
    ],
    inputs: [
      .constant("x0", "n", "where it starts"), .constant("lipschitz", "n", "Lipschitz constant of each coordinate"),
      .constant("uniforms", "steps", "draws in [0, 1), one a step; from `seed` when left out", optional: true),
      .result("x", "n", "the point"), .result("iterations", "", "steps"),
      .result("residual", "", "largest entry of the gradient, each as it was last seen; infinite until all were"),
    ],
    asks: [
      RequestKind(
        "coordinate_gradient", "one entry of the gradient",
        given: [.given("point", "n", "where"), .given("index", "", "which entry, from 0")],
        wanted: [.wanted("slope", "", "the entry")])
    ],
    kept: [
      .kept("sums", "n", "running sums of the weights"), .kept("slopes", "n", "entries of the gradient, last seen"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], l = try io["lipschitz"], sums = try io["sums"], n = x.count
    let slopes = try io["slopes"]
    if phase == .start {
      x.copy(try io["x0"])
      slopes.fill(.infinity)
      io.residual = n == 0 ? 0 : .infinity
      var sum = 0.0
      for i in 0..<n {
        guard l.p[i] > 0, l.p[i] < .infinity else {
          throw Failure(Status.range, "`lipschitz` must be positive and finite, got \(l.p[i]) at element \(i)")
        }
        sum += pow(Double(l.p[i]), h.gamma)
        sums.p[i] = T(sum)
      }
    } else {
      let i = try io.count("index", n - 1)
      x.p[i] -= T(io.slope / Double(l.p[i]))
      slopes.p[i] = T(io.slope)
      io.iterations += 1
    }
    let k = try io.count("iterations"), uniforms = io.optional("uniforms")
    let ends = io.iterations >= h.max_iter || (uniforms.map { k >= $0.count } ?? false)
    // once a sweep, and at the end: a step costs O(log n)
    if ends || (k > 0 && k % max(1, n) == 0) { io.residual = (0..<n).reduce(0) { max($0, abs(Double(slopes.p[$1]))) } }
    if ends { return .done(.maxIter) }
    let key = Random.key(seed: UInt64(h.integer("seed")), stream: 0, step: 0, tensor: 0)
    let draw = uniforms.map { Double($0.p[k]) } ?? Random.uniform(key, UInt64(k))
    let wanted = draw * Double(sums.p[n - 1])
    var low = 0, high = n - 1
    while low < high {
      let middle = (low + high) / 2
      if Double(sums.p[middle]) > wanted { high = middle } else { low = middle + 1 }
    }
    io.index = Double(low)
    return .ask("coordinate_gradient", [x], [], then: .step)
  }
}

/// Accelerated cyclic dual averaging with extrapolation: one sweep over blocks a step, for smooth functions with a
/// prox.
///
///     r = 0.4·(1 + A·gamma)/L;  a = (r + √(r² + 4·r·A))/2;  A' = A + a;  x = (A·y + a·v)/A'
///     blocks j from the last to the first, at w = (x_1 … x_j, y'_{j+1} … y'_m):  p_j = ∇_j f(w)
///     q_j = p_j + (a_prev/a)·(∇_j f(x_prev) − p_prev,j);  z_j += a·q_j
///     v_j = prox_{A'·g_j}(x0_j − z_j);  y'_j = (A·y_j + a·v_j)/A'
///
/// Blocks are runs of `block` entries. g is `regularizer`, separable, or none; its strong convexity is gamma. y is the
/// answer.
/// Ends     max_iter.
/// Differs  nothing; `acoder_vr` is the variance-reduced form.
/// Source   Lin, Song, Diakonikolas, 2023, arXiv:2303.16279.
struct ACODER: Driver {
  static let method = Method.solver(
    "acoder", "Accelerated cyclic dual averaging with extrapolation.",
    rule: """
      r = 0.4 (1 + A gamma)/L;  a = (r + sqrt(r^2 + 4 r A))/2;  A' = A + a;  x = (A y + a v)/A'
      q_j = p_j + (a_prev/a)(grad_j f(x_prev) - p_prev_j);  z_j += a q_j
      v_j = prox(x0_j - z_j, A');  y'_j = (A y_j + a v_j)/A'
      """,
    source: "Lin, Song, Diakonikolas, 2023, arXiv:2303.16279",
    parameters: [
      .number("lipschitz", nil, .above(0), "L"), .number("gamma", 0, .atLeast(0), "strong convexity of g"),
      .integer("block", 1, .atLeast(1), "entries of a block"), .integer("max_iter", 100, .atLeast(0), "sweeps"),
      HeldProx.parameter("regularizer", "g, separable"),
    ],
    inputs: [
      .constant("x0", "n", "where it starts"), .result("x", "n", "the answer, y"),
      .result("iterations", "", "sweeps"), .result("weight", "", "A"),
      .result("residual", "", "L*|x - prox(x - grad f(x)/L, 1/L)| at the x of the last sweep"),
    ],
    asks: [
      RequestKind(
        "gradient", "the gradient of f", given: [.given("point", "n", "where")],
        wanted: [.wanted("gradient", "n", "gradient there")]),
      RequestKind(
        "block_gradient", "some entries of the gradient",
        given: [
          .given("point", "n", "where"), .given("first", "", "first entry"), .given("length", "", "how many"),
        ], wanted: [.wanted("gradient", "n", "gradient; only those entries count")]),
    ],
    kept: [
      .kept("y", "n", "y"), .kept("v", "n", "v"), .kept("z", "n", "z"),
      .kept("point", "n", "x, then y' block by block"),
      .kept("g", "n", "block gradients of this sweep"), .kept("p", "n", "block gradients of the last"),
      .kept("at_x", "n", "gradient at the last x"), .kept("answer", "n", "gradient"), .kept("a", "", "step weight"),
      .kept("a_last", "", "step weight before"), .kept("position", "", "end of the block"),
    ])

  let h: Hyper, prox: HeldProx?
  init(_ h: Hyper) throws(Failure) {
    self.h = h
    prox = try HeldProx(h, "regularizer")
  }

  enum Phase: Int { case start, begun, step, atX, block, answered }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let y = try io["y"], v = try io["v"], z = try io["z"], w = try io["point"], g = try io["g"], p = try io["p"]
    let atX = try io["at_x"], answer = try io["answer"], x0 = try io["x0"], n = y.count
    switch phase {
    case .start:
      for each in [y, v, try io["x"], w] { each.copy(x0) }
      io.residual = .infinity
      return h.max_iter == 0 ? .done(.maxIter) : .ask("gradient", [w], [answer], then: .begun)
    case .begun:
      p.copy(answer)
      atX.copy(answer)
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      let r = 0.4 * (1 + io.weight * h.gamma) / h.lipschitz
      io.a = (r + (r * r + 4 * r * io.weight).squareRoot()) / 2
      let sum = io.weight + io.a
      w.set(io.weight / sum, y, io.a / sum, v)
      io.position = Double(n)
      // the next sweep extrapolates from the gradient at this x
      return .ask("gradient", [w], [answer], then: .atX)
    case .atX:
      io.residual = try prox.mapping(w, answer, h.lipschitz, room: g)
      g.copy(answer)
      return .go(.block)
    case .block:
      let end = try io.count("position", n), size = min(h.integer("block"), n)
      if end == 0 {
        try io["x"].copy(w)
        y.copy(w)
        io.weight += io.a
        io.a_last = io.a
        io.iterations += 1
        return .go(.step)
      }
      // blocks are counted from the front: the last one may be shorter
      let first = (end - 1) / size * size
      (io.first, io.length) = (Double(first), Double(end - first))
      return .ask("block_gradient", [w], [answer], then: .answered)
    case .answered:
      let first = try io.count("first", n - 1), end = first + (try io.count("length", n - first))
      let back = io.iterations > 0 ? io.a_last / io.a : 0, sum = io.weight + io.a
      for i in first..<end {
        let fresh = Double(answer.p[i]), q = fresh + back * (Double(atX.p[i]) - Double(p.p[i]))
        z.p[i] += T(io.a * q)
        v.p[i] = x0.p[i] - z.p[i]
        // what the next sweep compares with: the gradient at this x, and the one just taken
        (atX.p[i], p.p[i]) = (g.p[i], answer.p[i])
      }
      try prox?.apply(Vector(v.name, first, v.p + first, [end - first]), sum)
      for i in first..<end { w.p[i] = T((io.weight * Double(y.p[i]) + io.a * Double(v.p[i])) / sum) }
      io.position = Double(first)
      return .go(.block)
    }
  }
}

extension HeldProx? {
  /// L·‖x − prox(x − g/L, 1/L)‖, the length of the gradient mapping: 0 at a minimiser alone. Writes `room`.
  fileprivate func mapping<T: Real>(_ x: Vector<T>, _ g: Vector<T>, _ lipschitz: Double, room: Vector<T>)
    throws(Failure) -> Double
  {
    room.set(1, x, -1 / lipschitz, g)
    try self?.apply(room, 1 / lipschitz)
    return lipschitz * x.distance(room)
  }
}

/// The variance-reduced form of `acoder`: epochs with one full gradient, and cycles of single samples.
///
///     A = a = 1/(4L);  z = ∇f(x0);  v = prox(x0 − z, A);  s = y = v;  x = x0
///     epoch:  a' = √(K·A·(1 + A·gamma)/(8L));  A' = A + a';  μ = ∇f(s)
///     K cycles, k from 1:  x = (A·s + a'·v)/A';  blocks j from the last to the first, each with a sample t of its own:
///       w = (x_1 … x_j, y_{j+1} … y_m), w_prev the same of the x and y of the cycle before
///       q_j = ∇_j f_t(w) − ∇_j f_t(s) + μ_j + (b/a')·(∇_j f_t(x_prev) − ∇_j f_t(w_prev)),  b = a where k = 1, else a'
///       z_j += a'·q_j;  v_j = prox(x0_j − z_j/K, A + a'·k/K);  y_j = (A·s_j + a'·v_j)/A'
///     then s = the mean of the y of the epoch, A = A', a = a'
///
/// Blocks are runs of `block` entries, g is `regularizer`, separable, or none. K is `inner`, as many as samples unless
/// given. s is the answer. The sample of the draw d, from 0, is ⌊samples·u⌋, u the normal distribution function at the
/// first number of (seed, 0, d, 0).
/// Ends     max_iter epochs; converged where A leaves the numbers.
/// Differs  nothing from the authors' program, whose first z is ∇f(x0) and not A times that; the difference fades as A
///          grows.
/// Source   Lin, Song, Diakonikolas, 2023, arXiv:2303.16279.
struct ACODERVR: Driver {
  static let method = Method.solver(
    "acoder_vr", "Accelerated cyclic dual averaging with variance reduction.",
    rule: """
      a' = sqrt(K A (1 + A gamma)/(8 L));  A' = A + a';  mu = grad f(s);  K times: x = (A s + a' v)/A'
      q_j = g_t(w) - g_t(s) + mu_j + (b/a')(g_t(x_prev) - g_t(w_prev)), b = a at first, then a';  z_j += a' q_j
      v_j = prox(x0_j - z_j/K, A + a' k/K);  y_j = (A s_j + a' v_j)/A';  s = mean y of the epoch
      """,
    source: "Lin, Song, Diakonikolas, 2023, arXiv:2303.16279",
    parameters: [
      .number("lipschitz", nil, .above(0), "L"), .number("gamma", 0, .atLeast(0), "strong convexity of g"),
      .integer("samples", nil, .within(1, 0x1p52), "how many samples there are"),
      .maybeInteger("inner", .atLeast(1), "K, cycles of an epoch; as many as samples unless given"),
      .integer("block", 1, .atLeast(1), "entries of a block"), .integer("max_iter", 100, .atLeast(0), "epochs"),
      Population.seed, HeldProx.parameter("regularizer", "g, separable"),
    ],
    inputs: [
      .constant("x0", "n", "where it starts"), .result("x", "n", "the answer, s"),
      .result("iterations", "", "epochs"), .result("weight", "", "A"),
      .result("residual", "", "L*|s - prox(s - grad f(s)/L, 1/L)| at the s of the last full gradient"),
    ],
    asks: [
      .fullGradient,
      RequestKind(
        "sample_block", "some entries of the gradient of one sample",
        given: [
          .given("point", "n", "where"), .given("index", "", "which sample, from 0"),
          .given("first", "", "first entry"), .given("length", "", "how many"),
        ], wanted: [.wanted("gradient", "n", "gradient; only those entries count")]),
    ],
    kept: [
      .kept("v", "n", "v"), .kept("z", "n", "z"), .kept("snapshot", "n", "s"), .kept("mu", "n", "its gradient"),
      .kept("sum", "n", "sum of the y of the epoch"), .kept("at", "n", "x"), .kept("at_last", "n", "x before"),
      .kept("mixed", "n", "w, at last y"), .kept("mixed_last", "n", "w_prev"), .kept("y_last", "n", "y before"),
      .kept("q", "n", "q"), .kept("answer", "n", "gradient"), .kept("a", "", "step weight"),
      .kept("a_last", "", "that of the epoch before"), .kept("cycle", "", "k"), .kept("draws", "", "samples so far"),
      .kept("position", "", "end of the block"),
    ])

  let h: Hyper, prox: HeldProx?
  init(_ h: Hyper) throws(Failure) {
    self.h = h
    prox = try HeldProx(h, "regularizer")
  }

  enum Phase: Int { case start, begun, epoch, cycle, block, mixed, snapshot, before, last }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x0 = try io["x0"], v = try io["v"], z = try io["z"], s = try io["snapshot"], mu = try io["mu"]
    let x = try io["at"], w = try io["mixed"], lastX = try io["at_last"], lastW = try io["mixed_last"]
    let lastY = try io["y_last"], q = try io["q"], answer = try io["answer"], n = x0.count
    let cycles = h.has("inner") ? h.integer("inner") : h.integer("samples"), K = Double(cycles)
    let A = io.weight, next = A + io.a, back = (io.cycle == 1 ? io.a_last : io.a) / io.a
    /// The block that the requests are about.
    func block() throws(Failure) -> Swift.Range<Int> {
      let first = try io.count("first", n - 1)
      return first..<(first + (try io.count("length", n - first)))
    }
    func ask(_ point: Vector<T>, then: Phase) -> Verdict<Phase> { .ask("sample_block", [point], [answer], then: then) }

    switch phase {
    case .start:
      for each in [try io["x"], x] { each.copy(x0) }
      io.residual = .infinity
      return h.max_iter == 0 ? .done(.maxIter) : .ask("full_gradient", [x0], [mu], then: .begun)
    case .begun:
      z.copy(mu)
      v.set(1, x0, -1, z)
      (io.a, io.weight) = (1 / (4 * h.lipschitz), 1 / (4 * h.lipschitz))
      try prox?.apply(v, io.weight)
      for each in [s, w] { each.copy(v) }
      return .go(.epoch)
    case .epoch:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      io.a_last = io.a
      io.a = (K * A * (1 + A * h.gamma) / (8 * h.lipschitz)).squareRoot()
      if !(A + io.a).isFinite { return .done(.converged) }
      io.cycle = 0
      try io["sum"].fill(0)
      return .ask("full_gradient", [s], [mu], then: .cycle)
    case .cycle:
      if io.cycle == 0 { io.residual = try prox.mapping(s, mu, h.lipschitz, room: q) }
      lastX.copy(x)
      lastY.copy(w)
      lastW.copy(lastX)
      x.set(A / next, s, io.a / next, v)
      w.copy(x)
      io.cycle += 1
      io.position = Double(n)
      return .go(.block)
    case .block:
      let end = try io.count("position", n), size = min(h.integer("block"), n), sum = try io["sum"]
      if end == 0 {
        sum.add(w)
        if io.cycle < K { return .go(.cycle) }
        s.set(1 / K, sum)
        try io["x"].copy(s)
        io.weight = next
        io.iterations += 1
        return .go(.epoch)
      }
      // blocks are counted from the front: the last one may be shorter
      let first = (end - 1) / size * size
      (io.first, io.length) = (Double(first), Double(end - first))
      let u = Random.fraction(seed: UInt64(max(0, h.integer("seed"))), stream: 0, step: try io.count("draws"))
      io.index = min((u * h.samples).rounded(.down), h.samples - 1)
      io.draws += 1
      return ask(w, then: .mixed)
    case .mixed:
      for i in try block() { q.p[i] = answer.p[i] + mu.p[i] }
      return ask(s, then: .snapshot)
    case .snapshot:
      for i in try block() { q.p[i] -= answer.p[i] }
      return ask(lastX, then: .before)
    case .before:
      for i in try block() { q.p[i] += T(back) * answer.p[i] }
      return ask(lastW, then: .last)
    case .last:
      let block = try block()
      for i in block {
        z.p[i] += T(io.a * (Double(q.p[i]) - back * Double(answer.p[i])))
        v.p[i] = x0.p[i] - z.p[i] / T(K)
      }
      let part = Vector(v.name, block.lowerBound, v.p + block.lowerBound, [block.count])
      try prox?.apply(part, A + io.a * io.cycle / K)
      for i in block {
        w.p[i] = T((A * Double(s.p[i]) + io.a * Double(v.p[i])) / next)
        lastW.p[i] = lastY.p[i]
      }
      io.position = Double(block.lowerBound)
      return .go(.block)
    }
  }
}
