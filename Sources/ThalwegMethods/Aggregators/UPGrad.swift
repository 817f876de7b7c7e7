import ThalwegCore

/// UPGrad, Jacobian descent: the mean of the task gradients, each first projected onto the directions that conflict
/// with no task.
///
///     G = JJᵀ / trace (0 below norm_eps), + reg_eps·I
///     v_i = argmin vᵀGv subject to v ≥ pref_i·e_i,   g = Jᵀ·Σ v_i
///
/// State    the gradient of every task.
/// Differs  nothing from torchjd.UPGrad; every v_i is the exact solution, by the active-set method of Lawson and Hanson
///          on G.
/// Source   Quinton and Rey, 2024, arXiv:2406.16232.
struct UPGrad: GramianRule {
  static let method = Method(
    "upgrad", .aggregator,
    "Jacobian descent: the mean of the task gradients, each projected onto the directions that conflict with none.",
    rule: """
      G = J J'/trace (0 when the trace is below norm_eps) + reg_eps*I
      v_i = argmin v'Gv subject to v >= pref_i*e_i;  g = J' sum_i v_i
      """,
    source: "Quinton, Rey, 2024, arXiv:2406.16232",
    parameters: [
      Tasks.parameter, Tasks.preference,
      .number("norm_eps", 1e-4, .atLeast(0), "below this trace all gradients count as zero").forAll,
      .number("reg_eps", 1e-4, .atLeast(0), "added to the diagonal of the normalised Gramian").forAll,
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true, validate: Tasks.check("upgrad"))

  let pref: [Double]
  let normEps, regEps: Double
  init(_ h: Hyper, _ tasks: Tasks) {
    (pref, normEps, regEps) = (tasks.preferences(h), h.norm_eps, h.reg_eps)
  }

  func weights(_ G: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double] {
    try UPGrad.weights(G, pref, normEps: normEps, regEps: regEps)
  }

  static func weights(_ gramian: Gramian, _ pref: [Double], normEps: Double, regEps: Double) throws(Failure) -> [Double]
  {
    let G = regularised(gramian, normEps: normEps, regEps: regEps)
    var total = [Double](repeating: 0, count: G.count)
    for i in G.indices {
      let v = try solve(G, i, pref[i])
      for k in G.indices { total[k] += v[k] }
    }
    return total
  }

  /// The Gramian over its trace, with a diagonal.
  static func regularised(_ gramian: Gramian, normEps: Double, regEps: Double) -> Gramian {
    let trace = gramian.trace
    var G = gramian.scaled(by: trace < normEps || trace == 0 ? 0 : 1 / trace)
    for i in G.indices { G[i][i] += regEps }
    return G
  }

  /// argmin vᵀGv subject to v ≥ p·e_i.
  static func solve(_ G: Gramian, _ i: Int, _ p: Double) throws(Failure) -> [Double] {
    try solve(G, atLeast: G.indices.map { $0 == i ? p : 0 })
  }

  /// argmin vᵀGv subject to v ≥ u, u ≥ 0. Where rows depend on one another, and the active set finds no end or a wrong
  /// one, the diagonal is raised by next to nothing: Jᵀv hardly changes.
  static func solve(_ G: Gramian, atLeast u: [Double]) throws(Failure) -> [Double] {
    var raised = G, first: [Double]?
    let top = G.indices.reduce(0.0) { max($0, G[$1][$1]) }
    for eps in [0, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10] {
      for i in G.indices { raised[i][i] = G[i][i] + eps * top }
      guard let v = activeSet(raised, atLeast: u) else { continue }
      if isLeast(v, G, atLeast: u, eps == 0 ? 1e-9 : 1e-5) { return v }
      first = first ?? v
    }
    if let first { return first }
    throw Failure(Status.numeric, "the active set of the projection did not settle")
  }
  /// The gradient Gv is 0 where v > u and not negative elsewhere, by cosines.
  private static func isLeast(_ v: [Double], _ G: Gramian, atLeast u: [Double], _ tolerance: Double) -> Bool {
    let norms = G.norms, size = tolerance * dot(norms, v)  // (the rows may cancel)
    return G.indices.allSatisfy { k in
      if norms[k] == 0 { return true }
      let slope = dot(G[k], v) / norms[k]
      return slope >= -size && (v[k] == u[k] || slope <= size)
    }
  }

  /// With v = u + s, s ≥ 0: the gradient Gv is 0 where s > 0 and not negative where s = 0.
  private static func activeSet(_ G: Gramian, atLeast u: [Double]) -> [Double]? {
    let m = G.count, pull = G.times(u)
    var s = [Double](repeating: 0, count: m)
    var free = [Bool](repeating: false, count: m), blocked = free
    let norms = G.norms
    for _ in 0..<(50 * m + 50) {
      // by cosines: rows may be of very different lengths
      var worst = -1, slope = -1e-12 * G.length(zip(s, u).map { $0 + $1 })
      for k in 0..<m where !free[k] && !blocked[k] && norms[k] > 0 {
        let g = (pull[k] + dot(G[k], s)) / norms[k]
        if g < slope { (worst, slope) = (k, g) }
      }
      if worst < 0 { return zip(s, u).map { $0 + $1 } }
      free[worst] = true
      while true {
        let indices = (0..<m).filter { free[$0] }
        guard let z = G.cholesky(indices, indices.map { -pull[$0] }) else {
          // the row depends on those that are free already: it can add nothing
          (free[worst], blocked[worst], s[worst]) = (false, true, 0)
          break
        }
        if z.allSatisfy({ $0 > 0 }) {
          for (k, index) in indices.enumerated() { s[index] = z[k] }
          break
        }
        // back along the way to the first boundary, whose rows leave
        let reach = zip(indices, z).map { (k, x) in x > 0 ? 1 : s[k] > 0 ? s[k] / (s[k] - x) : 0 }
        let t = reach.min() ?? 0
        for (k, index) in indices.enumerated() {
          s[index] += t * (z[k] - s[index])
          if z[k] <= 0, reach[k] <= t || s[index] <= 0 { (s[index], free[index]) = (0, false) }
        }
        if t == 0, !free[worst] { blocked[worst] = true } else { blocked = [Bool](repeating: false, count: m) }
        if !free.contains(true) { break }
      }
    }
    return nil
  }
}
