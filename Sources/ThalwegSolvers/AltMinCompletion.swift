import Glibc
import ThalwegCore

/// A low-rank matrix from some of its entries, by alternating least squares.
///
///     U = the leading left singular vectors of P(M)/p, p the observed fraction;  clip_mu: rows longer than
///     2·mu·√(rank/m) become 0, then QR;   V = the least squares of every column on its observed rows
///     iters times:  V ← qr(V);  U = the least squares of every row;  U ← qr(U);  V = that of every column;   M ≈ U·Vᵀ
///
/// `mask` is 0 where an entry is not known. exact: by singular values, with `ridge` (the minimum-norm solution
/// where they are singular). sketched: S Gaussian (sketch_rows × rows)/√sketch_rows, R from qr(S·A), Richardson on
/// A·R⁻¹ with the step 2/(λ_min + λ_max) until |Bᵀ·res| ≤ 1e-12·|Bᵀ·b|, at most `inner` times; systems of at most
/// sketch_rows rows are exact, as are all with a ridge.
/// Ends     converged: all sweeps were made.
/// Differs  the splitting of the samples, which the theory needs, is not carried; constants UNVERIFIED. The sketch is
///          drawn anew for every system: draws (seed, 0, number of the system, 0).
/// Source   Jain, Netrapalli, Sanghavi, 2013, arXiv:1212.0467; Gu, Song, Yin, Zhang, 2023, arXiv:2302.11068.
struct AltMinCompletion: Driver {
  static let method = Method.solver(
    "altmin_completion", "A low-rank matrix from some of its entries, by alternating least squares.",
    rule: """
      U = leading left singular vectors of P(M)/p;  V = least squares of every column on its observed rows
      iters times: V <- qr(V), U = least squares of every row, U <- qr(U), V = those of every column;  M ~ U V'
      """,
    source: "Jain, Netrapalli, Sanghavi, 2013, arXiv:1212.0467; Gu, Song, Yin, Zhang, 2023, arXiv:2302.11068",
    parameters: [
      .integer("rank", nil, .within(1, 4096), "of the matrix"), .integer("iters", 30, .atLeast(1), "sweeps"),
      .number("ridge", 0, .atLeast(0), "added to the normal equations"),
      .choice("solver", ["exact", "sketched"], "of the regressions"),
      .maybeInteger("sketch_rows", .atLeast(2), "rows of the sketch, more than rank; none: 4 rank"),
      .integer("inner", 200, .atLeast(1), "most Richardson steps"),
      .maybe("clip_mu", .above(0), "incoherence of the start; none: it is not clipped"),
      .integer("seed", 0, .atLeast(0), "of the sketches"),
    ],
    inputs: [
      .constant("values", "m, n", "the matrix; entries that are not known do not count"),
      .constant("mask", "m, n", "0 where an entry is not known"), .result("u", "m, rank", "left factor, orthonormal"),
      .result("v", "n, rank", "right factor"), .result("completed", "m, n", "their product"),
      .result("error", "", "root mean square on the known entries"), .result("iterations", "", "sweeps"),
    ],
    validate: { (h) throws(Failure) in
      guard !h.has("sketch_rows") || h.integer("sketch_rows") > h.integer("rank") else {
        throw Failure(
          Status.range, "altmin_completion: `sketch_rows` must be above `rank`, got \(h.integer("sketch_rows"))")
      }
    })

