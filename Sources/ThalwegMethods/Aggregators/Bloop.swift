import ThalwegCore

/// Bloop: the gradient of an auxiliary loss acts only across the moving average of the main gradient.
///
///     g, a = the gradients of tasks 0 (main) and 1 (auxiliary);   m = the first g (or 0), then  m ← m + ema·(g − m)
///     r = min(⟨m, a⟩/(⟨m, m⟩ + ε), ratio_upper_bound);   g ← g + lam·(a − r·m)
///     use_ratio_only:  g ← (1 − lam·r)·g + lam·a
///
/// State    m; while it asks, the main gradient.
/// Differs  nothing from the authors' code, whose optional rescaling is left out. ema = 1 projects onto the main
///          gradient itself; with the bound 1/lam that is the dynamic-barrier rule. A tensor that joins later starts
///          with m = 0.
/// Source   Hsieh, Thornton, Ndiaye, Klein, Cuturi and Ablin, 2024, arXiv:2402.02998.
struct Bloop: Source {
  static let method = Method(
    "bloop", .aggregator, "An auxiliary gradient acts only across the moving average of the main gradient.",
    rule: """
      g, a = gradients of tasks 0 (main) and 1 (auxiliary);  m <- m + ema*(g - m), from the first g (or 0)
      r = min(<m, a>/(<m, m> + eps), ratio_upper_bound);  g <- g + lam*(a - r*m)
      use_ratio_only: g <- (1 - lam*r)*g + lam*a
      """,
    source: "Hsieh, Thornton, Ndiaye, Klein, Cuturi, Ablin, 2024, arXiv:2402.02998",
    parameters: [
      .number("lam", 0.1, .atLeast(0), "weight of the auxiliary gradient").forAll,
      .number("ema", 0.01, .between(0, 1, lowOpen: true, highOpen: false), "weight of the new gradient in the average")
        .forAll,
      .eps(1e-7).forAll, .choice("init", ["grad", "zeros"], "what the average starts from", live: false),
      {
        var p = Parameter.maybe("ratio_upper_bound", .any, "largest ratio r; 1/lam is the dynamic barrier")
        p.reach = .all
        return p
      }(),
      .flag("use_ratio_only", false, "the ratio scales the main gradient, in place of its average").forAll,
    ],
    slots: [Slot("average", "the moving average m of the main gradient"), Slot.temporary("main", "the main gradient")],
    requests: "task_gradient", needsFinite: true)

  let slots = Bloop.method.slots + [Slot.temporary("moved", "the average of this step")]
  let scalars = [Scalar("steps")]
  private let zeros: Bool
  init(_ h: Hyper) { zeros = h.is("init", "zeros") }
  var opens: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { Ask(.taskGradient, index: 0, count: 2) }
  func most(_ tensors: Int) -> Int { 2 }
  var kinds: [Request.Kind] { [.taskGradient] }

  private struct Follow: ElementOperation {
    let ema: Double, first: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[1] = g
      s[2] = first ? g : s[0] + ema * (g - s[0])
    }
  }
  private struct Products: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, s[0], times: g)
      sums.add(1, s[0], times: s[0])
    }
  }
  private struct Settle: ElementOperation {
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = s[1] }
  }
  private struct Combine: ElementOperation {
    let lam, ratio: Double, scales: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      x = s[0] + lam * (x - ratio * (scales ? s[0] : s[1]))
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let h = io.hyper
    if phase == 0 {
      io.change(Follow(ema: h.ema, first: io.scalar(0) == 0 && !zeros), parameters: false)
      return .ask(Ask(.taskGradient, index: 1, count: 2))
    }
    let sums = io.sum(Products(), slots: [2]), divisor = sums[1] + h.eps
    guard sums[0].isFinite, divisor.isFinite else {
      throw Failure(Status.nonfinite, "bloop: the inner products of the gradients overflow; nothing was changed")
    }
    var r = divisor > 0 ? sums[0] / divisor : 0
    if h.has("ratio_upper_bound") { r = min(r, h.ratio_upper_bound) }
    io.change(Settle(), slots: [0, 2], parameters: false)
    io.setScalar(0, 1)
    return .update(io.operation(Combine(lam: h.lam, ratio: r, scales: h.use_ratio_only), slots: [1, 2]))
  }
}
