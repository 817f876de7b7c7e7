import Glibc
import ThalwegCore

/// GrokAdamW: AdamW on the gradient plus its slow part.
///
///     clip:  g ← g·min(1, clip/(‖g‖ + 10⁻⁶)),  the norm of each tensor
///     e ← α·e + (1 − α)·g,  α = alpha·exp(−signal_decay·signal);   q = g + λ·e
///     preserve:  q ← q·‖g‖/max(‖q‖, ε)
///     β = β₁·(1 − γ)ⁱ at the i-th tensor;   m ← β·m + (1 − β)·q;   v ← β₂·v + (1 − β₂)·q²
///     θ ← θ·(1 − lr·wd) − lr·√c₂/c₁·m/(√v + ε)
///
/// State    m, v, e.
/// Differs  nothing from grokadamw 0.1.2 (`norm=clip`; its later form is `preserve`). The bias correction is that of
///          the plain β₁ for every tensor. `signal`, max(0, eval − train)/max(eval, train) of two losses, is set by
///          the host; tensors are counted within their group, in the order of binding.
/// Source   Cognitive Computations, 2024 (grokadamw); Lee, Kang, Kim and Lee, 2024, arXiv:2405.20233.
struct GrokAdamW: ElementRule {
  static let method = Method(
    "grokadamw", .optimizer,
    "AdamW on the gradient plus its slow part, with a momentum that falls from layer to layer.",
    rule: """
      clip: g <- g*min(1, clip/(|g| + 1e-6)), per tensor
      e <- a*e + (1 - a)*g, a = alpha*exp(-signal_decay*signal);  q = g + lamb*e;  preserve: q <- q*|g|/max(|q|, eps)
      beta = beta1*(1 - gamma)^i at tensor i;  m <- beta*m + (1 - beta)*q;  v <- beta2*v + (1 - beta2)*q^2
      theta <- theta*(1 - lr*weight_decay) - lr*sqrt(c2)/c1*m/(sqrt(v) + eps)
      """,
    source: "Cognitive Computations, 2024 (grokadamw); Lee, Kang, Kim, Lee, 2024, arXiv:2405.20233",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8), .weightDecay(1e-2, "decoupled weight decay"),
      .number("alpha", 0.98, .within(0, 1), "rate of the slow gradient"),
      .number("lamb", 2, .atLeast(0), "weight of the slow gradient"),
      .rate("gamma", 0.1, "the rate of the first moment falls by this share from tensor to tensor"),
      .number("signal_decay", 0.1, .atLeast(0), "how much the signal shortens the slow gradient"),
      .choice("norm", ["clip", "preserve", "none"], "what keeps the gradient's length", live: false),
      .number("clip", 1, .above(0), "largest norm of a tensor's gradient, with norm=clip"),
      .number("signal", 0, .atLeast(0), "how far the run has grokked, as the host sees it"),
    ],
    slots: Adam.moments + [.moment("grok_ema", "the slow gradient e")])

  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static var perTensor: Bool { true }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { h.is("norm", "none") ? 0 : 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("factor", 1)] }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let norm = totals.root(0)
    s[0] = h.is("norm", "clip") ? smaller(1, h.clip / (norm + 1e-6)) : norm / larger(totals.root(1), h.eps)
  }

  let beta1, beta2, alpha, lamb, eps, rate, factor: Double
  let preserves, clips: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let first: Double = h.beta1, gamma: Double = h.gamma, decay: Double = h.signal_decay
    beta1 = first * power(1 - gamma, c.inGroup)
    (beta2, lamb, eps) = (h.beta2, h.lamb, h.eps)
    alpha = h.alpha * exp(-decay * h.signal)
    rate = (1 - power(beta2, c.t)).squareRoot() / (1 - power(first, c.t))
    (preserves, clips) = (h.is("norm", "preserve"), h.is("norm", "clip"))
    // 0/0: no gradient has no direction
    factor = c.scalars[0].isNaN && h.eps == 0 ? 0 : c.scalars[0]
  }

  @inline(__always) func slow<L: Lane>(_ g: L, _ s: Slots<L>) -> L {
    let e = alpha * s[2] + (1 - alpha) * g
    s[2] = e
    return g + lamb * e
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, g, times: g)
    if preserves {
      let q = slow(g, s)
      sums.add(1, q, times: q)
    }
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let q = preserves ? factor * (g + lamb * s[2]) : slow(clips ? factor * g : g, s)
    let m = beta1 * s[0] + (1 - beta1) * q
    let v = beta2 * s[1] + (1 - beta2) * (q * q)
    s[0] = m
    s[1] = v
    return (v.squareRoot() + eps).divide(m * rate)
  }
}
