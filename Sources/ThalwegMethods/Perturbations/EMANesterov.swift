import ThalwegCore

/// EMA-Nesterov: the step starts, and its gradient is taken, at a point ahead along the average displacement.
///
///     b ← ema·b + (1 − ema)·(θ − θ of the step before), from 0;   while prefill ≤ k < rest:  θ ← θ + s·b
///     s = stepsize, with scheduled times lr/max_lr;   the rule steps from there, with the gradient there
///
/// State    b, and θ of the step before; the largest lr so far; the parameters while they are ahead.
/// Differs  nothing from the speed runs. lr is the largest step size of the tensors, and max_lr none the largest one so
///          far: with a schedule that rises first, give its peak. b is kept outside the active steps too. Behind
///          another method that asks for gradients, and in a pipeline of `route`, the point ahead gives the gradient
///          alone.
/// Source   arXiv:2605.25395; modded-nanogpt, 2025 (track 3).
struct EMANesterov: Source {
  static let method = Method(
    "ema_nesterov", .perturbation,
    "The step starts, and its gradient is taken, at a point ahead along the average displacement.",
    rule: """
      s = stepsize, scheduled: times lr/max_lr
      b <- ema*b + (1 - ema)*(theta - theta of the step before), from 0
      while prefill_steps <= k < rest_steps: theta <- theta + s*b, and the rule steps from there
      """,
    source: "arXiv:2605.25395; modded-nanogpt, 2025 (track 3)",
    parameters: [
      .number("stepsize", 0.3, .atLeast(0), "how far ahead, in average displacements"),
      .rate("ema", 0.99, "rate of the average displacement"),
      .integer("prefill_steps", 0, .atLeast(0), "steps before the first point ahead"),
      .number("rest_steps", .infinity, .atLeast(0), "the step from which on there is none"),
      .flag("scheduled", true, "stepsize times lr/max_lr").forAll,
      .maybe("max_lr", .above(0), "peak of the step size; none: the largest so far").forAll,
    ],
    slots: [
      Slot("last", "the parameters of the step before", start: .iterate()), Slot("displacement", "the average b"),
      Slot.home("point", "the parameters while they are ahead"),
    ], requests: "gradient")

  let last = 0, displacement = 1, point = 2
  var slots: [Slot] { EMANesterov.method.slots }
  var scalars: [Scalar] { [Scalar("max_lr")] }
  init(_ h: Hyper) {}

  var opens: Bool { true }
  var tellsLoss: Bool { true }  // of the point ahead, from where the rule steps
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

  /// The step size of this step, and its peak.
  private func rates(_ io: SourceIO) -> (now: Double, peak: Double) {
    let now = io.tensors { _ in true }.reduce(0) { max($0, io.stepSize(of: $1)) }
    return (now, io.hyper.has("max_lr") ? io.hyper.max_lr : max(now, io.scalar(0)))
  }
  func opening(_ io: SourceIO) -> Ask? {
    let k = Double(io.step), lr = rates(io)
    let share = io.hyper.scheduled && lr.peak > 0 ? lr.now / lr.peak : 1
    io.change(slots: [point, last, displacement], parameters: true) { h in
      let active = k >= h.prefill_steps && k < h.rest_steps
      return Ahead(size: active ? h.stepsize * share : 0, ema: h.ema)
    }
    return nil
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    io.saveHome()  // of tensors that did not go ahead
    io.setScalar(0, max(io.scalar(0), rates(io).now))
    io.change(slots: [point, last, displacement], parameters: false) { Follow(ema: $0.ema) }
    return .update(nil)
  }
}
