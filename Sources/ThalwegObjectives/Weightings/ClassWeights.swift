import Glibc
import ThalwegCore

/// Weights by the effective number of samples of each class; those of the classes that have some sum to their number.
private func effectiveNumberWeights<T: Real>(_ counts: UnsafePointer<T>, _ classes: Int, beta: Double) throws(Failure)
  -> [Double]
{
  try refuseNonFinite(counts, classes, "counts")
  for c in 0..<classes where counts[c] < 0 {
    throw Failure(Status.range, "`counts` must be at least 0, got \(text(Double(counts[c]))) at element \(c)")
  }
  let weights = (0..<classes).map { c -> Double in
    let n = Double(counts[c])
    // 1 − betaⁿ, where it is small too
    return n == 0 ? 0 : beta == 1 ? 1 / n : (1 - beta) / (beta == 0 ? 1 : -expm1(n * log(beta)))
  }
  let sum = weights.reduce(0, +), some = Double(weights.count { $0 > 0 })
  return sum == 0 ? weights : weights.map { $0 * some / sum }
}

/// Class-balanced weights: by the effective number of samples.
///
///     w_c = (1 − beta)/(1 − beta^counts_c), scaled to sum to the number of classes     beta = 1: 1/counts
///
/// counts is (C,). A class without samples has the weight 0 and does not take part in the scaling. The value is the
/// sum.
/// Errors   TW_ERROR_RANGE: a count that is negative or not finite.
/// Source   Cui, Jia, Lin, Song, Belongie, 2019, arXiv:1901.05555.
struct EffectiveNumberWeights: Objective {
  static let method = Method(
    "effective_number_weights", .weighting, "Class weights by the effective number of samples.",
    rule: "w_c = (1 - beta)/(1 - beta^counts_c), scaled to sum to the number of classes",
    source: "Cui, Jia, Lin, Song, Belongie, 2019, arXiv:1901.05555",
    parameters: [.number("beta", 0.9999, .within(0, 1), "base of the effective number")],
    inputs: [.constant("counts", "C", "samples of each class"), .result("weights", "C", "weight of each class")])
  let beta: Double
  init(_ h: Hyper) { beta = h.beta }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let weights = try effectiveNumberWeights(x["counts"], x.sizes["C"], beta: beta)
    try cache?.keep("weights", numbers: weights, T.self)
    return weights.reduce(0, +)
  }
}

/// Deferred class-balanced weights: ones, and from an epoch on those by the effective number of samples.
///
///     b = beta from defer_epoch on, 0 before;   w_c = (1 − b)/(1 − b^counts_c), scaled to sum to the number of classes
///
/// counts is (C,), epoch a whole number from 0. A class without samples has the weight 0 and does not take part in the
/// scaling. The value is the sum.
/// Errors   TW_ERROR_RANGE: a count that is negative or not finite.
/// Source   Cao, Wei, Gaidon, Arechiga, Ma, 2019, arXiv:1906.07413.
struct DRWWeights: Objective {
  static let method = Method(
    "drw_weights", .weighting, "Class weights by the effective number of samples, from an epoch on.",
    rule: "b = beta if epoch >= defer_epoch else 0;  w_c = (1 - b)/(1 - b^counts_c), scaled to sum to C",
    source: "Cao, Wei, Gaidon, Arechiga, Ma, 2019, arXiv:1906.07413",
    parameters: [
      .rate("beta", 0.9999, "base of the effective number"),
      .integer("defer_epoch", 160, .atLeast(0), "first epoch with weights"),
    ],
    inputs: [
      .constant("counts", "C", "samples of each class"), .integer("epoch", "", "the running epoch, from 0"),
      .result("weights", "C", "weight of each class"),
    ])
  let beta: Double, first: Int
  init(_ h: Hyper) { (beta, first) = (h.beta, h.integer("defer_epoch")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let late = try x.integers("epoch").pointee >= first
    let weights = try effectiveNumberWeights(x["counts"], x.sizes["C"], beta: late ? beta : 0)
    try cache?.keep("weights", numbers: weights, T.self)
    return weights.reduce(0, +)
  }
}
