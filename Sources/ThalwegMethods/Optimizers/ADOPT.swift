import Glibc
import ThalwegCore

/// ADOPT: the gradient is normalised by the second moment of the steps before, then averaged.
///
///     t = 1:  v ← g², no move
///     t > 1:  n = clip(g/max(√v, ε), ±(t − 1)^q);   m ← β₁·m + (1 − β₁)·n;   θ ← θ − lr·m;   v ← β₂·v + (1 − β₂)·g²
///
/// State    m, v.
/// Differs  the clip counts from the first move, as the paper and the authors' code do; `clip_exponent` none is off.
///          There are no bias corrections. The first call does not decay θ, but coupled decay enters its g. Behind an
///          update transform, which takes the
///          rule's direction alone, decoupled decay does act at the first call.
/// Source   Taniguchi et al., 2024, arXiv:2411.02853.
struct ADOPT: ElementRule {
  static let method = Method(
    "adopt", .optimizer, "ADOPT: the gradient is normalised by the second moment of the steps before, then averaged.",
    rule: """
      t = 1: v <- g^2, no move (coupled decay is in g)
      t > 1: n = clip(g/max(sqrt(v), eps), (t - 1)^clip_exponent);  m <- beta1*m + (1 - beta1)*n
             theta <- theta - lr*m;  v <- beta2*v + (1 - beta2)*g^2
      """,
    source: "Taniguchi et al., 2024, arXiv:2411.02853",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.9999, "rate of the second moment"),
      .eps(1e-6, "least denominator"),
      .number(
        "clip_exponent", 0.25, .atLeast(0),
        "normalised gradients are clipped to (t - "
          + "1)^clip_exponent", optional: true),
      .weightDecay(), .flag("decoupled", true, "decay is decoupled", live: false),
    ],
    slots: Adam.moments)

  static func decay(_ h: Hyper) -> Decay { h.decoupled ? .decoupled : .coupled }

  let beta1, beta2, eps, bound: Double
  let first: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    first = c.t == 1
    bound = h.has("clip_exponent") ? pow(c.time - 1, h.clip_exponent) : .infinity
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let square = g * g
    if first {
      s[1] = square
      return L(0)
    }
    let n = L.max(s[1].squareRoot(), eps).divide(g).clipped(to: bound)
    let m = beta1 * s[0] + (1 - beta1) * n
    s[0] = m
    s[1] = beta2 * s[1] + (1 - beta2) * square
    return m
  }

  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L {
    let d = direction(g, x, s)
    return first ? x : x * a.keep - a.lr * d
  }
}
