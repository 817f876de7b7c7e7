import Glibc
import ThalwegCore

/// Attributions that change little from pixel to pixel.
///
///     value = mean_n Σ |φ[i+1, j] − φ[i, j]| + |φ[i, j+1] − φ[i, j]|
///
/// w, the attributions φ, is (n, ..., H, W): axes in between, of channels say, add up. The host differentiates them by
/// its weights; inside a pipeline they would be missing.
/// Source   Erion et al., 2019, arXiv:1906.10670.
struct AttributionPriorTV: Objective {
  static let method = Method(
    "attribution_prior_tv", .regularizer, "Attributions that change little from pixel to pixel.",
    rule: "value = mean_n sum |w[i+1, j] - w[i, j]| + |w[i, j+1] - w[i, j]|, over the last two axes",
    source: "Erion et al., 2019, arXiv:1906.10670",
    inputs: [.variable("w", "n, ..., H, W", "attributions")])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let phi = try x["w"], n = x.sizes["n"], height = x.sizes["H"], width = x.sizes["W"], size = height * width
    let images = n * x.sizes.samples, g = try cache?.keep("w", images * size, T.self), weight = 1 / Double(n)
    return Rows.sum(images, work: 8 * size) { image in
      var sum = 0.0
      func pair(_ a: Int, _ b: Int) {
        let apart = Double(phi[b]) - Double(phi[a])
        sum += weight * abs(apart)
        g?[b] += T(weight * sign(apart))
        g?[a] -= T(weight * sign(apart))
      }
      for i in 0..<height {
        for j in 0..<width {
          let at = image * size + i * width + j
          if i + 1 < height { pair(at, at + width) }
          if j + 1 < width { pair(at, at + 1) }
        }
      }
      return sum
    }
  }
}

/// The mean magnitude of each attribution, over samples.
private func magnitudes<T: Real>(_ phi: UnsafePointer<T>, _ n: Int, _ p: Int) -> [Double] {
  var m = [Double](repeating: 0, count: p)
  for i in 0..<n { for k in 0..<p { m[k] += abs(Double(phi[i * p + k])) / Double(n) } }
  return m
}
/// g ← the gradient by φ, from that by the mean magnitudes.
private func pull<T: Real>(_ g: UnsafeMutablePointer<T>, _ phi: UnsafePointer<T>, _ n: Int, _ slopes: [Double]) {
  let p = slopes.count
  for i in 0..<n { for k in 0..<p { g[i * p + k] = T(sign(Double(phi[i * p + k])) * slopes[k] / Double(n)) } }
}

/// Attributions that agree with a graph of features.
///
///     m = mean_n |φ|     value = mᵀ·L·m = ½·Σ_ij W_ij·(m_i − m_j)², L = D − W
///
/// w, the attributions φ, is (n, ...) with p numbers a sample, edges holds W (p, p), its symmetric part.
/// Errors   TW_ERROR_SHAPE: edges of another p.
/// Source   Erion et al., 2019, arXiv:1906.10670.
struct AttributionPriorGraph: Objective {
  static let method = Method(
    "attribution_prior_graph", .regularizer, "Attributions that agree with a graph of features.",
    rule: "m = mean_n |w|;  value = m'L m = sum_ij edges_ij*(m_i - m_j)^2/2",
    source: "Erion et al., 2019, arXiv:1906.10670",
    inputs: [.variable("w", "n, ...", "attributions"), .constant("edges", "p, p", "weights of the edges")])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let phi = try x["w"], edges = try x["edges"], n = x.sizes["n"], p = x.sizes.samples
    guard x.sizes["p"] == p else {
      throw Failure(Status.shape, "`edges` must be (\(p), \(p)), as `w` has \(p) features, got \(x.sizes["p"])")
    }
    let m = magnitudes(phi, n, p)
    var slopes = [Double](repeating: 0, count: p), value = 0.0
    for i in 0..<p {
      for j in 0..<p {
        let step = (Double(edges[i * p + j]) + Double(edges[j * p + i])) / 2 * (m[i] - m[j])
        value += step * (m[i] - m[j]) / 2
        slopes[i] += 2 * step
      }
    }
    if let g = try cache?.keep("w", n * p, T.self) { pull(g, phi, n, slopes) }
    return value
  }
}

/// Attributions that are sparse, by their Gini coefficient.
///
///     m = mean_n |φ|     value = −Σ_ij |m_i − m_j|/(p·Σ m) = −2·Gini
///
/// w, the attributions φ, is (n, ...) with p numbers a sample. Without any attribution the value is 0.
/// Source   Erion et al., 2019, arXiv:1906.10670.
struct AttributionPriorGini: Objective {
  static let method = Method(
    "attribution_prior_gini", .regularizer, "Attributions that are sparse, by their Gini coefficient.",
    rule: "m = mean_n |w|;  value = -sum_ij |m_i - m_j|/(p*sum m)", source: "Erion et al., 2019, arXiv:1906.10670",
    inputs: [.variable("w", "n, ...", "attributions")])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let phi = try x["w"], n = x.sizes["n"], p = x.sizes.samples, m = magnitudes(phi, n, p)
    let g = try cache?.keep("w", n * p, T.self), total = m.reduce(0, +)
    guard total != 0 else { return 0 }
    // Σ_ij |m_i − m_j| = 2·Σ_k (2k + 1 − p)·m_(k); equal ones share their places, so that their slopes are 0 to each
    // other
    let order = (0..<p).sorted { (m[$0], $0) < (m[$1], $1) }
    var slopes = [Double](repeating: 0, count: p), sum = 0.0, first = 0
    for k in 0..<p {
      sum += 2 * Double(2 * k + 1 - p) * m[order[k]]
      if k + 1 < p, m[order[k + 1]] == m[order[k]] { continue }
      let place = Double(first + k + 1 - p)
      for i in first...k { slopes[order[i]] = 2 * place }
      first = k + 1
    }
    let value = -sum / (Double(p) * total)
    if let g { pull(g, phi, n, slopes.map { -($0 / Double(p) + value) / total }) }
    return value
  }
}
