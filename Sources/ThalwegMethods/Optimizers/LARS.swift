import ThalwegCore

/// LARS: momentum whose step is scaled, tensor by tensor, to the norm of the weights.
///
///     u = g + wd·θ;   λ = trust·‖θ‖/(‖g‖ + wd·‖θ‖ + ε), or 1 where ‖θ‖ or the denominator is 0; norms of each tensor
///     b ← μ·b + lr·λ·u;   θ ← θ − b,   with nesterov θ − (lr·λ·u + μ·b)
///
/// State    b; lr and λ are inside it.
/// Differs  `denominator=update` takes ‖g + wd·θ‖, as optax does. With `skip_1d`, vectors and scalars take plain
///          momentum without decay.
/// Source   You, Gitman and Ginsburg, 2017, arXiv:1708.03888.
struct LARS: ElementRule {
  static let method = Method(
    "lars", .optimizer, "LARS: momentum whose step is scaled, tensor by tensor, to the norm of the weights.",
    rule: """
      u = g + weight_decay*theta
      trust = trust_coefficient*|theta| / (|g| + weight_decay*|theta| + eps) per tensor, 1 where a norm is 0
      b <- momentum*b + lr*trust*u;  theta <- theta - b  (nesterov: theta - (lr*trust*u + momentum*b))
      """,
    source: "You, Gitman, Ginsburg, 2017, arXiv:1708.03888",
    parameters: [
      .lr(1), .rate("momentum", 0.9, "share of the buffer that is kept"),
      .flag("nesterov", false, "look ahead along the buffer"),
      .weightDecay(0, "coupled weight decay"),
      .number("trust_coefficient", 1e-3, .above(0), "the step, as a share of the norm of the weights"),
      .eps(0),
      .choice(
        "denominator", ["paper", "update"], "paper: |g| + weight_decay*|theta|; update: |g + weight_decay*theta|"),
      .flag("skip_1d", true, "tensors of rank 0 and 1 take plain momentum without decay"),
    ],
    slots: [.moment("momentum_buffer", "the momentum b")], requests: "own-step")

  static func decay(_ h: Hyper) -> Decay { .rule }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("trust_ratio", 1)] }

  let momentum, decay, rate, lr: Double
  let nesterov, plain, byUpdate: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (momentum, nesterov, byUpdate, lr) = (h.momentum, h.nesterov, h.is("denominator", "update"), c.lr)
    plain = h.skip_1d && c.ndim <= 1
    decay = plain ? 0 : c.weightDecay
    rate = plain ? c.lr : c.lr * c.scalars[0]
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    if plain { return }
    let u = byUpdate ? g + decay * x : g
    sums.add(0, x, times: x)
    sums.add(1, u, times: u)
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let a = totals.root(0)
    let b = totals.root(1) + (h.is("denominator", "update") ? 0 : c.weightDecay * a)
    s[0] = a == 0 || b == 0 ? 1 : h.trust_coefficient * a / (b + h.eps)
  }

  @inline(__always) func move<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let d = rate * (g + decay * x)
    let b = momentum * s[0] + d
    s[0] = b
    return nesterov ? d + momentum * b : b
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { move(g, x, s).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - move(g, x, s) }
}
