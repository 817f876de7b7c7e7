import ThalwegCore

/// EMA-Nesterov: the step starts, and its gradient is taken, at a point ahead along the average displacement.
///
///     b ← ema·b + (1 − ema)·(θ − θ of the step before), from 0;   while prefill ≤ k < rest:  θ ← θ + stepsize·b
///     the rule steps from there, with the gradient there
///
/// State    b, and θ of the step before; the parameters while they are ahead.
/// Differs  nothing from the speed runs, but that `stepsize` does not follow the rule's rate by itself: it may be a
///          schedule of its own. b is kept outside the active steps too. Behind another method that asks for gradients
///          the point ahead gives the gradient alone.
/// Source   arXiv:2605.25395; modded-nanogpt, 2025 (track 3).
struct EMANesterov: Source {
  static let method = Method(
    "ema_nesterov", .perturbation,
    "The step starts, and its gradient is taken, at a point ahead along the average displacement.",
    rule: """
      b <- ema*b + (1 - ema)*(theta - theta of the step before), from 0
      while prefill_steps <= k < rest_steps: theta <- theta + stepsize*b, and the rule steps from there
      """,
    source: "arXiv:2605.25395; modded-nanogpt, 2025 (track 3)",
    parameters: [
      .number("stepsize", 0.3, .atLeast(0), "how far ahead, in average displacements"),
      .rate("ema", 0.99, "rate of the average displacement"),
      .integer("prefill_steps", 0, .atLeast(0), "steps before the first point ahead"),
      .number("rest_steps", .infinity, .atLeast(0), "the step from which on there is none"),
    ],
    slots: [
      Slot("last", "the parameters of the step before", start: .iterate()), Slot("displacement", "the average b"),
      Slot.home("point", "the parameters while they are ahead"),
    ], requests: "gradient")

  let last = 0, displacement = 1, point = 2
  var slots: [Slot] { EMANesterov.method.slots }
  init(_ h: Hyper) {}

  var opens: Bool { true }
  var endsAway: Bool { true }

  /// The parameters are kept, and go ahead along the average with the last displacement in it.
  private struct Ahead: ElementOperation {
    let size, ema: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = x
      if size != 0 { x = x + size * (ema * s[2] + (1 - ema) * (x - s[1])) }
    }
  }
  private struct Follow: ElementOperation {
    let ema: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[2] = ema * s[2] + (1 - ema) * (s[0] - s[1])
      s[1] = s[0]
    }
  }

  func opening(_ io: SourceIO) -> Ask? {
    let k = Double(io.step)
    io.change(slots: [point, last, displacement], parameters: true) { h in
      let active = k >= h.prefill_steps && k < h.rest_steps
      return Ahead(size: active ? h.stepsize : 0, ema: h.ema)
    }
    return nil
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    io.saveHome()  // of tensors that did not go ahead
    io.change(slots: [point, last, displacement], parameters: false) { Follow(ema: $0.ema) }
    return .update(nil)
  }
}
