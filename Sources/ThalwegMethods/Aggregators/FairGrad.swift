import Glibc
import ThalwegCore

/// FairGrad: α-fair weights of the tasks; 1 is proportional fairness, large α favours the worst task.
///
///     w > 0 with (G w)_i = w_i^(−1/α);   g = Jᵀw;   α = 0: the sum of the gradients
///
/// State    the gradient of every task; whether there was no solution.
/// Differs  solved by Newton's method, where the authors take a bounded least-squares solver. As in Nash-MTL there may
///          be no solution: weights are at most 10⁶ times their unit, G_ii^(−α/(1 + α)), and `stationary` is 1.
/// Tells    residual, the largest difference of (G w)_i and w_i^(−1/α) in units of their size (0 to 1; large where
///          there is no solution), and iterations; stationary.
/// Source   Ban and Ji, 2024, arXiv:2402.15638.
struct FairGrad: GramianRule {
  static let method = Method(
    "fairgrad", .aggregator, "Alpha-fair weights: 1 is proportional fairness, large alpha favours the worst task.",
    rule: "w > 0 with (J J' w)_i = w_i^(-1/alpha);  g = J'w;  alpha = 0: the sum of the gradients",
    source: "Ban, Ji, 2024, arXiv:2402.15638",
    parameters: [Tasks.parameter, .number("alpha", 1, .within(0, 1e6), "fairness").forAll],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)

  static func scalars(_ tasks: Int) -> [Scalar] { [Scalar("stationary")] }
  static var iterates: Bool { true }

  let alpha: Double
  init(_ h: Hyper, _ tasks: Tasks) { alpha = h.alpha }

  func weights(_ G: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double] {
    let s = G.largest
    (c.memory[0], c.convergence) = (0, Convergence())
    guard s > 0, alpha > 0 else { return G.map { _ in s > 0 ? 1 : 0 } }
    // w = s^(−α/(1+α))·v turns G into G/s
    let (v, bounded, convergence) = balanced(G.scaled(by: 1 / s), 1 / alpha)
    (c.memory[0], c.convergence) = (bounded ? 0 : 1, convergence)
    let unit = pow(s, -alpha / (1 + alpha))
    return v.map { $0 * unit }
  }
}
