import ThalwegCore

/// GLAD: the gradient loses the part that goes against the sharpness-aware one.
///
///     g_s = gradient at θ + ρ·g/‖g‖;   d = ⟨g, g_s⟩ over all tensors;   d < 0:  g ← g − d/max(‖g_s‖², ε)·g_s
///
/// State    the parameters and the gradient while it asks; nothing between steps.
/// Differs  the paper says that the sharpness-aware gradient steers the other; the formula is a projection of the
///          library's choice.
/// Source   Peng et al., 2025, arXiv:2507.13089.
struct GLAD: Source {
  static let method = Method(
    "glad", .perturbation, "The gradient loses the part that goes against the sharpness-aware one.",
    rule: """
      g_s = gradient at theta + rho*g/|g|;  d = <g, g_s> over all tensors;  d < 0: g <- g - d/max(|g_s|^2, eps)*g_s
      """,
    source: "Peng et al., 2025, arXiv:2507.13089",
    parameters: [
      .number("rho", 0.05, .atLeast(0), "radius"), .number("eps", 1e-12, .above(0), "floor of the squared norm").forAll,
    ],
    slots: [homeSlot, gradientSlot], requests: "gradient")

  let slots = GLAD.method.slots
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }
  private struct Project: ElementOperation {
    let along: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = s[0] - along * x }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase == 0 {
      let norm = io.sum(SquaredNorm()).root(0)
      io.change(parameters: true) { KeepAndAscend(scale: perLength($0.rho, norm, 0)) }
      return .ask(Ask(.gradient))
    }
    let products = io.sum(SlotProducts(), slots: [1]), eps: Double = io.hyper.eps
    let along = products[1] < 0 ? products[1] / max(products[2], eps) : 0
    io.comeHome()
    return .update(io.operation(Project(along: along), slots: [1]))
  }
}

/// GAQAT: task gradients that hardly change their sign are left out, the smoothness gradient stays.
///
///     g_s = gradient at θ + ρ·g/‖g‖;   g ← (0 where frozen, else g) + g_s
///     every `window` steps:  frozen = (sign changes of g within the window)/(window − 1) < threshold, by entry
///
/// It is for the scales of quantisers: `route` says which tensors they are.
/// State    the last sign, the changes in this window, whether an entry is frozen; the steps so far.
/// Differs  window, threshold and that a window begins without changes are the library's choice. A sign of 0 is one of
///          its own; the first is no change. A tensor that is absent keeps its numbers, and counts on from there.
/// Source   Jiang et al., 2024, arXiv:2412.05551.
struct GAQATFreeze: Source {
  static let method = Method(
    "gaqat_freeze", .perturbation,
    "Task gradients that hardly change their sign are left out beside a smoothness gradient.",
    rule: """
      g_s = gradient at theta + rho*g/|g|;  g <- (0 where frozen, else g) + g_s
      every window steps: frozen = (sign changes of g)/(window - 1) < threshold
      """,
    source: "Jiang et al., 2024, arXiv:2412.05551",
    parameters: [
      .integer("window", 100, .within(2, 0x1p30), "steps from one decision to the next", live: false),
      .number("threshold", 0.3, .within(0, 1), "changes of sign below which an entry is frozen"),
      .number("rho", 0.05, .atLeast(0), "radius"),
    ],
    slots: [
      homeSlot, gradientSlot, Slot("sign", "the last sign of the gradient; 2 before the first", start: .value(2)),
      Slot("changes", "changes of it in this window"), Slot("frozen", "1 where the task gradient is left out"),
    ], requests: "gradient")

  let slots = GAQATFreeze.method.slots
  let scalars = [Scalar("steps")]
  private let window: Int
  init(_ h: Hyper) { window = max(2, h.integer("window")) }
  func most(_ tensors: Int) -> Int { 2 }

  /// The sum of both gradients; state counts the change and, at the end of a window, decides.
  private struct Count: ElementOperation {
    let counts, decides: Bool, least: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let task = s[1], sign = task.sign, zero = L(0), one = L(1)
      s[1] = L.select(L.less(zero, s[4]), zero, task) + g
      var changes = s[3]
      if counts { changes = changes + L.select(L.equal(s[2], L(2)), zero, L.select(L.equal(sign, s[2]), zero, one)) }
      s[2] = sign
      if decides { s[4] = L.select(L.less(changes, L(least)), one, zero) }
      s[3] = decides ? zero : changes
      x = s[0]
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase == 0 {
      let norm = io.sum(SquaredNorm()).root(0)
      io.change(parameters: true) { KeepAndAscend(scale: perLength($0.rho, norm, 0)) }
      return .ask(Ask(.gradient))
    }
    let step = io.counter(0) % window
    io.change(parameters: true) { h in
      Count(counts: step > 0, decides: step + 1 == window, least: h.threshold * Double(window - 1))
    }
    io.setScalar(0, Double(io.counter(0) + 1))
    return .update(io.gradient(in: 1))
  }
}
