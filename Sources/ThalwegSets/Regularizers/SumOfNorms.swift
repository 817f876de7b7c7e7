import ThalwegCore

/// Pulls rows together until they are equal: convex clustering.
///
///     value = λ·Σ_{i<j} c_ij·‖x_i − x_j‖, x the rows of the matrix view     gradient by the unit differences, 0 where
///     equal
///     prox: dual vectors z_ij in balls of radius tλc_ij;  u_i = x_i − Σ_j ±z_ij;  z ← P(z + (u_i − u_j)/n), with the
///           momentum of FISTA, until the largest change is at most tol
///
/// 1/n is the inverse of the largest eigenvalue of the complete graph. Pairs with c = 0 cost nothing.
/// Errors   TW_ERROR_SHAPE where coef is not n × n for n rows.
/// Differs  the scheme is derived here from the definition of the prox, not read in the paper.
/// Source   Lindsten, Ohlsson and Ljung, 2011.
struct SumOfNorms: WholeRegularizer {
  static let method = Method(
    "sum_of_norms", .regularizer, "Pulls rows together until they are equal: convex clustering.",
    rule: """
      value = weight*sum_(i<j) coef_ij*|x_i - x_j|, x the rows;  gradient: the unit differences
      prox: u_i = x_i - sum_j +-z_ij, z <- P(z + (u_i - u_j)/n) in balls of radius t*weight*coef_ij, FISTA momentum
      """,
    source: "Lindsten, Ohlsson, Ljung, 2011",
    parameters: [
      .weight(1), .list("coef", nil, "symmetric coefficients of the pairs, rows x rows; none: all 1", optional: true),
      .integer("max_iter", 200, .within(1, 1e9), "most iterations of the prox"),
      .number("tol", 1e-8, .atLeast(0), "largest change that stops the prox"),
    ],
    validate: { (h) throws(Failure) in
      let c = h.list("coef"), n = Int(Double(c.count).squareRoot().rounded())
      guard n * n == c.count, c.allSatisfy({ $0.isFinite && $0 >= 0 }),
        (0..<n).allSatisfy({ i in (0..<i).allSatisfy { c[i * n + $0] == c[$0 * n + i] } })
      else { throw Failure(Status.range, "sum_of_norms: `coef` must be square, symmetric, finite and not negative") }
    })
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try rankTwo(shape, "sum_of_norms")
    let given = h.list("coef").count
    guard given == 0 || given == shape.rows &* shape.rows else {
      throw Failure(Status.shape, "sum_of_norms: `coef` has \(given) numbers, \(shape.rows) rows have as many squared")
    }
  }

  let weight, tol: Double, coef: [Double], iterations: Int
  init(_ h: Hyper) {
    (weight, tol, coef, iterations) = (h.weight, h.tol, h.list("coef"), h.integer("max_iter"))
  }

  private func pairs(_ n: Int) throws(Failure) -> [(i: Int, j: Int, c: Double)] {
    try Memory.ask(12 &* n &* n)
    var out: [(i: Int, j: Int, c: Double)] = []
    for i in 0..<n {
      for j in (i + 1)..<max(n, i + 1) {
        let c = coef.isEmpty ? 1 : coef[i * n + j]
        if c > 0 { out.append((i, j, c)) }
      }
    }
    return out
  }
  private func difference(_ x: [Double], _ d: Int, _ i: Int, _ j: Int) -> [Double] {
    (0..<d).map { x[i * d + $0] - x[j * d + $0] }
  }
  private func norm(_ x: [Double]) -> Double {
    x.withUnsafeBufferPointer { p in
      p.baseAddress.map { Flat.norm($0, p.count) } ?? 0
    }
  }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let x = try doubles(w.v, w.count, "sum_of_norms"), d = w.columns
    return weight * (try pairs(w.rows)).reduce(0) { $0 + $1.c * norm(difference(x, d, $1.i, $1.j)) }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let x = try doubles(w.w, w.count, "sum_of_norms"), d = w.columns
    for (i, j, c) in try pairs(w.rows) {
      let e = difference(x, d, i, j), n = norm(e)
      if n == 0 { continue }
      for k in 0..<d {
        let g = T(scale * weight * c * e[k] / n)
        w.v[i * d + k] += g
        w.v[j * d + k] -= g
      }
    }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    let x = try doubles(w.v, w.count, "sum_of_norms"), d = w.columns, k = t * weight
    let pairs = try pairs(w.rows)
    if k == 0 || pairs.isEmpty { return }
    try Memory.ask(24 &* pairs.count &* d)
    var z = [Double](repeating: 0, count: pairs.count * d), ahead = z, momentum = 1.0
    func primal(_ z: [Double]) -> [Double] {
      var u = x
      for (p, pair) in pairs.enumerated() {
        for l in 0..<d {
          u[pair.i * d + l] -= z[p * d + l]
          u[pair.j * d + l] += z[p * d + l]
        }
      }
      return u
    }
    for _ in 0..<iterations {
      let u = primal(ahead), next = (1 + (1 + 4 * momentum * momentum).squareRoot()) / 2
      var change = 0.0
      for (p, pair) in pairs.enumerated() {
        var line = (0..<d).map { ahead[p * d + $0] + (u[pair.i * d + $0] - u[pair.j * d + $0]) / Double(w.rows) }
        let n = norm(line), radius = k * pair.c
        if n > radius { for l in 0..<d { line[l] *= radius / n } }
        for l in 0..<d {
          let moved = line[l] - z[p * d + l]
          change = max(change, abs(moved))
          z[p * d + l] = line[l]
          ahead[p * d + l] = line[l] + (momentum - 1) / next * moved
        }
      }
      momentum = next
      if change <= tol { break }
    }
    for (i, y) in primal(z).enumerated() { w.v[i] = T(y) }
  }
}

/// For `accepts`: tensors with a matrix view.
func rankTwo(_ shape: Shape, _ method: String) throws(Failure) {
  guard shape.ndim >= 2 else {
    throw Failure(Status.shape, "\(method) needs a tensor of rank 2 or more, got shape \(shape.text)")
  }
}
