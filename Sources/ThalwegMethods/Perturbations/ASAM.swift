import ThalwegCore

/// Adaptive SAM: the ball is measured in units of the parameters, so that a rescaled network has the same one.
///
///     t = |θ| + η, or 1 where `normalized` is off;   e = ρ·t²·g/(‖t·g‖ + ε), ‖·‖ over all tensors
///     the rule sees the gradient at θ + e, on the same minibatch
///
/// State    the parameters while they are away; nothing between steps.
/// Differs  nothing from SamsungLabs/ASAM, where `normalized` is off for biases and normalisation layers: a group's own
///          value here. With eta=0 it is the adaptive form of davda54/sam and pytorch_optimizer.
/// Source   Kwon, Kim, Park and Choi, 2021, arXiv:2102.11600.
struct ASAM: Source {
  static let method = Method(
    "asam", .perturbation, "The gradient at the worst point of a ball measured in units of the parameters.",
    rule: """
      t = |theta| + eta, or 1 without normalized;  e = rho/(|t*g| + eps) * t^2*g, the norm over all tensors
      g <- gradient at theta + e, on the same minibatch
      """,
    source: "Kwon, Kim, Park, Choi, 2021, arXiv:2102.11600",
    parameters: [
      .number("rho", 0.5, .atLeast(0), "radius"), .number("eta", 0.01, .atLeast(0), "added to |theta|"),
      .flag("normalized", true, "measure in units of the parameters: off for biases and norms in the paper"),
      .eps(1e-12, "added to the norm"),
    ],
    slots: [homeSlot], requests: "gradient")

  let slots = ASAM.method.slots
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }

  private func metric(_ h: Hyper) -> Metric { Metric(adapts: h.normalized, eta: h.eta) }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase > 0 {
      io.comeHome()
      return .update(nil)
    }
    let norm = io.sum { MetricNorm(metric: metric($0)) }.root(0)
    io.change(parameters: true) { Ascend(metric($0), scale: perLength($0.rho, norm, $0.eps)) }
    return .ask(Ask(.gradient))
  }
}
