import Glibc
import ThalwegCore

/// Generalized sum pooling: an entropy-smoothed partial transport of local features to prototypes decides how much each
/// feature counts.
///
///     κ_j = log Σ_i exp(−γ·c_ij)     s_j = σ(τ + κ_j), τ such that mean_j s_j = μ
///     w = s/μ     a_i = 1/(m·μ)·Σ_j A_ij·s_j, A = softmax_i(−γ·c)
///
/// It is a layer: c is (n, k, m), the costs between k prototypes and m local features of each sample, and the pull-back
/// gives the pooling weights w (n, m), of mean 1, and the attributes a (n, k) (take them with a factor of 1). Given dw
/// and da, the derivatives of the host's loss by both, the value is Σ dw·w + Σ da·a, and the gradient of c is the
/// vector-Jacobian product; without them they count as 0.
/// Differs  the authors' layers iterate to the fixed point that is in closed form here; their ports disagree about μ
///          and γ.
/// Source   Gurbuz et al., 2023, arXiv:2308.09228.
struct GeneralizedSumPooling: Objective {
  static let method = Method(
    "generalized_sum_pooling", .objective,
    "Pooling weights of local features by partial transport to prototypes: a layer.",
    rule: """
      kappa_j = log sum_i exp(-gamma*c_ij), s_j = sigma(tau + kappa_j) with mean_j s_j = transport_ratio
      w = s/transport_ratio, a_i = sum_j softmax_i(-gamma*c)_ij*s_j/(m*transport_ratio);  value = sum dw*w + sum da*a
      """,
    source: "Gurbuz et al., 2023, arXiv:2308.09228",
    parameters: [
      .number(
        "transport_ratio", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "mu, share of the mass that is kept"),
      .number("gamma", 20, .above(0), "inverse smoothing"),
    ],
    inputs: [
      .variable("c", "n, k, m", "costs between prototypes and local features"),
      .constant("dw", "n, m", "derivatives by w; none: 0", optional: true),
      .constant("da", "n, k", "derivatives by a; none: 0", optional: true),
      .result("w", "n, m", "weights of the features"), .result("a", "n, k", "shares of the prototypes"),
    ])
  let mu: Double, gamma: Double
  init(_ h: Hyper) { (mu, gamma) = (h.transport_ratio, h.gamma) }

