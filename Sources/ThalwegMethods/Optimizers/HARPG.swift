import Glibc
import ThalwegCore

/// (N)-HARPG: steps along an estimate that a Hessian-vector product carries from each point to the next.
///
///     t = 0:  d = g;   then  d ← (1 − ηₜ)·(d + H(θ̂)·(θₜ − θₜ₋₁)) + ηₜ·g,   θ̂ = q·θₜ + (1 − q)·θₜ₋₁, q uniform in (0,
///     1)
///     θ ← θ − γₜ·d/‖d‖, or γₜ·d;   γₜ = lr·(2/(t + 2))^lr_power,  ηₜ = (2/(t + 2))^eta_power, t from 0;   ‖·‖ over all
///     tensors
///
/// State    d, θₜ₋₁; while it asks, the probe θₜ − θₜ₋₁, the gradient and the parameters of the step.
/// Differs  the exponents are UNVERIFIED. H is that of another minibatch than g. q is the normal distribution function
///          at one normal draw. No move when d = 0. A tensor without a gradient keeps its d. Transforms before the rule
///          see d. Ascent is `maximize`.
/// Source   Fatkhullin et al., 2023, arXiv:2302.01734.
struct HARPG: ElementRule {
  static let method = Method(
    "harpg", .optimizer,
    "(N)-HARPG: steps along an estimate that a Hessian-vector product carries from each point to the next.",
    rule: """
      t = 0: d = g;  then d <- (1 - eta_t)*(d + H*(theta_t - theta_{t-1})) + eta_t*g
      H on another minibatch, at q*theta_t + (1 - q)*theta_{t-1}, q uniform in (0, 1)
      theta <- theta - gamma_t*d/|d|, or gamma_t*d without normalize
      gamma_t = lr*(2/(t+2))^lr_power,  eta_t = (2/(t+2))^eta_power,  t from 0
      """,
    source: "Fatkhullin et al., 2023, arXiv:2302.01734",
    parameters: [
      .lr(nil), .number("lr_power", 1, .atLeast(0), "decay of the step size"),
      .number("eta_power", 1, .above(0), "decay of the mixing rate"),
      .flag("normalize", true, "divide by the norm of d", live: false),
    ],
    slots: [
      Slot("estimate", "the estimate d of the gradient"),
      Slot("last", "the parameters before the last step", start: .parameters),
    ],
    requests: "hessian_vector")

  static func phases(_ h: Hyper) -> Int { h.normalize ? 1 : 0 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("norm")] }

  let factor, divisor: Double

  init(_ h: Hyper, _ c: StepContext) {
    factor = pow(2 / (Double(c.step) + 2), h.lr_power)
    divisor = h.normalize && c.scalars[0] != 0 ? c.scalars[0] : 1
  }

  @inline(__always) func squares(_ phase: Int) -> Bool { true }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }

  @inline(__always) func direction<L: Lane>(_ d: L, _ x: L, _ s: Slots<L>) -> L { factor * (d / divisor) }

  static let registered = entry(HARPG.self, source: { (h) throws(Failure) in try Transport(h) })

  struct Transport: Source {
    static var method: Method { HARPG.method }
    let estimate = 0, last = 1, vector = 2, gradient = 3, point = 4
    init(_ h: Hyper) throws(Failure) {}
    var slots: [Slot] {
      [
        .temporary("probe", "the last move"), .temporary("gradient", "the gradient of the step"),
        .home("point", "the parameters of the step"),
      ]
    }
    var probe: Int? { 0 }

    func most(_ tensors: Int) -> Int { 2 }
    var kinds: [Request.Kind] { [.hessianVector] }
    /// Between the last two points.
    struct Between: ElementOperation {
      let q: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        let last = s[1]
        s[0] = x
        s[2] = x - last
        x = q * x + (1 - q) * last
      }
    }
    struct Carry: ElementOperation {
      let eta: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = (1 - eta) * (s[0] + g) + eta * s[1]
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase > 0 {
        io.change(slots: [estimate, gradient], parameters: false) {
          Carry(eta: pow(2 / (Double(io.step) + 2), $0.eta_power))
        }
        io.comeHome()
      } else if io.step == 0 {
        io.change(SaveGradient(), slots: [estimate], parameters: false)
      } else {
        let q = Random.fraction(seed: io.seed, stream: io.stream, step: io.step)
        io.change(SaveGradient(), slots: [gradient], parameters: false)
        io.change(Between(q: q), slots: [point, last, vector], parameters: true)
        io.clearAbsent(vector)
        return .ask(Ask(.hessianVector, freshSample: true))
      }
      io.change(SaveParameters(), slots: [last], parameters: false)
      io.keepAbsent(last)
      return .update(io.gradient(in: estimate))
    }
  }
}
