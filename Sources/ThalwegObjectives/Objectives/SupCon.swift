import Glibc
import ThalwegCore

/// Log-probabilities of the positives among all other rows, by softmax.
struct SoftmaxPairs: PairLoss {
  let temperature: Double
  /// The logarithm of their mean, in place of the mean of their logarithms.
  var inside = false
  var factor = 1.0

  func exponent(_ s: Double, positive: Bool, of i: Int) -> (value: Double, slope: Double) {
    (s / temperature, 1 / temperature)
  }
  func outer(_ anchors: UnsafePointer<Anchor>, _ n: Int, _ slopes: UnsafeMutablePointer<AnchorSlope>) -> Double {
    var kept = 0, value = 0.0
    for i in 0..<n where anchors[i].positives > 0 { kept += 1 }
    guard kept > 0 else { return 0 }
    let weight = factor / Double(kept)
    for i in 0..<n where anchors[i].positives > 0 {
      let a = slopes[i], odds = a.negative - a.positive, count = Double(anchors[i].positives)
      slopes[i].byNegative = weight * sigmoid(odds)
      if inside {
        value += softplus(odds) + log(count)
        slopes[i].byPositive = -weight * sigmoid(odds)
      } else {
        value += logAdd(a.positive, a.negative) - anchors[i].similarity / (count * temperature)
        slopes[i].byPositive = weight * sigmoid(-odds)
        slopes[i].bySimilarity = -weight / (count * temperature)
      }
    }
    return weight * value
  }
}

/// The supervised contrastive loss, also with a ReLU on the embeddings.
///
///     u = x/‖x‖ (of max(x, 0) with relu), P_i = softmax_{j≠i}(u_i·u_j/τ), A_i = {j ≠ i: y_j = y_i}
///     out  −1/|A|·Σ_A log P_ij     in  −log(1/|A|·Σ_A P_ij)     value = mean over the anchors with A ≠ ∅
///
/// x is (n, d) with all views stacked, y is (n,). Value and gradient are multiplied by τ/base_temperature when it is
/// given. Without any positive pair the value is 0.
/// Differs  the authors' code has τ = 0.07 and multiplies by τ/base.
/// Source   Khosla et al., 2020, arXiv:2004.11362; Kini et al., 2023, arXiv:2306.07960 (ReLU).
struct SupCon: LabelledPairs {
  static let method = Method(
    "supcon", .objective, "The supervised contrastive loss, also with a ReLU on the embeddings.",
    rule: """
      u = normalised rows, P_i = softmax over j != i of u_i.u_j/temperature, A_i = {j != i: y_j = y_i}
      value = mean_i -1/|A|*sum_A log P_ij (out), or -log(1/|A|*sum_A P_ij) (in)
      """,
    source: "Khosla et al., 2020, arXiv:2004.11362; Kini et al., 2023, arXiv:2306.07960",
    parameters: [
      .number("temperature", 0.1, .above(0), "tau"),
      .maybe("base_temperature", .above(0), "multiplies value and gradient by temperature/base_temperature"),
      .flag("relu", false, "max(0, x) before normalising"), .flag("normalize", true, "compare on the unit sphere"),
      .choice("variant", ["out", "in"], "the mean of logarithms, or the logarithm of the mean"),
    ],
    inputs: [.variable("x", "n, d", "embeddings, all views stacked"), .integer("y", "n", "labels")])

  let pairs: SoftmaxPairs, relu: Bool, normalize: Bool
  init(_ h: Hyper) {
    let temperature: Double = h.temperature
    (relu, normalize) = (h.relu, h.normalize)
    pairs = SoftmaxPairs(
      temperature: temperature, inside: h.is("variant", "in"),
      factor: h.has("base_temperature") ? temperature / h.base_temperature : 1)
  }
}

/// Rows of one label are positives, all others negatives.
func sameLabel(_ y: UnsafePointer<Int>) -> Relation { { i, j in i == j ? 0 : y[i] == y[j] ? 1 : -1 } }

/// The two views of a sample are positives, all others negatives; rows i and i + n belong together.
func otherView(_ n: Int) -> Relation { { i, j in i == j ? 0 : i % n == j % n ? 1 : -1 } }

