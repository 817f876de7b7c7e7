import ThalwegCore

/// Dual-cone projection (gradient episodic memory): the mean of the task gradients, projected onto the directions that
/// conflict with no task.
///
///     G = JJᵀ / trace (0 below norm_eps), + reg_eps·I;   v = argmin vᵀGv subject to v ≥ pref;   g = Jᵀv
///
/// State    the gradient of every task.
/// Differs  nothing from torchjd.DualProj; v is exact.
/// Tells    residual, the largest cosine by which v misses the conditions of its minimum, and iterations.
/// Source   Lopez-Paz and Ranzato, 2017, arXiv:1706.08840.
struct DualProj: GramianRule {
  static let method = Method(
    "dualproj", .aggregator,
    "The mean of the task gradients, projected onto the directions that conflict with none.",
    rule: """
      G = J J'/trace (0 when the trace is below norm_eps) + reg_eps*I
      v = argmin v'Gv subject to v >= pref;  g = J'v
      """,
    source: "Lopez-Paz, Ranzato, 2017, arXiv:1706.08840", parameters: UPGrad.method.parameters,
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true, validate: Tasks.check("dualproj"))
  static var iterates: Bool { true }

  let pref: [Double]
  let normEps, regEps: Double
  init(_ h: Hyper, _ tasks: Tasks) {
    (pref, normEps, regEps) = (tasks.preferences(h), h.norm_eps, h.reg_eps)
  }

  func weights(_ G: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double] {
    let (v, convergence) = try UPGrad.solve(UPGrad.regularised(G, normEps: normEps, regEps: regEps), atLeast: pref)
    c.convergence = convergence
    return v
  }
}
