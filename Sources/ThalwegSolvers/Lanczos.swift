import Glibc
import ThalwegCore

/// Lanczos tridiagonalisation of a symmetric operator, with full reorthogonalisation or none: its outermost
/// eigenvalues and eigenvectors.
///
///     w = A·v_i;  α_i = v_i·w;  twice w ← w − Vᵀ·V·w;  β_i = |w|;  v_{i+1} = w/β_i
///     without reorth: w ← w − α_i·v_i − β_{i−1}·v_{i−1} alone
///
/// `eigenvalues` are the Ritz values, ascending, with `weights`, the squared first components of T's eigenvectors;
/// `vectors` are the Ritz vectors of the `largest` largest, then of the `smallest` smallest. After an early end (an
/// invariant subspace) the entries from `rank` on are 0. The sign of a vector is that of its entry of largest
/// magnitude: positive.
/// Errors   TW_ERROR_RANGE: a start of zeros.
/// Ends     converged: after `steps` products, or where β ≤ tol·(the largest |α| or β so far); in float32 tol is 2⁻²⁰
///          at least.
/// Differs  the two cards' defaults for `steps` are one: max(4·(largest + smallest), ⌊2·ln n⌋), at most n. They end at
///          β ≤ tol·max(1, |α|), which takes a small operator for none.
/// Source   Lanczos, 1950; full reorthogonalisation: Paige, 1972.
struct Lanczos: Driver {
  static let method = Method.solver(
    "lanczos", "Lanczos tridiagonalisation with full reorthogonalisation: outermost eigenpairs.",
    rule: """
      w = A v_i;  alpha_i = v_i.w;  twice w <- w - V'V w;  beta_i = |w|;  v_{i+1} = w/beta_i
      eigenvalues: those of T;  weights: squared first components of its eigenvectors
      """,
    source: "Lanczos, 1950; Paige, 1972",
    parameters: [
      .maybeInteger("steps", .atLeast(1), "products; none: max(4 (largest + smallest), 2 ln n)"),
      .integer("largest", 1, .atLeast(0), "vectors of the largest values"),
      .integer("smallest", 0, .atLeast(0), "vectors of the smallest values"),
      .flag("reorth", true, "against all vectors before, twice"),
      .number("tol", 1e-12, .atLeast(0), "length that ends it, relative to the largest entry of T"),
    ],
    inputs: [
      .constant("start", "...", "start vector"), .result("eigenvalues", "steps", "Ritz values, ascending"),
      .result("weights", "steps", "their weights in the start vector"),
      .result("vectors", "pairs, ...", "Ritz vectors of the largest values, then of the smallest"),
      .result("alpha", "steps", "diagonal of T"),
      .result("beta", "steps", "what stands beside it; the last is the residual"),
      .result("rank", "", "steps that were taken"),
    ], asks: [.product],
    kept: [.kept("basis", "steps, ...", "Lanczos vectors"), .kept("w", "...", "product")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    let n = max(1, sizes.samples), pairs = min(h.integer("largest") &+ h.integer("smallest"), n)
    let usual = max(4 * pairs, Int(2 * log(Double(n))), 1)
    return ["steps": min(n, h.has("steps") ? h.integer("steps") : usual), "pairs": pairs]
  }

  enum Phase: Int { case start, product }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let basis = try io["basis"], w = try io["w"], steps = basis.rows
    switch phase {
    case .start:
      try LanczosStep.begin(io, try io["start"], basis)
      return .ask("product", [basis.row(0)], [w], then: .product)
    case .product:
      let k = try io.count("rank", steps - 1), alpha = try io["alpha"], beta = try io["beta"]
      let more = LanczosStep.take(k, basis, w, alpha.p, beta.p, h.tol, reorthogonal: h.reorth)
      io.rank += 1
      if more { return .ask("product", [basis.row(k + 1)], [w], then: .product) }
      try finish(io, k + 1)
      return .done(.converged)
    }
  }

  private func finish<T: Real>(_ io: DriverIO<T>, _ rank: Int) throws(Failure) {
    let alpha = try io["alpha"], beta = try io["beta"], basis = try io["basis"], vectors = try io["vectors"]
    let t = try Tridiagonal(alpha.p, beta.p, rank)
    for k in 0..<rank {
      try io["eigenvalues"].p[k] = T(t.values[k])
      try io["weights"].p[k] = T(t.first(k) * t.first(k))
    }
    let top = min(h.integer("largest"), vectors.rows)
    for i in 0..<vectors.rows {
      let pair = i < top ? rank - 1 - i : i - top
      guard pair >= 0, pair < rank else { continue }
      let v = vectors.row(i)
      for k in 0..<rank { v.add(basis.row(k), times: t.vectors[k * rank + pair]) }
      var most = 0
      for j in 0..<v.count where abs(v.p[j]) > abs(v.p[most]) { most = j }
      if v.p[most] < 0 { v.set(-1, v) }
    }
  }
}

