import ThalwegCore

/// What aggregators share: the gradients of all tasks are asked for one after the other and kept, their inner products
/// taken, and a weighted sum of them handed to the pipeline.
struct Tasks: Sendable {
  static let most = 1024
  static let parameter = Parameter.integer(
    "tasks", 2, .within(1, Double(most)), "number of tasks, that is of gradients a step", live: false)
  static let slot = Slot.temporary("task_0", "the gradient of the first task; one more for every other task")

  let count: Int
  init(count: Int) { self.count = count }
  init(_ h: Hyper) { count = h.integer("tasks") }
  var slots: [Slot] { (0..<count).map { Slot.temporary("task_\($0)", "the gradient of task \($0)") } }

  func ask(_ k: Int) -> Ask { Ask(.taskGradient, index: k, count: count) }

  /// Keeps the gradient of task `phase`; what to ask for next, if anything. `reads`: nobody changes it.
  func keep(_ phase: Int, _ io: SourceIO, reads: Bool) -> Ask? {
    io.keep(phase, reads: reads)
    return phase + 1 < count ? ask(phase + 1) : nil
  }

  /// All inner products; of the slots after those of the tasks, too.
  func gramian(_ io: SourceIO, before others: Int = 0) throws(Failure) -> Gramian {
    let G = try io.innerProducts(Array(0..<(count + others)))
    guard G.allSatisfy({ $0.allSatisfy(\.isFinite) }) else {
      throw Failure(Status.nonfinite, "the inner products of the task gradients overflow")
    }
    return G
  }
}

extension Tasks {
  static let preference = Parameter.list("pref", nil, "preference of each task, 1/tasks each when none", optional: true)

  /// The preferences of a method, or 1/tasks each.
  func preferences(_ h: Hyper) -> [Double] {
    let given = h.list("pref")
    return given.count == count ? given : [Double](repeating: 1 / Double(count), count: count)
  }
  /// Refuses a list that has not one number for each task, or one that is negative.
  static func check(_ method: String, _ name: String = "pref") -> @Sendable (Hyper) throws(Failure) -> Void {
    { (h) throws(Failure) in
      let list = h.list(name), m = h.integer("tasks")
      guard list.isEmpty || list.count == m else {
        throw Failure(
          Status.range, "\(method): `\(name)` must have one number for each of the \(m) tasks, got \(list.count)")
      }
      guard list.allSatisfy({ $0 >= 0 && $0.isFinite }) else {
        throw Failure(Status.range, "\(method): `\(name)` must not be negative")
      }
    }
  }
}
