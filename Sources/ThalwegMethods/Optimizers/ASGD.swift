import Glibc
import ThalwegCore

/// Averaged SGD: decreasing steps, and from a given step on the mean of the iterates.
///
///     θ ← θ·(1 − λ·η) − η·g;   a ← a + μ·(θ − a);   then η = lr/(1 + λ·lr·t)^α,  μ = 1/max(1, t − t₀)
///     evaluation weights: a
///
/// State    a; η and μ of the next step, for each tensor. At first η = lr and μ = 1 (a copy).
/// Differs  nothing from torch.optim.ASGD, which keeps η and μ in float32. Another lr enters from the next step on.
/// Source   Polyak and Juditsky, 1992.
struct ASGD: ElementRule {
  static let method = Method(
    "asgd", .optimizer, "Averaged SGD: decreasing steps, and the mean of the iterates.",
    rule: """
      theta <- theta*(1 - lambd*eta) - eta*g;  a <- a + mu*(theta - a)
      eta = lr/(1 + lambd*lr*t)^alpha, mu = 1/max(1, t - t0) for the next step (lr and 1 at first)
      evaluation weights: a
      """,
    source: "Polyak, Juditsky, 1992",
    parameters: [
      .lr(1e-2), .number("lambd", 1e-4, .atLeast(0), "decay, and how fast the step falls"),
      .number("alpha", 0.75, .any, "power of the step size"),
      .number("t0", 1e6, .atLeast(0), "the step at which the averaging begins"),
      .weightDecay(0, "coupled weight decay"),
    ],
    slots: [Slot("ax", "the average a")], requests: "own-step")

  static func decay(_ h: Hyper) -> Decay { .coupled }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("eta"), Scalar("mu"), Scalar("next_eta"), Scalar("next_mu", 1)]
  }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    (s[0], s[1]) = (c.t == 1 ? c.lr : s[2], s[3])
    s[2] = c.lr / pow(1 + h.lambd * c.lr * c.time, h.alpha)
    s[3] = 1 / max(1, c.time - h.t0)
  }
  static var evaluates: Bool { true }

  let eta, mu, keep, lr: Double

  init(_ h: Hyper, _ c: StepContext) {
    (eta, mu, lr) = (c.scalars[0], c.scalars[1], c.lr)
    keep = 1 - h.lambd * eta
  }

  @inline(__always) func next<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let new = x * keep - eta * g
    s[0] = mu == 1 ? new : s[0] + mu * (new - s[0])
    return new
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (x - next(g, x, s)).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { next(g, x, s) }
  @inline(__always) func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { s[0] }
}
