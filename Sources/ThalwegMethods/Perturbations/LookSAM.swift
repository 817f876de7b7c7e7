import ThalwegCore

/// LookSAM: SAM at every k-th step; between them the part of its gradient that plain steps lack is used again.
///
///     t mod k = 0 (t from 0):  g′ as in sam;   v = g′ − ⟨g, g′⟩/max(‖g‖, ε)²·g;   g ← g′
///     otherwise:  g ← g + α·‖g‖/(‖v‖ + 1e-8)·v
///
/// State    v and the count t; while it asks, the parameters and the gradient.
/// Differs  norms and products are over all tensors together; scope=tensor takes those of v and of its use tensor by
///          tensor, as pytorch_optimizer.LookSAM does. The perturbation is always that of all. v = 0 leaves g; what
///          rounding leaves of v where the gradients are parallel is 0.
/// Source   Liu, Mai, Chen, Hsieh and You, 2022, arXiv:2203.02714.
struct LookSAM: Source {
  static let method = Method(
    "looksam", .perturbation, "SAM at every k-th step; between them its part across the gradient is used again.",
    rule: """
      t mod k = 0 (t from 0): n = gradient at theta + rho/(|g| + eps) * g;  v = n - <g, n>/max(|g|, eps)^2 * g;  g <- n
      otherwise: g <- g + alpha*|g|/(|v| + 1e-8) * v;  norms of v's making and use with scope=tensor of each tensor
      """,
    source: "Liu, Mai, Chen, Hsieh, You, 2022, arXiv:2203.02714",
    parameters: [
      .number("rho", 0.05, .atLeast(0), "radius"),
      .integer("k", 5, .atLeast(1), "steps from one SAM step to the next").forAll,
      .number("alpha", 0.7, .atLeast(0), "length of the part that is used again"),
      .choice("scope", scopes, "of the products: over each tensor, or over all together", standard: 1).forAll,
      .eps(1e-12, "added to the norm").forAll,
    ],
    slots: [Slot("across", "the part v of SAM's gradient across the gradient"), homeSlot, gradientSlot],
    requests: "gradient")

  let slots = LookSAM.method.slots
  let scalars = [Scalar("steps")]
  private let across = 0, point = 1, gradient = 2
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }
  /// v = g − share·g₀; an entry that is as small as rounding makes it is 0: steps between use its direction alone.
  private struct Split: ElementOperation {
    let share: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let v = g - share * s[1], noise = g.magnitude * (L.width == 16 ? 0x1p-22 : 0x1p-51)
      s[0] = L.select(L.less(v.magnitude, noise), L(0), v)
    }
  }
  /// g + factor·v in the place of the gradient.
  private struct Reuse: ElementOperation {
    let factor: Factor
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[1] = g + factor * s[0]
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let h = io.hyper, eps: Double = h.eps, every: Double = h.k, t = io.scalar(0), each = h.is("scope", "tensor")
    /// What one reading of the sums makes of all tensors together, or of each alone.
    func scoped(_ slots: [Int], _ read: (SourceTotals) -> Double) -> (_ tensor: Int) -> Double {
      if each {
        let all = io.sums(SlotProducts(), slots: slots).map(read)
        return { all[$0] }
      }
      let one = read(io.sum(SlotProducts(), slots: slots))
      return { _ in one }
    }
    if phase > 0 {
      let share = scoped([gradient]) { sums in
        let norm = larger(sums.root(0), eps)
        return norm > 0 ? sums[1] / norm / norm : 0
      }
      io.change(slots: [across, gradient], parameters: false, each: { Split(share: share($0)) })
      io.comeHome()
      io.setScalar(0, t + 1)
      return .update(nil)
    }
    if t.truncatingRemainder(dividingBy: every) == 0 {
      let norm = io.sum(SquaredNorm()).root(0)
      io.change(slots: [point, gradient], parameters: true) { KeepAndAscend(scale: perLength($0.rho, norm, eps)) }
      return .ask(Ask(.gradient))
    }
    let ratio = scoped([across]) { $0.root(2) / ($0.root(0) + 1e-8) }
    io.change(
      slots: [across, gradient], parameters: false,
      each: { tensor in
        Reuse(factor: Factor(io.hyper(of: tensor).alpha * ratio(tensor)))
      })
    io.setScalar(0, t + 1)
    return .update(io.gradient(in: gradient))
  }
}
