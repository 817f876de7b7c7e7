import ThalwegCore

/// What the decay of a step takes from a weight, over the step size: a stage that subtracts it from the update spares
/// the weight, which then stays as it is, to the bit, where nothing else moves it.
struct TakenDecay {
  let keep, inverse: Double
  init(_ c: StepContext) { (keep, inverse) = (c.keep, c.keep == 1 || c.lr == 0 ? 0 : 1 / c.lr) }
  var isNone: Bool { inverse == 0 }
  @inline(__always) func of<L: Lane>(_ x: L) -> L { (x - keep * x) * inverse }
}

/// Cautious weight decay: decoupled decay only where it agrees with the step.
///
///     mask = [u·θ ≥ 0]  (zero=keep: u·θ > 0);   θ ← θ − lr·wd·mask⊙θ − lr·u
///
/// u is the direction before the step size as stages that change directions leave it, θ the parameters before the step.
/// Stands behind a rule with decoupled decay; the mask is on what `corrected_decay` makes of that.
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

  static func place(_ h: Hyper) -> UpdatePlace { .decay }
  static var masksDecay: Bool { true }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { 1 }

  let decay: TakenDecay, strict: Bool
  init(_ h: Hyper, _ c: StepContext) { (decay, strict) = (TakenDecay(c), h.is("zero", "keep")) }

  /// The engine takes the whole decay: what the mask spares goes into the update.
  func apply<T: Real>(_ t: Whole<T>) {
    if !decay.isNone { t.change(Spare(decay: decay, strict: strict)) }
  }
  struct Spare: ElementOperation {
    let decay: TakenDecay, strict: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ u: inout L, _ x: inout L, _ s: Slots<L>) {
      let zero = L(0), side = u.sign * x, spared = u - decay.of(x)
      var kept = L.select(L.less(side, zero), spared, u)
      if strict { kept = L.select(L.equal(u, zero), spared, L.select(L.equal(x, zero), spared, kept)) }
      u = kept
    }
  }
}

/// AdamC's corrected decay: it follows the square of the step size.
///
///     θ ← θ·(1 − lr²/max_lr·wd) − lr·u,  in place of 1 − lr·wd
///
/// State    the first lr, where max_lr is not given.
/// Differs  without `max_lr` the peak is that of the rule's schedule (the present lr, where that grows without end), or
///          the first step size of a tensor above 0. An lr above the peak decays more, and is not clamped. Meant for
///          layers that a normalisation follows.
/// Source   Defazio, 2025, arXiv:2506.02285.
struct CorrectedDecay: WholeRule {
  static let method = Method(
    "corrected_decay", .update, "Decoupled decay that follows the square of the step size.",
    rule: "theta <- theta*(1 - lr^2/max_lr*weight_decay) - lr*u", source: "Defazio, 2025, arXiv:2506.02285",
    parameters: [
      .maybe("max_lr", .above(0), "peak of the step size; none: that of its schedule, else the first one").fixed
    ],
    slots: [Slot("max_lr", "the first step size")])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var peak = method.slots[0]
    peak.count = 1
    return h.has("max_lr") ? [] : [peak]
  }

  static func place(_ h: Hyper) -> UpdatePlace { .decay }
  static var setsDecay: Bool { true }

  let lr, peak: Double
  let first, isDouble: Bool
  init(_ h: Hyper, _ c: StepContext) {
    (lr, first, isDouble) = (c.lr, c.t == 1, c.isDouble)
    peak = h.has("max_lr") ? h.max_lr : c.peak
  }

  func decay(_ decay: Double, _ number: inout Double) -> Double {
    var peak = self.peak
    if peak.isNaN {
      if first || number == 0 { number = lr }
      // the step size as it is kept, so that a constant one changes nothing
      peak = number == (isDouble ? lr : Double(Float(lr))) ? lr : number
    }
    if peak == .infinity { return decay }
    return peak > 0 ? decay * (lr / peak) : 0
  }
  func apply<T: Real>(_ t: Whole<T>) {}
}

/// Decoupled weight decay as a stage of its own, behind a rule that has none.
///
///     lr_scaled     θ ← θ − lr·wd·(θ − anchor) − lr·u
///     independent   θ ← θ − (lr/max_lr)·wd·(θ − anchor) − lr·u,   max_lr the first step size unless given
///
/// u is the direction before the step size. The anchor is 0, or where the parameters started. Tensors of a rank below
/// `min_rank` (biases, scales) have no decay.
///
/// State    the anchor, where there is one; the first lr, where it is needed.
/// Differs  torch's AdamW is lr_scaled, the paper's text independent. A factor above 1 is allowed, and flips signs.
/// Source   Loshchilov, Hutter, 2019, arXiv:1711.05101.
struct DecoupledWeightDecay: WholeRule {
  static let method = Method(
    "decoupled_weight_decay", .update, "Decoupled weight decay, toward zero or toward where the parameters started.",
    rule: """
      lr_scaled: theta <- theta - lr*weight_decay*(theta - anchor) - lr*u
      independent: theta <- theta - lr/max_lr*weight_decay*(theta - anchor) - lr*u
      """,
    source: "Loshchilov, Hutter, 2019, arXiv:1711.05101",
    parameters: [
      .weightDecay(0.01), .choice("mode", ["lr_scaled", "independent"], "what it is multiplied by", live: false),
      .choice("anchor", ["zero", "start"], "where it pulls to", live: false),
      .maybe("max_lr", .above(0), "peak of the step size in mode independent; none: as in corrected_decay").fixed,
      .integer("min_rank", 2, .atLeast(0), "tensors of a lower rank have no decay"),
    ],
    slots: [
      Slot("anchor", "the parameters of the first step", start: .parameters), Slot("max_lr", "the first step size"),
    ])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var peak = method.slots[1]
    peak.count = 1
    return (h.is("anchor", "start") ? [method.slots[0]] : [])
      + (h.is("mode", "independent") && !h.has("max_lr") ? [peak] : [])
  }

  static func place(_ h: Hyper) -> UpdatePlace { .addedDecay }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { 1 }

  let decay, lr, peak: Double
  let first, anchored, independent: Bool
  init(_ h: Hyper, _ c: StepContext) {
    decay = c.ndim < h.integer("min_rank") ? 0 : h.weight_decay
    (lr, peak, first) = (c.lr, h.has("max_lr") ? h.max_lr : c.peak, c.t == 1)
    (anchored, independent) = (h.is("anchor", "start"), h.is("mode", "independent"))
  }

  func apply<T: Real>(_ t: Whole<T>) {
    var factor = decay
    if independent {
      if peak.isNaN, let slot = t.slots.last, first || slot[0] == 0 { slot[0] = T(lr) }
      let top = peak.isNaN ? Double(t.slots.last?[0] ?? 0) : peak == .infinity ? lr : peak
      factor = top > 0 ? decay / top : 0
    }
    if factor == 0 || lr == 0 { return }
    Flat.add(t.w, times: factor, into: t.v, t.count)
    if anchored { Flat.add(t.slots[0], times: -factor, into: t.v, t.count) }
  }
}
