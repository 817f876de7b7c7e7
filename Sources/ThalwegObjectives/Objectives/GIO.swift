import Glibc
import ThalwegCore

/// The divergence of two samples by distances to neighbours.
///
///     all neighbours: KL = d·mean_ij log(ν_ij + ε) − d·mean_i log(ρ_i + ε) + mean_j log(k·m/(j·(n − 1)))
///     k_xy: ν_i is the distance to the k_xy-th of Y, and the constant log(k·m/(k_xy·(n − 1)))
///
/// ρ_i: distance of x_i to its k-th other; ν_ij = |x_i − y_j|. Squared distances are at least 10⁻¹⁰, ε = 10⁻⁸.
struct KNNDivergence: Sendable {
  static let parameters: [Parameter] = [
    .integer("k", 5, .atLeast(1), "which neighbour among x"),
    .maybeInteger("k_xy", .atLeast(1), "which neighbour among the other sample; none: the average over all"),
  ]
  static let eps = 1e-8
  let k: Int, kxy: Int?
  init(_ h: Hyper) { (k, kxy) = (h.integer("k"), h.has("k_xy") ? h.integer("k_xy") : nil) }

  static func distance<T: Real>(_ x: UnsafePointer<T>, _ y: UnsafePointer<T>, _ d: Int) -> Double {
    var sum = 0.0
    for c in 0..<d { sum += (Double(x[c]) - Double(y[c])) * (Double(x[c]) - Double(y[c])) }
    return larger(sum, 1e-10).squareRoot()
  }
  /// The place of the k-th smallest; of a NaN where there is one, which has no place among the others.
  static func neighbour(_ r: [Double], _ k: Int) -> Int {
    r.firstIndex { $0.isNaN } ?? r.indices.sorted { (r[$0], $0) < (r[$1], $1) }[k - 1]
  }
  /// mean_i log(ρ_i + ε).
  func within<T: Real>(_ x: UnsafePointer<T>, _ n: Int, _ d: Int) throws(Failure) -> Double {
    guard k < n else { throw Failure(Status.shape, "`x` has \(n) rows; with k = \(k) at least \(k + 1) are needed") }
    try Memory.ask(16 * n)
    var sum = 0.0
    for i in 0..<n {
      let others = (0..<n).filter { $0 != i }.map { KNNDivergence.distance(x + i * d, x + $0 * d, d) }
      sum += log(others[KNNDivergence.neighbour(others, k)] + KNNDivergence.eps)
    }
    return sum / Double(n)
  }
  /// The constant for m rows.
  func constant(_ n: Int, _ m: Int) -> Double {
    let scale = Double(k) * Double(m) / Double(n - 1)
    if let kxy { return log(scale / Double(kxy)) }
    return (1...m).reduce(0) { $0 + log(scale / Double($1)) } / Double(m)
  }
  func checks(_ m: Int, _ name: String) throws(Failure) {
    guard m >= kxy ?? 1 else {
      throw Failure(Status.shape, "`\(name)` has \(m) rows, and k_xy = \(kxy ?? 1) needs as many")
    }
  }
}

