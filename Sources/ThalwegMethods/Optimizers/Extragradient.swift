import ThalwegCore

/// Extragradient: a step is taken from where the parameters are, along the gradient at the end of a trial step.
///
///     look = P(θ − lr·F(θ));   θ ← θ − lr·F(look),   both on the same minibatch;   P projects onto the domain
///
/// F is the operator of a variational inequality or min-max problem; maximising players enter with the sign turned.
/// State    the parameters while they are away; nothing between steps.
/// Differs  `domain` projects the look; `| project(...)` behind the rule projects the step, as the method wants both.
///          Stages before the rule see F(look) alone.
/// Source   Korpelevich, 1976.
struct Extragradient: ElementRule {
  static let method = Method(
    "extragradient", .optimizer,
    "Extragradient: a step from where the parameters are, along the gradient at the end of a trial step.",
    rule: "look = P(theta - lr*F(theta));  theta <- theta - lr*F(look), P the projection onto the domain",
    source: "Korpelevich, 1976", parameters: [.lr(1e-2), domain],
    slots: [homeSlot], requests: "gradient")
  private static let domain: Parameter = {
    var p = Parameter.object("domain", .constraint, "a set that the look is projected onto, as l2_ball(1)")
    (p.standard, p.optional) = (Value.none, true)
    return p
  }()
  private static let look = Slot.temporary("look", "the end of the trial step")
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { method.slots + (h.held("domain") == nil ? [] : [look]) }

  init(_ h: Hyper, _ c: StepContext) {}
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { g }

  static let registered = entry(Extragradient.self, source: { (h) throws(Failure) in try Looking(h) })

  struct Looking: Source {
    static var method: Method { Extragradient.method }
    let point = 0, look = 1
    let domain: HeldSet?
    init(_ h: Hyper) throws(Failure) {
      domain = try h.held("domain").map { (s) throws(Failure) in try HeldSet(s) }
    }
    func most(_ tensors: Int) -> Int { 2 }

    private struct Trial: ElementOperation {
      let lr: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = x - lr * g }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase > 0 {
        io.comeHome()
        return .update(nil)
      }
      if let domain {
        io.change(slots: [look], parameters: false) { Trial(lr: $0.lr) }
        try io.project(look, domain)
        io.change(StepBack(), slots: [point, look], parameters: true)
      } else {
        io.change(slots: [point], parameters: true) { Ascend(scale: -$0.lr) }
      }
      return .ask(Ask(.gradient))
    }
  }
}

/// Optimistic gradient descent-ascent, by the names of the saddle-point literature.
///
///     θ ← θ − lr·((1 + k)·F − k·F_prev);   at the first step F_prev = F
///
/// State    as optimistic_sgd, which it is with alpha = 1 and beta = k.
/// Differs  nothing from optax.optimistic_gradient_descent(alpha=1, beta=k).
/// Source   Popov, 1980; Daskalakis, Ilyas, Syrgkanis and Zeng, 2017, arXiv:1711.00141.
struct OptimisticGDA: ElementRule {
  static let method = Method(
    "optimistic_gda", .optimizer, "Optimistic gradient descent-ascent: the change of the operator is added k times.",
    rule: "theta <- theta - lr*((1 + k)*F - k*F_prev);  F_prev <- F, at first F_prev = F",
    source: "Popov, 1980; Daskalakis, Ilyas, Syrgkanis, Zeng, 2017, arXiv:1711.00141",
    parameters: [.lr(1e-2), .number("k", 1, .atLeast(0), "weight of the change of the operator")],
    slots: OptimisticSGD.method.slots)

  private let rule: OptimisticSGD
  init(_ h: Hyper, _ c: StepContext) { rule = OptimisticSGD(alpha: 1, beta: h.k, c) }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { rule.direction(g, x, s) }
}
