import ThalwegCore

/// Sharpness-aware minimization: the gradient at the worst point, to first order, of a ball around the parameters.
///
///     l2:  e = ρ/(‖g‖ + ε)·g over all tensors;   linf:  e = ρ·sign(g)
///     the rule sees the gradient at θ + e, on the same minibatch
///
/// State    the parameters while they are away; nothing between steps.
/// Differs  nothing from davda54/sam; without a gradient there is no perturbation. Every group has its own ρ, ε and
///          ball; ‖g‖ is over all of them.
/// Source   Foret, Kleiner, Mobahi and Neyshabur, 2020, arXiv:2010.01412.
struct SAM: Source {
  static let method = Method(
    "sam", .perturbation, "The gradient at the worst point, to first order, of a ball around the parameters.",
    rule: """
      l2: e = rho/(|g| + eps) * g over all tensors;  linf: e = rho*sign(g)
      g <- gradient at theta + e, on the same minibatch
      """,
    source: "Foret, Kleiner, Mobahi, Neyshabur, 2020, arXiv:2010.01412",
    parameters: [
      .number("rho", 0.05, .atLeast(0), "radius"), .eps(1e-12, "added to the norm"),
      .choice("norm", ["l2", "linf"], "of the ball"),
    ],
    slots: [Slot.home("point", "the parameters while they are away")], requests: "gradient")

  let slots = SAM.method.slots
  init(_ h: Hyper) {}

  func most(_ tensors: Int) -> Int { 2 }
  private struct Perturb: ElementOperation {
    let scale: Double, signs: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = x
      x = x + scale * (signs ? g.sign : g)
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase > 0 {
      io.comeHome()
      return .update(nil)
    }
    let norm = io.sum(SquaredNorm()).root(0)
    io.change(parameters: true) { h in
      let signs = h.is("norm", "linf")
      return Perturb(scale: signs ? h.rho : norm == 0 ? 0 : h.rho / (norm + h.eps), signs: signs)
    }
    return .ask(Ask(.gradient))
  }
}
