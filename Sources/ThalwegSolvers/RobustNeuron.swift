import Glibc
import ThalwegCore

/// One neuron, learned although some labels are wrong: descent along a surrogate gradient without the activation's
/// slope.
///
///     w ← P_{|w| ≤ radius}(w − lr·mean_i (act(w·x_i) − y_i)·x_i),  w = 0 at first
///
/// x is (n, d), y is (n,); lr is 1/λ_max(XᵀX/n) unless given. Where the slope of the square loss is 0 (a dead ReLU, the
/// start) the surrogate still moves. leaky has the slope `slope` below 0.
/// Ends     converged: |surrogate gradient| ≤ tol; max_iter: after `iters` steps; `residual` is the last one taken.
/// Errors   TW_ERROR_NONFINITE: x or y with NaN or infinities.
/// Differs  "a small surrogate gradient" and the slope of leaky are no numbers on the card: tol and 0.01 are chosen
///          here.
/// Source   Wang, Zarifis, Diakonikolas, Diakonikolas, 2023, arXiv:2306.07892.
struct RobustNeuron: Driver {
  static let method = Method.solver(
    "robust_neuron", "One neuron, learned although some labels are wrong.",
    rule: "w <- P_{|w| <= radius}(w - lr mean (act(w.x) - y) x)",
    source: "Wang, Zarifis, Diakonikolas, Diakonikolas, 2023, arXiv:2306.07892",
    parameters: [
      .choice("act", ["relu", "leaky", "sigmoid", "identity"], "activation"),
      .number("radius", 10, .above(0), "bound of |w|"),
      .maybe("lr", .above(0), "step size; none: 1/lambda_max(X'X/n)"),
      .integer("iters", 200, .atLeast(1), "most steps"),
      .number("slope", 0.01, .within(0, 1), "of leaky below 0"),
      .number("tol", 1e-10, .atLeast(0), "length of the surrogate gradient that ends it"),
    ],
    inputs: [
      .constant("x", "n, d", "inputs"), .constant("y", "n", "labels"),
      .constant("w0", "d", "start; 0 when left out", optional: true),
      .result("w", "d", "weights"), .result("iterations", "", "steps"),
      .result("residual", "", "length of the last surrogate gradient"),
    ], kept: [.kept("g", "d", "surrogate gradient")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], w = try io["w"], g = try io["g"], n = x.rows, d = w.count
    guard x.isFinite, y.isFinite else { throw Failure(Status.nonfinite, "`x` and `y` must be finite") }
    if let start = io.optional("w0") { w.copy(start) }
    let radius: Double = h.radius, lr = h.has("lr") ? h.lr : try usual(x, n, d)
    while io.iterations < h.iters {
      g.fill(0)
      for i in 0..<n {
        let row = x.row(i)
        g.add(row, times: (activation(row.dot(w)) - Double(y.p[i])) / Double(n))
      }
      io.residual = g.norm
      if io.residual <= h.tol { return .done(.converged) }
      w.add(g, times: -lr)
      let size = w.norm
      if size > radius { w.set(radius / size, w) }
      io.iterations += 1
    }
    return .done(io.residual.isFinite ? .maxIter : .nonfinite)
  }

  private func activation(_ u: Double) -> Double {
    if h.is("act", "sigmoid") {
      let e = exp(-abs(u))
      return (u < 0 ? e : 1) / (1 + e)
    }
    return u >= 0 || h.is("act", "identity") ? u : h.is("act", "leaky") ? h.slope * u : 0
  }
  /// 1/λ_max(XᵀX/n); 1 for inputs of zeros.
  private func usual<T: Real>(_ x: Vector<T>, _ n: Int, _ d: Int) throws(Failure) -> Double {
    try Memory.ask(8 * d * d)
    var gram = [Double](repeating: 0, count: d * d)
    for i in 0..<n {
      for a in 0..<d {
        let u = Double(x.p[i * d + a]) / Double(n)
        for b in 0..<d { gram[a * d + b] += u * Double(x.p[i * d + b]) }
      }
    }
    let top = try LinearAlgebra.Eigen(gram, d).values.first ?? 0
    return top > 0 ? 1 / top : 1
  }
}
