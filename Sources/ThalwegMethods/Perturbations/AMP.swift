import ThalwegCore

/// Adversarial model perturbation: steps of gradient ascent that stay in a ball; the rule sees the gradient at their
/// end.
///
///     d = 0;   inner_iter times:  d ← d + inner_lr·g at θ + d;   ‖d‖ > ε:  d ← d·ε/‖d‖
///
/// State    the parameters and d while it asks; nothing between steps.
/// Differs  a ball for each tensor, as in hiyouga/AMP-Regularizer; scope=global is the one ball of the paper. 1e-12 is
///          added to ‖d‖. Other than in sam a small gradient gives a small perturbation.
/// Source   Zheng, Zhang and Mao, 2020, arXiv:2010.04925.
struct AMP: Source {
  static let method = Method(
    "amp", .perturbation, "The gradient at the end of steps of gradient ascent that stay in a ball.",
    rule: """
      d = 0;  inner_iter times: d <- d + inner_lr*(gradient at theta + d);  d <- d*min(1, epsilon/(|d| + 1e-12))
      |d| of each tensor, with scope=global of all together
      g <- gradient at theta + d, on the same minibatch
      """,
    source: "Zheng, Zhang, Mao, 2020, arXiv:2010.04925",
    parameters: [
      .number("epsilon", 0.5, .atLeast(0), "radius of the ball").forAll,
      .number("inner_lr", 1, .atLeast(0), "step of the ascent"),
      .integer("inner_iter", 1, .atLeast(1), "steps of the ascent").forAll,
      .choice("scope", scopes, "a ball for each tensor, or one for all together").forAll,
    ],
    slots: [homeSlot, Slot.temporary("deviation", "the deviation d")], requests: "gradient")

  let slots = AMP.method.slots
  private let point = 0, deviation = 1
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { .max }  // the number of requests is a hyper-parameter that may change
  private struct Climb: ElementOperation {
    let lr: Double, first: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      if first { s[0] = x }
      s[1] = first ? lr * g : s[1] + lr * g
    }
  }
  private struct Stay: ElementOperation {
    let factor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[1] = factor * s[1]
      x = s[0] + s[1]
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let h = io.hyper, steps: Double = h.inner_iter, radius: Double = h.epsilon
    if Double(phase) >= steps {
      io.comeHome()
      return .update(nil)
    }
    io.change(parameters: false) { Climb(lr: $0.inner_lr, first: phase == 0) }
    func inside(_ norm: Double) -> Stay { Stay(factor: smaller(1, radius / (norm + 1e-12))) }
    if h.is("scope", "tensor") {
      let each = io.sums(SlotNorm(), slots: [deviation])
      io.change(parameters: true, each: { inside(each[$0].root(0)) })
    } else {
      io.change(inside(io.sum(SlotNorm(), slots: [deviation]).root(0)), parameters: true)
    }
    return .ask(Ask(.gradient))
  }
}
