import ThalwegCore

/// Friendly SAM: the perturbation follows the noise of the minibatch alone, the gradient less its moving average.
///
///     d = g − σ·m with the average of the steps before (at the first step m = 0);   e = ρ·d/(‖d‖ + ε)
///     m ← λ·m + (1 − λ)·g, from the first g;   the rule sees the gradient at θ + e, on the same minibatch
///
/// State    m; while it asks, the parameters and d.
/// Differs  nothing from nblt/F-SAM and pytorch_optimizer.FriendlySAM. d = 0 moves nothing. The first step is that of
///          each tensor.
/// Source   Li, Zhou, He, Cheng and Huang, 2024, arXiv:2403.12350.
struct FriendlySAM: Source {
  static let method = Method(
    "friendly_sam", .perturbation, "SAM along the gradient less its moving average: the noise of the minibatch.",
    rule: """
      d = g - sigma*m with the old m, g at the first step;  m <- lmbda*m + (1 - lmbda)*g, from the first g
      e = rho/(|d| + eps) * d;  g <- gradient at theta + e, on the same minibatch
      """,
    source: "Li, Zhou, He, Cheng, Huang, 2024, arXiv:2403.12350",
    parameters: [
      .number("rho", 0.05, .atLeast(0), "radius"), .number("sigma", 1, .atLeast(0), "share of the average taken out"),
      .rate("lmbda", 0.9, "decay of the average"), .eps(1e-12, "added to the norm"),
    ],
    slots: [
      Slot("average", "the moving average m of the gradient"), homeSlot,
      Slot.temporary("direction", "the perturbation's direction d"), gradientSlot,
    ],
    requests: "gradient")

  let slots = FriendlySAM.method.slots
  private let average = 0, point = 1, direction = 2, gradient = 3
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }
  private struct Differ: ElementOperation {
    let sigma: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[1] = g - sigma * s[0]
      s[2] = g
    }
  }
  private struct Length: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, s[0], times: s[0])
    }
  }
  private struct Follow: ElementOperation {
    let keep: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = keep * s[0] + (1 - keep) * s[1]
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase > 0 {
      io.change(
        slots: [average, gradient], parameters: false,
        each: { tensor in
          Follow(keep: io.steps(of: tensor) == 0 ? 0 : io.hyper(of: tensor).lmbda)
        })
      io.comeHome()
      return .update(nil)
    }
    io.change(slots: [average, direction, gradient], parameters: false) { Differ(sigma: $0.sigma) }
    let norm = io.sum(Length(), slots: [direction]).root(0)
    io.change(slots: [point, direction], parameters: true) { AscendAlong(scale: perLength($0.rho, norm, $0.eps)) }
    return .ask(Ask(.gradient))
  }
}
