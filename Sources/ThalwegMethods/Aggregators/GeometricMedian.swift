import ThalwegCore

/// The geometric median of the gradients: the point with the smallest sum of distances, by Weiszfeld's iteration.
///
///     z = the weighted mean;   b_i = w_i/max(‖g_i − z‖, ν);   z′ = Σ b_i·g_i/Σ b_i
///     until ‖z′ − z‖ ≤ tol·max(1, ‖z‖), or for `iters` iterations
///
/// State    the gradient of every worker.
/// Differs  works on inner products: distances below some 1e-8 of the gradients are rounding. Where z meets a gradient
///          ν keeps it there.
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

  func weights(_ G: Gramian, _ c: inout TaskContext) -> [Double] {
    var z = w.map { $0 / w.reduce(0, +) }
    for _ in 0..<iters {
      let toZ = G.times(z), own = dot(z, toZ)
      let b = G.indices.map { w[$0] / max(max(0, G[$0][$0] - 2 * toZ[$0] + own).squareRoot(), nu) }
      let next = b.map { $0 / b.reduce(0, +) }
      let moved = G.length(zip(next, z).map { $0 - $1 })
      z = next
      if moved <= tol * max(1, max(0, own).squareRoot()) { break }
    }
    return z
  }
}
