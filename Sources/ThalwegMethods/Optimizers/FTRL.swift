import ThalwegCore

/// Follow the proximally regularised leader: the parameters are the best answer to all gradients so far.
///
///     n' = n + g²;  σ = (n'ᵖ − nᵖ)/lr,  p = −lr_power;   z ← z + g + 2·shrinkage·θ − σ·θ;   n ← n'
///     θ = 0 where |z| ≤ λ₁, else (sign(z)·λ₁ − z)/((nᵖ + β)/lr + λ₂)
///
/// State    z, n.
/// Differs  pytorch-optimizer takes √n in the denominator whatever lr_power. The parameters are a function of the
///          state: a coordinate that never had a gradient is 0 from the first step on, and what a host writes into
///          them only enters through σ·θ. A step with lr = 0 leaves all as it is.
///          Where n is beyond the largest number the coordinate stays. Gradients whose squares are below the smallest
///          one (floats: 4e-23) count as none, and below 1e-19 n has fewer digits.
/// Source   McMahan et al., 2013.
struct FTRL: ElementRule {
  static let method = Method(
    "ftrl", .optimizer, "The parameters are the regularised best answer to all gradients so far.",
    rule: """
      n' = n + g^2;  sigma = (n'^p - n^p)/lr, p = -lr_power;  z <- z + g + 2*shrinkage*theta - sigma*theta;  n <- n'
      theta <- 0 where |z| <= lambda1, else (sign(z)*lambda1 - z)/((n^p + beta)/lr + lambda2)
      """,
    source: "McMahan et al., 2013",
    parameters: [
      .lr(1e-3), .number("lr_power", -0.5, .atMost(0), "power of the sum of squares, negated"),
      .number("beta", 0, .atLeast(0), "added to the root of the sum"),
      .number("lambda1", 0, .atLeast(0), "l1 penalty of the leader"),
      .number("lambda2", 0, .atLeast(0), "l2 penalty of the leader"),
      .number("initial_accumulator_value", 0, .atLeast(0), "start of the sum of squares"),
      .number("shrinkage", 0, .atLeast(0), "l2 penalty of the loss, in z alone"),
    ],
    slots: [Slot("z", "the linear term z"), Slot("n", "sum of squares n")], requests: "own-step")

  let lr, p, beta, lambda1, lambda2, start, shrinkage, rate: Double
  let first, moves: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let power: Double = h.lr_power
    (lr, p, beta, lambda1, lambda2) = (c.lr, -power, h.beta, h.lambda1, h.lambda2)
    (start, shrinkage, first) = (h.initial_accumulator_value, h.shrinkage, c.t == 1)
    (moves, rate) = (c.lr > 0, 1 / c.lr)
  }

  private typealias D = SIMD8<Double>
  @inline(__always) private func root(_ n: D) -> D {
    p == 0.5 ? n.squareRoot() : p == 1 ? n : p == 0 ? D(1) : D.pow(n, p)
  }
  /// The linear term and the parameter; in double, for σ is a difference of roots. `sum`: n', as it is kept: what the
  /// next step does not find in n must not have been in σ.
  @inline(__always) private func next(_ g: D, _ x: D, _ z: D, _ n: D, _ sum: D) -> (z: D, x: D) {
    let new = root(sum), k = D(rate), zero = D(0)
    let sigma: D = (new - root(n)) * k
    let pull: D = D(2 * shrinkage) * x - sigma * x
    let z: D = z + g + pull
    let q: D = (new + D(beta)) * k + D(lambda2)
    return (z, D.select(D.equal(q, zero), zero, (zero - z.shrunk(by: lambda1)) / q))
  }

  @inline(__always) func moved<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    if !moves { return x }
    let (g, w, z) = (g.wide, x.wide, s[0].wide), n = first ? (D(start), D(start)) : s[1].wide
    let sum = L(wide: n.0 + g.low * g.low, n.1 + g.high * g.high), isOver = L.equal(sum, L(.infinity)), all = sum.wide
    let a = next(g.low, w.low, z.low, n.0, all.low)
    let b = L.width == 16 ? next(g.high, w.high, z.high, n.1, all.high) : a
    s[0] = L.select(isOver, s[0], L(wide: a.z, b.z))
    s[1] = sum
    return L.select(isOver, x, L(wide: a.x, b.x))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (x - moved(g, x, s)).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { moved(g, x, s) }
}
