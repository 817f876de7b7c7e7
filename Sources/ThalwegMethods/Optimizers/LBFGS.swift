import Glibc
import ThalwegCore

/// L-BFGS: the inverse Hessian of the last pairs of moves and turns of the gradient, over all tensors as one vector.
///
///     s = t·d, y = g − g⁻ of every iteration; kept where y·s > 1e-10;  γ = y·s/y·y of the last one kept
///     d = −H·g by two loops over the pairs, H = γ·I before the oldest;  d = −g at the very first
///     t = lr·min(1, 1/‖g‖₁) at the very first, else lr;   strong_wolfe: t is where the search starts
///     x ← x + t·d, up to max_iter times a step
///
/// A step ends where max|g| ≤ tolerance_grad; g·d > −tolerance_change; max|t·d| ≤ tolerance_change; the loss changes by
/// less than tolerance_change; or max_eval evaluations were made (none: ⌊5·max_iter/4⌋; a search is not broken off).
/// Without a search the last iteration of a step is not evaluated: the next step begins with a gradient there.
///
/// State    2·history_size vectors (these alone are narrowed by `state_dtype`, to 16 bits), the last gradient and
///          direction; within a step the pairs of its iterations (up to 2·min(max_iter, history_size + 1)), and seven
///          vectors. Numbers: iterations, pairs, γ, t. `refused`: searches that found nothing lower, where nothing
///          moves; `skipped_pairs`: those with y·s ≤ 1e-10, after negative curvature.
/// Errors   TW_ERROR_NONFINITE: the first gradient of a step; any loss: the step is refused and changes nothing. So it
///          is with TW_ERROR_NUMERIC, a move beyond the range of its type.
/// Differs  nothing from torch.optim.LBFGS but for the order of the sums; newer releases of it end a search with the
///          evaluations of the step, here a search has 25 of its own. One `lr` for all groups.
/// Source   Nocedal, 1980; Liu, Nocedal, 1989; the search: Schmidt, minFunc, 2005.
struct LBFGS: ElementRule {
  static let method = Method(
    "lbfgs", .optimizer, "Limited-memory BFGS: two loops over the last moves and turns of the gradient.",
    rule: """
      s = t*d, y = g - old g, kept where y.s > 1e-10;  gamma = y.s/y.y;  d = -H g by two loops over the pairs
      t = lr*min(1, 1/|g|_1) at the very first, else lr, or a strong Wolfe search from there;  x <- x + t*d
      """,
    source: "Nocedal, 1980; Liu, Nocedal, 1989; Schmidt, minFunc, 2005",
    parameters: [
      .lr(1).forAll, .integer("max_iter", 20, .within(1, 10_000), "iterations of a step", live: false),
      .maybeInteger("max_eval", .atLeast(1), "evaluations of a step; none: 5/4 of max_iter", live: false),
      .number("tolerance_grad", 1e-7, .atLeast(0), "largest entry of the gradient that ends a step").forAll,
      .number("tolerance_change", 1e-9, .atLeast(0), "change of step, slope and loss that ends a step").forAll,
      .integer("history_size", 100, .within(1, 10_000), "pairs kept", live: false),
      .choice("line_search", ["none", "strong_wolfe"], "of every iteration", live: false),
    ], requests: "loss_and_gradient, own-step")

  init(_ h: Hyper, _ c: StepContext) { lr = c.lr }
  let lr: Double
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { g.direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - g }

  static func scalars(_ h: Hyper) -> [Scalar] {
    ["iterations", "pairs", "head", "gamma", "t"].map { Scalar($0) } + Iterations.names.map { Scalar($0) }
      + WolfeSearch.names.map { Scalar($0) } + ["refused", "skipped_pairs"].map { Scalar($0, tells: true) }
  }
  static let registered = entry(LBFGS.self, source: { (h) throws(Failure) in Iterations(h) })

  struct Iterations: Source {
    static var method: Method { LBFGS.method }
    var handsDirection: Bool { true }
    let m: Int, pending: Int, evaluations: Int, limit: Int, searches: Bool
    init(_ h: Hyper) {
      (m, limit, searches) = (h.integer("history_size"), h.integer("max_iter"), h.is("line_search", "strong_wolfe"))
      pending = min(limit, m + 1)  // the oldest of m must not be overwritten by a pair that is not kept
      evaluations = h.has("max_eval") ? h.integer("max_eval") : max(1, limit * 5 / 4)
    }

    // lasting: the pairs in a ring, the gradient and the direction of the last iteration; then those of this step
    private var lastGradient: Int { 2 * m }
    private var lastDirection: Int { 2 * m + 1 }
    private func move(_ k: Int) -> Int { 2 * m + 2 + 2 * k }
    private func turn(_ k: Int) -> Int { 2 * m + 3 + 2 * k }
    private var first: Int { 2 * m + 2 + 2 * pending }
    private var home: Int { first }
    private var point: Int { first + 1 }
    private var gradient: Int { first + 2 }
    private var previous: Int { first + 3 }
    private var direction: Int { first + 4 }
    /// Gradients of the ends of a bracket.
    private func end(_ place: Int) -> Int { first + 4 + place }

