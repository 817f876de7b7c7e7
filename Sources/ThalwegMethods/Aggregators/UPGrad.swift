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
struct UPGrad: Source {
  static let method = Method(
    "upgrad", .aggregator,
    "Jacobian descent: the mean of the task gradients, each projected onto the directions that conflict with none.",
    rule: """
      G = J J'/trace (0 when the trace is below norm_eps) + reg_eps*I
      v_i = argmin v'Gv subject to v >= pref_i*e_i;  g = J' sum_i v_i
      """,
    source: "Quinton, Rey, 2024, arXiv:2406.16232",
    parameters: [
      Tasks.parameter, .list("pref", nil, "preference of each task, 1/tasks each when none", optional: true),
      .number("norm_eps", 1e-4, .atLeast(0), "below this trace all gradients count as zero").forAll,
      .number("reg_eps", 1e-4, .atLeast(0), "added to the diagonal of the normalised Gramian").forAll,
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true,
    validate: { (h) throws(Failure) in
      let pref = h.list("pref"), m = h.integer("tasks")
      guard pref.isEmpty || pref.count == m else {
        throw Failure(Status.range, "upgrad: `pref` must have one number for each of the \(m) tasks, got \(pref.count)")
      }
      guard pref.allSatisfy({ $0 >= 0 && $0.isFinite }) else {
        throw Failure(Status.range, "upgrad: `pref` must not be negative")
      }
    })

  let tasks: Tasks
  init(_ h: Hyper) { tasks = Tasks(h) }
  var slots: [Slot] { tasks.slots }
  var opens: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { tasks.ask(0) }
  func most(_ tensors: Int) -> Int { tasks.count }
  var kinds: [Request.Kind] { [.taskGradient] }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let h = io.hyper, m = tasks.count, given = h.list("pref")
    let pref = given.count == m ? given : [Double](repeating: 1 / Double(m), count: m)
    return try tasks.advance(phase, io) { (G) throws(Failure) in
      try UPGrad.weights(G, pref, normEps: h.norm_eps, regEps: h.reg_eps)
    }
  }

  static func weights(_ gramian: [[Double]], _ pref: [Double], normEps: Double, regEps: Double) throws(Failure)
    -> [Double]
  {
    let m = gramian.count
    let trace = (0..<m).reduce(0) { $0 + gramian[$1][$1] }
    let unit = trace < normEps || trace == 0 ? 0 : 1 / trace
    var G = gramian.map { $0.map { $0 * unit } }
    for i in 0..<m { G[i][i] += regEps }
    var total = [Double](repeating: 0, count: m)
    for i in 0..<m {
      let v = try solve(G, i, pref[i])
      for k in 0..<m { total[k] += v[k] }
    }
    return total
  }

  /// argmin vᵀGv subject to v ≥ p·e_i. With v = p·e_i + s, s ≥ 0: the gradient Gv is 0 where s > 0 and not negative
  /// where s = 0.
  static func solve(_ G: [[Double]], _ i: Int, _ p: Double) throws(Failure) -> [Double] {
    let m = G.count
    var s = [Double](repeating: 0, count: m)
    var free = [Bool](repeating: false, count: m), blocked = free
    let diagonal = (0..<m).reduce(0.0) { max($0, G[$1][$1]) }
    for _ in 0..<(50 * m + 50) {
      var worst = -1, slope = -1e-12 * diagonal * max(p, s.max() ?? 0)
      for k in 0..<m where !free[k] && !blocked[k] {
        let g = p * G[k][i] + zip(G[k], s).reduce(0) { $0 + $1.0 * $1.1 }
        if g < slope { (worst, slope) = (k, g) }
      }
      if worst < 0 {
        s[i] += p
        return s
      }
      free[worst] = true
      while true {
        let indices = (0..<m).filter { free[$0] }
        guard let z = cholesky(G, indices, indices.map { -p * G[$0][i] }) else {
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
    throw Failure(Status.numeric, "upgrad: the active set did not settle")
  }

  /// x with G_FF·x = b; nil when G_FF is singular.
  private static func cholesky(_ G: [[Double]], _ f: [Int], _ b: [Double]) -> [Double]? {
    let n = f.count
    var l = [[Double]](repeating: [Double](repeating: 0, count: n), count: n)
    var x = b
    for r in 0..<n {
      for c in 0...r {
        var d = G[f[r]][f[c]]
        for k in 0..<c { d -= l[r][k] * l[c][k] }
        if c < r { l[r][c] = d / l[c][c]; continue }
        guard d > 1e-15 * G[f[r]][f[r]] else { return nil }
        l[r][r] = d.squareRoot()
      }
      for k in 0..<r { x[r] -= l[r][k] * x[k] }
      x[r] /= l[r][r]
    }
    for r in stride(from: n - 1, through: 0, by: -1) {
      for k in (r + 1)..<max(n, r + 1) { x[r] -= l[k][r] * x[k] }
      x[r] /= l[r][r]
    }
    return x
  }
}
