import ThalwegCore

/// Rolling Ball Optimizer: a ball on the graph of the loss moves down the tangent, and is projected back onto the
/// graph.
///
///     n² = ‖g‖², q = √(1 + n²) over all tensors;   centre:  c = θ − (ρ/q + lr)·g,   height  h = f + ρ/q − lr·n²
///     x = θ, then n_projection times, with the loss f and gradient g at x:   x ← x − projection_lr·((x − c) + (f −
///     h)·g)
///     θ ← x
///
/// State    x, c, θ and h while it asks; nothing between steps.
/// Differs  nothing from the authors' code; the defaults of the paper are UNVERIFIED. The rule moves the parameters
///          itself, so that transforms before it change nothing. lr, radius and n_projection are one for all groups; a
///          group with lr = 0 stays
///          where it is and is no part of n², and where all have it nothing more is asked. With maximize the loss
///          counts negative, as the gradient does. A large gradient needs a small projection_lr.
/// Source   Belgoumri et al., 2025, arXiv:2505.19527.
struct RollingBall: ElementRule {
  static let method = Method(
    "rolling_ball", .optimizer,
    "Rolling Ball Optimizer: a ball on the graph of the loss moves down, and is projected back onto it.",
    rule: """
      q = sqrt(1 + |g|^2);  c = theta - (radius/q + lr)*g;  h = f + radius/q - lr*|g|^2
      x = theta, then n_projection times, f and g at x: x <- x - projection_lr*((x - c) + (f - h)*g)
      theta <- x
      """,
    source: "Belgoumri et al., 2025, arXiv:2505.19527",
    parameters: [
      .lr(0.1).equalInAll, .number("radius", 0.5, .atLeast(0), "radius of the ball").forAll,
      .number("projection_lr", 1e-2, .atLeast(0), "step size of the projection"),
      .integer("n_projection", 10, .atLeast(0), "steps of the projection").forAll,
    ],
    slots: [
      Slot.temporary("projection", "the projection x"), Slot.temporary("centre", "the centre c"),
      Slot.home("point", "the parameters of the step"),
    ],
    requests: "loss_and_gradient, own-step", needsLoss: true)

  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("height")] }

  let lr: Double

  init(_ h: Hyper, _ c: StepContext) { lr = c.lr }

  // The move, not x: master weights are wider than the point that the host saw.
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (s[2] - s[0]).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x + (s[0] - s[2]) }

  static let registered = entry(RollingBall.self, source: { (h) throws(Failure) in try Projection(h) })

  struct Projection: Source {
    static var method: Method { RollingBall.method }
    var handsDirection: Bool { true }
    let projection = 0, centre = 1, point = 2
    init(_ h: Hyper) throws(Failure) {}

    func most(_ tensors: Int) -> Int { .max }  // the number of requests is a hyper-parameter that may change
    struct Begin: ElementOperation {
      let reach: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = x
        s[1] = x - reach * g
        s[2] = x
      }
    }
    /// The host's parameters may be narrower than the projection.
    struct Project: ElementOperation {
      /// 0 in groups that stay.
      let rate, above: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        let at = s[0]
        let next = at - rate * ((at - s[1]) + above * g)
        s[0] = next
        x = next
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let h = io.hyper, f = io.gradientScale < 0 ? -io.loss : io.loss, lr: Double = h.lr
      if phase == 0 {
        let square = io.sum { SquaredNorm(of: $0.lr != 0) }[0], lift = h.radius / (1 + square).squareRoot()
        io.change(Begin(reach: lift + lr), slots: [projection, centre, point], parameters: false)
        io.setScalar(0, f + lift - lr * square)
        if lr == 0 { return .update(nil) }
      } else {
        let above = f - io.scalar(0)
        io.change(slots: [projection, centre], parameters: true) {
          Project(rate: $0.lr == 0 ? 0 : $0.projection_lr, above: above)
        }
      }
      if phase < h.integer("n_projection") { return .ask(Ask(.lossAndGradient)) }
      if phase > 0 { io.comeHome() }
      return .update(nil)
    }
  }
}