    var slots: [Slot] {
      (0..<m).map { .apart("s_\($0)", "move of a pair") } + (0..<m).map { .apart("y_\($0)", "its turn") } + [
        Slot("last_gradient", "gradient of the last iteration"), Slot("last_direction", "its direction"),
      ]
        + (0..<pending).flatMap {
          [Slot.temporary("new_s_\($0)", "move of a new pair"), .temporary("new_y_\($0)", "its turn")]
        }
        + [
          .home("home", "the parameters of the step"), .temporary("point", "where the iteration began"),
          .temporary("gradient", "gradient there"), .temporary("previous", "the gradient before"),
          .temporary("direction", "d"), .temporary("end_1", "gradient at an end of the bracket"),
          .temporary("end_2", "at the other"),
        ]
    }
    var global: Bool { true }
    var opens: Bool { true }
    func opening(_ io: SourceIO) -> Ask? { Ask(.lossAndGradient) }
    var triesPoints: Bool { searches }
    func most(_ tensors: Int) -> Int { evaluations + WolfeSearch.most + 2 }
    var kinds: [Request.Kind] { [.lossAndGradient] }

    // numbers: five that last, those of the step, those of the search
    static let names = [
      "step_iterations", "step_gamma", "step_t", "new_pairs", "inner", "evaluations", "f", "f_before", "slope",
    ]
    private func number(_ io: SourceIO, _ name: String) -> Double {
      io.scalar(5 + (Self.names.firstIndex(of: name) ?? 0))
    }
    private func set(_ io: SourceIO, _ name: String, _ x: Double) {
      io.setScalar(5 + (Self.names.firstIndex(of: name) ?? 0), x)
    }
    private var searchAt: Int { 5 + Self.names.count }
    private var refused: Int { searchAt + WolfeSearch.names.count }
    private var skippedPairs: Int { refused + 1 }
    private func search(_ io: SourceIO) -> WolfeSearch {
      WolfeSearch(values: WolfeSearch.names.indices.map { io.scalar(searchAt + $0) })
    }
    private func keep(_ search: WolfeSearch, _ io: SourceIO) {
      for (k, x) in search.values.enumerated() { io.setScalar(searchAt + k, x) }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase == 0 {
        for (name, k) in [("step_iterations", 0), ("step_gamma", 3), ("step_t", 4)] { set(io, name, io.scalar(k)) }
        for name in ["new_pairs", "inner"] { set(io, name, 0) }
        set(io, "evaluations", 1)
        set(io, "f", io.cost)
        io.change(SaveGradient(), slots: [gradient], parameters: false)
        io.saveHome()
        io.change(SaveParameters(), slots: [home], parameters: false)
        io.copy(home, into: point)
        io.copy(lastGradient, into: previous)
        io.copy(lastDirection, into: direction)
        let size = io.sizes(gradient)
        guard size.norm.isFinite else {
          throw Failure(Status.nonfinite, "the gradient has elements that are NaN or infinite")
        }
        if size.largest <= io.hyper.tolerance_grad || io.hyper.lr == 0 { return try finish(io, moved: false) }
        return try iterate(io)
      }
      set(io, "evaluations", number(io, "evaluations") + 1)
      guard searches else {
        set(io, "f", io.cost)
        io.change(SaveGradient(), slots: [gradient], parameters: false)
        return try after(io)
      }
      var search = search(io)
      // the gradient of the trial, as a slot
      io.change(SaveGradient(), slots: [previous], parameters: false)
      let slope = io.product(previous, direction)
      let next = search.take(io.cost, slope, c1: 1e-4, c2: 0.9, tolerance: io.hyper.tolerance_change)
      keep(search, io)
      switch next {
      case .trial(let place):
        if place > 0 { io.copy(previous, into: end(place)) }
        io.go(to: point, along: direction, search.t)
        return .ask(Ask(.lossAndGradient))
      case .found(let f, let place):
        if search.t == 0 { io.tally(refused) }
        set(io, "f", f)
        set(io, "step_t", search.t)
        // `previous` is what the next pair begins with; the start of the search is still in `gradient`
        let here = place == nil ? previous : place == 0 ? gradient : end(place ?? 0)
        io.copy(here, into: end(1))
        io.copy(gradient, into: previous)
        io.copy(end(1), into: gradient)
        io.add(point, 1, [search.t], [direction])
        return try after(io)
      }
    }

