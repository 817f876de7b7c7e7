import Glibc
import ThalwegCore

/// The truncated model: the linear model of the loss, cut off at a known lower bound, and a step to its minimiser.
///
///     θ ← θ − min(lr, max(f − lower, 0)/|g|²)·g,   |g|² over all tensors
///
/// State    none.
/// Errors   TW_ERROR_NEEDS without a loss.
/// Differs  groups may have step sizes of their own: the factor is then min(1, (f − lower)/Σ lr·|g|²), which minimises
///          the model in their common metric. No gradient, no move.
/// Source   Davis, Drusvyatskiy, 2019, arXiv:1803.06523; Asi, Duchi, 2019.
struct TruncatedModel: ElementRule {
  static let method = Method(
    "truncated_model", .optimizer, "The step to the minimiser of a linear model that is cut off at a lower bound.",
    rule: "theta <- theta - min(lr, max(f - lower, 0)/|g|^2)*g,  |g| over all tensors",
    source: "Davis, Drusvyatskiy, 2019, arXiv:1803.06523; Asi, Duchi, 2019",
    parameters: [.lr(nil), .number("lower", 0, .any, "lower bound of the loss").forAll],
    requests: "loss", needsLoss: true)

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("factor")] }

  let factor, lr: Double
  init(_ h: Hyper, _ c: StepContext) { (factor, lr) = (c.scalars[0], c.lr) }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, lr * g, times: g)
  }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals[0] == 0 ? 0 : smaller(1, larger(c.loss - h.lower, 0) / totals[0])
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { factor * g }
}

/// The prox-linear step for |c(θ)|: the inner function is linearised, the absolute value is kept.
///
///     θ ← θ − clip(c/|∇c|², ±lr)·∇c,   |∇c|² over all tensors
///
/// The loss that is observed is c, with its sign; the gradients are those of c.
///
/// State    none.
/// Errors   TW_ERROR_NEEDS without a loss.
/// Differs  the inner function is a number (of vectors: Gauss-Newton). Groups may have step sizes of their own, as of
///          `truncated_model`.
/// Source   Davis, Drusvyatskiy, 2019, arXiv:1803.06523; Duchi, Ruan, 2018, arXiv:1703.08570.
struct ProxLinear: ElementRule {
  static let method = Method(
    "prox_linear", .optimizer, "The prox-linear step for |c(theta)|: c is linearised, the absolute value is kept.",
    rule: "theta <- theta - clip(c/|grad c|^2, -lr, lr)*grad c,  the observed loss is c, |grad c| over all tensors",
    source: "Davis, Drusvyatskiy, 2019, arXiv:1803.06523; Duchi, Ruan, 2018, arXiv:1703.08570",
    parameters: [.lr(nil)], requests: "loss", needsLoss: true)

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("factor")] }

  let factor, lr: Double
  init(_ h: Hyper, _ c: StepContext) { (factor, lr) = (c.scalars[0], c.lr) }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, lr * g, times: g)
  }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals[0] == 0 ? 0 : larger(-1, smaller(1, c.loss / totals[0]))
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { factor * g }
}
