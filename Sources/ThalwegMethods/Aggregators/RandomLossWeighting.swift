import Glibc
import ThalwegCore

/// Random loss weighting: the task gradients with new random weights at every step.
///
///     w = softmax(z), z standard normal, one number a task;   g = Σ w_i·g_i
///
/// State    the gradient of every task.
/// Differs  nothing from torchjd.Random but for the generator. The weights add up to 1. z are the numbers drawn for
///          (seed, step, tensor 0).
/// Source   Lin, Ye, Zhang and Tsang, 2021, arXiv:2111.10603.
struct RandomLossWeighting: Source {
  static let method = Method(
    "random_loss_weighting", .aggregator, "The task gradients with new random weights at every step.",
    rule: "w = softmax(z), z standard normal, one number a task;  g = sum_i w_i*g_i",
    source: "Lin, Ye, Zhang, Tsang, 2021, arXiv:2111.10603", parameters: [Tasks.parameter], slots: [Tasks.slot],
    requests: "task_gradient")

  let tasks: Tasks
  init(_ h: Hyper) { tasks = Tasks(h) }
  var slots: [Slot] { tasks.slots }
  var opens: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { tasks.ask(0) }
  func most(_ tensors: Int) -> Int { tasks.count }
  var kinds: [Request.Kind] { [.taskGradient] }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if let next = tasks.keep(phase, io, reads: true) { return .ask(next) }
    let key = Random.key(seed: io.seed, stream: io.stream, step: UInt64(max(0, io.step)), tensor: 0)
    let e = (0..<tasks.count).map { exp(Random.normal(key, $0)) }, sum = e.reduce(0, +)
    return .update(io.combination(e.map { $0 / sum }))
  }
}
