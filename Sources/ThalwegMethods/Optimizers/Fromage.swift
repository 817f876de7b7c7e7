import ThalwegCore

/// Fromage: every tensor moves by a share of its own norm, and is then shortened by as much.
///
///     θ ← (θ − lr·(‖θ‖/‖g‖)·g)/√(1 + lr²);   the plain step lr·g where either norm is 0;  norms of each tensor
///     p_bound:  θ ← θ·min(1, p_bound·‖θ₀‖/‖θ‖)
///
/// State    with p_bound the first norm ‖θ₀‖.
/// Differs  nothing from jxbz/fromage. A zero gradient leaves the shortening. The norm of the new tensor follows from
///          ‖θ‖, ‖g‖ and ⟨θ, g⟩.
/// Source   Bernstein, Vahdat, Yue and Liu, 2020, arXiv:2002.03432.
struct Fromage: ElementRule {
  static let method = Method(
    "fromage", .optimizer, "Every tensor moves by a share of its own norm, and is then shortened by as much.",
    rule: """
      theta <- (theta - lr*(|theta|/|g|)*g)/sqrt(1 + lr^2), per tensor;  the plain lr*g where either norm is 0
      p_bound: theta <- theta*min(1, p_bound*|theta_0|/|theta|)
      """,
    source: "Bernstein, Vahdat, Yue, Liu, 2020, arXiv:2002.03432",
    parameters: [.lr(1e-2), .maybe("p_bound", .above(0), "largest norm of a tensor, over its first norm")],
    requests: "own-step")

  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("ratio"), Scalar("shrink", 1), Scalar("first_norm", -1)] }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let x = totals.root(0), g = totals.root(1), lr = c.lr
    if s[2] < 0 { s[2] = x }
    s[0] = x == 0 || g == 0 ? 1 : x / g
    s[1] = 1 / (1 + lr * lr).squareRoot()
    guard h.has("p_bound"), x > 0 || g > 0 else { return }
    let along = lr * s[0] * (x > 0 ? totals[2] / x : 0), across = lr * s[0] * g
    // ‖θ − k·g‖² over the larger of ‖θ‖² and (k·‖g‖)²
    let unit = larger(x, across)
    let square = (x / unit) * (x / unit) - 2 * (along / unit) * (x / unit) + (across / unit) * (across / unit)
    let norm = unit * larger(0, square).squareRoot() * s[1], bound = h.p_bound * s[2]
    if norm > bound { s[1] *= bound / norm }
  }

  let rate: Factor
  let shrink, lr: Double

  init(_ h: Hyper, _ c: StepContext) { (rate, shrink, lr) = (Factor(c.lr * c.scalars[0]), c.scalars[1], c.lr) }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, x, times: x)
    sums.add(1, g, times: g)
    sums.add(2, x, times: g)
  }

  @inline(__always) func next<L: Lane>(_ g: L, _ x: L) -> L { shrink * (x - rate * g) }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (x - next(g, x)).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { next(g, x) }
}
