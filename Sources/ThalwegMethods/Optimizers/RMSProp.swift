import ThalwegCore

/// RMSProp: the gradient over the root of its average square; optionally centred, optionally with momentum.
///
///     v ← α·v + (1 − α)·g²;   centred: ḡ ← α·ḡ + (1 − α)·g,  w = max(v − ḡ², 0);  else w = v
///     q = √w + ε, or √(w + ε);   b ← μ·b + g/q;   θ ← θ − lr·b
///
/// State    v; ḡ when centred; b with momentum.
/// Differs  nothing from torch.optim.RMSprop, but that the centred variance is clamped at 0, which rounding can pass.
///          `eps_in_sqrt` is optax's placement and the one taken for the generalized-smooth analysis
///          (arXiv:2404.01436). Decay is coupled.
/// Source   Hinton, 2012; centred: Graves, 2013, arXiv:1308.0850.
struct RMSProp: ElementRule {
  static let square = Slot.square("square_avg", "average square v")
  static let mean = Slot.moment("grad_avg", "average gradient")
  static let buffer = Slot.moment("momentum_buffer", "the momentum b")
  static let method = Method(
    "rmsprop", .optimizer, "RMSProp: the gradient over the root of its average square.",
    rule: """
      v <- alpha*v + (1 - alpha)*g^2
      centered: mean <- alpha*mean + (1 - alpha)*g,  w = max(v - mean^2, 0); else w = v
      q = sqrt(w) + eps, or sqrt(w + eps) with eps_in_sqrt
      b <- momentum*b + g/q;  theta <- theta - lr*b
      """,
    source: "Hinton, 2012; Graves, 2013, arXiv:1308.0850",
    parameters: [
      .lr(1e-2), .rate("alpha", 0.99, "rate of the averages"), .eps(1e-8),
      .flag("eps_in_sqrt", false, "eps inside the root"),
      .rate("momentum", 0, "share of the buffer that is kept"),
      .flag("centered", false, "subtract the squared mean", live: false),
      .weightDecay(0, "coupled weight decay"),
    ],
    slots: [square, mean, buffer])

  /// The buffer stands last: momentum 0 has none.
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let momentum: Double = h.momentum
    return [square] + (h.centered ? [mean] : []) + (momentum != 0 ? [buffer] : [])
  }
  static func decay(_ h: Hyper) -> Decay { .coupled }

  let alpha, eps, inside, momentum: Double
  let centered, plain: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (alpha, momentum, centered) = (h.alpha, h.momentum, h.centered)
    plain = momentum == 0
    let e: Double = h.eps
    (eps, inside) = h.eps_in_sqrt ? (0, e) : (e, 0)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let v = alpha * s[0] + (1 - alpha) * (g * g)
    s[0] = v
    var w = v
    if centered {
      let mean = alpha * s[1] + (1 - alpha) * g
      s[1] = mean
      w = L.max(v - mean * mean, 0)
    }
    let d = ((w + inside).squareRoot() + eps).divide(g)
    if plain { return d }
    let k = centered ? 2 : 1
    let b = momentum * s[k] + d
    s[k] = b
    return b
  }
}
