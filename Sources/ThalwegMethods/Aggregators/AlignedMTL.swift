import ThalwegCore

/// Aligned-MTL: the task gradients are turned into orthogonal ones of equal length, as little as possible, and added.
///
///     JJᵀ = V·diag(λ)·Vᵀ;   σ = the smallest λ, their median or their mean;   a = √σ·V·diag(λ^(−½))·Vᵀ·pref;   g = Jᵀa
///
/// State    the gradient of every task.
/// Differs  nothing from torchjd.AlignedMTL; the authors' code takes the mean (rmse). λ below m·ε of the largest are
///          left out, ε = 2⁻⁵² for gradients in float64, else 2⁻²³; of an even number of λ the median is the lower one.
///          Without a gradient the weights are pref.
/// Source   Senushkin, Patakin, Kuznetsov and Konushin, 2023, arXiv:2305.19000.
struct AlignedMTL: GramianRule {
  static let method = Method(
    "aligned_mtl", .aggregator, "The task gradients are turned into orthogonal ones of equal length and added.",
    rule: """
      J J' = V diag(l) V';  sigma = smallest l, their median or their mean
      a = sqrt(sigma) V diag(l^-1/2) V' pref;  g = J'a
      """,
    source: "Senushkin, Patakin, Kuznetsov, Konushin, 2023, arXiv:2305.19000",
    parameters: [
      Tasks.parameter, Tasks.preference, .choice("scale_mode", ["min", "median", "rmse"], "what sigma is").forAll,
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true, validate: Tasks.check("aligned_mtl"))

  let pref: [Double]
  let median, mean: Bool
  init(_ h: Hyper, _ tasks: Tasks) {
    (pref, median, mean) = (tasks.preferences(h), h.is("scale_mode", "median"), h.is("scale_mode", "rmse"))
  }

  func weights(_ G: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double] {
    let all = try G.decomposed().s, floor = (all.first ?? 0) * Double(G.count) * c.rounding
    let kept = all.filter { $0 > floor }  // descending
    guard let least = kept.last else { return pref }
    let sigma = mean ? kept.reduce(0, +) / Double(kept.count) : median ? kept[kept.count / 2] : least
    return try G.applying({ (sigma / $0).squareRoot() }, to: pref, rounding: c.rounding)
  }
}
