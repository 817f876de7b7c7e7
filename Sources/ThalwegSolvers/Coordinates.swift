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
    ],
    asks: [
      RequestKind(
        "coordinate_gradient", "one entry of the gradient",
        given: [.given("point", "n", "where"), .given("index", "", "which entry, from 0")],
        wanted: [.wanted("slope", "", "the entry")])
    ], kept: [.kept("sums", "n", "running sums of the weights")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], l = try io["lipschitz"], sums = try io["sums"], n = x.count
    if phase == .start {
      x.copy(try io["x0"])
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
      io.iterations += 1
    }
    let k = try io.count("iterations"), uniforms = io.optional("uniforms")
    if io.iterations >= h.max_iter || (uniforms.map { k >= $0.count } ?? false) { return .done(.maxIter) }
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
/// Differs  the variance-reduced form is `acoder_vr`.
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
