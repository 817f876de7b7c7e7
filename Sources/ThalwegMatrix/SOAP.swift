import Glibc
import ThalwegCore

/// SOAP: Adam in the eigenbasis of Shampoo's matrices.
///
///     first step: L_k = (1 − b)·G_k·G_kᵀ,  Q_k its eigenvectors, descending; the parameters stay
///     then, with t from 1:   q = g multiplied along every axis by Q_kᵀ
///     m ← β₁·m + (1 − β₁)·q;   v ← β₂·v + (1 − β₂)·q²;   u = m/(√v + ε), back by Q_k;   u ← u/RMS(u) if asked
///     θ ← (θ − lr·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·u)·(1 − lr·wd)
///     L_k ← b·L_k + (1 − b)·G_k·G_kᵀ;   every `precondition_frequency` steps Q_k ← qr(L_k·Q_k).Q with the columns in
///     descending order of diag(Q_kᵀ·L_k·Q_k);  v is permuted along, m turned into the new basis
///     (with products=bf16 v is at least what m² allows)
///
/// State    L_k (16 bits at least) and Q_k (kept exactly: what is turned must come back) of every block, m and v in the
///          turned space.
/// Differs  where the first L_k is singular the basis of its null space is the one in which diag(1, 2, ...) is diagonal
///          (LAPACK's is left to rounding). Entries of q and m below 4·ulp of their norm are 0: in directions that no
///          gradient has, Adam would divide rounding by rounding. `block_size` cuts large tensors (off in theirs).
/// Source   Vyas et al., 2024, arXiv:2409.11321.
struct SOAP: InBlocks {
  static let method = Method(
    "soap", .optimizer, "SOAP: Adam in the eigenbasis of Shampoo's matrices.",
    rule: """
      first step: L_k = (1 - b)*G_k G_k', Q_k its eigenvectors, descending; theta stays; t counts from the next
      q = g turned by Q_k' on every axis;  m <- beta1*m + (1 - beta1)*q;  v <- beta2*v + (1 - beta2)*q^2
      u = m/(sqrt(v) + eps) turned back;  theta <- (theta - lr*sqrt(1 - beta2^t)/(1 - beta1^t)*u)*(1 - lr*weight_decay)
      L_k <- b*L_k + (1 - b)*G_k G_k';  every precondition_frequency steps Q_k <- qr(L_k Q_k), columns descending
      """,
    source: "Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade, 2024, arXiv:2409.11321",
    parameters: [
      .lr(3e-3), .rate("beta1", 0.95, "rate of the first moment"), .rate("beta2", 0.95, "rate of the second moment"),
      .number(
        "shampoo_beta", -1, .between(-.infinity, 1, lowOpen: true, highOpen: true),
        "rate b of the matrices; below 0: beta2"),
      .eps(1e-8), .weightDecay(0.01, "decoupled weight decay, after the step"),
      .integer("precondition_frequency", 10, .atLeast(1), "steps between new bases"),
      .integer("max_precond_dim", 10_000, .atLeast(1), "longer axes are not turned", live: false),
      .flag("precondition_1d", false, "vectors are turned too", live: false),
      .flag("normalize_grads", false, "the update has an RMS of 1"),
      .flag("correct_bias", true, "bias corrections"), .blockSize, .products,
    ] + Parameter.blocks,
    slots: [
      .half("statistics", "the matrices L_k, one after the other"), Slot("basis", "their eigenvectors Q_k"),
      .moment("exp_avg", "first moment m, turned"), .square("exp_avg_sq", "second moment v, turned"),
    ], needsFinite: true)

