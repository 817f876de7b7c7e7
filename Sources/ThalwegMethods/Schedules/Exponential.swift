import Glibc
import ThalwegCore

/// A constant factor at every step.
///
///     value = max(lr·gamma^e, end),  e = k/every, rounded down with `staircase`
///
/// State    none.
/// Differs  nothing from optax.exponential_decay; growth (gamma above 1) has no floor.
/// Source   folklore.
struct Exponential: Schedule {
  static let method = Method(
    "exponential", .schedule, "A constant factor at every step, down to a floor.",
    rule: "value = max(lr*gamma^e, end),  e = k/every, rounded down with staircase", source: "folklore",
    parameters: [
      .lr(nil), .number("gamma", nil, .above(0), "factor"), .steps("every", "steps for one factor", 1, from: 1),
      .flag("staircase", false, "the exponent is a whole number"), .number("end", 0, .atLeast(0), "floor"),
    ],
    validate: { (h) throws(Failure) in
      let gamma: Double = h.gamma, end: Double = h.end
      if gamma > 1, end > 0 {
        throw Failure(Status.range, "exponential: `end` is a floor for decay; with gamma above 1 it must be 0")
      }
    })
  let lr, gamma, every, end: Double
  let staircase: Bool
  init(_ h: Hyper) { (lr, gamma, every, staircase, end) = (h.lr, h.gamma, h.every, h.staircase, h.end) }

  func value(_ k: Double) -> Double {
    let e = staircase ? (k / every).rounded(.down) : k / every
    return max(lr * pow(gamma, e), end)
  }
}

/// A factor every so many steps, or at given steps.
///
///     value = lr·gamma^⌊k/every⌋,  or  lr·gamma^(number of milestones ≤ k)
///
/// State    none.
/// Differs  nothing from torch's StepLR and MultiStepLR. A milestone that is written twice counts twice.
/// Source   folklore.
struct StepDecay: Schedule {
  static let method = Method(
    "step_decay", .schedule, "A factor every so many steps, or at given steps.",
    rule: """
      value = lr * gamma^floor(k/every)
      milestones: lr * gamma^(number of milestones <= k)
      """,
    source: "folklore",
    parameters: [
      .lr(nil), .number("gamma", 0.1, .above(0), "factor"), .steps("every", "steps between two drops", 30, from: 1),
      .list("milestones", nil, "steps of the drops, instead of `every`", optional: true),
    ])
  let lr, gamma, every: Double
  let milestones: [Double]?
  init(_ h: Hyper) {
    (lr, gamma, every) = (h.lr, h.gamma, h.every)
    milestones = h.given("milestones") ? h.list("milestones") : nil
  }

  func value(_ k: Double) -> Double {
    let drops = milestones.map { Double($0.reduce(0) { $1 <= k ? $0 + 1 : $0 }) } ?? (k / every).rounded(.down)
    return lr * pow(gamma, drops)
  }
}
