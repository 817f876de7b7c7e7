import ThalwegCore

/// LookSAM: SAM at every k-th step; between them the part of its gradient that plain steps lack is used again.
///
///     t mod k = 0 (t from 0):  g′ as in sam;   v = g′ − ⟨g, g′⟩/max(‖g‖, ε)²·g;   g ← g′
///     otherwise:  g ← g + α·‖g‖/(‖v‖ + 1e-8)·v
///
/// State    v and the count t; while it asks, the parameters and the gradient.
/// Differs  norms and products are over all tensors together; pytorch_optimizer.LookSAM takes those of v tensor by
///          tensor. v = 0 leaves g.
/// Source   Liu, Mai, Chen, Hsieh and You, 2022, arXiv:2203.02714.
struct LookSAM: Source {
  static let method = Method(
    "looksam", .perturbation, "SAM at every k-th step; between them its part across the gradient is used again.",
    rule: """
      t mod k = 0 (t from 0): n = gradient at theta + rho/(|g| + eps) * g;  v = n - <g, n>/max(|g|, eps)^2 * g;  g <- n
      otherwise: g <- g + alpha*|g|/(|v| + 1e-8) * v
      """,
    source: "Liu, Mai, Chen, Hsieh, You, 2022, arXiv:2203.02714",
    parameters: [
      .number("rho", 0.05, .atLeast(0), "radius"),
      .integer("k", 5, .atLeast(1), "steps from one SAM step to the next").forAll,
      .number("alpha", 0.7, .atLeast(0), "length of the part that is used again"),
      .eps(1e-12, "added to the norm").forAll,
    ],
    slots: [Slot("across", "the part v of SAM's gradient across the gradient"), homeSlot, gradientSlot],
    requests: "gradient")

  let slots = LookSAM.method.slots
  let scalars = [Scalar("steps")]
  private let across = 0, point = 1, gradient = 2
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }
  private struct Split: ElementOperation {
    let share: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = g - share * s[1]
    }
  }
  private struct Reuse: ElementOperation {
    let factor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = x + factor * s[0] }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let h = io.hyper, eps: Double = h.eps, every: Double = h.k, t = io.scalar(0)
    if phase > 0 {
      let sums = io.sum(SlotProducts(), slots: [gradient]), norm = max(sums.root(0), eps)
      io.change(Split(share: norm > 0 ? sums[1] / norm / norm : 0), slots: [across, gradient], parameters: false)
      io.change(RestoreParameters(), slots: [point], parameters: true)
      io.setScalar(0, t + 1)
      return .update(nil)
    }
    if t.truncatingRemainder(dividingBy: every) == 0 {
      let norm = io.sum(SquaredNorm()).root(0)
      io.change(slots: [point, gradient], parameters: true) { KeepAndAscend(scale: perLength($0.rho, norm, eps)) }
      return .ask(Ask(.gradient))
    }
    let sums = io.sum(SlotProducts(), slots: [across]), ratio = sums.root(2) / (sums.root(0) + 1e-8)
    io.setScalar(0, t + 1)
    return .update(io.operation(slots: [across]) { Reuse(factor: $0.alpha * ratio) })
  }
}
