import ThalwegCore

/// StableAdamW: AdamW whose step size falls where a tensor's gradients outgrow their second moment.
///
///     m, v as Adam;   w = g/√max(v/c₂, ε²)  (optimi),  g/(√(v/c₂) + ε)  (timm)
///     η = lr/max(1, rms(w)/threshold),  rms of each tensor
///     θ ← θ·(1 − k·wd) − η·(m/c₁)/(√(v/c₂) + ε),   k = η (optimi) or lr (timm)
///
/// State    m, v.
/// Differs  the debiased rates of some peers give the same moments. An infinite threshold is AdamW.
/// Source   Wortsman et al., 2023, arXiv:2304.13013; the clipping: Shazeer and Stern, 2018, arXiv:1804.04235.
struct StableAdamW: ElementRule {
  static let method = Method(
    "stable_adamw", .optimizer, "AdamW whose step is clipped by the RMS of the gradient over its second moment.",
    rule: """
      m, v as adam;  w = g/sqrt(max(v/c2, eps^2)) (optimi), g/(sqrt(v/c2) + eps) (timm)
      eta = lr/max(1, rms(w)/threshold), of each tensor
      theta <- theta*(1 - k*weight_decay) - eta*(m/c1)/(sqrt(v/c2) + eps),  k = eta (optimi) or lr (timm)
      """,
    source: "Wortsman et al., 2023, arXiv:2304.13013; Shazeer, Stern, 2018, arXiv:1804.04235",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.99, "rate of the second moment"),
      .eps(1e-8, "added to the denominator", .above(0)),
      .weightDecay(1e-2, "decoupled weight decay"),
      .number("threshold", 1, .above(0), "largest RMS that is not clipped").orInfinite(),
      .choice("form", ["optimi", "timm"], "optimi clips the decay too", live: false),
    ],
    slots: Adam.moments)

  static func decay(_ h: Hyper) -> Decay { h.is("form", "optimi") ? .rule : .decoupled }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("share", 1)] }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = 1 / larger(1, totals.root(0) / Double(max(1, c.count)).squareRoot() / h.threshold)
  }

  let beta1, beta2, eps, r1, r2, share, decay: Double
  let floors: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, share, floors) = (h.beta1, h.beta2, h.eps, c.scalars[0], h.is("form", "optimi"))
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
    decay = floors ? c.weightDecay : 0
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    s[0] = beta1 * s[0] + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[1] = v
    // ε² itself may be 0 in floats
    let root = (v * r2).squareRoot()
    let w = (floors ? L.max(root, eps) : root + eps).divide(g)
    sums.add(0, w, times: w)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let u = ((s[1] * r2).squareRoot() + eps).divide(s[0] * r1)
    return floors ? share * (u + decay * x) : share * u
  }
}
