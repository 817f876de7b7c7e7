import ThalwegCore

/// Stochastic gradient descent with momentum, dampening and Nesterov's form.
///
///     b ← g at the first step, then  b ← μ·b + (1 − τ)·g
///     d = g + μ·b  (nesterov),  or  b;   d = g without momentum
///     θ ← θ − lr·d
///
/// State    b, when momentum ≠ 0.
/// Differs  nothing from torch.optim.SGD: the first buffer is the gradient itself, without dampening. A changed lr does
///          not rescale b.
/// Source   Robbins and Monro, 1951; Polyak, 1964; Sutskever et al., 2013.
struct SGD: ElementRule {
  static let method = Method(
    "sgd", .optimizer, "Stochastic gradient descent with momentum, dampening and Nesterov's form.",
    rule: """
      b <- g at the first step, then momentum*b + (1 - dampening)*g
      d = g + momentum*b with nesterov, else b (g without momentum)
      theta <- theta - lr*d
      """,
    source: "Robbins, Monro, 1951; Polyak, 1964; Sutskever, Martens, Dahl, Hinton, 2013",
    parameters: [
      .lr(1e-3),
      .number("momentum", 0, .atLeast(0), "share of the buffer that is kept"),
      .number("dampening", 0, .any, "the gradient enters the buffer times 1 - dampening"),
      .flag("nesterov", false, "look ahead along the buffer"),
      .weightDecay(),
      .flag("decoupled", false, "decay is decoupled (SGDW)", live: false),
    ],
    slots: [.moment("momentum_buffer", "the momentum b")],
    validate: { (h) throws(Failure) in
      let momentum: Double = h.momentum, dampening: Double = h.dampening
      if h.nesterov, momentum <= 0 || dampening != 0 {
        throw Failure(
          Status.range,
          "sgd: `nesterov` needs momentum above 0 and dampening 0, got momentum \(text(momentum)) and dampening "
            + "\(text(dampening))"
        )
      }
    })

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let scheduled = !h.has("momentum"), momentum: Double = h.momentum
    return scheduled || momentum != 0 ? method.slots : []
  }
  static func decay(_ h: Hyper) -> Decay { h.decoupled ? .decoupled : .coupled }

  let keep: Double, take: Double, momentum: Double
  let nesterov: Bool, plain: Bool

  init(_ h: Hyper, _ c: StepContext) {
    momentum = h.momentum
    nesterov = h.nesterov
    plain = momentum == 0
    let dampening: Double = h.dampening
    (keep, take) = c.t == 1 ? (0, 1) : (momentum, 1 - dampening)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    if plain { return g }
    let b = keep * s[0] + take * g
    s[0] = b
    return nesterov ? g + momentum * b : b
  }
}
