import ThalwegCore

/// Penalties of matrices that are not orthonormal along their short side.
///
///     A the matrix view, transposed if that makes it tall; M = AᵀA − I
///     soft               ‖M‖²_F                                gradient 4AM
///     double_soft        that of A and that of Aᵀ
///     mutual_coherence   max|M_ij|                             gradient A(E + Eᵀ), E = sign(M_ij)·e_i e_jᵀ
///     srip               the spectral norm |μ| of M            gradient 2·sign(μ)·(Av)vᵀ
///
/// With `power_iters` = n, srip takes n steps v ← Mv/‖Mv‖ and the value |vᵀMv|, v held constant; 0 takes the exact
/// eigenvector.
/// Differs  the steps start from one fixed vector, where the authors draw one at random. Some ports divide by the
///          number of layers.
/// Source   Bansal, Chen and Wang, 2018, arXiv:1810.09102.
struct Orthogonality: WholeRegularizer {
  static let method = Method(
    "orthogonality", .regularizer, "Penalties of matrices that are not orthonormal along their short side.",
    rule: """
      A the matrix view, tall; M = A'A - I
      soft: |M|_F^2, gradient 4*A*M;  double_soft: that of A and that of A'
      mutual_coherence: max|M_ij|, gradient A*(E + E'), E = sign(M_ij)*e_i*e_j'
      srip: the spectral norm |mu| of M, gradient 2*sign(mu)*(A*v)*v';  all times weight
      """,
    source: "Bansal, Chen, Wang, 2018, arXiv:1810.09102",
    parameters: [
      .weight(),
      .choice("variant", ["soft", "double_soft", "mutual_coherence", "srip"], "what is measured"),
      .flag("short_side", true, "use the smaller Gram matrix"),
      .integer("power_iters", 2, .within(0, 1e6), "srip: power steps, 0 for the exact eigenvector"),
    ])
  static var hasProx: Bool { false }
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "orthogonality") }

  private enum Variant { case soft, doubleSoft, mutualCoherence, srip }
  private let weight: Double, variant: Variant, shortSide: Bool, steps: Int
  init(_ h: Hyper) {
    (weight, shortSide, steps) = (h.weight, h.short_side, h.integer("power_iters"))
    variant =
      h.is("variant", "soft")
      ? .soft
      : h.is("variant", "double_soft") ? .doubleSoft : h.is("variant", "srip") ? .srip : .mutualCoherence
  }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    weight * (try measured(Matrix64(w.v, w.rows, w.columns, "orthogonality"), false)).value
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let g = try measured(Matrix64(w.w, w.rows, w.columns, "orthogonality"), true).gradient
    g?.add(to: w.v, times: scale * weight)
  }

  private func measured(_ w: Matrix64, _ wanted: Bool) throws(Failure) -> (value: Double, gradient: Matrix64?) {
    if variant == .doubleSoft {
      let (left, right) = (try soft(w, wanted), try soft(w.transposed, wanted))
      guard let g = left.gradient, let other = right.gradient else { return (left.value + right.value, nil) }
      return (left.value + right.value, g + other.transposed)
    }
    let flipped = shortSide && w.m < w.n
    let a = flipped ? w.transposed : w
    let (value, g) =
      variant == .soft
      ? try soft(a, wanted) : variant == .srip ? try srip(a, wanted) : try mutualCoherence(a, wanted)
    return (value, flipped ? g?.transposed : g)
  }
  private func excess(_ a: Matrix64) throws(Failure) -> Matrix64 {
    try a.times(a, transposed: true) - Matrix64.identity(a.n)
  }
  private func soft(_ a: Matrix64, _ wanted: Bool) throws(Failure) -> (value: Double, gradient: Matrix64?) {
    let m = try excess(a)
    return (m.squaredNorm, wanted ? 4 * (try a.times(m)) : nil)
  }
  private func mutualCoherence(_ a: Matrix64, _ wanted: Bool) throws(Failure) -> (
    value: Double, gradient: Matrix64?
  ) {
    let m = try excess(a)
    var top = 0
    for k in m.a.indices where abs(m.a[k]) > abs(m.a[top]) { top = k }
    guard m.n > 0 else { return (0, nil) }
    let i = top / m.n, j = top % m.n, sign = signOf(m.a[top])
    if !wanted { return (abs(m.a[top]), nil) }
    var g = try Matrix64(zeros: a.m, a.n)
    for r in 0..<a.m {
      g[r, j] += sign * a[r, i]
      g[r, i] += sign * a[r, j]
    }
    return (abs(m.a[top]), g)
  }
  private func srip(_ a: Matrix64, _ wanted: Bool) throws(Failure) -> (value: Double, gradient: Matrix64?) {
    let m = try excess(a)
    guard m.n > 0 else { return (0, nil) }
    var v = Matrix64(startVector(m.n), m.n, 1), mu = 0.0
    if steps == 0 {
      let e = try Eigen(m), last = m.n - 1
      let k = abs(e.values[0]) > abs(e.values[last]) ? 0 : last
      mu = e.values[k]
      v = Matrix64((0..<m.n).map { e.vectors[k, $0] }, m.n, 1)
    } else {
      for _ in 0..<steps {
        let next = try m.times(v), norm = next.squaredNorm.squareRoot()
        if norm == 0 { break }
        v = (1 / norm) * next
      }
      mu = zip(v.a, try m.times(v).a).reduce(0) { $0 + $1.0 * $1.1 }
    }
    return (abs(mu), wanted ? (2 * signOf(mu)) * (try a.times(v).times(v, transposed: false, true)) : nil)
  }
}

