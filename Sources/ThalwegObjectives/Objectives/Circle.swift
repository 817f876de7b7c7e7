import Glibc
import ThalwegCore

/// Circle loss: similarities within a class and between classes are pulled to their optima, each with a weight of its
/// own.
///
///     a_p = max(0, 1 + m − s_p), a_n = max(0, s_n + m), held constant
///     A = log Σ exp(−γ·a_p·(s_p − (1 − m)))     B = log Σ exp(γ·a_n·(s_n − m))     value = softplus(A + B)
///
/// x is (n, d), y is (n,). mode anchor: the mean over anchors with a positive and a negative; batch: one term for all
/// pairs.
/// Differs  differentiating a_p and a_n as well doubles the slopes and is another loss. The first author's snippet is
///          the batch mode.
/// Source   Sun et al., 2020, arXiv:2002.10857.
struct Circle: LabelledPairs {
  static let method = Method(
    "circle", .objective, "Pulls similarities within and between classes to their optima, each with its own weight.",
    rule: """
      a_p = max(0, 1 + margin - s_p), a_n = max(0, s_n + margin), both held constant
      value = softplus(log sum exp(-gamma*a_p*(s_p - 1 + margin)) + log sum exp(gamma*a_n*(s_n - margin)))
      """,
    source: "Sun et al., 2020, arXiv:2002.10857",
    parameters: [
      .number("margin", 0.25, .between(0, 1, lowOpen: true, highOpen: true), "m"),
      .number("gamma", 80, .above(0), "scale"),
      .choice("mode", ["anchor", "batch"], "one term for every anchor, or for all pairs"),
    ],
    inputs: [.variable("x", "n, d", "embeddings"), .integer("y", "n", "labels")])

  let pairs: CirclePairs
  init(_ h: Hyper) { pairs = CirclePairs(margin: h.margin, gamma: h.gamma, batch: h.is("mode", "batch")) }
}

struct CirclePairs: PairLoss {
  let margin: Double, gamma: Double
  var batch = false

  func exponent(_ s: Double, positive: Bool, of i: Int = 0) -> (value: Double, slope: Double) {
    let a = gamma * larger(0, positive ? 1 + margin - s : s + margin)
    return positive ? (-a * (s - (1 - margin)), -a) : (a * (s - margin), a)
  }

  func outer(_ anchors: UnsafePointer<Anchor>, _ n: Int, _ slopes: UnsafeMutablePointer<AnchorSlope>) -> Double {
    if batch {
      var positive = LogSum(), negative = LogSum()
      for i in 0..<n {
        positive.add(slopes[i].positive)
        negative.add(slopes[i].negative)
      }
      // rows count every pair twice
      let a = positive.value - log(2), b = negative.value - log(2)
      guard a > -.infinity || a.isNaN, b > -.infinity || b.isNaN else { return 0 }
      let share = sigmoid(a + b) / 2
      for i in 0..<n {
        (slopes[i].byPositive, slopes[i].byNegative) = (share, share)
        (slopes[i].positive, slopes[i].negative) = (a, b)
      }
      return softplus(a + b)
    }
    var kept = 0, value = 0.0
    for i in 0..<n where anchors[i].positives > 0 && anchors[i].negatives > 0 { kept += 1 }
    for i in 0..<n where anchors[i].positives > 0 && anchors[i].negatives > 0 {
      let x = slopes[i].positive + slopes[i].negative, share = sigmoid(x) / Double(kept)
      value += softplus(x) / Double(kept)
      (slopes[i].byPositive, slopes[i].byNegative) = (share, share)
    }
    return value
  }
}

/// Circle loss from similarities: those to positives and to negatives of every row, as its class-level form has them.
///
/// s_p is (n, P), s_n is (n, N); the mean is over rows. The rule is that of `circle`.
/// Source   Sun et al., 2020, arXiv:2002.10857.
struct CircleFromSimilarities: Objective {
  static let method = Method(
    "circle_from_similarities", .objective, "Circle loss from similarities to positives and negatives.",
    rule: """
      a_p = max(0, 1 + margin - s_p), a_n = max(0, s_n + margin), both held constant
      value = mean softplus(log sum exp(-gamma*a_p*(s_p - 1 + margin)) + log sum exp(gamma*a_n*(s_n - margin)))
      """,
    source: "Sun et al., 2020, arXiv:2002.10857",
    parameters: [
      .number("margin", 0.25, .between(0, 1, lowOpen: true, highOpen: true), "m"),
      .number("gamma", 80, .above(0), "scale"),
    ],
    inputs: [
      .variable("s_p", "n, P", "similarities to positives"), .variable("s_n", "n, N", "similarities to negatives"),
    ])

