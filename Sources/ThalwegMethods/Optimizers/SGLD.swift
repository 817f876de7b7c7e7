import ThalwegCore

/// Stochastic gradient Langevin dynamics: gradient descent with normal noise at the temperature of the sampled
/// distribution.
///
///     θ ← θ − lr·g + √(2·lr·T)·ξ,   ξ standard normal
///
/// State    none: the noise is a function of the seed, the step, the tensor and the element.
/// Differs  temperature 0 is plain gradient descent. The noise is part of the direction, divided by lr there.
/// Source   Welling and Teh, 2011.
struct SGLD: ElementRule {
  static let method = Method(
    "sgld", .optimizer, "Stochastic gradient Langevin dynamics: gradient descent with normal noise.",
    rule: "theta <- theta - lr*g + sqrt(2*lr*temperature)*xi,  xi standard normal", source: "Welling, Teh, 2011",
    parameters: [.lr(1e-3), .number("temperature", 1, .atLeast(0), "temperature of the sampled distribution")])

  static var perTensor: Bool { true }

  let noise: Double
  let key: UInt64

  init(_ h: Hyper, _ c: StepContext) {
    let temperature: Double = h.temperature
    noise = c.lr > 0 ? (2 * temperature / c.lr).squareRoot() : 0
    key = Random.key(seed: c.seed, stream: c.stream, step: UInt64(c.step), tensor: UInt32(truncatingIfNeeded: c.tensor))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    noise == 0 ? g : g - noise * s.normal(key)
  }
}
