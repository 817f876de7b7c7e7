import ThalwegCore

/// Gradient-norm penalty: a mean of the gradient and of that a step along it, which is the gradient of L + λ·‖∇L‖.
///
///     e = r·g/(‖g‖ + ε);   g ← (1 − α)·g + α·(gradient at θ + e),   λ = α·r
///
/// State    the parameters and the gradient while it asks; nothing between steps.
/// Differs  nothing from zhaoyang-0204/gnp. alpha=1 is sam with rho = r.
/// Source   Zhao, Zhang and Hu, 2022, arXiv:2202.03599.
struct GNP: Source {
  static let method = Method(
    "gnp", .perturbation, "The gradient of the loss with a penalty on its gradient norm, by a difference.",
    rule: "e = r/(|g| + eps) * g over all tensors;  g <- (1 - alpha)*g + alpha*(gradient at theta + e)",
    source: "Zhao, Zhang, Hu, 2022, arXiv:2202.03599",
    parameters: [
      .number("r", 0.05, .above(0), "length of the difference"),
      .number("alpha", 0.8, .within(0, 1), "weight of the penalty over r"), .eps(1e-12, "added to the norm"),
    ],
    slots: [homeSlot, gradientSlot], requests: "gradient")

  let slots = GNP.method.slots
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }
  private struct Mix: ElementOperation {
    let alpha: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      x = (1 - alpha) * s[0] + alpha * x
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase > 0 {
      io.comeHome()
      return .update(io.operation(slots: [1]) { Mix(alpha: $0.alpha) })
    }
    let norm = io.sum(SquaredNorm()).root(0)
    io.change(parameters: true) { KeepAndAscend(scale: perLength($0.r, norm, $0.eps)) }
    return .ask(Ask(.gradient))
  }
}
