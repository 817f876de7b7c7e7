import ThalwegCore

/// GSAM: SAM, and the part of the first gradient across the second is climbed, so that the gap between them shrinks.
///
///     e as in sam, or with `adaptive` ρ·θ²·g/(‖θ·g‖ + ε);   g′ = gradient at θ + e
///     c = ⟨g, g′⟩/(‖g‖·‖g′‖ + ε);   v = g − c·‖g‖·g′/(‖g′‖ + ε);   g ← g′ − α·v
///
/// State    the parameters and the gradient while it asks; nothing between steps.
/// Differs  nothing from juntang-zhuang/GSAM and pytorch_optimizer.GSAM. alpha=0 is sam. All products are over all
///          tensors.
/// Source   Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan and Liu, 2022, arXiv:2203.08065.
struct GSAM: Source {
  static let method = Method(
    "gsam", .perturbation, "SAM that also climbs the part of the first gradient across the second.",
    rule: """
      e = rho/(|g| + eps) * g;  adaptive: rho/(|theta*g| + eps) * theta^2*g;  n = gradient at theta + e
      c = <g, n>/(|g| |n| + eps);  v = g - c*|g|*n/(|n| + eps);  g <- n - alpha*v
      """,
    source: "Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan, Liu, 2022, arXiv:2203.08065",
    parameters: [
      .number("rho", 0.05, .atLeast(0), "radius"),
      .number("alpha", 0.4, .within(0, 1), "weight of the part that is climbed"), .eps(1e-12, "in the norms").forAll,
      .flag("adaptive", false, "measure in units of the parameters").forAll,
    ],
    slots: [homeSlot, gradientSlot], requests: "gradient")

  let slots = GSAM.method.slots
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }
  /// g′ − α·(g − share·g′).
  private struct Decompose: ElementOperation {
    let alpha, share: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      x = x - alpha * (s[0] - share * x)
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let eps: Double = io.hyper.eps
    if phase > 0 {
      let sums = io.sum(SlotProducts(), slots: [1]), old = sums.root(0), new = sums.root(2)
      let share = new == 0 ? 0 : sums[1] / (old * new + eps) * old / (new + eps)
      io.comeHome()
      return .update(io.operation(slots: [1]) { Decompose(alpha: $0.alpha, share: old == 0 ? 0 : share) })
    }
    let metric = Metric(adapts: io.hyper.adaptive)
    let norm = io.sum(MetricNorm(metric: metric)).root(0)
    io.change(parameters: true) { KeepAndAscend(metric, scale: perLength($0.rho, norm, eps)) }
    return .ask(Ask(.gradient))
  }
}
