import Glibc
import ThalwegCore

/// Advantages of samples within their groups.
///
///     weights_i = (r_i − mean of its group)/(std of its group + eps), std unbiased     use_std=false: r_i − mean
///
/// rewards and groups are (n,); equal numbers in groups are one group. A group of one has the mean 0 and the std 1; a
/// std of 0 counts as 1. A NaN stays within its group. The value is Σ weights·rewards.
/// Differs  TRL has eps 1e-4; Dr. GRPO is use_std=false.
/// Source   Shao et al., 2024, arXiv:2402.03300; Liu et al., 2025, arXiv:2503.20783.
struct GroupAdvantage: Objective {
  static let method = Method(
    "group_advantage", .weighting, "Rewards relative to those of their group.",
    rule: "weights = (r - mean)/(std + eps) within each group, std unbiased;  use_std=false: r - mean",
    source: "Shao et al., 2024, arXiv:2402.03300; Liu et al., 2025, arXiv:2503.20783",
    parameters: [.flag("use_std", true, "divide by the std of the group"), .eps(1e-6)],
    inputs: [
      .constant("rewards", "n", "rewards"), .integer("groups", "n", "which group each belongs to"),
      .result("weights", "n", "advantages"),
    ])
  let scales: Bool, eps: Double
  init(_ h: Hyper) { (scales, eps) = (h.use_std, h.eps) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rewards = try x["rewards"], ids = try x.integers("groups"), n = x.sizes["n"]
    var weights = [Double](repeating: 0, count: n)
    for members in groups(ids, n) {
      let count = Double(members.count)
      var mean = 0.0, std = 1.0
      if members.count > 1 {
        mean = members.reduce(0) { $0 + Double(rewards[$1]) } / count
        let squares = members.reduce(0) { $0 + (Double(rewards[$1]) - mean) * (Double(rewards[$1]) - mean) }
        std = (squares / (count - 1)).squareRoot()
        if std == 0 { std = 1 }
      }
      for i in members { weights[i] = (Double(rewards[i]) - mean) / (scales ? std + eps : 1) }
    }
    try cache?.keep("weights", numbers: weights, T.self)
    return (0..<n).reduce(0) { $0 + weights[$1] * Double(rewards[$1]) }
  }
}
