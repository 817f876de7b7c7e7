import Glibc
import ThalwegCore

/// Adam on differences of losses, without the directions along which the parameters hardly moved.
///
///     base = loss(x);  c_i = (loss(x + mu·z_i) − base)/mu
///     g = Σ c_i·z_i/(n·√((d_eff + n − 1)/n)), d_eff = d − rows of E
///     g ← g − Eᵀ·E·g;   Adam's step with its bias corrections, eps outside of the root;   x joins the last tau ones
///     every tau steps: columns of these standardised (a deviation of 0 counts as 1), singular value decomposition;
///     i the first index whose cumulative share of the variance is above 1 − nu;  E the right singular vectors behind i
///
/// All losses of a step are of one sample. Without any variance E is empty.
/// Ends     max_iter.
/// Differs  direction i of step k is the draws of (seed, 0, k·n + i, 0). As in the authors' code the projection, of
///          standardised coordinates, acts on the raw gradient. Directions without any variance, below 1e-10 of the
///          largest singular value, are not removed: rounding would choose them.
/// Source   Seo et al., 2025, arXiv:2503.14868.
struct SubspaceZOAdam: Driver {
  static let method = Method.solver(
    "subspace_zo_adam", "Adam on differences of losses, without directions along which parameters hardly moved.",
    rule: """
      g = sum c_i z_i/(n sqrt((d_eff + n - 1)/n)), c_i = (loss(x + mu z_i) - loss(x))/mu;  g -= E' E g;  Adam
      every tau steps: E = right singular vectors of the standardised history behind a share 1 - nu of its variance
      """,
    source: "Seo et al., 2025, arXiv:2503.14868",
    parameters: [
      .number("lr", 1e-2, .above(0), "step size"), .rate("beta1", 0.9, "of Adam"), .rate("beta2", 0.999, "of Adam"),
      .eps(1e-3, "of Adam", .above(0)), .integer("tau", 128, .within(2, 65536), "points of the history"),
      .number("nu", 1e-3, .between(0, 1, lowOpen: false, highOpen: true), "share of the variance that is removed"),
      .integer("n", 2, .within(1, 0x1p20), "directions a step"), .number("mu", 1e-3, .above(0), "their length"),
      .integer("max_iter", 100, .atLeast(0), "steps"), Population.seed,
    ],
    inputs: [
      .constant("x0", "d", "the point to start with"), .result("x", "d", "the point"),
      .result("basis", "kept, d", "rows of E, then zeros"), .result("removed", "", "rows of E"),
      .result("iterations", "", "steps"), .result("value", "", "the last loss at the point of a step"),
    ],
    asks: [
      RequestKind(
        "point_loss", "the loss at a point", given: [.given("point", "d", "where")],
        wanted: [.wanted("loss", "", "the loss there")])
    ],
    kept: [
      .kept("m", "d", "first moment"), .kept("v", "d", "second moment"), .kept("history", "tau, d", "the last points"),
      .kept("z", "d", "direction"), .kept("trial", "d", "point that is tried"), .kept("g", "d", "gradient"),
      .kept("turn", "", "directions done"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { ["kept": min(h.integer("tau"), sizes["d"])] }
  enum Phase: Int { case start, step, base, trial }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], z = try io["z"], trial = try io["trial"], g = try io["g"], E = try io["basis"]
    let count: Double = h.n
    func probe() -> Verdict<Phase> {
      z.draw(Population.key(h, io.iterations * count + io.turn))
      trial.set(1, x, h.mu, z)
      return .ask("point_loss", [trial], [], then: .trial)
    }
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("point_loss", [x], [], fresh: true, then: .base)
    case .base:
      (io.value, io.turn) = (io.loss, 0)
      g.fill(0)
      return probe()
    case .trial:
      g.add(z, times: (io.loss - io.value) / h.mu)
      io.turn += 1
      if io.turn < count { return probe() }
      let free = Double(x.count) - io.removed
      g.set(1 / (count * ((free + count - 1) / count).squareRoot()), g)
      for k in 0..<(try io.count("removed", E.rows)) {
        let row = E.row(k)
        g.add(row, times: -row.dot(g))
      }
      let m = try io["m"], v = try io["v"], t = io.iterations + 1
      let b1: Double = h.beta1, b2: Double = h.beta2, lr: Double = h.lr
      for i in 0..<x.count {
        let a = Double(g.p[i]), mean = b1 * Double(m.p[i]) + (1 - b1) * a
        let square = b2 * Double(v.p[i]) + (1 - b2) * a * a
        (m.p[i], v.p[i]) = (T(mean), T(square))
        let root: Double = (square / (1 - pow(b2, t))).squareRoot() + h.eps, first: Double = mean / (1 - pow(b1, t))
        x.p[i] -= T(lr * first / root)
      }
      let history = try io["history"], k = try io.count("iterations")
      history.row(k % history.rows).copy(x)
      io.iterations = t
      if (k + 1) % history.rows == 0 { try decompose(history, E, io) }
      return .go(.step)
    }
  }

  private func decompose<T: Real>(_ history: Vector<T>, _ E: Vector<T>, _ io: DriverIO<T>) throws(Failure) {
    let tau = history.rows, d = history.count / tau
    try Memory.ask(8 &* history.count)
    var a = [Double](repeating: 0, count: tau * d)
    for j in 0..<d {
      let mean = (0..<tau).reduce(0.0) { $0 + Double(history.p[$1 * d + j]) } / Double(tau)
      var square = 0.0
      for i in 0..<tau {
        a[i * d + j] = Double(history.p[i * d + j]) - mean
        square += a[i * d + j] * a[i * d + j]
      }
      let deviation = (square / Double(tau)).squareRoot()
      if deviation > 0 { for i in 0..<tau { a[i * d + j] /= deviation } }
    }
    E.fill(0)
    io.removed = 0
    let svd = try LinearAlgebra.SVD(a, tau, d), total = svd.s.reduce(0) { $0 + $1 * $1 }
    guard total > 0 else { return }
    var sum = 0.0, first = svd.r
    for (i, s) in svd.s.enumerated() {
      sum += s * s
      if sum / total > 1 - h.nu {
        first = i + 1
        break
      }
    }
    // what has no variance at all is chosen by rounding
    let last = max(first, svd.s.count { $0 > 1e-10 * svd.s[0] })
    for k in first..<last {
      for j in 0..<d { E.p[(k - first) * d + j] = T(svd.vt[k * d + j]) }
    }
    io.removed = Double(last - first)
  }
}
