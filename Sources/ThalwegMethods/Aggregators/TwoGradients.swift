import ThalwegCore

/// What is made of a main gradient and a second one.

/// ProGrad and its opposite: parts of the task's gradient along that of a second loss are taken out.
///
///     d = ⟨g₀, g₁⟩;   remove_aligned: d > 0,  remove_conflict: d < 0:   g = g₀ − lam·d/‖g₁‖²·g₁;   else g = g₀
///
/// State    both gradients.
/// Differs  tensor by tensor as in GRMP-IQA's code, or with scope=global over all together. lam is 5 where GRMP-IQA
///          removes what is aligned, 1 in prompt-aligned gradients, which remove conflicts. The second loss, a
///          divergence from a frozen teacher, is the host's. g₁ = 0 leaves g₀.
/// Source   Zhu, Niu, Han, Wu and Zhang, 2022, arXiv:2205.14865; Li et al., 2024, arXiv:2409.05381.
struct ProGrad: Source {
  static let method = Method(
    "prograd", .aggregator, "Parts of a gradient along, or against, that of a second loss are taken out.",
    rule: """
      d = <g_0, g_1>;  mode remove_aligned: d > 0, remove_conflict: d < 0:  g = g_0 - lam*d/|g_1|^2 * g_1
      else g = g_0;  products of each tensor, with scope=global over all together
      """,
    source: "Zhu, Niu, Han, Wu, Zhang, 2022, arXiv:2205.14865; Li et al., 2024, arXiv:2409.05381",
    parameters: [
      .choice("mode", ["remove_aligned", "remove_conflict"], "which parts").forAll,
      .maybe("lam", .atLeast(0), "strength, 1 makes them orthogonal; none: 5, or 1 with remove_conflict").forAll,
      .choice("scope", scopes, "of the products: each tensor, or all together").forAll,
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)

  let tasks = Tasks(count: 2)
  init(_ h: Hyper) {}
  var slots: [Slot] { tasks.slots }
  var opens: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { tasks.ask(0) }
  func most(_ tensors: Int) -> Int { tasks.count }
  var kinds: [Request.Kind] { [.taskGradient] }

  private struct Products: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, s[0], times: s[1])
      sums.add(1, s[1], times: s[1])
    }
  }
  private struct Remove: ElementOperation {
    let share: Factor
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = s[0] - share * s[1]
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if let next = tasks.keep(phase, io, reads: false) { return .ask(next) }
    let h = io.hyper, conflict = h.is("mode", "remove_conflict")
    let lam: Double = h.has("lam") ? h.lam : conflict ? 1 : 5
    let each = h.is("scope", "tensor")
    let sums = each ? io.sums(Products(), slots: [0, 1]) : [io.sum(Products(), slots: [0, 1])]
    guard sums.allSatisfy({ $0[0].isFinite && $0[1].isFinite }) else {
      throw Failure(Status.nonfinite, "prograd: the inner products of the task gradients overflow")
    }
    let shares = sums.map { s in s[1] > 0 && (conflict ? s[0] < 0 : s[0] > 0) ? lam * s[0] / s[1] : 0 }
    io.change(slots: [0, 1], parameters: false, each: { Remove(share: Factor(each ? shares[$0] : shares[0])) })
    return .update(io.gradient(in: 0))
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
/// Differs  nothing from the authors' code. Losses with lambda and f* are `odice_loss`.
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
