import Glibc
import ThalwegCore

/// KL-Shampoo: the matrices of Shampoo as the covariance that is nearest by the Kullback-Leibler divergence, each
/// estimated with the others whitened.
///
///     first step: S_k = (1 − b)·G_k·G_kᵀ·d_k/d,  Q_k its eigenvectors, descending,  r_k = 1/√init_factor; θ stays
///     m ← β₁·m + (1 − β₁)·g;   u = m turned by Q_kᵀ on every axis, times R/(1 + R·ε) with R = ⊗ r_k, turned back
///     with the old Q, r, for every axis: h = g turned by Q_jᵀ and times r_j on all axes j ≠ k
///         S_k ← b·S_k + (1 − b)·H_k·H_kᵀ·d_k/d;   λ_k ← b·λ_k + (1 − b)·diag(Q_kᵀ·H_k·H_kᵀ·Q_k)·d_k/d
///         r_k = min(1/√λ_k, max(10, min(d_k, max_root)))
///     every `precondition_frequency` steps Q_k ← qr(S_k·Q_k).Q, where r_k stays with its column
///     θ ← (θ − lr·u)·(1 − lr·wd),   u over its RMS with normalize_grads
///
/// State    m; of every axis S_k, Q_k, r_k. Axes of size 1 are left out.
/// Differs  all axes take the old r of the others (the authors' prototype mixes new ones in from the third axis on);
///          where the first S_k is singular the basis of its null space is the one in which diag(1, 2, ...) is
///          diagonal. `block_size` cuts large tensors (off in the original).
/// Source   Lin, Lowe, Dangel, Eschenhagen, Xu, Grosse, 2025, arXiv:2509.03378.
struct KLShampoo: WholeRule {
  static let method = Method(
    "kl_shampoo", .optimizer,
    "KL-Shampoo: Shampoo whose matrices are each estimated with the other axes whitened.",
    rule: """
      first step: S_k = (1 - b)*G_k G_k'*d_k/d, Q_k its eigenvectors, r_k = 1/sqrt(init_factor); theta stays
      m <- beta1*m + (1 - beta1)*g;  u = m turned by Q', times R/(1 + R*eps), R the product of the r_k, turned back
      H = g turned and times r on the other axes;  S_k <- b*S_k + (1 - b)*H_k H_k'*d_k/d
      lambda_k <- b*lambda_k + (1 - b)*diag(Q_k' H_k H_k' Q_k)*d_k/d;  r_k = 1/sqrt(lambda_k), at most the cap
      every precondition_frequency steps Q_k <- qr(S_k Q_k);  theta <- (theta - lr*u)*(1 - lr*weight_decay)
      """,
    source: "Lin, Lowe, Dangel, Eschenhagen, Xu, Grosse, 2025, arXiv:2509.03378",
    parameters: klParameters(.eps(1e-8, "damping of the joint root")),
    slots: [.moment("exp_avg", "average m of the gradient")] + klSlots, needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { Array(method.slots.prefix(1)) + KLFactors.slots(h, shape) }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try KLFactors.accepts(h, shape, "kl_shampoo") }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { KLFactors.workspace(h, shape, size) }

  let factors: KLFactors
  let beta1, eps: Double
  init(_ h: Hyper, _ c: StepContext) { (factors, beta1, eps) = (KLFactors(h, c), h.beta1, h.eps) }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    try factors.apply(w, firstSlot: 1) { (block, turning) throws(Failure) in
      let n = block.count, m = w.slots[0] + block.place, keep = T(beta1), take = T(1 - beta1)
      for i in 0..<n {
        m[i] = keep * m[i] + take * turning.g[i]
        turning.x[i] = m[i]
      }
      try turning.turn(transposed: true)
      let roots = turning.y, damping = T(eps)
      for i in 0..<n { roots[i] = 1 }
      for a in block.axes { turning.scale(roots, a) }
      for i in 0..<n { turning.x[i] *= roots[i] / (1 + roots[i] * damping) }
      try turning.turn(transposed: false)
    } renewed: { (_, _, renew) throws(Failure) in
      try renew()
    }
  }
}

