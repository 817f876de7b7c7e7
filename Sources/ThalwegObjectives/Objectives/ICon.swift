import Glibc
import ThalwegCore

/// KL(p̃ ‖ q̃) of rows that are mixed with the uniform distribution, for the losses of I-Con.
private struct NeighbourKL: Sendable {
  static let parameters: [Parameter] = [
    .rate("alpha_q", 0, "share of the uniform distribution in q"),
    .rate("alpha_p", 0, "share of the uniform distribution in p"),
  ]
  let q: Double, p: Double
  init(_ h: Hyper) { (q, p) = (h.alpha_q, h.alpha_p) }

  /// Whether an entry has any part in the value.
  func counts(_ p0: Double) -> Bool { p != 0 || p0 != 0 }
  /// One entry, of `count` allowed ones in its row: its value, and q times the derivative by q. It takes the logarithm
  /// of q, which is finite where q itself rounds to 0.
  func entry(_ p0: Double, log l: Double, _ count: Double) -> (value: Double, push: Double) {
    let pt = (1 - p) * p0 + p / count
    if pt == 0 { return (0, 0) }
    if q == 0 { return (pt * (log(pt) - l), -pt) }
    let q0 = exp(l), qt = (1 - q) * q0 + q / count
    return (pt * (log(pt) - log(qt)), -(1 - q) * pt * (q0 / qt))
  }
}

private let maskDiagonal = Parameter.flag("mask_diagonal", true, "no row is its own neighbour")

/// I-Con: one divergence for representation learning, between neighbours that are wanted and those that are learned.
///
///     p̃ = (1 − α_p)·p + α_p/N, q̃ = (1 − α_q)·q + α_q/N, q = softmax of logits
///     value = mean_i Σ_j p̃_ij·log(p̃_ij/q̃_ij)
///
/// p and z are (n, m), the rows of p sum to 1; N counts the allowed entries of a row. mask_diagonal leaves j = i out.
/// Differs  the authors' library has the cross-entropy, with the same gradient.
/// Source   Alshammari et al., 2025, arXiv:2504.16929.
struct IConKL: Objective {
  static let method = Method(
    "icon_kl", .objective, "The divergence between wanted and learned neighbours, from logits.",
    rule: """
      pt = (1 - alpha_p)*p + alpha_p/N, qt = (1 - alpha_q)*softmax(z) + alpha_q/N
      value = mean_i sum_j pt*log(pt/qt)
      """,
    source: "Alshammari et al., 2025, arXiv:2504.16929", parameters: NeighbourKL.parameters + [maskDiagonal],
    inputs: [.variable("z", "n, m", "logits of the neighbours"), .constant("p", "n, m", "neighbours wanted")])
  private let kl: NeighbourKL
  let masks: Bool
  init(_ h: Hyper) { (kl, masks) = (NeighbourKL(h), h.mask_diagonal) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], p = try x["p"], n = x.sizes["n"], m = x.sizes["m"], weight = 1 / Double(n)
    let g = try cache?.keep("z", n * m, T.self)
    return Rows.sum(n, work: 32 * m) { i in
      let row = i * m, masked = masks && i < m ? i : -1, count = Double(masked < 0 ? m : m - 1)
      var sum = LogSum(), value = 0.0, mean = 0.0
      for j in 0..<m where j != masked { sum.add(Double(z[row + j])) }
      for j in 0..<m where j != masked {
        let e = kl.entry(Double(p[row + j]), log: Double(z[row + j]) - sum.value, count)
        value += e.value
        mean += e.push
      }
      if let g {
        for j in 0..<m where j != masked {
          let l = Double(z[row + j]) - sum.value, e = kl.entry(Double(p[row + j]), log: l, count)
          g[row + j] = T(weight * (e.push - exp(l) * mean))
        }
      }
      return weight * value
    }
  }
}