/// The two views that self-supervised losses take.
let viewInputs: [Input] = [
  .variable("x", "n, d", "embeddings of one view"), .variable("y", "n, d", "those of the other, row by row"),
]

/// NT-Xent, the loss of SimCLR: each view should find the other among all rows of the batch.
///
///     2n stacked normalised rows, the positive of i is i ± n     value = mean_i −log softmax_{j≠i}(u_i·u_j/τ)_pos
///
/// x and y are (n, d).
/// Differs  losses that leave the positive out of the denominator are others (decoupled contrastive learning).
/// Source   Chen et al., 2020, arXiv:2002.05709.
struct NTXent: Objective {
  static let method = Method(
    "nt_xent", .objective, "The loss of SimCLR: each view should find the other among all rows of the batch.",
    rule: "2n stacked rows u;  value = mean_i -log softmax over j != i of u_i.u_j/temperature, at the other view",
    source: "Chen et al., 2020, arXiv:2002.05709",
    parameters: [
      .number("temperature", 0.5, .above(0), "tau"), .flag("normalize", true, "compare on the unit sphere"),
    ], inputs: viewInputs)

  let pairs: SoftmaxPairs, normalize: Bool
  init(_ h: Hyper) { (pairs, normalize) = (SoftmaxPairs(temperature: h.temperature), h.normalize) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let all = try Embedding([x["x"], x["y"]], n, d, normalize: normalize, cache, space)
    return try pairs.value(all.u, 2 * n, d, space.room(cache, "slopes", 2 * n, AnchorSlope.self), otherView(n))
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], all = try Embedding<T>(cache, cache.sizes["d"]), first = name == "x" ? 0 : n
    try pairs.pull(
      g, all.u, 2 * n, all.d, rows: first, n, cache.kept("slopes", AnchorSlope.self), otherView(n))
    all.pull(g, rows: first, n, normalize: normalize)
  }
}

/// Equivariance of two views, for `care`: inside a chunk the Gram matrices of both should agree, as they do when one is
/// a rotation of the other.
///
///     E = mean over chunks of (2/c)·Σ_i Σ_{j≠i} (u_i·u_j − v_i·v_j)²     ∂u = (8/c)·D·u, ∂v = −(8/c)·D·v, over chunks
private struct Equivariance {
  let chunks: Int

  func rows(_ n: Int) throws(Failure) -> Int {
    guard n % chunks == 0 else {
      throw Failure(Status.shape, "\(n) rows cannot be cut into \(chunks) equal chunks")
    }
    return n / chunks
  }
  /// D of a chunk (c, c): the difference of the Gram matrices, with a diagonal of zeros.
  private func difference<T: Real>(
    _ u: UnsafePointer<T>, _ n: Int, _ d: Int, _ chunk: Int, _ out: UnsafeMutablePointer<T>
  )
    throws(Failure)
  {
    let c = n / chunks, first = u + chunk * c * d
    try LinearAlgebra.gram(first, into: out, c, d)
    try LinearAlgebra.gram(first + n * d, into: out, c, d, alpha: -1, beta: 1)
    for i in 0..<c { out[i * c + i] = 0 }
  }
  /// u holds both views, (2n, d).
  func value<T: Real>(_ u: UnsafePointer<T>, _ n: Int, _ d: Int) throws(Failure) -> Double {
    let c = try rows(n), space = Workspace()
    defer { space.close() }
    let gram = try space.room(area(c, c), T.self)
    var sum = 0.0
    for k in 0..<chunks {
      try difference(u, n, d, k, gram)
      sum += Flat.squaredNorm(gram, c * c)
    }
    return 2 * sum / Double(c) / Double(chunks)
  }
  /// g ← g + weight·∂E/∂(view v).
  func pull<T: Real>(
    _ g: UnsafeMutablePointer<T>, _ u: UnsafePointer<T>, _ n: Int, _ d: Int, view v: Int, _ weight: Double
  ) throws(Failure) {
    let c = n / chunks, space = Workspace()
    defer { space.close() }
    let gram = try space.room(area(c, c), T.self)
    for k in 0..<chunks {
      try difference(u, n, d, k, gram)
      let at = k * c * d
      try LinearAlgebra.multiply(
        gram, u + (v * n * d + at), into: g + at, c, d, c, alpha: (v == 0 ? 8 : -8) * weight / Double(c * chunks),
        beta: 1)
    }
  }
}

