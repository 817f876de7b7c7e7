import ThalwegCore

/// The geometric median of the gradients: the point with the smallest sum of distances, by Weiszfeld's iteration.
///
///     z = the weighted mean;   b_i = w_i/max(‖g_i − z‖, ν);   z′ = Σ b_i·g_i/Σ b_i
///     until ‖z′ − z‖ ≤ tol·max(1, ‖z‖), or for `iters` iterations
///
/// State    the gradient of every worker.
/// Differs  works on inner products: distances below some 1e-8 of the gradients are rounding. Where z meets a gradient
///          ν keeps it there.
/// Tells    residual, the length of the sum of unit vectors from z to the gradients, less the weight of those at z,
///          over all weights (0 to 1; some `tol` at its end, more where `iters` ended it), and iterations. Where the
///          median is one of the gradients: the distance to it over the mean distance.
/// Source   Weiszfeld, 1937; Pillutla, Kakade and Harchaoui, 2019, arXiv:1912.13445.
struct GeometricMedian: GramianRule {
  static let method = Method(
    "geometric_median", .aggregator, "The point with the smallest sum of distances to the gradients.",
    rule: """
      z = weighted mean;  b_i = w_i/max(|g_i - z|, nu);  z' = sum_i b_i*g_i / sum b
      until |z' - z| <= tol*max(1, |z|), or for iters iterations
      """,
    source: "Weiszfeld, 1937; Pillutla, Kakade, Harchaoui, 2019, arXiv:1912.13445",
    parameters: [
      Tasks.parameter, .integer("iters", 100, .within(1, 1e6), "largest number of iterations").forAll,
      .number("tol", 1e-6, .above(0), "relative movement at which it ends").forAll,
      .number("nu", 1e-12, .above(0), "smallest distance").forAll,
      .list("weights", nil, "weight of each gradient, 1 each when none", optional: true),
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true,
    validate: { (h) throws(Failure) in
      try Tasks.check("geometric_median", "weights")(h)
      let given = h.list("weights")
      guard given.isEmpty || given.contains(where: { $0 > 0 }) else {
        throw Failure(Status.range, "geometric_median: some number of `weights` must be above 0")
      }
    })

  let w: [Double]
  let iters: Int
  let tol, nu: Double
  init(_ h: Hyper, _ tasks: Tasks) {
    let given = h.list("weights")
    w = given.count == tasks.count ? given : [Double](repeating: 1, count: tasks.count)
    (iters, tol, nu) = (h.integer("iters"), h.tol, h.nu)
  }

  static var iterates: Bool { true }

  func weights(_ G: Gramian, _ c: inout TaskContext) -> [Double] {
    var z = w.map { $0 / w.reduce(0, +) }, done = 0
    for _ in 0..<iters {
      let toZ = G.times(z), own = dot(z, toZ)
      let b = G.indices.map { w[$0] / max(max(0, G[$0][$0] - 2 * toZ[$0] + own).squareRoot(), nu) }
      let next = b.map { $0 / b.reduce(0, +) }
      let moved = G.length(zip(next, z).map { $0 - $1 })
      (z, done) = (next, done + 1)
      if moved <= tol * max(1, max(0, own).squareRoot()) { break }
    }
    c.convergence = Convergence(missed(G, z), done)
    return z
  }
  /// Where a gradient is the median itself, z comes to it slowly: then how far that is, over the mean distance.
  private func missed(_ G: Gramian, _ z: [Double]) -> Double {
    let toZ = G.times(z), own = dot(z, toZ)
    let distances = G.indices.map { max(0, G[$0][$0] - 2 * toZ[$0] + own).squareRoot() }
    let near = G.indices.min { distances[$0] < distances[$1] } ?? 0, mean = dot(w, distances) / w.reduce(0, +)
    let isMedian = w[near] > 0 && pull(G, G.indices.map { $0 == near ? 1 : 0 }) <= 0
    return min(pull(G, z), isMedian && mean > 0 ? distances[near] / mean : 1)
  }
  /// The sum of the unit vectors to the gradients, less what those at z hold, over all weights: 0 at the median.
  private func pull(_ G: Gramian, _ z: [Double]) -> Double {
    let toZ = G.times(z), own = dot(z, toZ)
    var b = G.indices.map { _ in 0.0 }, here = 0.0
    for i in G.indices {
      let square = G[i][i] - 2 * toZ[i] + own
      // (below, distances are the rounding of the inner products)
      let isHere = square <= max(nu * nu, 16 * .ulpOfOne * (G[i][i] + own))
      if isHere { here += w[i] } else { b[i] = w[i] / square.squareRoot() }
    }
    let sum = b.reduce(0, +)
    return (G.length(zip(z, b).map { sum * $0 - $1 }) - here) / w.reduce(0, +)
  }
}