/// KL-SOAP: Adam in the eigenbasis of KL-Shampoo's matrices.
///
///     Q_k, S_k, r_k as in KL-Shampoo; the first step leaves θ
///     q = g turned by Q_kᵀ on every axis;   m ← β₁·m + (1 − β₁)·q;   v ← β₂·v + (1 − β₂)·q²
///     u = m/(√v + ε) turned back;   θ ← (θ − lr·u)·(1 − lr·wd)
///     at a new basis m is turned along; v stays
///
/// State    m and v in the turned space; of every axis S_k, Q_k, r_k.
/// Differs  as KL-Shampoo. What is rounding in q and m is 0, as in SOAP. No bias corrections, as in the prototype.
/// Source   Lin, Lowe, Dangel, Eschenhagen, Xu, Grosse, 2025, arXiv:2509.03378.
struct KLSOAP: WholeRule {
  static let method = Method(
    "kl_soap", .optimizer, "KL-SOAP: Adam in the eigenbasis of KL-Shampoo's matrices.",
    rule: """
      Q_k, S_k, r_k as in kl_shampoo; the first step leaves theta
      q = g turned by Q_k' on every axis;  m <- beta1*m + (1 - beta1)*q;  v <- beta2*v + (1 - beta2)*q^2
      u = m/(sqrt(v) + eps) turned back;  theta <- (theta - lr*u)*(1 - lr*weight_decay);  a new basis turns m along
      """,
    source: "Lin, Lowe, Dangel, Eschenhagen, Xu, Grosse, 2025, arXiv:2509.03378",
    parameters: klParameters(.eps(1e-8)),
    slots: [.moment("exp_avg", "first moment m, turned"), .square("exp_avg_sq", "second moment v, turned")] + klSlots,
    needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { Array(method.slots.prefix(2)) + KLFactors.slots(h, shape) }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try KLFactors.accepts(h, shape, "kl_soap") }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { KLFactors.workspace(h, shape, size) }

  let factors: KLFactors
  let beta1, beta2, eps: Double
  init(_ h: Hyper, _ c: StepContext) {
    (factors, beta1, beta2, eps) = (KLFactors(h, c), h.beta1, h.beta2, h.eps)
  }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    try factors.apply(w, firstSlot: 2) { (block, turning) throws(Failure) in
      let n = block.count, m = w.slots[0] + block.place, v = w.slots[1] + block.place, x = turning.x
      let (k1, t1, k2, t2, e) = (T(beta1), T(1 - beta1), T(beta2), T(1 - beta2), T(eps))
      x.update(from: turning.g, count: n)
      try turning.turn(transposed: true)
      Flat.clearRounding(turning.x, n)
      let q = turning.x
      for i in 0..<n {
        m[i] = k1 * m[i] + t1 * q[i]
        v[i] = k2 * v[i] + t2 * q[i] * q[i]
        q[i] = m[i] == 0 ? 0 : m[i] / (v[i].squareRoot() + e)
      }
      try turning.turn(transposed: false)
    } renewed: { (block, turning, renew) throws(Failure) in
      let m = w.slots[0] + block.place
      turning.x.update(from: m, count: block.count)
      try turning.turn(transposed: false, exactly: true)
      try renew()
      try turning.turn(transposed: true, exactly: true)
      Flat.clearRounding(turning.x, block.count)
      m.update(from: turning.x, count: block.count)
      if turning.products.isNarrow {
        AtLeastSquare(beta1, beta2).raise(w.slots[1] + block.place, over: m, block.count)
      }
    }
  }
}

