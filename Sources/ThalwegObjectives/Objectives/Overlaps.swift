import Glibc
import ThalwegCore

private let maskInputs: [Input] = [
  .variable("p", "..., C", "probabilities of the classes"), .constant("t", "..., C", "masks, 0 to 1"),
]

/// What predictions and masks of one class have in common, over all positions.
private struct MaskSums {
  var both = 0.0, predicted = 0.0, wanted = 0.0

  init<T: Real>(_ p: UnsafePointer<T>, _ t: UnsafePointer<T>, _ rows: Int, _ classes: Int, squared: Bool) {
    for i in 0..<rows {
      let a = Double(p[i * classes]), b = Double(t[i * classes])
      both += a * b
      predicted += squared ? a * a : a
      wanted += squared ? b * b : b
    }
  }
}

/// Soft Dice.
///
///     I = Σ p·t, U = Σ p + Σ t (squared: Σ p² + Σ t²)     value = mean over classes of 1 − (2I + s)/(U + s)
///
/// p and t are (..., C); the sums are over all leading axes. A class that is absent and not predicted, with s = 0,
/// costs nothing.
/// Differs  MONAI averages over samples and leaves the background out on demand; other ports add ε to the denominator
///          alone.
/// Source   Milletari et al., 2016, arXiv:1606.04797.
struct Dice: Objective {
  static let method = Method(
    "dice", .objective, "Soft Dice: the overlap of predicted and wanted masks, pooled over the batch.",
    rule: """
      I = sum p*t, U = sum p + sum t (squared: sum p^2 + sum t^2) for every class
      value = mean 1 - (2*I + smooth)/(U + smooth)
      """,
    source: "Milletari et al., 2016, arXiv:1606.04797",
    parameters: [
      .number("smooth", 1, .atLeast(0), "added to numerator and denominator"),
      .flag("squared", false, "squares in the denominator"),
    ], inputs: maskInputs)
  let smooth: Double, squared: Bool
  init(_ h: Hyper) { (smooth, squared) = (h.smooth, h.squared) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let p = try x["p"], t = try x["t"], rows = x.sizes.samples, classes = x.sizes["C"]
    let g = try cache?.keep("p", rows * classes, T.self), weight = 1 / Double(classes)
    return weight
      * Rows.sum(classes, work: 4 * rows) { c in
        let sums = MaskSums(p + c, t + c, rows, classes, squared: squared)
        let top = 2 * sums.both + smooth, bottom = sums.predicted + sums.wanted + smooth
        if bottom == 0 { return 0 }
        if let g {
          for i in stride(from: c, to: rows * classes, by: classes) {
            let slope = squared ? 2 * Double(p[i]) : 1
            g[i] = T(-weight * (2 * Double(t[i]) - top / bottom * slope) / bottom)
          }
        }
        return 1 - top / bottom
      }
  }
}

/// Tversky and focal Tversky: Dice with separate weights for what is predicted wrongly and what is missed.
///
///     TP = Σ pt, FP = Σ p(1 − t), FN = Σ (1 − p)t     TI = (TP + s)/(TP + α·FP + β·FN + s)
///     value = mean over classes of (1 − TI)^γ
///
/// An index of exactly 1 has no gradient. α = β = ½ with half the smoothing is `dice`.
/// Differs  peers disagree which of α and β weighs false positives; here it is α. The focal form writes its exponent as
///          1/γ elsewhere.
/// Source   Salehi et al., 2017, arXiv:1706.05721; Abraham and Khan, 2018, arXiv:1810.07842.
struct Tversky: Objective {
  static let method = Method(
    "tversky", .objective, "Dice with separate weights for false positives and misses, also focal.",
    rule: """
      TP = sum p*t, FP = sum p*(1 - t), FN = sum (1 - p)*t for every class
      TI = (TP + smooth)/(TP + alpha*FP + beta*FN + smooth);  value = mean (1 - TI)^gamma
      """,
    source: "Salehi et al., 2017, arXiv:1706.05721; Abraham, Khan, 2018, arXiv:1810.07842",
    parameters: [
      .number("alpha", 0.3, .atLeast(0), "weight of false positives"),
      .number("beta", 0.7, .atLeast(0), "weight of false negatives"),
      .number("gamma", 1, .above(0), "exponent; the focal form has 0.75"),
      .number("smooth", 1, .atLeast(0), "added to numerator and denominator"),
    ], inputs: maskInputs)
  let alpha: Double, beta: Double, gamma: Double, smooth: Double
  init(_ h: Hyper) { (alpha, beta, gamma, smooth) = (h.alpha, h.beta, h.gamma, h.smooth) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let p = try x["p"], t = try x["t"], rows = x.sizes.samples, classes = x.sizes["C"]
    let g = try cache?.keep("p", rows * classes, T.self), weight = 1 / Double(classes)
    return weight
      * Rows.sum(classes, work: 4 * rows) { c in
        let sums = MaskSums(p + c, t + c, rows, classes, squared: false)
        let wrong = alpha * (sums.predicted - sums.both) + beta * (sums.wanted - sums.both)
        let top = sums.both + smooth, bottom = top + wrong, miss = wrong / bottom
        if bottom == 0 || miss == 0 { return 0 }
        if let g {
          let factor = weight * gamma * pow(miss, gamma - 1)
          for i in stride(from: c, to: rows * classes, by: classes) {
            let b = Double(t[i]), slope = b + alpha * (1 - b) - beta * b
            g[i] = T(-factor * (b - top / bottom * slope) / bottom)
          }
        }
        return pow(miss, gamma)
      }
  }
}
