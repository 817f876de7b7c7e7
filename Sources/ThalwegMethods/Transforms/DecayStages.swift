import ThalwegCore

/// Cautious weight decay: decoupled decay only where it agrees with the step.
///
///     mask = [u·θ ≥ 0]  (zero=keep: u·θ > 0);   θ ← θ − lr·wd·mask⊙θ − lr·u
///
/// u is the direction before the step size, θ the parameters before the step. Stands behind a rule with decoupled
/// decay, and before stages that rescale what they see.
///
/// State    none.
/// Differs  signs are compared, so that no product underflows; −0 counts as 0. A coupled decay, which is in u, stays.
/// Source   2025, arXiv:2510.12402.
struct CautiousDecay: WholeRule {
  static let method = Method(
    "cautious_decay", .update, "Decoupled decay only where it agrees with the step.",
    rule: "mask = (u*theta >= 0), zero=keep: (u*theta > 0);  theta <- theta - lr*weight_decay*mask*theta - lr*u",
    source: "2025, arXiv:2510.12402",
    parameters: [.choice("zero", ["decay", "keep"], "what happens where u*theta is 0")])

  let decay: Double
  let strict: Bool
  init(_ h: Hyper, _ c: StepContext) { (decay, strict) = (c.keep == 1 ? 0 : (1 - c.keep) / c.lr, h.is("zero", "keep")) }

  /// The engine takes the whole decay: what the mask spares goes into the update.
  func apply<T: Real>(_ t: Whole<T>) {
    if decay == 0 { return }
    let wd = T(decay)
    for i in 0..<t.count {
      let u = t.v[i], x = t.w[i]
      let against = (u > 0 && x < 0) || (u < 0 && x > 0)
      if against || (strict && (u == 0 || x == 0)) { t.v[i] = u - wd * x }
    }
  }
}

/// AdamC's corrected decay: it follows the square of the step size.
///
///     θ ← θ·(1 − lr²/max_lr·wd) − lr·u,  in place of 1 − lr·wd
///
/// State    the first lr, where max_lr is not given.
/// Differs  without `max_lr` the first step size of a tensor is the peak. An lr above the peak decays more, and is not
///          clamped. Meant for layers that a normalisation follows.
/// Source   Defazio, 2025, arXiv:2506.02285.
struct CorrectedDecay: WholeRule {
  static let method = Method(
    "corrected_decay", .update, "Decoupled decay that follows the square of the step size.",
    rule: "theta <- theta*(1 - lr^2/max_lr*weight_decay) - lr*u", source: "Defazio, 2025, arXiv:2506.02285",
    parameters: [.maybe("max_lr", .above(0), "peak of the step size; none: the first one").fixed],
    slots: [Slot("max_lr", "the first step size")])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var peak = method.slots[0]
    peak.count = 1
    return h.has("max_lr") ? [] : [peak]
  }

  let decay, lr, peak: Double
  let first: Bool
  init(_ h: Hyper, _ c: StepContext) {
    (decay, lr, peak, first) = (c.keep == 1 ? 0 : (1 - c.keep) / c.lr, c.lr, h.max_lr, c.t == 1)
  }

  func apply<T: Real>(_ t: Whole<T>) {
    var peak = self.peak
    if peak.isNaN {
      if first { t.slots[0][0] = T(lr) }
      // the step size as it is kept, so that a constant one changes nothing
      peak = Double(t.slots[0][0]) == Double(T(lr)) ? lr : Double(t.slots[0][0])
    }
    if decay != 0, peak > 0, peak != lr { Flat.add(t.w, times: decay * (lr / peak - 1), into: t.v, t.count) }
    if decay != 0, peak == 0 { Flat.add(t.w, times: -decay, into: t.v, t.count) }
  }
}
