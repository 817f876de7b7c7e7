import Glibc
import ThalwegCore

/// Nonlinear conjugate gradients, with a strong Wolfe search in every step.
///
///     d = −g at first, every `restart` steps, and where g·d ≥ 0;  else d ← −g + β·d
///     fr β = g·g/g₀·g₀;  pr_plus max(0, g·y/g₀·g₀);  hs_plus max(0, g·y/d·y);  dy g·g/d·y;  y = g − g₀, β = 0 for d·y
///     = 0 the search starts at min(1, 1/‖g‖₁), later at t₀·(g₀·d₀)/(g·d);   θ ← θ + t·d
///
/// State    the gradient and the direction of the last step; t, g·d, the steps since the restart. Within a step five
///          vectors. `refused`: searches that found nothing lower, where nothing moves; `uphill`: directions that were
///          given up for −g.
/// Errors   TW_ERROR_NONFINITE: the first gradient of a step; any loss: the step is refused and changes nothing. So it
///          is with TW_ERROR_NUMERIC, a move beyond the range of its type.
/// Differs  restart none: the number of parameters; pr_plus and hs_plus are PR+ and HS+. Nothing moves where max|g| ≤
///          gtol.
/// Source   Fletcher, Reeves, 1964; Polak, Ribière, 1969; Hestenes, Stiefel, 1952; Dai, Yuan, 1999.
struct NonlinearCG: ElementRule {
  static let method = Method(
    "nonlinear_cg", .optimizer, "Nonlinear conjugate gradients, with a strong Wolfe search in every step.",
    rule: """
      d <- -g + beta*d;  y = g - g0
      fr: beta = g.g/g0.g0;  pr_plus: max(0, g.y/g0.g0);  hs_plus: max(0, g.y/d.y);  dy: g.g/d.y
      theta <- theta + t*d, t by a strong Wolfe search
      """,
    source: "Fletcher, Reeves, 1964; Polak, Ribiere, 1969; Hestenes, Stiefel, 1952; Dai, Yuan, 1999",
    parameters: [
      .choice("beta", ["pr_plus", "fr", "hs_plus", "dy"], "how directions are made conjugate"),
      .number("c1", 1e-4, .between(0, 1, lowOpen: true, highOpen: true), "sufficient decrease").forAll,
      .number("c2", 0.4, .between(0, 1, lowOpen: true, highOpen: true), "what may be left of the slope").forAll,
      .maybeInteger("restart", .atLeast(1), "steps between restarts; none: the number of parameters"),
      .number("gtol", 1e-8, .atLeast(0), "largest entry of the gradient at which nothing moves").forAll,
    ], requests: "loss_and_gradient, own-step",
    validate: { (h) throws(Failure) in
      let c1: Double = h.c1, c2: Double = h.c2
      guard c1.isNaN || c2.isNaN || c1 < c2 else {
        throw Failure(Status.range, "nonlinear_cg: `c2` must be above `c1`, got \(text(c2)) and \(text(c1))")
      }
      guard !h.is("beta", "fr") || c2.isNaN || c2 < 0.5 else {
        throw Failure(Status.range, "nonlinear_cg: `c2` must be below 0.5 for beta=fr, got \(text(c2))")
      }
    })

  init(_ h: Hyper, _ c: StepContext) { lr = c.lr }
  let lr: Double
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { g.direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - g }

  static func scalars(_ h: Hyper) -> [Scalar] {
    ["since", "t", "slope", "new_since", "new_slope"].map { Scalar($0) } + WolfeSearch.names.map { Scalar($0) }
      + ["refused", "uphill"].map { Scalar($0, tells: true) }
  }
  static let registered = entry(NonlinearCG.self, source: { (h) throws(Failure) in Search(h) })

