import ThalwegCore

/// Cross-gradient descent: a sum of the parts' gradients with the weights of another point.
///
///     c = Σ_s q_s·∇f_s(θ);   θ ← θ − lr·c
///
/// For F = −log Σ exp(−f_s) and q the weights exp(−f_s)/Σ at θ, c is ∇F; with those of a minimiser it is the vector of
/// the paper's convexity inequality.
///
/// State    the gradient of every part, within a step.
/// Differs  q is scaled to sum 1. How q follows from an unknown minimiser is UNVERIFIED: the weights of one step are
///          those observed before it as `weight_0`, `weight_1`, …, all of them; where none was, q.
/// Errors   weights that are negative or not finite, or whose sum is not above 0; some observed and others not.
/// Source   Achab, 2023, arXiv:2309.15298.
struct XGD: ElementRule {
  static let method = Method(
    "xgd", .optimizer, "Cross-gradient descent: a sum of the parts' gradients with the weights of another point.",
    rule: """
      q = weight_0, weight_1, ... where they were observed before the step (observe "weight_0", ...);  q <- q/(sum of q)
      c = sum_s q_s * gradient of part s;  theta <- theta - lr*c
      """,
    source: "Achab, 2023, arXiv:2309.15298",
    parameters: [.lr(nil), .list("q", nil, "weights of the reference point, one for each part")], slots: [Tasks.slot],
    requests: "task_gradient",
    validate: { (h) throws(Failure) in
      let q = h.list("q")
      guard (1...Tasks.most).contains(q.count) else {
        throw Failure(Status.range, "xgd: `q` must have 1 to \(Tasks.most) numbers, got \(q.count)")
      }
      _ = try normalised(q, "`q`")
    })

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }

  init(_ h: Hyper, _ c: StepContext) {}

  @inline(__always) func direction<L: Lane>(_ c: L, _ x: L, _ s: Slots<L>) -> L { c }

  static let registered = entry(XGD.self, source: { (h) throws(Failure) in try Mixture(h) })

  struct Mixture: Source {
    static var method: Method { XGD.method }
    let tasks: Tasks
    let q: [Double]
    let observes: [String]
    init(_ h: Hyper) throws(Failure) {
      q = h.list("q")
      tasks = Tasks(count: q.count)
      observes = q.indices.map { "weight_\($0)" }
    }
    var slots: [Slot] { tasks.slots }
    var opens: Bool { true }
    func opening(_ io: SourceIO) -> Ask? { tasks.ask(0) }
    func most(_ tensors: Int) -> Int { tasks.count }
    var kinds: [Request.Kind] { [.taskGradient] }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let told = observes.map { io.observed($0) }, known = told.contains { !$0.isNaN }
      if known, let k = told.firstIndex(where: \.isNaN) {
        throw Failure(Status.needs, "xgd: other weights were observed, but not \(observes[k]); nothing was changed")
      }
      let weights = try XGD.normalised(known ? told : q, known ? "the weights observed" : "`q`")
      if let next = tasks.keep(phase, io, reads: true) { return .ask(next) }
      return .update(io.combination(weights))
    }
  }

  private static func normalised(_ q: [Double], _ what: String) throws(Failure) -> [Double] {
    let top = q.max() ?? 0
    guard q.allSatisfy({ $0 >= 0 }), top > 0, top.isFinite else {
      throw Failure(
        Status.range,
        "xgd: \(what) must not be negative and have a sum above 0, got [\(q.map { text($0) }.joined(separator: ", "))]")
    }
    let scaled = q.map { $0 / top }, sum = scaled.reduce(0, +)  // no sum of finite numbers overflows then
    return scaled.map { $0 / sum }
  }
}
