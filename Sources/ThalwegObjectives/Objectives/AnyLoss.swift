import Glibc
import ThalwegCore

/// A number and its derivatives by the four counts of a confusion matrix.
private struct Counted {
  var value: Double
  var slope: SIMD4<Double>  // TP, FP, FN, TN

  static func + (a: Counted, b: Counted) -> Counted { Counted(value: a.value + b.value, slope: a.slope + b.slope) }
  static func - (a: Counted, b: Counted) -> Counted { Counted(value: a.value - b.value, slope: a.slope - b.slope) }
  static func * (a: Double, b: Counted) -> Counted { Counted(value: a * b.value, slope: a * b.slope) }
  static func * (a: Counted, b: Counted) -> Counted {
    Counted(value: a.value * b.value, slope: b.value * a.slope + a.value * b.slope)
  }
  /// 0/0 counts as the constant 0.
  static func / (a: Counted, b: Counted) -> Counted {
    if b.value == 0 { return Counted(value: 0, slope: .zero) }
    let ratio = a.value / b.value
    return Counted(value: ratio, slope: (a.slope - ratio * b.slope) / b.value)
  }
  /// The root of 0 counts as a constant.
  var root: Counted {
    let r = value.squareRoot()
    return Counted(value: r, slope: r == 0 ? .zero : slope / (2 * r))
  }
}

/// AnyLoss: a metric of the confusion matrix as a loss, with predictions pushed smoothly towards 0 and 1.
///
///     p = σ(z), a = σ(L·(p − ½))     TP = Σ y·a, FP = Σ (1 − y)·a, FN = Σ y·(1 − a), TN = Σ (1 − y)(1 − a)
///     value = 1 − metric(TP, FP, FN, TN)     ∂z = −∂metric/∂a·L·a(1 − a)·p(1 − p)
///
/// z and y are (...), y is 0 or 1; without `from_logits` z holds p. A ratio 0/0 counts as 0 and has no gradient:
/// metrics of both classes want batches with both.
/// Errors   TW_ERROR_RANGE: a label other than 0 and 1.
/// Differs  the authors' later release adds 10⁻⁵ to denominators and takes g_mean without its root, which is
///          g_mean_squared here. jaccard, mcc and specificity are the same construction, not in the paper.
/// Source   Han, Moniz and Chawla, 2024, arXiv:2405.14745.
struct AnyLoss: Objective {
  static let method = Method(
    "anyloss", .objective, "A metric of the confusion matrix as a loss.",
    rule: """
      p = sigma(z), a = sigma(amplify*(p - 1/2)); TP, FP, FN, TN from a and y;  value = 1 - metric
      gradient for z: -dmetric/da*amplify*a*(1 - a)*p*(1 - p)
      """,
    source: "Han, Moniz, Chawla, 2024, arXiv:2405.14745",
    parameters: [
      .choice(
        "metric",
        [
          "accuracy", "precision", "recall", "specificity", "f_beta", "g_mean", "g_mean_squared", "balanced_accuracy",
          "jaccard", "mcc",
        ], "what is to be large", standard: 4),
      .number("beta", 1, .above(0), "weight of the recall in f_beta"),
      .number("amplify", 73, .above(0), "L, how steeply predictions are pushed to 0 and 1"),
      .flag("from_logits", true, "z holds logits, not probabilities"),
    ],
    inputs: [.variable("z", "...", "logits, or probabilities"), .integer("y", "...", "labels, 0 or 1")])

  let metric: String, beta: Double, steepness: Double, logits: Bool
  init(_ h: Hyper) {
    (beta, steepness, logits) = (h.beta, h.amplify, h.from_logits)
    metric = h.parameters.first.map { $0.write(h.values[0]) } ?? ""
  }

  private func score(_ tp: Counted, _ fp: Counted, _ fn: Counted, _ tn: Counted) -> Counted {
    let b = beta * beta
    let recall = tp / (tp + fn), specificity = tn / (tn + fp)
    switch metric {
    case "accuracy": return (tp + tn) / (tp + tn + fp + fn)
    case "precision": return tp / (tp + fp)
    case "recall": return recall
    case "specificity": return specificity
    case "g_mean": return (recall * specificity).root
    case "g_mean_squared": return recall * specificity
    case "balanced_accuracy": return 0.5 * (recall + specificity)
    case "jaccard": return tp / (tp + fp + fn)
    case "mcc": return (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).root
    default: return ((1 + b) * tp) / ((1 + b) * tp + b * fn + fp)
    }
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], y = try x.integers("y"), n = x.sizes.samples
    try Labels.check(y, n, either: 0, or: 1)
    let probability = { (i: Int) in logits ? sigmoid(Double(z[i])) : Double(z[i]) }
    let amplified = { (i: Int) in sigmoid(steepness * (probability(i) - 0.5)) }
    // 1 − a from the other side of the sigmoid: small ones keep their digits
    let rest = { (i: Int) in sigmoid(-steepness * (probability(i) - 0.5)) }
    let m = score(
      Counted(value: Rows.sum(n, work: 16) { y[$0] == 1 ? amplified($0) : 0 }, slope: [1, 0, 0, 0]),
      Counted(value: Rows.sum(n, work: 16) { y[$0] == 0 ? amplified($0) : 0 }, slope: [0, 1, 0, 0]),
      Counted(value: Rows.sum(n, work: 16) { y[$0] == 1 ? rest($0) : 0 }, slope: [0, 0, 1, 0]),
      Counted(value: Rows.sum(n, work: 16) { y[$0] == 0 ? rest($0) : 0 }, slope: [0, 0, 0, 1]))
    if let g = try cache?.keep("z", n, T.self) {
      let one = m.slope[0] - m.slope[2], zero = m.slope[1] - m.slope[3]
      _ = Rows.sum(n, work: 32) { i in
        let inner = logits ? sigmoid(Double(z[i])) * sigmoid(-Double(z[i])) : 1
        g[i] = T(-(y[i] == 1 ? one : zero) * steepness * amplified(i) * rest(i) * inner)
        return 0
      }
    }
    return 1 - m.value
  }
}
