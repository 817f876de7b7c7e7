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
    if a < 1e-8 { return weight * x * x / 2 }  // and the square of delta may be out of range
    // small arguments: log cosh a = log(1 + 2·sinh²(a/2)) keeps its digits
    let half = sinh(a / 2)
    return weight * delta * delta * (a < 1 ? log1p(2 * half * half) : a + log1p(exp(-2 * a)) - log(2))
  }
  /// δ within the range of the type: beyond, tanh(w/δ) is w/δ or ±1 all the same.
  @inline(__always) private func unit<L: Lane>(_: L.Type) -> L {
    L(L.width == 16 ? min(max(delta, 1e-37), 1e37) : delta)
  }
  /// Of w/δ: below, tanh is its argument.
  @inline(__always) private func least<L: Lane>(_: L.Type) -> L { L(Double(L.Element.ulpOfOne).squareRoot()) }

  @inline(__always) func value<L: Lane>(_ w: L) -> L { w.mapped(value) }
  @inline(__always) func gradient<L: Lane>(_ w: L) -> L {
    let y = w / unit(L.self)
    return L.select(L.less(y.magnitude, least(L.self)), weight * w, (weight * delta) * L.tanh(y))
  }
  @inline(__always) func prox<L: Lane>(_ w: L, _ t: Double) -> L {
    prox(w, k: L(min(t * weight, L.width == 16 ? 1e37 : 1e300)))
  }
  @inline(__always) func prox<L: Lane>(_ w: L, steps t: L) -> L {
    prox(w, k: L.min(weight * t, L.width == 16 ? 1e37 : 1e300))
  }
  /// In multiples of δ: the root u of u + k·tanh u = y.
  @inline(__always) private func prox<L: Lane>(_ w: L, k: L) -> L {
    let zero = L(0), delta = unit(L.self), tolerance = 4 * Double(L.Element.ulpOfOne), y = (w / delta).magnitude
    let small = L.less(y, least(L.self))
    var u = L.max(y / (1 + k), y - k), way = L.select(L.equal(w - w, zero), L.select(small, zero, L(1)), zero)
    // a vector goes on while one of its numbers is under way; one that has arrived stays, whatever its neighbours do
    for _ in 0..<100 {
      if !L.any(L.less(zero, way)) { break }
      let slope = L.tanh(u)
      let next = u - (u + k * slope - y) / (1 + k * (1 - slope * slope))
      let far = L.less(tolerance * next, (next - u).magnitude)
      u = L.select(L.less(zero, way), next, u)
      way = L.select(far, way, zero)
    }
    let moved = L.select(small, w / (1 + k), L.select(L.less(w, zero), -u, u) * delta)
    // nothing is nearer to an infinite number, and a step of 0 changes no bit
    return L.select(L.less(zero, k), L.select(L.equal(w - w, zero), moved, w), w)
  }
}