  let h: Hyper, k: Int
  init(_ h: Hyper) { (self.h, k) = (h, h.integer("rank")) }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let values = try io["values"], mask = try io["mask"], m = values.rows, n = values.count / max(1, m)
    guard k <= min(m, n) else {
      throw Failure(Status.shape, "`rank` \(k) is above the sides of a matrix of shape \(values.shape)")
    }
    try Memory.ask(8 * (3 * m * n + 4 * k * (m + n)))
    var known = [[Int]](repeating: [], count: n), knownRows = [[Int]](repeating: [], count: m), count = 0
    var a = [Double](repeating: 0, count: m * n)
    for i in 0..<m {
      for j in 0..<n where mask.p[i * n + j] != 0 {
        a[i * n + j] = Double(values.p[i * n + j])
        guard a[i * n + j].isFinite else {
          throw Failure(Status.nonfinite, "`values` must be finite where they are known")
        }
        known[j].append(i)
        knownRows[i].append(j)
        count += 1
      }
    }
    guard count > 0 else { throw Failure(Status.argument, "`mask` knows no entry") }
    var sketches = 0
    /// The factor whose rows solve the regressions of `right` on `factor`.
    func solve(_ factor: [Double], _ observed: [[Int]], transposed: Bool) throws(Failure) -> [Double] {
      var out = [Double](repeating: 0, count: observed.count * k)
      for (r, rows) in observed.enumerated() where !rows.isEmpty {
        var A = [Double](), b = [Double]()
        for i in rows {
          A += factor[(i * k)..<((i + 1) * k)]
          b.append(transposed ? a[r * n + i] : a[i * n + r])
        }
        let x = try regression(A, b, rows.count, &sketches)
        for c in 0..<k { out[r * k + c] = x[c] }
      }
      return out
    }
    let scaled = a.map { $0 * Double(m * n) / Double(count) }
    let svd = try LinearAlgebra.SVD(scaled, m, n)
    var u = (0..<m * k).map { svd.u[$0 / k * svd.r + $0 % k] }
    if h.has("clip_mu") {
      let most = 2 * h.clip_mu * (Double(k) / Double(m)).squareRoot()
      for i in 0..<m {
        let size = (0..<k).reduce(0) { $0 + u[i * k + $1] * u[i * k + $1] }.squareRoot()
        if size > most { for c in 0..<k { u[i * k + c] = 0 } }
      }
      u = try LinearAlgebra.orthonormal(u, m, k)
    }
    var v = try solve(u, known, transposed: false)
    for _ in 0..<h.integer("iters") {
      v = try LinearAlgebra.orthonormal(v, n, k)
      u = try LinearAlgebra.orthonormal(try solve(v, knownRows, transposed: true), m, k)
      v = try solve(u, known, transposed: false)
      io.iterations += 1
    }
    var product = a
    try LinearAlgebra.multiply(u, transposed: false, v, transposed: true, into: &product, m, n, k)
    var squares = 0.0
    for (j, rows) in known.enumerated() {
      for i in rows {
        let e = product[i * n + j] - a[i * n + j]
        squares += e * e
      }
    }
    io.error = (squares / Double(count)).squareRoot()
    let (left, right, whole) = (try io["u"], try io["v"], try io["completed"])
    for i in 0..<m * k { left.p[i] = T(u[i]) }
    for i in 0..<n * k { right.p[i] = T(v[i]) }
    for i in 0..<m * n { whole.p[i] = T(product[i]) }
    return .done(.converged)
  }

  /// argmin |A·x − b|² + ridge·|x|², A (rows, k).
  private func regression(_ A: [Double], _ b: [Double], _ rows: Int, _ sketches: inout Int) throws(Failure) -> [Double]
  {
    let most = h.has("sketch_rows") ? h.integer("sketch_rows") : 4 * k
    guard h.is("solver", "sketched"), rows > most, h.ridge == 0 else { return try exact(A, b, rows) }
    try Memory.ask(8 * (most * rows + 3 * rows * k))
    let key = Random.key(
      seed: UInt64(bitPattern: Int64(h.integer("seed"))), stream: 0, step: UInt64(sketches), tensor: 0)
    sketches += 1
    let s = (0..<most * rows).map { Random.normal(key, $0) / Double(most).squareRoot() }
    var sketch = [Double](repeating: 0, count: most * k)
    try LinearAlgebra.multiply(s, A, into: &sketch, most, k, rows)
    // B = A·R⁻¹ with RᵀR = (SA)ᵀSA: any such R does, that of the eigenvectors here
    var gram = [Double](repeating: 0, count: k * k)
    try LinearAlgebra.gram(sketch, transposed: true, into: &gram, k, most)
    let eigen = try LinearAlgebra.Eigen(gram, k)
    guard eigen.values[k - 1] > 1e-13 * eigen.values[0] else { return try exact(A, b, rows) }
    let inverse = (0..<k * k).map { eigen.vectors[$0] / eigen.values[$0 % k].squareRoot() }
    var B = [Double](repeating: 0, count: rows * k)
    try LinearAlgebra.multiply(A, inverse, into: &B, rows, k, k)
    try LinearAlgebra.gram(B, transposed: true, into: &gram, k, rows)
    let w = try LinearAlgebra.Eigen(gram, k).values, step = 2 / (w[0] + w[k - 1])
    var right = [Double](repeating: 0, count: k), z = right
    try LinearAlgebra.multiply(B, transposed: true, b, into: &right, k, 1, rows)
    let target = 1e-12 * Flat.norm(right, k)
    for _ in 0..<h.integer("inner") {
      var residual = right
      try LinearAlgebra.multiply(gram, z, into: &residual, k, 1, k, alpha: -1, beta: 1)
      if Flat.norm(residual, k) <= target { break }
      for c in 0..<k { z[c] += step * residual[c] }
    }
    var x = z
    try LinearAlgebra.multiply(inverse, z, into: &x, k, 1, k)
    return x
  }

  private func exact(_ A: [Double], _ b: [Double], _ rows: Int) throws(Failure) -> [Double] {
    let svd = try LinearAlgebra.SVD(A, rows, k), ridge: Double = h.ridge
    let floor = (svd.s.first ?? 0) * Double(max(rows, k)) * 0x1p-52
    var x = [Double](repeating: 0, count: k)
    for c in 0..<svd.r where svd.s[c] > floor {
      let along = (0..<rows).reduce(0) { $0 + svd.u[$1 * svd.r + c] * b[$1] }
      let f = along * svd.s[c] / (svd.s[c] * svd.s[c] + ridge)
      for i in 0..<k { x[i] += f * svd.vt[c * k + i] }
    }
    return x
  }
}
