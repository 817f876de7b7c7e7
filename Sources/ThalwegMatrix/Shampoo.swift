import Glibc
import ThalwegCore

/// Shampoo: a full matrix of second moments for every axis of a tensor; the gradient is multiplied by its inverse root.
///
///     L_k ← L_k + G_k·G_kᵀ,  or  β₂·L_k + (1 − β₂)·G_k·G_kᵀ,   G_k the gradient unfolded along axis k
///     R_k = (L_k/c)^(−1/e), every `precondition_frequency` steps,   c = 1 − β₂ᵗ with bias_correction, else 1
///     m ← β₁·m + (1 − β₁)·g  (over 1 − β₁ᵗ with bias_correction)
///     u = m multiplied along every axis by R_k;   with grafting u ← u·‖graft(m)‖/‖u‖;   u = graft(m) before the start
///     u ← u + wd·θ  (decoupled_decay);   b ← μ·b + u;   θ ← θ − lr·(b, or u + μ·b with nesterov)
///
/// State    L_k and R_k of every block (kept exactly: the small eigenvalues of L_k, which weigh most, are
///          below the rounding of 16 bits), m (β₁ > 0), b (μ > 0), the second moment of grafting.
/// Differs  eigenvalues that rounding made smaller than the largest times the machine epsilon count as that; an axis
///          over the limit still counts in the order. `block_size` cuts large tensors (off in the original).
/// Source   Gupta, Koren, Singer, 2018, arXiv:1802.09568; grafting, blocks: Shi et al., 2023, arXiv:2309.06497.
struct Shampoo: InBlocks {
  static let method = Method(
    "shampoo", .optimizer,
    "Shampoo: a full matrix of second moments for every axis; the gradient is multiplied by its inverse root.",
    rule: """
      L_k <- L_k + G_k G_k', or beta2*L_k + (1 - beta2)*G_k G_k', G_k the gradient unfolded along axis k
      R_k = (L_k/c)^(-1/exponent), every precondition_frequency steps;  m <- beta1*m + (1 - beta1)*g
      u = m multiplied along every axis by R_k, as long as graft(m) with grafting;  graft(m) before the start
      u <- u + weight_decay*theta;  b <- momentum*b + u;  theta <- theta - lr*(b, or u + momentum*b with nesterov)
      """,
    source: "Gupta, Koren, Singer, 2018, arXiv:1802.09568; Shi et al., 2023, arXiv:2309.06497",
    parameters: [
      .lr(0.1), Parameter.rate("momentum", 0, "rate of the momentum of the update").fixed,
      .flag("nesterov", false, "look ahead along the momentum"),
      Parameter.rate("beta1", 0, "rate of the average of the gradient").fixed,
      .number("beta2", 1, .between(0, 1, lowOpen: true, highOpen: false), "rate of the matrices; 1: sums"),
      .eps(1e-4, "damping of the matrices", .above(0)),
      .choice("eps_at", ["init", "root"], "the matrices start at eps*I, or eps is added to their eigenvalues"),
      .maybe("exponent", .atLeast(1), "root e that divides; none: twice the number of axes"),
      .integer("precondition_frequency", 1, .atLeast(1), "steps between roots"),
      .integer("start_preconditioning_step", 1, .atLeast(1), "first step that is preconditioned", live: false),
      .integer("max_preconditioner_dim", 8192, .atLeast(1), "longer axes have no matrix", live: false),
      .choice(
        "grafting", ["none", "sgd", "adagrad", "adam"], "the update that sets the length of the step", live: false),
      .rate("graft_beta2", 0.999, "rate of adam's second moment"),
      .number("graft_eps", 1e-8, .atLeast(0), "added to the denominator of grafting"),
      .flag("bias_correction", false, "correct the averages for their start at 0"),
      .weightDecay(), .flag("decoupled_decay", true, "decay enters the update, not the gradient"), .blockSize,
      .products,
    ] + Parameter.blocks,
    slots: [
      Slot("statistics", "the matrices L_k, one after the other"), Slot("roots", "their inverse roots R_k"),
      .moment("exp_avg", "average m of the gradient"), .moment("momentum_buffer", "the momentum b"),
      .square("graft_sq", "second moment of grafting"),
    ], needsFinite: true)

