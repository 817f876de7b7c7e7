import ThalwegCore

/// The outer step of local training: Nesterov's momentum on the pseudo-gradient of the workers.
///
///     g = θ − mean(w_i);   b ← g (first round), then momentum·b + g
///     θ ← θ − lr·(g + momentum·b)  (nesterov),  θ − lr·b  (without)
///
/// A name for `fedavg(participants=workers) | sgd(lr, momentum, nesterov)`: a step is a round, and each worker goes on
/// from θ with the inner optimizer that it keeps. A host that has the mean already takes `workers=1`.
/// Differs  the card's `period` is the host's: it steps once every so many inner steps.
/// Source   Douillard et al., 2023, arXiv:2311.08105.
enum DiLoCoOuter: Listed {
  static let registered = alias(
    Method(
      "diloco_outer", .optimizer, "The outer step of local training: Nesterov's momentum on the workers' drift.",
      rule: "g = theta - mean(w_i);  b = momentum*b + g;  theta' = theta - lr*(g + momentum*b), or theta - lr*b",
      source: "Douillard et al., 2023, arXiv:2311.08105",
      parameters: [
        .lr(0.7), .number("momentum", 0.9, .atLeast(0), "share of the buffer that is kept"),
        .flag("nesterov", true, "look ahead along the buffer", live: false),
        .integer("workers", 1, .within(1, 1e6), "how many there are", live: false),
      ], requests: "participant")
  ) { h in
    let workers = StageNode(
      name: "fedavg",
      arguments: [ArgumentNode(name: "participants", value: .number(Double(h.integer("workers"))), position: 0)],
      position: 0)
    return [workers, h.node("sgd", SGD.method.parameters)]
  }
}

/// Adaptive server optimizers: Adagrad, Yogi or Adam on the mean change of the clients.
///
///     D = −g, g = θ − mean(w_i) from `fedavg`
///     m ← β₁m + (1 − β₁)D
///     v ← v + D² (adagrad),  v − (1 − β₂)D²·sign(v − D²) (yogi),  β₂v + (1 − β₂)D² (adam);  v₀ = τ²
///     θ ← θ + lr·m/(√v + τ)
///
/// No bias correction; sign(0) = 0. Stands behind `fedavg(...)`, or steps with the difference as its gradient.
/// Source   Reddi et al., 2021, arXiv:2003.00295.
struct FedOpt: ElementRule {
  static let method = Method(
    "fedopt", .optimizer, "Adagrad, Yogi or Adam on the mean change of the clients.",
    rule: """
      D = -g, g = theta - mean(w_i) (from fedavg);  m = beta1*m + (1 - beta1)*D
      v = v + D^2 (adagrad), v - (1 - beta2)*D^2*sign(v - D^2) (yogi), beta2*v + (1 - beta2)*D^2 (adam);  v_0 = tau^2
      theta' = theta + lr*m/(sqrt(v) + tau)
      """,
    source: "Reddi et al., 2021, arXiv:2003.00295",
    parameters: [
      .choice("kind", ["adam", "yogi", "adagrad"], "which second moment", live: false), .lr(0.1),
      .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.99, "rate of the second moment"),
      .number("tau", 1e-3, .above(0), "added to the root; v begins with its square").fixed,
    ],
    slots: [.moment("exp_avg", "first moment m of the changes"), .square("exp_avg_sq", "second moment v")])
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let tau: Double = h.tau
    return [method.slots[0], Slot("exp_avg_sq", method.slots[1].meaning, start: .value(tau * tau))]
  }

  let beta1, beta2, tau: Double, yogi: Bool, adagrad: Bool
  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, tau) = (h.beta1, h.beta2, h.tau)
    (yogi, adagrad) = (h.is("kind", "yogi"), h.is("kind", "adagrad"))
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g, square = g * g
    let v =
      adagrad
      ? s[1] + square
      : yogi ? Yogi.towards(s[1], square, by: 1 - beta2) : beta2 * s[1] + (1 - beta2) * square
    (s[0], s[1]) = (m, v)
    return m / (v.squareRoot() + tau)
  }
}
