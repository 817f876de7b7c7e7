import ThalwegCore

/// What aggregators share: the gradients of all tasks are asked for one after the other and kept, their inner products
/// taken, and a weighted sum of them handed to the pipeline.
struct Tasks: Sendable {
  static let most = 64
  static let parameter = Parameter.integer(
    "tasks", 2, .within(2, Double(most)), "number of tasks, that is of gradients a step", live: false)
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

  /// The same, and at the end hands on the sum with the weights that `weights` makes of the Gramian.
  func advance(_ phase: Int, _ io: SourceIO, _ weights: ([[Double]]) throws(Failure) -> [Double]) throws(Failure)
    -> Move
  {
    if let next = keep(phase, io) { return .ask(next) }
    let G = gramian(io)
    guard G.allSatisfy({ $0.allSatisfy(\.isFinite) }) else {
      throw Failure(Status.nonfinite, "the inner products of the task gradients overflow")
    }
    return .update(io.combination(try weights(G)))
  }

  /// All inner products: four rows against each other at a time, or two against two.
  private func gramian(_ io: SourceIO) -> [[Double]] {
    var G = [[Double]](repeating: [Double](repeating: 0, count: count), count: count)
    func put(_ i: Int, _ j: Int, _ x: Double) { (G[i][j], G[j][i]) = (x, x) }
    for i in stride(from: 0, to: count, by: 2) {
      let last = i + 1 == count
      let own = io.sum(Products(a: 0, b: 0, c: last ? 0 : 1, d: last ? 0 : 1), slots: last ? [i] : [i, i + 1])
      put(i, i, own[0])
      if last { continue }
      put(i, i + 1, own[1])
      put(i + 1, i + 1, own[3])
      for j in stride(from: i + 2, to: count, by: 2) {
        let end = j + 1 == count
        let s = io.sum(Products(a: 0, b: 2, c: 1, d: end ? 2 : 3), slots: [i, i + 1, j] + (end ? [] : [j + 1]))
        put(i, j, s[0])
        put(i + 1, j, s[2])
        if end { continue }
        put(i, j + 1, s[1])
        put(i + 1, j + 1, s[3])
      }
    }
    return G
  }

  /// Sums a·b, a·d, c·b and c·d of four slots.
  private struct Products: ElementSum {
    let a: Int, b: Int, c: Int, d: Int
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      let (p, q, u, v) = (s[a], s[b], s[c], s[d])
      sums.add(0, p, times: q)
      sums.add(1, p, times: v)
      sums.add(2, u, times: q)
      sums.add(3, u, times: v)
    }
  }
}