private func klParameters(_ eps: Parameter) -> [Parameter] {
  [
    .lr(1e-4), .rate("beta1", 0.9, "rate of the first moment"),
    .rate("beta2", 0.98, "rate of the second moment, and of the matrices where shampoo_beta is below 0"),
    .number(
      "shampoo_beta", -1, .between(-.infinity, 1, lowOpen: true, highOpen: true),
      "rate b of the matrices; below 0: beta2"),
    eps, .weightDecay(0.01, "decoupled weight decay, after the step"),
    .integer("precondition_frequency", 10, .atLeast(1), "steps between new bases"),
    .flag("normalize_grads", false, "the update has an RMS of 1"),
    .number("init_factor", 0.1, .above(0), "first eigenvalues").fixed,
    .number(
      "max_root", 4000, .above(0), "cap of the roots r: max(10, min(d_k, max_root)); none: no cap", optional: true),
    .blockSize, .products,
  ]
}
private let klSlots = [
  .half("statistics", "the matrices S_k, one after the other"), Slot("basis", "their eigenvectors Q_k"),
  Slot("roots", "one over the roots of their eigenvalues, r_k"),
]

/// What both keep of a tensor: S, Q and r of every axis of every block.
struct KLFactors {
  let h: Hyper
  let t: Int
  let b, decay, keep: Double
  init(_ h: Hyper, _ c: StepContext) {
    (self.h, t) = (h, c.t - 1)
    let own: Double = h.shampoo_beta
    b = own < 0 ? h.beta2 : own
    (decay, keep) = (c.weightDecay, 1 - c.lr * c.weightDecay)
  }

