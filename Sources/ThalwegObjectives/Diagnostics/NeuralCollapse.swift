import Glibc
import ThalwegCore

/// Neural collapse: how far features of classes, their means and a classifier are from a simplex.
///
///     μ_k: class means, μ: their mean, M: rows μ_k − μ     S_W: mean over classes of their covariance, S_B = MᵀM/K
///     nc1 = tr(S_W·S_B⁺)/K     nc1_ratio = tr S_W/tr S_B     nc2_equinorm = std/mean of |M_k|
///     nc2_equiangle = std of the cosines     nc2_max_angle = mean |cosine + 1/(K − 1)|
///     nc2_etf = |A·Aᵀ/|A·Aᵀ| − (I − 11ᵀ/K)/√(K − 1)| for A = M, and for A = W
///     nc2_of = |G/|G| − I/√K|, G the Gram matrix of the μ_k     nc3 = |W/|W| − M/|M||²
///     nc4 = share of samples whose argmax(W·h + b) is not their nearest class mean
///
/// h is (n, d), y is (n,), w is (K, d), b is (K,); without w there are as many classes as the largest label says, and
/// what needs w is NaN, as all is where features are not
/// finite. Norms are Frobenius norms, stds those of populations. Means that are all equal have an infinite
/// nc1. The value is nc1.
/// Errors   TW_ERROR_SHAPE: fewer than two classes; TW_ERROR_RANGE: a class without samples.
/// Source   Papyan, Han, Donoho, 2020, arXiv:2008.08186; Zhu et al., 2021, arXiv:2105.02375; Tirer, Huang, Niles-Weed,
///          2023, arXiv:2210.16658; Kini et al., 2023, arXiv:2306.07960.
struct NeuralCollapse: Objective {
  static let names = [
    "nc1", "nc1_ratio", "nc2_equinorm", "nc2_equiangle", "nc2_max_angle", "nc2_etf", "nc2_etf_weights", "nc2_of", "nc3",
    "nc4",
  ]
  static let method = Method(
    "neural_collapse", .diagnostic, "How far features, their class means and a classifier are from a simplex.",
    rule: """
      nc1 = tr(S_W pinv(S_B))/K;  nc1_ratio = tr S_W/tr S_B;  nc2: lengths and angles of the centred class means M
      nc2_etf = |A A'/|A A'| - (I - 11'/K)/sqrt(K - 1)| for A = M and W;  nc2_of = |G/|G| - I/sqrt(K)|
      nc3 = |W/|W| - M/|M||^2;  nc4 = share of samples whose prediction is not their nearest class mean
      """,
    source: """
      Papyan, Han, Donoho, 2020, arXiv:2008.08186; Zhu et al., 2021, arXiv:2105.02375; \
      Tirer, Huang, Niles-Weed, 2023, arXiv:2210.16658; Kini et al., 2023, arXiv:2306.07960
      """,
    parameters: [.number("rcond", 1e-10, .atLeast(0), "share of the largest eigenvalue of S_B that counts as 0")],
    inputs: [
      .constant("h", "n, d", "features"), .integer("y", "n", "labels"),
      .constant("w", "K, d", "classifier", optional: true), .constant("b", "K", "its bias", optional: true),
    ]
      + zip(
        names,
        [
          "spread within classes, by that between them", "the same, of the traces",
          "spread of the lengths of the means",
          "spread of their cosines", "distance of the cosines from those of a simplex",
          "distance of the means from a simplex", "distance of the classifier from a simplex",
          "distance of the raw means from an orthogonal frame", "distance between classifier and means",
          "share of predictions that are not the nearest mean",
        ]
      ).map { Input.result($0, "", $1) })
  let rcond: Double
  init(_ h: Hyper) { rcond = h.rcond }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let h = try x["h"], y = try x.integers("y"), n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let w = x.optional("w"), b = x.optional("b")
    var k = x.sizes["K"]
    if k == 0 {
      for i in 0..<n { k = max(k, y[i] < Int.max ? y[i] + 1 : y[i]) }
      if k > n { k = n }  // then a class is empty, or a label no class
    }
    guard k > 1 else { throw Failure(Status.shape, "neural collapse needs at least 2 classes, got \(k)") }
    try Labels.check(y, n, k)
    var counts = [Double](repeating: 0, count: k)
    let means = try space.room(area(k, d), Double.self), centred = try space.room(area(k, d), Double.self)
    for i in 0..<n {
      counts[y[i]] += 1
      for c in 0..<d { means[y[i] * d + c] += Double(h[i * d + c]) }
    }
    if let empty = counts.firstIndex(of: 0) { throw Failure(Status.range, "class \(empty) has no sample") }
    for c in 0..<d {
      var mean = 0.0
      for j in 0..<k {
        means[j * d + c] /= counts[j]
        mean += means[j * d + c] / Double(k)
      }
      for j in 0..<k { centred[j * d + c] = means[j * d + c] - mean }
    }
    var found = [Double](repeating: .nan, count: NeuralCollapse.names.count)
    if Flat.isFinite(centred, k * d) {
      try LinearAlgebra.require()
      (found[0], found[1]) = try within(h, y, n, d, k, counts, means, centred)
      let m = Geometry(try gram(centred, k, d, space), k), lengths = m.lengths
      let mean = lengths.reduce(0, +) / Double(k)
      found[2] = deviation(lengths) / mean
      let cosines = m.cosines
      found[3] = deviation(cosines)
      found[4] = cosines.reduce(0) { $0 + abs($1 + 1 / Double(k - 1)) } / Double(cosines.count)
      found[5] = m.distance { i, j in ((i == j ? 1 : 0) - 1 / Double(k)) / Double(k - 1).squareRoot() }
      found[7] = Geometry(try gram(means, k, d, space), k).distance { i, j in
        i == j ? 1 / Double(k).squareRoot() : 0
      }
    }
    if let w, Flat.isFinite(centred, k * d), Flat.isFinite(w, k * d) {
      let wide = try widened(w, k * d, space)
      found[6] = Geometry(try gram(wide, k, d, space), k).distance { i, j in
        ((i == j ? 1 : 0) - 1 / Double(k)) / Double(k - 1).squareRoot()
      }
      let a = Flat.norm(wide, k * d), m = Flat.norm(centred, k * d)
      found[8] = Rows.sum(k, work: d) { j in
        var sum = 0.0
        for c in (j * d)..<((j + 1) * d) {
          let apart = wide[c] / a - centred[c] / m
          sum += apart * apart
        }
        return sum
      }
      found[9] =
        Rows.sum(n, work: 4 * k * d) { i in
          var best = (score: -Double.infinity, at: 0), near = (distance: Double.infinity, at: 0)
          for j in 0..<k {
            var score = b.map { Double($0[j]) } ?? 0, distance = 0.0
            for c in 0..<d {
              let a = Double(h[i * d + c]), apart = a - means[j * d + c]
              score += wide[j * d + c] * a
              distance += apart * apart
            }
            if score > best.score { best = (score, j) }
            if distance < near.distance { near = (distance, j) }
          }
          return best.at == near.at ? 0 : 1
        } / Double(n)
    }
    for (name, value) in zip(NeuralCollapse.names, found) { try cache?.keep(name, numbers: [value], T.self) }
    return found[0]
  }

  /// nc1 and the ratio of traces: in the basis of S_B, where its inverse is a division.
  private func within<T: Real>(
    _ h: UnsafePointer<T>, _ y: UnsafePointer<Int>, _ n: Int, _ d: Int, _ k: Int, _ counts: [Double],
    _ means: UnsafePointer<Double>, _ centred: UnsafePointer<Double>
  ) throws(Failure) -> (Double, Double) {
    let svd = try LinearAlgebra.SVD(centred, k, d), top = svd.s[0]
    let between = svd.s.reduce(0) { $0 + $1 * $1 } / Double(k)
    let kept = svd.s.prefix { $0 * $0 > rcond * top * top }.count
    var trace = 0.0
    let sum = Rows.sum(n, work: d * (kept + 1)) { i in
      let weight = 1 / (counts[y[i]] * Double(k)), mean = means + y[i] * d
      var sum = 0.0
      for r in 0..<kept {
        var along = 0.0
        for c in 0..<d { along += svd.vt[r * d + c] * (Double(h[i * d + c]) - mean[c]) }
        sum += along * along / (svd.s[r] * svd.s[r] / Double(k))
      }
      return weight * sum
    }
    trace = Rows.sum(n, work: d) { i in
      let mean = means + y[i] * d
      var sum = 0.0
      for c in 0..<d { sum += (Double(h[i * d + c]) - mean[c]) * (Double(h[i * d + c]) - mean[c]) }
      return sum / (counts[y[i]] * Double(k))
    }
    return kept == 0 ? (.infinity, .infinity) : (sum / Double(k), trace / between)
  }

  private func gram(_ a: UnsafePointer<Double>, _ k: Int, _ d: Int, _ space: Workspace) throws(Failure) -> [Double] {
    try Memory.ask(area(8, k, k))
    var out = [Double](repeating: 0, count: k * k)
    try LinearAlgebra.gram(a, into: &out, k, d)
    return out
  }
  /// The standard deviation of a population.
  private func deviation(_ x: [Double]) -> Double {
    let mean = x.reduce(0, +) / Double(x.count)
    return (x.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(x.count)).squareRoot()
  }

  /// The Gram matrix of k vectors.
  private struct Geometry {
    let gram: [Double], k: Int
    init(_ gram: [Double], _ k: Int) { (self.gram, self.k) = (gram, k) }

    var lengths: [Double] { (0..<k).map { gram[$0 * k + $0].squareRoot() } }
    /// Of all pairs; 0 where one has no length.
    var cosines: [Double] {
      let lengths = lengths
      return (0..<k).flatMap { i in
        ((i + 1)..<k).map { j in
          lengths[i] == 0 || lengths[j] == 0 ? 0 : gram[i * k + j] / (lengths[i] * lengths[j])
        }
      }
    }
    /// The distance of the matrix, of norm 1, from another.
    func distance(_ target: (Int, Int) -> Double) -> Double {
      let norm = Flat.norm(gram, k * k)
      var sum = 0.0
      for i in 0..<k {
        for j in 0..<k {
          let apart = gram[i * k + j] / norm - target(i, j)
          sum += apart * apart
        }
      }
      return sum.squareRoot()
    }
  }
}