/// CARE: NT-Xent and a term that asks transformations of the input to act as rotations of the embeddings.
///
///     value = nt_xent(x, y) + λ·E     E = mean over chunks of (2/c)·Σ_i Σ_{j≠i} (u_i·u_j − v_i·v_j)²
///
/// x and y are (n, d); the rows of a chunk, c = n/chunks that follow each other, share one pair of augmentations. The
/// Gram matrices of a chunk are held: cut large batches into chunks.
/// Errors   TW_ERROR_SHAPE: chunks that do not divide n.
/// Source   Gupta et al., 2023, arXiv:2306.13924.
struct CARE: Objective {
  static let method = Method(
    "care", .objective, "NT-Xent, and augmentations that act as rotations of the embeddings.",
    rule: """
      value = nt_xent(x, y) + weight*E
      E = mean over chunks of 2/c*sum_i sum_{j != i} (u_i.u_j - v_i.v_j)^2, u and v the normalised rows of x and y
      """,
    source: "Gupta et al., 2023, arXiv:2306.13924",
    parameters: [
      .number("weight", 0.01, .atLeast(0), "coefficient of the equivariance"),
      .number("temperature", 0.5, .above(0), "of the contrastive term"),
      .integer("chunks", 1, .within(1, 1e9), "groups of rows with augmentations of their own"),
    ], inputs: viewInputs)

  let weight: Double, pairs: SoftmaxPairs
  private let equivariance: Equivariance
  init(_ h: Hyper) {
    (weight, pairs) = (h.weight, SoftmaxPairs(temperature: h.temperature))
    equivariance = Equivariance(chunks: h.integer("chunks"))
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    _ = try equivariance.rows(n)
    let all = try Embedding([x["x"], x["y"]], n, d, normalize: true, cache, space)
    let slopes = try space.room(cache, "slopes", 2 * n, AnchorSlope.self)
    let contrast = try pairs.value(all.u, 2 * n, d, slopes, otherView(n))
    return contrast + weight * (try equivariance.value(all.u, n, d))
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], all = try Embedding<T>(cache, cache.sizes["d"]), view = name == "x" ? 0 : 1
    try pairs.pull(
      g, all.u, 2 * n, all.d, rows: view * n, n, cache.kept("slopes", AnchorSlope.self), otherView(n))
    try equivariance.pull(g, all.u, n, all.d, view: view, weight)
    all.pull(g, rows: view * n, n, normalize: true)
  }
}

/// The equivariance of `care` alone.
///
/// Source   Gupta et al., 2023, arXiv:2306.13924.
struct CAREEquivariance: Objective {
  static let method = Method(
    "care_equivariance", .objective, "Two views should be rotations of each other: the equivariance of care alone.",
    rule: "mean over chunks of 2/c*sum_i sum_{j != i} (u_i.u_j - v_i.v_j)^2, u and v the normalised rows of x and y",
    source: "Gupta et al., 2023, arXiv:2306.13924",
    parameters: [.integer("chunks", 1, .within(1, 1e9), "groups of rows with augmentations of their own")],
    inputs: viewInputs)
  private let equivariance: Equivariance
  init(_ h: Hyper) { equivariance = Equivariance(chunks: h.integer("chunks")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let all = try Embedding([x["x"], x["y"]], n, d, normalize: true, cache, space)
    return try equivariance.value(all.u, n, d)
  }
  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], all = try Embedding<T>(cache, cache.sizes["d"]), view = name == "x" ? 0 : 1
    g.update(repeating: 0, count: n * all.d)
    try equivariance.pull(g, all.u, n, all.d, view: view, 1)
    all.pull(g, rows: view * n, n, normalize: true)
  }
}
