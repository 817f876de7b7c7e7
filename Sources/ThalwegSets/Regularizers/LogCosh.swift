import Glibc
import ThalwegCore

/// The logarithm of the hyperbolic cosine, a smooth form of the Huber penalty.
///
///     value = λδ²·Σ log cosh(w/δ)     gradient = λδ·tanh(w/δ)
///     prox: the root u of u + kδ·tanh(u/δ) = w, k = tλ
///
/// log cosh x is |x| + log1p(exp(−2|x|)) − log 2, which does not overflow; the root is found by Newton's method from
/// a lower bound of |u|, where every step stays below the root.
/// Source   Green, 1990.
struct LogCosh: TermRegularizer {
  static let method = Method(
    "log_cosh", .regularizer, "The logarithm of the hyperbolic cosine, a smooth form of the Huber penalty.",
    rule: """
      value = weight*delta^2*sum log cosh(w/delta);  gradient = weight*delta*tanh(w/delta)
      prox: the root u of u + k*delta*tanh(u/delta) = w, k = t*weight
      """,
    source: "Green, 1990",
    parameters: [.weight(1), .number("delta", 1, .above(0), "where the quadratic becomes linear")])

  let weight, delta: Double
  init(_ h: Hyper) { (weight, delta) = (h.weight, h.delta) }

  func value(_ x: Double) -> Double {
    let a = abs(x / delta)
    // small arguments: log cosh a = log(1 + 2·sinh²(a/2)) keeps its digits
    let half = sinh(a / 2)
    return weight * delta * delta * (a < 1 ? log1p(2 * half * half) : a + log1p(exp(-2 * a)) - log(2))
  }
  func gradient(_ x: Double) -> Double { weight * delta * tanh(x / delta) }
  func prox(_ x: Double, _ t: Double) -> Double {
    let k = t * weight, m = abs(x)
    guard k > 0, m.isFinite else { return x }
    var u = max(m / (1 + k), m - k * delta)
    for _ in 0..<200 {
      let slope = tanh(u / delta)
      let next = u - (u + k * delta * slope - m) / (1 + k * (1 - slope * slope))
      if !(abs(next - u) > 2e-16 * next) { break }
      u = next
    }
    return x < 0 ? -u : u
  }
}
