import ThalwegCore

/// Unnormalised SAM: the gradient at the end of a step of gradient ascent.
///
///     the rule sees the gradient at θ + ρ·g, on the same minibatch
///
/// State    the parameters while they are away; nothing between steps.
/// Differs  nothing. Every group has its own ρ. Unstable where ρ times a curvature is large.
/// Source   Andriushchenko and Flammarion, 2022, arXiv:2206.06232.
struct USAM: Source {
  static let method = Method(
    "usam", .perturbation, "The gradient at the end of a step of gradient ascent.",
    rule: "g <- gradient at theta + rho*g, on the same minibatch",
    source: "Andriushchenko, Flammarion, 2022, arXiv:2206.06232; Compagnoni et al., 2023, arXiv:2301.08203",
    parameters: [.number("rho", 0.05, .atLeast(0), "step of the ascent")], slots: [homeSlot], requests: "gradient")

  let slots = USAM.method.slots
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase > 0 {
      io.comeHome()
      return .update(nil)
    }
    io.change(parameters: true) { Ascend(scale: $0.rho) }
    return .ask(Ask(.gradient))
  }
}
