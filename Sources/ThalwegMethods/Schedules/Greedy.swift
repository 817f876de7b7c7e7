import ThalwegCore

/// GreedyLR: the rate rises while a metric improves, and falls where it does not.
///
///     x: the metric, or (smooth) the mean of the last `window` of them
///     a cooldown, else a warm-up, is counted down, with good = bad = 0; otherwise:
///     better (as reduce_on_plateau): best ← x, good + 1, bad ← 0;   else bad + 1, good ← 0
///     good > patience:  lr ← min(lr/factor, max_lr);  a warm-up begins, good ← 0, resets ← reset_start
///     bad > patience:   lr ← max(lr·factor, min_lr);  a cooldown begins, bad ← 0;
///                       at min_lr: resets − 1, and at 0 all begins anew
///
/// Changes of at most ε are not made.
///
/// State    lr, best, good, bad, the rests of cooldown and warm-up, resets, the window. It watches `metric`.
/// Differs  nothing from transformers' GreedyLR, but that min_lr above lr is refused: its own default of 10⁻³ is above
///          most rates of Adam. A NaN is never better.
/// Source   arXiv:2512.14527.
struct Greedy: Schedule {
  static let method = Method(
    "greedy", .schedule, "The rate rises while an observed metric improves, and falls where it does not.",
    rule: """
      x: the metric, or the mean of the last `window` of them (smooth)
      a cooldown or a warmup counts down, with good = bad = 0; else
      better: best <- x, good + 1, bad <- 0; else bad + 1, good <- 0
      good > patience: lr <- min(lr/factor, max_lr), warmup begins, good <- 0, resets <- reset_start
      bad > patience: lr <- max(lr*factor, min_lr), cooldown begins, bad <- 0; at min_lr resets - 1, at 0 all anew
      """,
    source: "arXiv:2512.14527",
    parameters: [
      .lr(nil), .choice("mode", ["min", "max"], "what is better"),
      .number("factor", 0.95, .between(0, 1, lowOpen: true, highOpen: true), "multiplier on a plateau"),
      .steps("patience", "observations of one kind that are tolerated", 10),
      .number("threshold", 1e-6, .atLeast(0), "improvement that counts"),
      .choice("threshold_mode", ["abs", "rel"], "of the threshold"),
      .steps("cooldown", "observations ignored after a cut", 0),
      .steps("warmup", "observations ignored after a rise", 0),
      .number("min_lr", 1e-3, .atLeast(0), "floor"), .number("max_lr", 1, .atLeast(0), "ceiling"),
      .eps(1e-8, "smallest change that is made"), .flag("smooth", false, "look at the mean of a window"),
      .integer("window", 50, .within(1, 1e6), "length of the window", live: false),
      .steps("reset_start", "cuts at the floor before all begins anew", 500),
    ],
    validate: { (h) throws(Failure) in
      let lr: Double = h.lr, low: Double = h.min_lr, high: Double = h.max_lr
      guard !(low > lr), !(lr > high) else {
        throw Failure(
          Status.range,
          "greedy: `lr` must lie between `min_lr` = \(text(low)) and `max_lr` = \(text(high)), got \(text(lr))")
      }
    })

  private let first, factor, patience, threshold, cooldown, warmup, low, high, eps, sign, start: Double
  private let relative, smooth: Bool
  private let length: Int
  private var lr, best, resets: Double
  private var good = 0.0, bad = 0.0, cooling = 0.0, warming = 0.0
  private var window: [Double] = []

  init(_ h: Hyper) {
    (first, factor, patience, threshold) = (h.lr, h.factor, h.patience, h.threshold)
    (cooldown, warmup, low, high, eps, start) = (h.cooldown, h.warmup, h.min_lr, h.max_lr, h.eps, h.reset_start)
    (relative, smooth, length) = (h.is("threshold_mode", "rel"), h.smooth, max(1, h.integer("window")))
    sign = h.is("mode", "min") ? 1 : -1
    (lr, best, resets) = (first, sign * .infinity, start)
  }

  func value(_ k: Double) -> Double { lr }

  mutating func observe(_ what: String, _ value: Double) throws(Failure) -> Bool {
    guard what == "metric" else { return false }
    var x = value
    if smooth {
      window.append(x.isNaN ? sign * .infinity : x)  // never better either, and it can be written
      if window.count > length { window.removeFirst() }
      x = window.reduce(0, +) / Double(window.count)
    }
    if cooling > 0 || warming > 0 {
      if cooling > 0 { cooling -= 1 } else { warming -= 1 }
      (good, bad) = (0, 0)
      return true
    }
    if sign * x < (relative ? sign * (best * (1 - sign * threshold)) : sign * best - threshold) {
      (best, good, bad) = (x, good + 1, 0)
    } else {
      (good, bad) = (0, bad + 1)
    }
    if good > patience {
      let new = min(lr / factor, high)
      if new - lr > eps { lr = new }
      (warming, good, resets) = (warmup, 0, start)
    } else if bad > patience {
      let new = max(lr * factor, low)
      if lr - new > eps { lr = new }
      if lr == low {
        resets -= 1
        if resets <= 0 {
          (lr, best, resets, good, window) = (first, sign * .infinity, start, 0, [])
        }
      }
      (cooling, bad) = (cooldown, 0)
    }
    return true
  }

  var memory: [Double] {
    get { [lr, best, good, bad, cooling, warming, resets, Double(window.count)] + window }
    set {
      guard takes(newValue[...]) == newValue.count else { return }
      (lr, best, good, bad) = (newValue[0], newValue[1], newValue[2], newValue[3])
      (cooling, warming, resets) = (newValue[4], newValue[5], newValue[6])
      window = Array(newValue.dropFirst(8))
    }
  }
  func takes(_ numbers: ArraySlice<Double>) -> Int? {
    let own = Array(numbers.prefix(8))
    guard own.count == 8, !own.contains(where: \.isNaN), own[7] >= 0, own[7] <= Double(length),
      own[7] == own[7].rounded()
    else { return nil }
    let all = 8 + Int(own[7])
    return numbers.count >= all ? all : nil
  }
}
