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
    ])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    shape.ndim >= 2 ? FactoredMoment.slots(method.slots[0], method.slots[1], shape) : [method.slots[2]]
  }
  static func decay(_ h: Hyper) -> Decay { .rule }
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

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count
    if bound < .infinity { for i in 0..<n { t.v[i] = min(max(t.v[i], T(-bound)), T(bound)) } }
    if factor != 1 { Flat.scale(t.v, by: factor, into: t.v, n) }
    if let f = FactoredMoment(t.shape) {
      f.take(t.slots[0], t.slots[1], keep: keep) { Double(t.v[$0]) * Double(t.v[$0]) + eps1 }
      f.divide(t.v, t.slots[0], t.slots[1], into: t.v)
    } else {
      for i in 0..<n {
        let g = Double(t.v[i]), v = keep * Double(t.slots[0][i]) + (1 - keep) * (g * g + eps1)
        t.slots[0][i] = T(v)
        t.v[i] = T(g / v.squareRoot())
      }
    }
    clipRMS(t.v, n, threshold)
    if decay != 0 { Flat.add(t.w, times: decay, into: t.v, n) }
    Flat.scale(t.v, by: max(eps2, Flat.norm(t.w, n) / Double(n).squareRoot()), into: t.v, n)
  }
}
