import ThalwegCore

/// A rule that makes the weights of the task gradients of their inner products alone.
///
/// Its method has `Tasks.slot`, the request `task_gradient` and `needsFinite`; the engine sees it as a source.
protocol GramianRule: Listed, Sendable {
  static var method: Method { get }
  /// The number of tasks, where it is not the parameter `tasks`.
  static func tasks(_ h: Hyper) -> Int
  /// What is to be told before the step of every task, if anything: `name_0`, `name_1` and so on.
  static func told(_ h: Hyper) -> String?
  /// It comes nearer to its answer step by step, and says in `convergence` of the context how near.
  static var iterates: Bool { get }
  /// Numbers that it keeps between steps, in `memory` of the context.
  static func scalars(_ tasks: Int) -> [Scalar]
  /// Made anew for every step.
  init(_ h: Hyper, _ tasks: Tasks)
  /// G is symmetric, finite and has a row for every task. The gradient becomes the sum of the task gradients with these
  /// weights.
  func weights(_ G: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double]
}

extension GramianRule {
  static var registered: Registered {
    Registered(method: method, component: .source { Aggregator<Self>($0) })
  }
  static func tasks(_ h: Hyper) -> Int { h.integer("tasks") }
  static func told(_ h: Hyper) -> String? { nil }
  static var iterates: Bool { false }
  static func scalars(_ tasks: Int) -> [Scalar] { [] }
}

/// What a rule may know of the step besides the inner products.
struct TaskContext {
  let seed: UInt64, stream: UInt32, step: Int
  var memory: [Double] = []
  var convergence: Convergence?
  /// The relative rounding of the gradients, as they are kept.
  var rounding = Double.ulpOfOne
  /// What was told of every task.
  var told: [Double] = []

  /// The order in which a task meets the others: the ascending order of normal numbers drawn for (seed, step, task).
  func order(_ task: Int, of count: Int) -> [Int] {
    let key = Random.key(seed: seed, stream: stream, step: UInt64(max(0, step)), tensor: UInt32(task))
    let draws = (0..<count).map { Random.normal(key, $0) }
    return (0..<count).sorted { draws[$0] < draws[$1] || (draws[$0] == draws[$1] && $0 < $1) }
  }
}

private struct Rounding: SlotWork {
  func callAsFunction<T: Real>(_ slots: [UnsafeMutablePointer<T>], _ shape: Shape) -> Double { Double(T.ulpOfOne) }
}

/// The source that such a rule stands for.
struct Aggregator<Rule: GramianRule>: Source {
  static var method: Method { Rule.method }
  let tasks: Tasks
  let scalars: [Scalar]
  let observes: [String]

  init(_ h: Hyper) {
    tasks = Tasks(count: Rule.tasks(h))
    observes = Rule.told(h).map { name in (0..<Rule.tasks(h)).map { "\(name)_\($0)" } } ?? []
    scalars = Rule.scalars(tasks.count) + (Rule.iterates ? Convergence.scalars : [])
  }
  var slots: [Slot] { tasks.slots }
  var opens: Bool { true }
  var findsNonfinite: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { tasks.ask(0) }
  func most(_ tensors: Int) -> Int { tasks.count }
  var kinds: [Request.Kind] { [.taskGradient] }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let told = observes.map { io.observed($0) }
    if let k = told.firstIndex(where: { !$0.isFinite }) {
      throw Failure(
        Status.needs,
        "\(Rule.method.name) needs a finite \(observes[k]): observe it before the step, got \(text(told[k])); "
          + "nothing was changed")
    }
    if let next = tasks.keep(phase, io, reads: true) { return .ask(next) }
    let own = Rule.iterates ? scalars.count - Convergence.scalars.count : scalars.count
    var c = TaskContext(
      seed: io.seed, stream: io.stream, step: io.step, memory: (0..<own).map { io.scalar($0) }, told: told)
    for k in io.tensors(where: { _ in true }) {
      c.rounding = max(c.rounding, try io.work(Rounding(), on: k, slots: [0]))
    }
    let weights = try Rule(io.hyper, tasks).weights(try tasks.gramian(io), &c)
    guard weights.allSatisfy(\.isFinite) else {
      throw Failure(Status.numeric, "\(Rule.method.name): the weights of the tasks are not finite; nothing was changed")
    }
    for k in 0..<own { io.setScalar(k, c.memory[k]) }
    c.convergence?.put(io, from: own)
    return .update(io.combination(weights))
  }
}
