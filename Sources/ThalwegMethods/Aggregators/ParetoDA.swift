import ThalwegCore

/// Pareto domain adaptation: the weights of training losses that lower a loss on held-out target data, or all of them.
///
///     g_1 … g_m the gradients of the training losses, v that of the held-out measure (task m);  C = JJᵀ,  a = J·v
///     balance (measure > eps):   max Σ α_j·a_j on the simplex with  (Cα)_j ≥ r_j;   where some a_j > 0:  r_j = 0 at
///       the largest a, none where a_j > 0, a_j elsewhere;   else r = 0
///     descent (measure ≤ eps):   max Σ (Cα)_j on the simplex with  Cα ≥ 0,  Σ α_j·a_j ≥ min(0, max a)
///     g = tasks·Σ α_j·g_j;   an impossible program: α = 1/tasks
///
/// State    all gradients while it asks.
/// Differs  the measure is ‖v‖; a host with another one sets `move`. In the authors' release it is never above eps, so
///          that only descent runs, and an impossible program has the weight 3 for each of three losses instead of 1.
///          Their switching test is UNVERIFIED against the paper.
/// Tells    residual, the largest share by which α misses a bound of the program (above 0 where it is impossible) or
///          its maximum, and iterations, the pivots.
/// Source   Lv, Liang, Gong, Li, Li, Zhang, Liu and Wang, 2021, NeurIPS.
struct ParetoDA: GramianRule {
  static let method = Method(
    "pareto_da", .aggregator, "Weights of training losses that lower a loss on held-out target data, or all of them.",
    rule: """
      C = J J', a = J v, v the gradient of task `tasks` (held-out measure);  alpha on the simplex
      balance (|v| > eps): max alpha.a with (C alpha)_j >= r_j;  descent: max sum(C alpha) with C alpha >= 0 and
        alpha.a >= min(0, max a);  g = tasks * sum_j alpha_j*g_j
      """,
    source: "Lv, Liang, Gong, Li, Li, Zhang, Liu, Wang, 2021, NeurIPS",
    parameters: [
      .integer(
        "tasks", 3, .within(2, Double(Tasks.most - 1)), "number of training losses; one more gradient is asked for",
        live: false),
      .eps(1e-3, "norm of v above which the losses are balanced").forAll,
      .choice("move", ["auto", "balance", "descent"], "which program").forAll,
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)
  static func tasks(_ h: Hyper) -> Int { h.integer("tasks") + 1 }
  static var iterates: Bool { true }

  let eps: Double
  let balances, descends: Bool
  init(_ h: Hyper, _ tasks: Tasks) {
    (eps, balances, descends) = (h.eps, h.is("move", "balance"), h.is("move", "descent"))
  }

  func weights(_ G: Gramian, _ c: inout TaskContext) -> [Double] {
    let m = G.count - 1, all = Array(0..<m), C = all.map { i in all.map { G[i][$0] } }, a = all.map { G[$0][m] }
    let top = a.max() ?? 0
    var rows = C, bounds = [Double](repeating: 0, count: m), goal: [Double]
    if balances || (!descends && G[m][m].squareRoot() > eps) {
      goal = a
      if top > 0 {
        let kept = all.filter { a[$0] <= 0 || a[$0] == top }
        rows = kept.map { C[$0] }
        bounds = kept.map { a[$0] == top ? 0 : a[$0] }
      }
    } else {
      goal = all.map { j in C.reduce(0) { $0 + $1[j] } }
      rows.append(a)
      bounds.append(min(0, top))
    }
    let found = onSimplex(maximising: goal, rows, bounds)
    let alpha = found?.x ?? [Double](repeating: 1 / Double(m), count: m)
    // what the program asks for and does not get, in units of what is added up
    let missed = zip(rows, bounds).reduce(found?.missed ?? 0) { worst, line in
      let size = zip(line.0, alpha).reduce(line.1.magnitude) { $0 + ($1.0 * $1.1).magnitude }
      return max(worst, size > 0 ? (line.1 - dot(line.0, alpha)) / size : 0)
    }
    c.convergence = Convergence(missed, found?.pivots ?? 0)
    return alpha.map { $0 * Double(m) } + [0]
  }
}

/// max c·x over x ≥ 0, Σ x = 1, rows·x ≥ bounds; nil where no x will do. Rows and columns that are hardly apart count
/// as one: pivots between them would be noise.
func onSimplex(maximising c: [Double], _ rows: [[Double]], _ bounds: [Double]) -> Vertex? {
  func near(_ a: [Double], _ b: [Double], _ sizes: [Double]) -> Bool {
    zip(zip(a, b), sizes).allSatisfy { ($0.0 - $0.1).magnitude <= 1e-7 * $1 }
  }
  func largest(_ list: [Double]) -> Double { list.reduce(0) { max($0, $1.magnitude) } }
  let columns = c.indices.map { j in rows.map { $0[j] } + [c[j]] }
  let sizes = (rows + [c]).map(largest)
  var kept: [Int] = []
  for j in c.indices where !kept.contains(where: { near(columns[$0], columns[j], sizes) }) { kept.append(j) }
  var lines: [(row: [Double], bound: Double)] = []
  for (row, bound) in zip(rows, bounds) {
    let row = kept.map { row[$0] }, size = [Double](repeating: max(largest(row), bound.magnitude), count: row.count + 1)
    if let k = lines.firstIndex(where: { near($0.row + [$0.bound], row + [bound], size) }) {
      lines[k].bound = max(lines[k].bound, bound)
    } else {
      lines.append((row, bound))
    }
  }
  guard let few = simplexMethod(kept.map { c[$0] }, lines.map(\.row), lines.map(\.bound)) else { return nil }
  var x = [Double](repeating: 0, count: c.count)
  for (j, value) in zip(kept, few.x) { x[j] = value }
  return Vertex(x: x, pivots: few.pivots, missed: few.missed)
}
/// A vertex, the pivots on the way there, and by what share of the largest cost a further one would still raise the
/// goal.
struct Vertex {
  var x: [Double], pivots = 0, missed = 0.0
}

/// The simplex method with a tableau in two phases; Bland's rule, so that it ends.
private func simplexMethod(_ c: [Double], _ rows: [[Double]], _ bounds: [Double]) -> Vertex? {
  let n = c.count, k = rows.count
  // columns: x, surplus of every row, an artificial variable for every row and for the sum, right side
  let first = n + k, width = first + k + 1
  var table: [[Double]] = []
  for (i, row) in rows.enumerated() {
    let size = max(row.reduce(bounds[i].magnitude) { max($0, $1.magnitude) }, .leastNormalMagnitude)
    let sign: Double = bounds[i] < 0 ? -1 : 1
    var line = row.map { sign * $0 / size } + [Double](repeating: 0, count: k + k + 1) + [sign * bounds[i] / size]
    line[n + i] = -sign
    line[first + i] = 1
    table.append(line)
  }
  table.append([Double](repeating: 1, count: n) + [Double](repeating: 0, count: 2 * k) + [1, 1])
  var basis = Array(first..<width), pivots = 0

  func pivot(_ r: Int, _ col: Int) {
    let p = table[r][col]
    for j in 0...width { table[r][j] /= p }
    for i in 0...k where i != r && table[i][col] != 0 {
      let f = table[i][col]
      for j in 0...width { table[i][j] -= f * table[r][j] }
    }
    basis[r] = col
    pivots += 1
  }
  /// Raises cost·x over columns below `end`, as far as it goes; what a further column would still gain.
  func climb(_ cost: [Double], _ end: Int) -> Double {
    let scale = max(cost.reduce(0) { max($0, $1.magnitude) }, .leastNormalMagnitude)
    func gain(_ j: Int) -> Double {
      var x = cost[j]
      for i in 0...k { x -= cost[basis[i]] * table[i][j] }
      return x
    }
    for _ in 0..<10_000 {
      guard let col = (0..<end).first(where: { !basis.contains($0) && gain($0) > 1e-12 * scale }) else { return 0 }
      // of rows that leave at hardly different places, the one with the largest pivot
      let open = (0...k).filter { table[$0][col] > 1e-9 }
      let reach = open.reduce(Double.infinity) { min($0, (max(0, table[$1][width]) + 1e-12) / table[$1][col]) }
      let near = open.filter { max(0, table[$0][width]) <= reach * table[$0][col] }
      guard let row = near.max(by: { table[$0][col] < table[$1][col] }) else { return gain(col) / scale }
      pivot(row, col)
    }
    return (0..<end).reduce(0) { basis.contains($1) ? $0 : max($0, gain($1) / scale) }
  }
  _ = climb([Double](repeating: 0, count: first) + [Double](repeating: -1, count: k + 1), width)
  var missing = 0.0
  for i in 0...k where basis[i] >= first { missing += table[i][width] }
  if missing > 1e-10 { return nil }
  for i in 0...k where basis[i] >= first {  // artificial variables that are 0 leave where they can
    let col = (0..<first).max { table[i][$0].magnitude < table[i][$1].magnitude }
    if let col, table[i][col].magnitude > 1e-9 { pivot(i, col) }
  }
  let missed = climb(c + [Double](repeating: 0, count: width - n), first)
  var x = [Double](repeating: 0, count: n)
  for i in 0...k where basis[i] < n { x[basis[i]] = max(0, table[i][width]) }
  return Vertex(x: x, pivots: pivots, missed: missed)
}
