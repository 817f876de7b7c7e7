import ThalwegCore

/// IMTL-G: the combination of the task gradients whose projections on all of them are equally long.
///
///     d_i = ‖g_i‖;   v = (JJᵀ)⁺·d;   a = v/Σ v (0 where the sum vanishes);   g = Jᵀa
///
/// State    the gradient of every task.
/// Differs  nothing from torchjd.IMTLG but that Σ v is compared with 1e-12 after the division of JJᵀ by its trace, so
///          that gradients of any size count. Singular values below m·2⁻⁵² of the largest are 0. A weight may be
///          negative.
/// Source   Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, 2021, ICLR.
struct IMTLG: GramianRule {
  static let method = Method(
    "imtl_g", .aggregator, "The combination of the task gradients whose projections on all of them are equally long.",
    rule: "d_i = |g_i|;  v = pinv(J J') d;  a = v/sum(v), 0 where the sum vanishes;  g = J'a",
    source: "Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang, 2021, ICLR", parameters: [Tasks.parameter],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true)

  init(_ h: Hyper, _ tasks: Tasks) {}

  func weights(_ gramian: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double] {
    let trace = gramian.trace, G = gramian.scaled(by: trace > 0 ? 1 / trace : 0)
    let v = try G.applying({ 1 / $0 }, to: G.norms), sum = v.reduce(0, +)
    return v.map { abs(sum) < 1e-12 ? 0 : $0 / sum }
  }
}
