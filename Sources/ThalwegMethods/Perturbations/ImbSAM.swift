import ThalwegCore

/// Imbalanced SAM: only the loss of rare classes is made flat.
///
///     h, t = the gradients of tasks 0 (frequent classes) and 1 (rare ones);   e = ρ·t/(‖t‖ + ε)
///     g ← h + (gradient of task 1 at θ + e), on the same minibatch
///
/// State    the parameters and h while it asks; nothing between steps.
/// Differs  the split is the host's: a class with fewer than some 20 samples is rare, and both losses are divided by
///          the whole batch. The authors' code also doubles the loss of the rare ones. Without rare samples (t = 0) the
///          second pass is left out.
/// Source   Zhou, Qu, Xu and Shen, 2023, arXiv:2308.07815.
struct ImbSAM: Source {
  static let method = Method(
    "imbsam", .perturbation, "SAM for the loss of the rare classes alone.",
    rule: """
      h, t = gradients of tasks 0 (frequent classes) and 1 (rare ones);  e = rho/(|t| + eps) * t
      g <- h + gradient of task 1 at theta + e, on the same minibatch
      """,
    source: "Zhou, Qu, Xu, Shen, 2023, arXiv:2308.07815",
    parameters: [.number("rho", 0.05, .atLeast(0), "radius"), .eps(1e-16, "added to the norm")],
    slots: [homeSlot, Slot.temporary("frequent", "the gradient of the frequent classes")], requests: "task_gradient")

  let slots = ImbSAM.method.slots
  private let point = 0, frequent = 1
  init(_ h: Hyper) {}
  var opens: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { Ask(.taskGradient, index: 0, count: 2) }
  func most(_ tensors: Int) -> Int { 3 }
  var kinds: [Request.Kind] { [.taskGradient] }
  private struct Add: ElementOperation {
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = s[0] + x }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let rare = Ask(.taskGradient, index: 1, count: 2)
    switch phase {
    case 0:
      io.change(SaveGradient(), slots: [frequent], parameters: false)
      return .ask(rare)
    case 1:
      let norm = io.sum(SquaredNorm()).root(0)
      if norm == 0 { return .update(io.gradient(in: frequent)) }
      io.change(slots: [point], parameters: true) { Ascend(scale: perLength($0.rho, norm, $0.eps)) }
      return .ask(rare)
    default:
      io.comeHome()
      return .update(io.operation(Add(), slots: [frequent]))
    }
  }
}
