import ThalwegCore

/// CAGrad: the direction near the mean gradient that improves the worst task most.
///
///     G = JJᵀ/trace,  g₀ = the mean of the gradients,  s = c·‖g₀‖
///     w = argmin ⟨g_w, g₀⟩ + s·‖g_w‖ over w ≥ 0, Σ w = 1,  g_w = Σ w_i·g_i
///     g = g₀ + s·g_w/‖g_w‖, divided by 1 + c² or 1 + c with `rescale`
///
/// With t = ‖g_w‖, g_w is the point of the hull nearest to −(t/s)·g₀: one number is searched for, and the point is
/// exact.
///
/// State    the gradient of every task.
/// Differs  nothing from torchjd.CAGrad, which has no rescaling; the authors' code takes the raw Gramian, with 1e-8 in
///          both roots, and multiplies by the number of tasks in the end. The update is 0 where the trace, or ‖g_w‖
///          after the division by it, is below norm_eps.
/// Tells    residual, by which w misses the conditions of its minimum (0 to 1, rounding is below 1e-12), and
///          iterations, as cagrad.residual and cagrad.iterations.
/// Source   Liu, Liu, Jin, Stone and Liu, 2021, arXiv:2110.14048.
struct CAGrad: GramianRule {
  static let method = Method(
    "cagrad", .aggregator, "The direction near the mean gradient that improves the worst task most.",
    rule: """
      G = J J'/trace,  g0 = mean of the gradients,  s = c*|g0|
      w = argmin <g_w, g0> + s*|g_w| over w >= 0, sum w = 1,  g_w = sum_i w_i*g_i
      g = g0 + s*g_w/|g_w|;  rescale: divided by 1 + c^2 (squared) or 1 + c (linear)
      """,
    source: "Liu, Liu, Jin, Stone, Liu, 2021, arXiv:2110.14048",
    parameters: [
      Tasks.parameter, .number("c", 0.5, .atLeast(0), "radius, in lengths of the mean; the theory is for c < 1").forAll,
      .choice("rescale", ["none", "squared", "linear"], "divide by 1, 1 + c^2 or 1 + c").forAll,
      .number("norm_eps", 1e-4, .atLeast(0), "below this trace or norm the update is 0").forAll,
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)

  let c, normEps, divisor: Double
  init(_ h: Hyper, _ tasks: Tasks) {
    let c: Double = h.c
    (self.c, normEps) = (c, h.norm_eps)
    divisor = h.is("rescale", "squared") ? 1 + c * c : h.is("rescale", "linear") ? 1 + c : 1
  }

  static var iterates: Bool { true }

  func weights(_ gramian: Gramian, _ context: inout TaskContext) throws(Failure) -> [Double] {
    let m = gramian.count, trace = gramian.trace, none = [Double](repeating: 0, count: m)
    context.convergence = Convergence()
    guard trace >= normEps, trace > 0 else { return none }
    let G = gramian.scaled(by: 1 / trace), b = [Double](repeating: 1 / Double(m), count: m)
    let s = c * G.length(b)
    guard s > 0 else { return b.map { $0 / divisor } }
    let toMean = G.times(b), mean = dot(b, toMean)
    var w: [Double]?, iterations = 0
    /// The length of the nearest point to −r·g₀; from the last one, which it is near.
    func length(_ r: Double) throws(Failure) -> Double {
      let from0 = G.indices.map { i in G.indices.map { G[i][$0] + r * (toMean[i] + toMean[$0]) + r * r * mean } }
      let found = try nearestPoint(from0, from: w)
      (w, iterations) = (found.weights, iterations + found.iterations + 1)
      return G.length(found.weights)
    }
    var low = 0.0, high = G.largest.squareRoot() / s
    var q = try length(high)
    for _ in 0..<200 where high - low > 1e-15 * high {
      let r = (low + high) / 2
      q = try length(r)
      if q > s * r { low = r } else { high = r }
    }
    guard let w, q >= normEps, q > 0 else { return none }
    let answer = zip(b, w).map { $0 + s / q * $1 }
    context.convergence = Convergence(simplex: G, w, answer, iterations)
    return answer.map { $0 / divisor }
  }
}
