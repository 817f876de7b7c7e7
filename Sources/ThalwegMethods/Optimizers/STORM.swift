import Glibc
import ThalwegCore

/// STORM: momentum that is corrected by the change of the gradient on the same minibatch, with its own step size.
///
///     d ← g at first;  else d ← g + (1 − a)·(d − g(θ_prev))
///     S ← S + ‖g‖²;  η = k/(w + S)^(1/3);  θ ← θ − η·d;  a ← min(c·η², 1)
///     `eta` and `a` given: they are fixed
///
/// State    d, θ_prev; S and a; while it asks, the gradient and the parameters of the step. ‖·‖ is over all tensors.
/// Differs  the gradient at θ is asked for first, then that at θ_prev; the order does not matter, both are of one
///          minibatch. A tensor without a gradient keeps its d and stays where it is while the others step back.
/// Source   Cutkosky and Orabona, 2019, arXiv:1905.10018.
struct STORM: ElementRule {
  static let method = Method(
    "storm", .optimizer, "STORM: momentum corrected by the change of the gradient on the same minibatch.",
    rule: """
      d <- g at first, else g + (1 - a)*(d - g(theta_prev)), both on one minibatch
      S <- S + |g|^2;  eta = k/(w + S)^(1/3);  theta <- theta - eta*d;  a <- min(c*eta^2, 1)
      """,
    source: "Cutkosky, Orabona, 2019, arXiv:1905.10018",
    parameters: [
      .number("k", 0.1, .above(0), "size of the steps").forAll,
      .number("w", 0.1, .above(0), "sum of squares to begin with").forAll,
      .number("c", 10, .atLeast(0), "rate of the average over the square of the step size").forAll,
      fixed("eta", .above(0), "a step size that is fixed").forAll,
      fixed("a", .within(0, 1), "a rate of the average that is fixed").forAll,
    ],
    slots: [
      Slot("estimate", "the estimate d of the gradient"),
      Slot("last", "the parameters before the last step", start: .parameters),
    ],
    requests: "previous_gradient, own-step")
  private static func fixed(_ name: String, _ range: ThalwegCore.Range, _ meaning: String) -> Parameter {
    .maybe(name, range, meaning)
  }

  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("squares"), Scalar("rate", 1), Scalar("step_size"), Scalar("square")]
  }
  let eta: Double
  init(_ h: Hyper, _ c: StepContext) { eta = c.scalars[2] }
  @inline(__always) func direction<L: Lane>(_ d: L, _ x: L, _ s: Slots<L>) -> L { eta * d }
  @inline(__always) func step<L: Lane>(_ d: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - eta * d }

  static let registered = entry(STORM.self, source: { (h) throws(Failure) in Corrected(h) })

  struct Corrected: Source {
    static var method: Method { STORM.method }
    let estimate = 0, last = 1, gradient = 2, point = 3
    init(_ h: Hyper) {}
    var slots: [Slot] {
      [.temporary("gradient", "the gradient of the step"), .home("point", "the parameters of the step")]
    }
    func most(_ tensors: Int) -> Int { 2 }
    var kinds: [Request.Kind] { [.previousGradient] }

    private struct Correct: ElementOperation {
      let keep: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = s[1] + keep * (s[0] - g)
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let h = io.hyper
      if phase == 0 {
        io.setScalar(3, io.sum(SquaredNorm())[0])
        if io.step > 0 {
          io.change(SaveGradient(), slots: [gradient], parameters: false)
          io.change(StepBack(), slots: [point, last], parameters: true)
          return .ask(Ask(.previousGradient))
        }
        io.change(SaveGradient(), slots: [estimate], parameters: false)
      } else {
        let a = h.has("a") ? h.a : io.scalar(1)
        io.change(Correct(keep: 1 - a), slots: [estimate, gradient], parameters: false)
        io.comeHome()
      }
      io.change(SaveParameters(), slots: [last], parameters: false)
      io.keepAbsent(last)
      let sum = io.scalar(0) + io.scalar(3), size: Double = h.k, start: Double = h.w, rate: Double = h.c
      let eta = h.has("eta") ? h.eta : size / cbrt(start + sum)
      io.setScalar(0, sum)
      io.setScalar(1, min(rate * eta * eta, 1))
      io.setScalar(2, eta)
      return .update(io.gradient(in: estimate))
    }
  }
}

/// SARAH: the recursive estimate of SPIDER with plain steps, by its own name.
///
///     t mod inner = 0 (t from 0):   v ← the gradient over all data
///     otherwise, on one minibatch:  v ← v + g(θₜ) − g(θₜ₋₁);     θ ← θ − lr·v
///
/// State    as spider.
/// Differs  an inner loop has `inner` steps: the early end of SARAH+ (`stop_ratio`) would have to tell the host that
///          the next gradient is over all data.
/// Source   Nguyen, Liu, Scheinberg and Takac, 2017, arXiv:1703.00102.
struct SARAH: ElementRule {
  static let method = Method(
    "sarah", .optimizer, "SARAH: a recursive estimate of the gradient with plain steps.",
    rule: """
      t mod inner = 0 (t from 0): v <- the gradient over all data
      otherwise, both on one minibatch: v <- v + g(theta_t) - g(theta_{t-1});  theta <- theta - lr*v
      """,
    source: "Nguyen, Liu, Scheinberg, Takac, 2017, arXiv:1703.00102",
    parameters: [
      .lr(0.01), .integer("inner", nil, .atLeast(1), "steps from one full gradient to the next").forAll,
    ],
    slots: SPIDER.method.slots, requests: "previous_gradient")

  init(_ h: Hyper, _ c: StepContext) {}
  @inline(__always) func direction<L: Lane>(_ v: L, _ x: L, _ s: Slots<L>) -> L { v }
  static let registered = entry(
    SARAH.self, source: { (h) throws(Failure) in SPIDER.Differences(h, period: "inner") })
}
