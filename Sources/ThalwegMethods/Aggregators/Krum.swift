import ThalwegCore

/// Krum and multi-Krum: the gradients that lie closest to their neighbours; up to f of them may be anything.
///
///     score_i = the sum of the tasks − f − 2 smallest ‖g_i − g_j‖², j ≠ i;   g = the mean of the n_selected lowest
///       scores
///
/// State    the gradient of every worker.
/// Differs  n_byzantine is 0 where it is not given; the paper has no default. torchjd.Krum adds distances that are not
///          squared (squared=false). Of equal scores the earlier worker's counts. Distances come from inner products:
///          below some 1e-8 of the gradients they are 0.
/// Source   Blanchard, El Mhamdi, Guerraoui and Stainer, 2017, NeurIPS.
struct Krum: GramianRule {
  static let method = Method(
    "krum", .aggregator, "The gradients that lie closest to their neighbours; some of them may be anything.",
    rule: """
      score_i = sum of the tasks - n_byzantine - 2 smallest |g_i - g_j|^2 (|g_i - g_j| without squared)
      g = mean of the n_selected gradients with the lowest scores
      """,
    source: "Blanchard, El Mhamdi, Guerraoui, Stainer, 2017, NeurIPS",
    parameters: [
      .integer(
        "tasks", 3, .within(3, Double(Tasks.most)), "number of workers, that is of gradients a step", live: false),
      .integer(
        "n_byzantine", 0, .atLeast(0), "how many may be anything, at most tasks - 3; 0 defends against none",
        live: false),
      .integer("n_selected", 1, .atLeast(1), "how many are averaged", live: false),
      .flag("squared", true, "distances are squared").forAll,
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true,
    validate: { (h) throws(Failure) in
      let m = h.integer("tasks"), f = h.integer("n_byzantine"), n = h.integer("n_selected")
      guard f <= m - 3 else {
        throw Failure(Status.range, "krum: `n_byzantine` must be at most tasks - 3 = \(m - 3), got \(f)")
      }
      guard n <= m else { throw Failure(Status.range, "krum: `n_selected` must be at most tasks = \(m), got \(n)") }
    })

  let selected, neighbours: Int
  let squared: Bool
  init(_ h: Hyper, _ tasks: Tasks) {
    (selected, squared) = (h.integer("n_selected"), h.squared)
    neighbours = max(1, tasks.count - h.integer("n_byzantine") - 2)
  }

  func weights(_ G: Gramian, _ c: inout TaskContext) -> [Double] {
    let score = G.indices.map { i in
      let d = G.indices.filter { $0 != i }.map { max(0, G[i][i] + G[$0][$0] - 2 * G[i][$0]) }
      return d.map { squared ? $0 : $0.squareRoot() }.sorted().prefix(neighbours).reduce(0, +)
    }
    let best = G.indices.sorted { score[$0] < score[$1] || (score[$0] == score[$1] && $0 < $1) }.prefix(selected)
    return G.indices.map { best.contains($0) ? 1 / Double(selected) : 0 }
  }
}
