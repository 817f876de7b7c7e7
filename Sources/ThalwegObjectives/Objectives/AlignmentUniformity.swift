import Glibc
import ThalwegCore

/// How near two views of a sample are, mean ‖u_i − v_i‖^α.
private struct Alignment {
  let alpha: Double

  func value<T: Real>(_ u: UnsafePointer<T>, _ v: UnsafePointer<T>, _ n: Int, _ d: Int) -> Double {
    Rows.sum(n, work: 4 * d) { i in pow(distance(u + i * d, v + i * d, d), alpha) } / Double(n)
  }
  /// g ← g + weight·∂/∂u.
  func pull<T: Real>(
    _ g: UnsafeMutablePointer<T>, _ u: UnsafePointer<T>, _ v: UnsafePointer<T>, _ n: Int, _ d: Int, _ weight: Double
  ) {
    _ = Rows.sum(n, work: 8 * d) { i in
      let r = distance(u + i * d, v + i * d, d)
      if r == 0 { return 0 }
      let factor = weight * alpha * pow(r, alpha - 2) / Double(n)
      for k in (i * d)..<((i + 1) * d) { g[k] += T(factor * (Double(u[k]) - Double(v[k]))) }
      return 0
    }
  }
  private func distance<T: Real>(_ a: UnsafePointer<T>, _ b: UnsafePointer<T>, _ d: Int) -> Double {
    var sum = 0.0
    for k in 0..<d { sum += (Double(a[k]) - Double(b[k])) * (Double(a[k]) - Double(b[k])) }
    return sum.squareRoot()
  }
}

/// How evenly rows cover the sphere, log mean_{i<j} exp(−t·‖u_i − u_j‖²).
private struct Uniformity {
  let sharpness: Double

  /// `logs` takes the log-sum-exps of the rows.
  func value<T: Real>(_ u: UnsafePointer<T>, _ n: Int, _ d: Int, _ logs: UnsafeMutablePointer<Double>) throws(Failure)
    -> Double
  {
    guard n > 1 else { return 0 }
    let space = Workspace()
    defer { space.close() }
    let sums = try space.room(n, LogSum.self)
    sums.update(repeating: LogSum(), count: n)
    try DistanceTiles(u, n, u, n, d, space).forEachRow { i, j, r in if i != j { sums[i].add(-sharpness * r) } }
    for i in 0..<n { logs[i] = sums[i].value }
    return total(logs, n) - log(Double(n) * Double(n - 1))
  }
  /// Over ordered pairs.
  private func total(_ logs: UnsafePointer<Double>, _ n: Int) -> Double {
    var all = LogSum()
    for i in 0..<n { all.add(logs[i]) }
    return all.value
  }
  /// g ← g + weight·∂/∂u.
  func pull<T: Real>(
    _ g: UnsafeMutablePointer<T>, _ u: UnsafePointer<T>, _ n: Int, _ d: Int, _ logs: UnsafePointer<Double>,
    _ weight: Double
  ) throws(Failure) {
    guard n > 1, weight != 0 else { return }
    let all = total(logs, n), space = Workspace()
    defer { space.close() }
    // each pair stands twice in the sum
    try DistanceTiles(u, n, u, n, d, space).pull(into: g) { i, j, r in
      i == j ? 0 : -2 * weight * sharpness * exp(-sharpness * r - all)
    }
  }
}

private let weights: [Parameter] = [
  .number("align_weight", 1, .atLeast(0), "coefficient of the alignment"),
  .number("unif_weight", 1, .atLeast(0), "coefficient of the uniformity"),
]
private let alphaParameter = Parameter.number("alpha", 2, .above(0), "power of the distance")
private let sharpness = Parameter.number("t", 2, .above(0), "sharpness of the kernel")
private let sphere = Parameter.flag("normalize", true, "compare on the unit sphere")

