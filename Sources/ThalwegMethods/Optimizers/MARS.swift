import ThalwegCore

/// MARS: AdamW on a gradient whose variance is reduced by the change since the last one.
///
///     c = g + γ·β₁/(1 − β₁)·(g − g_prev), scaled to norm 1 when longer (each tensor);   g_prev = 0 at the first step
///         approximate: g_prev is the gradient of the last step;   exact: that of this minibatch at the last parameters
///     m ← β₁·m + (1 − β₁)·c;   v ← β₂·v + (1 − β₂)·c²;   θ ← θ·(1 − lr·wd) − lr·(m/c₁)/(√(v/c₂) + ε)
///
/// State    m, v, g_prev; exact: the last parameters, and while it asks g_prev, the gradient and the parameters of the
///          step.
/// Differs  the zero of the first step is that of the authors' code, in both forms. Tensors of rank 0 and 1 take AdamW
///          with rates of their own, unless `optimize_1d`; every tensor of rank 2 or more counts as a matrix. Exact:
///          g_prev is the host's, without the transforms
///          that stand before the rule; a tensor without a gradient stays where it is while the others step back.
/// Source   Yuan et al., 2024, arXiv:2411.10438.
struct MARS: ElementRule {
  static let method = Method(
    "mars", .optimizer, "MARS: AdamW on a gradient whose variance is reduced by the change since the last one.",
    rule: """
      c = g + gamma*beta1/(1 - beta1)*(g - g_prev), scaled to norm 1 when longer
      g_prev: the last gradient, or with exact that of this minibatch at the last parameters; 0 at the first step
      m <- beta1*m + (1 - beta1)*c;  v <- beta2*v + (1 - beta2)*c^2
      theta <- theta*(1 - lr*weight_decay) - lr * (m/c1)/(sqrt(v/c2) + eps)
      tensors of rank 0 and 1: c = g, with lr*lr_1d_factor, beta1_1d and beta2_1d
      """,
    source: "Yuan et al., 2024, arXiv:2411.10438",
    parameters: [
      .lr(3e-3), .rate("beta1", 0.95, "rate of the first moment"), .rate("beta2", 0.99, "rate of the second moment"),
      .eps(1e-8),
      .weightDecay(0, "decoupled weight decay"), .number("gamma", 0.025, .atLeast(0), "scale of the correction"),
      .flag("optimize_1d", false, "vectors and scalars are corrected too"),
      .number("lr_1d_factor", 1, .atLeast(0), "factor of lr for vectors and scalars"),
      .rate("beta1_1d", 0.9, "beta1 of vectors and scalars"), .rate("beta2_1d", 0.95, "beta2 of vectors and scalars"),
      .flag("exact", false, "g_prev is asked for, not remembered", live: false),
    ],
    slots: Adam.moments + [Slot("previous", "the gradient g_prev")], requests: "previous_gradient")

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    Adam.moments + [h.exact ? .temporary("previous", "the gradient g_prev") : method.slots[2]]
  }

  static func decay(_ h: Hyper) -> Decay { .rule }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("norm")] }

  let beta1, beta2, eps, decay, gain, scale, factor, r1, r2: Double
  let corrects: Bool

  init(_ h: Hyper, _ c: StepContext) {
    corrects = c.ndim >= 2 || h.optimize_1d
    (beta1, beta2, factor) = corrects ? (h.beta1, h.beta2, 1) : (h.beta1_1d, h.beta2_1d, h.lr_1d_factor)
    (eps, decay) = (h.eps, c.weightDecay)
    gain = h.gamma * beta1 / (1 - beta1)
    scale = corrects ? 1 / max(1, c.scalars[0]) : 1
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
  }

  @inline(__always) func corrected<L: Lane>(_ g: L, _ s: Slots<L>) -> L { corrects ? g + gain * (g - s[2]) : g }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    if !corrects { return }
    let c = corrected(g, s)
    sums.add(0, c, times: c)
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let c = scale * corrected(g, s)
    let m = beta1 * s[0] + (1 - beta1) * c
    let v = beta2 * s[1] + (1 - beta2) * (c * c)
    s[0] = m
    s[1] = v
    s[2] = g
    return factor * (((v * r2).squareRoot() + eps).divide(m * r1) + decay * x)
  }

  static let registered = entry(MARS.self, source: { (h) throws(Failure) in h.exact ? try PreviousPoint(h) : nil })

  /// Asks for the gradient of this minibatch at the parameters before the last step.
  struct PreviousPoint: Source {
    static var method: Method { MARS.method }
    let previous = 2, last = 3, gradient = 4, point = 5
    init(_ h: Hyper) throws(Failure) {}
    var slots: [Slot] {
      [
        Slot("last", "the parameters before the last step", start: .parameters),
        .temporary("gradient", "the gradient of the step"),
        .home("point", "the parameters of the step"),
      ]
    }

    func most(_ tensors: Int) -> Int { 2 }
    var kinds: [Request.Kind] { [.previousGradient] }
    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase == 0 {
        io.change(SaveGradient(), slots: [gradient], parameters: false)
        io.change(SaveParameters(), slots: [point], parameters: false)
        if io.step > 0 {
          io.change(StepBack(), slots: [point, last], parameters: true)
          return .ask(Ask(.previousGradient))
        }
      } else {
        io.change(SaveGradient(), slots: [previous], parameters: false)
        io.comeHome()
      }
      io.change(SaveParameters(), slots: [last], parameters: false)
      io.keepAbsent(last)
      return .update(io.gradient(in: gradient))
    }
  }
}
