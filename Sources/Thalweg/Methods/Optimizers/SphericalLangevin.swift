/// Langevin dynamics on unit spheres, one for each tensor.
///
///     q = −dt·strength·g + √dt·ξ;   q ← q − ⟨θ, q⟩·θ;   θ ← (θ + q)/‖θ + q‖
///
/// State    the move q of the present step.
/// Differs  a tangent Euler step and a normalisation, whose pull stands for the drift −(n − 1)/2·θ. The first step scales θ to length 1
///          before it moves; its gradient should be taken at unit vectors. The estimate is a time average (`trajectory_moments`).
/// Source   arXiv:2603.06028.
struct SphericalLangevin: ElementRule {
  static let method = Method(
    "spherical_langevin", .optimizer, "Langevin dynamics on unit spheres, one for each tensor.",
    rule: """
      q = -dt*strength*g + sqrt(dt)*xi;  q <- q - <theta, q>*theta
      theta <- (theta + q) / |theta + q|
      """,
    source: "arXiv:2603.06028",
    parameters: [.number("dt", 1e-3, .above(0), "time step"), .number("strength", 1, .atLeast(0), "weight of the gradient")],
    slots: [.temporary("move", "the move before it is projected")])

  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { 2 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("square"), Scalar("product"), Scalar("keep", 1), Scalar("shrink", 1)] }
  static var perTensor: Bool { true }

  let pull, noise, keep, shrink: Double
  let key: UInt64

  init(_ h: Hyper, _ c: StepContext) {
    let dt: Double = h.dt
    (pull, noise, keep, shrink) = (dt * h.strength, dt.squareRoot(), c.scalars[2], c.scalars[3])
    key = Random.key(seed: c.seed, stream: c.stream, step: UInt64(c.step), tensor: UInt32(truncatingIfNeeded: c.tensor))
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    if phase == 0 {
      let q = noise * s.normal(key) - pull * g
      s[0] = q
      sums.add(0, x, times: x)
      sums.add(1, x, times: q)
    } else {
      sums.add(0, s[0], times: s[0])
    }
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    if phase == 0 { (s[0], s[1]) = (totals[0], totals[1]) } else {
      // θ/n is the point, of length 1 from the second step on
      let n = c.t == 1 && s[0] > 0 ? s[0].squareRoot() : 1, a = 1 - s[1] / n
      let length = (a * a * s[0] / (n * n) + 2 * a * s[1] / n + totals[0]).squareRoot()
      (s[2], s[3]) = length > 0 ? (a / n / length, 1 / length) : (a / n, 1)
    }
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { x - (keep * x + shrink * s[0]) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { keep * x + shrink * s[0] }
}