/// How far a sample is from another, by distances to neighbours; its gradient moves the other one.
///
/// The formula is that of `gio_select`, which chooses data by it. x is (n, d), y is (m, d). The gradient for y_j is
/// d/(n·m)·Σ_i (y_j − x_i)/(ν_ij·(ν_ij + ε)) with all neighbours; with k_xy d/n times the sum over those x_i whose
/// k_xy-th neighbour is y_j.
/// Errors   TW_ERROR_SHAPE: fewer rows than k + 1 in x or k_xy in y.
/// Source   Wang, Kulkarni, Verdu, 2009; Everaert, Potts, 2023, arXiv:2306.11670.
struct KNNKL: Objective {
  static let method = Method(
    "knn_kl", .objective, "The divergence of a sample from another, by distances to neighbours.",
    rule: """
      value = d*mean log(nu + eps) - d*mean log(rho + eps) + constant;  rho: to the k-th other x
      nu: to all y, constant mean_j log(k*m/(j*(n - 1)));  with k_xy: to the k_xy-th y, log(k*m/(k_xy*(n - 1)))
      """,
    source: "Everaert, Potts, 2023, arXiv:2306.11670", parameters: KNNDivergence.parameters,
    inputs: [.constant("x", "n, d", "target sample"), .variable("y", "m, d", "sample that should be like it")])
  let rule: KNNDivergence
  init(_ h: Hyper) { rule = KNNDivergence(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = try x["x"], y = try x["y"], n = x.sizes["n"], m = x.sizes["m"], d = x.sizes["d"]
    try rule.checks(m, "y")
    let inside = try rule.within(rows, n, d), g = try cache?.keep("y", m * d, T.self)
    try Memory.ask(16 * m)
    var sum = 0.0
    for i in 0..<n {
      let r = (0..<m).map { KNNDivergence.distance(rows + i * d, y + $0 * d, d) }
      var counted = Array(0..<m)
      if let kxy = rule.kxy { counted = [KNNDivergence.neighbour(r, kxy)] }
      let share = 1 / (Double(n) * Double(counted.count))
      for j in counted {
        sum += share * log(r[j] + KNNDivergence.eps)
        guard let g else { continue }
        let factor = Double(d) * share / (r[j] * (r[j] + KNNDivergence.eps))
        for c in 0..<d { g[j * d + c] += T(factor * (Double(y[j * d + c]) - Double(rows[i * d + c]))) }
      }
    }
    return Double(d) * (sum - inside) + rule.constant(n, m)
  }
}

/// Gradient information optimisation: rows of a pool that bring a selection near a target sample.
///
///     v: mean of X at first;  scale = |v|/|∂KL/∂v| once;  `inner` times (the first round `warm` times as many):
///       v ← v − lr·scale·∂KL(X ‖ W ∪ {v})/∂v
///     the row of the pool nearest to v, not yet taken, joins W unless KL(X ‖ W) rises: then the run ends
///
/// x is (n, d), pool is (p, d), w0 is (w, d), the rows to begin with: without them `start` rows, uniform in [−1, 1] and
/// of length 1, of (seed, 0, row, 0). The formula of KL is that of `knn_kl`. `kl` holds the divergence after each row,
/// `first` the one before. Large pools: cluster both first, select centres, expand.
/// Errors   TW_ERROR_SHAPE: too few rows for k or k_xy; TW_ERROR_RANGE: numbers that are not finite.
/// Ends     converged: KL rose more often than `increases`, fell to `min_kl`, or `size` rows are chosen; max_iter: the
///          pool is used up.
/// Differs  v goes on from where the last round left it. A rise that is tolerated adds the row. Near a target row the
///          average over all neighbours has a pole: long descents magnify rounding, and other machines may choose
///          another row of equal worth.
/// Source   Everaert, Potts, 2023, arXiv:2306.11670.
struct GIOSelect: Driver {
  static let method = Method.solver(
    "gio_select", "Rows of a pool that bring a selection near a target sample.",
    rule: """
      v <- v - lr scale dKL(x | W + v)/dv, scale = |v|/|dKL/dv| at first
      the nearest row of the pool joins W while KL(x | W) does not rise
      """,
    source: "Everaert, Potts, 2023, arXiv:2306.11670",
    parameters: KNNDivergence.parameters + [
      .number("lr", 0.01, .above(0), "step of v"), .integer("inner", 50, .within(1, 1e9), "steps of a round"),
      .integer("warm", 3, .within(1, 1e9), "times as many in the first round"),
      .integer("start", 20, .within(1, 1e9), "rows to begin with, without w0"),
      .maybeInteger("size", .atLeast(1), "most rows to choose; none: no bound"),
      .maybe("min_kl", .any, "divergence that ends it"),
      .integer("increases", 0, .atLeast(0), "rises that are tolerated"),
      .integer("seed", 0, .atLeast(0), "of the rows to begin with"),
    ],
    inputs: [
      .constant("x", "n, d", "target sample"), .constant("pool", "p, d", "rows to choose from"),
      .constant("w0", "w, d", "rows to begin with; drawn when left out", optional: true),
      .result("indices", "p", "the rows that were chosen, in their order"),
      .result("kl", "p", "the divergence after each"), .result("first", "", "the divergence before"),
      .result("chosen", "", "rows that were chosen"), .result("v", "d", "where the descent ended"),
    ])

