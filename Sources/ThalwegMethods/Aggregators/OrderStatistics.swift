import ThalwegCore

/// What is taken of the entries of all task gradients, in their order.
protocol OrderStatistic: Listed, Sendable {
  static var method: Method { get }
  init(_ h: Hyper, _ tasks: Tasks)
  /// The weights of the entries in ascending order.
  var weights: [Double] { get }
}

struct Ordered<Rule: OrderStatistic>: Source {
  static var method: Method { Rule.method }
  let tasks: Tasks
  init(_ h: Hyper) { tasks = Tasks(h) }
  var slots: [Slot] { tasks.slots }
  var opens: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { tasks.ask(0) }
  func most(_ tensors: Int) -> Int { tasks.count }
  var kinds: [Request.Kind] { [.taskGradient] }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if let next = tasks.keep(phase, io, reads: true) { return .ask(next) }
    return .update(io.ordered(Rule(io.hyper, tasks).weights))
  }
}

/// The median of every entry over the gradients of all workers: less than half of them may be anything.
///
///     g = the middle entry, or the mean of the two middle ones
///
/// State    the gradient of every worker.
/// Differs  a gradient that is not finite ends the step with an error, where numpy.median has NaN in its column;
///          torch.median takes the lower of two.
/// Source   Yin, Chen, Ramchandran and Bartlett, 2018, arXiv:1803.01498.
struct CoordinateMedian: OrderStatistic {
  static let method = Method(
    "coordinate_median", .aggregator, "The median of every entry over the gradients of all workers.",
    rule: "g = middle entry over the tasks, or the mean of the two middle ones, entry by entry",
    source: "Yin, Chen, Ramchandran, Bartlett, 2018, arXiv:1803.01498", parameters: [Tasks.parameter],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)

  let weights: [Double]
  init(_ h: Hyper, _ tasks: Tasks) {
    let m = tasks.count
    weights = (0..<m).map { $0 == (m - 1) / 2 || $0 == m / 2 ? (m % 2 == 0 ? 0.5 : 1) : 0 }
  }
}

/// The mean of every entry over the gradients of all workers without the smallest and the largest.
///
///     g = the mean of the entries but the `trim` smallest and the `trim` largest
///
/// State    the gradient of every worker.
/// Differs  nothing from torchjd.TrimmedMean, but that a gradient that is not finite ends the step with an error.
/// Source   Yin, Chen, Ramchandran and Bartlett, 2018, arXiv:1803.01498.
struct TrimmedMean: OrderStatistic {
  static let method = Method(
    "trimmed_mean", .aggregator, "The mean of every entry over all workers without the smallest and the largest.",
    rule: "g = mean of the entries over the tasks but the trim smallest and the trim largest, entry by entry",
    source: "Yin, Chen, Ramchandran, Bartlett, 2018, arXiv:1803.01498",
    parameters: [
      .integer(
        "tasks", 3, .within(2, Double(Tasks.most)), "number of workers, that is of gradients a step", live: false),
      .integer("trim", 1, .atLeast(0), "how many are left out at either end", live: false),
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true,
    validate: { (h) throws(Failure) in
      let m = h.integer("tasks"), k = h.integer("trim")
      guard k < (m + 1) / 2, 2 * k < m else {
        throw Failure(Status.range, "trimmed_mean: `trim` must be below tasks/2 = \(text(Double(m) / 2)), got \(k)")
      }
    })

  let weights: [Double]
  init(_ h: Hyper, _ tasks: Tasks) {
    let m = tasks.count, k = h.integer("trim"), kept = max(1, m - 2 * k)
    weights = (0..<m).map { $0 >= k && $0 < m - k ? 1 / Double(kept) : 0 }
  }
}

/// Sample median gradient descent: the entry-wise or the geometric median of the samples' gradients.
///
///     g = argmin Σ ‖z − g_i‖₁, the median of every entry;   norm=l2: Σ ‖z − g_i‖₂, the geometric median
///
/// State    as coordinate_median and geometric_median, which it is a name for.
/// Source   Schaipp, Garrigos, Simsekli and Gower, 2024, arXiv:2402.12828.
enum MedianGD: Listed {
  static let method = Method(
    "median_gd", .aggregator, "The entry-wise or the geometric median of the samples' gradients.",
    rule: "norm=l1: coordinate_median(tasks);  norm=l2: geometric_median(tasks)",
    source: "Schaipp, Garrigos, Simsekli, Gower, 2024, arXiv:2402.12828",
    parameters: [Tasks.parameter, .choice("norm", ["l1", "l2"], "of the distances", live: false)],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)

  static let registered = alias(method) { h in
    [h.node(h.is("norm", "l2") ? "geometric_median" : "coordinate_median", [Tasks.parameter])]
  }
}

extension OrderStatistic {
  static var registered: Registered {
    Registered(method: method, component: .source { Ordered<Self>($0) })
  }
}