/// Group orthogonalisation: rows of one group are to be orthonormal, cheaper than all rows.
///
///     N = min(num_groups, ⌊rows/min_group_size⌋), at least 1; s = rows/N
///     inter: the N blocks of s neighbouring rows      intra: set j holds row j of every block
///     value = λ·Σ_B ‖G − I‖²_F, G the smaller of BᵀB and BBᵀ      gradient of a set: 4B(BᵀB − I) or 4(BBᵀ − I)B
///
/// Errors   TW_ERROR_SHAPE where N does not divide the rows.
/// Differs  the authors divide by zero with fewer rows than min_group_size; here that is one group. intra with s = 1 is
///          one set of all rows.
/// Source   Kurtz, Bar and Giryes, 2023, arXiv:2306.10001.
struct GOR: WholeRegularizer {
  static let method = Method(
    "gor", .regularizer, "Group orthogonalisation: the rows of every group are to be orthonormal.",
    rule: """
      N = max(1, min(num_groups, floor(rows/min_group_size))), s = rows/N
      inter: blocks of s neighbouring rows;  intra: row j of every block
      value = weight*sum_B |G - I|_F^2, G the smaller of B'B and B*B';  gradient 4*B*(B'B - I) or 4*(B*B' - I)*B
      """,
    source: "Kurtz, Bar, Giryes, 2023, arXiv:2306.10001",
    parameters: [
      .weight(), .integer("num_groups", 32, .atLeast(1), "number of groups"),
      .choice("mode", ["inter", "intra"], "what belongs together: neighbouring rows, or a row of every block"),
      .integer("min_group_size", 4, .atLeast(1), "smallest allowed group"),
    ])
  static var hasProx: Bool { false }
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try matrix(shape, "gor")
    let n = groups(h, shape.rows)
    guard shape.rows % n == 0 else {
      throw Failure(Status.shape, "gor: \(shape.rows) rows do not make \(n) groups of one size; change `num_groups`")
    }
  }
  private static func groups(_ h: Hyper, _ rows: Int) -> Int {
    max(1, min(h.integer("num_groups"), rows / max(1, h.integer("min_group_size"))))
  }

  let h: Hyper, weight: Double, intra: Bool
  init(_ h: Hyper) { (self.h, weight, intra) = (h, h.weight, h.is("mode", "intra")) }

  /// The rows of every set.
  private func sets(_ rows: Int) -> [[Int]] {
    let n = GOR.groups(h, rows), s = rows / n
    if !intra { return (0..<n).map { b in Array((b * s)..<((b + 1) * s)) } }
    return (0..<s).map { j in (0..<n).map { $0 * s + j } }
  }
  private func each<T: Real>(
    _ x: UnsafePointer<T>, _ w: Whole<T>,
    _ body: (_ b: Matrix64, _ excess: Matrix64, _ tall: Bool, _ rows: [Int])
      throws(Failure) -> Void
  ) throws(Failure) {
    let all = try Matrix64(x, w.rows, w.columns, "gor")
    for rows in sets(w.rows) {
      let b = Matrix64(rows.flatMap { all.a[($0 * all.n)..<(($0 + 1) * all.n)] }, rows.count, all.n)
      let tall = b.m >= b.n
      let gram = try b.times(b, transposed: tall, !tall)
      try body(b, gram - Matrix64.identity(gram.n), tall, rows)
    }
  }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    var sum = 0.0
    try each(w.v, w) { (_, m, _, _) throws(Failure) in sum += m.squaredNorm }
    return weight * sum
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let n = w.columns
    try each(w.w, w) { (b, m, tall, rows) throws(Failure) in
      let g = tall ? try b.times(m) : try m.times(b)
      for (k, r) in rows.enumerated() {
        for j in 0..<n { w.v[r * n + j] += T(4 * scale * weight * g[k, j]) }
      }
    }
  }
}