  /// The root of mean_j σ(τ + κ_j) = μ: between the solutions for the largest and the smallest κ alone.
  private func threshold(_ kappa: UnsafePointer<Double>, _ m: Int) -> Double {
    var least = kappa[0], most = kappa[0]
    for j in 0..<m { (least, most) = (smaller(least, kappa[j]), larger(most, kappa[j])) }
    let level = log(mu) - log1p(-mu)
    var low = level - most, high = level - least
    for _ in 0..<200 where low < high {
      let middle = low + (high - low) / 2
      if middle == low || middle == high { break }
      var sum = 0.0
      for j in 0..<m { sum += sigmoid(middle + kappa[j]) }
      if sum < mu * Double(m) { low = middle } else { high = middle }
    }
    return low + (high - low) / 2
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let c = try x["c"], n = x.sizes["n"], k = x.sizes["k"], m = x.sizes["m"], space = Workspace()
    defer { space.close() }
    let byWeight = x.optional("dw"), byShare = x.optional("da"), scale = 1 / (Double(m) * mu)
    let g = try cache?.keep("c", n * k * m, T.self), w = try space.room(cache, "w", n * m, T.self)
    let a = try space.room(cache, "a", n * k, T.self), kappas = try space.room(n * m, Double.self)
    return Rows.sum(n, work: 64 * k * m) { r in
      let costs = c + r * k * m, kappa = kappas + r * m
      for j in 0..<m {
        var sum = LogSum()
        for i in 0..<k { sum.add(-gamma * Double(costs[i * m + j])) }
        kappa[j] = sum.value
      }
      let tau = threshold(kappa, m)
      func kept(_ j: Int) -> Double { sigmoid(tau + kappa[j]) }
      func share(_ i: Int, _ j: Int) -> Double { exp(-gamma * Double(costs[i * m + j]) - kappa[j]) }
      var value = 0.0, mean = 0.0, mass = 0.0
      for j in 0..<m {
        w[r * m + j] = T(kept(j) / mu)
        value += kept(j) / mu * (byWeight.map { Double($0[r * m + j]) } ?? 0)
      }
      for i in 0..<k {
        var sum = 0.0
        for j in 0..<m { sum += share(i, j) * kept(j) }
        a[r * k + i] = T(scale * sum)
        value += scale * sum * (byShare.map { Double($0[r * k + i]) } ?? 0)
      }
      guard let g, byWeight != nil || byShare != nil else { return value }
      // Σ_i A_ij·da_i, then the derivative by s_j
      func attributed(_ j: Int) -> Double {
        guard let byShare else { return 0 }
        var sum = 0.0
        for i in 0..<k { sum += share(i, j) * Double(byShare[r * k + i]) }
        return sum
      }
      func slope(_ j: Int, _ attributed: Double) -> Double {
        (byWeight.map { Double($0[r * m + j]) } ?? 0) / mu + scale * attributed
      }
      for j in 0..<m {
        let spread = kept(j) * sigmoid(-tau - kappa[j])
        mean += spread * slope(j, attributed(j))
        mass += spread
      }
      if mass != 0 { mean /= mass }
      for j in 0..<m {
        let s = kept(j), own = attributed(j), byKappa = s * sigmoid(-tau - kappa[j]) * (slope(j, own) - mean)
        for i in 0..<k {
          let bySoftmax = scale * s * ((byShare.map { Double($0[r * k + i]) } ?? 0) - own)
          g[(r * k + i) * m + j] = T(-gamma * share(i, j) * (bySoftmax + byKappa))
        }
      }
      return value
    }
  }
}

