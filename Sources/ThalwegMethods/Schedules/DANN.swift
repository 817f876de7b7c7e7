import Glibc
import ThalwegCore

/// The weight of domain adaptation: from `lo` to `hi` along a logistic curve.
///
///     p = clip(k/total, 0, 1);   value = lo + (hi − lo)·(2/(1 + exp(−γ·p)) − 1)
///
/// State    none.
/// Differs  nothing from the authors; the transfer-learning library has γ = 1 over 1000 steps.
/// Source   Ganin et al., 2015, arXiv:1505.07818.
struct DANNLambda: Schedule {
  static let method = Method(
    "dann_lambda", .schedule, "The weight of domain adaptation: along a logistic curve.",
    rule: "p = clip(k/total, 0, 1);  value = lo + (hi - lo)*(2/(1 + exp(-gamma*p)) - 1)",
    source: "Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand, Lempitsky, 2015, arXiv:1505.07818",
    parameters: [.steps("total", "length of the training")] + curve)
  static let curve: [Parameter] = [
    .number("gamma", 10, .above(0), "slope"), .number("lo", 0, .any, "first value"),
    .number("hi", 1, .any, "value that is approached"),
  ]
  let total, gamma, lo, hi: Double
  init(_ h: Hyper) { (total, gamma, lo, hi) = (h.total, h.gamma, h.lo, h.hi) }
  func value(_ k: Double) -> Double { lo + (hi - lo) * (2 / (1 + exp(-gamma * fraction(k, total))) - 1) }
}

/// The step size of domain-adversarial training.
///
///     p = clip(k/total, 0, 1);   value = lr/(1 + α·p)^β
///
/// State    none.
/// Differs  nothing; `lr` is the paper's μ₀.
/// Source   Ganin et al., 2015, arXiv:1505.07818.
struct DANNLR: Schedule {
  static let method = Method(
    "dann_lr", .schedule, "The step size of domain-adversarial training.",
    rule: "p = clip(k/total, 0, 1);  value = lr/(1 + alpha*p)^beta",
    source: "Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand, Lempitsky, 2015, arXiv:1505.07818",
    parameters: [.steps("total", "length of the training"), .lr(0.01)] + curve)
  static let curve: [Parameter] = [
    .number("alpha", 10, .above(0), "decay"), .number("beta", 0.75, .above(0), "power of the decay"),
  ]
  let total, lr, alpha, beta: Double
  init(_ h: Hyper) { self.init(h, lr: h.lr) }
  init(_ h: Hyper, lr: Double) { (total, self.lr, alpha, beta) = (h.total, lr, h.alpha, h.beta) }
  func value(_ k: Double) -> Double { lr / pow(1 + alpha * fraction(k, total), beta) }
}

/// Both schedules of domain-adversarial training under one name.
///
///     lambda: lo + (hi − lo)·(2/(1 + exp(−γ·p)) − 1);   lr: mu0/(1 + α·p)^β;   p = clip(k/total, 0, 1)
///
/// State    none.
/// Differs  nothing: these are dann_lambda and dann_lr, whose `lr` is `mu0` here.
/// Source   Ganin et al., 2015, arXiv:1505.07818.
struct DANNSchedules: Schedule {
  static let method = Method(
    "dann_schedules", .schedule, "Domain-adversarial training: the weight of adaptation, or the step size.",
    rule: """
      p = clip(k/total, 0, 1)
      lambda: lo + (hi - lo)*(2/(1 + exp(-gamma*p)) - 1);  lr: mu0/(1 + alpha*p)^beta
      """,
    source: DANNLambda.method.source,
    parameters: [
      .steps("total", "length of the training"), .choice("gives", ["lambda", "lr"], "which of the two", live: false),
    ] + DANNLambda.curve + [.number("mu0", 0.01, .above(0), "first step size")] + DANNLR.curve)
  let one: any Schedule
  init(_ h: Hyper) { one = h.is("gives", "lr") ? DANNLR(h, lr: h.mu0) : DANNLambda(h) }
  func value(_ k: Double) -> Double { one.value(k) }
}
