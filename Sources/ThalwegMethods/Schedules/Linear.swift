import Glibc
import ThalwegCore

/// The same value at every step.
///
///     value = lr
///
/// State    none.
/// Differs  nothing.
/// Source   Robbins and Monro, 1951, treat the general case.
struct Constant: Schedule {
  static let method = Method(
    "constant", .schedule, "The same value at every step.", rule: "value = lr", source: "", parameters: [.lr(nil)])
  let lr: Double
  init(_ h: Hyper) { lr = h.lr }
  func value(_ k: Double) -> Double { lr }
}

/// A straight line from `lr` to `end`.
///
///     f = clip((k − begin)/total, 0, 1);  value = lr + (end − lr)·f
///
/// State    none.
/// Differs  nothing from optax.linear_schedule. total = 0 is `end` from the start.
/// Source   Defazio, Cutkosky, Mehta and Mishchenko, 2023, arXiv:2310.07831, who show that it is worst-case optimal.
struct Linear: Schedule {
  static let method = Method(
    "linear", .schedule, "A straight line from `lr` to `end`.",
    rule: """
      f = clip((k - begin)/total, 0, 1)
      value = lr + (end - lr)*f
      """,
    source: "Defazio, Cutkosky, Mehta, Mishchenko, 2023, arXiv:2310.07831",
    parameters: [.lr(nil), .steps("total", "length"), .end, .steps("begin", "first step of the line", 0)])
  let lr, end, total, begin: Double
  init(_ h: Hyper) { (lr, end, total, begin) = (h.lr, h.end, h.total, h.begin) }
  init(_ lr: Double, _ end: Double, _ total: Double) { (self.lr, self.end, self.total, begin) = (lr, end, total, 0) }
  func value(_ k: Double) -> Double { lr + (end - lr) * fraction(k - begin, total) }
}

/// A power of a falling line.
///
///     value = (lr − end)·(1 − min(k/total, 1))^power + end
///
/// State    none.
/// Differs  nothing from optax.polynomial_schedule.
/// Source   folklore (deep-learning frameworks).
struct Polynomial: Schedule {
  static let method = Method(
    "polynomial", .schedule, "A power of a falling line.", rule: "value = (lr - end)*(1 - min(k/total, 1))^power + end",
    source: "folklore",
    parameters: [.lr(nil), .steps("total", "length"), .end, .number("power", 1, .above(0), "exponent")])
  let lr, end, total, power: Double
  init(_ h: Hyper) { (lr, end, total, power) = (h.lr, h.end, h.total, h.power) }
  func value(_ k: Double) -> Double { (lr - end) * pow(1 - fraction(k, total), power) + end }
}
