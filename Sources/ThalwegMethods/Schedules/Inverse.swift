import ThalwegCore

/// Linear warm-up, then the inverse square root of the step.
///
///     k < W:  start + (lr − start)·k/W;   else  lr·√(max(W, 1)/max(k, 1)),   W = warmup_steps
///
/// State    none.
/// Differs  nothing from fairseq's inverse_sqrt. `lr` is the peak.
/// Source   Vaswani et al., 2017, arXiv:1706.03762.
struct InverseSqrt: Schedule {
  static let method = Method(
    "inverse_sqrt", .schedule, "Linear warm-up, then the inverse square root of the step.",
    rule: """
      k < W: start + (lr - start)*k/W
      else:  lr * sqrt(max(W, 1)/max(k, 1)),  W = warmup_steps
      """,
    source: "Vaswani et al., 2017, arXiv:1706.03762",
    parameters: [
      .lr(nil), .steps("warmup_steps", "length of the warm-up", 1000), .number("start", 0, .any, "value at step 0"),
    ])
  let lr, warmup, start: Double
  init(_ h: Hyper) { (lr, warmup, start) = (h.lr, h.warmup_steps, h.start) }
  func value(_ k: Double) -> Double {
    k < warmup ? start + (lr - start) * k / warmup : lr * (max(warmup, 1) / max(k, 1)).squareRoot()
  }
}

/// Diminishing steps.
///
///     value = lr/(1 + k_decay·k)
///
/// State    none.
/// Differs  nothing.
/// Source   Robbins and Monro, 1951; Bottou, Curtis and Nocedal, 2016, arXiv:1606.04838.
struct InverseTime: Schedule {
  static let method = Method(
    "inverse_time", .schedule, "Diminishing steps, in inverse proportion to the step.",
    rule: "value = lr / (1 + k_decay*k)",
    source: "Robbins, Monro, 1951; Bottou, Curtis, Nocedal, 2016, arXiv:1606.04838",
    parameters: [.lr(nil), .number("k_decay", 1, .atLeast(0), "decay per step")])
  let lr, decay: Double
  init(_ h: Hyper) { (lr, decay) = (h.lr, h.k_decay) }
  func value(_ k: Double) -> Double { lr / (1 + decay * k) }
}
