import Glibc
import ThalwegCore

/// The subgradient method for robust low-rank recovery: steps whose length falls geometrically, or goes by the loss.
///
///     geometric:  θ ← θ − lr·rhoᵗ·D/‖D‖,  t from 0;   constant:  θ ← θ − lr·D/‖D‖;   normalize=false: D alone
///     polyak:  θ ← θ − lr·(f − f_star)/‖D‖²·D;   proportional:  θ ← θ − lr·f·D
///     ‖·‖ over all tensors
///
/// State    none; within a step f, ‖D‖ and the gradient (polyak, proportional: the loss is asked for where it did not
///          come with the gradient).
/// Differs  No move where D = 0. With `maximize` f is the negative of the loss. The spectral start is the host's.
/// Source   Ma and Fattahi, 2022, arXiv:2202.08788.
struct RobustSubGM: ElementRule {
  static let method = Method(
    "robust_subgm", .optimizer,
    "The subgradient method for robust recovery: steps whose length falls geometrically, or goes by the loss.",
    rule: """
      geometric: theta <- theta - lr*rho^t*D/|D|, t from 0;  constant: theta <- theta - lr*D/|D|
      normalize=false: D in place of D/|D|, |.| over all tensors
      polyak: theta <- theta - lr*(f - f_star)/|D|^2*D;  proportional: theta <- theta - lr*f*D
      """,
    source: "Ma, Fattahi, 2022, arXiv:2202.08788",
    parameters: [
      .lr(0.1),
      .choice(
        "rule", ["geometric", "constant", "polyak", "proportional"], "how the length of the step changes", live: false),
      .number("rho", 0.95, .between(0, 1, lowOpen: true, highOpen: true), "factor of the length from step to step"),
      .flag("normalize", true, "divide by the norm of D (geometric, constant)", live: false),
      .number("f_star", 0, .any, "the loss to reach (polyak)").forAll,
    ], requests: "loss", needsFinite: true)

  private static func byLoss(_ h: Hyper) -> Bool { h.is("rule", "polyak") || h.is("rule", "proportional") }
  static func phases(_ h: Hyper) -> Int { h.normalize && !byLoss(h) ? 1 : 0 }
  static func scalars(_ h: Hyper) -> [Scalar] {
    byLoss(h) ? [Scalar("length"), Scalar("size")] : h.normalize ? [Scalar("norm")] : []
  }

  let factor: Factor
  init(_ h: Hyper, _ c: StepContext) {
    if RobustSubGM.byLoss(h) {
      factor = Factor(c.scalars[0])
    } else {
      let length = h.is("rule", "geometric") ? pow(h.rho, Double(c.step)) : 1
      factor = Factor(h.normalize ? (c.scalars[0] == 0 ? 0 : length / c.scalars[0]) : length)
    }
  }

  @inline(__always) func squares(_ phase: Int) -> Bool { true }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { factor * g }

  static let registered = entry(RobustSubGM.self, source: { (h) throws(Failure) in byLoss(h) ? Length(h) : nil })

  /// The length of a step by the loss at its point.
  struct Length: Source {
    static var method: Method { RobustSubGM.method }
    let polyak: Bool
    init(_ h: Hyper) { polyak = h.is("rule", "polyak") }
    var global: Bool { true }
    func most(_ tensors: Int) -> Int { 2 }
    var kinds: [Request.Kind] { [.loss] }
    var slots: [Slot] { [Slot.temporary("gradient", "the gradient, while the loss is asked for")] }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase == 0 {
        io.setScalar(1, io.sum(SquaredNorm()).root(0))
        if !io.lossIsNew {
          io.keep(0, reads: true)
          return .ask(Ask(.loss))
        }
      }
      let norm = io.scalar(1), f = io.cost
      io.setScalar(0, !polyak ? f : norm == 0 ? 0 : (f - io.hyper.f_star) / norm / norm)
      return .update(phase == 0 ? nil : io.gradient(in: 0))
    }
  }
}
