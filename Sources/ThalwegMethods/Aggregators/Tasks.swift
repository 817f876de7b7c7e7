import ThalwegCore

/// What aggregators share: the gradients of all tasks are asked for one after the other and kept, their inner products
/// taken, and a weighted sum of them handed to the pipeline.
struct Tasks: Sendable {
  static let most = 64
  static let parameter = Parameter.integer(
    "tasks", 2, .within(1, Double(most)), "number of tasks, that is of gradients a step", live: false)
  static let slot = Slot.temporary("task_0", "the gradient of the first task; one more for every other task")

  let count: Int
  init(count: Int) { self.count = count }
  init(_ h: Hyper) { count = h.integer("tasks") }
  var slots: [Slot] { (0..<count).map { Slot.temporary("task_\($0)", "the gradient of task \($0)") } }

  func ask(_ k: Int) -> Ask { Ask(.taskGradient, index: k, count: count) }

  /// Keeps the gradient of task `phase`; what to ask for next, if anything.
  func keep(_ phase: Int, _ io: SourceIO) -> Ask? {
    io.change(SaveGradient(), slots: [phase], parameters: false)
    return phase + 1 < count ? ask(phase + 1) : nil
  }

  /// All inner products.
  func gramian(_ io: SourceIO) throws(Failure) -> Gramian {
    let slots = Array(0..<count)
    let pairs = slots.flatMap { i in (i..<count).map { (i, $0) } }
    var G = Gramian(repeating: [Double](repeating: 0, count: count), count: count)
    for ((i, j), x) in zip(pairs, try products(pairs, io)) { (G[i][j], G[j][i]) = (x, x) }
    return G
  }

  /// The inner products of pairs of slots, four in a walk.
  func products(_ pairs: [(Int, Int)], _ io: SourceIO) throws(Failure) -> [Double] {
    var values: [Double] = []
    for first in stride(from: 0, to: pairs.count, by: 4) {
      let four = pairs[first..<min(first + 4, pairs.count)]
      let sums = io.sum(Products(count: four.count), slots: four.flatMap { [$0.0, $0.1] })
      values += four.indices.map { sums[$0 - first] }
    }
    guard values.allSatisfy(\.isFinite) else {
      throw Failure(Status.nonfinite, "the inner products of the task gradients overflow")
    }
    return values
  }

  /// Sums the products of the first two slots, of the next two, and so on.
  private struct Products: ElementSum {
    let count: Int
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, s[0], times: s[1])
      if count > 1 { sums.add(1, s[2], times: s[3]) }
      if count > 2 { sums.add(2, s[4], times: s[5]) }
      if count > 3 { sums.add(3, s[6], times: s[7]) }
    }
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