/// The zero-shot loss of generalized sum pooling: attributes of one half of a batch, mapped to class embeddings by
/// ridge
/// regression, should tell the classes of the other half.
///
///     A = T₁ᵀ·(T₁·T₁ᵀ + ridge·1)⁻¹·E[y₁]     logits = scale·(T₂·A·Eᵀ − margin at the label)
///     value = mean of the cross-entropies of the second half by the first and the first by the second
///
/// a is (n, k), the attributes of a batch whose halves hold the same classes; y is (n,); e is (C, p), embeddings of the
/// classes. Both have gradients.
/// Errors   TW_ERROR_SHAPE: an odd number of rows; TW_ERROR_RANGE: a label outside [0, C).
/// Differs  the margin is not on the card; 0 leaves it out.
/// Source   Gurbuz et al., 2023, arXiv:2308.09228.
struct GSPZeroShot: Objective {
  static let method = Method(
    "gsp_zero_shot", .objective, "Attributes of one half of a batch should tell the classes of the other half.",
    rule: """
      A = T1'(T1 T1' + ridge*I)^-1 E[y1];  logits = scale*(T2 A E' - margin at the label)
      value = mean of the cross-entropies of both directions
      """,
    source: "Gurbuz et al., 2023, arXiv:2308.09228",
    parameters: [
      .number("ridge", 0.05, .above(0), "of the regression"), .number("scale", 9.5, .above(0), "of the logits"),
      .number("margin", 0, .atLeast(0), "taken from the logit of the label"),
    ],
    inputs: [
      .variable("a", "n, k", "attributes; the halves hold the same classes"),
      .integer("y", "n", "labels, from 0 to C - 1"), .variable("e", "C, p", "embeddings of the classes"),
    ])
  let ridge: Double, scale: Double, margin: Double
  init(_ h: Hyper) { (ridge, scale, margin) = (h.ridge, h.scale, h.margin) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], k = x.sizes["k"], classes = x.sizes["C"], p = x.sizes["p"], y = try x.integers("y")
    guard n % 2 == 0 else { throw Failure(Status.shape, "\(n) rows have no two halves") }
    try Labels.check(y, n, classes)
    let a = try doubles(x["a"], n * k), e = try doubles(x["e"], classes * p), half = n / 2
    try Memory.ask(area(8, 2 * n * k + 2 * classes * p))
    var da = [Double](repeating: 0, count: n * k), de = [Double](repeating: 0, count: classes * p), value = 0.0
    for first in [0, half] {
      value += try direction(a, y, e, first, half - first, half, k, classes, p, &da, &de) / 2
    }
    try cache?.keep("a", numbers: da, T.self)
    try cache?.keep("e", numbers: de, T.self)
    return value
  }

  private func product(
    _ a: [Double], across ta: Bool = false, _ b: [Double], down tb: Bool = false, _ m: Int, _ n: Int, _ k: Int
  ) throws(Failure) -> [Double] {
    try Memory.ask(8 * area(m, n))
    var c = [Double](repeating: 0, count: m * n)
    try LinearAlgebra.multiply(a, transposed: ta, b, transposed: tb, into: &c, m, n, k)
    return c
  }
  /// The cross-entropy of the rows from `second` on by those from `first` on; half of its gradients is added.
  private func direction(
    _ a: [Double], _ y: UnsafePointer<Int>, _ e: [Double], _ first: Int, _ second: Int, _ half: Int, _ k: Int,
    _ classes: Int, _ p: Int, _ da: inout [Double], _ de: inout [Double]
  ) throws(Failure) -> Double {
    let known = Array(a[(first * k)..<((first + half) * k)]), asked = Array(a[(second * k)..<((second + half) * k)])
    var gram = try product(known, known, down: true, half, half, k), targets: [Double] = []
    for i in 0..<half {
      gram[i * half + i] += ridge
      targets += e[(y[first + i] * p)..<((y[first + i] + 1) * p)]
    }
    let fitted = try LinearAlgebra.solvePositive(gram, targets, half, p)
    let map = try product(known, across: true, fitted, k, p, half), told = try product(asked, map, half, p, k)
    var slopes = try product(told, e, down: true, half, classes, p), value = 0.0
    for i in 0..<half {
      let label = y[second + i], row = i * classes
      var sum = LogSum()
      for c in 0..<classes {
        slopes[row + c] = scale * (slopes[row + c] - (c == label ? margin : 0))
        sum.add(slopes[row + c])
      }
      value += (sum.value - slopes[row + label]) / Double(half)
      for c in 0..<classes {
        slopes[row + c] = scale / Double(2 * half) * (exp(slopes[row + c] - sum.value) - (c == label ? 1 : 0))
      }
    }
    let dTold = try product(slopes, e, half, p, classes),
      dEmbedded = try product(slopes, across: true, told, classes, p, half)
    let dAsked = try product(dTold, map, down: true, half, k, p),
      dMap = try product(asked, across: true, dTold, k, p, half)
    var dKnown = try product(fitted, dMap, down: true, half, k, p)
    // through the solution of the ridge system
    let dTargets = try LinearAlgebra.solvePositive(gram, try product(known, dMap, half, p, k), half, p)
    let dGram = try product(dTargets, fitted, down: true, half, half, p)
    let left = try product(dGram, known, half, k, half),
      right = try product(dGram, across: true, known, half, k, half)
    for i in 0..<(half * k) {
      dKnown[i] -= left[i] + right[i]
      da[first * k + i] += dKnown[i]
      da[second * k + i] += dAsked[i]
    }
    for i in 0..<(classes * p) { de[i] += dEmbedded[i] }
    for i in 0..<half { for c in 0..<p { de[y[first + i] * p + c] += dTargets[i * p + c] } }
    return value
  }
}
