import Glibc
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
/// Source   McMahan et al., 2013.
struct FTRL: WholeRule {
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

  let lr, p, beta, lambda1, lambda2, start, shrinkage: Double
  let first: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let power: Double = h.lr_power
    (lr, p, beta, lambda1, lambda2) = (c.lr, -power, h.beta, h.lambda1, h.lambda2)
    (start, shrinkage, first) = (h.initial_accumulator_value, h.shrinkage, c.t == 1)
  }

  private func root(_ n: Double) -> Double { p == 0.5 ? n.squareRoot() : pow(n, p) }

  func apply<T: Real>(_ t: Whole<T>) {
    guard lr > 0 else { return t.v.update(repeating: 0, count: t.count) }
    for i in 0..<t.count {
      let g = Double(t.v[i]), x = Double(t.w[i]), n = first ? start : Double(t.slots[1][i]), sum = n + g * g
      let z = Double(t.slots[0][i]) + g + 2 * shrinkage * x - (root(sum) - root(n)) / lr * x
      (t.slots[0][i], t.slots[1][i]) = (T(z), T(sum))
      let q = (root(sum) + beta) / lr + lambda2
      let new = abs(z) <= lambda1 || q == 0 ? 0 : ((z < 0 ? -lambda1 : lambda1) - z) / q
      t.v[i] = t.w[i] - T(new)
    }
  }
}
