import Glibc
import ThalwegCore

/// Schedule-free learning: in place of a decaying rate, an average; gradients are taken between it and the fast
/// iterate.
///
///     γ = lr·t/warmup_steps while t < warmup_steps, else lr;   lr_max ← max(lr_max, γ)
///     w = tʳ·lr_maxᵖ,  W ← W + w,  c = w/W                                 (p = weight_lr_power)
///     z ← z − γ(u + wd·y);   x ← (1 − c)·x + c·z;   y ← (1 − β)·z + β·x
///
/// The parameters hold y while training; the evaluation weights are x. As `rule | schedule_free`, u is the direction of
/// the rule and wd its decoupled decay (a coupled one is in u already).
///
/// State    z and x, which start at the parameters; lr_max, W and c, for each tensor.
/// Differs  schedulefree keeps y and z and recovers x = (y − (1 − β)z)/β. x is kept here: it then does not feel the
///          rounding of 16-bit parameters, and β = 0 works. β may be scheduled.
/// Source   Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, 2024, arXiv:2405.15682.
struct Interpolation: BitwiseCopyable, Sendable {
  static let slots = [
    Slot("z", "the fast iterate z", start: .iterate()), Slot("x", "the average x", start: .iterate()),
  ]
  static let scalars = [Scalar("lr_max"), Scalar("weight_sum"), Scalar("share")]
  static let parameters: [Parameter] = [
    .integer("warmup_steps", 0, .atLeast(0), "length of the linear warm-up"),
    .number("r", 0, .atLeast(0), "power of the step in the weights"),
    .number("weight_lr_power", 2, .atLeast(0), "power of the largest step size in the weights"),
  ]
  static let rule = """
    step = lr*t/warmup_steps while t < warmup_steps, else lr;  lr_max <- max(lr_max, step)
    w = t^r * lr_max^weight_lr_power;  W <- W + w;  c = w/W
    z <- z - step*(u + weight_decay*y);  x <- (1 - c)*x + c*z;  y <- (1 - beta)*z + beta*x
    evaluation weights: x
    """
  static let source = "Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky, 2024, arXiv:2405.15682"

  private static func stepSize(_ h: Hyper, _ c: StepContext) -> Double {
    let warmup: Double = h.warmup_steps
    return c.time < warmup ? c.lr * c.time / warmup : c.lr
  }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let r: Double = h.r, p: Double = h.weight_lr_power
    s[0] = max(s[0], stepSize(h, c))
    let w = pow(c.time, r) * pow(s[0], p)
    s[1] += w
    s[2] = s[1] == 0 ? 0 : w / s[1]
  }

  let beta, lr, share: Double
  init(_ h: Hyper, _ c: StepContext, beta: Double) {
    (self.beta, lr, share) = (beta, Interpolation.stepSize(h, c), c.scalars[2])
  }

  /// The new y from the direction at the old one; z and x lie in the slots `k` and `k + 1`.
  @inline(__always) func step<L: Lane>(_ d: L, _ s: Slots<L>, _ k: Int) -> L {
    let z = s[k] - lr * d
    let average = s[k &+ 1]
    let x = average + share * (z - average)
    s[k] = z
    s[k &+ 1] = x
    return z + beta * (x - z)
  }
}

/// The average behind any rule.
struct ScheduleFree: ElementRule {
  static let method = Method(
    "schedule_free", .average, "Schedule-free learning behind any rule: an average in place of a decaying rate.",
    rule: "u = the rule's direction at y (the parameters), with its decay\n" + Interpolation.rule,
    source: Interpolation.source,
    parameters: [.number("beta", 0.9, .rate, "interpolation between z and x")] + Interpolation.parameters,
    slots: Interpolation.slots,
    requests: "applier")

  static func scalars(_ h: Hyper) -> [Scalar] { Interpolation.scalars }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) { Interpolation.begin(s, h, c) }
  static var evaluates: Bool { true }

  let point: Interpolation, decay: Double
  init(_ h: Hyper, _ c: StepContext) { (point, decay) = (Interpolation(h, c, beta: h.beta), c.decay) }

  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v }
  @inline(__always) func step<L: Lane>(_ u: L, _ y: L, _ s: Slots<L>, _ a: Apply) -> L {
    point.step(a.keep == 1 ? u : u + decay * y, s, 0)
  }
  @inline(__always) func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { s[1] }
}

/// Schedule-Free SGD: u = g.
struct ScheduleFreeSGD: ElementRule {
  static let method = Method(
    "schedule_free_sgd", .optimizer, "SGD with an average in place of a decaying rate.",
    rule: "u = g;  beta = momentum\n" + Interpolation.rule, source: Interpolation.source,
    parameters: [
      .lr(1), .number("momentum", 0.9, .rate, "interpolation beta between z and x"),
      .weightDecay(0, "decay at y, in the step of z"),
    ] + Interpolation.parameters,
    slots: Interpolation.slots, requests: "own-step, no-updates")

  static func scalars(_ h: Hyper) -> [Scalar] { Interpolation.scalars }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func decay(_ h: Hyper) -> Decay { .coupled }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) { Interpolation.begin(s, h, c) }
  static var evaluates: Bool { true }

  let point: Interpolation
  init(_ h: Hyper, _ c: StepContext) { point = Interpolation(h, c, beta: h.momentum) }

  @inline(__always) func direction<L: Lane>(_ g: L, _ y: L, _ s: Slots<L>) -> L { g }
  @inline(__always) func step<L: Lane>(_ g: L, _ y: L, _ s: Slots<L>, _ a: Apply) -> L { point.step(g, s, 0) }
  @inline(__always) func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { s[1] }
}

/// Schedule-Free AdamW: u = g/(√(v/c₂) + ε), v ← β₂·v + (1 − β₂)·g². ε on the corrected root, as in schedulefree 1.4.
struct ScheduleFreeAdamW: ElementRule {
  static let method = Method(
    "schedule_free_adamw", .optimizer, "AdamW with an average in place of momentum and a decaying rate.",
    rule: "v <- beta2*v + (1 - beta2)*g^2;  u = g / (sqrt(v/(1 - beta2^t)) + eps);  beta = beta1\n"
      + Interpolation.rule,
    source: Interpolation.source,
    parameters: [
      .lr(2.5e-3), .rate("beta1", 0.9, "interpolation beta between z and x"),
      .rate("beta2", 0.999, "rate of the second moment"), .eps(1e-8),
      .weightDecay(0, "decay at y, in the step of z"),
    ] + Interpolation.parameters,
    slots: Interpolation.slots + [.square("exp_avg_sq", "second moment v")], requests: "own-step, no-updates")

  static func scalars(_ h: Hyper) -> [Scalar] { Interpolation.scalars }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) { Interpolation.begin(s, h, c) }
  static var evaluates: Bool { true }

  let point: Interpolation, beta2, eps, r2, decay: Double
  init(_ h: Hyper, _ c: StepContext) {
    (point, beta2, eps, decay) = (Interpolation(h, c, beta: h.beta1), h.beta2, h.eps, c.weightDecay)
    r2 = 1 / (1 - power(beta2, c.t))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ y: L, _ s: Slots<L>) -> L {
    let v = beta2 * s[2] + (1 - beta2) * (g * g)
    s[2] = v
    return ((v * r2).squareRoot() + eps).divide(g) + decay * y
  }
  @inline(__always) func step<L: Lane>(_ g: L, _ y: L, _ s: Slots<L>, _ a: Apply) -> L {
    point.step(direction(g, y, s), s, 0)
  }
  @inline(__always) func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { s[1] }
}
