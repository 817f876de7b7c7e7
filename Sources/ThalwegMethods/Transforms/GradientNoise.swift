import Glibc
import ThalwegCore

/// Annealed Gaussian noise on the gradient.
///
///     σ² = η/(1 + t)^γ, t from 0;   g ← g + σ·ξ,  ξ ~ N(0, 1)
///
/// State    none: the draws are a function of seed, step, tensor and element.
/// Differs  nothing from optax.add_noise but for the generator. It stands behind clipping in the paper.
/// Source   Neelakantan et al., 2015, arXiv:1511.06807.
struct GradientNoise: ElementRule {
  static let method = Method(
    "gradient_noise", .transform, "Annealed Gaussian noise on the gradient.",
    rule: """
      sigma^2 = eta/(1 + t)^gamma, t from 0
      g <- g + sigma*xi,  xi ~ N(0, 1)
      """,
    source: "Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach, Martens, 2015, arXiv:1511.06807",
    parameters: [
      .number("eta", 0.3, .atLeast(0), "variance at first"), .number("gamma", 0.55, .atLeast(0), "power of its decay"),
    ])

  static var perTensor: Bool { true }
  let sigma: Double
  let key: UInt64

  init(_ h: Hyper, _ c: StepContext) {
    let eta: Double = h.eta, gamma: Double = h.gamma
    sigma = (eta / pow(c.time, gamma)).squareRoot()
    key = Random.key(
      seed: c.seed, stream: c.stream, step: UInt64(max(0, c.t - 1)), tensor: UInt32(truncatingIfNeeded: c.tensor))
  }

  var multiplies: Double? { sigma == 0 ? 1 : nil }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v + sigma * s.normal(key) }
}
