import ThalwegCore

/// AND-mask: the mean of the task gradients, where their signs agree.
///
///     m = (|mean_i sign(g_i)| ≥ τ);   g = m·mean_i g_i/(1e-10 + share of ones in m),  the share tensor by tensor
///
/// sign(0) = 0. A tensor without agreement has no gradient. The tasks are the domains.
/// State    the sums of the gradients and of their signs while it asks.
/// Differs  nothing from DomainBed's ANDMask.
/// Source   Parascandolo, Neitz, Orvieto, Gresele and Schölkopf, 2020, arXiv:2009.00329.
struct ANDMask: Source {
  static let method = Method(
    "and_mask", .aggregator, "The mean of the task gradients, where their signs agree.",
    rule: """
      m = (|mean_i sign(g_i)| >= tau)
      g = m*mean_i g_i/(1e-10 + share of ones in m), the share tensor by tensor
      """,
    source: "Parascandolo, Neitz, Orvieto, Gresele, Schoelkopf, 2020, arXiv:2009.00329",
    parameters: [Tasks.parameter, .number("tau", 1, .within(0, 1), "agreement that an entry needs")],
    slots: [
      .temporary("total", "the sum of the gradients, then the gradient"),
      .temporary("signs", "the sum of their signs, then the mask"),
    ], requests: "task_gradient", needsFinite: true)

  let tasks: Tasks
  let slots = method.slots
  init(_ h: Hyper) { tasks = Tasks(h) }
  var opens: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { tasks.ask(0) }
  func most(_ tensors: Int) -> Int { tasks.count }
  var kinds: [Request.Kind] { [.taskGradient] }

  private struct Add: ElementOperation {
    let first: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = first ? g : s[0] + g
      s[1] = first ? g.sign : s[1] + g.sign
    }
  }
  private struct Mask: ElementOperation {
    let least: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[1] = L.select(L.less(s[1].magnitude, L(least)), L(-1), L(1))
    }
  }
  /// How many agree, and how many there are.
  private struct Ones: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, L.max(s[0], 0))
      sums.add(1, s[0].magnitude)
    }
  }
  private struct Keep: ElementOperation {
    let factor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = factor * (L.max(s[1], 0) * s[0])
    }
  }

  /// The least sum of signs with s/m ≥ τ.
  private func least(_ m: Double, _ tau: Double) -> Double {
    stride(from: 0, to: m, by: 1).first { $0 / m >= tau } ?? m
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    io.change(Add(first: phase == 0), parameters: false)
    if phase + 1 < tasks.count { return .ask(tasks.ask(phase + 1)) }
    let m = Double(tasks.count)
    // the sum of the signs is a whole number: the comparison is exact in every type
    io.change(parameters: false) { h in Mask(least: least(m, h.tau)) }
    let counts = io.sums(Ones(), slots: [1])
    io.change(
      parameters: false,
      each: { i in
        let share = counts[i][1] > 0 ? counts[i][0] / counts[i][1] : 0
        return Keep(factor: 1 / (m * (1e-10 + share)))
      })
    return .update(io.gradient(in: 0))
  }
}