  private static func plan(_ h: Hyper, _ shape: Shape) -> Kronecker {
    Kronecker(
      shape.dimensions.filter { $0 != 1 }, longest: .max,
      side: h.has("block_size") ? h.integer("block_size") : .max, squeezed: true)
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = klSlots
    let plan = plan(h, shape)
    (list[0].count, list[1].count, list[2].count) = (plan.matrices, plan.matrices, plan.rows)
    return list
  }
  static func accepts(_ h: Hyper, _ shape: Shape, _ method: String) throws(Failure) {
    try matrix(shape, method)
    try plan(h, shape).check(method, "block_size")
  }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    let plan = plan(h, shape)
    return 3 * aligned(plan.largest &* size) &+ plan.space(h, size)
  }

  /// A block at work: its gradient g, and x, which is turned; y is free.
  fileprivate final class Turning<T: Real> {
    let g: UnsafeMutablePointer<T>
    var x, y: UnsafeMutablePointer<T>
    let block: Kronecker.Block
    let Q, r: UnsafeMutablePointer<T>
    let products: Products<T>
    init(
      _ block: Kronecker.Block, _ g: UnsafeMutablePointer<T>, _ x: UnsafeMutablePointer<T>,
      _ y: UnsafeMutablePointer<T>, _ Q: UnsafeMutablePointer<T>, _ r: UnsafeMutablePointer<T>, _ products: Products<T>
    ) { (self.block, self.g, self.x, self.y, self.Q, self.r, self.products) = (block, g, x, y, Q, r, products) }

    func turn(_ a: Kronecker.Axis, transposed: Bool, exactly: Bool = false) throws(Failure) {
      let products = exactly ? Products<T>(narrow: false, UnsafeMutableRawPointer(y)) : products
      try products.multiply(Q + a.matrix, transposed: transposed, x, into: y, along: a.lines)
      swap(&x, &y)
    }
    func turn(transposed: Bool, exactly: Bool = false) throws(Failure) {
      for a in block.axes { try turn(a, transposed: transposed, exactly: exactly) }
    }

    /// z times r of the axis.
    func scale(_ z: UnsafeMutablePointer<T>, _ a: Kronecker.Axis) {
      let (d, inner, r) = (a.length, a.lines.inner, r + a.row)
      for o in 0..<a.lines.outer {
        for j in 0..<d {
          let line = z + (o &* d &+ j) &* inner, factor = r[j]
          for i in 0..<inner { line[i] *= factor }
        }
      }
    }
  }

  /// Makes the step in v. `update` makes the update of a block in x; `renewed` calls its last argument for the new
  /// basis.
  fileprivate func apply<T: Real>(
    _ w: Whole<T>, firstSlot: Int, update: (Kronecker.Block, Turning<T>) throws(Failure) -> Void,
    renewed: (Kronecker.Block, Turning<T>, () throws(Failure) -> Void) throws(Failure) -> Void
  ) throws(Failure) {
    let size = MemoryLayout<T>.stride, plan = KLFactors.plan(h, w.shape), room = aligned(plan.largest &* size)
    func buffer(_ k: Int) -> UnsafeMutablePointer<T> { (w.workspace + k &* room).assumingMemoryBound(to: T.self) }
    let (S, Q, r) = (w.slots[firstSlot], w.slots[firstSlot + 1], w.slots[firstSlot + 2])
    let products = Products<T>(h, w.workspace + 3 * room)
    for block in plan.blocks {
      let turning = Turning(block, buffer(0), buffer(1), buffer(2), Q, r, products)
      plan.gather(block, w.v, into: turning.g, size)
      if t == 0 {
        for a in block.axes {
          let share = Double(a.length) / Double(block.count)
          try products.gram(turning.g, along: a.lines, into: S + a.matrix, alpha: (1 - b) * share)
          try eigenbasis(S + a.matrix, into: Q + a.matrix, a.length)
          for j in 0..<a.length { r[a.row + j] = T(1 / (h.init_factor as Double).squareRoot()) }
        }
        continue
      }
      try update(block, turning)
      if h.normalize_grads {
        let rms = Flat.norm(turning.x, block.count) / Double(block.count).squareRoot()
        Flat.scale(turning.x, by: 1 / (1e-30 + rms), into: turning.x, block.count)
      }
      plan.scatter(block, turning.x, into: w.v, size)
      try learn(turning, S)
      if t % max(1, h.integer("precondition_frequency")) == 0 {
        try renewed(block, turning) { () throws(Failure) in
          for a in block.axes { try powerIteration(S + a.matrix, Q + a.matrix, a.length, sorts: false) }
        }
      }
    }
    if t == 0 { return w.v.update(repeating: 0, count: w.count) }
    w.change(ScaleAndDecay(scale: keep, decay: decay))
  }

  /// S and r of all axes, each from the old r of the others.
  private func learn<T: Real>(_ turning: Turning<T>, _ S: UnsafeMutablePointer<T>) throws(Failure) {
    let block = turning.block
    var new: [[Double]] = []
    for a in block.axes {
      turning.x.update(from: turning.g, count: block.count)
      for other in block.axes where other.index != a.index {
        try turning.turn(other, transposed: true)
        turning.scale(turning.x, other)
      }
      let share = (1 - b) * Double(a.length) / Double(block.count)
      try turning.products.gram(turning.x, along: a.lines, into: S + a.matrix, alpha: share, beta: b)
      try turning.turn(a, transposed: true)
      var squares = [Double](repeating: 0, count: a.length)
      let (x, d, inner) = (turning.x, a.length, a.lines.inner)
      for o in 0..<a.lines.outer {
        for j in 0..<d { squares[j] += Flat.squaredNorm(x + (o &* d &+ j) &* inner, inner) }
      }
      let cap = h.has("max_root") ? max(10, min(Double(d), h.max_root)) : .infinity
      new.append(
        (0..<d).map { j in
          let root = Double(turning.r[a.row + j])
          let lambda = b * (root > 0 ? 1 / (root * root) : 0) + share * squares[j]
          return lambda > 0 ? min(1 / lambda.squareRoot(), cap) : 0
        })
    }
    for (a, roots) in zip(block.axes, new) { for j in roots.indices { turning.r[a.row + j] = T(roots[j]) } }
  }
}
