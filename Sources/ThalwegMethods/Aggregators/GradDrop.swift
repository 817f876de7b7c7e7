import ThalwegCore

/// GradDrop: of the task gradients' entries one sign is kept, drawn with the weight that it has among them.
///
///     P = ½·(1 + Σ g_i/Σ |g_i|), ½ where all are 0;   U uniform;   M_i = (P > U and g_i > 0) or (P < U and g_i < 0)
///     g = Σ (leak_i + (1 − leak_i)·M_i)·g_i
///
/// State    the gradient of every task while it asks, two sums of them, and the draws.
/// Differs  nothing from torchjd.GradDrop but for the generator, and that an entry that is 0 in all gradients stays 0.
///          U is the normal distribution function, good to 2e-7, of the standard normal number drawn for the entry.
/// Source   Chen, Ngiam, Huang, Luong, Kretzschmar, Chai and Anguelov, 2020, arXiv:2010.06808.
struct GradDrop: Source {
  static let method = Method(
    "graddrop", .aggregator, "Of the task gradients' entries one sign is kept, drawn with its weight among them.",
    rule: """
      P = (1 + sum g_i/sum |g_i|)/2, U uniform;  M_i = (P > U and g_i > 0) or (P < U and g_i < 0)
      g = sum_i (leak_i + (1 - leak_i)*M_i) * g_i
      """,
    source: "Chen, Ngiam, Huang, Luong, Kretzschmar, Chai, Anguelov, 2020, arXiv:2010.06808",
    parameters: [
      Tasks.parameter, .list("leak", nil, "share of each task that is never dropped, 0 when none", optional: true),
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true,
    validate: { (h) throws(Failure) in
      try Tasks.check("graddrop", "leak")(h)
      guard h.list("leak").allSatisfy({ $0 <= 1 }) else {
        throw Failure(Status.range, "graddrop: `leak` must be at most 1")
      }
    })

  let tasks: Tasks
  let leak: [Double]
  let total, size, drawn: Int
  init(_ h: Hyper) {
    tasks = Tasks(h)
    let given = h.list("leak")
    leak = given.count == tasks.count ? given : [Double](repeating: 0, count: tasks.count)
    (total, size, drawn) = (tasks.count, tasks.count + 1, tasks.count + 2)
  }
  var slots: [Slot] {
    tasks.slots + [
      .temporary("total", "the sum of the gradients"), .temporary("size", "the sum of their magnitudes"),
      .temporary("drawn", "the uniform numbers, then the gradient"),
    ]
  }
  var opens: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { tasks.ask(0) }
  func most(_ tensors: Int) -> Int { tasks.count }
  var kinds: [Request.Kind] { [.taskGradient] }

  private struct Keep: ElementOperation {
    let first: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = g
      s[1] = first ? g : s[1] + g
      s[2] = first ? g.magnitude : s[2] + g.magnitude
    }
  }
  /// P − U into the first slot, 0 into the second.
  private struct Chance: ElementOperation {
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let zero = L(0), size = s[1]
      let share = L.select(L.equal(size, zero), zero, s[0] / size)
      s[0] = (0.5 + 0.5 * share) - normalDistribution(s[2])
      s[2] = zero
    }
  }
  private struct Add: ElementOperation {
    let leak: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let keep = L.less(L(0), s[1] * s[0])  // the gradient has the sign that is kept
      s[2] = s[2] + L.select(keep, L(1), L(leak)) * s[0]
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    io.change(Keep(first: phase == 0), slots: [phase, total, size], parameters: false)
    if phase + 1 < tasks.count { return .ask(tasks.ask(phase + 1)) }
    io.draw(drawn, signs: false)
    io.change(Chance(), slots: [total, size, drawn], parameters: false)
    for k in 0..<tasks.count { io.change(Add(leak: leak[k]), slots: [k, total, drawn], parameters: false) }
    return .update(io.gradient(in: drawn))
  }
}

/// Φ(x), to 2e-7 (Abramowitz and Stegun, 7.1.26).
@inline(__always) func normalDistribution<L: Lane>(_ x: L) -> L {
  let z = x.magnitude * 0.5.squareRoot(), t = 1 / (1 + 0.3275911 * z)
  let p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + 1.061405429 * t))))
  let tail = 0.5 * p * L.exp(-(z * z))
  return L.select(L.less(x, L(0)), tail, 1 - tail)
}
