import Glibc
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
struct PCGrad: Source {
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

  let tasks: Tasks
  init(_ h: Hyper) { tasks = Tasks(h) }
  var slots: [Slot] { tasks.slots }
  var opens: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { tasks.ask(0) }
  func most(_ tensors: Int) -> Int { tasks.count }
  var kinds: [Request.Kind] { [.taskGradient] }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let orders = (0..<tasks.count).map { PCGrad.order(io.seed, io.stream, io.step, task: $0, of: tasks.count) }
    let mean = io.hyper.is("reduction", "mean")
    return try tasks.advance(phase, io) { (G) throws(Failure) in PCGrad.weights(G, orders, mean: mean) }
  }

  /// The order in which a task meets the others.
  static func order(_ seed: UInt64, _ stream: UInt32, _ step: Int, task: Int, of count: Int) -> [Int] {
    let key = Random.key(seed: seed, stream: stream, step: UInt64(step), tensor: UInt32(task))
    let draws = (0..<count).map { Random.normal(key, $0) }
    return (0..<count).sorted { draws[$0] < draws[$1] || (draws[$0] == draws[$1] && $0 < $1) }
  }

  static func weights(_ G: [[Double]], _ orders: [[Int]], mean: Bool) -> [Double] {
    let m = G.count
    var total = [Double](repeating: 0, count: m)
    for i in 0..<m {
      var c = [Double](repeating: 0, count: m)  // r = Σ c_k·g_k
      c[i] = 1
      for j in orders[i] where j != i && G[j][j] > 0 {
        let conflict = zip(G[j], c).reduce(0) { $0 + $1.0 * $1.1 }
        if conflict < 0 { c[j] -= conflict / G[j][j] }
      }
      for k in 0..<m { total[k] += c[k] }
    }
    return mean ? total.map { $0 / Double(m) } : total
  }
}
