import ThalwegCore

/// Cautious updates: only the entries of an update that agree in sign with the gradient stay.
///
///     mask = [u·g > 0];   u ← u · mask · scale,   `mean`: 1/max(kept/n, 10⁻³),  `count`: n/(kept + 1),  `none`: 1
///     NaN where u or g is NaN
///
/// The count is over each tensor. u is the direction before the step size; decoupled decay is outside.
///
/// State    none.
/// Differs  `mean` is the authors' present code, `count` the paper's form. Signs are compared, so that no product
///          underflows.
/// Source   Liang et al., 2024, arXiv:2411.16085.
struct Cautious: ElementRule {
  static let scale = Parameter.choice(
    "scale", ["mean", "count", "none"], "divide by the kept share, multiply by n/(kept + 1), or neither", live: false)
  static let method = Method(
    "cautious", .update, "Cautious updates: only the entries that agree in sign with the gradient stay.",
    rule: """
      mask = (u*g > 0);  u <- u*mask*scale
      scale mean: 1/max(kept/n, 1e-3);  count: n/(kept + 1);  none: 1
      """,
    source: "Liang, Chen, Liu, Liu, 2024, arXiv:2411.16085", parameters: [scale])

  static func phases(_ h: Hyper) -> Int { h.is("scale", "none") ? 0 : 1 }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("factor", 1)] }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let n = Double(c.count), kept = totals[0]
    s[0] = h.is("scale", "mean") ? 1 / max(kept / max(n, 1), 1e-3) : n / (kept + 1)
  }

  let factor: Double

  init(_ h: Hyper, _ c: StepContext) { factor = c.scalars[0] }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ u: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.count(0, L.self, where: Cautious.agree(u, g))
  }
  @inline(__always) func direction<L: Lane>(_ u: L, _ g: L, _ s: Slots<L>) -> L {
    let product = u.sign * g
    return L.select(Cautious.agree(u, g), u * factor, L.select(L.equal(product, product), L(0), product))
  }

  @inline(__always) static func agree<L: Lane>(_ u: L, _ g: L) -> L.Mask { L.less(L(0), u.sign * g) }
}

/// C-AdamW: AdamW whose update is cautious. A name for `adamw(...) | cautious(scale=...)`.
enum CautiousAdamW: Listed {
  static let registered = alias(
    Method(
      "cautious_adamw", .optimizer,
      "C-AdamW: AdamW whose update keeps only the entries that agree in sign with the gradient.",
      rule: "adamw(...) | cautious(scale=...)", source: "Liang, Chen, Liu, Liu, 2024, arXiv:2411.16085",
      parameters: AdamW.method.parameters + [Cautious.scale], slots: AdamW.method.slots)
  ) { h in [h.node("adamw", AdamW.method.parameters), h.node("cautious", [Cautious.scale])] }
}
