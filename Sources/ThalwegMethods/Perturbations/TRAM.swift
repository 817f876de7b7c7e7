import ThalwegCore

/// TRAM: the radius of the ball is the divergence between the model's predictions now and those of a reference.
///
///     r = scale·d;   adaptive: e = r·θ²·g/(‖θ·g‖ + ε),  else e = r·g/(‖g‖ + ε)
///     the rule sees the gradient at θ + e, on the same minibatch
///
/// State    d as it was last observed, 0 at first; the parameters while they are away.
/// Differs  d comes from observe("divergence", d) before a step: the mean over the batch of KL(reference ‖ now), of the
///          model a step before, of the pre-trained one, or of itself on noisy inputs, is the host's. Until it is told
///          the step is plain, as against the model itself. The authors' code moves along θ²/‖θ·g‖ without g, which is
///          no direction of ascent; this is the paper's formula. The form with the Fisher metric is not there.
/// Source   Sherborne, Saphra, Dasigi and Peng, 2023, arXiv:2310.03646.
struct TRAM: Source {
  static let method = Method(
    "tram", .perturbation, "SAM whose radius is the divergence from the predictions of a reference.",
    rule: """
      r = scale*d, d the divergence as last observed (observe "divergence")
      adaptive: e = r/(|theta*g| + eps) * theta^2*g
      else e = r/(|g| + eps) * g;  g <- gradient at theta + e, on the same minibatch
      """,
    source: "Sherborne, Saphra, Dasigi, Peng, 2023, arXiv:2310.03646",
    parameters: [
      .number("scale", 1, .above(0), "factor of the divergence"),
      .flag("adaptive", true, "measure in units of the parameters").forAll, .eps(1e-12, "added to the norm"),
    ],
    slots: [homeSlot], requests: "gradient")

  let slots = TRAM.method.slots
  let scalars = [Scalar("divergence")]
  let observes = ["divergence"]
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase > 0 {
      io.comeHome()
      return .update(nil)
    }
    let told = io.observed("divergence")
    guard told.isNaN || (told >= 0 && told.isFinite) else {
      throw Failure(
        Status.range,
        "tram: the divergence observed must be finite and not negative, got \(text(told)); nothing was changed")
    }
    if !told.isNaN { io.setScalar(0, told) }
    let d = io.scalar(0), metric = Metric(adapts: io.hyper.adaptive)
    let norm = io.sum(MetricNorm(metric: metric)).root(0)
    io.change(parameters: true) { Ascend(metric, scale: perLength($0.scale * d, norm, $0.eps)) }
    return .ask(Ask(.gradient))
  }
}
