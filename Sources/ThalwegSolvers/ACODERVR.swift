import ThalwegCore

/// Accelerated cyclic dual averaging with variance reduction: blocks in turn, the gradient of each from one sample, and
/// one full gradient an epoch.
///
///     A = a = 1/(4L);  z = ∇f(x0);  v = prox(x0 − z, A);  snapshot = y = v
///     epoch: a' = √(K·A·(1 + A·gamma)/(8L)), A' = A + a', μ = ∇f(snapshot);  K cycles, k from 1:
///       x = (A·snapshot + a'·v)/A';  blocks j from the last to the first, a sample t each:
///       at w = (x_1 … x_j, y_{j+1} … y_m), and at w_last, the same of the cycle before:
///       q_j = ∇_j f_t(w) − ∇_j f_t(snapshot) + μ_j + (a_last/a')·(∇_j f_t(x_last) − ∇_j f_t(w_last))
///       z_j += a'·q_j;  v_j = prox(x0_j − z_j/K, A + a'·k/K);  y_j = (A·snapshot_j + a'·v_j)/A'
///     the next snapshot is the mean of the y of the epoch;  a_last is a of the epoch before for k = 1, then a'
///
/// Blocks are runs of `block` entries. The prox is that of A·g, g the `regularizer`, separable, or none; its strong
/// convexity is gamma. Samples come from uniform draws, one a block and cycle: `uniforms` of the host, which end the
/// run with the last whole epoch, or those of `seed`.
/// Ends     max_iter.
/// Differs  nothing from the authors' code, whose first step has the whole gradient, not 1/(4L) of it.
/// Source   Lin, Song, Diakonikolas, 2023, arXiv:2303.16279.
struct ACODERVR: Driver {
  static let method = Method.solver(
    "acoder_vr", "Accelerated cyclic dual averaging with variance reduction.",
    rule: """
      epoch: a' = sqrt(K A (1 + A gamma)/(8 L)), A' = A + a', mu = grad f(snapshot)
      K cycles: x = (A snapshot + a' v)/A'
      q_j = grad_j f_t(w) - grad_j f_t(snapshot) + mu_j + (a_last/a')(grad_j f_t(x_last) - grad_j f_t(w_last))
      z_j += a' q_j;  v_j = prox(x0_j - z_j/K, A + a' k/K);  y_j = (A snapshot_j + a' v_j)/A';  snapshot = mean of y
      """,
    source: "Lin, Song, Diakonikolas, 2023, arXiv:2303.16279",
    parameters: [
      .number("lipschitz", nil, .above(0), "L"), .integer("samples", nil, .atLeast(1), "number of samples"),
      .number("gamma", 0, .atLeast(0), "strong convexity of g"),
      .maybeInteger("cycles", .atLeast(1), "K, cycles of an epoch; none: as many as samples"),
      .integer("block", 1, .atLeast(1), "entries of a block"), .integer("max_iter", 100, .atLeast(0), "epochs"),
      .integer("seed", 0, .atLeast(0), "of the draws"), HeldProx.parameter("regularizer", "g, separable"),
    ],
    inputs: [
      .constant("x0", "n", "where it starts"),
      .constant("uniforms", "draws", "in [0, 1), one a block and cycle; from `seed` when left out", optional: true),
      .result("x", "n", "the last snapshot"), .result("iterations", "", "epochs"), .result("weight", "", "A"),
    ],
    asks: [
      RequestKind(
        "gradient", "the gradient of f", given: [.given("point", "n", "where")],
        wanted: [.wanted("gradient", "n", "gradient there")]),
      RequestKind(
        "sample_gradients", "some entries of the gradient of one sample, at four points",
        given: [
          .given("point", "n", "w"), .given("snapshot", "n", "snapshot"), .given("x_last", "n", "x before"),
          .given("point_last", "n", "w before"), .given("sample", "", "which sample, from 0"),
          .given("first", "", "first entry"), .given("length", "", "how many"),
        ],
        wanted: [
          .wanted("at_point", "n", "only those entries count"), .wanted("at_snapshot", "n", "as before"),
          .wanted("at_x_last", "n", "as before"), .wanted("at_point_last", "n", "as before"),
        ]),
    ],
    kept: [
      .kept("snap", "n", "snapshot"), .kept("mu", "n", "gradient there"), .kept("y", "n", "y"), .kept("v", "n", "v"),
      .kept("z", "n", "z"), .kept("sum", "n", "sum of the y of the epoch"), .kept("here", "n", "x"),
      .kept("x_before", "n", "x before"), .kept("y_before", "n", "y before"), .kept("w", "n", "w"),
      .kept("w_before", "n", "w before"), .kept("g1", "n", "gradient"), .kept("g2", "n", "gradient"),
      .kept("g3", "n", "gradient"), .kept("g4", "n", "gradient"), .kept("a", "", "step weight"),
      .kept("a_last", "", "step weight before"), .kept("cycle", "", "cycles of the epoch so far"),
      .kept("position", "", "end of the block"), .kept("drawn", "", "draws so far"),
    ])

