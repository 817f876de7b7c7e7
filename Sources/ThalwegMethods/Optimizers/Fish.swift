import ThalwegCore

/// Fish: a walk over the domains, one step on each, and a part of the way to its end.
///
///     t = θ;  for each domain d:  t ← t − inner_lr·(gradient of d at t);   θ ← θ + meta_lr·(t − θ)
///     inner=adam:  t ← t − inner_lr·m̂/(√v̂ + 1e-8), the moments (0.9, 0.999) of all rounds
///
/// The host answers for `meta_steps` tasks in an order that it draws anew for each step.
/// State    the parameters while they are away; with Adam its moments, whose steps are those of each tensor.
/// Differs  the authors divide meta_lr by the number of domains; DomainBed takes 0.5 and Adam inside, whose state goes
///          on from round to round. Stages before the rule see θ − t.
/// Source   Shi, Seely, Torr, Siddharth, Hannun, Usunier and Synnaeve, 2021, arXiv:2104.09937.
struct Fish: ElementRule {
  static let method = Method(
    "fish", .optimizer, "Fish: a walk over the domains, one step on each, and a part of the way to its end.",
    rule: """
      t = theta;  for each domain d: t <- t - inner_lr*(gradient of d at t), or a step of Adam
      theta <- theta + meta_lr*(t - theta)
      """,
    source: "Shi, Seely, Torr, Siddharth, Hannun, Usunier, Synnaeve, 2021, arXiv:2104.09937",
    parameters: [
      .number("meta_lr", 0.5, .between(0, 1, lowOpen: true, highOpen: false), "share of the way that is gone"),
      .number("inner_lr", 0.01, .above(0), "step size on each domain"),
      .integer("meta_steps", nil, .within(1, 0x1p20), "domains of a step", live: false),
      .choice("inner", ["sgd", "adam"], "the steps on the domains", live: false),
    ],
    slots: [homeSlot] + Adam.moments, requests: "task_gradient, own-step")
  /// Moments change where a step ends; within it they wait.
  private static let waiting = [
    Slot.temporary("mean", "the first moment of this step"), Slot.temporary("square", "the second moment of this step"),
  ]
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    h.is("inner", "adam") ? method.slots + waiting : [homeSlot]
  }
  let share: Double
  init(_ h: Hyper, _ c: StepContext) { share = h.meta_lr }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { share * g }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - share * g }

  static let registered = entry(Fish.self, source: { (h) throws(Failure) in Walk(h) })

  struct Walk: Source {
    static var method: Method { Fish.method }
    var handsDirection: Bool { true }
    private let domains: Int, adam: Bool
    init(_ h: Hyper) { (domains, adam) = (h.integer("meta_steps"), h.is("inner", "adam")) }
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
    /// The point, the moments before the step, and those of the step.
    private struct AdamStep: ElementOperation {
      let lr: Double, first: Bool, r1: Double, r2: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        if first {
          s[0] = x
          s[3] = s[1]
          s[4] = s[2]
        }
        let m = 0.9 * s[3] + 0.1 * g, v = 0.999 * s[4] + 0.001 * (g * g)
        s[3] = m
        s[4] = v
        x = x - lr * ((r1 * m) / ((r2 * v).squareRoot() + 1e-8))
      }
    }
    private struct Settle: ElementOperation {
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = s[2]
        s[1] = s[3]
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
      if adam {
        io.change(
          slots: [0, 1, 2, 3, 4], parameters: true,
          each: { tensor in
            let t = io.steps(of: tensor) * domains + phase + 1
            return AdamStep(
              lr: io.hyper(of: tensor).inner_lr, first: phase == 0, r1: 1 / (1 - power(0.9, t)),
              r2: 1 / (1 - power(0.999, t)))
          })
      } else {
        io.change(slots: [0], parameters: true) { Step(lr: $0.inner_lr, first: phase == 0) }
      }
      if phase + 1 < domains { return .ask(Ask(.taskGradient, index: phase + 1, count: domains)) }
      if adam { io.change(Settle(), slots: [1, 2, 3, 4], parameters: false) }
      io.change(Way(), slots: [0], parameters: true)
      return .update(io.gradient(in: 0))
    }
  }
}
