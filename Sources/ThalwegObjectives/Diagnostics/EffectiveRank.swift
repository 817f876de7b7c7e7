import Glibc
import ThalwegCore

/// How many directions a matrix really has, by four measures of its singular values s.
///
///     entropy        exp(−Σ p log p), p = s/Σ s
///     participation  (Σ s²)²/Σ s⁴
///     stable         Σ s²/max s²
///     numeric        how many s > rtol·max s
///
/// x is (m, n). The value is `entropy`. A matrix of zeros has rank 0 by each of them; NaN stays.
/// Differs  RankMe adds 10⁻⁷ to p; nothing is added here.
/// Source   Roy, Vetterli, 2007 (entropy); Rudelson, Vershynin, 2007, arXiv:math/0503442 (stable); textbook.
struct EffectiveRank: Objective {
  static let method = Method(
    "effective_rank", .diagnostic, "The rank of a matrix by entropy, participation, stability and a threshold.",
    rule: """
      s: singular values;  entropy = exp(-sum p log p), p = s/sum s;  participation = (sum s^2)^2/sum s^4
      stable = sum s^2/max s^2;  numeric = how many s > rtol*max s, rtol = max(m, n)*eps unless given
      """,
    source: "Roy, Vetterli, 2007; Rudelson, Vershynin, 2007, arXiv:math/0503442",
    parameters: [.maybe("rtol", .atLeast(0), "share of the largest singular value below which one counts as 0")],
    inputs: [
      .constant("x", "m, n", "the matrix"), .result("entropy", "", "exponential of the entropy of s"),
      .result("participation", "", "(sum s^2)^2/sum s^4"), .result("stable", "", "sum s^2/max s^2"),
      .result("numeric", "", "singular values above the threshold"),
    ])
  let rtol: Double?
  init(_ h: Hyper) { rtol = h.given("rtol") ? h.rtol : nil }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["x"], m = x.sizes["m"], n = x.sizes["n"]
    var ranks = [Double](repeating: 0, count: 4)
    if !Flat.isFinite(a, m * n) {
      ranks = [.nan, .nan, .nan, .nan]
    } else if Flat.norm(a, m * n) > 0 {
      try LinearAlgebra.require()
      let s = try LinearAlgebra.SVD(a, m, n).s
      let top = s.max() ?? 0, relative = s.map { $0 / top }
      let sum = relative.reduce(0, +), squares = relative.reduce(0) { $0 + $1 * $1 }
      let fourths = relative.reduce(0) { $0 + ($1 * $1) * ($1 * $1) }
      let entropy = relative.reduce(0.0) { $1 > 0 ? $0 - $1 / sum * log($1 / sum) : $0 }
      let least = rtol ?? Double(max(m, n)) * Double(T.ulpOfOne)
      ranks = [exp(entropy), squares * squares / fourths, squares, Double(relative.count { $0 > least })]
    }
    for (name, rank) in zip(["entropy", "participation", "stable", "numeric"], ranks) {
      try cache?.keep(name, numbers: [rank], T.self)
    }
    return ranks[0]
  }
}
