import Glibc
import ThalwegCore

/// AdaLOMO: Adafactor without momentum, with a step relative to the size of the weights.
///
///     clip_value, clip_norm: g as in `lomo`, first
///     q = g² + ε₁;  β = 1 − t^decay_rate;   r ← β·r + (1 − β)·(means of the rows of q),  c of the columns
///     u = g/√(r/mean(r))/√c;   u ← u/max(1, rms(u)/threshold);   η = lr·max(ε₂, rms(θ))
///     θ ← θ·(1 − η·wd) − η·u
///
/// State    r and c over the last two axes; v for tensors of rank 0 and 1, where u = g/√v.
/// Differs  leading axes are problems of their own, as in Adafactor. The norm of clip_norm is that of the host's
///          gradients.
/// Source   Lv et al., 2023, arXiv:2310.10195.
struct AdaLOMO: WholeRule {
  static let method = Method(
    "adalomo", .optimizer, "Adafactor without momentum, with a step relative to the size of the weights.",
    rule: """
      clip_value: g <- clip(g, -clip_value, clip_value);  clip_norm: g <- g*min(1, clip_norm/(N + 1e-6)), N before it
      q = g^2 + eps1;  b = 1 - t^decay_rate;  r <- b*r + (1 - b)*mean_columns(q);  c <- b*c + (1 - b)*mean_rows(q)
      u = g/sqrt(r/mean(r))/sqrt(c) (rank 0, 1: g/sqrt(v));  u <- u/max(1, rms(u)/threshold)
      eta = lr*max(eps2, rms(theta));  theta <- theta*(1 - eta*weight_decay) - eta*u
      """,
    source: "Lv et al., 2023, arXiv:2310.10195",
    parameters: [
      .lr(1e-3), .weightDecay(0, "decoupled weight decay, with the tensor's step size"),
      .number("threshold", 1, .above(0), "largest RMS of the update"),
      .number(
        "decay_rate", -0.8, .between(-.infinity, 0, lowOpen: true, highOpen: true), "power of the step in 1 - beta"),
      .number("eps1", 1e-30, .above(0), "added to the squares"),
      .number("eps2", 1e-3, .above(0), "floor of the RMS of the weights"),
      .maybe("clip_norm", .above(0), "largest norm of all gradients").fixed.forAll,
      .maybe("clip_value", .above(0), "bound of every entry of the gradient"),
    ],
    slots: [
      Slot("row_var", "second moment of the rows r"), Slot("col_var", "second moment of the columns c"),
      Slot("variance", "second moment v of tensors of rank 0 and 1"),
    ], needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    shape.ndim >= 2 ? FactoredMoment.slots(method.slots[0], method.slots[1], shape) : [method.slots[2]]
  }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { FactoredMoment.workspace(shape, size) }
  static func scalars(_ h: Hyper) -> [Scalar] { h.given("clip_norm") ? [Scalar("norm")] : [] }

  static let registered = entry(
    AdaLOMO.self, source: { (h) throws(Failure) in h.given("clip_norm") ? GradientNorm(h) : nil })

  /// ‖g‖ over all tensors.
  struct GradientNorm: Source {
    static var method: Method { AdaLOMO.method }
    init(_ h: Hyper) {}
    var single: Bool { true }
    var global: Bool { true }
    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      io.setScalar(0, io.sum(SquaredNorm()).root(0))
      return .update(nil)
    }
  }

  let keep, eps1, eps2, threshold, decay, factor, bound: Double

  init(_ h: Hyper, _ c: StepContext) {
    keep = 1 - pow(c.time, h.decay_rate)
    (eps1, eps2, threshold, decay) = (h.eps1, h.eps2, h.threshold, c.weightDecay)
    factor = h.has("clip_norm") ? min(1, h.clip_norm / (c.scalars[0] + 1e-6)) : 1
    bound = h.has("clip_value") ? h.clip_value : .infinity
  }

  /// The gradient within its bound, then times the factor.
  struct Clip: ElementOperation {
    let bound, factor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      x = x.clipped(to: bound) * factor
    }
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = Double(t.count)
    guard n > 0 else { return }
    if bound < .infinity || factor != 1 { t.change(Clip(bound: bound, factor: factor)) }
    let weights = t.sums(SquaredNorm()).first
    let size = max(eps2, (weights < 1e280 ? weights.squareRoot() : Flat.norm(t.w, t.count)) / n.squareRoot())
    guard let f = FactoredMoment(t.shape) else {
      t.change(CAME.Direction(keep: keep, eps: eps1), slots: 0..<1)
      let share = shareOfUpdate(t.sums(SquaredValues()).first / n, threshold)
      return t.change(ScaleAndDecay(scale: share * size, decay: decay * size))
    }
    let (r, c) = (t.slots[0], t.slots[1])
    let square = f.take(t.v, r, c, FactoredMoment.Rate(keep: keep, new: 1 - keep, eps: eps1), t.workspace)
    f.divide(t.v, r, c, scale: shareOfUpdate(square / n, threshold) * size, t.workspace, into: t.v)
    if decay != 0 { t.change(ScaleAndDecay(scale: 1, decay: decay * size)) }
  }
}
