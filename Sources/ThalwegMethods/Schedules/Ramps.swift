import Glibc
import ThalwegCore

/// Gradual pruning: the sparsity rises fast while much can go, and slowly at the end.
///
///     value = final + (initial − final)·(1 − (k' − begin)/(end − begin))^power;   initial before `begin`
///     k' is k on the grid of `every` steps from `begin`, at most `end`
///
/// State    none.
/// Differs  nothing from TensorFlow's PolynomialDecay of sparsity, whose grid begins at `begin` too.
/// Source   Zhu, Gupta, 2017, arXiv:1710.01878.
struct CubicSparsity: Schedule {
  static let method = Method(
    "cubic_sparsity", .schedule, "Gradual pruning: the sparsity rises fast at first and slowly at the end.",
    rule: """
      value = final + (initial - final)*(1 - (k' - begin)/(end - begin))^power;  initial before begin
      k' = k on the grid of `every` steps from begin, at most end
      """,
    source: "Zhu, Gupta, 2017, arXiv:1710.01878",
    parameters: [
      .number("initial", 0, .rate, "sparsity before"), .number("final", 0.9, .rate, "sparsity at the end"),
      .steps("begin", "first step of the rise", 0), .steps("end", "last step of the rise"),
      .steps("every", "steps between two values", 1, from: 1),
      .number("power", 3, .above(0), "exponent"),
    ],
    validate: { (h) throws(Failure) in
      let begin: Double = h.begin, end: Double = h.end
      guard begin < end else {
        throw Failure(
          Status.range, "cubic_sparsity: `begin` must be below `end`, got \(text(begin)) and \(text(end))")
      }
    })
  let initial, final, begin, end, every, power: Double
  init(_ h: Hyper) {
    (initial, final, begin, end, every, power) = (h.initial, h.final, h.begin, h.end, h.every, h.power)
  }

  func value(_ k: Double) -> Double {
    if k < begin { return initial }
    let on = min(begin + ((k - begin) / every).rounded(.down) * every, end)
    return final + (initial - final) * pow(1 - (on - begin) / (end - begin), power)
  }
}

/// A coefficient that rises with the square of the step, for penalties that must not act on an untrained net.
///
///     value = weight·min(1, k/steps)²
///
/// State    none.
/// Source   Paria et al., 2020, arXiv:2004.05665.
struct QuadraticRamp: Schedule {
  static let method = Method(
    "quadratic_ramp", .schedule, "A coefficient that rises with the square of the step.",
    rule: "value = weight*min(1, k/steps)^2", source: "Paria, Yeh, Yen, Xu, Ravikumar, Poczos, 2020, arXiv:2004.05665",
    parameters: [
      .number("weight", 1, .atLeast(0), "final coefficient"), .steps("steps", "length of the ramp", 50_000, from: 1),
    ])
  let weight, steps: Double
  init(_ h: Hyper) { (weight, steps) = (h.weight, h.steps) }
  func value(_ k: Double) -> Double {
    let f = fraction(k, steps)
    return weight * f * f
  }
}

/// The coefficient of the heuristics of a solver of differential equations, annealed by a constant factor.
///
///     value = weight_start·(weight_end/weight_start)^(k/epochs)
///
/// State    none.
/// Differs  after `epochs` it stays at the end.
/// Source   Pal et al., 2021, arXiv:2105.03918.
struct ExpAnneal: Schedule {
  static let method = Method(
    "exp_anneal", .schedule, "A coefficient that goes from one value to another by a constant factor.",
    rule: "value = weight_start*(weight_end/weight_start)^(k/epochs)",
    source: "Pal, Ma, Shah, Rackauckas, 2021, arXiv:2105.03918",
    parameters: [
      .steps("epochs", "length of the training"), .number("weight_start", 100, .above(0), "first value"),
      .number("weight_end", 10, .above(0), "last value"),
    ])
  let epochs, first, last: Double
  init(_ h: Hyper) { (epochs, first, last) = (h.epochs, h.weight_start, h.weight_end) }
  func value(_ k: Double) -> Double { first * pow(last / first, fraction(k, epochs)) }
}

/// The coefficient of the entropy of an architecture's weights: nothing at first, then a ramp times a logarithm.
///
///     E = epochs, W = warm_up, q = ⌊(E − W)/4⌋;   value = coef·(k − W)/(E − 1 − W)·b
///     b = 0 for k − W < q, else log(k − W − q + 2)/log(E − q − W + 1)
///
/// State    none.
/// Differs  0 before W, where the authors' code is negative; after the last epoch it stays.
/// Source   Shvetsov et al., 2022, arXiv:2208.14839.
struct ArchEntropy: Schedule {
  static let method = Method(
    "arch_entropy", .schedule, "The coefficient of the entropy of an architecture: 0 at first, then a rising ramp.",
    rule: """
      q = floor((epochs - warm_up)/4);  value = coef*(k - warm_up)/(epochs - 1 - warm_up)*b
      b = 0 for k - warm_up < q, else log(k - warm_up - q + 2)/log(epochs - q - warm_up + 1)
      """,
    source: "Shvetsov et al., 2022, arXiv:2208.14839",
    parameters: [
      .steps("epochs", "epochs in all"), .number("coef", 0.1, .atLeast(0), "final value"),
      .steps("warm_up", "epochs before the ramp", 0),
    ],
    validate: { (h) throws(Failure) in
      let epochs: Double = h.epochs, warmUp: Double = h.warm_up
      guard epochs > warmUp + 1 else {
        throw Failure(
          Status.range,
          "arch_entropy: `epochs` must be above warm_up + 1, got \(text(epochs)) and a `warm_up` of \(text(warmUp))")
      }
    })
  let epochs, coef, warmUp: Double
  init(_ h: Hyper) { (epochs, coef, warmUp) = (h.epochs, h.coef, h.warm_up) }
  func value(_ k: Double) -> Double {
    let e = min(k, epochs - 1) - warmUp, length = epochs - warmUp, q = (length / 4).rounded(.down)
    if e < 0 || e < q { return 0 }
    return coef * (e / (length - 1)) * (log(e - q + 2) / log(length - q + 1))
  }
}
