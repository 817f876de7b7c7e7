import ThalwegCore

/// SAGA: the gradient of a sample, corrected by the one that a table kept of it and by the mean of the table.
///
///     d = g − table_i + mean;   θ ← θ − lr·d;   mean ← mean + (g − table_i)/n;   table_i ← g
///
/// State    the table, one gradient a sample, and its mean; both start at 0. With `init=full` the first step asks for
///          the gradients of all samples and fills the table, so that d = mean then.
/// Differs  the sample i of a step (from 0) is what was observed as `sample` before it; where nothing was, or NaN,
///          samples come in turn, i = t mod n. Every 10·n steps the mean is taken of the table anew, so that its
///          rounding does not grow. A tensor without a gradient keeps its table.
///          A prox follows as a stage: saga(...) | prox(...) takes prox(θ, lr) after the step.
/// Errors   a sample that is not one of 0, …, n − 1.
/// Source   Defazio, Bach and Lacoste-Julien, 2014, arXiv:1407.0202.
struct SAGA: ElementRule {
  static let method = Method(
    "saga", .optimizer,
    "SAGA: the gradient of a sample, corrected by the one that a table kept of it and by the mean of the table.",
    rule: """
      i = the sample observed before the step (observe "sample"), else t mod n
      d = g - table_i + mean;  theta <- theta - lr*d;  mean <- mean + (g - table_i)/n;  table_i <- g
      """,
    source: "Defazio, Bach, Lacoste-Julien, 2014, arXiv:1407.0202",
    parameters: [
      .lr(nil), .integer("n", nil, .within(1, 4096), "number of samples", live: false),
      .choice(
        "init", ["zero", "full"], "the table at first: zeros, or the gradients of all samples there", live: false),
    ],
    slots: [
      Slot("mean", "the mean of the table"),
      Slot("table_0", "the gradient of the first sample; one more for every other sample"),
    ],
    requests: "task_gradient")

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }

  static func scalars(_ h: Hyper) -> [Scalar] { h.is("init", "full") ? [Scalar("filled")] : [] }

  init(_ h: Hyper, _ c: StepContext) {}

  @inline(__always) func direction<L: Lane>(_ d: L, _ x: L, _ s: Slots<L>) -> L { d }

  static let registered = entry(SAGA.self, source: { (h) throws(Failure) in try Table(h) })

  struct Table: Source {
    static var method: Method { SAGA.method }
    let n: Int
    let mean = 0, direction = 1, table = 2
    let full: Bool
    init(_ h: Hyper) throws(Failure) { (n, full) = (h.integer("n"), h.is("init", "full")) }

    var slots: [Slot] {
      [SAGA.method.slots[0], .temporary("direction", "the corrected gradient")]
        + (0..<n).map { Slot("table_\($0)", "the last gradient of sample \($0)") }
    }
    var single: Bool { !full }
    let observes = ["sample"]

    /// The first step of `init=full` asks for the gradient of every sample.
    private func fills(_ io: SourceIO) -> Bool { full && io.scalar(0) == 0 }
    var opens: Bool { full }
    func most(_ tensors: Int) -> Int { full ? n : 1 }
    var kinds: [Request.Kind] { full ? [.taskGradient] : [] }
    func opening(_ io: SourceIO) -> Ask? { fills(io) ? Ask(.taskGradient, index: 0, count: n) : nil }

    struct Correct: ElementOperation {
      let share: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        let mean = s[0], change = g - s[2]
        s[1] = change + mean
        s[0] = mean + share * change
        s[2] = g
      }
    }
    /// Adds up to fifteen gradients of the table to the mean, from 0 where they are the first.
    struct Gather: ElementOperation {
      let fresh: Bool, count: Int, share: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        var sum = fresh ? L(0) : s[0]
        var k = 1
        while k <= count {
          sum = sum + share * s[k]
          k &+= 1
        }
        s[0] = sum
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if fills(io) {
        io.change(SaveGradient(), slots: [table + phase], parameters: false)
        if phase + 1 < n { return .ask(Ask(.taskGradient, index: phase + 1, count: n)) }
        takeMean(io)
        io.setScalar(0, 1)
        return .update(io.gradient(in: mean))
      }
      let told = io.observed("sample"), i = told.isNaN ? Double(io.step % n) : told
      guard i >= 0, i < Double(n), i == i.rounded() else {
        throw Failure(
          Status.range, "saga: the sample observed is \(text(i)), expected one of 0 to \(n - 1); nothing was changed")
      }
      io.change(Correct(share: 1 / Double(n)), slots: [mean, direction, table + Int(i)], parameters: false)
      if (io.step + 1) % (10 * n) == 0 { takeMean(io) }
      return .update(io.gradient(in: direction))
    }

    private func takeMean(_ io: SourceIO) {
      for first in stride(from: 0, to: n, by: 15) {
        let list = first..<min(first + 15, n), op = Gather(fresh: first == 0, count: list.count, share: 1 / Double(n))
        io.change(op, slots: [mean] + list.map { table + $0 }, parameters: false)
      }
    }
  }
}
