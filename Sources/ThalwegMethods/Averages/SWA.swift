import ThalwegCore

/// Uniform average of the iterates.
///
///     at the calls start, start + freq, start + 2·freq, ... (from 0):  n ← n + 1,  a ← a + (θ − a)/n
///     evaluation weights: a, or θ while nothing is averaged
///
/// State    a.
/// Differs  nothing from torch's AveragedModel.
/// Source   Polyak and Juditsky, 1992; Izmailov et al., 2018, arXiv:1803.05407.
struct SWA: ElementRule {
  static let method = Method(
    "swa", .average, "Uniform average of the iterates, used as evaluation weights.",
    rule: """
      at the calls start, start + freq, start + 2*freq, ... (from 0): n <- n + 1, a <- a + (theta - a)/n
      evaluation weights: a, or theta while nothing is averaged
      """,
    source: "Polyak, Juditsky, 1992; Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, 2018, arXiv:1803.05407",
    parameters: [
      .integer("start", 0, .atLeast(0), "first call that counts", live: false),
      .integer("freq", 1, .atLeast(1), "calls per average", live: false),
    ],
    slots: [Slot("average", "the average a")])

  static var evaluates: Bool { true }
  let share: Double
  let empty: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let since = c.t - 1 - h.integer("start"), freq = max(1, h.integer("freq"))
    share = since >= 0 && since % freq == 0 ? 1 / Double(since / freq + 1) : 0
    empty = since < 0
  }

  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L {
    let a = s[0]
    s[0] = a + share * (v - a)
    return v
  }
  var multiplies: Double? { share == 0 ? 1 : nil }
  var folds: Folds? { Folds(.average(share)) }
  @inline(__always) func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { empty ? x : s[0] }
}

/// Polynomial-decay average of the iterates: recent ones weigh more, and no horizon need be chosen.
///
///     k-th update (from 1):  c = (γ + 1)/(γ + k),  a ← (1 − c)·a + c·θ
///
/// State    a.
/// Differs  nothing from the averager that is shipped with DoG. γ = 0 is the uniform mean.
/// Source   Shamir and Zhang, 2013, arXiv:1212.1824; Ivgi, Hinder and Carmon, 2023, arXiv:2302.12022.
struct PolynomialDecayAverage: ElementRule {
  static let method = Method(
    "poly_decay_average", .average, "Polynomial-decay average of the iterates, used as evaluation weights.",
    rule: """
      k-th update (from 1): c = (gamma + 1)/(gamma + k)
      a <- (1 - c)*a + c*theta
      """,
    source: "Shamir, Zhang, 2013, arXiv:1212.1824; Ivgi, Hinder, Carmon, 2023, arXiv:2302.12022",
    parameters: [.number("gamma", 8, .atLeast(0), "larger forgets faster; 0 is the uniform mean")],
    slots: [Slot("average", "the average a")])

  static var evaluates: Bool { true }
  let share: Double

  init(_ h: Hyper, _ c: StepContext) {
    let gamma: Double = h.gamma
    share = (gamma + 1) / (gamma + c.time)
  }

  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L {
    let a = s[0]
    s[0] = a + share * (v - a)
    return v
  }
  var folds: Folds? { Folds(.average(share)) }
  @inline(__always) func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { s[0] }
}
