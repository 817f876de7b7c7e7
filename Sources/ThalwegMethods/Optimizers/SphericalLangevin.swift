import ThalwegCore

/// Langevin dynamics on unit spheres, one for each tensor.
///
///     q = −dt·strength·g + √dt·ξ;   q ← q − ⟨θ, q⟩·θ;   θ ← (θ + q)/‖θ + q‖, or θ where that is 0
///
/// State    the move q of the present step.
/// Differs  a tangent Euler step and a normalisation, whose pull stands for the drift −(n − 1)/2·θ. The first step
///          scales θ to length 1 before it moves; its gradient should be taken at unit vectors. The estimate is a time
///          average
///          (`trajectory_moments`). The part of q along θ is taken out twice, so that a long q leaves no part of it.
///          The sphere of one element has no tangent.
/// Source   arXiv:2603.06028.
struct SphericalLangevin: ElementRule {
  static let method = Method(
    "spherical_langevin", .optimizer, "Langevin dynamics on unit spheres, one for each tensor.",
    rule: """
      q = -dt*strength*g + sqrt(dt)*xi;  q <- q - <theta, q>*theta
      theta <- (theta + q) / |theta + q|
      """,
    source: "arXiv:2603.06028",
    parameters: [
      .number("dt", 1e-3, .atLeast(0), "time step"), .number("strength", 1, .atLeast(0), "weight of the gradient"),
    ],
    slots: [.temporary("move", "the move before it is projected")])

  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { 3 }
  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("square"), Scalar("product"), Scalar("keep", 1), Scalar("shrink", 1)]
  }
  static var perTensor: Bool { true }

  let pull, noise, along, keep, shrink: Double
  let alone: Bool
  let key: UInt64

  init(_ h: Hyper, _ c: StepContext) {
    let dt: Double = h.dt
    (pull, noise) = (dt * h.strength, dt.squareRoot())
    (along, keep, shrink, alone) = (c.scalars[1], c.scalars[2], c.scalars[3], c.count == 1)
    key = Random.key(seed: c.seed, stream: c.stream, step: UInt64(c.step), tensor: UInt32(truncatingIfNeeded: c.tensor))
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    if phase == 0 {
      let q = noise * s.normal(key) - pull * g
      s[0] = q
      sums.add(0, x, times: x)
      sums.add(1, x, times: q)
    } else if phase == 1 {
      let q = alone ? s[0] * 0 : s[0] - along * x
      s[0] = q
      sums.add(0, x, times: q)
    } else {
      let y = keep * x + s[0]
      sums.add(0, y, times: y)
    }
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    // θ/n is the point, of length 1 from the second step on; s[1] is the part of q along θ, over n²
    let n = c.t == 1 && s[0] > 0 ? s[0].squareRoot() : 1
    switch phase {
    case 0: (s[0], s[1]) = (totals[0], totals[1] / (c.t == 1 && totals[0] > 0 ? totals[0] : 1))
    case 1: s[2] = 1 / n - totals[0] / (n * n)
    default:
      let length = totals.root(0)
      (s[2], s[3]) = length == 0 ? (1 / n, 0) : (s[2], 1 / length)
    }
  }

  @inline(__always) func point<L: Lane>(_ x: L, _ s: Slots<L>) -> L {
    shrink == 0 ? keep * x : shrink * (keep * x + s[0])
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { x - point(x, s) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { point(x, s) }
}
