import Glibc
import ThalwegCore

/// Spreads the mass of sparse embeddings over the columns: the expected number of products of a sparse comparison.
///
///     a (B, d): m_j = mean_i |a_ij|     value = λ·Σ m_j²     gradient = 2λ·m_j·sign(a_ij)/B
///
/// Differs  the coefficient of the paper grows with the step: penalty(flops_reg(quadratic_ramp(1))). Counts of zeros,
///          and what counts as one in them (`zero_threshold`), are the host's.
/// Source   Paria et al., 2020, arXiv:2004.05665.
struct FLOPsReg: WholeRegularizer {
  static let method = Method(
    "flops_reg", .regularizer, "Spreads the mass of sparse embeddings evenly over the columns.",
    rule: "m_j = mean_i|w_ij|;  value = weight*sum_j m_j^2;  gradient = 2*weight*m_j*sign(w_ij)/rows",
    source: "Paria et al., 2020, arXiv:2004.05665", parameters: [.weight(1)])
  static var hasProx: Bool { false }
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try rankTwo(shape, "flops_reg") }

  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  private func means<T: Real>(_ x: UnsafePointer<T>, _ w: Whole<T>) throws(Failure) -> [Double] {
    try finite(x, w.count, "flops_reg")
    try Memory.ask(8 * w.columns)
    var m = [Double](repeating: 0, count: w.columns)
    for i in 0..<w.rows { for j in m.indices { m[j] += abs(Double(x[i * w.columns + j])) } }
    return m.map { $0 / Double(w.rows) }
  }
  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    weight * (try means(w.v, w)).reduce(0) { $0 + $1 * $1 }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let m = try means(w.w, w), c = 2 * scale * weight / Double(w.rows)
    for i in 0..<w.rows {
      for j in m.indices { w.v[i * w.columns + j] += T(c * m[j] * signOf(Double(w.w[i * w.columns + j]))) }
    }
  }
}

/// The mean L1 norm of embeddings, one a row.
///
///     a (B, d)     value = λ·mean_i Σ_j |a_ij|     gradient = λ·sign(a_ij)/B
///
/// Source   Paria et al., 2020, arXiv:2004.05665.
struct ActivationL1: WholeRegularizer {
  static let method = Method(
    "activation_l1", .regularizer, "The mean L1 norm of embeddings, one a row.",
    rule: "value = weight*mean_i sum_j|w_ij|;  gradient = weight*sign(w_ij)/rows",
    source: "Paria et al., 2020, arXiv:2004.05665", parameters: [.weight(1)])
  static var hasProx: Bool { false }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try rankTwo(shape, "activation_l1") }

  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let x = w.v
    return weight / Double(w.rows) * Rows.sum(w.count, work: 1) { abs(Double(x[$0])) }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let c = scale * weight / Double(w.rows)
    for i in 0..<w.count { w.v[i] += T(c * signOf(Double(w.w[i]))) }
  }
}