  struct Search: Source {
    static var method: Method { NonlinearCG.method }
    var handsDirection: Bool { true }
    init(_ h: Hyper) {}
    private let refused = 5 + WolfeSearch.names.count, uphill = 6 + WolfeSearch.names.count
    private let lastGradient = 0, lastDirection = 1, home = 2, gradient = 3, direction = 4, trial = 5
    private func end(_ place: Int) -> Int { 5 + place }
    var slots: [Slot] {
      [
        Slot("last_gradient", "gradient of the last step"), Slot("last_direction", "its direction"),
        .home("home", "the parameters of the step"), .temporary("gradient", "gradient of the step"),
        .temporary("direction", "d"), .temporary("trial", "gradient of a trial"),
        .temporary("end_1", "gradient at an end of the bracket"), .temporary("end_2", "at the other"),
      ]
    }
    var global: Bool { true }
    var opens: Bool { true }
    func opening(_ io: SourceIO) -> Ask? { Ask(.lossAndGradient) }
    var triesPoints: Bool { true }
    func most(_ tensors: Int) -> Int { WolfeSearch.most + 2 }
    var kinds: [Request.Kind] { [.lossAndGradient] }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let h = io.hyper
      if phase == 0 {
        io.change(SaveGradient(), slots: [gradient], parameters: false)
        io.saveHome()
        io.change(SaveParameters(), slots: [home], parameters: false)
        let size = io.sizes(gradient)
        guard size.norm.isFinite else {
          throw Failure(Status.nonfinite, "the gradient has elements that are NaN or infinite")
        }
        if size.largest <= h.gtol {
          io.add(direction, 0, [], [])
          return .update(io.gradient(in: direction))
        }
        let slope = choose(io)
        let t = io.scalar(1) > 0 && io.scalar(2) < 0 ? io.scalar(1) * io.scalar(2) / slope : min(1, 1 / size.one)
        return ask(io, WolfeSearch(t: t, f: io.cost, slope: slope, reach: io.sizes(direction).largest))
      }
      io.change(SaveGradient(), slots: [trial], parameters: false)
      var search = WolfeSearch(values: WolfeSearch.names.indices.map { io.scalar(5 + $0) })
      let slope = io.product(trial, direction)
      switch search.take(io.cost, slope, c1: h.c1, c2: h.c2, tolerance: 1e-9) {
      case .trial(let place):
        if place > 0 { io.copy(trial, into: end(place)) }
        return ask(io, search)
      case .found:
        io.comeHome()
        if search.t == 0 { io.tally(refused) }
        io.copy(gradient, into: lastGradient)
        io.copy(direction, into: lastDirection)
        for (k, x) in [io.scalar(3), search.t, io.scalar(4)].enumerated() { io.setScalar(k, x) }
        io.add(direction, -search.t, [], [])
        guard io.sizes(direction).largest.isFinite else {
          throw Failure(Status.numeric, "nonlinear_cg: the step is beyond the range of its type")
        }
        return .update(io.gradient(in: direction))
      }
    }

    private func ask(_ io: SourceIO, _ search: WolfeSearch) -> Move {
      for (k, x) in search.values.enumerated() { io.setScalar(5 + k, x) }
      io.go(to: home, along: direction, search.t)
      return .ask(Ask(.lossAndGradient))
    }

    /// The direction; returns its slope.
    private func choose(_ io: SourceIO) -> Double {
      let h = io.hyper, since = io.scalar(0), period = h.has("restart") ? h.restart : Double(io.elements)
      if since > 0, since < period {
        let g = io.products(gradient, [gradient, lastGradient, lastDirection])
        let old = io.products(lastGradient, [lastGradient, lastDirection])
        // g·y and d·y, y the turn of the gradient
        let gy = g[0] - g[1], dy = g[2] - old[1]
        let beta =
          h.is("beta", "fr")
          ? g[0] / old[0]
          : h.is("beta", "pr_plus")
            ? max(0, gy / old[0]) : dy == 0 ? 0 : h.is("beta", "hs_plus") ? max(0, gy / dy) : g[0] / dy
        io.copy(gradient, times: -1, into: direction)
        io.add(direction, 1, [beta], [lastDirection])
        io.clearAbsent(direction)
        let slope = io.product(gradient, direction)
        if slope < 0 {
          io.setScalar(3, since + 1)
          io.setScalar(4, slope)
          return slope
        }
        io.tally(uphill)
      }
      io.copy(gradient, times: -1, into: direction)
      io.clearAbsent(direction)
      let slope = -io.product(gradient, gradient)
      io.setScalar(3, 1)
      io.setScalar(4, slope)
      return slope
    }
  }
}
