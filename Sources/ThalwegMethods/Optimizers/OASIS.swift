import ThalwegCore

/// OASIS: a diagonal of the Hessian scales the gradient, and the curvature along the path sets the step size.
///
///     h = z⊙Hz, z random signs;   D ← h at first, then β₂·D + (1 − β₂)·h;   D̂ = max(|D|, α)
///     adaptive, from the second step:  η ← min(√(1 + ϑ)·η, ½·‖θ − θ'‖_D̂ / ‖g − g'‖_1/D̂),  ϑ ← the growth of η
///         with θ' the point before and g' the gradient of this minibatch there; norms over all tensors
///     m ← β₁·m + (1 − β₁)·g;   θ ← θ − η·m/D̂
///
/// State    D, m (β₁ > 0), θ' (adaptive), the probe, the gradient and the point of the step; η, ϑ.
/// Differs  D starts at the first probe; m starts at 0 and is not corrected (UNVERIFIED), the rule of η takes the raw
///          gradients. Where both terms of η are infinite, or it would be 0, η stays.
/// Source   Jahani et al., 2021, arXiv:2109.05198.
struct OASIS: ElementRule {
  static let method = Method(
    "oasis", .optimizer,
    "OASIS: a diagonal of the Hessian scales the gradient; the curvature along the path sets the step size.",
    rule: """
      D <- beta2*D + (1 - beta2)*z*Hz, from the first z*Hz;  D^ = max(|D|, alpha)
      adaptive: eta <- min(sqrt(1 + growth)*eta, 0.5*|theta - theta'|_D^ / |g - g'|_(1/D^)), g' at theta', the point \
      before
      m <- beta1*m + (1 - beta1)*g;  theta <- theta - eta*m/D^
      """,
    source: "Jahani et al., 2021, arXiv:2109.05198",
    parameters: [
      .number("lr0", 1e-3, .above(0), "first step size, or the step size where it is not adaptive").forAll,
      .rate("beta2", 0.99, "rate of the diagonal"),
      .number("alpha", 1e-3, .above(0), "floor of the diagonal"),
      .flag("adaptive", true, "the step size sets itself", live: false),
      .rate("beta1", 0, "rate of the momentum").fixed,
    ],
    slots: [
      Slot("diagonal", "the diagonal D"), Slot("previous", "the parameters before the last step"),
      .moment("exp_avg", "the momentum m"),
    ],
    requests: "hessian_vector, previous_gradient")

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let all = method.slots, beta1: Double = h.beta1
    return [all[0]] + (h.adaptive ? [all[1]] : []) + (beta1 == 0 ? [] : [all[2]])
  }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("eta"), Scalar("growth", .infinity), Scalar("steps")] }

  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    if s[0] == 0 || !h.adaptive { s[0] = h.lr0 }
  }

  let beta1, alpha, eta: Double
  let plain: Bool
  let average: Int

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, alpha, eta) = (h.beta1, h.alpha, c.scalars[0])
    (plain, average) = (beta1 == 0, h.adaptive ? 2 : 1)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    var m = g
    if !plain {
      m = beta1 * s[average] + (1 - beta1) * g
      s[average] = m
    }
    return eta * (m / L.max(s[0].magnitude, alpha))
  }

  static let registered = entry(OASIS.self, source: { (h) throws(Failure) in try Curvature(h) })

  struct Curvature: Source {
    static var method: Method { OASIS.method }
    let diagonal = 0, previous = 1
    let adaptive: Bool
    let vector, gradient, point: Int
    init(_ h: Hyper) throws(Failure) {
      adaptive = h.adaptive
      vector = OASIS.slots(h, Shape(dimensions: [1])).count
      (gradient, point) = (vector + 1, vector + 2)
    }

    var slots: [Slot] {
      [Slot.temporary("probe", "the vector z, then z*Hz"), Slot.temporary("gradient", "the gradient of the step")]
        + (adaptive ? [Slot.home("point", "the parameters of the step")] : [])
    }
    var probe: Int? { 0 }

    func most(_ tensors: Int) -> Int { adaptive ? 3 : 2 }
    var kinds: [Request.Kind] { [.hessianVector, .previousGradient] }
    struct Product: ElementOperation {
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = s[0] * g }
    }
    struct Average: ElementOperation {
      let keep: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = keep * s[0] + (1 - keep) * s[1]
      }
    }
    /// The same on the way back to the parameters of the step.
    struct Return: ElementOperation {
      let keep: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = keep * s[0] + (1 - keep) * s[1]
        x = s[2]
        s[3] = x
      }
    }
    /// Squared lengths of the move and of the turn of the gradient, in the metric of the new diagonal.
    struct Lengths: ElementSum {
      let keep, alpha: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
        let d = L.max((keep * s[0] + (1 - keep) * s[1]).magnitude, alpha)
        let move = s[3] - x, turn = s[2] - g
        sums.add(0, move, times: d * move)
        sums.add(1, turn, times: turn / d)
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let first = io.scalar(2) == 0
      func keep(_ h: Hyper) -> Double { first ? 0 : h.beta2 }
      switch phase {
      case 0:
        io.change(SaveGradient(), slots: [gradient], parameters: false)
        io.draw(vector, signs: true)
        return .ask(Ask(.hessianVector))
      case 1:
        io.change(Product(), slots: [vector], parameters: false)
        if adaptive, !first {
          io.change(StepBack(), slots: [point, previous], parameters: true)
          return .ask(Ask(.previousGradient))
        }
        io.change(slots: [diagonal, vector], parameters: false) { Average(keep: keep($0)) }
        if adaptive { io.change(SaveParameters(), slots: [previous], parameters: false) }
        io.setScalar(2, 1)
      default:
        let sums = io.sum(slots: [diagonal, vector, gradient, point]) { Lengths(keep: keep($0), alpha: $0.alpha) }
        io.change(slots: [diagonal, vector, point, previous], parameters: true) { Return(keep: keep($0)) }
        adapt(io, moved: sums.root(0), turned: sums.root(1))
      }
      return .update(io.gradient(in: gradient))
    }

    private func adapt(_ io: SourceIO, moved: Double, turned: Double) {
      let old = io.scalar(0)
      var eta = smaller((1 + io.scalar(1)).squareRoot() * old, turned == 0 ? .infinity : 0.5 * moved / turned)
      if eta.isInfinite || eta == 0 { eta = old }
      io.setScalar(1, eta / old)
      io.setScalar(0, eta)
    }
  }
}
