import Glibc
import ThalwegCore

/// The subgradient method for robust low-rank recovery: steps whose length falls geometrically.
///
///     geometric:  θ ← θ − lr·rhoᵗ·D/‖D‖,  t from 0;   constant:  θ ← θ − lr·D/‖D‖;   normalize=false: D alone
///     ‖·‖ over all tensors
///
/// State    none.
/// Differs  Polyak's step, and one proportional to the loss, are `polyak_sgd`'s matter. No move where D = 0. The
///          spectral start is the host's.
/// Source   Ma and Fattahi, 2022, arXiv:2202.08788.
struct RobustSubGM: ElementRule {
  static let method = Method(
    "robust_subgm", .optimizer, "The subgradient method for robust recovery: steps whose length falls geometrically.",
    rule: """
      geometric: theta <- theta - lr*rho^t*D/|D|, t from 0;  constant: theta <- theta - lr*D/|D|
      normalize=false: D in place of D/|D|, |.| over all tensors
      """,
    source: "Ma, Fattahi, 2022, arXiv:2202.08788",
    parameters: [
      .lr(0.1), .choice("rule", ["geometric", "constant"], "how the length of the step changes"),
      .number("rho", 0.95, .between(0, 1, lowOpen: true, highOpen: true), "factor of the length from step to step"),
      .flag("normalize", true, "divide by the norm of D", live: false),
    ])

  static func phases(_ h: Hyper) -> Int { h.normalize ? 1 : 0 }
  static func scalars(_ h: Hyper) -> [Scalar] { h.normalize ? [Scalar("norm")] : [] }

  let factor: Double
  init(_ h: Hyper, _ c: StepContext) {
    let length = h.is("rule", "geometric") ? pow(h.rho, Double(c.step)) : 1
    factor = h.normalize ? (c.scalars[0] == 0 ? 0 : length / c.scalars[0]) : length
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, g, times: g)
  }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { factor * g }
}
