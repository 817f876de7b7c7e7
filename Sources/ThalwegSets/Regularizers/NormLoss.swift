import Glibc
import ThalwegCore

/// Norm loss: pulls every row of the matrix view to unit length.
///
///     n_r = √(‖w_r‖² + ε)     value = λ·Σ(1 − n_r)²     gradient_r = 2λ·(1 − 1/n_r)·w_r
///     prox_r = w_r·(‖w_r‖ + k)/(1 + k)/‖w_r‖,  k = 2tλ;  a zero row stays
///
/// Differs  a sum over the rows, not a mean; a vector is one row. ε inside the root, and the default weight, are from
///          memory of the paper; the prox takes ε as 0.
/// Source   Georgiou, Schmitt, Bäck, Chen and Lew, 2021, arXiv:2103.06583.
struct NormLoss: WholeRegularizer {
  static let method = Method(
    "norm_loss", .regularizer, "Norm loss: pulls every row of the matrix view to unit length.",
    rule: """
      n_r = sqrt(|w_r|^2 + eps);  value = weight*sum_r (1 - n_r)^2
      gradient_r = 2*weight*(1 - 1/n_r)*w_r;  prox_r = w_r*((|w_r| + k)/(1 + k))/|w_r|, k = 2*t*weight
      """,
    source: "Georgiou, Schmitt, Baeck, Chen, Lew, 2021, arXiv:2103.06583",
    parameters: [
      .number("weight", 0.01, .atLeast(0), "coefficient"), .eps(1e-8, "added inside the root of the row norm"),
    ])
  static var needsFinite: Bool { true }

  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { shape.ndim < 2 ? nil : 1 }

  let weight, eps: Double
  init(_ h: Hyper) { (weight, eps) = (h.weight, h.eps) }

  /// √(n² + ε), where n² itself may overflow.
  private func norm(_ n: Double) -> Double { eps == 0 ? n : hypot(n, eps.squareRoot()) }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    if w.count == 0 { return 0 }
    return weight * (try Slices.rows(w.shape).norms(w.v)).reduce(0) { $0 + (1 - norm($1)) * (1 - norm($1)) }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let rows = Slices.rows(w.shape), c = 2 * scale * weight
    let lengths = try rows.norms(w.w).map(norm)
    rows.add(w.w, over: lengths, times: lengths.map { c * ($0 - 1) }, into: w.v)
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    let rows = Slices.rows(w.shape), k = 2 * t * weight
    if k == 0 { return }
    let norms = try rows.norms(w.v)
    for r in 0..<rows.count where norms[r] > 0 {
      let row = w.v + rows.start(r), length = (norms[r] + k) / (1 + k)
      for i in 0..<rows.length { row[i] = T(Double(row[i]) / norms[r] * length) }
    }
  }
}
