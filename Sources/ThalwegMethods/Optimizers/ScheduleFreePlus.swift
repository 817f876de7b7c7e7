import Glibc
import ThalwegCore

/// Schedule-Free AdamC with a Polyak step size: neither a schedule nor a tuned rate.
///
///     β = sf_beta;  e ← pb·e + (1 − pb)·‖g‖₁·√(π/2),  D = e/(1 − pbᵏ⁺¹)
///     η = max(lr, ε)·max(0, f + β·⟨g, z − x⟩)/D,   η_max ← max(η_max, η)
///     c = 1 during c_warmup;  then w = (k + 1)ʳ·η_maxᵖ,  W ← W + w,  c = w/W
///     z ← z − η²·wd·y − η·(m/c₁)/(√(v/c₂) + ε);   x ← (1 − c)·x + c·z;   y ← β·x + (1 − β)·z
///
/// The parameters hold y while training; the evaluation weights are x. f is the loss at y, and has to have the floor 0.
///
/// State    m, v, z, x; e, η_max, W, k. Sums run over all tensors.
/// Differs  η is 0 where all gradients are 0. With `keep_corrected` the average e goes on from D, as in the reference
///          implementation. `sf_anneal_steps` moves 1 − β log-linearly to 1 − sf_beta_max. The numbers are one for all
///          groups. No paper was seen: the rule is that of schedule_free's reference implementation.
/// Source   schedule_free, AdamCScheduleFreePlus (Meta, 2026); Defazio et al., 2024, arXiv:2405.15682.
struct ScheduleFreePlus: ElementRule {
  static let method = Method(
    "schedule_free_plus", .optimizer, "Schedule-Free AdamC with a Polyak step size.",
    rule: """
      beta = sf_beta;  e <- pb*e + (1 - pb)*|g|_1*sqrt(pi/2);  D = e/(1 - pb^(k+1)),  pb = polyak_beta
      eta = max(lr, eps)*max(0, loss + beta*<g, z - x>)/D;  eta_max <- max(eta_max, eta)
      c = 1 while k < c_warmup;  then w = (k + 1)^r*eta_max^weight_lr_power;  W <- W + w;  c = w/W
      z <- z - eta^2*weight_decay*y - eta*(m/c1)/(sqrt(v/c2) + eps);  x <- (1 - c)*x + c*z
      y <- beta*x + (1 - beta)*z;  evaluation weights: x
      """,
    source: "schedule_free, AdamCScheduleFreePlus (Meta, 2026); Defazio et al., 2024, arXiv:2405.15682",
    parameters: [
      .lr(1).equalInAll, .rate("beta1", 0.9, "rate of the first moment"),
      .rate("beta2", 0.95, "rate of the second moment"), .rate("sf_beta", 0.9, "interpolation between z and x").forAll,
      .eps(1e-8, "added to the denominator; floor of lr and of the largest step size", .above(0)).forAll,
      .weightDecay(0, "decay at y, times the square of the step size"),
      .number("r", 0, .atLeast(0), "power of the step in the weights").forAll,
      .number("weight_lr_power", 2, .atLeast(0), "power of the largest step size in the weights").forAll,
      .rate("polyak_beta", 0, "rate of the average of the gradient's 1-norm").forAll,
      .integer("c_warmup", 0, .atLeast(0), "steps in which x follows z").forAll,
      .integer("sf_anneal_steps", 0, .atLeast(0), "steps from sf_beta to sf_beta_max; 0: never").forAll,
      .rate("sf_beta_max", 0.965, "interpolation at the end of the annealing").forAll,
      .flag("keep_corrected", false, "the average goes on from its corrected value").forAll,
    ],
    slots: Adam.moments + Interpolation.slots, requests: "own-step", needsLoss: true)

  static func decay(_ h: Hyper) -> Decay { .rule }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] {
    [
      Scalar("gradient_average"), Scalar("largest_rate"), Scalar("weight_sum"), Scalar("k"), Scalar("rate"),
      Scalar("share"), Scalar("beta"),
    ]
  }
  static var evaluates: Bool { true }

  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let anneal: Double = h.sf_anneal_steps, first: Double = h.sf_beta, last: Double = h.sf_beta_max
    let a = anneal > 0 ? min(s[3] / anneal, 1) : 0
    s[6] = a == 0 ? first : 1 - pow(1 - first, 1 - a) * pow(1 - last, a)
    s[3] += 1
  }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let keep: Double = h.polyak_beta, eps: Double = h.eps, r: Double = h.r, p: Double = h.weight_lr_power
    s[0] = keep * s[0] + (1 - keep) * totals.finite(0) * (Double.pi / 2).squareRoot()
    let average = s[0] / (1 - pow(keep, s[3]))
    if h.keep_corrected { s[0] = average }
    s[4] = average == 0 ? 0 : larger(c.lr, eps) * larger(0, c.loss + s[6] * totals[1]) / average
    s[1] = larger(larger(s[1], eps), s[4])
    if s[3] <= h.c_warmup { return s[5] = 1 }
    let w = pow(s[3], r) * pow(s[1], p)
    s[2] += w
    s[5] = s[2] == 0 ? 0 : w / s[2]
  }

  let beta1, beta2, eps, r1, r2, beta, share, lr: Double
  let rate, decay: Factor

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, lr) = (h.beta1, h.beta2, h.eps, c.lr)
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
    (share, beta) = (c.scalars[5], c.scalars[6])
    (rate, decay) = (Factor(c.scalars[4]), Factor(c.scalars[4] * c.scalars[4] * c.weightDecay))
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ y: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, g.magnitude)
    sums.add(1, g, times: s[2] - s[3])
  }

  @inline(__always) func next<L: Lane>(_ g: L, _ y: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = m
    s[1] = v
    let z = s[2] - decay * y - rate * ((v * r2).squareRoot() + eps).divide(m * r1)
    let average = s[3]
    let x = average + share * (z - average)
    s[2] = z
    s[3] = x
    return z + beta * (x - z)
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ y: L, _ s: Slots<L>) -> L { (y - next(g, y, s)).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ y: L, _ s: Slots<L>, _ a: Apply) -> L { next(g, y, s) }
  @inline(__always) func evaluate<L: Lane>(_ y: L, _ s: Slots<L>) -> L { s[3] }
}
