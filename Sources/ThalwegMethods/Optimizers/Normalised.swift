import Glibc
import ThalwegCore

/// β-normalised gradient descent: the step is divided by a power of the gradient's norm.
///
///     θ ← θ − lr · g/‖g‖^β,   ‖·‖ over all tensors
///
/// State    none.
/// Differs  no move when g = 0. β = 0 is sgd, β = 1 moves by lr.
/// Source   Chen, Zhou, Liang and Lu, 2023, arXiv:2303.02854.
struct BetaNGD: ElementRule {
  static let method = Method(
    "beta_ngd", .optimizer, "Normalised gradient descent: the step is divided by a power of the gradient's norm.",
    rule: "theta <- theta - lr * g / |g|^beta,  the norm over all tensors",
    source: "Chen, Zhou, Liang, Lu, 2023, arXiv:2303.02854",
    parameters: [.lr(nil), .number("beta", 1, .within(0, 1), "power of the norm")])

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("norm")] }

  let factor: Factor

  init(_ h: Hyper, _ c: StepContext) {
    factor = Factor(c.scalars[0] > 0 ? 1 / pow(c.scalars[0], h.beta) : c.scalars[0])
  }

  @inline(__always) func squares(_ phase: Int) -> Bool { true }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { factor * g }
}

/// AdaGrad-Norm: one sum of squared gradient norms sets the step of all coordinates.
///
///     b² ← b² + ‖g‖²;   θ ← θ − lr · g/b
///
/// State    b², one number for all tensors.
/// Differs  nothing.
/// Source   Streeter and McMahan, 2010; Ward, Wu and Bottou, 2019.
struct AdaGradNorm: ElementRule {
  static let method = Method(
    "adagrad_norm", .optimizer, "AdaGrad-Norm: one sum of squared gradient norms sets the step of all coordinates.",
    rule: "b^2 <- b^2 + |g|^2 over all tensors, from b0^2;  theta <- theta - lr * g / b",
    source: "Streeter, McMahan, 2010; Ward, Wu, Bottou, 2019, arXiv:1806.01811",
    parameters: [.lr(1), .number("b0", 1e-2, .above(0), "first value of b").forAll])

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("b_squared")] }

  let factor: Double

  init(_ h: Hyper, _ c: StepContext) { factor = 1 / Squares(c.scalars[0]).root }

  @inline(__always) func squares(_ phase: Int) -> Bool { true }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let b0: Double = h.b0
    var square = Squares(s[0] == 0 ? b0 * b0 : s[0])
    square.add(Squares(totals, 0))
    s[0] = square.number
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { factor * g }
}

/// The capped stochastic Polyak step: the loss above its lower bound sets the step.
///
///     s = min((f − f_min)/(‖g‖² + ε), max_lr);   θ ← θ − scaling·s·g
///
/// State    none; the loss f of every step is needed.
/// Differs  nothing from optax.polyak_sgd. A loss below f_min ascends, unless `positive` clamps f − f_min at 0.
/// Source   Loizou, Vaswani, Laradji and Lacoste-Julien, 2020, arXiv:2002.10542.
struct PolyakSGD: ElementRule {
  static let method = Method(
    "polyak_sgd", .optimizer, "The capped stochastic Polyak step: the loss above its lower bound sets the step.",
    rule: """
      s = min((f - f_min) / (|g|^2 + eps), max_lr);  positive: f - f_min is at least 0
      theta <- theta - scaling*s*g
      """,
    source: "Loizou, Vaswani, Laradji, Lacoste-Julien, 2020, arXiv:2002.10542",
    parameters: [
      .number("max_lr", 1, .atLeast(0), "largest step").forAll,
      .number("scaling", 1, .atLeast(0), "factor of the step"),
      .number("f_min", 0, .any, "lower bound of the loss").forAll, .eps(0).forAll,
      .flag("positive", false, "a loss below f_min does not ascend").forAll,
    ],
    requests: "loss", needsLoss: true)

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("step_size")] }

  let factor: Double

  init(_ h: Hyper, _ c: StepContext) { factor = h.scaling * c.scalars[0] }

  @inline(__always) func squares(_ phase: Int) -> Bool { true }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let floor: Double = h.f_min, denominator = totals[0] + h.eps
    let gap = h.positive && c.loss < floor ? 0 : c.loss - floor
    s[0] = denominator == 0 ? 0 : smaller(gap / denominator, h.max_lr)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { factor * g }
}
