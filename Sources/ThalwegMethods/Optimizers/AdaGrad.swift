import ThalwegCore

/// AdaGrad: the gradient over the root of the sum of its squares.
///
///     s ← s + g²;   θ ← θ − lrₜ · g/(√s + ε),   lrₜ = lr/(1 + (t − 1)·lr_decay)
///
/// State    s.
/// Differs  nothing from torch.optim.Adagrad; optax starts s at 0.1 and puts ε inside the root. With s = 0 and ε = 0
///          the step is 0. Decay is coupled.
/// Source   Duchi, Hazan and Singer, 2011.
struct AdaGrad: ElementRule {
  static let method = Method(
    "adagrad", .optimizer, "AdaGrad: the gradient over the root of the sum of its squares.",
    rule: """
      s <- s + g^2
      theta <- theta - lr/(1 + (t - 1)*lr_decay) * g/(sqrt(s) + eps)
      """,
    source: "Duchi, Hazan, Singer, 2011",
    parameters: [
      .lr(1e-2), .number("lr_decay", 0, .atLeast(0), "the step size is divided by 1 + (t - 1)*lr_decay"),
      .weightDecay(0, "coupled weight decay"), .number("initial_accumulator_value", 0, .atLeast(0), "start of the sum"),
      .eps(1e-10),
    ],
    slots: [.square("sum", "sum of squares s")])

  static func decay(_ h: Hyper) -> Decay { .coupled }

  let eps, factor, start: Double
  let first: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (first, start) = (c.t == 1, h.initial_accumulator_value)
    let rate: Double = h.lr_decay
    (eps, factor) = (h.eps, 1 / (1 + (c.time - 1) * rate))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let sum = (first ? L(start) : s[0]) + g * g
    s[0] = sum
    return (sum.squareRoot() + eps).divide(g * factor)
  }
}
