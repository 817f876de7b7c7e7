import ThalwegCore

/// Steepest descent under a norm for every tensor: the point of a unit norm ball that goes farthest along the gradient.
///
///     T = argmax ⟨g, T⟩, ‖T‖ ≤ 1;  dual = ⟨g, T⟩;   θ ← θ·(1 − lr·wd) − lr·T,  per_tensor: − lr·dual·T
///
///     l2 g/‖g‖;  rms g/rms(g);  linf sign(g);  sign_scaled sign(g)/in
///     spectral U·Vᵀ;  rms_to_rms √(out/in)·U·Vᵀ;  nuclear u₁·v₁ᵀ,  of the singular value decomposition
///     l1_to_l2 columns over their norms;  l1_to_rms that times √out
///     l2_to_linf rows over their norms;  rms_to_linf that over √in
///     auto: rms_to_rms for rank 2 and more, else rms
///
/// Shapes   (out, in) is the matrix view (out, rest); a vector is one row.
/// State    none.
/// Differs  singular values of 0 stay 0, as do rows and columns of zeros.
/// Source   Bernstein and Newhouse, 2024, arXiv:2409.20325.
struct NormDirection: WholeRule {
  static let norms = [
    "auto", "l2", "linf", "rms", "spectral", "rms_to_rms", "nuclear", "l1_to_l2", "l1_to_rms", "l2_to_linf",
    "rms_to_linf", "sign_scaled", "frobenius",
  ]
  static let parameters: [Parameter] =
    [
      .lr(0.1), .choice("norm", norms, "of the ball; auto goes by the rank", live: false),
      .weightDecay(0, "decoupled weight decay"),
      .choice("ortho", ["svd", "newton_schulz"], "how the polar factor is made", live: false),
    ] + NewtonSchulz.parameters() + [.eps(1e-7, "added to the norm that divides in the iteration", .above(0))]
  static let method = Method(
    "norm_direction", .optimizer, "Steepest descent under a norm for every tensor.",
    rule: """
      T = argmax <g, T> over the unit ball of the norm;  dual = <g, T>
      theta <- theta*(1 - lr*weight_decay) - lr*T (unit), or - lr*dual*T (per_tensor)
      """,
    source: "Bernstein, Newhouse, 2024, arXiv:2409.20325",
    parameters: parameters + [.choice("scale", ["unit", "per_tensor"], "the length of the step")],
    needsFinite: true, validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "norm_direction") })

  private static func norm(_ h: Hyper, _ shape: Shape) -> String {
    let word = norms.first { h.is("norm", $0) } ?? "auto"
    return word != "auto" ? word : shape.ndim >= 2 ? "rms_to_rms" : "rms"
  }
  private static func decomposes(_ h: Hyper, _ shape: Shape) -> Bool {
    ["spectral", "rms_to_rms", "nuclear"].contains(norm(h, shape))
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func mayFail(_ h: Hyper) -> Bool { h.is("ortho", "svd") || h.is("norm", "nuclear") }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    if decomposes(h, shape) { try matrix(shape, "norm_direction: norm=\(norm(h, shape))") }
  }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    aligned(shape.count &* size) + (decomposes(h, shape) ? NewtonSchulz.space(h, shape.rows, shape.columns, size) : 0)
  }

  let schulz: NewtonSchulz
  let exact, scales: Bool
  let h: Hyper
  init(_ h: Hyper, _ c: StepContext) {
    (schulz, self.h) = (NewtonSchulz(h, eps: h.eps, clamp: false), h)
    (exact, scales) = (h.is("ortho", "svd"), h.is("scale", "per_tensor"))
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let g = t.workspace.assumingMemoryBound(to: T.self), n = t.count
    if scales { g.update(from: t.v, count: n) }
    try NormBall.farthest(t, NormDirection.norm(h, t.shape), exact ? nil : schulz, n * MemoryLayout<T>.stride)
    if scales { Flat.scale(t.v, by: Flat.dot(g, t.v, n), into: t.v, n) }
  }
}

/// An update times the sum of its inner products with the gradient, over all tensors.
///
///     u ← u·Σ ⟨u, g⟩
///
/// Behind `norm_direction`, whose ⟨u, g⟩ are the dual norms of the gradients.
///
/// State    `sum`, the last sum.
/// Source   Bernstein and Newhouse, 2024, arXiv:2409.20325.
struct DualSum: ElementRule {
  static let method = Method(
    "dual_sum", .update, "An update times the sum of its inner products with the gradient.",
    rule: "u <- u*sum(<u, g>) over all tensors", source: "Bernstein, Newhouse, 2024, arXiv:2409.20325")

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("sum")] }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.finite(0)
  }

  let sum: Double
  init(_ h: Hyper, _ c: StepContext) { sum = c.scalars[0] }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ u: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, u, times: g)
  }
  var multiplies: Double? { sum }
  @inline(__always) func direction<L: Lane>(_ u: L, _ g: L, _ s: Slots<L>) -> L { u * sum }
}

/// The average of the gradients in place of the gradient.
///
///     m ← μ·m + (1 − μ)·g, from 0;   g ← m
///
/// State    m.
/// Source   folklore.
struct GradientEMA: ElementRule {
  static let momentum = Parameter.rate("momentum", 0, "rate of the average of the gradients")
  static let method = Method(
    "gradient_ema", .transform, "The average of the gradients in place of the gradient.",
    rule: "m <- momentum*m + (1 - momentum)*g, from 0;  g <- m", source: "folklore", parameters: [momentum],
    slots: [.moment("exp_avg", "the average m")])

  static func phases(_ h: Hyper) -> Int { 1 }
  static func reach(_ h: Hyper, _ phase: Int) -> Scope { .tensor }

  let momentum: Double
  init(_ h: Hyper, _ c: StepContext) { momentum = h.momentum }

  /// Once a step: `direction` runs for every walk that reads the gradient.
  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    s[0] = momentum * s[0] + (1 - momentum) * g
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { s[0] }
}

/// Modular steepest descent: every tensor moves by lr times the sum of the dual norms of all gradients. A name for
/// `gradient_ema(momentum) | norm_direction(...) | dual_sum`; scale=per_tensor and unit go without the last.
enum NormDescent: Listed {
  static let registered = alias(
    Method(
      "norm_descent", .optimizer, "Steepest descent under a norm for every tensor, with one step size for all.",
      rule: """
        m <- momentum*m + (1 - momentum)*g;  T = argmax <m, T> over the unit ball of the norm;  dual = <m, T>
        theta <- theta*(1 - lr*weight_decay) - lr*c*T
        c = sum of dual over all tensors (dual), dual (per_tensor), 1 (unit)
        """,
      source: "Bernstein, Newhouse, 2024, arXiv:2409.20325",
      parameters: NormDirection.parameters + [
        .choice("scale", ["dual", "per_tensor", "unit"], "the length of the step", live: false),
        GradientEMA.momentum.fixed,
      ], slots: GradientEMA.method.slots)
  ) { h in
    let momentum: Double = h.momentum
    var direction = h.node("norm_direction", NormDirection.parameters)
    let word = StageNode(name: h.is("scale", "per_tensor") ? "per_tensor" : "unit", arguments: [], position: 0)
    direction.arguments.append(ArgumentNode(name: "scale", value: .word(word), position: 0))
    return (momentum == 0 ? [] : [h.node("gradient_ema", [GradientEMA.momentum])]) + [direction]
      + (h.is("scale", "dual") ? [h.node("dual_sum", [])] : [])
  }
}
