import ThalwegCore

/// Adam-mini: Adam with one second moment for a block of elements.
///
///     m ← β₁·m + (1 − β₁)·g;   v_b ← β₂·v_b + (1 − β₂)·mean_b(g²) for every block b
///     θ ← θ·(1 − lr·wd) − lr·(m/c₁)/(√(v_b/c₂) + ε)
///
/// Blocks are the rows of the matrix view (an output neuron, a token), equal parts of the tensor (`head`, one for each
/// attention head), the whole tensor, or every element (`adam`); `auto` is rows for rank 2 and more, else the tensor.
///
/// State    m; v, one number a block.
/// Differs  the authors' code picks the blocks by the names of the parameters: here route does.
/// Errors   TW_ERROR_SHAPE where a tensor does not divide into `heads` parts.
/// Source   Zhang et al., 2024, arXiv:2406.16793.
struct AdamMini: WholeRule {
  static let method = Method(
    "adam_mini", .optimizer, "Adam with one second moment for a block of elements.",
    rule: """
      m <- beta1*m + (1 - beta1)*g;  v_b <- beta2*v_b + (1 - beta2)*mean_b(g^2) for every block b
      theta <- theta*(1 - lr*weight_decay) - lr*(m/c1)/(sqrt(v_b/c2) + eps)
      """,
    source: "Zhang et al., 2024, arXiv:2406.16793",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8), .weightDecay(0, "decoupled weight decay"),
      .choice(
        "blocks", ["auto", "row", "head", "tensor", "adam"], "the elements that share a second moment", live: false),
      .integer("heads", 1, .atLeast(1), "equal parts of a tensor, with blocks=head", live: false),
    ],
    slots: [Adam.moments[0], Slot("exp_avg_sq", "second moment v of every block")], needsFinite: true)

  private static func blocks(_ h: Hyper, _ shape: Shape) -> Int {
    if h.is("blocks", "adam") { return shape.count }
    if h.is("blocks", "head") { return min(h.integer("heads"), max(1, shape.count)) }
    return h.is("blocks", "tensor") || shape.ndim < 2 ? 1 : shape.rows
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var second = method.slots[1]
    second.count = blocks(h, shape)
    return [method.slots[0], second]
  }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    guard h.is("blocks", "head"), shape.count % h.integer("heads") != 0 else { return }
    throw Failure(
      Status.shape, "adam_mini: \(shape.count) elements do not divide into `heads` = \(h.integer("heads")) equal parts")
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2, eps, r1, r2: Double
  let h: Hyper

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, self.h) = (h.beta1, h.beta2, h.eps, h)
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let count = max(1, AdamMini.blocks(h, t.shape)), length = t.count / count, m = t.slots[0]
    let (b1, n1) = (T(beta1), T(1 - beta1))
    for b in 0..<count {
      let square = Flat.squaredNorm(t.v + b * length, length) / Double(max(1, length))
      let v = beta2 * Double(t.slots[1][b]) + (1 - beta2) * square
      t.slots[1][b] = T(v)
      let root = (v * r2).squareRoot() + eps, factor = T(root == 0 ? 0 : r1 / root)
      for i in (b * length)..<((b + 1) * length) {
        m[i] = b1 * m[i] + n1 * t.v[i]
        t.v[i] = factor * m[i]
      }
    }
  }
}
