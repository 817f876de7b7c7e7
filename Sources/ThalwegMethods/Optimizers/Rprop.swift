import ThalwegCore

/// Resilient backpropagation: every element has a step of its own, longer while the gradient keeps its sign.
///
///     a = g·g_prev;   step ← clamp(step·η, step_min, step_max),  η = eta_plus for a > 0, eta_minus for a < 0, 1 for 0
///     g ← 0 where a < 0;   θ ← θ − step·sign(g);   g_prev ← g
///
/// State    g_prev, step (lr at first).
/// Differs  nothing from torch.optim.Rprop (iRprop⁻). lr is read once: a later one has no effect. For the gradients of
///          whole data sets.
/// Source   Riedmiller and Braun, 1993; Igel and Hüsken, 2000.
struct Rprop: ElementRule {
  static let method = Method(
    "rprop", .optimizer, "Every element has a step of its own, longer while the gradient keeps its sign.",
    rule: """
      a = g*g_prev;  step <- clamp(step*eta, step_min, step_max), eta = eta_plus (a > 0), eta_minus (a < 0), 1
      g <- 0 where a < 0;  theta <- theta - step*sign(g);  g_prev <- g;  step = lr at first
      """,
    source: "Riedmiller, Braun, 1993; Igel, Huesken, 2000",
    parameters: [
      .lr(1e-2),
      .number("eta_minus", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "factor after a change of sign"),
      .number("eta_plus", 1.2, .above(1), "factor while the sign stays"),
      .number("step_min", 1e-6, .atLeast(0), "shortest step"), .number("step_max", 50, .atLeast(0), "longest step"),
    ],
    slots: [Slot("prev", "the gradient before"), Slot("step_size", "the step of each element")], requests: "own-step",
    validate: { (h) throws(Failure) in
      let low: Double = h.step_min, high: Double = h.step_max
      if low > high {
        throw Failure(
          Status.range, "rprop: `step_min` must be at most `step_max`, got \(text(low)) and \(text(high))")
      }
    })

  let minus, plus, low, high, lr: Double
  let first: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (minus, plus, low, high) = (h.eta_minus, h.eta_plus, h.step_min, h.step_max)
    (first, lr) = (c.t == 1, c.lr)
  }

  @inline(__always) func move<L: Lane>(_ g: L, _ s: Slots<L>) -> L {
    // of the signs: the product may underflow
    let zero = L(0), a = g.sign * (first ? zero : s[0]).sign
    let turned = L.less(a, zero)
    let factor = L.select(turned, L(minus), L.select(L.less(zero, a), L(plus), L(1)))
    let step = L.min(L.max((first ? L(lr) : s[1]) * factor, low), high)
    let kept = L.select(turned, zero, g)
    s[0] = kept
    s[1] = step
    return step * kept.sign
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { move(g, s).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - move(g, s) }
}
