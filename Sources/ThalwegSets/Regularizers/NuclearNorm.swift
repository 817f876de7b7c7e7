import ThalwegCore

/// The nuclear norm: the sum of the singular values, whose prox lowers the rank.
///
///     value = λ·Σσᵢ     gradient = λ·U Vᵀ over the σᵢ above rtol·σ₁     prox = U·diag(max(σ − tλ, 0))·Vᵀ
///
/// Differs  torch.matrix_norm('nuc') has the same gradient at full rank. Decompositions run in double; in float32
///          `rtol` counts as at least 1e-6, for the rounding of the matrix itself is above smaller ones.
/// Source   Fazel, 2002; prox: Cai, Candès and Shen, 2008, arXiv:0810.3286.
struct NuclearNorm: WholeRegularizer {
  static let method = Method(
    "nuclear_norm", .regularizer, "The nuclear norm, the sum of the singular values: its prox lowers the rank.",
    rule: """
      value = weight*sum_i sigma_i;  gradient = weight*U V' over sigma_i > rtol*sigma_1
      prox = U diag(max(sigma - t*weight, 0)) V'
      """,
    source: "Fazel, 2002; Cai, Candes, Shen, 2008, arXiv:0810.3286",
    parameters: [
      .number("weight", 1e-4, .atLeast(0), "coefficient"),
      .number(
        "rtol", 1e-12, .atLeast(0), "singular values up to rtol times the largest count as zero in the subgradient"),
    ])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "nuclear_norm") }

  let weight, rtol: Double
  init(_ h: Hyper) { (weight, rtol) = (h.weight, h.rtol) }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    weight * (try LinearAlgebra.SVD(w.v, w.rows, w.columns)).s.reduce(0, +)
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let svd = try LinearAlgebra.SVD(w.w, w.rows, w.columns)
    let floor = (svd.s.first ?? 0) * (T.isDouble ? rtol : max(rtol, 1e-6))
    try Memory.ask(w.count * MemoryLayout<T>.stride)
    var g = [T](repeating: 0, count: w.count)
    try svd.compose(&g) { $0 > floor ? 1 : 0 }
    Flat.add(g, times: scale * weight, into: w.v, w.count)
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    let k = t * weight
    if k == 0 { return }
    try LinearAlgebra.SVD(w.v, w.rows, w.columns).compose(w.v) { max($0 - k, 0) }
  }
}