  let h: Hyper, prox: HeldProx?, cycles: Int
  init(_ h: Hyper) throws(Failure) {
    self.h = h
    prox = try HeldProx(h, "regularizer")
    cycles = h.has("cycles") ? h.integer("cycles") : h.integer("samples")
  }
  enum Phase: Int { case start, begun, epoch, cycles, cycle, block, answered }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x0 = try io["x0"], snap = try io["snap"], y = try io["y"], v = try io["v"], z = try io["z"], n = x0.count
    let x = try io["here"], lastX = try io["x_before"], lastY = try io["y_before"], w = try io["w"]
    let lastW = try io["w_before"], mu = try io["mu"], sum = try io["sum"], size = min(h.integer("block"), n)
    let k = Double(cycles), gradients = try [io["g1"], io["g2"], io["g3"], io["g4"]]
    switch phase {
    case .start:
      for each in [try io["x"], x, lastX, lastY, v] { each.copy(x0) }
      return h.max_iter == 0 ? .done(.maxIter) : .ask("gradient", [x], [mu], then: .begun)
    case .begun:
      (io.a, io.weight) = (1 / (4 * h.lipschitz), 1 / (4 * h.lipschitz))
      z.copy(mu)
      v.set(1, x0, -1, z)
      try prox?.apply(v, io.weight)
      for each in [snap, y, try io["x"]] { each.copy(v) }
      return .go(.epoch)
    case .epoch:
      let draws = cycles.multipliedReportingOverflow(by: (n + size - 1) / size)
      let left = io.optional("uniforms").map { Double($0.count) - io.drawn } ?? .infinity
      if io.iterations >= h.max_iter || draws.overflow || left < Double(draws.partialValue) { return .done(.maxIter) }
      io.a_last = io.a
      io.a = (k * io.weight * (1 + io.weight * h.gamma) / (8 * h.lipschitz)).squareRoot()
      io.cycle = 0
      sum.fill(0)
      return .ask("gradient", [snap], [mu], then: .cycles)
    case .cycles: return .go(.cycle)
    case .cycle:
      if io.cycle >= k {
        snap.set(1 / k, sum)
        try io["x"].copy(snap)
        io.weight += io.a
        io.iterations += 1
        return .go(.epoch)
      }
      let all = io.weight + io.a
      lastX.copy(x)
      lastY.copy(y)
      x.set(io.weight / all, snap, io.a / all, v)
      w.copy(x)
      lastW.copy(lastX)
      io.position = Double(n)
      return .go(.block)
    case .block:
      let end = try io.count("position", n)
      if end == 0 {
        sum.add(y)
        io.cycle += 1
        return .go(.cycle)
      }
      let first = (end - 1) / size * size, at = try io.count("drawn"), samples = h.integer("samples")
      let key = Random.key(seed: UInt64(h.integer("seed")), stream: 0, step: 0, tensor: 0)
      let uniforms = io.optional("uniforms")
      let draw = uniforms.map { Double($0.p[min(at, $0.count - 1)]) } ?? Random.uniform(key, UInt64(at))
      guard draw >= 0, draw < 1 else { throw Failure(Status.range, "`uniforms` must be in [0, 1), got \(text(draw))") }
      io.drawn += 1
      (io.first, io.length) = (Double(first), Double(end - first))
      io.sample = Double(min(Int(draw * Double(samples)), samples - 1))
      return .ask("sample_gradients", [w, snap, lastX, lastW], gradients, then: .answered)
    case .answered:
      let first = try io.count("first", n - 1), end = first + (try io.count("length", n - first))
      let back = (io.cycle == 0 ? io.a_last : io.a) / io.a, all = io.weight + io.a
      for i in first..<end {
        let g = gradients.map { Double($0.p[i]) }
        z.p[i] += T(io.a * (g[0] - g[1] + Double(mu.p[i]) + back * (g[2] - g[3])))
        v.p[i] = T(Double(x0.p[i]) - Double(z.p[i]) / k)
      }
      try prox?.apply(Vector(v.name, first, v.p + first, [end - first]), io.weight + io.a * (io.cycle + 1) / k)
      for i in first..<end {
        y.p[i] = T((io.weight * Double(snap.p[i]) + io.a * Double(v.p[i])) / all)
        // the blocks before meet the new y, and beside it the one of the cycle before
        (w.p[i], lastW.p[i]) = (y.p[i], lastY.p[i])
      }
      io.position = Double(first)
      return .go(.block)
    }
  }
}
