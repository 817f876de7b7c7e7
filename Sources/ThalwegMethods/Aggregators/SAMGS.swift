import Glibc
import ThalwegCore

/// SAM-GS: where the lengths of the task gradients differ they are made equal, elsewhere momentum scales every entry.
///
///     s_ij = 2·‖g_i‖·‖g_j‖/(‖g_i‖² + ‖g_j‖²), i < j;   S = their mean
///     m_i ← β₁·m_i + (1 − β₁)·g_i;   v ← β₂·v + (1 − β₂)·(1 − S)² + ε;   m̂, v̂ without their bias
///     S < γ (any: some s_ij < γ):  g = Σ g_i/‖g_i‖·mean ‖g_k‖;   else  g = Σ g_i·|m̂_i|/√v̂, entry by entry
///     match_sum: g ← tasks·g;   max_norm > 0: g ← g·min(1, max_norm/(‖g‖ + 1e-6))
///
/// State    m of every task, v and the number t of steps; while it asks, the gradients and their sum.
/// Differs  nothing from the authors' code. A gradient of 0 adds nothing; two of them are alike. A tensor that joins
///          later starts with m = 0 at the t of the others.
/// Source   Borsani, Rosani, Nicosia and Di Fatta, 2025, arXiv:2506.06130.
struct SAMGS: Source {
  static let method = Method(
    "sam_gs", .aggregator,
    "Task gradients of unlike lengths are made equally long; elsewhere momentum scales every entry.",
    rule: """
      s_ij = 2|g_i||g_j|/(|g_i|^2 + |g_j|^2), i < j;  S = their mean
      m_i <- beta1*m_i + (1 - beta1)*g_i;  v <- beta2*v + (1 - beta2)*(1 - S)^2 + eps;  both corrected for bias
      S < gamma: g = sum_i g_i/|g_i| * mean |g_k|;  else g = sum_i g_i*|m_i|/sqrt(v)
      match_sum: g <- tasks*g;  max_norm > 0: g <- g*min(1, max_norm/(|g| + 1e-6))
      """,
    source: "Borsani, Rosani, Nicosia, Di Fatta, 2025, arXiv:2506.06130",
    parameters: [
      Tasks.parameter, .number("gamma", 0.7, .within(0, 1), "similarity below which gradients are equalised").forAll,
      .rate("beta1", 0.9, "decay of the momenta").forAll, .rate("beta2", 0.99, "decay of the dissimilarity").forAll,
      .eps(1e-8, "added to v at every step", .above(0)).forAll,
      .choice("trigger", ["mean", "any"], "the mean similarity, or that of any pair").forAll,
      .flag("match_sum", true, "times the number of tasks").forAll,
      .number("max_norm", 1, .atLeast(0), "longest gradient; 0 is no limit").forAll,
    ],
    slots: [Tasks.slot, .moment("momentum_0", "the momentum of the first task; one more for every other task")],
    requests: "task_gradient", needsFinite: true)

  let tasks: Tasks
  let scalars = [Scalar("t"), Scalar("v")]
  init(_ h: Hyper) { tasks = Tasks(h) }
  private var sum: Int { 2 * tasks.count }
  var slots: [Slot] {
    tasks.slots + (0..<tasks.count).map { Slot("momentum_\($0)", "the momentum of task \($0)") }
      + [.temporary("sum", "the combined gradient")]
  }
  var opens: Bool { true }
  var findsNonfinite: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { tasks.ask(0) }
  func most(_ tensors: Int) -> Int { tasks.count }
  var kinds: [Request.Kind] { [.taskGradient] }

  private struct Add: ElementOperation {
    let beta: Double, factor, unit: Factor, modulates, first: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let m = beta * s[1] + (1 - beta) * s[0]
      s[1] = m
      let part = modulates ? factor * ((unit * s[0]) * (unit * m.magnitude)) : factor * (unit * s[0])
      s[2] = first ? part : s[2] + part
    }
  }
  private struct Length: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, s[0], times: s[0])
    }
  }
  private struct Scale: ElementOperation {
    let factor: Factor
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = factor * s[0] }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if let next = tasks.keep(phase, io, reads: true) { return .ask(next) }
    let h = io.hyper, m = tasks.count
    let G = try tasks.gramian(io), squares = (0..<m).map { G[$0][$0] }, norms = G.norms
    var alike: [Double] = []
    for i in 0..<m {
      for j in 0..<i {
        let sum = squares[i] + squares[j]
        alike.append(sum > 0 ? 2 * norms[i] * norms[j] / sum : 1)
      }
    }
    let similarity = m > 1 ? alike.reduce(0, +) / Double(alike.count) : 1, gap = 1 - similarity

    let t = io.scalar(0) + 1, beta1: Double = h.beta1, beta2: Double = h.beta2, eps: Double = h.eps
    let gamma: Double = h.gamma
    let v = beta2 * io.scalar(1) + (1 - beta2) * gap * gap + eps
    io.setScalar(0, t)
    io.setScalar(1, v)
    let equalises = h.is("trigger", "any") ? alike.contains { $0 < gamma } : similarity < gamma
    let unbiased = v / (1 - pow(beta2, t)), modulation = 1 / ((1 - pow(beta1, t)) * unbiased.squareRoot())
    let mean = norms.reduce(0, +) / Double(m), all: Double = h.match_sum ? Double(m) : 1
    // far from 1 the gradients are multiplied by a power of two first: neither g·|m| nor their sum leaves the range
    func unit(_ norm: Double) -> Double {
      let isFar = norm > 0x1p30 || (norm < 0x1p-30 && norm > 0)
      return isFar ? Double(sign: .plus, exponent: -norm.exponent, significand: 1) : 1
    }
    let common = unit(norms.max() ?? 0)
    for k in 0..<m {
      // (one that is made as long as the others has a power of its own)
      let own = equalises ? unit(norms[k]) : common
      let length = norms[k] > 0 ? mean * common / (norms[k] * own) : 0
      let factor = Factor(all * (equalises ? length : modulation))
      io.change(
        Add(beta: beta1, factor: factor, unit: Factor(own), modulates: !equalises, first: k == 0),
        slots: [k, m + k, sum], parameters: false)
    }
    let most: Double = h.max_norm, back = equalises ? 1 / common : 1 / common / common
    var factor = back
    if most > 0 { factor *= min(1, most / (back * io.sum(Length(), slots: [sum]).root(0) + 1e-6)) }
    if factor != 1 { io.change(Scale(factor: Factor(factor)), slots: [sum], parameters: false) }
    return .update(io.gradient(in: sum))
  }
}
