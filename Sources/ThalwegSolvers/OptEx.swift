import Glibc
import ThalwegCore

/// Steps whose gradients are asked for at several points at once: points ahead of the present one, along gradients that
/// a Gaussian process of the last ones predicts.
///
///     x_1 = x;   x_k = step of the base from x_{k−1} with ĝ,  k = 2..N,  ĝ = k(x_{k−1}, X)·(K + noise·I)⁻¹·G
///     the gradients at all x_k;   x = step of the base from the selected x_k, with its gradient and the state there
///     X, G: the last `history` points and gradients, to which all N pairs come;  ĝ = 0 while they are fewer than 2
///
/// base: sgd x − lr·g;  momentum m ← beta1·m + g, x − lr·m;  adam with its bias corrections. With N = 1 it is the base.
/// select: last; min_loss; min_grad, of equal ones the first. All points of a step are asked on one sample.
/// Ends     max_iter; nonfinite: the selected point has no gradient (or no loss is finite where losses select).
/// Errors   TW_ERROR_NUMERIC: the kernel's matrix is not positive definite: points that are twice there need noise.
/// Differs  points are taken as they are: the authors' codes scale them, one to norm 1, the other by the mean norm.
///          Pairs that are not finite do not join the history, as in their code.
/// Source   Shu et al., 2024, arXiv:2402.11427.
struct OptEx: Driver {
  static let method = Method.solver(
    "optex", "Steps whose gradients are asked for at several points at once, predicted by a Gaussian process.",
    rule: """
      x_k = base step from x_{k-1} along k(x_{k-1}, X) (K + noise I)^-1 G, k = 2..N;  gradients at all x_k
      x = base step from the selected x_k along its gradient;  (X, G): the last pairs
      """,
    source: "Shu et al., 2024, arXiv:2402.11427",
    parameters: [
      .integer("parallel", 4, .within(1, 65536), "N, points of a step"),
      .integer("history", 50, .within(1, 65536), "pairs that are kept"),
    ] + ProcessKernel.parameters(noise: 1e-3) + [
      .choice("select", ["last", "min_loss", "min_grad"], "the point to step from"),
      .choice("base", ["sgd", "momentum", "adam"], "the step"), .number("lr", 1e-2, .above(0), "its size"),
      .rate("beta1", 0.9, "of momentum and Adam"), .rate("beta2", 0.999, "of Adam"), .eps(1e-8, "of Adam", .above(0)),
      .integer("max_iter", 100, .atLeast(0), "steps"),
    ],
    inputs: [
      .constant("x0", "d", "where it starts"), .result("x", "d", "the point"), .result("iterations", "", "steps"),
      .result("value", "", "loss of the last selected point"), .result("selected", "", "its number, from 0"),
    ],
    asks: [
      RequestKind(
        "parallel_gradients", "losses and gradients at several points, on one sample",
        given: [.given("points", "parallel, d", "where")],
        wanted: [.wanted("losses", "parallel", "there"), .wanted("gradients", "parallel, d", "there")],
        takesNonfinite: true)
    ],
    kept: [
      .kept("X", "history, d", "last points"), .kept("G", "history, d", "their gradients"),
      .kept("pairs", "", "pairs that came in"), .kept("points", "parallel, d", "x_k"),
      .kept("m", "parallel, d", "first moments at x_k"), .kept("v", "parallel, d", "second moments"),
      .kept("losses", "parallel", "at x_k"), .kept("gradients", "parallel, d", "there"),
      .kept("t", "", "steps of the base behind the first point"), .kept("guess", "d", "predicted gradient"),
    ])

