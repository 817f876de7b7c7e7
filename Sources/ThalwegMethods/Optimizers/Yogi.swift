import ThalwegCore

/// Yogi: Adam whose second moment moves towards g² by at most (1 − β₂)·g².
///
///     m as Adam;   v ← v − (1 − β₂)·sign(v − g²)·g²;   θ ← θ − lr · (m/c₁)/(√(v/c₂) + ε)
///
/// State    m, v, both starting at `initial_accumulator`.
/// Differs  nothing from optax.yogi, whose m starts there too. v stays non-negative: it falls only where it is above
///          g². Decay is decoupled.
/// Source   Zaheer, Reddi, Sachan, Kale and Kumar, 2018.
struct Yogi: ElementRule {
  static let method = Method(
    "yogi", .optimizer, "Yogi: Adam whose second moment moves towards g^2 by at most (1 - beta2)*g^2.",
    rule: """
      m <- beta1*m + (1 - beta1)*g;  v <- v - (1 - beta2)*sign(v - g^2)*g^2
      theta <- theta*(1 - lr*weight_decay) - lr * (m/c1)/(sqrt(v/c2) + eps)
      """,
    source: "Zaheer, Reddi, Sachan, Kale, Kumar, 2018",
    parameters: [
      .lr(1e-2), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-3),
      .number("initial_accumulator", 1e-6, .atLeast(0), "start of both moments"),
      .weightDecay(0, "decoupled weight decay"),
    ],
    slots: Adam.moments)

  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2, eps, r1, r2, start: Double
  let first: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (first, start) = (c.t == 1, h.initial_accumulator)
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
  }

  /// v − share·sign(v − g²)·g², which stays infinite where both are.
  @inline(__always) static func towards<L: Lane>(_ v: L, _ square: L, by share: Double) -> L {
    let move = share * square
    return L.select(L.less(v, square), v + move, L.select(L.equal(v, square), v, v - move))
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * (first ? L(start) : s[0]) + (1 - beta1) * g
    let square = g * g, old = first ? L(start) : s[1]
    let v = Yogi.towards(old, square, by: 1 - beta2)
    s[0] = m
    s[1] = v
    return ((v * r2).squareRoot() + eps).divide(m * r1)
  }
}
