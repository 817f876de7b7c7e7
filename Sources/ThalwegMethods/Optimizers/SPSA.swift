import Glibc
import ThalwegCore

/// SPSA: descent along a difference quotient of two losses at a random sign vector; no gradient is ever asked for.
///
///     δ random signs;   c_k = c/(k + 1)^γ;   y± = loss at θ ± c_k·δ, on the same minibatch
///     g = (y₊ − y₋)/(2·c_k)·δ;   θ ← θ − a_k·g,   a_k = a/(k + 1 + A)^α;   then into the box
///     clip_perturbed:  θ± = θ ± c_k·δ clipped to the box,  g = (y₊ − y₋)/(θ₊ − θ₋), 0 where they meet
///
/// State    the parameters while they are away, δ; the first loss; nothing between steps. k is the optimizer's count of
///          steps.
/// Units    a is a step size, c a length in units of the parameters, A a number of steps.
/// Errors   a loss that is not finite refuses the step and changes nothing.
/// Differs  A is 0 unless given, since the number of steps is not known here: Spall takes a tenth of them. Every group
///          has its own numbers; a group's quotient takes its own c_k. Stages before it see g, so that it may be
///          clipped; `maximize` turns the sign.
/// Source   Spall, 1992, IEEE Transactions on Automatic Control 37(3).
struct SPSA: ElementRule {
  static let method = Method(
    "spsa", .optimizer, "Descent along a difference quotient of two losses at random signs; asks for no gradient.",
    rule: """
      c_k = c/(k + 1)^gamma;  y+, y- = loss at theta + c_k*delta, theta - c_k*delta, delta random signs
      g = (y+ - y-)/(2*c_k) * delta  (clip_perturbed: both points clipped, over their difference)
      theta <- theta - a/(k + 1 + A)^alpha * g, then into the box
      """,
    source: "Spall, 1992, IEEE Transactions on Automatic Control 37(3)",
    parameters: [
      .number("a", 0.1, .above(0), "step size"), .number("c", 0.1, .above(0), "length of the perturbation"),
      .number("A", 0, .atLeast(0), "steps by which the decay of the step size is delayed: a tenth of all is usual"),
      .number("alpha", 0.602, .above(0), "power of the decay of the step size"),
      .number("gamma", 0.101, .above(0), "power of the decay of the perturbation"),
      .maybe("low", .any, "lower bound of the box; none is none"), .maybe("high", .any, "upper bound of the box"),
      .flag("clip_perturbed", false, "the losses are taken inside the box too"),
    ],
    requests: "loss, own-step",
    validate: { (h) throws(Failure) in
      let (low, high) = bounds(h)
      guard low <= high else {
        throw Failure(Status.range, "spsa: `low` must not be above `high`, got \(text(low)) and \(text(high))")
      }
    })

  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("above")] }

  private static func bounds(_ h: Hyper) -> (low: Double, high: Double) {
    (h.has("low") ? h.low : -.infinity, h.has("high") ? h.high : .infinity)
  }

  let rate, low, high: Double

  init(_ h: Hyper, _ c: StepContext) {
    let a: Double = h.a, delay: Double = h.A, alpha: Double = h.alpha
    rate = a / pow(Double(c.step) + 1 + delay, alpha)
    (low, high) = SPSA.bounds(h)
  }

  @inline(__always) private func moved<L: Lane>(_ g: L, _ x: L) -> L { L.min(L.max(x - rate * g, low), high) }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { x - moved(g, x) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { moved(g, x) }

  static let registered = entry(SPSA.self, source: { (h) throws(Failure) in try Differences(h) })

  struct Differences: Source {
    static var method: Method { SPSA.method }
    let point = 0, delta = 1
    init(_ h: Hyper) throws(Failure) {}

    var slots: [Slot] {
      [.home("point", "the parameters of the step"), .temporary("delta", "the random signs, then the quotient")]
    }
    var opens: Bool { true }
    var takesGradients: Bool { false }
    var global: Bool { true }  // a loss is of all tensors
    func most(_ tensors: Int) -> Int { 2 }

    /// θ ± c·δ.
    private struct Points {
      let c, low, high: Double
      let clips: Bool
      init(_ h: Hyper, _ k: Int) {
        let length: Double = h.c, gamma: Double = h.gamma
        c = length / pow(Double(k) + 1, gamma)
        (low, high) = SPSA.bounds(h)
        clips = h.clip_perturbed
      }
      @inline(__always) func above<L: Lane>(_ x: L, _ delta: L) -> L { clipped(x + c * delta) }
      @inline(__always) func below<L: Lane>(_ x: L, _ delta: L) -> L { clipped(x - c * delta) }
      @inline(__always) private func clipped<L: Lane>(_ x: L) -> L { clips ? L.min(L.max(x, low), high) : x }
    }
    private struct Above: ElementOperation {
      let points: Points
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = x
        x = points.above(x, s[1])
      }
    }
    private struct Below: ElementOperation {
      let points: Points
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        x = points.below(s[0], s[1])
      }
    }
    /// Back to the parameters of the step; δ becomes the quotient.
    private struct Quotient: ElementOperation {
      let points: Points, difference: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        x = s[0]
        if points.clips {
          let d = points.above(x, s[1]) - points.below(x, s[1]), zero = L(0)
          s[1] = L.select(L.equal(d, zero), zero, difference / d)
        } else {
          s[1] = difference / (2 * points.c) * s[1]
        }
      }
    }

    func opening(_ io: SourceIO) -> Ask? {
      io.draw(delta, signs: true)
      io.change(parameters: true) { Above(points: Points($0, io.step)) }
      return Ask(.loss)
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase == 0 {
        io.setScalar(0, io.loss)
        io.change(parameters: true) { Below(points: Points($0, io.step)) }
        return .ask(Ask(.loss))
      }
      let difference = (io.maximizes ? -1 : 1) * (io.scalar(0) - io.loss)
      io.change(parameters: true) { Quotient(points: Points($0, io.step), difference: difference) }
      return .update(io.gradient(in: delta))
    }
  }
}
