import ThalwegCore

/// signSGD and Signum: the sign of the momentum; without momentum, of the gradient.
///
///     m ← μ·m + (1 − μ)·g;   θ ← θ·(1 − lr·wd) − lr·sign(m)
///
/// State    m, when μ ≠ 0.
/// Differs  nothing from the public packages. An entry whose m is 0 does not move.
/// Source   Bernstein et al., 2018, arXiv:1802.04434.
struct Signum: ElementRule {
  static let moments: [Slot] = [.moment("exp_avg", "momentum m")]
  static let method = Method(
    "signum", .optimizer, "signSGD and Signum: the sign of the momentum; without momentum, of the gradient.",
    rule: """
      m <- momentum*m + (1 - momentum)*g
      theta <- theta*(1 - lr*weight_decay) - lr*sign(m)
      """,
    source: "Bernstein, Wang, Azizzadenesheli, Anandkumar, 2018, arXiv:1802.04434",
    parameters: [
      .lr(1e-3), .rate("momentum", 0.9, "share of the momentum that is kept; 0 is signSGD"),
      .weightDecay(0, "decoupled weight decay"),
    ],
    slots: moments)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let momentum: Double = h.momentum
    return momentum != 0 ? moments : []
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let momentum: Double
  let plain: Bool

  init(_ h: Hyper, _ c: StepContext) {
    momentum = h.momentum
    plain = momentum == 0 && c.slots == 0
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    if plain { return g.sign }
    let m = momentum * s[0] + (1 - momentum) * g
    s[0] = m
    return m.sign
  }
}

/// Tiger, the tight-fisted optimizer: Signum with its own defaults, or Lion with β₁ = β₂.
///
///     m ← β·m + (1 − β)·g;   θ ← θ·(1 − lr·wd) − lr·sign(m)
///
/// State    m.
/// Differs  the author's recipe of smaller steps for biases and embeddings is not part of the rule: use groups.
/// Source   Su, 2023.
struct Tiger: ElementRule {
  static let method = Method(
    "tiger", .optimizer, "Tiger, the tight-fisted optimizer: the sign of an average of the gradient.",
    rule: """
      m <- beta*m + (1 - beta)*g
      theta <- theta*(1 - lr*weight_decay) - lr*sign(m)
      """,
    source: "Su, 2023",
    parameters: [
      .lr(1e-3), .rate("beta", 0.965, "rate of the momentum"), .weightDecay(0.01, "decoupled weight decay"),
    ],
    slots: Signum.moments)

  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta: Double

  init(_ h: Hyper, _ c: StepContext) { beta = h.beta }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta * s[0] + (1 - beta) * g
    s[0] = m
    return m.sign
  }
}
