import ThalwegCore

/// Cuts the rate when a metric stops improving.
///
///     better = x < best·(1 − threshold)  (rel, min);  x < best − threshold  (abs, min);  mirrored for max
///     better: best ← x, bad ← 0;  else bad ← bad + 1
///     within a cooldown: count it down, bad ← 0
///     bad > patience: new = max(lr·factor, min_lr), taken when lr − new > eps;  the cooldown begins, bad ← 0
///
/// State    lr, best, bad, the rest of the cooldown. It watches `metric`.
/// Differs  nothing from torch's ReduceLROnPlateau. A NaN is never better.
/// Source   folklore (PyTorch).
struct ReduceOnPlateau: Schedule {
  static let method = Method(
    "reduce_on_plateau", .schedule, "Cuts the rate when an observed metric stops improving.",
    rule: """
      better = x < best*(1 - threshold) (rel, min); x < best - threshold (abs, min); mirrored for max
      better: best <- x, bad <- 0; else bad <- bad + 1
      within a cooldown: count it down, bad <- 0
      bad > patience: new = max(lr*factor, min_lr), taken when lr - new > eps; the cooldown begins, bad <- 0
      """,
    source: "folklore (PyTorch)",
    parameters: [
      .lr(nil), .choice("mode", ["min", "max"], "what is better"),
      .number("factor", 0.1, .between(0, 1, lowOpen: true, highOpen: true), "multiplier on a plateau"),
      .steps("patience", "bad observations that are tolerated", 10),
      .number("threshold", 1e-4, .atLeast(0), "improvement that counts"),
      .choice("threshold_mode", ["rel", "abs"], "of the threshold"),
      .steps("cooldown", "observations ignored after a cut", 0),
      .number("min_lr", 0, .atLeast(0), "floor"), .eps(1e-8, "smallest cut that is made"),
    ])
  private let factor, patience, threshold, cooldown, floor, eps, sign: Double
  private let relative: Bool
  private var lr: Double, best: Double, bad = 0.0, waiting = 0.0

  init(_ h: Hyper) {
    (lr, factor, patience, threshold) = (h.lr, h.factor, h.patience, h.threshold)
    (cooldown, floor, eps, relative) = (h.cooldown, h.min_lr, h.eps, h.is("threshold_mode", "rel"))
    sign = h.is("mode", "min") ? 1 : -1
    best = sign * .infinity
  }

  func value(_ k: Double) -> Double { lr }

  mutating func observe(_ what: String, _ x: Double) throws(Failure) -> Bool {
    guard what == "metric" else { return false }
    let better = sign * x < (relative ? sign * (best * (1 - sign * threshold)) : sign * best - threshold)
    if better { (best, bad) = (x, 0) } else { bad += 1 }
    if waiting > 0 { (waiting, bad) = (waiting - 1, 0) }
    if bad > patience {
      let new = max(lr * factor, floor)
      if lr - new > eps { lr = new }
      (waiting, bad) = (cooldown, 0)
    }
    return true
  }

  var memory: [Double] {
    get { [lr, best, bad, waiting] }
    set { if newValue.count == 4 { (lr, best, bad, waiting) = (newValue[0], newValue[1], newValue[2], newValue[3]) } }
  }
}