/// One step of the Lanczos recurrence over a stored basis.
enum LanczosStep {
  /// The first vector: the start, with length 1.
  static func begin<T: Real>(_ io: DriverIO<T>, _ start: Vector<T>, _ basis: Vector<T>) throws(Failure) {
    let size = start.norm
    guard size > 0, size.isFinite else {
      throw Failure(Status.range, "the start vector must be finite and not zero; its norm is \(text(size))")
    }
    basis.row(0).set(1 / size, start)
  }

  /// Step k, from w = A·v_k; false when it was the last one, by number or because the space is used up.
  static func take<T: Real>(
    _ k: Int, _ basis: Vector<T>, _ w: Vector<T>, _ alpha: UnsafeMutablePointer<T>, _ beta: UnsafeMutablePointer<T>,
    _ tolerance: Double, reorthogonal: Bool = true
  ) -> Bool {
    let a: Double, b: Double
    if reorthogonal {
      let (along, left) = w.orthogonalise(against: basis, k + 1)
      (a, b) = (along[k], left)
    } else {
      a = basis.row(k).dot(w)
      w.add(basis.row(k), times: -a)
      if k > 0 { w.add(basis.row(k - 1), times: -Double(beta[k - 1])) }
      b = w.norm
    }
    alpha[k] = T(a)
    beta[k] = T(b)
    // what rounding leaves of nothing is nothing, beside the largest entry of T so far
    let least = max(tolerance, T.isDouble ? 0 : 0x1p-20)
    let size = (0..<k).reduce(abs(a)) { max($0, abs(Double(alpha[$1])), Double(beta[$1])) }
    guard k + 1 < basis.rows, b > least * size else { return false }
    basis.row(k + 1).set(1 / b, w)
    return true
  }
}

/// Eigenvalues, ascending, and eigenvectors of a symmetric tridiagonal matrix, by QL iterations with implicit shifts.
struct Tridiagonal {
  private(set) var values: [Double]
  /// Row-major; eigenvectors are columns.
  private(set) var vectors: [Double]
  let n: Int

  /// `beta[k]` stands beside `alpha[k]` and `alpha[k + 1]`. Throws TW_ERROR_NUMERIC where an eigenvalue is not found.
  init<T: Real>(_ alpha: UnsafePointer<T>, _ beta: UnsafePointer<T>, _ count: Int) throws(Failure) {
    n = count
    try Memory.ask(8 * n * (n + 2))
    var d = (0..<count).map { Double(alpha[$0]) }, e = (0..<count).map { $0 + 1 < count ? Double(beta[$0]) : 0 }
    var z = [Double](repeating: 0, count: n * n)
    for i in 0..<n { z[i * n + i] = 1 }
    for l in 0..<n {
      var tries = 0
      while true {
        var m = l
        while m + 1 < n, abs(e[m]) > 0x1p-53 * (abs(d[m]) + abs(d[m + 1])) { m += 1 }
        if m == l { break }
        tries += 1
        guard tries <= 60, d[l].isFinite else {
          throw Failure(Status.numeric, "the eigenvalues of the tridiagonal matrix were not found")
        }
        var g = (d[l + 1] - d[l]) / (2 * e[l])
        g = d[m] - d[l] + e[l] / (g + (g < 0 ? -1 : 1) * hypot(g, 1))
        var s = 1.0, c = 1.0, p = 0.0, i = m - 1
        while i >= l {
          let f = s * e[i], b = c * e[i], r = hypot(f, g)
          e[i + 1] = r
          if r == 0 {
            d[i + 1] -= p
            e[m] = 0
            break
          }
          (s, c) = (f / r, g / r)
          g = d[i + 1] - p
          let t = (d[i] - g) * s + 2 * c * b
          p = s * t
          d[i + 1] = g + p
          g = c * t - b
          for k in 0..<n {
            let u = z[k * n + i + 1]
            z[k * n + i + 1] = s * z[k * n + i] + c * u
            z[k * n + i] = c * z[k * n + i] - s * u
          }
          i -= 1
        }
        if i >= l { continue }
        d[l] -= p
        e[l] = g
        e[m] = 0
      }
    }
    let order = (0..<n).sorted { (d[$0], $0) < (d[$1], $1) }
    values = order.map { d[$0] }
    vectors = z
    for k in 0..<n { for (j, from) in order.enumerated() { vectors[k * n + j] = z[k * n + from] } }
  }
  /// The first component of eigenvector k.
  func first(_ k: Int) -> Double { vectors[k] }
}
