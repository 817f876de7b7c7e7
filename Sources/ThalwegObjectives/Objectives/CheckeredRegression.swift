import Glibc
import ThalwegCore

/// Checkered regression: m hyperplanes cut the space into cells, whose labels alternate like the squares of a
/// checkerboard.
///
///     P(y|z) = ½(1 + y·Π_j tanh(z_j/2)): the number of negative factors, each positive with probability σ(z_j), is
///     even (y = 1) or odd (y = −1)
///     loss = −(1/B)·Σ log P(y|z)     ∂loss/∂z_j = −(1/B)·σ(z_j)·σ(−z_j)/P · y·Π_{k≠j} tanh(z_k/2)
///
/// z is (B, m), y is (B,). P comes from a recursion over the logarithms of both parities, so that nothing under- or
/// overflows for large |z|; the product over k ≠ j is P_rest,same − P_rest,other, without its cancellation. m = 1 is
/// the logistic loss.
/// Errors   TW_ERROR_RANGE: a label that is not −1 or 1; TW_ERROR_SHAPE: m = 0 or B = 0.
/// Source   Achab, 2023, arXiv:2309.15298.
struct CheckeredRegression: Objective {
  static let method = Method(
    "checkered_regression", .objective,
    "Checkered regression: the loss of a label that alternates between the cells of m hyperplanes.",
    rule: """
      P(y|z) = (1 + y*prod_j tanh(z_j/2))/2;  loss = -mean log P(y|z)
      gradient for z_j: -1/B*sigma(z_j)*sigma(-z_j)/P*y*prod_{k != j} tanh(z_k/2)
      """,
    source: "Achab, 2023, arXiv:2309.15298",
    inputs: [.variable("z", "B, m", "scores of the m hyperplanes"), .integer("y", "B", "labels, -1 or 1")])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], y = try x.integers("y"), rows = x.sizes["B"], m = x.sizes["m"]
    for b in 0..<rows where y[b] != 1 && y[b] != -1 {
      throw Failure(Status.range, "`y` must be -1 or 1, got \(y[b]) at element \(b)")
    }
    let logs = try cache?.keep("log P", rows, Double.self)
    try cache?.keep("scores", rows * m, of: z)
    try cache?.keep("labels", rows, of: y)
    return Rows.sum(rows, work: 32 * m) { b in
      let logP = logProbability(z + b * m, m, odd: y[b] < 0)
      logs?[b] = logP
      return -logP / Double(rows)
    }
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let z = try cache.kept("scores", T.self), y = try cache.kept("labels", Int.self),
      logP = try cache.kept("log P", Double.self)
    let rows = cache.sizes["B"], m = cache.sizes["m"]
    _ = Rows.sum(rows, work: 32 * m) { b in
      let row = z + b * m, out = g + b * m
      var left = 1.0, right = Double(y[b]) / Double(rows)
      for j in 0..<m {  // from the left, the product of those before j; from the right, of those behind
        out[j] = T(left)
        left *= tanh(Double(row[j]) / 2)
      }
      for j in stride(from: m - 1, through: 0, by: -1) {
        let (positive, negative) = logSigmoids(Double(row[j]))
        out[j] = T(-exp(positive + negative - logP[b]) * Double(out[j]) * right)
        right *= tanh(Double(row[j]) / 2)
      }
      return 0
    }
  }

  /// log of the probability that an even (odd) number of factors is negative.
  private func logProbability<T: Real>(_ z: UnsafePointer<T>, _ m: Int, odd wanted: Bool) -> Double {
    var even = 0.0, odd = -Double.infinity
    for j in 0..<m {
      let (positive, negative) = logSigmoids(Double(z[j]))
      (even, odd) = (logSum(even + positive, odd + negative), logSum(odd + positive, even + negative))
    }
    return wanted ? odd : even
  }
}

/// (log σ(z), log σ(−z)).
private func logSigmoids(_ z: Double) -> (Double, Double) {
  let rest = log1p(exp(-abs(z)))
  return z < 0 ? (z - rest, -rest) : (-rest, -z - rest)
}

/// log(eᵃ + eᵇ).
private func logSum(_ a: Double, _ b: Double) -> Double {
  let (low, high) = a < b ? (a, b) : (b, a)
  return high == -.infinity ? high : high + log1p(exp(low - high))
}
