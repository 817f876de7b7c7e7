import Glibc
import ThalwegCore

/// N-IGT: normalised steps along a momentum that is carried to the new point by extrapolation.
///
///     d ← (1 − ηₜ)·d + ηₜ·g;   θ' = θ − γₜ·d/‖d‖;   next query = θ' + (1 − ηₜ₊₁)/ηₜ₊₁ · (θ' − θ)
///     γₜ = lr·(2/(t + 2))^lr_power,  ηₜ = (2/(t + 2))^eta_power, t from 0, the steps of all;   ‖·‖ over all tensors
///
/// State    θ, d. The parameters hold the query point, where the gradient is taken; evaluation mode writes θ.
/// Differs  `eta` replaces the schedule after the first step, which always uses 1. No move when d = 0. Exponents as in
///          the policy-gradient paper; ascent is `maximize`.
/// Source   Cutkosky and Mehta, 2020, arXiv:2002.03305; Fatkhullin et al., 2023, arXiv:2302.01734.
struct NIGT: ElementRule {
  static let method = Method(
    "nigt", .optimizer, "N-IGT: normalised steps along a momentum that is carried to the new point by extrapolation.",
    rule: """
      d <- (1 - eta_t)*d + eta_t*g;  theta' = theta - gamma_t*d/|d|
      next query = theta' + (1 - eta_{t+1})/eta_{t+1} * (theta' - theta)
      gamma_t = lr*(2/(t+2))^lr_power,  eta_t = (2/(t+2))^eta_power,  t from 0
      """,
    source: "Cutkosky, Mehta, 2020, arXiv:2002.03305; Fatkhullin et al., 2023, arXiv:2302.01734",
    parameters: [
      .lr(nil), .number("lr_power", 1, .atLeast(0), "decay of the step size"),
      .number("eta_power", 0.8, .between(0, 1, lowOpen: true, highOpen: false), "decay of the mixing rate"),
      .maybe("eta", .between(0, 1, lowOpen: true, highOpen: false), "a constant mixing rate after the first step"),
      .flag("normalize", true, "divide by the norm of d", live: false),
    ],
    slots: [Slot("iterate", "the iterate theta", start: .iterate()), .moment("momentum_buffer", "the momentum d")],
    requests: "own-step")

  static func phases(_ h: Hyper) -> Int { h.normalize ? 1 : 0 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("norm", 1)] }
  static var evaluates: Bool { true }

  let eta, ahead, lr: Double
  let length: Factor
  let measured: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let t = Double(c.step), next = NIGT.mixing(h, t + 1), norm = c.scalars[0]
    (eta, ahead, lr, measured) = (NIGT.mixing(h, t), (1 - next) / next, c.lr, h.normalize)
    length = Factor(norm == 0 ? 0 : c.lr * pow(2 / (t + 2), h.lr_power) / norm)
  }

  static func mixing(_ h: Hyper, _ t: Double) -> Double {
    t == 0 ? 1 : h.has("eta") ? h.eta : pow(2 / (t + 2), h.eta_power)
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    let d = mix(g, s)
    sums.add(0, d, times: d)
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }

  @inline(__always) func mix<L: Lane>(_ g: L, _ s: Slots<L>) -> L {
    let d = (1 - eta) * s[1] + eta * g
    s[1] = d
    return d
  }

  @inline(__always) func query<L: Lane>(_ g: L, _ s: Slots<L>) -> L {
    let move = length * (measured ? s[1] : mix(g, s))
    let iterate = s[0] - move
    s[0] = iterate
    return iterate - ahead * move
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (x - query(g, s)).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { query(g, s) }
  @inline(__always) func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { s[0] }
}
