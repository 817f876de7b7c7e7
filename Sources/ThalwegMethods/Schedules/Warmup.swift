import ThalwegCore

/// Linear warm-up in front of any schedule.
///
///     k < W:  start + (inner(0) − start)·(k + offset)/W;   else  inner(k − W),   W = warmup_steps
///
/// State    that of the inner schedule.
/// Differs  nothing from optax.join_schedules of a line and the inner schedule. `offset=1` makes the first step move
///          already.
/// Source   Goyal et al., 2017, arXiv:1706.02677.
struct Warmup: WrappingSchedule {
  static let method = Method(
    "warmup", .schedule, "Linear warm-up in front of any schedule.",
    rule: """
      k < W: start + (inner(0) - start)*(k + offset)/W
      else:  inner(k - W),  W = warmup_steps
      """,
    source: "Goyal et al., 2017, arXiv:1706.02677",
    parameters: [
      .steps("warmup_steps", "length W of the warm-up"),
      .object("inner", .schedule, "the schedule that follows, or a constant"),
      .number("start", 0, .any, "value at step 0"),
      .integer("offset", 0, .within(0, 1), "1: the ramp counts from 1", live: false),
    ])
  let warmup, start, offset: Double
  var inner: any Schedule

  init(_ h: Hyper) throws(Failure) {
    (warmup, start, offset) = (h.warmup_steps, h.start, h.offset)
    guard let first = try h.schedules("inner").first else {
      throw Failure(Status.internal, "warmup: no inner schedule")
    }
    inner = first
  }

  func value(_ k: Double) -> Double {
    k < warmup ? start + (inner.value(0) - start) * (k + offset) / warmup : inner.value(k - warmup)
  }

  mutating func command(_ name: String, at k: Double) -> Bool { inner.command(name, at: max(k - warmup, 0)) }
}

private let warmed: [Parameter] = [
  .number("peak", nil, .atLeast(0), "value after the warm-up"), .steps("warmup", "length of the warm-up"),
  .steps("total", "length of all, the warm-up included"), .end,
]
private func fits(_ h: Hyper, _ method: String) throws(Failure) {
  let warmup = h.integer("warmup"), total = h.integer("total")
  guard total >= warmup else {
    throw Failure(
      Status.range,
      "\(method): `total` counts the warm-up too: it must not be below `warmup`, got \(total) and \(warmup)")
  }
}

/// Linear to the peak, then linear to the end.
///
///     k < warmup:  peak·k/warmup;   else the line from `peak` to `end`, which it reaches at step `total`
///
/// State    none.
/// Differs  nothing; `total` counts the warm-up too. total = warmup is `end` after the warm-up.
/// Errors   TW_ERROR_RANGE where total is below warmup.
/// Source   Devlin et al., 2018, arXiv:1810.04805.
struct WarmupLinear: Schedule {
  static let method = Method(
    "warmup_linear", .schedule, "Linear to the peak, then linear to the end.",
    rule: """
      k < warmup: peak*k/warmup
      else: linear(lr=peak, end=end, total=total - warmup) at k - warmup
      """,
    source: "Devlin, Chang, Lee, Toutanova, 2018, arXiv:1810.04805", parameters: warmed,
    validate: { (h) throws(Failure) in try fits(h, "warmup_linear") })
  let peak, warmup: Double
  let rest: Linear
  init(_ h: Hyper) {
    (peak, warmup) = (h.peak, h.warmup)
    rest = Linear(peak, h.end, h.total - warmup)
  }
  func value(_ k: Double) -> Double { k < warmup ? peak * k / warmup : rest.value(k - warmup) }
}

/// Linear to the peak, then half a cosine to the end.
///
///     k < warmup:  peak·k/warmup;   else the cosine from `peak` to `end`, which it reaches at step `total`
///
/// State    none.
/// Differs  nothing from optax.warmup_cosine_decay_schedule with init_value 0; `total` counts the warm-up too.
/// Errors   TW_ERROR_RANGE where total is below warmup.
/// Source   Goyal et al., 2017, arXiv:1706.02677; Loshchilov and Hutter, 2016, arXiv:1608.03983.
struct WarmupCosine: Schedule {
  static let method = Method(
    "warmup_cosine", .schedule, "Linear to the peak, then half a cosine to the end.",
    rule: """
      k < warmup: peak*k/warmup
      else: cosine(lr=peak, end=end, total=total - warmup) at k - warmup
      """,
    source: "Goyal et al., 2017, arXiv:1706.02677; Loshchilov, Hutter, 2016, arXiv:1608.03983", parameters: warmed,
    validate: { (h) throws(Failure) in try fits(h, "warmup_cosine") })
  let peak, warmup: Double
  let rest: Cosine
  init(_ h: Hyper) {
    (peak, warmup) = (h.peak, h.warmup)
    rest = Cosine(peak, h.end, h.total - warmup)
  }
  func value(_ k: Double) -> Double { k < warmup ? peak * k / warmup : rest.value(k - warmup) }
}
