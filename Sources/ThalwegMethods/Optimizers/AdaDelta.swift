import ThalwegCore

/// Adadelta: the gradient times the ratio of the root mean squares of past steps and of gradients.
///
///     v ← ρ·v + (1 − ρ)·g²;   u = √(d + ε)/√(v + ε) · g;   d ← ρ·d + (1 − ρ)·u²
///     θ ← θ − lr·u
///
/// State    v, d.
/// Differs  nothing from torch.optim.Adadelta and optax.adadelta. Decay is coupled.
/// Source   Zeiler, 2012, arXiv:1212.5701.
struct AdaDelta: ElementRule {
  static let method = Method(
    "adadelta", .optimizer,
    "Adadelta: steps scaled by the ratio of the root mean squares of past steps and of gradients.",
    rule: """
      v <- rho*v + (1 - rho)*g^2
      u = sqrt(d + eps)/sqrt(v + eps) * g
      d <- rho*d + (1 - rho)*u^2
      theta <- theta - lr*u
      """,
    source: "Zeiler, 2012, arXiv:1212.5701",
    parameters: [
      .lr(1), .rate("rho", 0.9, "rate of both averages"), .eps(1e-6, "added inside both roots"),
      .weightDecay(0, "coupled weight decay"),
    ],
    slots: [.square("square_avg", "average square of gradients v"), .square("acc_delta", "average square of steps d")])

  static func decay(_ h: Hyper) -> Decay { .coupled }

  let rho, eps: Double

  init(_ h: Hyper, _ c: StepContext) { (rho, eps) = (h.rho, h.eps) }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let v = rho * s[0] + (1 - rho) * (g * g)
    let d = s[1]
    let u = (v + eps).squareRoot().divide((d + eps).squareRoot() * g)  // 0/0 is 0 only so
    s[0] = v
    s[1] = rho * d + (1 - rho) * (u * u)
    return u
  }
}