  fileprivate let pairs: CirclePairs
  init(_ h: Hyper) { pairs = CirclePairs(margin: h.margin, gamma: h.gamma) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let p = try x["s_p"], q = try x["s_n"], n = x.sizes["n"], near = x.sizes["P"], far = x.sizes["N"]
    let dp = try cache?.keep("s_p", n * near, T.self), dq = try cache?.keep("s_n", n * far, T.self)
    let weight = 1 / Double(n)
    return Rows.sum(n, work: 16 * (near + far)) { i in
      var a = LogSum(), b = LogSum()
      for k in (i * near)..<((i + 1) * near) { a.add(pairs.exponent(Double(p[k]), positive: true).value) }
      for k in (i * far)..<((i + 1) * far) { b.add(pairs.exponent(Double(q[k]), positive: false).value) }
      let share = weight * sigmoid(a.value + b.value)
      func write(_ s: UnsafePointer<T>, _ g: UnsafeMutablePointer<T>?, _ count: Int, _ positive: Bool, _ sum: Double) {
        guard let g else { return }
        for k in (i * count)..<((i + 1) * count) {
          let e = pairs.exponent(Double(s[k]), positive: positive)
          g[k] = T(share * exp(e.value - sum) * e.slope)
        }
      }
      write(p, dp, near, true, a.value)
      write(q, dq, far, false, b.value)
      return weight * softplus(a.value + b.value)
    }
  }
}

/// Multi-similarity loss: soft counts of positives that are too far and negatives that are too near.
///
///     value = mean_i [log(1 + Σ_pos e^{−α(s − b)})/α + log(1 + Σ_neg e^{β(s − b)})/β]
///
/// x is (n, d), y is (n,); cosines; no pairs are mined. The mean is over all rows.
/// Source   Wang et al., 2019, arXiv:1904.06627.
struct MultiSimilarity: LabelledPairs {
  static let method = Method(
    "multi_similarity", .objective, "Soft counts of positives that are too far and negatives that are too near.",
    rule: """
      value = mean_i log(1 + sum_pos exp(-alpha*(s - base)))/alpha + log(1 + sum_neg exp(beta*(s - base)))/beta
      """,
    source: "Wang et al., 2019, arXiv:1904.06627",
    parameters: [
      .number("alpha", 2, .above(0), "sharpness for positives"),
      .number("beta", 50, .above(0), "sharpness for negatives"),
      .number("base", 0.5, .above(0), "similarity between too far and too near"),
    ],
    inputs: [.variable("x", "n, d", "embeddings"), .integer("y", "n", "labels")])

  struct Pairs: PairLoss {
    let alpha: Double, beta: Double, base: Double

    func exponent(_ s: Double, positive: Bool, of i: Int) -> (value: Double, slope: Double) {
      positive ? (-alpha * (s - base), -alpha) : (beta * (s - base), beta)
    }
    func outer(_ anchors: UnsafePointer<Anchor>, _ n: Int, _ slopes: UnsafeMutablePointer<AnchorSlope>) -> Double {
      var value = 0.0
      for i in 0..<n {
        let a = slopes[i].positive, b = slopes[i].negative
        if anchors[i].positives > 0 {
          value += softplus(a) / alpha
          slopes[i].byPositive = sigmoid(a) / alpha / Double(n)
        }
        if anchors[i].negatives > 0 {
          value += softplus(b) / beta
          slopes[i].byNegative = sigmoid(b) / beta / Double(n)
        }
      }
      return value / Double(n)
    }
  }
  let pairs: Pairs
  init(_ h: Hyper) { pairs = Pairs(alpha: h.alpha, beta: h.beta, base: h.base) }
}
