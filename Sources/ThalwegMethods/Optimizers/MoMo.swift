import Glibc
import ThalwegCore

/// MoMo and MoMo-Adam: momentum with the step size of a model of the loss that has a known floor.
///
///     f̄ ← β·f̄ + (1 − β)·f;   γ ← β·γ + (1 − β)·⟨g, θ⟩;   m ← β·m + (1 − β)·g
///     D = 1, or √(v/c₂) + ε with precondition=adam;   c = 1, or 1 − βᵗ;   α = lr,  k = 1 + α·wd;   N = Σ m²/D
///     τ = min(α/c, max(k·(f̄ − c·f* − γ) + ⟨m, θ⟩, 0)/N);   θ ← θ − (α·wd/k)·θ − τ·m/D
///     adapt_lower_bound:  f* is lowered where the model says so
///
/// State    m (and v); f̄, γ, f*, t. Sums run over all tensors.
/// Differs  nothing from optax.contrib.momo and momo_adam. τ is 0 for N ≤ 2⁻⁵². Without preconditioner the first call
///          has β = 0. The numbers are one for all groups. lr is 1, or 0.01 with precondition=adam, where it is not
///          given.
/// Source   Schaipp, Ohana, Eickenberg, Defazio and Gower, 2023, arXiv:2305.07583.
struct MoMo: ElementRule {
  static let method = Method(
    "momo", .optimizer, "Momentum with the step size of a model of the loss that has a known floor.",
    rule: """
      f_avg <- beta*f_avg + (1 - beta)*loss;  gamma <- beta*gamma + (1 - beta)*<g, theta>;  m <- beta*m + (1 - beta)*g
      D = 1, or sqrt(v/c2) + eps (adam);  c = 1, or 1 - beta^t (adam);  k = 1 + lr*weight_decay;  N = sum(m^2/D)
      adapt_lower_bound, q = k*(f_avg - gamma) + <m, theta> < k*c*f*: f* = max(q/(2*c*k), lower_bound)
      tau = min(lr/c, max(k*(f_avg - c*f* - gamma) + <m, theta>, 0)/N), 0 without N
      theta <- theta - lr*weight_decay/k*theta - tau*m/D
      adapt_lower_bound: f* <- max((f_avg + <m, theta> - gamma - tau*N/2)/c, lower_bound)
      """,
    source: "Schaipp, Ohana, Eickenberg, Defazio, Gower, 2023, arXiv:2305.07583",
    parameters: [
      .lr(1).following { $0.is("precondition", "adam") ? 1e-2 : 1 }.equalInAll,
      .rate("beta", 0.9, "rate of the momentum, the loss and gamma").forAll,
      .rate("beta2", 0.999, "rate of the second moment").forAll, .eps(1e-8).forAll,
      .number("lower_bound", 0, .any, "the floor f* of the loss").forAll,
      .weightDecay(0, "decay, inside the model").forAll,
      .flag("adapt_lower_bound", false, "the floor follows the model").forAll,
      .choice("precondition", ["none", "adam"], "MoMo, or MoMo-Adam", live: false),
    ],
    slots: Adam.moments, requests: "own-step", needsLoss: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    h.is("precondition", "adam") ? Adam.moments : [Adam.moments[0]]
  }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("loss_average"), Scalar("gamma"), Scalar("lower_bound"), Scalar("t"), Scalar("tau")]
  }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    if s[3] == 0 || !h.adapt_lower_bound { s[2] = h.lower_bound }
    s[3] += 1
  }

  let beta, beta2, eps, r2, tau, decay, lr: Double
  let adam: Bool

  init(_ h: Hyper, _ c: StepContext) {
    adam = h.is("precondition", "adam")
    beta = !adam && c.scalars[3] == 1 ? 0 : h.beta
    (beta2, eps, tau, lr) = (h.beta2, h.eps, c.scalars[4], c.lr)
    r2 = 1 / (1 - power(beta2, c.t))
    decay = c.lr * c.weightDecay / (1 + c.lr * c.weightDecay)
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    let m = beta * s[0] + (1 - beta) * g
    s[0] = m
    if adam { s[1] = beta2 * s[1] + (1 - beta2) * (g * g) }
    sums.add(0, g, times: x)
    sums.add(1, m, times: x)
    sums.add(2, m, times: scaled(s))
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let adam = h.is("precondition", "adam"), rate: Double = h.beta, least: Double = h.lower_bound
    let b = !adam && s[3] == 1 ? 0 : rate
    s[0] = b * s[0] + (1 - b) * c.loss
    s[1] = b * s[1] + (1 - b) * totals[0]
    let correction = adam ? 1 - pow(rate, s[3]) : 1, k = 1 + c.lr * c.weightDecay, p = totals[1], n = totals[2]
    let cap = k * (s[0] - s[1]) + p
    if h.adapt_lower_bound, cap < k * correction * s[2] { s[2] = larger(cap / (2 * correction * k), least) }
    let length = larger(k * (s[0] - correction * s[2] - s[1]) + p, 0)
    s[4] = n <= .ulpOfOne ? 0 : smaller(c.lr / correction, length / n)
    if h.adapt_lower_bound { s[2] = larger((s[0] + p - s[1] - s[4] * n / 2) / correction, least) }
  }

  /// m/D
  @inline(__always) func scaled<L: Lane>(_ s: Slots<L>) -> L {
    adam ? ((s[1] * r2).squareRoot() + eps).divide(s[0]) : s[0]
  }
  @inline(__always) func move<L: Lane>(_ x: L, _ s: Slots<L>) -> L {
    let d = tau * scaled(s)
    return decay == 0 ? d : d + decay * x
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { move(x, s).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - move(x, s) }
}
