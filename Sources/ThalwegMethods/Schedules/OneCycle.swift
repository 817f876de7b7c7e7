import Glibc
import ThalwegCore

/// One cycle: up to the peak, down, and far below the start.
///
///     init = lr/div_factor, low = init/final_div_factor, p = pct_start·total
///     init → lr until p − 1, lr → low until total − 1
///     three_phase: init → lr until p − 1, lr → init until 2p − 2, init → low until total − 1
///     within [a, b]:  x + (y − x)·s((k − a)/(b − a)),  s(f) = f or (1 − cos πf)/2
///
/// State    none.
/// Differs  nothing from torch's OneCycleLR (phase ends are real numbers); the cycle of the momentum is left to a
///          second schedule.
/// Source   Smith and Topin, 2017, arXiv:1708.07120; Smith, 2018, arXiv:1803.09820.
struct OneCycle: Schedule {
  static let method = Method(
    "one_cycle", .schedule, "One cycle: up to the peak, down, and far below the start.",
    rule: """
      init = lr/div_factor, low = init/final_div_factor, p = pct_start*total
      init -> lr until p - 1, lr -> low until total - 1
      three_phase: init -> lr until p - 1, lr -> init until 2p - 2, init -> low until total - 1
      within [a, b]: x + (y - x)*s((k - a)/(b - a)),  s(f) = f or (1 - cos(pi*f))/2
      """,
    source: "Smith, Topin, 2017, arXiv:1708.07120; Smith, 2018, arXiv:1803.09820",
    parameters: [
      .lr(nil), .steps("total", "length"),
      .number("pct_start", 0.3, .between(0, 1, lowOpen: true, highOpen: true), "share of the rising phase"),
      .number("div_factor", 25, .above(0), "peak over the first value"),
      .number("final_div_factor", 1e4, .above(0), "first value over the last"),
      .choice("anneal", ["cos", "linear"], "interpolation"),
      .flag("three_phase", false, "fall to the first value before the tail"),
    ])
  private let phases: [(end: Double, from: Double, to: Double)]
  private let low, last: Double
  private let linear: Bool

  init(_ h: Hyper) {
    let lr: Double = h.lr, total: Double = h.total, start: Double = h.pct_start
    let first = lr / h.div_factor, p = start * total
    (low, last) = (first / h.final_div_factor, total - 1)
    linear = h.is("anneal", "linear")
    phases =
      h.three_phase
      ? [(p - 1, first, lr), (2 * p - 2, lr, first), (total - 1, first, low)]
      : [(p - 1, first, lr), (total - 1, lr, low)]
  }

  func value(_ k: Double) -> Double {
    if k > last { return low }  // (a second phase may end behind it)
    var a = 0.0
    for (b, x, y) in phases {
      if k <= b {
        let f = b > a ? (k - a) / (b - a) : 1
        return x + (y - x) * (linear ? f : (1 - cos(.pi * f)) / 2)
      }
      a = b
    }
    return low
  }
}
