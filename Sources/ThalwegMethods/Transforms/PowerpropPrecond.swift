import Glibc
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

  let alpha, power, eps: Double

  init(_ h: Hyper, _ c: StepContext) {
    let a: Double = h.alpha
    (alpha, power, eps) = (a, 2 * ((a - 1) / a), h.eps)
  }

  func apply<T: Real>(_ t: Whole<T>) {
    guard alpha != 1 else { return }
    for i in 0..<t.count where t.v[i] != 0 {
      let size = Double(t.w[i]).magnitude + eps
      // α on both sides: α² may overflow where the power is 0
      t.v[i] = T(alpha * (power == 1 ? size : pow(size, power)) * alpha * Double(t.v[i]))
    }
  }
}
