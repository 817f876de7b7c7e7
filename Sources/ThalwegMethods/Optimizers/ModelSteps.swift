import Glibc
import ThalwegCore

/// The truncated model: the linear model of the loss, cut off at a known lower bound, and a step to its minimiser.
///
///     θ ← θ − min(lr, max(f − lower, 0)/|g|²)·g,   |g|² over all tensors
///
/// State    none.
/// Errors   TW_ERROR_NEEDS without a loss.
/// Differs  one step size for all groups. No gradient, no move.
/// Source   Davis, Drusvyatskiy, 2019, arXiv:1803.06523; Asi, Duchi, 2019.
struct TruncatedModel: ElementRule {
  static let method = Method(
    "truncated_model", .optimizer, "The step to the minimiser of a linear model that is cut off at a lower bound.",
    rule: "theta <- theta - min(lr, max(f - lower, 0)/|g|^2)*g,  |g| over all tensors",
    source: "Davis, Drusvyatskiy, 2019, arXiv:1803.06523; Asi, Duchi, 2019",
    parameters: [.lr(nil).equalInAll, .number("lower", 0, .any, "lower bound of the loss").forAll],
    requests: "loss, own-step", needsLoss: true)

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("step_size")] }

  let step, lr: Double
  init(_ h: Hyper, _ c: StepContext) { (step, lr) = (c.lr == 0 ? 0 : c.scalars[0], c.lr) }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, g, times: g)
  }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let gap = larger(c.loss - h.lower, 0)
    s[0] = totals[0] == 0 ? 0 : smaller(c.lr, gap / totals[0])
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (step * g).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - step * g }
}

/// The prox-linear step for |c(θ)|: the inner function is linearised, the absolute value is kept.
///
///     θ ← θ − clip(c/|∇c|², ±lr)·∇c,   |∇c|² over all tensors
///
/// The loss that is observed is c, with its sign; the gradients are those of c.
///
/// State    none.
/// Errors   TW_ERROR_NEEDS without a loss.
/// Differs  the inner function is a number (of vectors: Gauss-Newton). One step size for all groups; with maximize c
///          counts negative, which changes nothing.
/// Source   Davis, Drusvyatskiy, 2019, arXiv:1803.06523; Duchi, Ruan, 2018, arXiv:1703.08570.
struct ProxLinear: ElementRule {
  static let method = Method(
    "prox_linear", .optimizer, "The prox-linear step for |c(theta)|: c is linearised, the absolute value is kept.",
    rule: "theta <- theta - clip(c/|grad c|^2, -lr, lr)*grad c,  the observed loss is c, |grad c| over all tensors",
    source: "Davis, Drusvyatskiy, 2019, arXiv:1803.06523; Duchi, Ruan, 2018, arXiv:1703.08570",
    parameters: [.lr(nil).equalInAll], requests: "loss, own-step", needsLoss: true)

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("step_size")] }

  let step, lr: Double
  init(_ h: Hyper, _ c: StepContext) { (step, lr) = (c.lr == 0 ? 0 : c.scalars[0], c.lr) }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, g, times: g)
  }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals[0] == 0 ? 0 : larger(-c.lr, smaller(c.lr, c.loss / totals[0]))
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (step * g).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - step * g }
}
