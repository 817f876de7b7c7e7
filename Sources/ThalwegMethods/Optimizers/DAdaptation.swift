import ThalwegCore

/// D-Adaptation of SGD: the distance to the solution is estimated from below and sets the step.
///
///     λ = d·lr/‖g₀‖ (the first gradient's norm);   a ← a + λ·⟨g, s⟩;   s ← s + λ·g
///     d ← max(d, min(2a/‖s‖, d·growth_rate));   θ ← μ·θ + (1 − μ)·(θ₀ − s)
///
/// State    θ₀, s·‖g₀‖; d, a, ‖g₀‖. Norms and products run over all tensors.
/// Differs  decay is coupled in every gradient, the first included (the authors' class leaves the first without it by a
///          missing in-place mark). While all gradients have been 0 nothing starts. s is kept times ‖g₀‖, so that the
///          first step needs no walk of its own: in floats, gradients below 1e-38/d (1e-32 with the first d) lose
///          digits there, and below 1e-45/d all of them.
/// Source   Defazio and Mishchenko, 2023, arXiv:2301.07733.
struct DAdaptSGD: ElementRule {
  static let method = Method(
    "dadapt_sgd", .optimizer,
    "D-Adaptation of SGD: the distance to the solution is estimated from below and sets the step.",
    rule: """
      l = d*lr/|g_0|;  a <- a + l*<g, s>;  s <- s + l*g
      d <- max(d, min(2*a/|s|, d*growth_rate))
      theta <- momentum*theta + (1 - momentum)*(theta_0 - s)
      """,
    source: "Defazio, Mishchenko, 2023, arXiv:2301.07733",
    parameters: [
      .lr(1).equalInAll, .rate("momentum", 0, "share of the parameters that is kept"),
      .weightDecay(0, "coupled weight decay"),
      .number("d0", 1e-6, .above(0), "first estimate of the distance").forAll,
      .number("growth_rate", .infinity, .atLeast(1), "largest growth of d in a step").forAll,
    ],
    slots: [DoG.origin, Slot("s", "weighted sum of gradients, times the norm of the first gradient")],
    requests: "own-step")

  static func decay(_ h: Hyper) -> Decay { .coupled }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("d"), Scalar("d_numerator"), Scalar("g0_norm"), Scalar("d_of_step"), Scalar("moved")]
  }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    if s[0] == 0 { s[0] = h.d0 }
    (s[3], s[4]) = (s[0], 0)
  }

  let weight, momentum, lr: Double
  let inverse: Factor
  let first, moves: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let s = c.scalars
    (weight, momentum, lr, first, moves) = (s[3] * c.lr, h.momentum, c.lr, s[2] == 0, s[4] == 1)
    inverse = Factor(s[2] > 0 ? 1 / s[2] : 0)
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    let old = s[1], sum = old + weight * g
    s[1] = sum
    if lr != 0 { sums.add(0, g, times: old) }
    sums.add(1, sum, times: sum)
    if first { sums.add(2, g, times: g) }
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    if s[2] == 0 { s[2] = totals.root(2) }
    if s[2] == 0 { return }
    let d = s[0], norm = totals.root(1) / s[2]
    s[1] += d * c.lr / s[2] * (totals[0] / s[2])
    if norm == 0 { return }
    s[0] = max(d, min(2 * s[1] / norm, d * h.growth_rate))
    s[4] = 1
  }

  @inline(__always) func point<L: Lane>(_ x: L, _ s: Slots<L>) -> L {
    moves ? momentum * x + (1 - momentum) * (s[0] - inverse * s[1]) : x
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (x - point(x, s)).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { point(x, s) }
}