  private static func plan(_ h: Hyper, _ shape: Shape) -> Kronecker {
    Kronecker(
      shape.dimensions, longest: h.integer("max_preconditioner_dim"),
      side: h.has("block_size") ? h.integer("block_size") : .max)
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = method.slots
    let plan = plan(h, shape), beta1: Double = h.beta1, momentum: Double = h.momentum
    (list[0].count, list[1].count) = (plan.matrices, plan.matrices)
    let squares = h.is("grafting", "adagrad") || h.is("grafting", "adam")
    return Array(list.prefix(2)) + (beta1 > 0 ? [list[2]] : []) + (momentum > 0 ? [list[3]] : [])
      + (squares ? [list[4]] : [])
  }
  /// With momentum it goes into that.
  private static func takesDecay(_ h: Hyper) -> Bool {
    let momentum: Double = h.momentum
    return h.decoupled_decay && momentum > 0
  }
  static func decay(_ h: Hyper) -> Decay { takesDecay(h) ? .rule : h.decoupled_decay ? .decoupled : .coupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try plan(h, shape).check("shampoo", "max_preconditioner_dim")
  }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    let plan = plan(h, shape)
    return 3 * aligned(plan.largest &* size) &+ aligned(shape.count &* size) &+ plan.space(h, size)
  }

  let h: Hyper
  let t: Int
  let beta1, beta2, momentum, decay: Double
  let averages, moves, first: Bool
  init(_ h: Hyper, _ c: StepContext) {
    (self.h, t, first) = (h, c.t, c.t == 1)
    (beta1, beta2, momentum) = (h.beta1, h.beta2, h.momentum)
    (averages, moves) = (beta1 > 0, momentum > 0)
    decay = Shampoo.takesDecay(h) ? c.weightDecay : 0
  }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let n = w.count, size = MemoryLayout<T>.stride
    let plan = Shampoo.plan(h, w.shape), room = aligned(plan.largest &* size)
    let start = h.integer("start_preconditioning_step")
    let refreshes = t == start || t % max(1, h.integer("precondition_frequency")) == 0
    func buffer(_ k: Int) -> UnsafeMutablePointer<T> { (w.workspace + k &* room).assumingMemoryBound(to: T.self) }
    let (g, graft) = (buffer(0), buffer(3))
    let products = Products<T>(h, w.workspace + 3 * room + aligned(n &* size))
    var (u, other) = (buffer(1), buffer(2))

    // the raw gradient is needed once more when m is there: in v until a block is done
    let m = averages ? w.slots[2] : w.v
    if averages {
      let keep = T(beta1), take = T(1 - beta1)
      for i in 0..<n { m[i] = keep * m[i] + take * w.v[i] }
    }
    let correct = h.bias_correction && averages ? 1 / (1 - power(beta1, t)) : 1
    grafted(w, m, correct, into: graft)

    for b in plan.blocks {
      plan.gather(b, w.v, into: g, size)
      for a in b.axes {
        let L = w.slots[0] + a.matrix
        if first, h.is("eps_at", "init") { for i in 0..<a.length { L[i &* (a.length &+ 1)] = T(h.eps) } }
        try products.gram(g, along: a.lines, into: L, alpha: beta2 < 1 ? 1 - beta2 : 1, beta: beta2)
        if refreshes { try root(L, into: w.slots[1] + a.matrix, a.length, b.dimensions.count) }
      }
      if t < start { continue }
      plan.gather(b, m, into: other, size)
      Flat.scale(other, by: correct, into: u, b.count)
      for a in b.axes {
        try products.multiply(w.slots[1] + a.matrix, u, into: other, along: a.lines)
        swap(&u, &other)
      }
      if !h.is("grafting", "none") {
        plan.gather(b, graft, into: g, size)
        Flat.scale(u, by: Flat.norm(g, b.count) / (Flat.norm(u, b.count) + 1e-16), into: u, b.count)
      }
      plan.scatter(b, u, into: w.v, size)
    }
    if t < start { w.v.update(from: graft, count: n) }
    if decay != 0 { Flat.add(w.w, times: decay, into: w.v, n) }
    if moves {
      let buffer = w.slots[averages ? 3 : 2], mu = T(momentum), ahead = h.nesterov as Bool
      for i in 0..<n {
        buffer[i] = mu * buffer[i] + w.v[i]
        w.v[i] = ahead ? w.v[i] + mu * buffer[i] : buffer[i]
      }
    }
  }

  /// The update whose length grafting takes; it is also the one before the start.
  private func grafted<T: Real>(
    _ w: Whole<T>, _ m: UnsafeMutablePointer<T>, _ correct: Double, into out: UnsafeMutablePointer<T>
  ) {
    let n = w.count
    Flat.scale(m, by: correct, into: out, n)
    let adam = h.is("grafting", "adam")
    guard adam || h.is("grafting", "adagrad"), let sums = w.slots.last else { return }
    let rate: Double = h.graft_beta2, eps = T(h.graft_eps)
    let keep = T(adam ? rate : 1), take = T(adam ? 1 - rate : 1), scale = T(adam ? 1 / (1 - power(rate, t)) : 1)
    for i in 0..<n {
      sums[i] = keep * sums[i] + take * w.v[i] * w.v[i]
      let d = (scale * sums[i]).squareRoot() + eps
      out[i] = out[i] == 0 ? 0 : out[i] / d
    }
  }

  private func root<T: Real>(_ L: UnsafePointer<T>, into r: UnsafeMutablePointer<T>, _ n: Int, _ order: Int)
    throws(Failure)
  {
    let eigen = try LinearAlgebra.Eigen(L, n)
    let correct = h.bias_correction && beta2 < 1 ? 1 / (1 - power(beta2, t)) : 1
    let damping: Double = h.is("eps_at", "root") ? h.eps : 0
    let e: Double = h.has("exponent") ? h.exponent : 2 * Double(order)
    let lowest = min(eigen.values.last ?? 0, 0) * correct
    let floor = (eigen.values.first ?? 0) * correct * Double(T.ulpOfOne)
    try eigen.compose(r) { value in
      let x = max(value * correct - lowest + damping, floor)
      return x > 0 ? pow(x, -1 / e) : 0
    }
  }
}
