import ThalwegCore

/// What is made of a main gradient and a second one.

/// ProGrad and its opposite: parts of the task's gradient along that of a second loss are taken out.
///
///     d = ⟨g₀, g₁⟩;   remove_aligned: d > 0,  remove_conflict: d < 0:   g = g₀ − lam·d/‖g₁‖²·g₁;   else g = g₀
///
/// State    both gradients.
/// Differs  over all tensors together; GRMP-IQA's code does it tensor by tensor. lam is 5 where GRMP-IQA removes what
///          is aligned, 1 in prompt-aligned gradients, which remove conflicts. The second loss, a divergence from a
///          frozen teacher, is the host's. g₁ = 0 leaves g₀.
/// Source   Zhu, Niu, Han, Wu and Zhang, 2022, arXiv:2205.14865; Li et al., 2024, arXiv:2409.05381.
struct ProGrad: GramianRule {
  static let method = Method(
    "prograd", .aggregator, "Parts of a gradient along, or against, that of a second loss are taken out.",
    rule: """
      d = <g_0, g_1>;  mode remove_aligned: d > 0, remove_conflict: d < 0:  g = g_0 - lam*d/|g_1|^2 * g_1
      else g = g_0
      """,
    source: "Zhu, Niu, Han, Wu, Zhang, 2022, arXiv:2205.14865; Li et al., 2024, arXiv:2409.05381",
    parameters: [
      .choice("mode", ["remove_aligned", "remove_conflict"], "which parts").forAll,
      .number("lam", 5, .atLeast(0), "strength; 1 makes them orthogonal").forAll,
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)
  static func tasks(_ h: Hyper) -> Int { 2 }

  let conflict: Bool
  let lam: Double
  init(_ h: Hyper, _ tasks: Tasks) { (conflict, lam) = (h.is("mode", "remove_conflict"), h.lam) }

  func weights(_ G: Gramian, _ c: inout TaskContext) -> [Double] {
    let d = G[0][1], size = G[1][1]
    return [1, size > 0 && (conflict ? d < 0 : d > 0) ? -lam * d / size : 0]
  }
}

/// ODICE: the backward part of a semi-gradient pair acts only where it is orthogonal to the forward part.
///
///     f, b, l = the gradients of tasks 0, 1 and 2;   c = ⟨f, b⟩/max(⟨f, f⟩, tiny);   g = f + eta·(b − c·f) + l
///
/// Task 0 is the loss lambda·mean f*(r + γ·V̄(s′) − V(s)), task 1 lambda·mean f*(r + γ·V(s′) − V̄(s)) without its
/// weight eta, task 2 (1 − lambda)·mean V(s); V̄ is an average of V and held constant.
///
/// State    the three gradients.
/// Differs  nothing from the authors' code. lambda and f* are the host's losses.
/// Source   Mao, Xu, Zhan, Zhang and Zhang, 2024, arXiv:2402.00348.
struct ODICE: GramianRule {
  static let method = Method(
    "odice", .aggregator, "The backward gradient of a value function acts only orthogonally to the forward one.",
    rule: """
      f, b, l = gradients of tasks 0, 1, 2 (forward, backward, linear term)
      c = <f, b>/max(<f, f>, tiny);  g = f + eta*(b - c*f) + l
      """,
    source: "Mao, Xu, Zhan, Zhang, Zhang, 2024, arXiv:2402.00348",
    parameters: [
      .number("eta", 1, .atLeast(0), "weight of the backward part").forAll,
      .number("tiny", 1e-10, .above(0), "smallest denominator").forAll,
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)
  static func tasks(_ h: Hyper) -> Int { 3 }

  let eta, tiny: Double
  init(_ h: Hyper, _ tasks: Tasks) { (eta, tiny) = (h.eta, h.tiny) }

  func weights(_ G: Gramian, _ c: inout TaskContext) -> [Double] {
    [1 - eta * G[0][1] / max(G[0][0], tiny), eta, 1]
  }
}
