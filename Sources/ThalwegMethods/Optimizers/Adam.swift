import ThalwegCore

/// Adam: averages of the gradient and of its square set the step of every coordinate.
///
///     m ← β₁·m + (1 − β₁)·g          v ← β₂·v + (1 − β₂)·g²
///     θ ← θ − lr · (m/c₁) / (√(v/c₂) + ε),   c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ
///
/// State    m, v.
/// Differs  ε is added to the corrected root, as in the paper's Algorithm 1 (and torch). `eps_in_sqrt` puts it inside:
///          √(v/c₂ + ε), the placement of the generalized-smooth analysis (arXiv:2404.01436), which also goes without
///          bias correction. Decay is coupled.
/// Source   Kingma and Ba, 2014, arXiv:1412.6980.
struct Adam: ElementRule {
  static let parameters: [Parameter] = [
    .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
    .eps(1e-8),
    .weightDecay(0, "coupled weight decay"), .flag("bias_correction", true, "divide the moments by 1 - beta^t"),
    .flag("eps_in_sqrt", false, "eps inside the root"),
  ]
  static let moments: [Slot] = [.moment("exp_avg", "first moment m"), .square("exp_avg_sq", "second moment v")]
  static let method = Method(
    "adam", .optimizer, "Adam: averages of the gradient and of its square set the step of every coordinate.",
    rule: """
      m <- beta1*m + (1 - beta1)*g
      v <- beta2*v + (1 - beta2)*g^2
      theta <- theta - lr * (m/c1) / (sqrt(v/c2) + eps),  c_i = 1 - beta_i^t
      """,
    source: "Kingma, Ba, 2014, arXiv:1412.6980", parameters: parameters, slots: moments)

  static func decay(_ h: Hyper) -> Decay { .coupled }

  let beta1, beta2, eps, r1, r2: Double
  let epsInside: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, epsInside) = (h.beta1, h.beta2, h.eps, h.eps_in_sqrt)
    let corrected: Bool = !h.has("bias_correction") || h.bias_correction
    (r1, r2) = corrected ? (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t))) : (1, 1)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = m
    s[1] = v
    let root = epsInside ? (v * r2 + eps).squareRoot() : (v * r2).squareRoot() + eps
    return root.divide(m * r1)
  }
}
