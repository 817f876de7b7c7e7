import ThalwegCore

/// Gradient vaccine: task gradients are turned towards each other until their cosines reach what they are on average.
///
///     for each task i: r = g_i;  for j ≠ i in random order:  cos = ⟨r, g_j⟩/(‖r‖·‖g_j‖ + ε)
///       if cos < φ_ij:  r ← r + ‖r‖·(φ·√(1 − cos²) − cos·√(1 − φ²))/(‖g_j‖·√(1 − φ²) + ε)·g_j
///       φ_ij ← (1 − β)·φ_ij + β·cos,  of the cosine before the change
///     g = Σ r
///
/// State    the gradient of every task; the averages φ.
/// Differs  works on inner products alone (the same numbers). The orders are drawn as in pcgrad.
/// Source   Wang, Tsvetkov, Firat and Cao, 2020, arXiv:2010.05874.
struct GradVac: GramianRule {
  static let method = Method(
    "gradvac", .aggregator, "Task gradients are turned until their cosines reach what they are on average.",
    rule: """
      for each task i: r = g_i; for j != i in random order: cos = <r, g_j>/(|r| |g_j| + eps)
        if cos < phi_ij: r += |r|*(phi*sqrt(1 - cos^2) - cos*sqrt(1 - phi^2))/(|g_j|*sqrt(1 - phi^2) + eps) * g_j
        phi_ij <- (1 - beta)*phi_ij + beta*cos
      g = sum of the r
      """,
    source: "Wang, Tsvetkov, Firat, Cao, 2020, arXiv:2010.05874",
    parameters: [
      Tasks.parameter, .number("beta", 0.5, .within(0, 1), "share of the new cosine in its average").forAll,
      .eps(1e-8).forAll,
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)

  static func scalars(_ tasks: Int) -> [Scalar] {
    (0..<tasks).flatMap { i in (0..<tasks).map { Scalar("phi_\(i)_\($0)") } }
  }

  let beta, eps: Double
  init(_ h: Hyper, _ tasks: Tasks) { (beta, eps) = (h.beta, h.eps) }

  func weights(_ G: Gramian, _ c: inout TaskContext) -> [Double] {
    let m = G.count, norms = G.norms
    var total = [Double](repeating: 0, count: m)
    for i in 0..<m {
      var r = [Double](repeating: 0, count: m)  // as weights of the gradients
      r[i] = 1
      var along = G[i], length = norms[i]  // the inner products of r with all, and its length
      for j in c.order(i, of: m) where j != i {
        let scale = length * norms[j] + eps
        let cos = scale > 0 ? along[j] / scale : 0, phi = c.memory[i * m + j]
        let sine = max(0, 1 - phi * phi).squareRoot(), divisor = norms[j] * sine + eps
        if cos < phi, divisor > 0 {
          let more = length * (phi * max(0, 1 - cos * cos).squareRoot() - cos * sine) / divisor
          r[j] += more
          for k in 0..<m { along[k] += more * G[j][k] }
          length = max(0, dot(r, along)).squareRoot()
        }
        c.memory[i * m + j] = (1 - beta) * phi + beta * cos
      }
      for k in 0..<m { total[k] += r[k] }
    }
    return total
  }
}
