import Glibc
import ThalwegCore

/// Regularised dual averaging: the parameters are the best answer to the mean of all gradients.
///
///     s ← s + g;   k = √t/γ;   θ ← S_{k·l1}(θ₀ − k·s/t),   S the soft threshold
///     (the minimiser of ⟨s/t, θ⟩ + l1·|θ|₁ + γ/(2√t)·|θ − θ₀|²)
///
/// State    s, θ₀.
/// Differs  the parameters are a function of the state: what a host writes into them is overwritten by the next step.
/// Source   Nesterov, 2009; Xiao, 2010.
struct DualAveraging: ElementRule {
  static let method = Method(
    "dual_averaging", .optimizer, "Regularised dual averaging: the parameters answer the mean of all gradients.",
    rule: """
      s <- s + g;  k = sqrt(t)/gamma;  theta <- S_{k*l1}(theta0 - k*s/t)
      the minimiser of <s/t, theta> + l1*|theta|_1 + gamma/(2*sqrt(t))*|theta - theta0|^2
      """,
    source: "Nesterov, 2009; Xiao, 2010",
    parameters: [
      .number("l1", 0, .atLeast(0), "coefficient of the L1 norm"),
      .number("gamma", 1, .above(0), "strength of the strongly convex term"),
    ],
    slots: [
      Slot("sum", "sum of all gradients"), Slot("start", "the parameters of the first step", start: .parameters),
    ],
    requests: "own-step")

  let step, threshold: Double

  init(_ h: Hyper, _ c: StepContext) {
    let k = c.time.squareRoot() / h.gamma
    (step, threshold) = (k / c.time, k * h.l1)
  }

  @inline(__always) func moved<L: Lane>(_ g: L, _ s: Slots<L>) -> L {
    let sum = s[0] + g
    s[0] = sum
    return (s[1] - step * sum).shrunk(by: threshold)
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { x - moved(g, s) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { moved(g, s) }
}