/// I-Con with neighbours learned from distances between embeddings.
///
///     gaussian  q ∝ exp(−‖x_i − x_j‖²/(2σ²))     cosine  q ∝ exp(cos/σ)     student  q ∝ 1/(1 + ‖x_i − x_j‖²)
///
/// x is (n, d), p is (n, n). The rule is that of `icon_kl`.
/// Errors   TW_ERROR_SHAPE: a single row with mask_diagonal, which has no neighbour.
/// Source   Alshammari et al., 2025, arXiv:2504.16929.
struct IConEmbedding: Objective {
  static let method = Method(
    "icon_embedding", .objective, "The divergence between wanted neighbours and those by distances of embeddings.",
    rule: """
      q = softmax_j of -|x_i - x_j|^2/(2 sigma^2) (gaussian), cos/sigma (cosine), -log(1 + |x_i - x_j|^2) (student)
      value = mean_i sum_j pt*log(pt/qt), both mixed with the uniform distribution
      """,
    source: "Alshammari et al., 2025, arXiv:2504.16929",
    parameters: NeighbourKL.parameters + [
      .choice("kind", ["gaussian", "cosine", "student"], "how distances become neighbours"),
      .number("sigma", 1, .above(0), "bandwidth, or temperature"), maskDiagonal,
    ],
    inputs: [.variable("x", "n, d", "embeddings"), .constant("p", "n, n", "neighbours wanted")])
  private let kl: NeighbourKL
  let cosine: Bool, student: Bool, sigma: Double, masks: Bool
  init(_ h: Hyper) {
    (kl, sigma, masks) = (NeighbourKL(h), h.sigma, h.mask_diagonal)
    (cosine, student) = (h.is("kind", "cosine"), h.is("kind", "student"))
  }

  /// The logit of a squared distance, and its derivative.
  private func logit(_ r: Double) -> (value: Double, slope: Double) {
    student ? (-log1p(r), -1 / (1 + r)) : (-r / (2 * sigma * sigma), -0.5 / (sigma * sigma))
  }
  /// Calls `body` with the logit of every pair of rows.
  private func forEachPair<T: Real>(
    _ u: UnsafePointer<T>, _ n: Int, _ d: Int, _ body: (_ i: Int, _ j: Int, _ logit: Double) -> Void
  ) throws(Failure) {
    guard cosine else {
      let space = Workspace()
      defer { space.close() }
      return try DistanceTiles(u, n, u, n, d, space).forEachRow { i, j, r in
        if i != j || !masks { body(i, j, logit(r).value) }
      }
    }
    try Tiles(x: u, n: n, y: u, m: n, d: d).forEachRow { i, j, products, count in
      for k in 0..<count where i != j + k || !masks { body(i, j + k, Double(products[k]) / sigma) }
    }
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], p = try x["p"], space = Workspace()
    defer { space.close() }
    guard n > 1 || !masks else { throw Failure(Status.shape, "one row has no neighbour; at least 2 are needed") }
    let all = try Embedding([x["x"]], n, d, normalize: cosine, cache, space)
    let sums = try space.room(n, LogSum.self), values = try space.room(n, Double.self)
    let logs = try space.room(cache, "logs", n, Double.self), means = try space.room(cache, "means", n, Double.self)
    sums.update(repeating: LogSum(), count: n)
    let count = Double(masks ? n - 1 : n)
    try forEachPair(all.u, n, d) { i, _, logit in sums[i].add(logit) }
    for i in 0..<n { logs[i] = sums[i].value }
    try forEachPair(all.u, n, d) { i, j, logit in
      let e = kl.entry(Double(p[i * n + j]), log: logit - logs[i], count)
      values[i] += e.value
      means[i] += e.push
    }
    try cache?.keep("p", n * n, of: p)
    return Rows.sum(n, work: 1) { values[$0] } / Double(n)
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], all = try Embedding<T>(cache, cache.sizes["d"]), p = try cache.kept("p", T.self)
    let logs = try cache.kept("logs", Double.self), means = try cache.kept("means", Double.self)
    let count = Double(masks ? n - 1 : n)
    g.update(repeating: 0, count: n * all.d)
    /// The derivative of the value by the logit of a pair, in both of its places.
    func byLogit(_ i: Int, _ j: Int, _ logit: Double) -> Double {
      let mine = logit - logs[i], other = logit - logs[j]
      let a = kl.entry(Double(p[i * n + j]), log: mine, count).push - exp(mine) * means[i]
      let b = kl.entry(Double(p[j * n + i]), log: other, count).push - exp(other) * means[j]
      return (a + b) / Double(n)
    }
    if cosine {
      try Tiles(x: all.u, n: n, y: all.u, m: n, d: all.d).pull(into: g) { i, j, products, count in
        for k in 0..<count {
          let slope = i == j + k && masks ? 0 : byLogit(i, j + k, Double(products[k]) / sigma) / sigma
          products[k] = T(slope)
        }
      }
    } else {
      let space = Workspace()
      defer { space.close() }
      try DistanceTiles(all.u, n, all.u, n, all.d, space).pull(into: g) { i, j, r in
        if i == j { return 0 }
        let (value, slope) = logit(r)
        return byLogit(i, j, value) * slope
      }
    }
    all.pull(g, rows: 0, n, normalize: cosine)
  }
}