/// D-Adaptation of Adam.
///
///     λ = d·lr·b (b as in prodigy);   acc = λ·⟨g, s/(√v + ε)⟩ with the v and s of the step before
///     m ← β₁·m + (1 − β₁)·λ·g;   v ← β₂·v + (1 − β₂)·g²;   s ← √β₂·s + (1 − √β₂)·λ·g;   a ← √β₂·a + (1 − √β₂)·acc
///     d ← max(d, min(a/((1 − √β₂)·‖s‖₁), d·growth_rate));   θ ← θ − m/(√v + ε)
///
/// State    m, v, s; d, a, k (steps with ‖s‖₁ > 0). Sums run over all tensors.
/// Differs  nothing from the authors' dadaptation; its scale per layer is not carried. Decay is coupled, or θ·(1 −
///          λ·wd) with `decouple`.
/// Source   Defazio and Mishchenko, 2023, arXiv:2301.07733.
struct DAdaptAdam: ElementRule {
  static let method = Method(
    "dadapt_adam", .optimizer,
    "D-Adaptation of Adam: the distance to the solution is estimated from below and sets the step.",
    rule: """
      l = d*lr*b, b as in prodigy;  acc = l*<g, s/(sqrt(v) + eps)> with the old v and s
      m <- beta1*m + (1 - beta1)*l*g;  v <- beta2*v + (1 - beta2)*g^2
      r = sqrt(beta2);  s <- r*s + (1 - r)*l*g;  a <- r*a + (1 - r)*acc
      d <- max(d, min(a/((1 - r)*|s|_1), d*growth_rate));  theta <- theta - m/(sqrt(v) + eps)
      """,
    source: "Defazio, Mishchenko, 2023, arXiv:2301.07733",
    parameters: [
      .lr(1).equalInAll, .rate("beta1", 0.9, "rate of the first moment").forAll,
      .rate("beta2", 0.999, "rate of the second moment").forAll, .eps(1e-8),
      .weightDecay(), .flag("decouple", false, "weight decay is decoupled", live: false),
      .flag("use_bias_correction", false, "Adam's bias correction of the step").forAll,
      .number("d0", 1e-6, .above(0), "first estimate of the distance").forAll,
      .number("growth_rate", .infinity, .atLeast(1), "largest growth of d in a step").forAll,
    ],
    slots: Adam.moments + [Slot("s", "weighted average of gradients")], requests: "own-step")

  static func decay(_ h: Hyper) -> Decay { h.decouple ? .rule : .coupled }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("d"), Scalar("d_numerator"), Scalar("k"), Scalar("d_of_step"), Scalar("moved")]
  }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    if s[0] == 0 { s[0] = h.d0 }
    s[2] += s[4]
    (s[3], s[4]) = (s[0], 0)
  }

  let beta1, beta2, eps, root, weight, keep, lr: Double
  let moves: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let s = c.scalars
    (beta1, beta2, eps, lr, moves) = (h.beta1, h.beta2, h.eps, c.lr, s[4] == 1)
    root = beta2.squareRoot()
    weight = s[3] * c.lr * Prodigy.correction(h, s[2])
    keep = h.decouple ? 1 - weight * c.weightDecay : 1
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    let lg = weight * g, old = (s[1].squareRoot() + eps).divide(s[2])
    let sum = root * s[2] + (1 - root) * lg
    s[0] = beta1 * s[0] + (1 - beta1) * lg
    s[1] = beta2 * s[1] + (1 - beta2) * (g * g)
    s[2] = sum
    if lr != 0 { sums.add(0, g, times: old) }
    sums.add(1, sum.magnitude)
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let beta2: Double = h.beta2, root = beta2.squareRoot(), d = s[0]
    s[1] = root * s[1] + (1 - root) * (d * c.lr * Prodigy.correction(h, s[2])) * totals[0]
    if totals[1] == 0 { return }
    s[0] = max(d, min(s[1] / ((1 - root) * totals[1]), d * h.growth_rate))
    s[4] = 1
  }

  @inline(__always) func point<L: Lane>(_ x: L, _ s: Slots<L>) -> L {
    moves ? keep * x - (s[1].squareRoot() + eps).divide(s[0]) : x
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (x - point(x, s)).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { point(x, s) }
}