/// Least volume: shrinks the geometric mean of the spreads of a latent code, so that needless dimensions flatten.
///
///     z (B, m): s_j the standard deviation of column j     value = λ·exp(mean_j log(s_j + η))
///     gradient = value/(m(s_j + η))·(z_ij − mean_j)/((B − ddof)·s_j), 0 where s_j = 0
///
/// The decoder must be Lipschitz, or the code only scales.
/// Errors   TW_ERROR_SHAPE where B ≤ ddof.
/// Source   Chen and Fuge, 2024, arXiv:2404.17773.
struct LeastVolume: WholeRegularizer {
  static let method = Method(
    "least_volume", .regularizer, "Shrinks the geometric mean of the spreads of a latent code.",
    rule: """
      s_j: standard deviation of column j;  value = weight*exp(mean_j log(s_j + eta))
      gradient = value/(m*(s_j + eta))*(w_ij - mean_j)/((rows - ddof)*s_j), 0 where s_j = 0
      """,
    source: "Chen, Fuge, 2024, arXiv:2404.17773",
    parameters: [
      .weight(1e-3), .number("eta", 1, .above(0), "added to each standard deviation"),
      .integer("ddof", 1, .within(0, 1), "degrees of freedom removed"),
    ])
  static var hasProx: Bool { false }
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try rankTwo(shape, "least_volume")
    guard shape.rows > h.integer("ddof") else {
      throw Failure(
        Status.shape, "least_volume: \(shape.rows) samples have no standard deviation with ddof=\(h.integer("ddof"))")
    }
  }

  let weight, eta: Double, ddof: Int
  init(_ h: Hyper) { (weight, eta, ddof) = (h.weight, h.eta, h.integer("ddof")) }

  private func spreads<T: Real>(_ x: UnsafePointer<T>, _ w: Whole<T>) throws(Failure) -> (
    mean: [Double], s: [Double], value: Double
  ) {
    try finite(x, w.count, "least_volume")
    try Memory.ask(16 * w.columns)
    var mean = [Double](repeating: 0, count: w.columns), s = mean
    let n = w.columns
    for i in 0..<w.rows { for j in 0..<n { mean[j] += Double(x[i * n + j]) / Double(w.rows) } }
    for i in 0..<w.rows {
      for j in 0..<n { s[j] += (Double(x[i * n + j]) - mean[j]) * (Double(x[i * n + j]) - mean[j]) }
    }
    for j in 0..<n { s[j] = (s[j] / Double(w.rows - ddof)).squareRoot() }
    return (mean, s, weight * exp(s.reduce(0) { $0 + log($1 + eta) } / Double(n)))
  }
  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double { try spreads(w.v, w).value }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let (mean, s, value) = try spreads(w.w, w), n = w.columns
    let c = s.map { $0 > 0 ? scale * value / (Double(n) * ($0 + eta) * Double(w.rows - ddof) * $0) : 0 }
    for i in 0..<w.rows { for j in 0..<n { w.v[i * n + j] += T(c[j] * (Double(w.w[i * n + j]) - mean[j])) } }
  }
}

/// Smoothness on the manifold of the samples: similar samples should have similar outputs.
///
///     value = Σ_{i<j} (l_i + l_j)/2·w_ij·‖f_i − f_j‖² = tr(FᵀLF)     gradient = 2LF
///
/// `similarity` is symmetric; its two triangles are averaged. `lam` weighs the samples; all ones where it is not given.
/// Errors   TW_ERROR_RANGE where a similarity is negative or NaN.
/// Source   Cerviño, Chamon, Haeffele, Vidal and Ribeiro, 2023, arXiv:2210.00301.
struct LaplacianSmoothness: Objective {
  static let method = Method(
    "laplacian_smoothness", .regularizer, "Similar samples should have similar outputs.",
    rule: "value = sum_(i<j) (lam_i + lam_j)/2*similarity_ij*|w_i - w_j|^2 = tr(w'Lw);  gradient = 2*L*w",
    source: "Cervino, Chamon, Haeffele, Vidal, Ribeiro, 2023, arXiv:2210.00301",
    inputs: [
      .variable("w", "n, c", "outputs f of the samples"),
      .constant("similarity", "n, n", "similarity of the samples, at least 0"),
      .constant("lam", "n", "weights of the samples", optional: true),
    ])

  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let f = try x["w"], w = try x["similarity"], lam = x.optional("lam"), n = x.sizes["n"], c = x.sizes["c"]
    try notNegative(w, n * n, "similarity")
    let g = try cache?.keep("w", n * c, T.self)
    return Rows.sum(n, work: n * c) { i in
      // every pair is met twice, once from either side
      var sum = 0.0
      for j in 0..<n where j != i {
        let weight = lam.map { (Double($0[i]) + Double($0[j])) / 2 } ?? 1
        let pair = weight * (Double(w[i * n + j]) + Double(w[j * n + i])) / 2
        if pair == 0 { continue }
        for k in 0..<c {
          let d = Double(f[i * c + k]) - Double(f[j * c + k])
          sum += pair * d * d / 2
          g?[i * c + k] += T(2 * pair * d)
        }
      }
      return sum
    }
  }
}
