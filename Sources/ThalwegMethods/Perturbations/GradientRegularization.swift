import ThalwegCore

/// Finite-difference gradient regularization: the gradient of L + γ/2·‖∇L‖², g + γ·H·g, from one or two more gradients.
///
///     h = eps, or eps/(‖g‖ + 1e-12) (relative)
///     forward:  g + γ/h·(g(θ + h·g) − g);   backward:  g + γ/h·(g − g(θ − h·g));   central:  g + γ/h·(g(θ + h/2·g) −
///     g(θ − h/2·g))
///
/// State    the parameters and gradients while it asks; nothing between steps.
/// Differs  nothing from the paper; JonasGeiping/fullbatchtraining has a relative step on strength·g. g = 0 asks for
///          nothing more.
/// Source   Karakida, Takase, Hayase and Osawa, 2022, arXiv:2210.02720.
struct GradientRegularization: Source {
  static let method = Method(
    "fd_grad_reg", .perturbation,
    "The gradient of the loss with a penalty on its squared gradient norm, by finite differences.",
    rule: """
      h = eps, or eps/(|g| + 1e-12) with step=relative
      forward:  g <- g + gamma/h * (g(theta + h*g) - g)
      backward: g <- g + gamma/h * (g - g(theta - h*g))
      central:  g <- g + gamma/h * (g(theta + h/2*g) - g(theta - h/2*g))
      """,
    source: "Karakida, Takase, Hayase, Osawa, 2022, arXiv:2210.02720",
    parameters: [
      .number("gamma", 0.01, .atLeast(0), "weight of the penalty"),
      .eps(0.01, "length of the finite difference", .above(0)).forAll,
      .choice("scheme", ["forward", "backward", "central"], "of the differences", live: false),
      .choice("step", ["absolute", "relative"], "the length is eps, or eps over the norm").forAll,
    ],
    slots: [
      Slot.home("point", "the parameters while they are away"),
      Slot.temporary("gradient", "the gradient at the parameters"),
    ], requests: "gradient")

  let slots: [Slot]
  let scalars = [Scalar("h")]
  private let backward, central: Bool

  init(_ h: Hyper) {
    (backward, central) = (h.is("scheme", "backward"), h.is("scheme", "central"))
    slots =
      GradientRegularization.method.slots
      + (central ? [Slot.temporary("low_gradient", "the gradient at the lower point")] : [])
  }

  func most(_ tensors: Int) -> Int { central ? 3 : 2 }
  private struct Leave: ElementOperation {
    let h: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = x
      s[1] = g
      x = x + h * g
    }
  }
  private struct Cross: ElementOperation {
    let h: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[2] = g
      x = s[0] + h * s[1]
    }
  }
  /// g + c·(high − low); the gradient is that of the last point, in the first slot the first gradient, in the second
  /// the low one.
  private struct Combine: ElementOperation {
    let c: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      x = s[0] + c * (x - s[1])
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase == 0 {
      let norm = io.sum(SquaredNorm()).root(0)
      if norm == 0 { return .update(nil) }
      let eps: Double = io.hyper.eps
      let h = io.hyper.is("step", "relative") ? eps / (norm + 1e-12) : eps
      io.setScalar(0, h)
      io.change(Leave(h: central ? -h / 2 : backward ? -h : h), parameters: true)
      return .ask(Ask(.gradient))
    }
    let h = io.scalar(0)
    if central, phase == 1 {
      io.change(Cross(h: h / 2), parameters: true)
      return .ask(Ask(.gradient))
    }
    io.comeHome()
    return .update(io.operation(slots: central ? [1, 2] : [1, 1]) { Combine(c: $0.gamma / (backward ? -h : h)) })
  }
}
