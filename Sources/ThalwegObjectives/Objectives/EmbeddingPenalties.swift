import Glibc
import ThalwegCore

/// Energy confusion: pulls different classes together, against a metric loss that it is used with.
///
///     value = λ·mean over pairs of classes of mean_{i in I, j in J} ‖w_i − w_j‖²
///
/// w, the embeddings, is (n, d), y is (n,). With P pairs, ∂w_i = 2λ·Σ_J (w_i − mean_J)/(|I|·P). It costs O(n·d) by the
/// means of the classes. A single class costs nothing. Inside a pipeline its inputs would be missing.
/// Differs  the average over pairs of classes is the card's; the weight that the paper uses is not known.
/// Source   Chen and Deng, 2019, arXiv:1901.07169.
struct EnergyConfusion: Objective {
  static let method = Method(
    "energy_confusion", .regularizer, "Pulls different classes together, against a metric loss.",
    rule: "value = weight*mean over class pairs (I, J) of mean |w_i - w_j|^2, i in I, j in J",
    source: "Chen, Deng, 2019, arXiv:1901.07169",
    parameters: [.number("weight", 0.1, .atLeast(0), "coefficient")],
    inputs: [.variable("w", "n, d", "embeddings"), .integer("y", "n", "labels")])
  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = try x["w"], y = try x.integers("y"), n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    var numbers: [Int: Int] = [:]
    for i in 0..<n where numbers[y[i]] == nil { numbers[y[i]] = numbers.count }
    let classes = numbers.count, own = (0..<n).map { numbers[y[$0]] ?? 0 }
    guard classes > 1 else {
      _ = try cache?.keep("w", n * d, T.self)
      return 0
    }
    let means = try space.room(classes * d, Double.self), all = try space.room(d, Double.self)
    var counts = [Double](repeating: 0, count: classes), spread = 0.0
    for i in 0..<n { counts[own[i]] += 1 }
    for i in 0..<n { for k in 0..<d { means[own[i] * d + k] += Double(rows[i * d + k]) / counts[own[i]] } }
    for k in 0..<(classes * d) { all[k % d] += means[k] }
    // Σ of ‖μ_I − μ_J‖² over pairs = K·Σ ‖μ‖² − ‖Σ μ‖², taken about the middle of the means
    let others = Double(classes - 1), pairs = Double(classes) * others / 2, scale = weight / pairs
    for i in 0..<n {
      for k in 0..<d {
        let apart = Double(rows[i * d + k]) - means[own[i] * d + k]
        spread += others * apart * apart / counts[own[i]]
      }
    }
    for k in 0..<(classes * d) {
      let apart = means[k] - all[k % d] / Double(classes)
      spread += Double(classes) * apart * apart
    }
    if let g = try cache?.keep("w", n * d, T.self) {
      _ = Rows.sum(n, work: 2 * d) { i in
        let factor = 2 * scale / counts[own[i]]
        for k in 0..<d {
          let rest = all[k] - means[own[i] * d + k]  // the sum of the means of the other classes
          g[i * d + k] = T(factor * (others * Double(rows[i * d + k]) - rest))
        }
        return 0
      }
    }
    return scale * spread
  }
}

/// Contrastive adversarial domain bottleneck: embeddings should not tell from which domain they come.
///
///     base of i: all j ≠ i, with classes those of its class     P = softmax over the base of u_i·u_j/τ
///     flipped  value = −mean_i log Σ_{other domain} P     otherwise  mean_i log Σ_{same domain} P
///
/// w, the embeddings, is (n, d), domain is (n,), y is (n,) for the conditional form. Anchors with no such row are left
/// out of the mean. Inside a pipeline its inputs would be missing.
/// Differs  the authors' code also drops anchors without a partner of their class in the unconditional form.
/// Source   Ruan, Dubois and Maddison, 2022, arXiv:2201.00057.
struct CADBottleneck: Objective {
  static let method = Method(
    "cad_bottleneck", .regularizer, "Embeddings should not tell from which domain they come.",
    rule: """
      P = softmax over j != i (with y: of the same class) of u_i.u_j/temperature
      value = -weight*mean_i log sum_{other domain} P (flipped), or weight*mean_i log sum_{same domain} P
      """,
    source: "Ruan, Dubois, Maddison, 2022, arXiv:2201.00057",
    parameters: [
      .number("temperature", 0.07, .above(0), "tau"),
      .flag("flipped", true, "look for other domains, rather than away from one's own"),
      .flag("normalize", true, "compare on the unit sphere"), .number("weight", 1, .atLeast(0), "coefficient"),
    ],
    inputs: [
      .variable("w", "n, d", "embeddings"), .integer("domain", "n", "which domains they come from"),
      .integer("y", "n", "labels, for the conditional form", optional: true),
    ])

  private struct Pairs: PairLoss {
    let temperature: Double, weight: Double
    func exponent(_ s: Double, positive: Bool, of i: Int) -> (value: Double, slope: Double) {
      (s / temperature, 1 / temperature)
    }
    func outer(_ anchors: UnsafePointer<Anchor>, _ n: Int, _ slopes: UnsafeMutablePointer<AnchorSlope>) -> Double {
      var kept = 0, value = 0.0
      for i in 0..<n where anchors[i].positives > 0 { kept += 1 }
      for i in 0..<n where anchors[i].positives > 0 {
        let odds = slopes[i].negative - slopes[i].positive, factor = weight / Double(kept)
        value -= factor * softplus(odds)
        slopes[i].byPositive = factor * sigmoid(odds)
        slopes[i].byNegative = -slopes[i].byPositive
      }
      return value
    }
  }
  private let pairs: Pairs
  let flipped: Bool, normalize: Bool
  init(_ h: Hyper) {
    (flipped, normalize) = (h.flipped, h.normalize)
    let weight: Double = h.weight
    pairs = Pairs(temperature: h.temperature, weight: flipped ? -weight : weight)
  }
  private func relation(_ domain: UnsafePointer<Int>, _ y: UnsafePointer<Int>?) -> Relation {
    { [flipped] i, j in
      if i == j { return 0 }
      if let y, y[i] != y[j] { return 0 }
      return (domain[i] == domain[j]) != flipped ? 1 : -1
    }
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], domain = try x.integers("domain"), y = x.optionalIntegers("y")
    let space = Workspace()
    defer { space.close() }
    let all = try Embedding([x["w"]], n, d, normalize: normalize, cache, space)
    try cache?.keep("domains", n, of: domain)
    if let y { try cache?.keep("labels", n, of: y) }
    return try pairs.value(all.u, n, d, space.room(cache, "slopes", n, AnchorSlope.self), relation(domain, y))
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], all = try Embedding<T>(cache, cache.sizes["d"])
    let y = cache.count("labels") > 0 ? try cache.kept("labels", Int.self) : nil
    try pairs.pull(
      g, all.u, n, all.d, rows: 0, n, cache.kept("slopes", AnchorSlope.self),
      relation(cache.kept("domains", Int.self), y))
    all.pull(g, rows: 0, n, normalize: normalize)
  }
}
