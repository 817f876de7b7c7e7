import ThalwegCore

/// FedProx: local gradients with a pull to the parameters at the start of the round.
///
///     g ← g + μ·(θ − θ_global),   θ_global = θ at the first of every `round` steps
///
/// The host writes the server's parameters before the first step of a round.
/// State    θ_global.
/// Differs  nothing from the card. A tensor counts its own steps.
/// Source   Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, 2018, arXiv:1812.06127.
struct FedProxGrad: ElementRule {
  static let method = Method(
    "fedprox_grad", .transform, "FedProx: local gradients with a pull to the parameters at the start of the round.",
    rule: "g <- g + mu*(theta - theta_global);  theta_global = theta at the first of every `round` steps",
    source: "Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, 2018, arXiv:1812.06127",
    parameters: [
      .number("mu", 0.01, .atLeast(0), "strength of the pull"),
      .integer("round", 8, .atLeast(1), "local steps of a round", live: false),
    ],
    slots: [Slot("global", "the parameters at the start of the round", start: .parameters)])

  static func phases(_ h: Hyper) -> Int { 1 }
  static var perTensor: Bool { true }
  let mu: Double, begins: Bool
  init(_ h: Hyper, _ c: StepContext) { (mu, begins) = (h.mu, (c.t - 1) % max(1, h.integer("round")) == 0) }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ v: L, _ w: L, _ s: Slots<L>, _ sums: inout Sums) {
    if begins { s[0] = w }
  }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v + mu * (w - s[0]) }
}
