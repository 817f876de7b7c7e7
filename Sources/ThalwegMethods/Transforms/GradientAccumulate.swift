import ThalwegCore

/// Accumulates gradients over several calls; the pipeline steps at the last of them.
///
///     acc ← acc + g   (weighted: acc + samples·g);   at the `every`-th call  g = acc/calls, acc (sum), or acc/Σ
///     samples
///
/// State    acc; the calls, samples and losses of the window. Where a stage behind needs the loss it gets that of the
///          window, made of the losses of its calls as the gradient is; one that asks for a loss alone (a trial, a rule
///          behind an aggregator) has it asked for each minibatch of the window. Hessian
///          products are those of the first minibatch.
/// Differs  nothing from optax.MultiSteps. The command `flush` steps with what a window has so far; an empty window
///          does nothing. weighted needs observe("samples", n) before a call. A call in which a tensor has no gradient
///          counts as zeros; before a source that asks for more, and over ranks, a tensor without one at the last call
///          is not moved in that window.
/// Source   folklore.
struct GradientAccumulate: Source {
  static let method = Method(
    "gradient_accumulate", .transform,
    "Accumulates gradients over several calls; the pipeline steps at the last of them, or at a flush.",
    rule: """
      acc <- acc + g  (weighted: acc + samples*g)
      at the every-th call: g = acc/calls (mean), acc (sum), acc/(sum of samples) (weighted: observe "samples")
      command "flush": the step with what there is
      """,
    source: "folklore",
    parameters: [
      .integer("every", 4, .atLeast(1), "calls for one step").forAll,
      .choice("mode", ["mean", "sum", "weighted"], "of the gradients", live: false),
    ])

  let slots = [Slot("acc", "the accumulated gradient")]
  let scalars = [Scalar("calls"), Scalar("samples"), Scalar("loss"), Scalar("losses")]
  let single = true
  let commands = ["flush"]
  let observes: [String]
  private let sum, weighted: Bool

  init(_ h: Hyper) {
    (sum, weighted) = (h.is("mode", "sum"), h.is("mode", "weighted"))
    observes = weighted ? ["samples"] : []
  }

  private struct Add: ElementOperation {
    let keep, weight: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      // (the mean gradient of no samples may be no number)
      let more = weight == 0 ? L(0) : weight * g
      s[0] = keep == 0 ? more : s[0] + more
    }
  }
  /// The gradient of the window, in place: a flush needs no gradient of the host.
  private struct Take: ElementOperation {
    let factor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = s[0] * factor }
  }

  /// What a minibatch counts.
  private func weight(_ io: SourceIO) throws(Failure) -> Double {
    if !weighted { return 1 }
    let weight = io.observed("samples")
    guard !weight.isNaN else {
      throw Failure(
        Status.needs,
        "gradient_accumulate: mode=weighted needs the number of samples: observe \"samples\" before the step")
    }
    guard weight >= 0, weight.isFinite else {
      throw Failure(Status.range, "gradient_accumulate: the number of samples must be at least 0, got \(text(weight))")
    }
    return weight
  }
  func window(_ io: SourceIO) throws(Failure) -> Window? {
    Window(minibatches: counted(io.hyper.every.rounded(.up), most: 1 << 31), weight: try weight(io), divides: !sum)
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let weight = try weight(io)
    if weighted {
      let before = io.scalar(0) == 0 ? 0 : io.scalar(1)
      guard before + weight > 0 || io.scalar(0) + 1 < io.hyper.every else { throw GradientAccumulate.empty }
    }
    let calls = io.scalar(0)
    if calls == 0 { io.clearAbsent(0) }
    io.change(Add(keep: calls == 0 ? 0 : 1, weight: weight), parameters: false)
    io.setScalar(0, calls + 1)
    io.setScalar(1, (calls == 0 ? 0 : io.scalar(1)) + weight)
    io.setScalar(2, (calls == 0 ? 0 : io.scalar(2)) + (io.lossIsNew && weight != 0 ? weight * io.loss : 0))
    io.setScalar(3, (calls == 0 ? 0 : io.scalar(3)) + (io.lossIsNew ? 1 : 0))
    return calls + 1 < io.hyper.every ? .nothing : take(io)
  }

  /// The mean of no samples is nothing.
  private static let empty = Failure(
    Status.range, "gradient_accumulate: the window has no samples; nothing was changed")

  /// The gradient of the window, which then is over.
  private func take(_ io: SourceIO) -> Move {
    let divisor = sum ? 1 : weighted ? io.scalar(1) : io.scalar(0)
    if io.scalar(3) == io.scalar(0) { io.setLoss(io.scalar(2) / divisor) }
    io.setScalar(0, 0)
    io.takeUpAbsent(0)
    io.change(Take(factor: 1 / divisor), parameters: false)
    return .update(io.gradient(in: 0))
  }

  func command(_ name: String, _ io: SourceIO) throws(Failure) -> Move {
    if io.scalar(0) == 0 { return .nothing }
    if weighted, io.scalar(1) == 0 { throw GradientAccumulate.empty }
    return take(io)
  }
}
