import ThalwegCore

/// DP-AdamBC: Adam on private gradients, with the variance of their noise taken out of the second moment.
///
///     m, v as Adam of the clipped, noised and averaged gradient;   Φ = (noise_multiplier·clip/batch_size)²
///     θ ← θ − lr · (m/c₁) / (√max(v/c₂ − Φ, floor) + ε)
///
/// State    m, v.
/// Differs  nothing from the authors' code, which has no ε and may lower the floor from step to step. Clipping and
///          noise are made before; with Poisson sampling batch_size is the expected one. Decay is coupled.
/// Source   Tang, Shpilevskiy and Lécuyer, 2023, arXiv:2312.14334.
struct DPAdamBC: ElementRule {
  static let method = Method(
    "dp_adam_bc", .optimizer, "Adam on private gradients, with the variance of their noise taken out of v.",
    rule: """
      m, v as adam of the private gradient;  phi = (noise_multiplier*clip/batch_size)^2
      theta <- theta - lr*(m/c1)/(sqrt(max(v/c2 - phi, floor)) + eps)
      """,
    source: "Tang, Shpilevskiy, Lecuyer, 2023, arXiv:2312.14334",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .number("noise_multiplier", nil, .atLeast(0), "standard deviation of the noise, over the clipping norm"),
      .number("clip", nil, .above(0), "clipping norm of a sample's gradient"),
      .number("batch_size", nil, .above(0), "samples that the gradient was divided by"),
      .number("floor", 1e-8, .above(0), "smallest second moment"), .eps(0),
      .weightDecay(0, "coupled weight decay"),
    ],
    slots: Adam.moments)

  static func decay(_ h: Hyper) -> Decay { .coupled }

  let beta1, beta2, eps, r1, r2, noise, floor: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, floor) = (h.beta1, h.beta2, h.eps, h.floor)
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
    let deviation = h.noise_multiplier * h.clip / h.batch_size
    noise = deviation * deviation
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = m
    s[1] = v
    return (L.max(v * r2 - noise, floor).squareRoot() + eps).divide(m * r1)
  }
}
