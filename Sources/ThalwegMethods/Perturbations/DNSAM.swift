import ThalwegCore

/// SAM with deterministic normalisation: the perturbation is the gradient over the norm of the full gradient.
///
///     e = ρ·g/(n + ε), n the norm of the gradient over all data;   the rule sees the gradient at θ + e
///
/// State    n, as it was last observed; the parameters while they are away.
/// Differs  n comes from observe("full_gradient_norm", n), whenever the host has measured it; until then it is ‖g‖,
///          which is sam. n = 0 moves nothing. A device of analysis: the definition is UNVERIFIED against the text.
/// Source   Compagnoni, Biggio, Orvieto, Proske, Kersting and Lucchi, 2023, arXiv:2301.08203.
struct DNSAM: Source {
  static let method = Method(
    "dnsam", .perturbation, "SAM whose perturbation is divided by the norm of the full gradient.",
    rule: """
      e = rho*g/(n + eps), n the norm of the gradient over all data as last observed, |g| before
      (observe "full_gradient_norm")
      g <- gradient at theta + e, on the same minibatch
      """,
    source: "Compagnoni, Biggio, Orvieto, Proske, Kersting, Lucchi, 2023, arXiv:2301.08203",
    parameters: [.number("rho", 0.05, .atLeast(0), "radius"), .eps(1e-12, "added to the norm")],
    slots: [homeSlot], requests: "gradient")

  let slots = DNSAM.method.slots
  let scalars = [Scalar("norm", -1)]
  let observes = ["full_gradient_norm"]
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase > 0 {
      io.comeHome()
      return .update(nil)
    }
    let told = io.observed("full_gradient_norm")
    guard told.isNaN || (told >= 0 && told.isFinite) else {
      throw Failure(
        Status.range, "dnsam: the norm observed must be finite and not negative, got \(text(told)); nothing was changed"
      )
    }
    if !told.isNaN { io.setScalar(0, told) }
    let norm = io.scalar(0) >= 0 ? io.scalar(0) : io.sum(SquaredNorm()).root(0)
    io.change(parameters: true) { Ascend(scale: perLength($0.rho, norm, $0.eps)) }
    return .ask(Ask(.gradient))
  }
}
