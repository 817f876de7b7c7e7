import ThalwegCore

/// The Huber penalty: quadratic near zero, linear far from it.
///
///     value = λ·Σ(w²/2 for |w| ≤ δ, else δ(|w| − δ/2))     gradient = λ·clip(w, −δ, δ)
///     prox = w/(1 + k) for |w| ≤ δ(1 + k), else w − kδ·sign(w),  k = tλ
///
/// Its name is not `huber`, for that is the loss of predictions and targets.
/// Differs  nothing from torch's huber_loss of residuals w. pyproximal's prox changes its branch at δ, which does not
///          minimise between δ and δ(1 + k): not followed.
/// Source   Huber, 1964.
struct HuberPenalty: ElementRegularizer {
  static let method = Method(
    "huber_penalty", .regularizer, "The Huber penalty: quadratic near zero, linear far from it.",
    rule: """
      value = weight*sum (w^2/2 where |w| <= delta, else delta*(|w| - delta/2))
      gradient = weight*clip(w, -delta, delta)
      prox = w/(1 + k) where |w| <= delta*(1 + k), else w - k*delta*sign(w), k = t*weight
      """,
    source: "Huber, 1964",
    parameters: [.weight(1), .number("delta", 1, .above(0), "where the quadratic becomes linear")])

  let weight, delta: Double
  init(_ h: Hyper) { (weight, delta) = (h.weight, h.delta) }

  @inline(__always) func value<L: Lane>(_ w: L) -> L {
    let m = w.magnitude
    return weight * L.select(L.less(L(delta), m), delta * (m - delta / 2), 0.5 * (w * w))
  }
  @inline(__always) func gradient<L: Lane>(_ w: L) -> L { weight * w.clipped(to: delta) }
  @inline(__always) func prox<L: Lane>(_ w: L, _ t: Double) -> L {
    let k = t * weight
    return L.select(L.less(L(delta * (1 + k)), w.magnitude), w - (k * delta) * w.sign, w / (1 + k))
  }
  @inline(__always) func prox<L: Lane>(_ w: L, steps t: L) -> L {
    let k = weight * t
    return L.select(L.less(delta * (1 + k), w.magnitude), w - delta * k * w.sign, w / (1 + k))
  }
}
