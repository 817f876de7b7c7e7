import ThalwegCore

/// SGA: a perturbation within ±eps, moved by the sign of the mean gradient of an inner run of sign steps on small
/// batches.
///
///     δ' = δ;   inner_steps times, each on a small batch:  gⱼ at δ',   δ' ← clip(δ' − step·sign(gⱼ), ±eps)
///     ḡ = mean of the gⱼ;   v = ḡ, or with momentum  v ← momentum·v + ḡ/‖ḡ‖₁ (over all tensors)
///     δ ← clip(δ − step·sign(v), ±eps)
///
/// State    v with momentum; while it asks, δ and the sum of the gradients.
/// Differs  descends, as everything here does: a perturbation that raises the loss takes `maximize`. The last inner
///          step is not taken, since no gradient follows. ḡ is not divided when it is 0. Clipping to the range of the
///          data is the host's.
/// Source   Liu et al., 2023, arXiv:2308.06015.
struct SGAUAP: ElementRule {
  static let method = Method(
    "sga_uap", .optimizer,
    "Stochastic gradient aggregation: sign steps of a bounded perturbation along the mean gradient of an inner run.",
    rule: """
      delta' = delta;  inner_steps times: g_j at delta' on a small batch, delta' <- clip(delta' - step*sign(g_j), +-eps)
      v = mean of g_j, with momentum v <- momentum*v + mean/|mean|_1
      delta <- clip(delta - step*sign(v), +-eps)
      """,
    source: "Liu et al., 2023, arXiv:2308.06015",
    parameters: [
      .number("eps", 10.0 / 255, .above(0), "largest entry of the perturbation"),
      .maybe("step", .atLeast(0), "step size; none is eps/10"),
      .rate("momentum", 0, "share of the velocity that is kept, 0 without one").fixed,
      .integer("inner_steps", nil, .atLeast(1), "small batches of an outer step").forAll,
    ],
    slots: [.moment("velocity", "the velocity v")], requests: "gradient, own-step")

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let momentum: Double = h.momentum
    return momentum == 0 ? [] : method.slots
  }
  static func phases(_ h: Hyper) -> Int { slots(h, Shape(dimensions: [1])).count }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("norm")] }

  let eps, length, momentum, divisor: Double
  let plain: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (eps, length, momentum) = (h.eps, SGAUAP.length(h), h.momentum)
    (plain, divisor) = (momentum == 0, c.scalars[0] == 0 ? 1 : c.scalars[0])
  }

  static func length(_ h: Hyper) -> Double {
    let eps: Double = h.eps
    return h.has("step") ? h.step : eps / 10
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, g.magnitude)
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals[0]
  }

  @inline(__always) func moved<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    var v = g
    if !plain {
      v = momentum * s[0] + g / divisor
      s[0] = v
    }
    return (x - length * v.sign).clipped(to: eps)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { x - moved(g, x, s) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { moved(g, x, s) }

  static let registered = entry(SGAUAP.self, source: { (h) throws(Failure) in try InnerRun(h) })

  struct InnerRun: Source {
    static var method: Method { SGAUAP.method }
    let point, sum: Int
    init(_ h: Hyper) throws(Failure) {
      point = SGAUAP.slots(h, Shape(dimensions: [1])).count
      sum = point + 1
    }
    var slots: [Slot] {
      [.home("point", "the perturbation of the step"), .temporary("sum", "the sum of the gradients")]
    }

    func most(_ tensors: Int) -> Int { .max }  // the number of requests is a hyper-parameter that may change
    struct Add: ElementOperation {
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = s[0] + g }
    }
    struct SignStep: ElementOperation {
      let length, eps: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        x = (x - length * g.sign).clipped(to: eps)
      }
    }
    struct Mean: ElementOperation {
      let count: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = s[0] / count }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let h = io.hyper, steps = max(1, h.integer("inner_steps"))
      if phase == 0 {
        io.change(SaveParameters(), slots: [point], parameters: false)
        io.change(SaveGradient(), slots: [sum], parameters: false)
      } else {
        io.change(Add(), slots: [sum], parameters: false)
      }
      if phase < steps - 1 {
        io.change(parameters: true) { SignStep(length: SGAUAP.length($0), eps: $0.eps) }
        return .ask(Ask(.gradient, freshSample: true))
      }
      if phase > 0 { io.comeHome() }
      return .update(io.operation(Mean(count: Double(steps)), slots: [sum]))
    }
  }
}
