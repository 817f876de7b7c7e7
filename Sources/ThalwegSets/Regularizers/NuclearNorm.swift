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
    if !T.isDouble { return try shrink(w, k) }
    try LinearAlgebra.SVD(w.v, w.rows, w.columns).compose(w.v) { max($0 - k, 0) }
  }

  /// W·V·diag(1 − k/σ)·Vᵀ over the σ above k, or the same from the left, with the V and σ² of the product of W with
  /// itself in double: what squaring loses there is far below the rounding of floats, and it costs half.
  private func shrink<T: Real>(_ w: Whole<T>, _ k: Double) throws(Failure) {
    let (m, n) = (w.rows, w.columns), tall = m >= n, side = min(m, n)
    if side == 0 { return }
    try Memory.ask(8 &* (2 &* m &* n &+ 2 &* side &* side &+ max(m, n) &* side))
    let x = try doubles(w.v, w.count, "nuclear_norm")
    var product = [Double](repeating: 0, count: side * side)
    try LinearAlgebra.gram(x, transposed: tall, into: &product, side, max(m, n))
    let e = try LinearAlgebra.Eigen(product, side), sigmas = e.values.map { max($0, 0).squareRoot() }
    let rank = sigmas.firstIndex { $0 <= k } ?? side
    if rank == 0 { return w.v.update(repeating: 0, count: m &* n) }
    var basis = [Double](repeating: 0, count: side * rank), scaled = basis
    for i in 0..<side {
      for j in 0..<rank {
        basis[i * rank + j] = e.vectors[i * side + j]
        scaled[i * rank + j] = (1 - k / sigmas[j]) * e.vectors[i * side + j]
      }
    }
    var out = [Double](repeating: 0, count: m * n), middle = [Double](repeating: 0, count: max(m, n) * rank)
    if tall {
      try LinearAlgebra.multiply(x, basis, into: &middle, m, rank, n)
      try LinearAlgebra.multiply(middle, transposed: false, scaled, transposed: true, into: &out, m, n, rank)
    } else {
      try LinearAlgebra.multiply(basis, transposed: true, x, into: &middle, rank, n, m)
      try LinearAlgebra.multiply(scaled, middle, into: &out, m, n, rank)
    }
    for i in out.indices { w.v[i] = T(out[i]) }
  }
}
