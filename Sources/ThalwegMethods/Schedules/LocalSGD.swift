import ThalwegCore

/// When workers that step alone meet: 1 where they average their parameters after the step, else 0.
///
///     t = k + 1;   1 where t ≤ switch or (t − switch) mod period = 0
///
/// State    none.
/// Differs  nothing from torch's post-local SGD, whose warm-up is `switch`.
/// Source   Stich, 2018, arXiv:1805.09767; Lin, Stich, Patel and Jaggi, 2018, arXiv:1808.07217.
struct LocalSGD: Schedule {
  static let method = Method(
    "local_sgd", .schedule, "When workers that step alone meet: 1 where they average after the step, else 0.",
    rule: "t = k + 1;  1 where t <= switch or (t - switch) mod period = 0, else 0",
    source: "Stich, 2018, arXiv:1805.09767; Lin, Stich, Patel, Jaggi, 2018, arXiv:1808.07217",
    parameters: [
      .steps("period", "steps from one meeting to the next", 8, from: 1),
      .steps("switch", "steps of full synchronisation at first", 0),
    ])
  let period, first: Double
  init(_ h: Hyper) { (period, first) = (h.period, h.switch) }
  func value(_ k: Double) -> Double {
    let t = k + 1
    return t <= first || (t - first).truncatingRemainder(dividingBy: period) == 0 ? 1 : 0
  }
}
