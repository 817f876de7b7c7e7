import ThalwegCore

/// APOLLO: gradient descent whose rows or columns are scaled as Adam scales them in a random subspace.
///
///     P with r rows, standard normal over √r, drawn anew every update_proj_gap steps
///     R = G·Pᵀ (rows ≥ columns) or P·G;   N = m/(√v + ε), Adam's direction of R
///     s = ‖N‖/(‖R‖ + 10⁻⁸) for every row (rows ≥ columns) or column (channel), or of the whole (tensor);   u = g·s
///     limiter:  l = max(‖u‖/(‖u‖ of the step before + 10⁻⁸), growth)/growth,  u ← u/l;   u ← √scale·u
///     θ ← θ − lr·√c₂/c₁·u;   then θ ← θ·(1 − lr·wd)
///
/// State    m and v of the projection, r numbers a line of the longer side; the last ‖u‖.
/// Differs  the numbers of P are a function of the seed, the tensor and the step of the draw. A rank above the shorter
///          side is the shorter side. scale_front takes √scale before the limiter. c₁ = c₂ = 1 without correct_bias.
/// Source   Zhu et al., 2024, arXiv:2412.05270.
struct APOLLO: WholeRule {
  static let method = Method(
    "apollo", .optimizer, "Gradient descent, scaled line by line as Adam scales a random projection of the gradient.",
    rule: """
      P: rank rows, standard normal/sqrt(rank), drawn anew every update_proj_gap steps;  R = G P' (rows >= columns), P G
      N = m/(sqrt(v) + eps), m and v of R as adam;  s = |N|/(|R| + 1e-8) of every row (rows >= columns), column, or all
      u = g*s;  l = max(|u|/(|u| before + 1e-8), norm_growth)/norm_growth;  u <- sqrt(scale)*u/l
      theta <- (theta - lr*sqrt(c2)/c1*u)*(1 - lr*weight_decay)
      """,
    source: "Zhu et al., 2024, arXiv:2412.05270",
    parameters: [
      .integer("rank", nil, .atLeast(1), "dimensions of the subspace", live: false), .lr(1e-3),
      .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"), .eps(1e-6),
      .weightDecay(0, "weight decay, after the step"), .flag("correct_bias", true, "bias correction in the step"),
      .integer("update_proj_gap", 200, .atLeast(1), "steps between new projections", live: false),
      .number("scale", 1, .above(0), "its root multiplies the direction"),
      .choice("scale_type", ["channel", "tensor"], "a scale for every line, or one for the tensor"),
      .flag("scale_front", false, "the root of the scale stands before the limiter"),
      .number("norm_growth", 1.01, .above(1), "largest growth of the direction's norm in a step", optional: true),
    ],
    slots: [
      .moment("exp_avg", "first moment of the projection m"),
      .square("exp_avg_sq", "second moment of the projection v"),
      Slot("norm", "norm of the last direction"),
    ], needsFinite: true)

  private static func rank(_ h: Hyper, _ shape: Shape) -> Int { min(h.integer("rank"), shape.rows, shape.columns) }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var all = method.slots
    all[0].count = rank(h, shape) &* max(shape.rows, shape.columns)
    (all[1].count, all[2].count) = (all[0].count, 1)
    return all
  }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "apollo") }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    let r = rank(h, shape)
    return aligned(r &* max(shape.rows, shape.columns) &* size) + aligned(r &* min(shape.rows, shape.columns) &* size)
  }

  let beta1, beta2, eps, rate, root, growth, shrink, decay: Double
  let channel, front, first: Bool
  let key: UInt64
  let h: Hyper

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, self.h) = (h.beta1, h.beta2, h.eps, h)
    let scale: Double = h.scale
    (root, growth, front, channel) = (scale.squareRoot(), h.norm_growth, h.scale_front, h.is("scale_type", "channel"))
    rate = h.correct_bias ? (1 - power(beta2, c.t)).squareRoot() / (1 - power(beta1, c.t)) : 1
    (shrink, decay, first) = (1 - c.lr * c.weightDecay, c.weightDecay, c.t == 1)
    let gap = max(1, h.integer("update_proj_gap")), drawn = (c.t - 1) / gap * gap
    key = Random.key(
      seed: c.seed, stream: c.stream, step: UInt64(max(0, drawn)), tensor: UInt32(truncatingIfNeeded: c.tensor))
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let rows = t.rows, columns = t.columns, side = min(rows, columns), long = max(rows, columns), tall = rows >= columns
    let r = APOLLO.rank(h, t.shape), count = r * long
    let projected = t.workspace.assumingMemoryBound(to: T.self)
    let p = (t.workspace + aligned(count * MemoryLayout<T>.stride)).assumingMemoryBound(to: T.self)
    for i in 0..<(r * side) { p[i] = T(Random.normal(key, i) / Double(r).squareRoot()) }
    if tall {
      try LinearAlgebra.multiply(t.v, transposed: false, p, transposed: true, into: projected, rows, r, columns)
    } else {
      try LinearAlgebra.multiply(p, t.v, into: projected, r, columns, rows)
    }
    // squares of R and N along every line of the longer side
    var given = [Double](repeating: 0, count: long), scaled = given
    for i in 0..<count {
      let x = Double(projected[i]), m = beta1 * Double(t.slots[0][i]) + (1 - beta1) * x
      let v = beta2 * Double(t.slots[1][i]) + (1 - beta2) * x * x
      (t.slots[0][i], t.slots[1][i]) = (T(m), T(v))
      let d = v.squareRoot() + eps, n = m == 0 && d == 0 ? 0 : m / d
      let line = tall ? i / r : i % columns
      given[line] += x * x
      scaled[line] += n * n
    }
    let lines = tall ? Slices.rows(t.shape) : Slices.columns(t.shape)
    if channel {
      lines.scale(t.v, by: zip(scaled, given).map { $0.0.squareRoot() / ($0.1.squareRoot() + 1e-8) })
    } else {
      let s = scaled.reduce(0, +).squareRoot() / (given.reduce(0, +).squareRoot() + 1e-8)
      Flat.scale(t.v, by: s, into: t.v, t.count)
    }
    var factor = rate * root * shrink
    if !growth.isNaN {
      let norm = Flat.norm(t.v, t.count) * (front ? root : 1), before = Double(t.slots[2][0])
      let limit = first ? 1 : max(norm / (before + 1e-8), growth) / growth
      t.slots[2][0] = T(norm / limit)
      factor /= limit
    }
    Flat.scale(t.v, by: factor, into: t.v, t.count)
    if decay != 0 { Flat.add(t.w, times: decay, into: t.v, t.count) }
  }
}
