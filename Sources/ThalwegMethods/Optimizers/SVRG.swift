import ThalwegCore

/// SVRG: the gradient of a minibatch, corrected by that of the same minibatch at a snapshot whose full gradient is
/// known.
///
///     t mod inner = 0 (t from 0):   θ̃ ← θ;   μ ← the gradient over all data;   θ ← θ − lr·μ
///     otherwise, on one minibatch:  θ ← θ − lr·(g(θ) − g(θ̃) + μ);   weight decay adds wd·θ, exactly
///
/// State    θ̃, μ; while it asks, the gradient and the parameters of the step.
/// Differs  the first step of a round asks for the full gradient alone: at the snapshot the two minibatch gradients
///          cancel. The next snapshot is the last iterate. A tensor that has no gradient when the others take a
///          snapshot keeps the one it has. g(θ) and
///          g(θ̃) are the host's; transforms before the rule see the corrected gradient.
/// Source   Johnson and Zhang, 2013.
struct SVRG: ElementRule {
  static let method = Method(
    "svrg", .optimizer, "SVRG: minibatch gradients corrected by those at a snapshot whose full gradient is known.",
    rule: """
      t mod inner = 0 (t from 0): snapshot <- theta;  mu <- the gradient over all data;  theta <- theta - lr*mu
      otherwise, both on one minibatch: theta <- theta - lr*(g(theta) - g(snapshot) + mu)
      """,
    source: "Johnson, Zhang, 2013",
    parameters: [
      .lr(nil), .integer("inner", nil, .atLeast(1), "steps from one snapshot to the next").forAll,
      .weightDecay(0, "coupled weight decay"),
    ],
    slots: [
      Slot("snapshot", "the parameters at the snapshot", start: .parameters),
      Slot("full_gradient", "the gradient mu over all data there"),
    ],
    requests: "gradient")

  static func decay(_ h: Hyper) -> Decay { .coupled }

  init(_ h: Hyper, _ c: StepContext) {}

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { g }

  static let registered = entry(SVRG.self, source: { (h) throws(Failure) in try Corrected(h) })

  struct Corrected: Source {
    static var method: Method { SVRG.method }
    let snapshot = 0, mean = 1, gradient = 2, point = 3
    init(_ h: Hyper) throws(Failure) {}
    var slots: [Slot] {
      [.temporary("gradient", "the gradient of the step"), .home("point", "the parameters of the step")]
    }

    func most(_ tensors: Int) -> Int { 2 }
    struct Correct: ElementOperation {
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        x = (s[0] - x) + s[1]
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase > 0 {
        io.comeHome()
        return .update(io.operation(Correct(), slots: [gradient, mean]))
      }
      if io.step % max(1, io.hyper.integer("inner")) == 0 {
        io.change(SaveParameters(), slots: [snapshot], parameters: false)
        io.change(SaveGradient(), slots: [mean], parameters: false)
        return .update(nil)
      }
      io.change(SaveGradient(), slots: [gradient], parameters: false)
      io.change(StepBack(), slots: [point, snapshot], parameters: true)
      return .ask(Ask(.gradient))
    }
  }
}
