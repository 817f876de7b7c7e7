import ThalwegCore

/// MGDA: the shortest vector in the hull of the task gradients, along which no task's loss rises.
///
///     w = argmin ‖Σ w_i·g_i‖ over w ≥ 0, Σ w_i = 1;   g = Σ w_i·g_i
///     normalize:  of the g_i over ‖g_i‖ (l2), the loss L_i (loss) or both (loss_l2)
///
/// State    the gradient of every task.
/// Differs  the exact point, by Wolfe's method, where torchjd takes up to 100 Frank-Wolfe steps to 1e-3. The
///          normalisations by losses need `loss_0`, `loss_1` and so on, observed before the step. A zero gradient makes
///          the update 0.
/// Tells    residual, by which w misses the conditions of the nearest point (0 to 1), and iterations.
/// Errors   a loss that is missing, not finite or, as a divisor, 0.
/// Source   Désidéri, 2012; Sener and Koltun, 2018, arXiv:1810.04650.
struct MGDA: GramianRule {
  static let method = Method(
    "mgda", .aggregator, "The shortest vector in the hull of the task gradients, which raises no task's loss.",
    rule: """
      w = argmin |sum_i w_i*g_i| over w >= 0, sum w = 1;  g = sum_i w_i*g_i
      normalize: of the g_i over |g_i| (l2), loss_i (loss) or both (loss_l2)
      """,
    source: "Desideri, 2012; Sener, Koltun, 2018, arXiv:1810.04650",
    parameters: [Tasks.parameter, .choice("normalize", kinds, "what the gradients are divided by", live: false)],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)

  private static let kinds = ["none", "l2", "loss", "loss_l2"]
  static func told(_ h: Hyper) -> String? { h.is("normalize", "loss") || h.is("normalize", "loss_l2") ? "loss" : nil }
  static var iterates: Bool { true }

  let byLength, byLoss: Bool
  init(_ h: Hyper, _ tasks: Tasks) {
    byLength = h.is("normalize", "l2") || h.is("normalize", "loss_l2")
    byLoss = MGDA.told(h) != nil
  }

  func weights(_ G: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double] {
    guard byLength || byLoss else { return try nearest(G, &c) }
    if let k = c.told.firstIndex(of: 0) {
      throw Failure(Status.range, "mgda: the gradient of task \(k) is to be divided by its loss, which is 0")
    }
    let f = zip(G.norms, G.indices).map { norm, k in
      (byLength ? (norm > 0 ? 1 / norm : 0) : 1) / (byLoss ? c.told[k] : 1)
    }
    return zip(try nearest(G.scaled(rows: f), &c), f).map { $0 * $1 }
  }
  private func nearest(_ G: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double] {
    let (w, iterations) = try nearestPoint(G)
    c.convergence = Convergence(simplex: G, w, w, iterations)
    return w
  }
}
