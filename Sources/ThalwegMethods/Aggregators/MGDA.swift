import ThalwegCore

/// MGDA: the shortest vector in the hull of the task gradients, along which no task's loss rises.
///
///     w = argmin ‖Σ w_i·g_i‖ over w ≥ 0, Σ w_i = 1;   g = Σ w_i·g_i
///     normalize=l2: of the g_i/‖g_i‖
///
/// State    the gradient of every task.
/// Differs  the exact point, by Wolfe's method, where torchjd takes up to 100 Frank-Wolfe steps to 1e-3. The
///          normalisations by losses of the second source are the host's: it divides the losses. A zero gradient makes
///          the update 0.
/// Source   Désidéri, 2012; Sener and Koltun, 2018, arXiv:1810.04650.
struct MGDA: GramianRule {
  static let method = Method(
    "mgda", .aggregator, "The shortest vector in the hull of the task gradients, which raises no task's loss.",
    rule: """
      w = argmin |sum_i w_i*g_i| over w >= 0, sum w = 1;  g = sum_i w_i*g_i
      normalize=l2: of the g_i/|g_i|
      """,
    source: "Desideri, 2012; Sener, Koltun, 2018, arXiv:1810.04650",
    parameters: [Tasks.parameter, .choice("normalize", ["none", "l2"], "of the gradients").forAll],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)

  let normalizes: Bool
  init(_ h: Hyper, _ tasks: Tasks) { normalizes = h.is("normalize", "l2") }

  func weights(_ G: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double] {
    let f = normalizes ? G.norms.map { $0 > 0 ? 1 / $0 : 0 } : G.map { _ in 1 }
    return zip(try nearestPoint(normalizes ? G.scaled(rows: f) : G), f).map { $0 * $1 }
  }
}
