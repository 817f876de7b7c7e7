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
struct LogCosh: ElementRegularizer {
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

  private func value(_ x: Double) -> Double {
    let a = abs(x / delta)
    // small arguments: log cosh a = log(1 + 2·sinh²(a/2)) keeps its digits
    let half = sinh(a / 2)
    return weight * delta * delta * (a < 1 ? log1p(2 * half * half) : a + log1p(exp(-2 * a)) - log(2))
  }
  @inline(__always) func value<L: Lane>(_ w: L) -> L { w.mapped(value) }
  @inline(__always) func gradient<L: Lane>(_ w: L) -> L { (weight * delta) * L.tanh(w / delta) }
  @inline(__always) func prox<L: Lane>(_ w: L, _ t: Double) -> L { prox(w, steps: L(t)) }
  @inline(__always) func prox<L: Lane>(_ w: L, steps t: L) -> L {
    let k = t * weight, kd = k * delta, m = w.magnitude
    let zero = L(0), tolerance = 4 * Double(L.Element.ulpOfOne)
    var u = L.max(m / (1 + k), m - kd), way = L.select(L.equal(w - w, zero), L(1), zero)
    // a vector goes on while one of its numbers is under way; one that has arrived stays, whatever its neighbours do
    for _ in 0..<100 {
      if !L.any(L.less(zero, way)) { break }
      let slope = L.tanh(u / delta)
      let next = u - (u + kd * slope - m) / (1 + k * (1 - slope * slope))
      let far = L.less(tolerance * next, (next - u).magnitude)
      u = L.select(L.less(zero, way), next, u)
      way = L.select(far, way, zero)
    }
    let moved = L.select(L.less(w, zero), -u, u)
    // nothing is nearer to an infinite number, and a step of 0 changes no bit
    return L.select(L.less(zero, k), L.select(L.equal(w - w, zero), moved, w), w)
  }
}
