import ThalwegCore

/// SGD with momentum whose largest gradients of each tensor take signed steps of a fixed size instead.
///
///     k = ⌊fraction·n⌋;   hot: the k largest |g| of the tensor, of equal ones the first
///     b ← μ·b + (1 − τ)·g everywhere;   hot: θ ← θ − sign_lr·sign(g),   others: θ ← θ − lr·b
///
/// State    b, from 0: the first step is dampened too.
/// Differs  selection, buffers and defaults are UNVERIFIED in the paper, whose case study this is. The signed step does
///          not depend on lr, so that nothing that scales a step size can follow (`schedule_free`, `ghost_step`). A NaN
///          is not hot: it shows through b.
/// Source   Rosenfeld and Risteski, 2023, arXiv:2311.04163.
struct SplitSGD: WholeRule {
  static let method = Method(
    "split_sgd", .optimizer,
    "SGD with momentum whose largest gradients of each tensor take signed steps of a fixed size.",
    rule: """
      b <- momentum*b + (1 - dampening)*g
      the floor(fraction*n) largest |g| of a tensor: theta <- theta - sign_lr*sign(g);  others: theta <- theta - lr*b
      """,
    source: "Rosenfeld, Risteski, 2023, arXiv:2311.04163",
    parameters: [
      .lr(1e-2), .rate("momentum", 0.9, "share of the buffer that is kept"),
      .number("dampening", 0.9, .within(0, 1), "the gradient enters the buffer times 1 - dampening"),
      .number("sign_lr", 1e-3, .atLeast(0), "step of the largest gradients"),
      .rate("fraction", 0.1, "their share of each tensor"),
    ],
    slots: [.moment("momentum_buffer", "the momentum b")], requests: "own-step")

  let momentum, take, fraction, signed, lr: Double

  init(_ h: Hyper, _ c: StepContext) {
    (momentum, take, fraction) = (h.momentum, 1 - h.dampening, h.fraction)
    (signed, lr) = (h.sign_lr, c.lr)
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count
    guard n > 0 else { return }
    let k = min(Int(fraction * Double(n)), n), b = t.slots[0]
    let bound: T = k > 0 ? T(Flat.largest(t.v, n, k - 1)) : .infinity
    var ties = k
    for i in 0..<n where t.v[i].magnitude > bound { ties -= 1 }
    let step = T(signed), rate = T(lr), keep = T(momentum), new = T(take)
    for i in 0..<n {
      let g = t.v[i], size = g.magnitude
      b[i] = keep * b[i] + new * g
      var hot = size > bound
      if size == bound, ties > 0 {
        hot = true
        ties -= 1
      }
      t.v[i] = hot ? (g > 0 ? step : g < 0 ? -step : 0) : rate * b[i]
    }
  }
}
