import ThalwegCore

/// Average-direction SAM: the gradient at a random point nearby.
///
///     the rule sees the gradient at θ + σ·z, z standard normal
///
/// State    the parameters while they are away, and z.
/// Differs  one draw a step. Which tensors have a gradient is not known when the first request is made: the first step
///          asks twice, and a tensor that joins later takes its first gradient where it stands.
/// Source   Zhu, He, Song, Tang, Zhang and Tao, 2023, arXiv:2306.02913.
struct AvgSAM: Source {
  static let method = Method(
    "avg_sam", .perturbation, "The gradient at a random point nearby.",
    rule: "g <- gradient at theta + sigma*z,  z ~ N(0, 1)",
    source: "Zhu, He, Song, Tang, Zhang, Tao, 2023, arXiv:2306.02913",
    parameters: [.number("sigma", 0.01, .atLeast(0), "standard deviation of the displacement")],
    slots: [homeSlot, Slot.temporary("noise", "the normal numbers z")], requests: "gradient")

  let slots = AvgSAM.method.slots
  let scalars = [Scalar("steps")]
  init(_ h: Hyper) {}
  var opens: Bool { true }
  func most(_ tensors: Int) -> Int { 2 }

  private func displace(_ io: SourceIO) {
    io.draw(1, signs: false)
    io.change(parameters: true) { AscendAlong(scale: $0.sigma) }
  }
  func opening(_ io: SourceIO) -> Ask? {
    if io.scalar(0) > 0 { displace(io) }
    return Ask(.gradient)
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase == 0, io.scalar(0) == 0 {
      displace(io)
      return .ask(Ask(.gradient))
    }
    io.setScalar(0, io.scalar(0) + 1)
    io.saveHome()  // of those that have just joined
    io.change(RestoreParameters(), parameters: true)
    return .update(nil)
  }
}