  private static func plan(_ h: Hyper, _ shape: Shape) -> Kronecker {
    Kronecker(
      shape.dimensions, longest: shape.ndim < 2 && !h.precondition_1d ? 0 : h.integer("max_precond_dim"),
      side: h.has("block_size") ? h.integer("block_size") : .max)
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = method.slots
    let matrices = plan(h, shape).matrices
    (list[0].count, list[1].count) = (matrices, matrices)
    return list
  }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try plan(h, shape).check("soap", "max_precond_dim")
  }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    let plan = plan(h, shape)
    return 3 * aligned(plan.largest &* size) &+ plan.space(h, size)
  }

  let h: Hyper
  let t: Int
  let beta1, beta2, b, eps, step, decay, keep: Double
  init(_ h: Hyper, _ c: StepContext) {
    (self.h, t) = (h, c.t - 1)
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    let own: Double = h.shampoo_beta
    b = own < 0 ? beta2 : own
    step = h.correct_bias && t > 0 ? (1 - power(beta2, t)).squareRoot() / (1 - power(beta1, t)) : 1
    (decay, keep) = (c.weightDecay, 1 - c.lr * c.weightDecay)
  }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let size = MemoryLayout<T>.stride, plan = SOAP.plan(h, w.shape), room = aligned(plan.largest &* size)
    func buffer(_ k: Int) -> UnsafeMutablePointer<T> { (w.workspace + k &* room).assumingMemoryBound(to: T.self) }
    let g = buffer(0), products = Products<T>(h, w.workspace + 3 * room)
    var (x, y) = (buffer(1), buffer(2))
    let renews = t > 0 && t % max(1, h.integer("precondition_frequency")) == 0

    for block in plan.blocks {
      plan.gather(block, w.v, into: g, size)
      if t == 0 {
        for a in block.axes {
          try products.gram(g, along: a.lines, into: w.slots[0] + a.matrix, alpha: 1 - b)
          try eigenbasis(w.slots[0] + a.matrix, into: w.slots[1] + a.matrix, a.length)
        }
        continue
      }
      let n = block.count, m = w.slots[2] + block.place, v = w.slots[3] + block.place
      func turn(transposed: Bool, by products: Products<T>) throws(Failure) {
        for a in block.axes {
          try products.multiply(w.slots[1] + a.matrix, transposed: transposed, x, into: y, along: a.lines)
          swap(&x, &y)
        }
      }
      x.update(from: g, count: n)
      try turn(transposed: true, by: products)
      Flat.clearRounding(x, n)
      Whole(v: x, w: x, slots: [m, v], shape: Shape(dimensions: [n]), workspace: w.workspace)
        .change(Adapt(beta1: beta1, beta2: beta2, eps: eps), slots: 0..<2)
      try turn(transposed: false, by: products)
      if h.normalize_grads {
        let rms = Flat.norm(x, n) / Double(n).squareRoot()
        Flat.scale(x, by: 1 / (1e-30 + rms), into: x, n)
      }
      plan.scatter(block, x, into: w.v, size)

      for a in block.axes {
        try products.gram(g, along: a.lines, into: w.slots[0] + a.matrix, alpha: 1 - b, beta: b)
      }
      guard renews else { continue }
      let exact = Products<T>(narrow: false, w.workspace)
      x.update(from: m, count: n)
      try turn(transposed: false, by: exact)
      for a in block.axes {
        let order = try powerIteration(w.slots[0] + a.matrix, w.slots[1] + a.matrix, a.length, sorts: true)
        permute(v, a.lines, order, y)
      }
      try turn(transposed: true, by: exact)
      Flat.clearRounding(x, n)
      m.update(from: x, count: n)
      if products.isNarrow { AtLeastSquare(beta1, beta2).raise(v, over: m, n) }
    }
    if t == 0 { return w.v.update(repeating: 0, count: w.count) }
    w.change(ScaleAndDecay(scale: step * keep, decay: decay))
  }

  /// x: the turned gradient, then the turned update; the state is m, v.
  private struct Adapt: ElementOperation {
    let beta1, beta2, eps: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let m = beta1 * s[0] + (1 - beta1) * x, v = beta2 * s[1] + (1 - beta2) * x * x
      (s[0], s[1]) = (m, v)
      x = L.select(L.equal(m, L(0)), L(0), m / (v.squareRoot() + eps))
    }
  }

  /// Entry j of every line becomes entry order[j].
  private func permute<T: Real>(
    _ v: UnsafeMutablePointer<T>, _ lines: Slices, _ order: [Int], _ copy: UnsafeMutablePointer<T>
  ) {
    let (d, inner) = (lines.length, lines.inner)
    copy.update(from: v, count: lines.outer &* d &* inner)
    for o in 0..<lines.outer {
      for j in 0..<d {
        let to = v + (o &* d &+ j) &* inner, from = copy + (o &* d &+ order[j]) &* inner
        for i in 0..<inner { to[i] = from[i] }
      }
    }
  }
}

/// v ← scale·v + decay·w.
struct ScaleAndDecay: ElementOperation {
  let scale, decay: Double
  @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    x = decay == 0 ? scale * x : scale * x + decay * g
  }
}

/// v ← max(v, min(|m|, 2⁻⁷·max|m|)²/c): averages m and v of one sequence and of its squares have m² ≤ c·v,
/// c = (1 − β₁)²/((1 − β₂)·(1 − β₁²/β₂)) (Cauchy and Schwarz). Rounded products leave noise in directions that no
/// gradient has; in a new basis, to which m is turned and v is not, it would be divided by next to nothing.
struct AtLeastSquare: ElementOperation {
  private let share: Double
  private var noise = 0.0
  init(_ beta1: Double, _ beta2: Double) {
    let bound = (1 - beta1) * (1 - beta1) / ((1 - beta2) * (1 - beta1 * beta1 / beta2))
    share = bound > 0 ? max(1 / bound, 0.01) : 0.01
  }
  @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    let size = L.min(g.magnitude, noise)
    x = L.max(x, share * (size * size))
  }
  func raise<T: Real>(_ v: UnsafeMutablePointer<T>, over m: UnsafeMutablePointer<T>, _ n: Int) {
    let all = Whole(v: m, w: m, slots: [], shape: Shape(dimensions: [n]), workspace: UnsafeMutableRawPointer(m))
    var floor = self
    floor.noise = 0x1p-7 * all.sums(LargestValue()).top.largest
    Flat.change(floor, v, m, n, writesG: false)
  }
}