  let h: Hyper, rule: KNNDivergence
  init(_ h: Hyper) { (self.h, rule) = (h, KNNDivergence(h)) }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], pool = try io["pool"], indices = try io["indices"], kl = try io["kl"], out = try io["v"]
    let n = x.rows, d = out.count, given = io.optional("w0")
    guard x.isFinite, pool.isFinite, given?.isFinite ?? true else {
      throw Failure(Status.range, "`x`, `pool` and `w0` must be finite")
    }
    if given == nil { try Memory.ask(area(16, h.integer("start"), d)) }
    var first = drawn(given == nil ? d : 0)
    if let given { first = try doubles(UnsafePointer(given.p), given.count) }
    var search = try Search(rule, try doubles(UnsafePointer(x.p), n * d), n, d, first)
    let bound = h.has("size") ? h.integer("size") : pool.rows
    var v = [Double](repeating: 0, count: d), taken = [Bool](repeating: false, count: pool.rows), rises = 0
    for i in 0..<n { for c in 0..<d { v[c] += Double(x.p[i * d + c]) / Double(n) } }
    let length = { (a: [Double]) in a.reduce(0) { $0 + $1 * $1 }.squareRoot() }
    let scale = length(v) / max(length(search.gradient(v)), 1e-12)
    var last = search.value(nil)
    io.first = last
    var steps = h.integer("inner") &* h.integer("warm")
    while io.chosen < Double(min(bound, pool.rows)) {
      for _ in 0..<steps { for (c, g) in search.gradient(v).enumerated() { v[c] -= h.lr * scale * g } }
      steps = h.integer("inner")
      for c in 0..<d { out.p[c] = T(v[c]) }
      let row = nearest(v, pool, taken), candidate = (0..<d).map { Double(pool.p[row * d + $0]) }
      let value = search.value(candidate)
      if !(value <= last) {
        if rises >= h.integer("increases") { return .done(.converged) }
        rises += 1
      }
      let at = try io.count("chosen", pool.rows - 1)
      (indices.p[at], kl.p[at], taken[row], last) = (T(row), T(value), true, value)
      io.chosen += 1
      search.add(candidate)
      if h.has("min_kl"), value <= h.min_kl { return .done(.converged) }
    }
    return .done(h.has("size") && bound <= pool.rows ? .converged : .maxIter)
  }

  private func drawn(_ d: Int) -> [Double] {
    (0..<(d > 0 ? h.integer("start") : 0)).flatMap { row in
      let key = Random.key(seed: UInt64(bitPattern: Int64(h.integer("seed"))), stream: 0, step: UInt64(row), tensor: 0)
      let u = (0..<d).map { 2 * Random.uniform(key, UInt64($0)) - 1 }, size = u.reduce(0) { $0 + $1 * $1 }.squareRoot()
      return u.map { $0 / max(size, 1e-12) }
    }
  }
  private func nearest<T: Real>(_ v: [Double], _ pool: Vector<T>, _ taken: [Bool]) -> Int {
    var best = Double.infinity, found = taken.firstIndex(of: false) ?? 0
    for row in 0..<pool.rows where !taken[row] {
      var sum = 0.0
      for c in 0..<v.count {
        let apart = Double(pool.p[row * v.count + c]) - v[c]
        sum += apart * apart
      }
      if sum < best { (best, found) = (sum, row) }
    }
    return found
  }
}

/// Distances of the target sample to what is selected, as far as the divergence needs them.
private struct Search {
  let rule: KNNDivergence, x: [Double], n: Int, d: Int, inside: Double
  /// The sum of the logarithms of all distances; of each x the k_xy smallest distances, ascending.
  var logs = 0.0, near: [[Double]], rows = 0

  init(_ rule: KNNDivergence, _ x: [Double], _ n: Int, _ d: Int, _ first: [Double]) throws(Failure) {
    (self.rule, self.x, self.n, self.d) = (rule, x, n, d)
    inside = try rule.within(x, n, d)
    near = [[Double]](repeating: [], count: n)
    try rule.checks(first.count / max(d, 1), "w0")
    for k in 0..<(first.count / max(d, 1)) { add(Array(first[(k * d)..<((k + 1) * d)])) }
  }
  private func distance(_ i: Int, _ v: [Double]) -> Double {
    x.withUnsafeBufferPointer { x in
      v.withUnsafeBufferPointer { v in
        guard let a = x.baseAddress, let b = v.baseAddress else { return 0 }
        return KNNDivergence.distance(a + i * d, b, d)
      }
    }
  }
  mutating func add(_ v: [Double]) {
    rows += 1
    for i in 0..<n {
      let r = distance(i, v)
      logs += log(r + KNNDivergence.eps)
      guard let kxy = rule.kxy else { continue }
      let at = near[i].firstIndex { $0 > r } ?? near[i].count
      if at < kxy {
        near[i].insert(r, at: at)
        if near[i].count > kxy { near[i].removeLast() }
      }
    }
  }
  /// The divergence, with one more row or without.
  func value(_ more: [Double]?) -> Double {
    let m = rows + (more == nil ? 0 : 1)
    var sum = 0.0
    if let kxy = rule.kxy {
      for i in 0..<n {
        var nu = near[i][kxy - 1]
        if let more { nu = min(nu, max(distance(i, more), kxy > 1 ? near[i][kxy - 2] : 0)) }
        sum += log(nu + KNNDivergence.eps) / Double(n)
      }
    } else {
      sum = logs
      if let more { for i in 0..<n { sum += log(distance(i, more) + KNNDivergence.eps) } }
      sum /= Double(n) * Double(m)
    }
    return Double(d) * (sum - inside) + rule.constant(n, m)
  }
  /// The derivative by one more row v.
  func gradient(_ v: [Double]) -> [Double] {
    var g = [Double](repeating: 0, count: d)
    for i in 0..<n {
      let r = distance(i, v)
      var share = 1 / (Double(n) * Double(rows + 1))
      if let kxy = rule.kxy {
        // v is the k_xy-th neighbour of x_i; of equals the earlier row is the nearer one
        guard r < near[i][kxy - 1], kxy == 1 || r >= near[i][kxy - 2] else { continue }
        share = 1 / Double(n)
      }
      let factor = Double(d) * share / (r * (r + KNNDivergence.eps))
      for c in 0..<d { g[c] += factor * (v[c] - x[i * d + c]) }
    }
    return g
  }
}
