import ThalwegCore

/// Full-batch descent with the gradient-norm penalty that small batches have: block by block, by a difference.
///
///     every block k:  v = s·g_k,  h = eps/‖v‖;  r_k = g_k + lr/4·(g_k(θ + h·v) − g_k)/h,  g_k where ‖v‖ = 0
///     g = mean_k r_k;   ‖g‖ > clip: g ← g·clip/(‖g‖ + 1e-6);   g ← g + wd·θ
///     b ← g at first, else momentum·b + g;   θ ← θ − lr·(g + momentum·b), or lr·b without nesterov
///
/// r_k is the gradient of L_k + (lr·s/8)·‖∇L_k‖². The host answers for each block as for a task.
/// State    b; the mean so far, a block's gradient and the parameters while it asks. ‖·‖ is over all tensors.
/// Differs  nothing from the authors' code. Every group has its lr and s.
/// Source   Geiping, Goldblum, Pope, Moeller and Goldstein, 2021, arXiv:2109.14119.
struct FullBatchGR: ElementRule {
  static let method = Method(
    "full_batch_gr", .optimizer, "Full-batch descent with a gradient-norm penalty of every block of the data.",
    rule: """
      every block k: v = s*g_k, h = eps/|v|;  r_k = g_k + lr/4*(g_k(theta + h*v) - g_k)/h
      g = mean_k r_k, clipped to the norm clip, + weight_decay*theta;  momentum (nesterov);  theta <- theta - lr*d
      """,
    source: "Geiping, Goldblum, Pope, Moeller, Goldstein, 2021, arXiv:2109.14119",
    parameters: [
      .lr(0.8), .integer("blocks", nil, .within(1, 0x1p20), "blocks of the data", live: false),
      .rate("momentum", 0.9, "momentum"), .flag("nesterov", true, "Nesterov's form"),
      .weightDecay(5e-4, "coupled weight decay"), .number("block_strength", 0.5, .atLeast(0), "s").equalInAll,
      .number("eps", 1e-2, .above(0), "length of the difference").forAll,
      Parameter.number("clip", 0.25, .above(0), "largest norm of g").orInfinite().forAll,
    ],
    slots: [.moment("momentum_buffer", "momentum b")], requests: "task_gradient")

  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("norm"), Scalar("difference")] }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    s[0] = totals.root(0)
  }

  let factor, momentum, decay: Double, first, nesterov: Bool
  init(_ h: Hyper, _ c: StepContext) {
    let norm = c.scalars[0], clip: Double = h.clip
    factor = norm > clip ? clip / (norm + 1e-6) : 1
    (momentum, decay, first, nesterov) = (h.momentum, c.weightDecay, c.t == 1, h.nesterov)
  }
  @inline(__always) func squares(_ phase: Int) -> Bool { true }
  @inline(__always) func direction<L: Lane>(_ v: L, _ x: L, _ s: Slots<L>) -> L {
    let g = factor * v + decay * x
    let b = first ? g : momentum * s[0] + g
    s[0] = b
    return nesterov ? g + momentum * b : b
  }

  static let registered = entry(FullBatchGR.self, source: { (h) throws(Failure) in Blocks(h) })

  struct Blocks: Source {
    static var method: Method { FullBatchGR.method }
    let mean = 1, gradient = 2, point = 3
    private let blocks: Int
    init(_ h: Hyper) { blocks = h.integer("blocks") }
    var slots: [Slot] {
      [.temporary("mean", "the mean over the blocks so far"), gradientSlot, homeSlot]
    }
    var opens: Bool { true }
    let kinds = [Request.Kind.taskGradient]
    func most(_ tensors: Int) -> Int { 2 * blocks }
    func opening(_ io: SourceIO) -> Ask? { Ask(.taskGradient, index: 0, count: blocks) }

    private struct Gather: ElementOperation {
      let slope, share: Double, fresh: Bool
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        let r = s[1] + slope * (g - s[1]), mean = fresh ? L(0) : s[0]
        s[0] = mean + share * (r - mean)
        x = s[2]
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let k = phase / 2, eps: Double = io.hyper.eps
      if phase % 2 == 0 {
        let length = io.hyper.block_strength * io.sum(SquaredNorm()).root(0)
        io.setScalar(1, length > 0 ? eps / length : 0)
        io.change(slots: [point, gradient], parameters: true) { KeepAndAscend(scale: io.scalar(1) * $0.block_strength) }
        return .ask(Ask(.taskGradient, index: k, count: blocks))
      }
      let step = io.scalar(1)
      io.change(slots: [mean, gradient, point], parameters: true) { h in
        Gather(slope: step > 0 ? h.lr / 4 / step : 0, share: 1 / Double(k + 1), fresh: k == 0)
      }
      if k + 1 < blocks { return .ask(Ask(.taskGradient, index: k + 1, count: blocks)) }
      return .update(io.gradient(in: mean))
    }
  }
}
