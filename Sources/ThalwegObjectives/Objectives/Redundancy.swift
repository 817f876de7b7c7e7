import Glibc
import ThalwegCore

/// The columns of a matrix with their means taken off, in double.
private func centred<T: Real>(_ x: UnsafePointer<T>, _ n: Int, _ d: Int, into a: UnsafeMutablePointer<T>) {
  _ = Rows.sum(d, work: 4 * n) { c in
    var mean = 0.0
    for i in 0..<n { mean += Double(x[i * d + c]) / Double(n) }
    for i in 0..<n { a[i * d + c] = T(Double(x[i * d + c]) - mean) }
    return 0
  }
}

/// Barlow Twins: each feature agrees with itself across two views, and with no other.
///
///     a, b = columns of x and y less their mean, over √(variance + ε)     c = aᵀ·b/n
///     value = Σ_i (c_ii − 1)² + λ·Σ_{i≠j} c_ij²
///
/// x and y are (n, d); the variance is the biased one.
/// Errors   TW_ERROR_MEMORY: no room for c (d, d).
/// Differs  some ports scale the value by 1/d or 0.024.
/// Source   Zbontar et al., 2021, arXiv:2103.03230.
struct BarlowTwins: Objective {
  static let method = Method(
    "barlow_twins", .objective, "Each feature agrees with itself across two views, and with no other.",
    rule: """
      a, b = columns of x and y, less their mean, over sqrt(var + eps);  c = a'b/n
      value = sum_i (c_ii - 1)^2 + lam*sum_{i != j} c_ij^2
      """,
    source: "Zbontar et al., 2021, arXiv:2103.03230",
    parameters: [
      .number("lam", 0.0051, .atLeast(0), "weight of the redundancy"), .eps(1e-5, "added to the variances", .above(0)),
    ], inputs: viewInputs)
  let lam: Double, eps: Double
  init(_ h: Hyper) { (lam, eps) = (h.lam, h.eps) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let a = try space.room(cache, "a", n * d, T.self), b = try space.room(cache, "b", n * d, T.self)
    let deviation = try space.room(cache, "deviation", 2 * d, Double.self)
    for (k, (view, out)) in [(try x["x"], a), (try x["y"], b)].enumerated() {
      centred(view, n, d, into: out)
      _ = Rows.sum(d, work: 4 * n) { c in
        var sum = 0.0
        for i in 0..<n { sum += Double(out[i * d + c]) * Double(out[i * d + c]) }
        deviation[k * d + c] = (sum / Double(n) + eps).squareRoot()
        for i in 0..<n { out[i * d + c] = T(Double(out[i * d + c]) / deviation[k * d + c]) }
        return 0
      }
    }
    let correlation = try space.room(cache, "c", area(d, d), T.self)
    try LinearAlgebra.multiply(a, transposed: true, b, into: correlation, d, d, n, alpha: 1 / Double(n))
    return Rows.sum(d, work: 2 * d) { i in
      let row = correlation + i * d, own = Double(row[i]) - 1
      var rest = 0.0
      for j in 0..<d where j != i { rest += Double(row[j]) * Double(row[j]) }
      for j in 0..<d { row[j] = T(2 * (j == i ? own : lam * Double(row[j])) / Double(n)) }  // ∂value/∂c, over n
      return own * own + lam * rest
    }
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], d = cache.sizes["d"], left = name == "x"
    let a = try cache.kept("a", T.self), b = try cache.kept("b", T.self), c = try cache.kept("c", T.self)
    let deviation = try cache.kept("deviation", Double.self) + (left ? 0 : d), own = left ? a : b
    try LinearAlgebra.multiply(left ? b : a, transposed: false, c, transposed: left, into: g, n, d, d)
    _ = Rows.sum(d, work: 8 * n) { k in
      var mean = 0.0, along = 0.0
      for i in 0..<n {
        mean += Double(g[i * d + k]) / Double(n)
        along += Double(g[i * d + k]) * Double(own[i * d + k]) / Double(n)
      }
      for i in 0..<n {
        g[i * d + k] = T((Double(g[i * d + k]) - mean - Double(own[i * d + k]) * along) / deviation[k])
      }
      return 0
    }
  }
}

