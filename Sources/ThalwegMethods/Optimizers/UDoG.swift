import ThalwegCore

/// U-DoG: DoG's step size on UniXGrad's two gradients a step; the parameters are an average.
///
///     R ← R + r;   α = R/r;   ω = α·r
///     m = gradient at (S + ω·y)/(W + ω);            x = y − α·r/√(ε + Q + M)·m,   M ← max(M, α²·‖m‖²) before
///     g = gradient at θ = (S + ω·x)/(W + ω);        y ← y − α·r/√(ε + Q + M)·g,   Q ← Q + α²·‖g − m‖² before
///     S ← S + ω·x;   W ← W + ω;   r ← max(r, ‖x − θ₀‖, ‖y − θ₀‖), from r_eps_rel·(1 + ‖θ₀‖);   x and y in the domain
///
/// State    θ₀, y, S, m, the parameters before the step; W, r, R, Q, M. Norms run over all tensors.
/// Differs  the terms of the two step sizes are UNVERIFIED in the paper and taken as above, M with the m of this step.
///          With a `domain`, x and y are projected onto it, each tensor by itself; it does not follow that θ lies there
///          where the set is not convex.
/// Errors   as the set: a tensor that it does not take, or that is not finite.
/// Source   Kreisler, Ivgi, Hinder and Carmon, 2024, arXiv:2404.00666.
struct UDoG: ElementRule {
  static let method = Method(
    "u_dog", .optimizer, "U-DoG: DoG's step size on UniXGrad's two gradients a step; the parameters are an average.",
    rule: """
      R <- R + r;  alpha = R/r;  omega = alpha*r
      m = gradient at (S + omega*y)/(W + omega);  M <- max(M, alpha^2*|m|^2);  x = y - omega/sqrt(eps + Q + M)*m
      g = gradient at theta = (S + omega*x)/(W + omega);  Q <- Q + alpha^2*|g - m|^2;  y <- y - omega/sqrt(eps + Q + \
      M)*g
      S <- S + omega*x;  W <- W + omega;  r <- max(r, |x - theta_0|, |y - theta_0|)
      x and y are projected onto the domain, if one is given
      """,
    source: "Kreisler, Ivgi, Hinder, Carmon, 2024, arXiv:2404.00666",
    parameters: [
      .number("r_eps_rel", 1e-6, .above(0), "first distance, relative to 1 + |theta_0|").forAll,
      .eps(1e-12, "first value under the roots", .above(0)).forAll, domain,
    ],
    slots: [
      DoG.origin, Slot("y", "the sequence of long steps", start: .iterate()),
      Slot("sum", "the weighted sum S", start: .iterate(.times(0))),
      Slot.temporary("first_gradient", "the first gradient m of the step"),
      Slot.home("point", "the parameters before the step"),
    ],
    requests: "gradient", refusesStochastic: DoG.roundingIsDistance)
  private static let domain: Parameter = {
    var p = Parameter.object("domain", .constraint, "a set that the sequences stay in, as l2_ball(1)")
    (p.standard, p.optional) = (Value.none, true)
    return p
  }()
  /// With a domain x and the next y wait for their projection.
  private static let projected = [
    Slot.temporary("x", "the point x of the step"), Slot.temporary("next", "the next y"),
  ]
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { method.slots + (h.held("domain") == nil ? [] : projected) }

  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("weight"), Scalar("distance"), Scalar("distances"), Scalar("turns"), Scalar("largest")]
  }

  let inverse: Double

  init(_ h: Hyper, _ c: StepContext) { inverse = 1 / c.scalars[0] }

  /// The parameters are at the average already.
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { x - inverse * s[2] }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { inverse * s[2] }

  static let registered = entry(UDoG.self, source: { (h) throws(Failure) in try TwoGradients(h) })

  struct TwoGradients: Source {
    static var method: Method { UDoG.method }
    var handsDirection: Bool { true }
    let origin = 0, y = 1, sum = 2, first = 3, point = 4, x = 5, next = 6
    let domain: HeldSet?
    init(_ h: Hyper) throws(Failure) {
      domain = try h.held("domain").map { (s) throws(Failure) in try HeldSet(s) }
    }

    var opens: Bool { true }
    var endsAway: Bool { true }
    func most(_ tensors: Int) -> Int { 2 }
    /// The numbers of the step, from the scalars and the norm of m.
    struct Weights {
      let alpha, omega, weight: Double
      init(_ io: SourceIO, distance r: Double) {
        omega = io.scalar(2) + r
        alpha = omega / r
        weight = io.scalar(0) + omega
      }
      func largest(_ io: SourceIO, _ square: Squares) -> Squares {
        var new = Squares(0)
        new.add(square, times: alpha)
        let old = Squares(io.scalar(4))
        return new < old ? old : new
      }
      func rate(_ io: SourceIO, turns: Squares, largest: Squares) -> Double {
        var sum = Squares(io.hyper.eps)
        sum.add(turns)
        sum.add(largest)
        return omega / sum.root
      }
    }
    /// The parameters are kept, and go to the mean of S and y.
    struct Open: ElementOperation {
      let past, present: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = x
        x = past * s[2] + present * s[1]
      }
    }
    /// θ to the mean of S and y − rate·m.
    struct Query: ElementOperation {
      let past, present, rate: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        x = past * s[1] + present * (s[0] - rate * s[2])
      }
    }
    /// Keeps m; its square, and that of θ₀.
    struct KeepFirst: ElementSum {
      let starts: Bool
      @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
        s[0] = g
        sums.add(0, g, times: g)
        if starts { sums.add(2, s[1], times: s[1]) }
      }
    }
    /// A point of the step that is to be projected: y − rate·gradient, and the query it leads to.
    struct Candidate: ElementOperation {
      let rate: Double, ofFirst: Bool
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = s[1] - rate * (ofFirst ? s[2] : g)
      }
    }
    struct ProjectedQuery: ElementOperation {
      let past, present: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        x = past * s[0] + present * s[1]
      }
    }
    struct ProjectedDistances: ElementSum {
      @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
        let a = s[1] - s[0], b = s[2] - s[0]
        sums.add(0, a, times: a)
        sums.add(1, b, times: b)
      }
    }
    struct ProjectedFinish: ElementOperation {
      let omega: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[1] = s[1] + omega * s[2]
        s[0] = s[3]
      }
    }
    struct Norms: ElementSum {
      let starts: Bool
      @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
        let turn = g - s[0]
        sums.add(0, s[0], times: s[0])
        sums.add(1, turn, times: turn)
        if starts { sums.add(2, s[1], times: s[1]) }
      }
    }
    struct Distances: ElementSum {
      let short, long: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
        let start = s[1] - s[0]
        let a = start - short * s[2], b = start - long * g
        sums.add(0, a, times: a)
        sums.add(1, b, times: b)
      }
    }
    struct Finish: ElementOperation {
      let short, long, omega: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        let y = s[0]
        s[1] = s[1] + omega * (y - short * s[2])
        s[0] = y - long * g
      }
    }

    func opening(_ io: SourceIO) -> Ask? {
      if io.scalar(0) > 0 {
        let w = Weights(io, distance: io.scalar(1))
        io.change(Open(past: 1 / w.weight, present: w.omega / w.weight), slots: [point, y, sum], parameters: true)
      }
      return nil
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let starts = io.scalar(1) == 0, slots = starts ? [first, origin] : [first]
      let sums =
        phase == 0 ? io.sum(KeepFirst(starts: starts), slots: slots) : io.sum(Norms(starts: starts), slots: slots)
      let r = starts ? io.hyper.r_eps_rel * (1 + sums.root(2)) : io.scalar(1)
      var turns = Squares(io.scalar(3))
      let w = Weights(io, distance: r), largest = w.largest(io, sums.squares(0))
      let short = w.rate(io, turns: turns, largest: largest)
      if phase == 0 {
        io.saveHome()  // of tensors that did not go away before
        if let domain {
          io.change(Candidate(rate: short, ofFirst: true), slots: [self.x, y, first], parameters: false)
          try io.project(self.x, domain)
          let query = ProjectedQuery(past: 1 / w.weight, present: w.omega / w.weight)
          io.change(query, slots: [sum, self.x], parameters: true)
        } else {
          let query = Query(past: 1 / w.weight, present: w.omega / w.weight, rate: short)
          io.change(query, slots: [y, sum, first], parameters: true)
        }
        return .ask(Ask(.gradient))
      }
      turns.add(sums.squares(1), times: w.alpha)
      let long = w.rate(io, turns: turns, largest: largest), distances: SourceTotals
      if let domain {
        io.change(Candidate(rate: long, ofFirst: false), slots: [next, y, first], parameters: false)
        try io.project(next, domain)
        distances = io.sum(ProjectedDistances(), slots: [origin, self.x, next])
        io.change(ProjectedFinish(omega: w.omega), slots: [y, sum, self.x, next], parameters: false)
      } else {
        distances = io.sum(Distances(short: short, long: long), slots: [origin, y, first])
        io.change(Finish(short: short, long: long, omega: w.omega), slots: [y, sum, first], parameters: false)
      }
      io.setScalar(0, w.weight)
      io.setScalar(2, w.omega)
      io.setScalar(1, larger(r, larger(distances.root(0), distances.root(1))))
      io.setScalar(3, turns.number)
      io.setScalar(4, largest.number)
      return .update(nil)
    }
  }
}
