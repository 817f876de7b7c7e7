import ThalwegCore

/// SPIDER: normalised steps along an estimate that follows the gradient by differences on small batches, and starts
/// again on large ones.
///
///     t mod period = 0 (t from 0):     v ← the gradient of a large batch
///     otherwise, on one small batch:   v ← v + g(θₜ) − g(θₜ₋₁)
///     θ ← θ − lr·v/‖v‖, or lr·v without `normalize` or with `boost` (SpiderBoost);   ‖·‖ over all tensors
///
/// State    v, θₜ₋₁; while it asks, the gradient and the parameters of the step.
/// Differs  normalised unless `boost`, as in the paper of the name; one of its two cards has SpiderBoost as default. No
///          move when v = 0. A tensor without a gradient keeps its v until the next large batch, and stays where it is
///          while the others step back. g(θₜ) and g(θₜ₋₁) are the host's; transforms before the rule see v.
/// Source   Fang, Li, Lin and Zhang, 2018, arXiv:1807.01695.
struct SPIDER: ElementRule {
  static let method = Method(
    "spider", .optimizer, "SPIDER: normalised steps along an estimate that follows the gradient by differences.",
    rule: """
      t mod period = 0 (t from 0): v <- the gradient of a large batch
      otherwise, both on one small batch: v <- v + g(theta_t) - g(theta_{t-1})
      theta <- theta - lr*v/|v|, or lr*v without normalize or with boost
      """,
    source: "Fang, Li, Lin, Zhang, 2018, arXiv:1807.01695",
    parameters: [
      .lr(nil), .integer("period", 10, .atLeast(1), "steps from one large batch to the next").forAll,
      .flag("normalize", true, "divide by the norm of v", live: false),
      .flag("boost", false, "the whole step lr*v (SpiderBoost), whatever normalize says", live: false),
    ],
    slots: [
      Slot("estimate", "the estimate v of the gradient"),
      Slot("last", "the parameters before the last step", start: .parameters),
    ],
    requests: "previous_gradient")

  private static func divides(_ h: Hyper) -> Bool { h.normalize && !h.boost }
  static func phases(_ h: Hyper) -> Int { divides(h) ? 1 : 0 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("norm")] }

  let divisor: Double

  init(_ h: Hyper, _ c: StepContext) { divisor = SPIDER.divides(h) && c.scalars[0] != 0 ? c.scalars[0] : 1 }

  @inline(__always) func squares(_ phase: Int) -> Bool { true }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }

  @inline(__always) func direction<L: Lane>(_ v: L, _ x: L, _ s: Slots<L>) -> L { v / divisor }

  static let registered = entry(SPIDER.self, source: { (h) throws(Failure) in Differences(h) })

  struct Differences: Source {
    static var method: Method { SPIDER.method }
    let estimate = 0, last = 1, gradient = 2, point = 3
    private let period: String
    /// `period`: what the method calls the steps from one large batch to the next.
    init(_ h: Hyper, period: String) { self.period = period }
    init(_ h: Hyper) { self.init(h, period: "period") }
    var slots: [Slot] {
      [.temporary("gradient", "the gradient of the step"), .home("point", "the parameters of the step")]
    }

    func most(_ tensors: Int) -> Int { 2 }
    var kinds: [Request.Kind] { [.previousGradient] }
    struct Follow: ElementOperation {
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = s[0] + (s[1] - g)
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase > 0 {
        io.change(Follow(), slots: [estimate, gradient], parameters: false)
        io.comeHome()
      } else if io.step % max(1, io.hyper.integer(period)) == 0 {
        io.change(SaveGradient(), slots: [estimate], parameters: false)
      } else {
        io.change(SaveGradient(), slots: [gradient], parameters: false)
        io.change(StepBack(), slots: [point, last], parameters: true)
        return .ask(Ask(.previousGradient))
      }
      io.change(SaveParameters(), slots: [last], parameters: false)
      io.keepAbsent(last)
      return .update(io.gradient(in: estimate))
    }
  }
}
