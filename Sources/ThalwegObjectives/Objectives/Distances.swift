import Glibc
import ThalwegCore

/// Maximum mean discrepancy with Gaussian kernels.
///
///     k(a, b) = Σ_s exp(−‖a − b‖²/(2s²))     value = mean k(X, X) + mean k(Y, Y) − 2·mean k(X, Y)
///
/// x is (n, d), y is (m, d). unbiased leaves the diagonals out and divides by n(n − 1) and m(m − 1); it may be
/// negative.
/// Errors   TW_ERROR_SHAPE: unbiased with a single row; TW_ERROR_RANGE: a bandwidth that is not above 0.
/// Source   Gretton et al., 2012.
struct MMD: Objective {
  static let method = Method(
    "mmd", .objective, "Maximum mean discrepancy of two samples, with Gaussian kernels.",
    rule: "k(a, b) = sum_s exp(-|a - b|^2/(2 s^2));  value = mean k(X, X) + mean k(Y, Y) - 2*mean k(X, Y)",
    source: "Gretton et al., 2012",
    parameters: [
      .list("bandwidths", [1], "s, one kernel each"), .flag("unbiased", false, "leave the diagonals out"),
    ],
    inputs: [.variable("x", "n, d", "one sample"), .variable("y", "m, d", "the other")],
    validate: { (h) throws(Failure) in
      let s = h.list("bandwidths")
      guard !s.isEmpty, s.allSatisfy({ $0 > 0 && $0.isFinite }) else {
        throw Failure(Status.range, "mmd: `bandwidths` must hold finite numbers above 0")
      }
    })
  let factors: [Double], unbiased: Bool
  init(_ h: Hyper) { (factors, unbiased) = (h.list("bandwidths").map { 1 / (2 * $0 * $0) }, h.unbiased) }

  /// Pairs of a sample with itself.
  private func pairs(_ n: Int) -> Double { Double(n) * Double(unbiased ? n - 1 : n) }

  private func mean<T: Real>(
    _ x: UnsafePointer<T>, _ n: Int, _ y: UnsafePointer<T>, _ m: Int, _ d: Int, _ pairs: Double, skipping skips: Bool
  ) throws(Failure) -> Double {
    let space = Workspace()
    defer { space.close() }
    let sums = try space.room(n, Double.self)
    try DistanceTiles(x, n, y, m, d, space).forEachRow { i, j, r in
      if skips && i == j { return }
      for f in factors { sums[i] += exp(-f * r) }
    }
    return Rows.sum(n, work: 1) { sums[$0] } / pairs
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["x"], b = try x["y"], n = x.sizes["n"], m = x.sizes["m"], d = x.sizes["d"]
    guard !unbiased || (n > 1 && m > 1) else {
      throw Failure(Status.shape, "unbiased needs at least 2 rows on both sides, got \(n) and \(m)")
    }
    try cache?.keep("x", n * d, of: a)
    try cache?.keep("y", m * d, of: b)
    let own = try mean(a, n, a, n, d, pairs(n), skipping: unbiased) + mean(b, m, b, m, d, pairs(m), skipping: unbiased)
    // both may be the same memory, and stay two samples
    return own - 2 * (try mean(a, n, b, m, d, Double(n) * Double(m), skipping: false))
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let first = name == "x", n = cache.sizes[first ? "n" : "m"], m = cache.sizes[first ? "m" : "n"]
    let mine = try cache.kept(name, T.self), other = try cache.kept(first ? "y" : "x", T.self), d = cache.sizes["d"]
    let slope = { (r: Double) in factors.reduce(0) { $0 - $1 * exp(-$1 * r) } }
    g.update(repeating: 0, count: n * d)
    let own = pairs(n), cross = Double(n) * Double(m), space = Workspace()
    defer { space.close() }
    try DistanceTiles(mine, n, mine, n, d, space).pull(into: g) { i, j, r in i == j ? 0 : 2 / own * slope(r) }
    try DistanceTiles(mine, n, other, m, d, space).pull(into: g) { _, _, r in -2 / cross * slope(r) }
  }
}

/// The Wasserstein distance of samples along lines.
private struct Slices1D {
  let order: Double, root: Bool

