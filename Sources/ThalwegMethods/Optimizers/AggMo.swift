import ThalwegCore

/// Aggregated momentum: the mean of several momenta, from fast to slow.
///
///     bᵢ ← βᵢ·bᵢ + g for every βᵢ;   θ ← θ − (lr/K)·Σ bᵢ
///
/// State    K buffers.
/// Differs  nothing from AtheMathmo/AggMo; equal betas are refused (the authors' code steps one buffer twice).
/// Source   Lucas, Sun, Zemel and Grosse, 2018, arXiv:1804.00325.
struct AggMo: ElementRule {
  static let most = 16
  static let method = Method(
    "aggmo", .optimizer, "The mean of several momenta, from fast to slow.",
    rule: "b_i <- betas_i*b_i + g;  theta <- theta - lr*mean(b_i)",
    source: "Lucas, Sun, Zemel, Grosse, 2018, arXiv:1804.00325",
    parameters: [
      .lr(1e-3), .list("betas", [0, 0.9, 0.99], "rates of the momenta"), .weightDecay(),
      .flag("decoupled", false, "decay is decoupled", live: false),
    ],
    slots: [.moment("momentum_buffer", "the momenta b, one a rate")],
    validate: { (h) throws(Failure) in
      let betas = h.list("betas")
      guard !betas.isEmpty, betas.count <= most else {
        throw Failure(Status.range, "aggmo: `betas` must be 1 to \(most) numbers, got \(betas.count)")
      }
      if let bad = betas.first(where: { !($0 >= 0 && $0 < 1) }) {
        throw Failure(Status.range, "aggmo: `betas` must be in [0, 1), got \(text(bad))")
      }
      guard Set(betas).count == betas.count else {
        throw Failure(Status.range, "aggmo: `betas` must differ, got \(betas.map { text($0) }.joined(separator: ", "))")
      }
    })

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    h.list("betas").indices.map { .moment("momentum_buffer_\($0)", "momentum b, rate \($0)") }
  }
  static func decay(_ h: Hyper) -> Decay { h.decoupled ? .decoupled : .coupled }

  let betas: SIMD16<Double>, count: Int

  init(_ h: Hyper, _ c: StepContext) {
    var all = SIMD16<Double>(repeating: 0)
    let list = h.list("betas").prefix(AggMo.most)
    for (i, b) in list.enumerated() { all[i] = b }
    (betas, count) = (all, list.count)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    var sum = L(0)
    for i in 0..<count {
      let b = betas[i] * s[i] + g
      s[i] = b
      sum = sum + b
    }
    return sum * (1 / Double(max(1, count)))
  }
}
