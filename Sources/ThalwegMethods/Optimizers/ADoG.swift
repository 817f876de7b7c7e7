import ThalwegCore

/// A-DoG: DoG's step size on AcceleGrad's two sequences.
///
///     α = max(1, alpha_const) at first;   G ← G + α²·‖g‖²;   η = lr·r/(√G + ε)
///     w ← w − α·η·g;   y = θ − η·g;   r ← max(r, ‖w − θ₀‖);   R ← R + r;   α ← max(1, alpha_const·R/r)
///     θ ← (1 − 1/α)·y + w/α
///
/// State    θ₀, w; r, R (both from reps_rel·(1 + ‖θ₀‖)), G. The parameters hold the query point.
/// Differs  nothing from the authors' AcceleDoG with its default options. ‖w − θ₀‖² is taken in the same walk as ‖g‖²,
///          from products.
/// Source   Kreisler, Ivgi, Hinder and Carmon, 2024, arXiv:2404.00666.
struct ADoG: ElementRule {
  static let method = Method(
    "a_dog", .optimizer, "A-DoG: DoG's step size on AcceleGrad's two sequences.",
    rule: """
      alpha = max(1, alpha_const) at first;  G <- G + alpha^2*|g|^2;  eta = lr*r/(sqrt(G) + eps)
      w <- w - alpha*eta*g;  y = theta - eta*g
      r <- max(r, |w - theta_0|);  R <- R + r;  alpha <- max(1, alpha_const*R/r)
      theta <- (1 - 1/alpha)*y + w/alpha
      """,
    source: "Kreisler, Ivgi, Hinder, Carmon, 2024, arXiv:2404.00666",
    parameters: [
      .lr(1).equalInAll, .number("reps_rel", 1e-6, .above(0), "first distance, relative to 1 + |theta_0|").forAll,
      .eps(1e-8).forAll,
      .number("alpha_const", 0.5, .above(0), "factor of the weights alpha").forAll,
    ],
    slots: [DoG.origin, Slot("w", "the sequence of long steps", start: .iterate())], requests: "own-step",
    refusesStochastic: DoG.roundingIsDistance)

  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] {
    [
      Scalar("distance"), Scalar("distances"), Scalar("squares"), Scalar("eta"), Scalar("alpha", 1),
      Scalar("next_alpha", 1),
    ]
  }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[4] = s[0] == 0 ? max(1, h.alpha_const) : s[5]
  }

  let first, moves: Bool
  let share, lr: Double
  let eta, long: Factor

  init(_ h: Hyper, _ c: StepContext) {
    let s = c.scalars
    (first, moves, lr, share) = (s[0] == 0, c.lr != 0, c.lr, 1 / s[5])
    (eta, long) = moves ? (Factor(s[3]), Factor(s[4] * s[3])) : (Factor(0), Factor(0))
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, g, times: g)
    // w is θ₀ as long as nothing has moved
    let away = first ? s[0] : s[1] - s[0]
    sums.add(1, away, times: away)
    if !moves { return }
    if !first { sums.add(2, away, times: g) }
    sums.add(3, g, times: g)
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let first = s[0] == 0
    if first {
      s[0] = h.reps_rel * (1 + totals.root(1))
      s[1] = s[0]
    }
    var squares = Squares(s[2])
    squares.add(Squares(totals, 0), times: s[4])
    s[2] = squares.number
    let root = squares.root + h.eps
    s[3] = root == 0 ? 0 : c.lr * s[0] / root
    let long = s[4] * s[3], step = long * totals.root(3)
    let square = first ? step * step : totals[1] - 2 * long * totals[2] + step * step
    s[0] = larger(s[0], larger(0, square).squareRoot())
    s[1] += s[0]
    s[5] = max(1, h.alpha_const * s[1] / s[0])
  }

  @inline(__always) func point<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let w = s[1] - long * g
    s[1] = w
    return (1 - share) * (x - eta * g) + share * w
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (x - point(g, x, s)).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { point(g, x, s) }
}
