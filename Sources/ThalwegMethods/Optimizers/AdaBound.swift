import ThalwegCore

/// AdaBound: Adam whose step sizes are clipped to bounds that close on a rate of SGD.
///
///     m, v as Adam;   f = final_lr·lr/(first lr);   bounds f·(1 − 1/(γt + 1)) and f·(1 + 1/(γt))
///     θ ← θ − clamp(lr·√c₂/c₁/(√(v + root_eps) + ε))·m
///
/// State    m, v, v_max with amsgrad; the first positive lr, for each tensor.
/// Differs  nothing from Luolc/AdaBound; `root_eps` is pytorch-optimizer's (1e-15 there).
/// Source   Luo, Xiong, Liu and Sun, 2019, arXiv:1902.09843.
struct AdaBound: ElementRule {
  static let method = Method(
    "adabound", .optimizer, "Adam whose step sizes are clipped to bounds that close on a rate of SGD.",
    rule: """
      m, v as adam;  f = final_lr*lr/(first lr);  low = f*(1 - 1/(gamma*t + 1)), high = f*(1 + 1/(gamma*t))
      theta <- theta - clamp(lr*sqrt(c2)/c1/(sqrt(v + root_eps) + eps), low, high)*m
      """,
    source: "Luo, Xiong, Liu, Sun, 2019, arXiv:1902.09843",
    parameters: [
      .lr(1e-3), .number("final_lr", 0.1, .atLeast(0), "the rate of SGD at the end"),
      .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .number("gamma", 1e-3, .above(0), "how fast the bounds close"), .eps(1e-8), .weightDecay(),
      .flag("decoupled", false, "decay is decoupled", live: false),
      .flag("amsgrad", false, "divide by the largest second moment so far", live: false),
      .number("root_eps", 0, .atLeast(0), "added to the second moment under the root"),
    ],
    slots: Adam.moments)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { Adam.moments + (h.amsgrad ? [AMSGrad.largest] : []) }
  static func decay(_ h: Hyper) -> Decay { h.decoupled ? .decoupled : .coupled }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("base_lr")] }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) { if s[0] == 0 { s[0] = c.lr } }

  let beta1, beta2, eps, floor, rate, low, high: Double
  let amsgrad: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, floor, amsgrad) = (h.beta1, h.beta2, h.eps, h.root_eps, h.amsgrad)
    // all in units of lr, by which the engine multiplies
    rate = (1 - power(beta2, c.t)).squareRoot() / (1 - power(beta1, c.t))
    let base = c.scalars[0], final = base > 0 ? h.final_lr / base : 0, gamma: Double = h.gamma
    (low, high) = (final * (1 - 1 / (gamma * c.time + 1)), final * (1 + 1 / (gamma * c.time)))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    var v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = m
    s[1] = v
    if amsgrad {
      v = L.max(s[2], v)
      s[2] = v
    }
    let root = (floor == 0 ? v : v + floor).squareRoot() + eps
    return L.min(L.max(rate / root, low), high) * m
  }
}
