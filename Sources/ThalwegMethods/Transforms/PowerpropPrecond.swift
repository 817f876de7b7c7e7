import ThalwegCore

/// The metric of power-propagation as a preconditioner: small weights learn slowly, so that solutions are sparse.
///
///     g ← α²·(|θ| + ε)^(2(α − 1)/α)·g,   the gradient as it comes when φ is trained and θ = φ·|φ|^(α − 1)
///
/// State    none.
/// Differs  equal, to first order in the step size, to gradient descent on φ. The paper argues for such optimizers;
///          that this one is its own is UNVERIFIED. θ = 0 stays where ε = 0. Behind the rule it scales the update, by
///          the parameters too.
/// Source   Pascanu et al., 2025, arXiv:2507.12224.
struct PowerpropPrecond: WholeRule {
  static let method = Method(
    "powerprop_precond", .transform, "The metric of power-propagation as a preconditioner: small weights learn slowly.",
    rule: "g <- alpha^2 * (|theta| + eps)^(2*(alpha - 1)/alpha) * g",
    source: "Pascanu et al., 2025, arXiv:2507.12224",
    parameters: [
      .number("alpha", 2, .atLeast(1), "power of the reparametrisation; 1 changes nothing"),
      .eps(0, "added to |theta|"),
    ])

  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { 1 }

  let alpha, power, eps: Double

  init(_ h: Hyper, _ c: StepContext) {
    let a: Double = h.alpha
    (alpha, power, eps) = (a, 2 * ((a - 1) / a), h.eps)
  }

  func apply<T: Real>(_ t: Whole<T>) {
    guard alpha != 1 else { return }
    t.change(Scale(alpha: alpha, power: power, eps: eps))
  }

  struct Scale: ElementOperation {
    let alpha, power, eps: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let v = x.wide, size = g.magnitude.wide
      let low = scaled(v.low, size.low), high = L.width == 16 ? scaled(v.high, size.high) : low
      x = L.select(L.equal(x, L(0)), x, L(wide: low, high))
    }
    /// α on both sides: α² may overflow where the power is 0.
    @inline(__always) private func scaled(_ v: SIMD8<Double>, _ size: SIMD8<Double>) -> SIMD8<Double> {
      let x = size + eps, f = power == 1 ? x : SIMD8<Double>.exp(power * SIMD8<Double>.log(x))
      return alpha * f * alpha * v
    }
  }
}