  /// mean over the L projections θ of W_p^p of the projected samples, or its root; gx and gy take the gradients.
  func value<T: Real>(
    _ x: UnsafePointer<T>, _ n: Int, _ y: UnsafePointer<T>, _ m: Int, _ theta: UnsafePointer<T>, _ count: Int,
    _ d: Int, _ gx: UnsafeMutablePointer<T>?, _ gy: UnsafeMutablePointer<T>?
  ) throws(Failure) -> Double {
    let space = Workspace(), block = min(count, 32)
    defer { space.close() }
    _ = try area(n, m)  // mass is counted in units of 1/(n·m)
    let px = try space.room(area(block, n), T.self), py = try space.room(area(block, m), T.self)
    let sx = try space.room(n * d, T.self), sy = try space.room(m * d, T.self)
    // apart in units of the longest row, where powers of it would leave the range of floats
    let top = [(x, n), (y, m)].reduce(0.0) { top, side in
      (0..<side.1).reduce(top) { max($0, Flat.norm(side.0 + $1 * d, d)) }
    }
    let isFar = top > 0 && top.isFinite && abs(log2(top)) * order > 60
    let unit = isFar ? Double(sign: .plus, exponent: top.exponent, significand: 1) : 1
    var sum = 0.0
    for first in stride(from: 0, to: count, by: block) {
      let lines = min(block, count - first), directions = theta + first * d
      try LinearAlgebra.multiply(directions, transposed: false, x, transposed: true, into: px, lines, n, d)
      try LinearAlgebra.multiply(directions, transposed: false, y, transposed: true, into: py, lines, m, d)
      sum += Rows.sum(lines, work: 64 * (n + m)) { l in
        line(px + l * n, n, py + l * m, m, unit, slopes: gx != nil)
      }
      if gx != nil {
        try LinearAlgebra.multiply(px, transposed: true, directions, into: sx, n, d, lines, beta: first == 0 ? 0 : 1)
        try LinearAlgebra.multiply(py, transposed: true, directions, into: sy, m, d, lines, beta: first == 0 ? 0 : 1)
      }
    }
    let mean = sum / Double(count)
    let outer = root ? (mean == 0 ? 0 : pow(mean, 1 / order - 1) / order) : pow(unit, order - 1)
    if let gx, let gy {
      Flat.scale(sx, by: outer / Double(count), into: gx, n * d)
      Flat.scale(sy, by: outer / Double(count), into: gy, m * d)
    }
    return root ? unit * pow(mean, 1 / order) : pow(unit, order) * mean
  }

  /// Σ w·(|a − b|/unit)^p over the merged quantile functions; the derivatives, by a/unit, take the places of the
  /// numbers.
  private func line<T: Real>(
    _ a: UnsafeMutablePointer<T>, _ n: Int, _ b: UnsafeMutablePointer<T>, _ m: Int, _ unit: Double, slopes: Bool
  ) -> Double {
    let x = (0..<n).map { (Double(a[$0]), $0) }.sorted { $0 < $1 }
    let y = (0..<m).map { (Double(b[$0]), $0) }.sorted { $0 < $1 }
    if slopes {
      a.update(repeating: 0, count: n)
      b.update(repeating: 0, count: m)
    }
    var i = 0, j = 0, leftX = m, leftY = n, sum = 0.0
    let share = 1 / (Double(n) * Double(m))
    while i < n, j < m {
      let mass = min(leftX, leftY), w = Double(mass) * share, apart = (x[i].0 - y[j].0) / unit
      sum += w * pow(abs(apart), order)
      if slopes, apart != 0 {
        let slope = T(w * order * pow(abs(apart), order - 1) * sign(apart))
        a[x[i].1] += slope
        b[y[j].1] -= slope
      }
      leftX -= mass
      leftY -= mass
      if leftX == 0 { (i, leftX) = (i + 1, m) }
      if leftY == 0 { (j, leftY) = (j + 1, n) }
    }
    return sum
  }
}

/// The sliced Wasserstein distance: that of the projections onto many lines.
///
///     value = (mean over θ of W_p^p(X·θ, Y·θ))^{1/p}, or without the root
///
/// x is (n, d), y is (m, d), projections is (L, d) with rows of length 1. Samples of different sizes are compared
/// through their quantile functions. A distance of 0 has no gradient.
/// Source   Bonneel et al., 2015.
struct SlicedWasserstein: Objective {
  static let method = Method(
    "sliced_wasserstein", .objective, "The Wasserstein distance of two samples, projected onto many lines.",
    rule: "value = (mean over theta of W_p^p(X theta, Y theta))^(1/p), by sorting", source: "Bonneel et al., 2015",
    parameters: [.number("p", 2, .atLeast(1), "order"), .flag("root", true, "take the p-th root of the mean")],
    inputs: [
      .variable("x", "n, d", "one sample"), .variable("y", "m, d", "the other"),
      .constant("projections", "L, d", "directions, of length 1"),
    ])
  private let slices: Slices1D
  init(_ h: Hyper) { slices = Slices1D(order: h.p, root: h.root) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], m = x.sizes["m"], d = x.sizes["d"]
    return try slices.value(
      x["x"], n, x["y"], m, x["projections"], x.sizes["L"], d, cache?.keep("x", n * d, T.self),
      cache?.keep("y", m * d, T.self))
  }
}