    /// The pairs, oldest first: (move, turn).
    private func pairs(_ io: SourceIO) -> [(s: Int, y: Int)] {
      let new = io.counter(5 + 3, most: limit), stored = min(new, m)
      let kept = min(io.counter(1, most: m), m - stored), head = io.counter(2, most: m - 1)
      let old = (0..<kept).map { k in
        let place = (head - kept + k + m) % m
        return (s: place, y: m + place)
      }
      return old + ((new - stored)..<new).map { (s: move($0 % pending), y: turn($0 % pending)) }
    }

    private func iterate(_ io: SourceIO) throws(Failure) -> Move {
      let count = number(io, "step_iterations") + 1, h = io.hyper
      set(io, "step_iterations", count)
      set(io, "inner", number(io, "inner") + 1)
      if count == 1 {
        io.copy(gradient, times: -1, into: direction)
        io.clearAbsent(direction)
        set(io, "step_gamma", 1)
      } else {
        let new = io.counter(5 + 3, most: limit), place = new % pending
        // the place of a new pair is free, or that of the oldest one
        io.copy(gradient, into: turn(place))
        io.add(turn(place), 1, [-1], [previous])
        io.copy(direction, times: number(io, "step_t"), into: move(place))
        let ys = io.product(turn(place), move(place))
        if ys > 1e-10 {
          for slot in [turn(place), move(place)] { io.clearAbsent(slot) }
          set(io, "new_pairs", Double(new + 1))
          set(io, "step_gamma", ys / io.product(turn(place), turn(place)))
        } else if number(io, "step_t") != 0 {
          io.tally(skippedPairs)
        }
        twoLoops(io)
      }
      io.copy(gradient, into: previous)
      set(io, "f_before", number(io, "f"))
      let size = io.sizes(gradient)
      let t = count == 1 ? min(1, 1 / size.one) * h.lr : h.lr
      set(io, "step_t", t)
      let slope = io.product(gradient, direction)
      if !(slope <= -h.tolerance_change) { return try finish(io, moved: true) }
      if searches {
        keep(WolfeSearch(t: t, f: number(io, "f"), slope: slope, reach: io.sizes(direction).largest), io)
        io.go(to: point, along: direction, t)
        return .ask(Ask(.lossAndGradient))
      }
      io.add(point, 1, [t], [direction])
      if number(io, "inner") >= Double(limit) { return try after(io) }
      io.go(to: point, along: direction, 0)
      return .ask(Ask(.lossAndGradient))
    }

    /// direction ← −H·gradient.
    private func twoLoops(_ io: SourceIO) {
      let all = pairs(io)
      var share = [Double](repeating: 0, count: all.count), inverse = share
      io.copy(gradient, times: -1, into: direction)
      for k in all.indices.reversed() {
        let (s, y) = all[k]
        let p = io.products(s, [direction, y])
        inverse[k] = p[1] > 0 ? 1 / p[1] : 0  // a pair that rounding of 16 bits has turned has no share
        share[k] = p[0] * inverse[k]
        io.add(direction, 1, [-share[k]], [y])
      }
      io.add(direction, number(io, "step_gamma"), [], [])
      for k in all.indices {
        let (s, y) = all[k]
        io.add(direction, 1, [share[k] - io.product(y, direction) * inverse[k]], [s])
      }
      io.clearAbsent(direction)
    }

    /// Behind a move: another iteration, or the end of the step.
    private func after(_ io: SourceIO) throws(Failure) -> Move {
      let h = io.hyper, small: Double = h.tolerance_change
      let ends =
        number(io, "inner") >= Double(limit) || number(io, "evaluations") >= Double(evaluations)
        || io.sizes(gradient).largest <= h.tolerance_grad
        || io.sizes(direction).largest * abs(number(io, "step_t")) <= small
        || abs(number(io, "f") - number(io, "f_before")) < small
      return try ends ? finish(io, moved: true) : iterate(io)
    }

    /// What was learnt lasts; the move of all iterations becomes the step.
    private func finish(_ io: SourceIO, moved: Bool) throws(Failure) -> Move {
      io.comeHome()
      if moved {
        let new = io.counter(5 + 3, most: limit), stored = min(new, m), head = io.counter(2, most: m - 1)
        for k in 0..<stored {
          let from = (new - stored + k) % pending, to = (head + k) % m
          io.copy(move(from), into: to)
          io.copy(turn(from), into: m + to)
          io.clearAbsent(to)
          io.clearAbsent(m + to)
        }
        io.setScalar(1, Double(min(m, io.counter(1, most: m) + stored)))
        io.setScalar(2, Double((head + stored) % m))
        io.setScalar(0, number(io, "step_iterations"))
        io.setScalar(3, number(io, "step_gamma"))
        io.setScalar(4, number(io, "step_t"))
        io.copy(previous, into: lastGradient)
        io.copy(direction, into: lastDirection)
      }
      io.add(point, -1, [1], [home])
      guard io.sizes(point).largest.isFinite else {
        throw Failure(Status.numeric, "lbfgs: the step is beyond the range of its type")
      }
      return .update(io.gradient(in: point))
    }
  }
}
