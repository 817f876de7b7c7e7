import Glibc
import ThalwegCore

/// One stage of gradient inversion in the feature domain of a generator: Adam on the features of a layer, held near
/// where the stage began.
///
///     t = step/steps;  lr·(½ − ½·cos(π·min(1, (1 − t)/rampdown)))·min(1, t/rampup)
///     m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  x ← x − lr·m̂/(√v̂ + eps)
///     the deviation of every row from x0 is projected onto the l1 ball of `radius`
///
/// x0 is (n, ...), the start of the stage: the previous stage's output, pushed one layer on. The host gives the
/// matching
/// cost (`gradient_match_cost`, with priors) and its gradient by the features. `best` are the features with the
/// smallest
/// cost that was met; keep the best image over the stages by `cost`. `sphere` also brings every row back to the length
/// that it had at the start (latents).
/// Ends     converged: after `steps` steps; nonfinite: an answer.
/// Differs  the stages of the authors' code have radii of 1000, 2000, ..., 8000: without `radius` that of stage s is
///          1000·s. A radius of 0 or below holds nothing.
/// Source   Fang, Chen, Wang, Wang, Xia, 2023, arXiv:2308.04699.
struct GradientInversion: Driver {
  static let method = Method.solver(
    "gradient_inversion", "A stage of gradient inversion: Adam on features, within an l1 ball around their start.",
    rule: """
      t = step/steps;  rate = lr (1/2 - cos(pi min(1, (1 - t)/rampdown))/2) min(1, t/rampup)
      Adam with that rate;  then rows of x - x0 onto the l1 ball of radius
      """,
    source: "Fang, Chen, Wang, Wang, Xia, 2023, arXiv:2308.04699",
    parameters: [
      .number("lr", 0.1, .above(0), "largest step size"),
      .integer("steps", 1000, .within(1, 1e9), "steps of the stage"),
      .maybe("radius", .any, "of the l1 ball; none: 1000*stage, 0 or below: no ball"),
      .integer("stage", 1, .within(1, 1e6), "which stage, from 1"),
      .number(
        "rampdown", 0.75, .between(0, 1, lowOpen: true, highOpen: false), "share of the steps with a falling rate"),
      .number("rampup", 0.05, .between(0, 1, lowOpen: true, highOpen: false), "share of the steps with a rising rate"),
      .rate("beta1", 0.9, "rate of the average of gradients"), .rate("beta2", 0.999, "rate of that of their squares"),
      .eps(1e-8), .flag("sphere", false, "rows keep their lengths"),
    ],
    inputs: [
      .constant("x0", "n, ...", "features at the start of the stage"), .result("x", "n, ...", "features at its end"),
      .result("best", "n, ...", "features with the smallest cost"), .result("cost", "", "that cost"),
      .result("iterations", "", "steps"),
    ],
    asks: [
      RequestKind(
        "value_gradient", "cost of the features, and its gradient", given: [.given("point", "n, ...", "features")],
        wanted: [.wanted("value", "", "cost"), .wanted("gradient", "n, ...", "gradient by the features")])
    ],
    kept: [
      .kept("g", "n, ...", "gradient"), .kept("exp_avg", "n, ...", "average of gradients"),
      .kept("exp_avg_sq", "n, ...", "average of their squares"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, answer }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], g = try io["g"], start = try io["x0"]
    if phase == .start {
      guard start.isFinite else { throw Failure(Status.nonfinite, "`x0` must be finite") }
      x.copy(start)
      io.cost = .infinity
      return .ask("value_gradient", [x], [g], then: .answer)
    }
    if io.value < io.cost {
      io.cost = io.value
      try io["best"].copy(x)
    }
    try step(x, g, try io["exp_avg"], try io["exp_avg_sq"], io.iterations)
    hold(x, start)
    io.iterations += 1
    return io.iterations < h.steps ? .ask("value_gradient", [x], [g], then: .answer) : .done(.converged)
  }

  private func step<T: Real>(
    _ x: Vector<T>, _ g: Vector<T>, _ m: Vector<T>, _ v: Vector<T>, _ step: Double
  ) throws(Failure) {
    let t = step / h.steps, falling = min(1, (1 - t) / h.rampdown), beta1: Double = h.beta1, beta2: Double = h.beta2
    let rate = h.lr * (0.5 - 0.5 * cos(.pi * falling)) * min(1, t / h.rampup), eps: Double = h.eps
    let first = 1 - pow(beta1, step + 1), second = 1 - pow(beta2, step + 1)
    m.set(beta1, m, 1 - beta1, g)
    for i in 0..<x.count {
      let u = Double(g.p[i])
      v.p[i] = T(beta2 * Double(v.p[i]) + (1 - beta2) * u * u)
      let size = (Double(v.p[i]) / second).squareRoot() + eps
      if size > 0 { x.p[i] = T(Double(x.p[i]) - rate * Double(m.p[i]) / first / size) }
    }
  }
  /// Back into the balls and onto the spheres.
  private func hold<T: Real>(_ x: Vector<T>, _ start: Vector<T>) {
    let radius = h.has("radius") ? h.radius : 1000 * Double(h.integer("stage"))
    for k in 0..<x.rows {
      let row = x.row(k), home = start.row(k)
      if radius > 0 {
        let apart = (0..<row.count).map { Double(row.p[$0]) - Double(home.p[$0]) }, sizes = apart.map { abs($0) }
        if sizes.reduce(0, +) > radius {
          let theta = simplexThreshold(sizes, radius)
          for i in 0..<row.count {
            let left = max(sizes[i] - theta, 0)
            row.p[i] = T(Double(home.p[i]) + (apart[i] < 0 ? -left : left))
          }
        }
      }
      if h.sphere {
        let size = row.norm
        if size > 0 { row.set(home.norm / size, row) }
      }
    }
  }
}