/// VICReg: two views agree, every feature varies, and different features are not correlated.
///
///     value = sim·mean (x − y)² + std/2·[mean_c max(0, γ − sd_c(x)) + the same of y]
///             + cov·[Σ_{i≠j} C_ij(x)²/d + the same of y]
///
/// x and y are (n, d); sd = √(variance + ε) and the covariance C divide by n − 1.
/// Errors   TW_ERROR_SHAPE: a single row.
/// Source   Bardes et al., 2022, arXiv:2105.04906.
struct VICReg: Objective {
  static let method = Method(
    "vicreg", .objective, "Two views agree, every feature varies, and different features are not correlated.",
    rule: """
      value = sim*mean (x - y)^2 + std/2*(mean_c max(0, gamma - sd_c(x)) + same of y)
              + cov*(sum_{i != j} C_ij(x)^2/d + same of y), sd = sqrt(var + eps), variances over n - 1
      """,
    source: "Bardes et al., 2022, arXiv:2105.04906",
    parameters: [
      .number("sim", 25, .atLeast(0), "weight of the agreement"),
      .number("std", 25, .atLeast(0), "weight of the variances"),
      .number("cov", 1, .atLeast(0), "weight of the covariances"),
      .number("gamma", 1, .above(0), "deviation that is enough"), .eps(1e-4, "added to the variances", .above(0)),
    ], inputs: viewInputs)
  let sim: Double, std: Double, cov: Double, gamma: Double, eps: Double
  init(_ h: Hyper) { (sim, std, cov, gamma, eps) = (h.sim, h.std, h.cov, h.gamma, h.eps) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    guard n > 1 else { throw Failure(Status.shape, "one row has no variance; at least 2 are needed") }
    let views = [try x["x"], try x["y"]], a = try space.room(n * d, T.self)
    let covariance = try space.room(area(d, d), T.self), scale = 1 / Double(n - 1)
    var value = 0.0
    for (k, name) in ["x", "y"].enumerated() {
      centred(views[k], n, d, into: a)
      try LinearAlgebra.gram(a, transposed: true, into: covariance, d, n, alpha: scale)
      let spread = try space.room(d, Double.self)
      value += Rows.sum(d, work: 2 * d) { i in
        let row = covariance + i * d, sd = (Double(row[i]) + eps).squareRoot()
        var rest = 0.0
        for j in 0..<d where j != i { rest += Double(row[j]) * Double(row[j]) }
        row[i] = 0
        spread[i] = sd < gamma ? -std / 2 / Double(d) * scale / sd : 0
        return std / 2 * larger(0, gamma - sd) / Double(d) + cov * rest / Double(d)
      }
      guard let g = try cache?.keep(name, n * d, T.self) else { continue }
      // both factors are centred: so is the gradient
      try LinearAlgebra.multiply(a, covariance, into: g, n, d, d, alpha: 4 * cov * scale / Double(d))
      let other = views[1 - k], mine = views[k]
      _ = Rows.sum(n, work: 4 * d) { i in
        for c in 0..<d {
          let at = i * d + c, apart = Double(mine[at]) - Double(other[at])
          g[at] = T(Double(g[at]) + spread[c] * Double(a[at]) + 2 * sim * apart / Double(n * d))
        }
        return 0
      }
    }
    let apart = Rows.sum(n * d, work: 2) { k in
      let difference = Double(views[0][k]) - Double(views[1][k])
      return difference * difference
    }
    return value + sim * apart / Double(n * d)
  }
}

/// TiCo: two views agree, against a moving average of the covariance of all embeddings.
///
///     u, v = normalised rows of x and y     B = uᵀu/n     C = β·c + (1 − β)·B
///     value = 1 − mean u·v + ρ·mean uᵀ·C·u     ∂u = −v/n + 2ρ·u·C/n (+ 2ρ·(1 − β)·u·B/n with grad_through_batch)
///
/// x and y are (n, d); c, symmetric, is the average that the host keeps, none: zeros. The pull-back gives the next one
/// as c_next (take it with a factor of 1); a call that only evaluates leaves it alone.
/// Differs  lightly's TiCoLoss holds B constant (grad_through_batch off); others leave out the constant 1.
/// Source   Zhu et al., 2022, arXiv:2206.10698.
struct TiCo: Objective {
  static let method = Method(
    "tico", .objective, "Two views agree, against a moving average of the covariance of all embeddings.",
    rule: """
      u, v = normalised rows;  B = u'u/n, C = beta*c + (1 - beta)*B;  value = 1 - mean u.v + rho*mean u'C u
      gradient for u: -v/n + 2*rho*u C/n (+ 2*rho*(1 - beta)*u B/n with grad_through_batch)
      """,
    source: "Zhu et al., 2022, arXiv:2206.10698",
    parameters: [
      .rate("beta", 0.9, "moving average of the covariance"),
      .number("rho", 8, .atLeast(0), "weight of the covariance"),
      .flag("grad_through_batch", true, "differentiate the share of this batch in C"),
    ],
    inputs: viewInputs + [
      .constant("c", "d, d", "the average covariance so far; none: zeros", optional: true),
      .result("c_next", "d, d", "the average with this batch"),
    ])
  let beta: Double, rho: Double, through: Bool
  init(_ h: Hyper) { (beta, rho, through) = (h.beta, h.rho, h.grad_through_batch) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace(), weight = 1 / Double(n)
    defer { space.close() }
    let both = try Embedding([x["x"], x["y"]], n, d, normalize: true, cache, space), u = both.u
    let average = try space.room(cache, "c_next", area(d, d), T.self), product = try space.room(n * d, T.self)
    if let c = x.optional("c") { average.update(from: c, count: d * d) }
    try LinearAlgebra.gram(u, transposed: true, into: average, d, n, alpha: (1 - beta) * weight, beta: beta)
    try LinearAlgebra.multiply(u, average, into: product, n, d, d)
    let value = Rows.sum(n, work: 4 * d) { i in
      rho * Flat.dot(u + i * d, product + i * d, d) - Flat.dot(u + i * d, u + (n + i) * d, d)
    }
    guard let cache else { return 1 + weight * value }
    let dx = try cache.keep("x", n * d, T.self), dy = try cache.keep("y", n * d, T.self)
    Flat.scale(u + n * d, by: -weight, into: dx, n * d)
    Flat.add(product, times: 2 * rho * weight, into: dx, n * d)
    if through {
      let batch = try space.room(area(d, d), T.self)
      try LinearAlgebra.gram(u, transposed: true, into: batch, d, n, alpha: weight)
      try LinearAlgebra.multiply(u, batch, into: dx, n, d, d, alpha: 2 * rho * (1 - beta) * weight, beta: 1)
    }
    Flat.scale(u, by: -weight, into: dy, n * d)
    both.pull(dx, rows: 0, n, normalize: true)
    both.pull(dy, rows: n, n, normalize: true)
    return 1 + weight * value
  }
}
