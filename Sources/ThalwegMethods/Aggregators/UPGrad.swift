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
/// Tells    residual, the largest cosine by which some v_i misses the conditions of its minimum, and iterations of all.
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

  static var iterates: Bool { true }

  func weights(_ gramian: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double] {
    let G = UPGrad.regularised(gramian, normEps: normEps, regEps: regEps), m = G.count
    // each task by itself, side by side
    var answers = [(v: [Double], convergence: Convergence)?](repeating: nil, count: m)
    answers.withUnsafeMutableBufferPointer { out in
      nonisolated(unsafe) let out = out
      Parts(m, of: m &* m).forEach { _, tasks in
        for i in tasks { out[i] = try? UPGrad.solve(G, atLeast: G.indices.map { $0 == i ? pref[i] : 0 }) }
      }
    }
    var total = [Double](repeating: 0, count: m), convergence = Convergence()
    for answer in answers {
      guard let answer else { throw UPGrad.unsettled }
      for k in G.indices { total[k] += answer.v[k] }
      convergence.add(answer.convergence)
    }
    c.convergence = convergence
    return total
  }

  /// The Gramian over its trace, with a diagonal.
  static func regularised(_ gramian: Gramian, normEps: Double, regEps: Double) -> Gramian {
    let trace = gramian.trace
    var G = gramian.scaled(by: trace < normEps || trace == 0 ? 0 : 1 / trace)
    for i in G.indices { G[i][i] += regEps }
    return G
  }

  private static let unsettled = Failure(Status.numeric, "the active set of the projection did not settle")

  /// argmin vᵀGv subject to v ≥ u, u ≥ 0. Where rows depend on one another, and the active set finds no end or a wrong
  /// one, the diagonal is raised by next to nothing: Jᵀv hardly changes.
  static func solve(_ G: Gramian, atLeast u: [Double]) throws(Failure) -> (v: [Double], convergence: Convergence) {
    var iterations = 0
    if G.count > 32 {
      let swept = sweeps(G, atLeast: u)
      if swept.convergence.residual <= 1e-14 { return swept }
      iterations += swept.convergence.iterations
    }
    var raised = G, best: (v: [Double], convergence: Convergence)?
    let top = G.indices.reduce(0.0) { max($0, G[$1][$1]) }
    for eps in [0, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10] {
      for i in G.indices { raised[i][i] = G[i][i] + eps * top }
      guard let (v, rounds) = activeSet(raised, atLeast: u) else { continue }
      iterations += rounds
      let found = Convergence(cone: G, v, atLeast: u, iterations)
      if best.map({ found.residual < $0.convergence.residual }) ?? true { best = (v, found) }
      if found.residual <= (eps == 0 ? 1e-9 : 1e-5) { break }
    }
    guard var best else { throw unsettled }
    best.convergence.iterations = iterations
    return best
  }

  /// Projected sweeps over the entries, m² operations each: of many tasks whose gradients are far from dependent a few
  /// are enough.
  private static func sweeps(_ G: Gramian, atLeast u: [Double]) -> (v: [Double], convergence: Convergence) {
    var v = u, slopes = G.times(u), sweeps = 0, least = 1.0
    while sweeps < 100 {
      for k in G.indices where G[k][k] > 0 {
        let next = max(u[k], v[k] - slopes[k] / G[k][k]), more = next - v[k]
        if more == 0 { continue }
        v[k] = next
        let row = G[k]
        for j in slopes.indices { slopes[j] += more * row[j] }
      }
      sweeps += 1
      guard sweeps % 5 == 0 else { continue }
      let found = Convergence(cone: G, v, atLeast: u, sweeps)
      // (where they crawl, the exact way is shorter)
      if found.residual <= 1e-14 || found.residual > least / 2 { break }
      least = found.residual
    }
    return (v, Convergence(cone: G, v, atLeast: u, sweeps))
  }

  /// With v = u + s, s ≥ 0: the gradient Gv is 0 where s > 0 and not negative where s = 0. A row that becomes free
  /// costs m² operations, one that is so no more m³.
  private static func activeSet(_ G: Gramian, atLeast u: [Double]) -> (v: [Double], iterations: Int)? {
    let m = G.count, pull = G.times(u), norms = G.norms
    var s = [Double](repeating: 0, count: m), slopes = pull
    var free: [Int] = [], factor = GrowingFactor(), blocked = [Bool](repeating: false, count: m)
    func append(_ k: Int) -> Bool {
      guard factor.append(free.map { G[k][$0] }, G[k][k]) else { return false }
      free.append(k)
      return true
    }
    for iteration in 0..<(50 * m + 50) {
      // by cosines: rows may be of very different lengths
      var worst = -1, slope = -1e-12 * G.length(zip(s, u).map { $0 + $1 })
      let open = Set(G.indices).subtracting(free)
      for k in 0..<m where open.contains(k) && !blocked[k] && norms[k] > 0 {
        let g = slopes[k] / norms[k]
        if g < slope { (worst, slope) = (k, g) }
      }
      if worst < 0 { return (zip(s, u).map { $0 + $1 }, iteration) }
      if append(worst) {
        while !free.isEmpty {
          let z = factor.solve(free.map { -pull[$0] })
          if z.allSatisfy({ $0 > 0 }) {
            for (k, index) in free.enumerated() { s[index] = z[k] }
            break
          }
          // back along the way to the first boundary, whose rows leave
          let reach = zip(free, z).map { (k, x) in x > 0 ? 1 : s[k] > 0 ? s[k] / (s[k] - x) : 0 }
          let t = reach.min() ?? 0
          var stays: [Int] = []
          for (k, index) in free.enumerated() {
            s[index] += t * (z[k] - s[index])
            if z[k] <= 0, reach[k] <= t || s[index] <= 0 { s[index] = 0 } else { stays.append(index) }
          }
          if t == 0, !stays.contains(worst) {
            blocked[worst] = true
          } else {
            blocked = [Bool](repeating: false, count: m)
          }
          (free, factor) = ([], GrowingFactor())
          for k in stays where !append(k) { s[k] = 0 }
        }
      } else {
        // the row depends on those that are free already: it can add nothing
        (blocked[worst], s[worst]) = (true, 0)
      }
      slopes = zip(pull, G.times(s)).map { $0 + $1 }
    }
    return nil
  }
}
