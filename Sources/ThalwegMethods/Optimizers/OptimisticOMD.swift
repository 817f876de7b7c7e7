import Glibc
import ThalwegCore

/// Optimistic online mirror descent: the last gradient is the guess of the next one.
///
///     x̂ ← Move(x̂, ηₜ·g);   V ← V + ‖g − g_last‖²;   θ ← Move(x̂, ηₜ₊₁·g)
///     η = lr if given, else 2/(μ·t) if mu is given, else D/√(δ + 4G² + V) with the V before the step
///     Move (euclid): x̂ − η·g, projected on the domain (a ball of radius D/2 for all tensors together; a box [−D/2,
///     D/2])
///     Move (entropy): x̂·exp(−η·g), normalised; every tensor is one point of a simplex
///
/// t counts the steps of all tensors, and V is one for all; every group has its own `lr` or `mu`.
///
/// State    x̂ (entropy: its logarithm), g_last; V.
/// Differs  entropies need positive starts: a coordinate at 0 stays there. The variants for exp-concave losses and for
///          dynamic regret are not carried.
/// Source   Chen, Zhang, Tu, Zhao and Zhang, 2023, arXiv:2302.04552.
struct OptimisticOMD: ElementRule {
  static let method = Method(
    "optimistic_omd", .optimizer, "Optimistic online mirror descent: the last gradient is the guess of the next one.",
    rule: """
      x^ <- Move(x^, eta_t*g);  V <- V + |g - g_last|^2;  theta <- Move(x^, eta_{t+1}*g)
      eta = lr, or 2/(mu*t), or D/sqrt(delta + 4*G^2 + V)
      Move: x^ - eta*g projected on the domain (euclid), x^*exp(-eta*g) normalised (entropy)
      """,
    source: "Chen, Zhang, Tu, Zhao, Zhang, 2023, arXiv:2302.04552",
    parameters: [
      .number("D", 1, .above(0), "diameter").forAll, .number("G", 0, .atLeast(0), "bound of the gradients").forAll,
      .number("delta", 1, .above(0), "offset of the step size").forAll,
      .maybe("mu", .above(0), "strong convexity: steps of 2/(mu*t)"),
      .maybe("lr", .atLeast(0), "a fixed step instead"),
      .choice("geometry", ["euclid", "entropy"], "of the mirror map", live: false),
      .choice("domain", ["none", "ball", "box"], "of euclid", live: false),
    ],
    slots: [
      Slot("hidden", "the hidden iterate, or its logarithm", start: .iterate()), Slot("last", "the last gradient"),
    ],
    requests: "own-step")

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    guard h.is("geometry", "entropy") else { return method.slots }
    return [Slot("hidden", method.slots[0].meaning, start: .iterate(.logarithm)), method.slots[1]]
  }
  static func scope(_ h: Hyper) -> Scope { h.is("geometry", "entropy") ? .tensor : .global }
  static var shared: Int { 1 }
  static func phases(_ h: Hyper) -> Int { h.is("geometry", "entropy") ? 3 : h.is("domain", "ball") ? 2 : 1 }
  static func reach(_ h: Hyper, _ phase: Int) -> Scope { h.is("geometry", "entropy") && phase > 0 ? .tensor : .global }
  static func scalars(_ h: Hyper) -> [Scalar] {
    [
      Scalar("variation"), Scalar("eta"), Scalar("next_eta"), Scalar("hidden_scale", 1), Scalar("scale", 1),
      Scalar("top"), Scalar("lift"),
    ]
  }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[1] = eta(h, s[0], Double(c.step) + 1)
  }

  static func eta(_ h: Hyper, _ variation: Double, _ t: Double) -> Double {
    if h.has("lr") { return h.lr }
    if h.has("mu") { return 2 / (h.mu * t) }
    let bound: Double = h.G
    return h.D / (h.delta + 4 * bound * bound + variation).squareRoot()
  }

  let eta, next, hiddenScale, scale, top, edge, floor, lr: Double
  /// Keeps maxima of negative numbers above 0, where the running maximum starts.
  let lift: Double
  let entropy, ball, box: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let s = c.scalars, diameter: Double = h.D
    (eta, next, hiddenScale, scale, top, lr) = (s[1], s[2], s[3], s[4], s[5], c.lr)
    lift = h.is("geometry", "entropy") ? s[6] : 0
    (entropy, edge, floor) = (h.is("geometry", "entropy"), diameter / 2, c.isDouble ? 1e-300 : 1e-37)
    (ball, box) = (!entropy && h.is("domain", "ball"), !entropy && h.is("domain", "box"))
  }

  @inline(__always) func bounded<L: Lane>(_ x: L) -> L { box ? x.clipped(to: edge) : x }

  /// The logarithm of the point that is played, before it is normalised.
  @inline(__always) func logit<L: Lane>(_ g: L, _ s: Slots<L>) -> L { s[0] - next * g }
  /// 0 where the point has been from the start, whatever its storage rounds to 0, and where both are 0, which is what
  /// fills up a vector; a NaN stays.
  @inline(__always) func positive<L: Lane>(_ x: L, _ s: Slots<L>, _ value: L, none: Double = 0) -> L {
    let zero = L(0), none = L(none), live = L.select(L.less(L(-.infinity), s[0]), value, none)
    return L.select(L.equal(x, x), L.select(L.equal(x, zero), L.select(L.equal(s[0], zero), none, live), live), x)
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    if phase == 0 {
      let change = g - s[1]
      sums.add(0, change, times: change)
      s[1] = g
      let hidden = bounded(s[0] - eta * g)
      s[0] = hidden
      if ball { sums.add(1, hidden, times: hidden) }
      if entropy { sums.raise(positive(x, s, hidden.magnitude + eta * g.magnitude)) }
    } else if !entropy {
      let hidden = hiddenScale * s[0], point = hidden - next * g
      s[0] = hidden
      sums.add(0, point, times: point)
    } else if phase == 1 {
      // lifted in double: the largest of the floats is found as it is
      let w = positive(x, s, logit(g, s), none: -.infinity).wide, up = SIMD8<Double>(repeating: lift)
      sums.top = SIMD8<Double>.max(sums.top, w.low + up)
      if L.width == 16 { sums.top = SIMD8<Double>.max(sums.top, w.high + up) }
    } else {
      sums.add(0, positive(x, s, exponential(logit(g, s) - top)))
    }
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    func inside(_ norm: Double) -> Double {
      let radius = h.D / 2
      return norm <= radius ? 1 : radius / norm
    }
    let entropy = h.is("geometry", "entropy"), ball = h.is("domain", "ball")
    switch phase {
    case 0:
      s[0] += totals[0]
      s[2] = eta(h, s[0], Double(c.step) + 2)
      s[3] = !entropy && ball ? inside(totals.root(1)) : 1
      s[6] = totals.maximum + 1
    case 1: if entropy { s[5] = totals.maximum - s[6] } else { s[4] = inside(totals.root(0)) }
    default: s[4] = totals[0] > 0 ? 1 / totals[0] : 0
    }
  }

  @inline(__always) func point<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    if !entropy { return bounded(scale * (s[0] - next * g)) }
    let p = positive(x, s, L.max(scale * exponential(logit(g, s) - top), floor))
    s[0] = s[0] - top
    return p
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (x - point(g, x, s)).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { point(g, x, s) }
}

/// Not inlined: its registers would be missing in the geometry that has none.
@inline(never) private func exponential<L: Lane>(_ x: L) -> L { L.exp(x) }