/// I-Con with neighbours that share clusters.
///
///     f = softmax of the cluster logits     q(j|i) = Σ_c f_ic·f_jc/Σ_k f_kc
///
/// z is (n, C), p is (n, n); the diagonal is kept. The rule is that of `icon_kl`.
/// Source   Alshammari et al., 2025, arXiv:2504.16929.
struct IConCluster: Objective {
  static let method = Method(
    "icon_cluster", .objective, "The divergence between wanted neighbours and those that share clusters.",
    rule: """
      f = softmax(z), q_ij = sum_c f_ic*f_jc/sum_k f_kc
      value = mean_i sum_j pt*log(pt/qt), both mixed with the uniform distribution
      """,
    source: "Alshammari et al., 2025, arXiv:2504.16929", parameters: NeighbourKL.parameters,
    inputs: [.variable("z", "n, C", "logits of the clusters"), .constant("p", "n, n", "neighbours wanted")])
  private let kl: NeighbourKL
  init(_ h: Hyper) { kl = NeighbourKL(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], p = try x["p"], n = x.sizes["n"], clusters = x.sizes["C"], space = Workspace()
    defer { space.close() }
    let f = try space.room(cache, "f", n * clusters, T.self),
      shares = try space.room(cache, "shares", n * clusters, T.self)
    let mass = try space.room(cache, "mass", clusters, Double.self), values = try space.room(n, Double.self)
    let logs = try Logs(cache, space, n, clusters)
    for i in 0..<n {
      let log = Softmax.logSum(z + i * clusters, clusters)
      for c in 0..<clusters {
        let l = Double(z[i * clusters + c]) - log
        logs.f[i * clusters + c] = l
        f[i * clusters + c] = T(exp(l))
        mass[c] += Double(f[i * clusters + c])
      }
    }
    logs.sum()
    // a cluster that no row has any share of adds nothing
    for k in 0..<(n * clusters) where mass[k % clusters] > 0 { shares[k] = T(Double(f[k]) / mass[k % clusters]) }
    try Tiles(x: f, n: n, y: shares, m: n, d: clusters).forEachRow { i, j, q, count in
      for k in 0..<count where kl.counts(Double(p[i * n + j + k])) {
        let l = Logs.lost(q[k]) ? logs.value(i, j + k) : log(Double(q[k]))
        values[i] += kl.entry(Double(p[i * n + j + k]), log: l, Double(n)).value
      }
    }
    try cache?.keep("p", n * n, of: p)
    return Rows.sum(n, work: 1) { values[$0] } / Double(n)
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], clusters = cache.sizes["C"], p = try cache.kept("p", T.self), space = Workspace()
    defer { space.close() }
    let f = try cache.kept("f", T.self), shares = try cache.kept("shares", T.self)
    let mass = try cache.kept("mass", Double.self), weight = 1 / Double(n)
    let logs = try Logs(cache), lost = try space.room(n * clusters, Double.self)
    let byMass = try space.room(clusters, Double.self), back = try space.room(n * clusters, T.self)
    /// In the place of q_ij the derivative by it, of the entry at (i, j) or of that at (j, i). Where q rounds to 0 the
    /// derivatives by the logarithms of f_i go to `lost` instead.
    func slopes(_ turned: Bool) -> Tiles<T>.Row {
      { i, j, q, count in
        for k in j..<(j + count) {
          let mine = Double(q[k - j]), away = Logs.lost(q[k - j]), wanted = Double(p[turned ? k * n + i : i * n + k])
          q[k - j] = 0
          if !kl.counts(wanted) { continue }
          let l = away ? logs.value(i, k) : log(mine), push = weight * kl.entry(wanted, log: l, Double(n)).push
          if away { logs.share(i, k, l, push, into: lost + i * clusters) } else { q[k - j] = T(push / mine) }
        }
      }
    }
    // q is symmetric, its derivatives are not; G·(f/mass) also gives those by the masses
    let tiles = Tiles(x: f, n: n, y: shares, m: n, d: clusters)
    try tiles.pull(into: g, slopes(false))
    for k in 0..<(n * clusters) where mass[k % clusters] > 0 {
      byMass[k % clusters] -= Double(f[k]) * Double(g[k]) / mass[k % clusters]
    }
    let lostMass = try space.room(clusters, Double.self)
    for k in 0..<(n * clusters) { lostMass[k % clusters] -= lost[k] }
    try tiles.pull(into: back, slopes(true))
    _ = Rows.sum(n, work: 8 * clusters) { i in
      let row = i * clusters
      // by the logarithms of f, then by the logits
      var sum = 0.0
      for c in 0..<clusters {
        let at = row + c
        lost[at] += Double(f[at]) * (Double(g[at]) + Double(back[at]) + byMass[c]) + logs.part(at) * lostMass[c]
        sum += lost[at]
      }
      for c in 0..<clusters { g[row + c] = T(lost[row + c] - exp(logs.f[row + c]) * sum) }
      return 0
    }
  }

  /// The logarithms of f and of the masses, for the pairs whose q rounds to 0.
  private struct Logs {
    let f: UnsafeMutablePointer<Double>, mass: UnsafeMutablePointer<Double>, n: Int, clusters: Int

    init(_ cache: Cache?, _ space: Workspace, _ n: Int, _ clusters: Int) throws(Failure) {
      f = try space.room(cache, "logs", n * clusters, Double.self)
      mass = try space.room(cache, "log_mass", clusters, Double.self)
      (self.n, self.clusters) = (n, clusters)
    }
    init(_ cache: Cache) throws(Failure) {
      f = UnsafeMutablePointer(mutating: try cache.kept("logs", Double.self))
      mass = UnsafeMutablePointer(mutating: try cache.kept("log_mass", Double.self))
      (n, clusters) = (cache.sizes["n"], cache.sizes["C"])
    }
    /// Takes the masses from f.
    func sum() {
      for c in 0..<clusters {
        var sum = LogSum()
        for i in 0..<n { sum.add(f[i * clusters + c]) }
        mass[c] = sum.value
      }
    }

    /// Whether terms of a q may have been lost to rounding.
    static func lost<T: Real>(_ q: T) -> Bool { q < T.leastNormalMagnitude / T.ulpOfOne }

    /// log q_ij.
    func value(_ i: Int, _ j: Int) -> Double {
      var sum = LogSum()
      for c in 0..<clusters where mass[c] > -.infinity { sum.add(term(i, j, c)) }
      return sum.value
    }
    /// out_c ← out_c + push·(the share of c in q_ij), l = log q_ij.
    func share(_ i: Int, _ j: Int, _ l: Double, _ push: Double, into out: UnsafeMutablePointer<Double>) {
      for c in 0..<clusters where mass[c] > -.infinity { out[c] += push * exp(term(i, j, c) - l) }
    }
    /// f_ic over the mass of its cluster.
    func part(_ at: Int) -> Double { mass[at % clusters] > -.infinity ? exp(f[at] - mass[at % clusters]) : 0 }
    private func term(_ i: Int, _ j: Int, _ c: Int) -> Double {
      f[i * clusters + c] + f[j * clusters + c] - mass[c]
    }
  }
}
