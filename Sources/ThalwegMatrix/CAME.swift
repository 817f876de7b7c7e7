import ThalwegCore

/// CAME: Adafactor with a momentum that is divided by how far it strays from the updates.
///
///     q = g² + ε₁;   r, c ← means of the rows and columns of q, rate β₂;   u = g/√(r/mean(r))/√c
///     u ← u/max(1, rms(u)/clip_threshold);   m ← β₁·m + (1 − β₁)·u
///     r', c' ← means of (u − m)² + ε₂, rate β₃;   θ ← θ·(1 − lr·wd) − lr·m/√(r'/mean(r'))/√c'
///
/// State    m; r, c, r' and c' over the last two axes, or v for tensors of rank 0 and 1, where u = g/√v and the step
///          is m.
/// Differs  nothing from came_pytorch. No bias correction.
/// Source   Luo et al., 2023, arXiv:2307.02047.
struct CAME: WholeRule {
  static let method = Method(
    "came", .optimizer, "Adafactor with a momentum that is divided by how far it strays from the updates.",
    rule: """
      r, c <- row and column means of g^2 + eps1, rate beta2;  u = g/sqrt(r/mean(r))/sqrt(c) (rank 0, 1: g/sqrt(v))
      u <- u/max(1, rms(u)/clip_threshold);  m <- beta1*m + (1 - beta1)*u
      R, C <- row and column means of (u - m)^2 + eps2, rate beta3
      theta <- theta*(1 - lr*weight_decay) - lr*m/sqrt(R/mean(R))/sqrt(C) (rank 0, 1: lr*m)
      """,
    source: "Luo et al., 2023, arXiv:2307.02047",
    parameters: [
      .lr(2e-4), .rate("beta1", 0.9, "rate of the update"), .rate("beta2", 0.999, "rate of the squares"),
      .rate("beta3", 0.9999, "rate of the instability"),
      .number("eps1", 1e-30, .above(0), "added to the squares"),
      .number("eps2", 1e-16, .above(0), "added to the instability"),
      .number("clip_threshold", 1, .above(0), "largest RMS of an update"), .weightDecay(0, "decoupled weight decay"),
    ],
    slots: [
      .moment("exp_avg", "momentum m of the update"), Slot("exp_avg_sq_row", "second moment of the rows r"),
      Slot("exp_avg_sq_col", "second moment of the columns c"), Slot("exp_avg_res_row", "instability of the rows R"),
      Slot("exp_avg_res_col", "instability of the columns C"),
      Slot("exp_avg_sq", "second moment v of tensors of rank 0 and 1"),
    ])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let all = method.slots
    return [all[0]]
      + (shape.ndim >= 2
        ? FactoredMoment.slots(all[1], all[2], shape) + FactoredMoment.slots(all[3], all[4], shape) : [all[5]])
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2, beta3, eps1, eps2, threshold: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, beta3, eps1, eps2, threshold) = (h.beta1, h.beta2, h.beta3, h.eps1, h.eps2, h.clip_threshold)
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count, m = t.slots[0], f = FactoredMoment(t.shape)
    if let f {
      f.take(t.slots[1], t.slots[2], keep: beta2) { Double(t.v[$0]) * Double(t.v[$0]) + eps1 }
      f.divide(t.v, t.slots[1], t.slots[2], into: t.v)
    } else {
      for i in 0..<n {
        let g = Double(t.v[i]), v = beta2 * Double(t.slots[1][i]) + (1 - beta2) * (g * g + eps1)
        t.slots[1][i] = T(v)
        t.v[i] = T(g / v.squareRoot())
      }
    }
    clipRMS(t.v, n, threshold)
    for i in 0..<n { m[i] = T(beta1) * m[i] + T(1 - beta1) * t.v[i] }
    guard let f else { return t.v.update(from: m, count: n) }
    f.take(t.slots[3], t.slots[4], keep: beta3) {
      let away = Double(t.v[$0]) - Double(m[$0])
      return away * away + eps2
    }
    f.divide(m, t.slots[3], t.slots[4], into: t.v)
  }
}
