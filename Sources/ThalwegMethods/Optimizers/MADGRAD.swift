import Glibc
import ThalwegCore

/// MADGRAD: dual averaging with momentum; the cube root of the summed squares scales every coordinate.
///
///     λ = (lr + ε)·√t;   v ← v + λ·g²;   s ← s + λ·g;   z = θ₀ − s/(∛v + ε);   θ ← μ·θ + (1 − μ)·z
///
/// State    s, v; θ₀ with momentum (without, it follows from θ and the state).
/// Differs  nothing from facebookresearch/madgrad, but that lr = 0 does not move. 0/0 is 0. Decoupled decay acts on θ
///          alone: θ₀ keeps pulling back. θ₀ is taken anew where the host writes the parameters.
/// Source   Defazio and Jelassi, 2021, arXiv:2101.11075.
struct MADGRAD: WholeRule {
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

  let weight, momentum, eps, keep: Double

  init(_ h: Hyper, _ c: StepContext) {
    (momentum, eps) = (h.momentum, h.eps)
    weight = c.lr == 0 ? 0 : (c.lr + eps) * c.time.squareRoot()
    keep = h.decoupled ? 1 - c.lr * c.weightDecay : 1
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let s = t.slots[0], v = t.slots[1]
    func away(_ i: Int) -> Double {
      let top = Double(s[i]), root = cbrt(Double(v[i])) + eps
      return top == 0 && root == 0 ? 0 : top / root
    }
    for i in 0..<t.count {
      let g = Double(t.v[i]), x = Double(t.w[i]) * keep
      let start = momentum == 0 ? x + away(i) : Double(t.slots[2][i])
      v[i] = T(Double(v[i]) + weight * g * g)
      s[i] = T(Double(s[i]) + weight * g)
      t.v[i] = weight == 0 ? 0 : T(Double(t.w[i]) - (momentum * x + (1 - momentum) * (start - away(i))))
    }
  }
}