  private let h: Hyper, kernel: ProcessKernel
  init(_ h: Hyper) { (self.h, kernel) = (h, ProcessKernel(h)) }
  enum Phase: Int { case start, step, answered }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], points = try io["points"], gradients = try io["gradients"], losses = try io["losses"]
    let m = try io["m"], v = try io["v"], N = points.rows
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      points.row(0).copy(x)
      let inverse = N > 1 ? try self.inverse(io) : []
      for k in 1..<max(1, N) {
        for all in [points, m, v] { all.row(k).copy(all.row(k - 1)) }
        step(points.row(k), m.row(k), v.row(k), try predict(points.row(k - 1), inverse, io), io.t + Double(k))
      }
      return .ask("parallel_gradients", [points], [losses, gradients], fresh: true, then: .answered)
    case .answered:
      let k = select(losses, gradients)
      (io.selected, io.value) = (Double(k), Double(losses.p[k]))
      guard gradients.row(k).isFinite, io.value.isFinite || !h.is("select", "min_loss") else {
        return .done(.nonfinite)
      }
      let X = try io["X"], G = try io["G"]
      for i in 0..<N where points.row(i).isFinite && gradients.row(i).isFinite {
        let place = try io.count("pairs") % X.rows
        X.row(place).copy(points.row(i))
        G.row(place).copy(gradients.row(i))
        io.pairs += 1
      }
      x.copy(points.row(k))
      for all in [m, v] { all.row(0).copy(all.row(k)) }
      io.t += Double(k) + 1
      step(x, m.row(0), v.row(0), gradients.row(k), io.t)
      io.iterations += 1
      return .go(.step)
    }
  }

  private func select<T: Real>(_ losses: Vector<T>, _ gradients: Vector<T>) -> Int {
    let N = losses.count
    if h.is("select", "last") { return N - 1 }
    let sizes = (0..<N).map { h.is("select", "min_loss") ? Double(losses.p[$0]) : gradients.row($0).norm }
    return sizes.indices.reduce(0) { sizes[$1] < sizes[$0] || sizes[$0].isNaN ? $1 : $0 }
  }

  /// A step of the base, its t-th.
  private func step<T: Real>(_ x: Vector<T>, _ m: Vector<T>, _ v: Vector<T>, _ g: Vector<T>, _ t: Double) {
    let lr: Double = h.lr, b1: Double = h.beta1, b2: Double = h.beta2, eps: Double = h.eps
    if h.is("base", "sgd") { return x.add(g, times: -lr) }
    if h.is("base", "momentum") {
      m.set(b1, m, 1, g)
      return x.add(m, times: -lr)
    }
    m.set(b1, m, 1 - b1, g)
    let first = 1 - pow(b1, t), second = 1 - pow(b2, t)
    for i in 0..<x.count {
      let a = Double(g.p[i]), square = b2 * Double(v.p[i]) + (1 - b2) * a * a
      v.p[i] = T(square)
      x.p[i] -= T(lr * (Double(m.p[i]) / first) / ((square / second).squareRoot() + eps))
    }
  }

  /// (K + noise·I)⁻¹ of the pairs; nothing while they are fewer than 2.
  private func inverse<T: Real>(_ io: DriverIO<T>) throws(Failure) -> [Double] {
    let X = try io["X"], n = min(try io.count("pairs"), X.rows)
    if n < 2 { return [] }
    try Memory.ask(40 &* n &* n)
    var one = [Double](repeating: 0, count: n * n)
    for i in 0..<n { one[i * (n + 1)] = 1 }
    return try LinearAlgebra.solvePositive(kernel.matrix(Array(0..<n), X), one, n, n)
  }
  /// The predicted gradient.
  private func predict<T: Real>(_ x: Vector<T>, _ inverse: [Double], _ io: DriverIO<T>) throws(Failure) -> Vector<T> {
    let X = try io["X"], G = try io["G"], guess = try io["guess"]
    let n = Int(Double(inverse.count).squareRoot()), d = x.count
    guess.fill(0)
    let k = (0..<n).map { kernel.at(ProcessKernel.distance(UnsafePointer(x.p), UnsafePointer(X.p + $0 * d), d)).value }
    for i in 0..<n { guess.add(G.row(i), times: (0..<n).reduce(0.0) { $0 + inverse[i * n + $1] * k[$1] }) }
    return guess
  }
}
