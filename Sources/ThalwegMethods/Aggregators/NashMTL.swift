import ThalwegCore

/// Nash-MTL: the tasks bargain over the update; the weights are the Nash solution.
///
///     s = ‖G‖_F,  A = G/s + ridge·I;   a = argmin ½·aᵀAa − Σ log a_i, that is (A a)_i = 1/a_i;   weights a/√s
///     ‖g‖ > max_norm > 0: g ← g·max_norm/‖g‖;   the weights are found anew every `update_every` calls
///
/// State    the gradient of every task; the last weights, the calls since, and whether there was no solution.
/// Differs  solved by Newton's method to the last digit; the authors linearise the problem and call a conic solver,
///          which sometimes fails and leaves weights of 1. Where some combination of gradients with weights that are
///          not negative is 0 there is no solution: weights a are at most 1e6/√A_ii, and `stationary` is 1. ‖g‖ =
///          √tasks, so that with max_norm ≤ 1 every update has that length.
/// Tells    residual, the largest difference of (A a)_i and 1/a_i in units of their size (0 to 1; large where there is
///          no solution), and iterations, both of the last solution; stationary.
/// Source   Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik and Fetaya, 2022, arXiv:2202.01017.
struct NashMTL: GramianRule {
  static let method = Method(
    "nash_mtl", .aggregator, "The tasks bargain over the update: the weights are the Nash solution.",
    rule: """
      s = |G|_F,  A = G/s + ridge*I;  a = argmin a'Aa/2 - sum log a_i;  g = J'a/sqrt(s)
      |g| > max_norm > 0: g <- g*max_norm/|g|
      the weights are found anew every update_every calls
      """,
    source: "Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik, Fetaya, 2022, arXiv:2202.01017",
    parameters: [
      Tasks.parameter, .number("max_norm", 1, .atLeast(0), "longest update; 0 is no limit").forAll,
      .integer("update_every", 1, .atLeast(1), "calls from one solution to the next").forAll,
      .number("ridge", 0, .atLeast(0), "added to the scaled Gramian").forAll,
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)

  static func scalars(_ tasks: Int) -> [Scalar] {
    [Scalar("calls"), Scalar("stationary")] + (0..<tasks).map { Scalar("weight_\($0)") }
  }
  static var iterates: Bool { true }

  let maxNorm, every, ridge: Double
  init(_ h: Hyper, _ tasks: Tasks) { (maxNorm, every, ridge) = (h.max_norm, h.update_every, h.ridge) }

  func weights(_ G: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double] {
    if c.memory[0] == 0 {
      let (a, bounded, convergence) = solve(G)
      (c.memory, c.convergence) = ([0, bounded ? 0 : 1] + a, convergence)
    }
    c.memory[0] = c.memory[0] + 1 < every ? c.memory[0] + 1 : 0
    let a = Array(c.memory.dropFirst(2)), length = G.length(a)
    return maxNorm > 0 && length > maxNorm ? a.map { $0 * maxNorm / length } : a
  }

  private func solve(_ G: Gramian) -> (weights: [Double], bounded: Bool, convergence: Convergence) {
    let s = G.reduce(0) { $0 + dot($1, $1) }.squareRoot()
    guard s > 0, s.isFinite else { return (G.map { _ in 0 }, true, Convergence()) }
    var A = G.scaled(by: 1 / s)
    for i in A.indices { A[i][i] += ridge }
    let (a, bounded, convergence) = balanced(A, 1)
    return (a.map { $0 / s.squareRoot() }, bounded, convergence)
  }
}
