import ThalwegCore

/// nuPI: a proportional and integral controller for the multipliers of constraints.
///
///     u = ki·e + kp·(1 − ν)·(e − ξ), without kp at the first visit with init=sgd;   ξ ← ν·ξ + (1 − ν)·e
///     p ← p − lr·(u + wd·p)      init=sgd: the first visit leaves ξ = 0
///
/// e is the gradient that the rule sees: of multipliers the violation, with `maximize`, so that p rises with it.
/// `| project(...)` behind it keeps multipliers of inequalities from 0 on.
/// State    ξ.
/// Differs  nothing from cooper.optim.nuPI, which sets ξ = 0 at the first visit whatever its text says.
/// Source   Sohrabi, Ramirez, Zhang, Lacoste-Julien and Gallego-Posada, 2024, arXiv:2406.04558.
struct NuPI: ElementRule {
  static let method = Method(
    "nupi", .optimizer, "A proportional and integral controller for the multipliers of constraints.",
    rule: """
      u = ki*e + kp*(1 - ema_nu)*(e - xi), without kp at the first visit with init=sgd
      xi <- ema_nu*xi + (1 - ema_nu)*e;  p <- p - lr*(u + weight_decay*p)
      """,
    source: "Sohrabi, Ramirez, Zhang, Lacoste-Julien, Gallego-Posada, 2024, arXiv:2406.04558",
    parameters: [
      .lr(nil), .number("kp", 0, .any, "proportional gain"), .number("ki", 1, .any, "integral gain"),
      .number("ema_nu", 0, .between(-1, 1, lowOpen: true, highOpen: true), "rate of the average of errors"),
      .choice("init", ["sgd", "zeros"], "the first visit: a plain step, or one with xi = 0", live: false),
      .weightDecay(0, "decay of the multipliers"),
    ],
    slots: [Slot("xi", "the average of errors")])

  static func decay(_ h: Hyper) -> Decay { .rule }
  let ki, gain, nu, decay: Double, first: Bool
  init(_ h: Hyper, _ c: StepContext) {
    (ki, nu, decay, first) = (h.ki, h.ema_nu, c.weightDecay, c.t == 1 && h.is("init", "sgd"))
    gain = first ? 0 : h.kp * (1 - h.ema_nu)
  }

  @inline(__always) func direction<L: Lane>(_ e: L, _ p: L, _ s: Slots<L>) -> L {
    let xi = s[0]
    s[0] = first ? L(0) : nu * xi + (1 - nu) * e
    return ki * e + gain * (e - xi) + decay * p
  }
}