/// Alignment and uniformity: two views of a sample near each other, all samples spread evenly.
///
///     align = mean ‖u_i − v_i‖^α     unif(u) = log mean_{i<j} exp(−t·‖u_i − u_j‖²)
///     value = w_a·align + w_u·(unif(u) + unif(v))/2
///
/// x and y are (n, d). At a distance of 0 the alignment has no gradient; one row alone is uniform, with value 0.
/// Source   Wang and Isola, 2020, arXiv:2005.10242.
struct AlignmentUniformity: Objective {
  static let method = Method(
    "alignment_uniformity", .objective, "Two views of a sample near each other, all samples spread evenly.",
    rule: """
      align = mean |u_i - v_i|^alpha;  unif(u) = log mean_{i<j} exp(-t*|u_i - u_j|^2), u and v the normalised rows
      value = align_weight*align + unif_weight*(unif(u) + unif(v))/2
      """,
    source: "Wang, Isola, 2020, arXiv:2005.10242", parameters: weights + [alphaParameter, sharpness, sphere],
    inputs: viewInputs)

  let near: Double, spread: Double, normalize: Bool
  private let alignment: Alignment, uniformity: Uniformity
  init(_ h: Hyper) {
    (near, spread, normalize) = (h.align_weight, h.unif_weight, h.normalize)
    (alignment, uniformity) = (Alignment(alpha: h.alpha), Uniformity(sharpness: h.t))
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let both = try Embedding([x["x"], x["y"]], n, d, normalize: normalize, cache, space)
    let logs = try space.room(cache, "logs", 2 * n, Double.self)
    let u = try uniformity.value(both.u, n, d, logs), v = try uniformity.value(both.u + n * d, n, d, logs + n)
    return near * alignment.value(both.u, both.u + n * d, n, d) + spread * (u + v) / 2
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], both = try Embedding<T>(cache, cache.sizes["d"]), d = both.d
    let first = name == "x" ? 0 : n, mine = both.u + first * d
    g.update(repeating: 0, count: n * d)
    alignment.pull(g, mine, both.u + (n - first) * d, n, d, near)
    try uniformity.pull(g, mine, n, d, cache.kept("logs", Double.self) + first, spread / 2)
    both.pull(g, rows: first, n, normalize: normalize)
  }
}

/// The alignment of `alignment_uniformity` alone.
///
/// Source   Wang and Isola, 2020, arXiv:2005.10242.
struct AlignmentLoss: Objective {
  static let method = Method(
    "alignment", .objective, "Two views of a sample near each other: one half of alignment_uniformity.",
    rule: "mean |u_i - v_i|^alpha, u and v the normalised rows", source: "Wang, Isola, 2020, arXiv:2005.10242",
    parameters: [alphaParameter, sphere], inputs: viewInputs)
  private let alignment: Alignment
  let normalize: Bool
  init(_ h: Hyper) { (alignment, normalize) = (Alignment(alpha: h.alpha), h.normalize) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let both = try Embedding([x["x"], x["y"]], n, d, normalize: normalize, cache, space)
    return alignment.value(both.u, both.u + n * d, n, d)
  }
  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], both = try Embedding<T>(cache, cache.sizes["d"]), first = name == "x" ? 0 : n
    g.update(repeating: 0, count: n * both.d)
    alignment.pull(g, both.u + first * both.d, both.u + (n - first) * both.d, n, both.d, 1)
    both.pull(g, rows: first, n, normalize: normalize)
  }
}

/// The uniformity of `alignment_uniformity` alone.
///
/// Source   Wang and Isola, 2020, arXiv:2005.10242.
struct UniformityLoss: Objective {
  static let method = Method(
    "uniformity", .objective, "All samples spread evenly: one half of alignment_uniformity.",
    rule: "log mean_{i<j} exp(-t*|u_i - u_j|^2), u the normalised rows",
    source: "Wang, Isola, 2020, arXiv:2005.10242", parameters: [sharpness, sphere],
    inputs: [.variable("x", "n, d", "embeddings")])
  private let uniformity: Uniformity
  let normalize: Bool
  init(_ h: Hyper) { (uniformity, normalize) = (Uniformity(sharpness: h.t), h.normalize) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let all = try Embedding([x["x"]], n, d, normalize: normalize, cache, space)
    return try uniformity.value(all.u, n, d, space.room(cache, "logs", n, Double.self))
  }
  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], all = try Embedding<T>(cache, cache.sizes["d"])
    g.update(repeating: 0, count: n * all.d)
    try uniformity.pull(g, all.u, n, all.d, cache.kept("logs", Double.self), 1)
    all.pull(g, rows: 0, n, normalize: normalize)
  }
}