/// The augmented sliced Wasserstein distance: samples are first lifted by an injective map, which ascends.
///
///     g(x) = [x, W·x + b]     value = SW_p(g(X), g(Y))     ∂x = a[:, :d] + a[:, d:]·W, a the gradient of SW at g(X)
///     J = SW_p(g(X), g(Y)) − λ·(mean ‖g(x)‖ + mean ‖g(y)‖)
///
/// x is (n, d), y is (k, d), w is (m, d), b is (m,), projections is (L, d + m) with rows of length 1. The pull-back
/// gives ∂J/∂w and ∂J/∂b as w_ascent and b_ascent: the host takes its inner steps along them, with fresh projections,
/// before it asks for the gradients of x and y.
/// Errors   TW_ERROR_SHAPE: projections that do not have d + m columns.
/// Differs  the authors' code sums over samples inside the root; here it is the mean, as in `sliced_wasserstein`.
/// Source   Chen et al., 2022, arXiv:2006.08812.
struct AugmentedSlicedWasserstein: Objective {
  static let method = Method(
    "augmented_sliced_wasserstein", .objective,
    "The sliced Wasserstein distance of samples lifted by a map that ascends.",
    rule: """
      g(x) = [x, W x + b];  value = SW_p(g(X), g(Y))
      w_ascent, b_ascent: gradients of SW_p(g(X), g(Y)) - lam*(mean |g(x)| + mean |g(y)|)
      """,
    source: "Chen et al., 2022, arXiv:2006.08812",
    parameters: [
      .number("lam", 0.5, .atLeast(0), "weight of the norms that hold the map back"),
      .number("p", 2, .atLeast(1), "order"),
    ],
    inputs: [
      .variable("x", "n, d", "one sample"), .variable("y", "k, d", "the other"), .constant("w", "m, d", "W of the map"),
      .constant("b", "m", "b of the map"), .constant("projections", "L, e", "directions, of length 1; e = d + m"),
      .result("w_ascent", "m, d", "the direction of ascent for W"), .result("b_ascent", "m", "and for b"),
    ])
  let lam: Double
  private let slices: Slices1D
  init(_ h: Hyper) { (lam, slices) = (h.lam, Slices1D(order: h.p, root: true)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let d = x.sizes["d"], m = x.sizes["m"], e = d + m, space = Workspace(), w = try x["w"], b = try x["b"]
    defer { space.close() }
    guard x.sizes["e"] == e else {
      throw Failure(Status.shape, "`projections` must have d + m = \(e) columns, got \(x.sizes["e"])")
    }
    let sides = [("x", x.sizes["n"], try x["x"]), ("y", x.sizes["k"], try x["y"])]
    var lifted: [UnsafeMutablePointer<T>] = [], slopes: [UnsafeMutablePointer<T>] = []
    for (_, n, rows) in sides {
      let g = try space.room(area(n, e), T.self), images = try space.room(area(n, m), T.self)
      try LinearAlgebra.multiply(rows, transposed: false, w, transposed: true, into: images, n, m, d)
      for i in 0..<n {
        (g + i * e).update(from: rows + i * d, count: d)
        for k in 0..<m { g[i * e + d + k] = images[i * m + k] + b[k] }
      }
      lifted.append(g)
      slopes.append(try space.room(n * e, T.self))
    }
    let value = try slices.value(
      lifted[0], sides[0].1, lifted[1], sides[1].1, x["projections"], x.sizes["L"], e,
      cache == nil ? nil : slopes[0], cache == nil ? nil : slopes[1])
    guard let cache else { return value }
    let dw = try cache.keep("w_ascent", m * d, T.self), db = try cache.keep("b_ascent", m, T.self)
    for (side, (name, n, rows)) in sides.enumerated() {
      let a = slopes[side], g = lifted[side], out = try cache.keep(name, n * d, T.self)
      let images = try space.room(n * m, T.self)  // the columns d... of a
      for i in 0..<n {
        (out + i * d).update(from: a + i * e, count: d)
        (images + i * m).update(from: a + i * e + d, count: m)
      }
      try LinearAlgebra.multiply(images, w, into: out, n, d, m, beta: 1)
      for i in 0..<n {
        let length = Flat.norm(g + i * e, e)
        if length > 0 { Flat.add(g + i * e + d, times: -lam / (length * Double(n)), into: images + i * m, m) }
        Flat.add(images + i * m, times: 1, into: db, m)
      }
      try LinearAlgebra.multiply(images, transposed: true, rows, into: dw, m, d, n, beta: 1)
    }
    return value
  }
}
