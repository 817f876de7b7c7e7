import ThalwegCore

/// Clips the norm of every tensor by itself.
///
///     n = ‖g‖_p of each tensor, p = norm_type;   g ← g·min(1, max_norm/(n + ε))
///
/// State    `norm`, the last n (before clipping).
/// Differs  as torch's clip_grad_norm_ on each tensor: gradients within ε below max_norm are scaled too, other than by
///          clip_global_norm with per_tensor. A NaN or infinite n multiplies.
/// Source   Pascanu, Mikolov and Bengio, 2012, arXiv:1211.5063.
struct ClipNorm: ElementRule {
  static let method = Method(
    "clip_norm", .transform, "Clips the norm of every tensor by itself.",
    rule: "n = |g| of each tensor, the norm_type-norm;  g <- g * min(1, max_norm/(n + eps))",
    source: "Pascanu, Mikolov, Bengio, 2012, arXiv:1211.5063",
    parameters: [
      .number("max_norm", nil, .above(0), "largest norm"),
      .number("norm_type", 2, .atLeast(1), "p of the norm").orInfinite().fixed, .eps(1e-6, "added to the norm"),
    ])

  static func scalars(_ h: Hyper) -> [Scalar] { ClipGlobalNorm.scalars(h) }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { ClipGlobalNorm.phases(h) }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    ClipGlobalNorm.finish(phase, totals, s, h, c)
  }

  let same: ClipGlobalNorm
  init(_ h: Hyper, _ c: StepContext) {
    let n = c.scalars[0]
    // a norm of 0 may have no ε beside it
    same = ClipGlobalNorm(n == 0 ? 1 : smaller(1, h.max_norm / (n + h.eps)), h, c)
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ v: L, _ w: L, _ s: Slots<L>, _ sums: inout Sums) {
    same.measure(phase, v, w, s, &sums)
  }
  @inline(__always) func squares(_ phase: Int) -> Bool { same.squares(phase) }
  var multiplies: Double? { same.factor }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { same.direction(v, w, s) }
}

/// Clips the root mean square of every tensor, as Adafactor does.
///
///     g ← g/max(1, rms(g)/threshold),   rms = √(mean g²) of each tensor
///
/// State    `rms`, the last one (before clipping).
/// Differs  nothing from optax.clip_by_block_rms. Behind the rule it clips updates.
/// Source   Shazeer and Stern, 2018, arXiv:1804.04235.
struct ClipBlockRMS: ElementRule {
  static let method = Method(
    "clip_block_rms", .transform, "Clips the root mean square of every tensor.",
    rule: "g <- g / max(1, rms(g)/threshold),  rms = sqrt(mean g^2) of each tensor",
    source: "Shazeer, Stern, 2018, arXiv:1804.04235",
    parameters: [.number("threshold", 1, .above(0), "largest root mean square")])

  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("rms")] }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0) / Double(max(1, c.count)).squareRoot()
  }

  let factor: Double
  init(_ h: Hyper, _ c: StepContext) {
    let most: Double = h.threshold
    factor = c.scalars[0] <= most ? 1 : most / c.scalars[0]
  }

  @inline(__always) func squares(_ phase: Int) -> Bool { true }
  var multiplies: Double? { factor }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { factor == 1 ? v : v * factor }
}

/// Adaptive gradient clipping: the gradient of a unit is at most a share of its weights.
///
///     for each row (index of axis 0; of rank below 2 the whole tensor):   G = ‖g‖,  M = clipping·max(‖θ‖, ε)
///     G > M:  g ← g·M/max(G, tiny)
///
/// State    none.
/// Differs  nothing from timm and pytorch_optimizer; optax.adaptive_grad_clip, for kernels stored (in, out), reduces
///          axis 0 instead. The last layer is usually left out: `route` says which.
/// Source   Brock, De, Smith and Simonyan, 2021, arXiv:2102.06171.
struct AGC: WholeRule {
  static let method = Method(
    "agc", .transform, "Adaptive gradient clipping: a unit's gradient is at most a share of its weights.",
    rule: """
      for each row (axis 0; below rank 2 the whole tensor): G = |g|, M = clipping*max(|theta|, eps)
      G > M: g <- g * M/max(G, tiny)
      """,
    source: "Brock, De, Smith, Simonyan, 2021, arXiv:2102.06171",
    parameters: [
      .number("clipping", 0.01, .above(0), "largest ratio of gradient and weights"),
      .eps(1e-3, "smallest norm of the weights", .above(0)),
      .number("tiny", 1e-6, .above(0), "smallest norm of the gradient"),
    ])

  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { shape.ndim < 2 ? nil : 1 }

  let clipping, eps, tiny: Double
  init(_ h: Hyper, _ c: StepContext) { (clipping, eps, tiny) = (h.clipping, h.eps, h.tiny) }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.columns
    for row in 0..<(n > 0 ? t.rows : 0) {
      let g = t.v + row * n, G = Flat.norm(g, n), M = clipping * larger(Flat.norm(t.w + row * n, n), eps)
      if !(G <= M) { Flat.scale(g, by: M / larger(G, tiny), into: g, n) }
    }
  }
}

/// Gradient centralization: the rows of every gradient have mean 0.
///
///     rank > 1 (conv_only: > 3):  every row (index of axis 0) less its mean over the other axes
///
/// State    none.
/// Differs  nothing from pytorch_optimizer; optax.centralize keeps the last axis. In front of the rule it acts before
///          weight decay is added.
/// Source   Yong, Huang, Hua and Zhang, 2020, arXiv:2004.01461.
struct GradientCentralization: WholeRule {
  static let method = Method(
    "gradient_centralization", .transform, "The rows of every gradient have mean 0.",
    rule: "rank > 1 (conv_only: > 3): g <- g - its mean over axes 1.. of each row",
    source: "Yong, Huang, Hua, Zhang, 2020, arXiv:2004.01461",
    parameters: [.flag("conv_only", false, "only tensors of rank above 3")])

  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { 1 }

  let rank: Int
  init(_ h: Hyper, _ c: StepContext) { rank = h.conv_only ? 4 : 2 }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.columns
    guard t.shape.ndim >= rank, n > 0 else { return }
    for row in 0..<t.rows {
      let g = t.v + row * n
      Flat.shift(g, by: -Flat.sum(g, n) / Double(n), n)
    }
  }
}

/// Gradient reversal: the gradient with the other sign, as domain-adversarial training passes it to the features.
///
///     g ← −lam·g
///
/// State    none.
/// Differs  nothing. It acts on all that stands in front: `route` says which tensors. lam = 0 stops the gradient.
/// Source   Ganin et al., 2015, arXiv:1505.07818.
struct GradReversal: ElementRule {
  static let method = Method(
    "grad_reversal", .transform, "The gradient with the other sign.", rule: "g <- -lam*g",
    source: "Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand, Lempitsky, 2015, arXiv:1505.07818",
    parameters: [.number("lam", 1, .atLeast(0), "weight, as the schedule dann_lambda")])
  let factor: Double
  init(_ h: Hyper, _ c: StepContext) { factor = -h.lam }
  var multiplies: Double? { factor }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v * factor }
}
