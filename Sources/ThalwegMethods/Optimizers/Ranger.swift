import ThalwegCore

/// Ranger: RAdam on centred gradients, followed by slow weights.
///
///     rank ≥ 2 (conv_only: ≥ 4):  g ← g − (its mean over all axes but the first);   θ ← θ·(1 − lr·wd)
///     m, v and ρ as RAdam;   ρ > threshold:  θ ← θ − lr/c₁·√(c₂·r²)·m/(√v + ε),  else θ ← θ − lr/c₁·m (warm=sgd) or θ
///     every k-th step:  slow ← slow + α·(θ − slow),  θ ← slow
///
/// State    m, v, slow (which starts at the parameters).
/// Differs  the step while ρ is small goes down (pytorch-optimizer's default goes up). ε is added to the uncorrected
///          root. The slow weights are taken anew where the host writes the parameters.
/// Source   Wright, 2019; Liu et al., 2019, arXiv:1908.03265; Yong et al., 2020, arXiv:2004.01461; Zhang et al., 2019,
///          arXiv:1907.08610.
struct Ranger: WholeRule {
  static let method = Method(
    "ranger", .optimizer, "RAdam on centred gradients, followed by slow weights.",
    rule: """
      rank >= 2 (conv_only: >= 4): g <- g - its mean over all axes but the first;  theta <- theta*(1 - lr*weight_decay)
      m, v, rho, rho_inf as radam;  rho > threshold: theta <- theta - lr/c1*sqrt(c2)*r*m/(sqrt(v) + eps), r as radam
      else: theta <- theta - lr/c1*m (warm=sgd), or nothing
      every k-th step: slow <- slow + alpha*(theta - slow), theta <- slow
      """,
    source:
      "Wright, 2019; Liu et al., 2019, arXiv:1908.03265; Yong et al., 2020, arXiv:2004.01461; Zhang et al., 2019, "
      + "arXiv:1907.08610",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.95, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-5), .weightDecay(0, "decoupled weight decay"),
      .number("alpha", 0.5, .within(0, 1), "step of the slow weights"),
      .integer("k", 6, .atLeast(1), "period of the slow weights", live: false),
      .number("threshold", 5, .atLeast(4), "the variance is rectified above this rho"),
      .flag("centralize", true, "centre the gradients"),
      .flag("conv_only", false, "centre those of tensors of rank 4 and more alone"),
      .choice("warm", ["sgd", "none"], "the step before the variance is rectified"),
    ],
    slots: Adam.moments + [Slot("slow", "the slow weights", start: .iterate())], requests: "own-step")

  static func decay(_ h: Hyper) -> Decay { .rule }

  static var leavesPoint: Bool { true }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { 1 }

  let beta1, beta2, eps, rate, keep, alpha: Double
  let adapted, centres, synchronises: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, alpha) = (h.beta1, h.beta2, h.eps, h.alpha)
    let decayed = power(beta2, c.t), c2 = 1 - decayed, r1 = 1 / (1 - power(beta1, c.t))
    let limit = 2 / (1 - beta2) - 1, rho = limit - 2 * c.time * decayed / c2
    adapted = rho > h.threshold
    rate =
      adapted
      ? c.lr * r1 * (c2 * (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)).squareRoot()
      : h.is("warm", "sgd") ? c.lr * r1 : 0
    keep = 1 - c.lr * c.weightDecay
    centres = h.centralize && c.ndim > (h.conv_only ? 3 : 1)
    synchronises = c.t % max(1, h.integer("k")) == 0
  }

  /// x: the gradient, then the new parameter; g: the parameter.
  struct Move: ElementOperation {
    let rule: Ranger
    var mean = 0.0
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let d = x - mean
      let m = rule.beta1 * s[0] + (1 - rule.beta1) * d, v = rule.beta2 * s[1] + (1 - rule.beta2) * (d * d)
      s[0] = m
      s[1] = v
      let top = rule.rate * m
      var new = g * rule.keep - (rule.adapted ? (v.squareRoot() + rule.eps).divide(top) : top)
      if rule.synchronises {
        new = s[2] + rule.alpha * (new - s[2])
        s[2] = new
      }
      x = new
    }
  }
  struct Total: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) { sums.add(0, x) }
  }

  /// Entries of rows that are centred before they move.
  private static let piece = 8192

  func apply<T: Real>(_ t: Whole<T>) {
    let length = t.columns, piece = Ranger.piece
    guard centres, length > 0 else { return t.change(Move(rule: self), slots: 0..<3) }
    if length > piece {
      for r in 0..<t.rows {
        let row = (r * length)..<((r + 1) * length)
        let mean = t.sums(Total(), in: row).first / Double(length)
        t.change(Move(rule: self, mean: mean), slots: 0..<3, in: row)
      }
      return
    }
    Parts(t.rows, of: length).forEach { _, part in
      for first in stride(from: part.lowerBound, to: part.upperBound, by: piece / length) {
        let rows = first..<min(first + piece / length, part.upperBound)
        for r in rows {
          let row = t.v + r * length
          Flat.shift(row, by: -Flat.sum(row, length) / Double(length), length)
        }
        t.change(Move(rule: self), slots: 0..<3, in: (rows.lowerBound * length)..<(rows.upperBound * length))
      }
    }
  }
}
