import ThalwegCore

/// Average-direction SAM: the gradient at a random point nearby, or its mean over several.
///
///     the rule sees the mean over the draws of the gradient at θ + σ·z, z standard normal
///
/// State    the parameters while they are away, z, and with several draws the sum of the gradients.
/// Differs  draw k of step t is the library's draw t·draws + k. Which tensors have a gradient is not known when the
///          first request is made: the first step asks once more, and a tensor that joins later takes its first
///          gradient where it stands.
/// Source   Zhu, He, Song, Tang, Zhang and Tao, 2023, arXiv:2306.02913.
struct AvgSAM: Source {
  static let method = Method(
    "avg_sam", .perturbation, "The gradient at a random point nearby, or its mean over several.",
    rule: "g <- mean over the draws of the gradient at theta + sigma*z,  z ~ N(0, 1)",
    source: "Zhu, He, Song, Tang, Zhang, Tao, 2023, arXiv:2306.02913",
    parameters: [
      .number("sigma", 0.01, .atLeast(0), "standard deviation of the displacement"),
      .integer("draws", 1, .within(1, 0x1p20), "gradients that are averaged in a step", live: false),
    ],
    slots: [homeSlot, Slot.temporary("noise", "the normal numbers z")], requests: "gradient")

  let slots: [Slot]
  let scalars = [Scalar("steps")]
  private let point = 0, noise = 1, total = 2
  private let draws: Int
  init(_ h: Hyper) {
    draws = max(1, h.integer("draws"))
    slots = AvgSAM.method.slots + (draws > 1 ? [Slot.temporary("sum", "the gradients of the draws so far")] : [])
  }
  var opens: Bool { true }
  func most(_ tensors: Int) -> Int { draws + 1 }

  private struct Displace: ElementOperation {
    let sigma: Double, first: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      if first { s[0] = x }
      x = s[0] + sigma * s[1]
    }
  }
  private struct Add: ElementOperation {
    let first: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = first ? g : s[0] + g
    }
  }
  private struct Mean: ElementOperation {
    let share: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = share * s[0] }
  }

  private func displace(_ draw: Int, _ io: SourceIO) {
    io.draw(noise, signs: false, number: io.step &* draws &+ draw)
    io.change(slots: [point, noise], parameters: true) { Displace(sigma: $0.sigma, first: draw == 0) }
  }
  func opening(_ io: SourceIO) -> Ask? {
    if io.scalar(0) > 0 { displace(0, io) }
    return Ask(.gradient)
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let draw = io.scalar(0) == 0 ? phase - 1 : phase  // whose gradient has come
    if draw >= 0 {
      io.saveHome()  // of those that have just joined
      if draws > 1 { io.change(Add(first: draw == 0), slots: [total], parameters: false) }
    }
    if draw + 1 < draws {
      displace(draw + 1, io)
      return .ask(Ask(.gradient))
    }
    io.setScalar(0, io.scalar(0) + 1)
    io.comeHome()
    return .update(draws > 1 ? io.operation(Mean(share: 1 / Double(draws)), slots: [total]) : nil)
  }
}
