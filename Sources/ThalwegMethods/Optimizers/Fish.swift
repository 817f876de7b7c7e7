import ThalwegCore

/// Fish: a walk over the domains, one step on each, and a part of the way to its end.
///
///     t = θ;  for each domain d:  t ← t − inner_lr·(gradient of d at t);   θ ← θ + meta_lr·(t − θ)
///
/// The host answers for `domains` tasks in an order that it draws anew for each step.
/// State    the parameters while they are away; nothing between steps.
/// Differs  the inner optimizer is plain descent. The authors divide meta_lr by the number of domains, DomainBed takes
///          0.5 and Adam inside. Stages before the rule see θ − t.
/// Source   Shi, Seely, Torr, Siddharth, Hannun, Usunier and Synnaeve, 2021, arXiv:2104.09937.
struct Fish: ElementRule {
  static let method = Method(
    "fish", .optimizer, "Fish: a walk over the domains, one step on each, and a part of the way to its end.",
    rule: """
      t = theta;  for each domain d: t <- t - inner_lr*(gradient of d at t)
      theta <- theta + meta_lr*(t - theta)
      """,
    source: "Shi, Seely, Torr, Siddharth, Hannun, Usunier, Synnaeve, 2021, arXiv:2104.09937",
    parameters: [
      .number("meta_lr", 0.5, .between(0, 1, lowOpen: true, highOpen: false), "share of the way that is gone"),
      .number("inner_lr", 0.01, .above(0), "step size on each domain"),
      .integer("domains", nil, .within(1, 0x1p20), "domains of a step", live: false),
    ],
    slots: [homeSlot], requests: "task_gradient, own-step")

  let share: Double
  init(_ h: Hyper, _ c: StepContext) { share = h.meta_lr }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { share * g }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - share * g }

  static let registered = entry(Fish.self, source: { (h) throws(Failure) in Walk(h) })

  struct Walk: Source {
    static var method: Method { Fish.method }
    private let domains: Int
    init(_ h: Hyper) { domains = h.integer("domains") }
    var opens: Bool { true }
    let kinds = [Request.Kind.taskGradient]
    func most(_ tensors: Int) -> Int { domains }
    func opening(_ io: SourceIO) -> Ask? { Ask(.taskGradient, index: 0, count: domains) }

    private struct Step: ElementOperation {
      let lr: Double, first: Bool
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        if first { s[0] = x }
        x = x - lr * g
      }
    }
    private struct Way: ElementOperation {
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        let home = s[0]
        s[0] = home - x
        x = home
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      io.change(slots: [0], parameters: true) { Step(lr: $0.inner_lr, first: phase == 0) }
      if phase + 1 < domains { return .ask(Ask(.taskGradient, index: phase + 1, count: domains)) }
      io.change(Way(), slots: [0], parameters: true)
      return .update(io.gradient(in: 0))
    }
  }
}
