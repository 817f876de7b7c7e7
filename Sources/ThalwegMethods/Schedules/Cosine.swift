import Glibc
import ThalwegCore

/// Half a cosine from `lr` to `end`.
///
///     f = clip(k/total, 0, 1);  value = end + (lr − end)·(1 + cos πf)/2
///
/// State    none.
/// Differs  stays at `end` after `total`, as optax does; torch's CosineAnnealingLR comes up again.
/// Source   Loshchilov and Hutter, 2016, arXiv:1608.03983.
struct Cosine: Schedule {
  static let method = Method(
    "cosine", .schedule, "Half a cosine from `lr` to `end`.",
    rule: """
      f = clip(k/total, 0, 1)
      value = end + (lr - end)*(1 + cos(pi*f))/2
      """,
    source: "Loshchilov, Hutter, 2016, arXiv:1608.03983", parameters: [.lr(nil), .steps("total", "length"), .end])
  let lr, end, total: Double
  init(_ h: Hyper) { (lr, end, total) = (h.lr, h.end, h.total) }
  init(_ lr: Double, _ end: Double, _ total: Double) { (self.lr, self.end, self.total) = (lr, end, total) }
  func value(_ k: Double) -> Double { end + (lr - end) * (1 + cos(.pi * fraction(k, total))) / 2 }
}

/// Cosine annealing in periods that grow by a factor.
///
///     periods t0, t0·t_mult, t0·t_mult², ...; at step j of a period of length T:  value = end + (lr − end)·(1 +
///     cos(πj/T))/2
///
/// State    none.
/// Differs  nothing from torch's CosineAnnealingWarmRestarts at whole steps.
/// Source   Loshchilov and Hutter, 2016, arXiv:1608.03983 (SGDR).
struct CosineRestarts: Schedule {
  static let method = Method(
    "cosine_restarts", .schedule, "Cosine annealing that starts again in periods that grow by a factor.",
    rule: """
      periods t0, t0*t_mult, t0*t_mult^2, ...; at step j of a period of length T:
      value = end + (lr - end)*(1 + cos(pi*j/T))/2
      """,
    source: "Loshchilov, Hutter, 2016, arXiv:1608.03983",
    parameters: [
      .lr(nil), .steps("t0", "length of the first period", from: 1), .end,
      .steps("t_mult", "factor between periods", 1, from: 1),
    ])
  let lr, end, first, factor: Double
  init(_ h: Hyper) { (lr, end, first, factor) = (h.lr, h.end, h.t0, h.t_mult) }

  func value(_ k: Double) -> Double {
    var j = k, period = first
    if factor == 1 { j = k.truncatingRemainder(dividingBy: period) }
    while j >= period { (j, period) = (j - period, period * factor) }
    return end + (lr - end) * (1 + cos(.pi * j / period)) / 2
  }
}
