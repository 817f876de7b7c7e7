import ThalwegCore

/// IGNITE: a surrogate of an objective keeps the gradient of its mean prediction small, by a Lagrange multiplier.
///
///     g, p = the gradients of tasks 0 (the loss) and 1 (the mean prediction h);   e = r·p/‖p‖;
///     p′ = the gradient of h at θ + e
///     g ← g + λ·ρ/r·(p′ − p);   λ ← λ + η·(ρ·‖p‖ − ε), at least 0 with `clamp`
///
/// State    λ; while it asks, the parameters and both gradients.
/// Differs  nothing from cuong-dm/IGNITE, which has no clamp; eta_lambda=0 is its IGNITE2, a fixed multiplier. p = 0
///          leaves g.
/// Source   Dao, Nguyen, Hoang and Nguyen, 2024, NeurIPS.
struct IGNITE: Source {
  static let method = Method(
    "ignite", .perturbation, "Keeps the gradient of a surrogate's mean prediction small, by a Lagrange multiplier.",
    rule: """
      g, p = gradients of tasks 0 (loss) and 1 (mean prediction h);  e = r*p/|p|;  q = gradient of h at theta + e
      g <- g + lambda*rho/r*(q - p);  lambda <- lambda + eta_lambda*(rho*|p| - epsilon), at least 0 with clamp
      """,
    source: "Dao, Nguyen, Hoang, Nguyen, 2024, NeurIPS",
    parameters: [
      .number("rho", 0.05, .above(0), "radius of the sharpness").forAll,
      .number("r", 0.05, .above(0), "length of the difference").forAll,
      .number("lambda0", 1e-3, .atLeast(0), "first multiplier").fixed,
      .number("eta_lambda", 1e-3, .atLeast(0), "step of the multiplier; 0 keeps it").forAll,
      .number("epsilon", 0.1, .any, "level of the constraint").forAll,
      .flag("clamp", false, "the multiplier stays at 0 or above").forAll,
    ],
    slots: [
      homeSlot, gradientSlot, Slot.temporary("prediction_gradient", "the gradient of the mean prediction"),
    ], requests: "task_gradient")

  let slots = IGNITE.method.slots
  let scalars: [Scalar]
  private let point = 0, gradient = 1, prediction = 2
  init(_ h: Hyper) { scalars = [Scalar("lambda", h.lambda0)] }
  var opens: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { Ask(.taskGradient, index: 0, count: 2) }
  func most(_ tensors: Int) -> Int { 3 }
  var kinds: [Request.Kind] { [.taskGradient] }
  private struct Length: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, s[0], times: s[0])
    }
  }
  private struct Add: ElementOperation {
    let factor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      x = s[0] + factor * (x - s[1])
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let h = io.hyper, second = Ask(.taskGradient, index: 1, count: 2)
    switch phase {
    case 0:
      io.change(SaveGradient(), slots: [gradient], parameters: false)
      return .ask(second)
    case 1:
      let norm = io.sum(SquaredNorm()).root(0)
      if norm == 0 {
        follow(0, io)
        return .update(io.gradient(in: gradient))
      }
      io.change(KeepAndAscend(scale: h.r / norm), slots: [point, prediction], parameters: true)
      return .ask(second)
    default:
      let lambda = io.scalar(0), rho: Double = h.rho, r: Double = h.r
      follow(io.sum(Length(), slots: [prediction]).root(0), io)
      io.comeHome()
      return .update(io.operation(Add(factor: lambda * rho / r), slots: [gradient, prediction]))
    }
  }

  /// The step of the multiplier.
  private func follow(_ norm: Double, _ io: SourceIO) {
    let h = io.hyper, rho: Double = h.rho, eta: Double = h.eta_lambda, level: Double = h.epsilon
    let lambda = io.scalar(0) + eta * (rho * norm - level)
    io.setScalar(0, h.clamp ? max(0, lambda) : lambda)
  }
}
