import ThalwegCore

/// PCGrad, gradient surgery: from every task's gradient the parts that conflict with other tasks are projected away.
///
///     for each task i: r = g_i;  for j ≠ i in random order: if ⟨r, g_j⟩ < 0,  r ← r − ⟨r, g_j⟩/⟨g_j, g_j⟩·g_j
///     g = Σ r, or their mean
///
/// State    the gradient of every task.
/// Differs  works on inner products alone (the same numbers). A zero gradient conflicts with none. The order in which
///          task i meets the others is the ascending order of normal numbers drawn for (seed, step, i).
/// Source   Yu et al., 2020, arXiv:2001.06782.
struct PCGrad: GramianRule {
  static let method = Method(
    "pcgrad", .aggregator,
    "Gradient surgery: parts of a task's gradient that conflict with other tasks are projected away.",
    rule: """
      for each task i: r = g_i; for j != i in random order: if <r, g_j> < 0, r <- r - <r, g_j>/<g_j, g_j>*g_j
      g = sum of the r, or their mean
      """,
    source: "Yu, Kumar, Gupta, Levine, Hausman, Finn, 2020, arXiv:2001.06782",
    parameters: [Tasks.parameter, .choice("reduction", ["sum", "mean"], "sum or mean over the tasks").forAll],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)

  let mean: Bool
  init(_ h: Hyper, _ tasks: Tasks) { mean = h.is("reduction", "mean") }

  func weights(_ G: Gramian, _ c: inout TaskContext) -> [Double] {
    let orders = G.indices.map { c.order($0, of: G.count) }
    return PCGrad.weights(G, orders, mean: mean)
  }

  static func weights(_ G: Gramian, _ orders: [[Int]], mean: Bool) -> [Double] {
    let m = G.count
    var total = [Double](repeating: 0, count: m)
    for i in 0..<m {
      var c = [Double](repeating: 0, count: m)  // r = Σ c_k·g_k
      c[i] = 1
      for j in orders[i] where j != i && G[j][j] > 0 {
        let conflict = dot(G[j], c)
        if conflict < 0 { c[j] -= conflict / G[j][j] }
      }
      for k in 0..<m { total[k] += c[k] }
    }
    return mean ? total.map { $0 / Double(m) } : total
  }
}
