import ThalwegCore

/// MADGRAD: dual averaging with momentum; the cube root of the summed squares scales every coordinate.
///
///     λ = (lr + ε)·√t;   v ← v + λ·g²;   s ← s + λ·g;   z = θ₀ − s/(∛v + ε);   θ ← μ·θ + (1 − μ)·z
///
/// State    s, v; θ₀ with momentum (without, it follows from θ and the state).
/// Differs  nothing from facebookresearch/madgrad, but that lr = 0 does not move. 0/0 is 0. Decoupled decay acts on θ
///          alone: θ₀ keeps pulling back. θ₀ is taken anew where the host writes the parameters.
/// Source   Defazio and Jelassi, 2021, arXiv:2101.11075.
struct MADGRAD: ElementRule {
  static let method = Method(
    "madgrad", .optimizer, "Dual averaging with momentum, scaled by the cube root of the summed squares.",
    rule: """
      k = (lr + eps)*sqrt(t);  v <- v + k*g^2;  s <- s + k*g
      z = theta_0 - s/(v^(1/3) + eps);  theta <- momentum*theta + (1 - momentum)*z
      """,
    source: "Defazio, Jelassi, 2021, arXiv:2101.11075",
    parameters: [
      .lr(1e-2), .rate("momentum", 0.9, "share of the parameters that is kept").fixed,
      .eps(1e-6, "added to the denominator, and to lr"), .weightDecay(),
      .flag("decoupled", false, "decay is decoupled", live: false),
    ],
    slots: [
      Slot("grad_sum", "weighted sum of gradients s"), Slot("grad_sum_sq", "weighted sum of squares v"), DoG.origin,
    ],
    requests: "own-step")

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let momentum: Double = h.momentum
    return momentum == 0 ? Array(method.slots.prefix(2)) : method.slots
  }
  static func decay(_ h: Hyper) -> Decay { h.decoupled ? .rule : .coupled }

  let lr, weight, momentum, eps, keep: Double

  init(_ h: Hyper, _ c: StepContext) {
    (lr, momentum, eps) = (c.lr, h.momentum, h.eps)
    weight = c.lr == 0 ? 0 : (c.lr + eps) * c.time.squareRoot()
    keep = h.decoupled ? 1 - c.lr * c.weightDecay : 1
  }

  private typealias D = SIMD8<Double>
  /// s/(∛v + ε)
  @inline(__always) private func away(_ s: D, _ v: D) -> D { (v.cubeRoot() + eps).divide(s) }
  @inline(__always) private func away<L: Lane>(_ s: L, _ v: L) -> (low: D, high: D) {
    let s = s.wide, v = v.wide
    return (away(s.low, v.low), away(s.high, v.high))
  }
  @inline(__always) private func point(_ x: D, _ start: D, _ away: D) -> D {
    D(momentum) * x + D(1 - momentum) * (start - away)
  }

  /// In double: what a step adds is small beside the sums.
  @inline(__always) func moved<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let (g, w, sum, squares) = (g.wide, x.wide, s[0].wide, s[1].wide), (low, high) = (D(keep) * w.low, D(keep) * w.high)
    var start = (low: low, high: high)
    if momentum == 0 {
      let a = away(s[0], s[1])
      start = (low + a.low, high + a.high)
    } else {
      start = s[2].wide
    }
    let (first, second) = (D(weight) * g.low, D(weight) * g.high)
    s[1] = L(wide: squares.low + first * g.low, squares.high + second * g.high)
    s[0] = L(wide: sum.low + first, sum.high + second)
    if weight == 0 { return x }
    let a = away(s[0], s[1])
    return L(wide: point(low, start.low, a.low), point(high, start.high, a.high))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (x - moved(g, x, s)).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { moved(g, x, s) }
}
