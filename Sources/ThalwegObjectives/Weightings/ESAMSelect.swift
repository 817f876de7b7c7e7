import ThalwegCore

/// The samples whose losses a perturbation raised most: those that the second gradient of `esam` is taken of.
///
///     d_i = losses_i − before_i;   weights 1/k for the k = ⌊gamma·B⌋ largest (at least one), else 0
///
/// losses (B,) are those at the perturbed point, before (B,) those at the parameters. The value is Σ weights·losses.
/// Of equal rises the earlier sample is kept.
/// Errors   TW_ERROR_RANGE: a loss that is not finite.
/// Differs  the authors' code keeps what lies strictly above a cut, which is one sample less.
/// Source   Du, Yan, Feng, Zhou, Zhen, Goh and Tan, 2021, arXiv:2110.03141.
struct ESAMSelect: Objective {
  static let method = Method(
    "esam_select", .weighting, "The samples whose losses a perturbation raised most, for the second gradient of esam.",
    rule: "d = losses - before;  weights = 1/k for the k = max(floor(gamma*B), 1) largest d, else 0",
    source: "Du, Yan, Feng, Zhou, Zhen, Goh, Tan, 2021, arXiv:2110.03141",
    parameters: [
      .number("gamma", 0.5, .between(0, 1, lowOpen: true, highOpen: false), "share of the samples that is kept")
    ],
    inputs: [
      .variable("losses", "B", "losses of the samples at the perturbed point"),
      .constant("before", "B", "their losses at the parameters"), .result("weights", "B", "weights of the samples"),
    ])
  let gamma: Double
  init(_ h: Hyper) { gamma = h.gamma }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let losses = try x["losses"], before = try x["before"], n = x.sizes["B"]
    try refuseNonFinite(losses, n, "losses")
    try refuseNonFinite(before, n, "before")
    let rise = (0..<n).map { Double(losses[$0]) - Double(before[$0]) }
    let order = (0..<n).sorted { rise[$0] > rise[$1] || (rise[$0] == rise[$1] && $0 < $1) }
    let k = min(max(Int(gamma * Double(n)), 1), n)
    var weights = [Double](repeating: 0, count: n), value = 0.0
    for i in order.prefix(k) {
      weights[i] = 1 / Double(k)
      value += weights[i] * Double(losses[i])
    }
    try cache?.keep("weights", numbers: weights, T.self)
    try cache?.keep("losses", numbers: weights, T.self)
    return value
  }
}
