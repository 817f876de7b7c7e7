import Glibc
import ThalwegCore

// Weights as a layer sees them, and the way back to the weights that are trained: the value is ⟨g, effective⟩ for the
// gradient g by the effective weights, so that the gradient by w is what the optimizer takes.

/// The gradient by the effective weights; 0 where it was left out.
struct Upstream<T: Real> {
  private let g: UnsafePointer<T>?
  init(_ x: Inputs<T>) { g = x.optional("g") }
  subscript(_ i: Int) -> Double { g.map { Double($0[i]) } ?? 0 }
}

extension Input {
  /// Says whether a pass trains or evaluates, to methods that keep something.
  static let training = integer(
    "training", "", "0 in an evaluation, which leaves what is kept as it is; 1 when left out", optional: true)
}
extension Inputs {
  var trains: Bool { optionalIntegers("training").map { $0[0] != 0 } ?? true }
}

/// Weight standardisation: the rows of a layer have mean 0 and variance 1.
///
///     c = w − mean(w), s = √(mean(c²) + ε), h = c/s by rows;   value = ⟨g, h⟩
///     gradient by w:  g' = g − mean(g);  (g' − h·mean(g·h))/s
///
/// Rows of w are its entries along the first axis. Without g the value is 0.
/// Source   Qiao et al., 2019, arXiv:1903.10520.
struct WeightStandardization: Objective {
  static let method = Method(
    "weight_standardization", .objective, "Weight standardisation: rows of mean 0 and variance 1, and the way back.",
    rule: """
      c = w - mean(w), s = sqrt(mean(c^2) + eps), effective = c/s by rows;  value = <g, effective>
      gradient by w = (g - mean(g) - effective*mean(g*effective))/s
      """,
    source: "Qiao, Wang, Liu, Shen, Yuille, 2019, arXiv:1903.10520",
    parameters: [.eps(1e-5, "added to the variance", .above(0))],
    inputs: [
      .variable("w", "rows, ...", "the weights that are trained"),
      .constant("g", "rows, ...", "gradient by the effective weights; 0 when left out", optional: true),
      .result("effective", "rows, ...", "the weights that the layer uses"),
    ])
  let eps: Double
  init(_ h: Hyper) { eps = h.eps }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], n = x.sizes.samples, rows = x.sizes["rows"], g = Upstream(x)
    let space = Workspace()
    defer { space.close() }
    let out = try space.room(cache, "effective", rows * n, T.self), back = try cache?.keep("w", rows * n, T.self)
    return Rows.sum(rows, work: 8 * n) { r in
      let row = w + r * n, h = out + r * n
      let mean = (0..<n).reduce(0.0) { $0 + Double(row[$1]) } / Double(n)
      let variance = (0..<n).reduce(0.0) { $0 + (Double(row[$1]) - mean) * (Double(row[$1]) - mean) } / Double(n)
      let s = (variance + eps).squareRoot()
      var value = 0.0, sum = 0.0
      for k in 0..<n {
        let e = (Double(row[k]) - mean) / s
        h[k] = T(e)
        value += g[r * n + k] * e
        sum += g[r * n + k]
      }
      if let back {
        for k in 0..<n {
          let e = (Double(row[k]) - mean) / s
          back[r * n + k] = T((g[r * n + k] - sum / Double(n) - e * value / Double(n)) / s)
        }
      }
      return value
    }
  }
}

/// Weight conditioning: the rows of a layer are divided by their norms.
///
///     n_r = max(|w_r|, ε), u = w_r/n_r;   value = ⟨g, u⟩;   gradient by w:  (g_r − u⟨g_r, u⟩)/n_r, with detach g_r/n_r
///
/// It equilibrates: the condition number of the layer is within √rows of the best that a scaling of rows reaches.
/// Without g the value is 0. A row below ε is divided by ε, which then counts as constant.
/// Differs  whether the authors differentiate through the norm is UNVERIFIED: here it is so unless `detach`.
/// Source   Saratchandran, Wang, Lucey, 2024, arXiv:2409.03424.
struct WeightConditioning: Objective {
  static let method = Method(
    "weight_conditioning", .objective, "Weight conditioning: rows divided by their norms, and the way back.",
    rule: """
      n_r = max(|w_r|, eps), effective = w_r/n_r;  value = <g, effective>
      gradient by w = (g_r - effective*<g_r, effective>)/n_r;  detach: g_r/n_r
      """,
    source: "Saratchandran, Wang, Lucey, 2024, arXiv:2409.03424",
    parameters: [
      .eps(1e-12, "least norm of a row", .above(0)), .flag("detach", false, "the norm counts as constant"),
    ],
    inputs: [
      .variable("w", "rows, ...", "the weights that are trained"),
      .constant("g", "rows, ...", "gradient by the effective weights; 0 when left out", optional: true),
      .result("effective", "rows, ...", "the weights that the layer uses"),
    ])
  let eps: Double, detach: Bool
  init(_ h: Hyper) { (eps, detach) = (h.eps, h.detach) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], n = x.sizes.samples, rows = x.sizes["rows"], g = Upstream(x)
    let out = try cache?.keep("effective", rows * n, T.self), back = try cache?.keep("w", rows * n, T.self)
    return Rows.sum(rows, work: 6 * n) { r in
      let row = w + r * n, norm = Flat.norm(row, n), length = larger(norm, eps)
      let value = (0..<n).reduce(0.0) { $0 + g[r * n + $1] * (Double(row[$1]) / length) }
      let along = detach || norm < eps ? 0 : value
      for k in 0..<n {
        let u = Double(row[k]) / length
        out?[r * n + k] = T(u)
        back?[r * n + k] = T((g[r * n + k] - u * along) / length)
      }
      return value
    }
  }
}

/// Quantisation noise: weights with the noise that rounding to so many bits would make.
///
///     effective = w + (max w − min w)/(2^bits − 1)·n;   value = ⟨g, effective⟩;   the gradient by w is g
///     n = noise/2 of standard normal noise, or noise − ½ of uniform noise in [0, 1)
///
/// The noise is the host's draw. A tensor of one number has none. Without g the value is 0.
/// Differs  the mixture over bit widths is the host's.
/// Source   Shvetsov et al., 2022, arXiv:2208.14839.
struct QuantNoise: Objective {
  static let method = Method(
    "quant_noise", .objective, "Quantisation noise: weights with the noise of rounding to so many bits.",
    rule: """
      effective = w + (max w - min w)/(2^bits - 1)*n, n = noise/2 (gaussian) or noise - 1/2 (uniform)
      value = <g, effective>;  gradient by w = g
      """,
    source: "Shvetsov et al., 2022, arXiv:2208.14839",
    parameters: [
      .integer("bits", 8, .within(1, 16), "bit width"),
      .choice("kind", ["gaussian", "uniform"], "of the noise that is given"),
    ],
    inputs: [
      .variable("w", "...", "the weights"), .constant("noise", "...", "normal draws, or uniform ones in [0, 1)"),
      .constant("g", "...", "gradient by the noisy weights; 0 when left out", optional: true),
      .result("effective", "...", "the noisy weights"),
    ])
  let levels: Double, uniform: Bool
  init(_ h: Hyper) { (levels, uniform) = (pow(2, h.bits) - 1, h.is("kind", "uniform")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], noise = try x["noise"], n = x.sizes.samples, g = Upstream(x)
    let out = try cache?.keep("effective", n, T.self), back = try cache?.keep("w", n, T.self)
    var low = Double.infinity, high = -low
    for i in 0..<n { (low, high) = (smaller(low, Double(w[i])), larger(high, Double(w[i]))) }
    let unit = (high - low) / levels
    return Rows.sum(n, work: 4) { i in
      let e = Double(w[i]) + unit * (uniform ? Double(noise[i]) - 0.5 : Double(noise[i]) / 2)
      out?[i] = T(e)
      back?[i] = T(g[i])
      return g[i] * e
    }
  }
}

/// Nested dropout: of the features only the first k are kept, k drawn once for the batch.
///
///     P(k) ∝ exp(−((k − μ)/σ)²), k from 1 to n;   effective = z·[index < k];   value = ⟨g, effective⟩
///
/// k is found by inversion from `u`, a uniform draw in [0, 1) of the host. The gradient by z is g behind the same mask.
/// Nothing is rescaled. Without g the value is 0.
/// Errors   TW_ERROR_RANGE: u outside [0, 1].
/// Source   Rippel, Gelbart, Adams, 2014, arXiv:1402.0915; as here: Chen et al., 2022.
struct NestedDropout: Objective {
  static let method = Method(
    "nested_dropout", .objective, "Nested dropout: only the first k features are kept, k drawn once for the batch.",
    rule: """
      P(k) ~ exp(-((k - mu)/sigma)^2), k from 1 to n, by inversion from u;  effective = z*[index < k]
      value = <g, effective>
      """,
    source: "Rippel, Gelbart, Adams, 2014, arXiv:1402.0915; as here: Chen et al., 2022",
    parameters: [
      .number("sigma", nil, .above(0), "width of the law"), .number("mu", 0, .any, "centre of the law"),
    ],
    inputs: [
      .variable("z", "..., n", "features"), .constant("u", "", "a uniform draw in [0, 1)"),
      .constant("g", "..., n", "gradient by the kept features; 0 when left out", optional: true),
      .result("effective", "..., n", "the features that are kept"), .result("kept", "", "k"),
    ])
  let sigma, mu: Double
  init(_ h: Hyper) { (sigma, mu) = (h.sigma, h.mu) }

  private func draw(_ u: Double, _ n: Int) -> Int {
    func exponent(_ k: Int) -> Double {
      let d = (Double(k) - mu) / sigma
      return -d * d
    }
    let top = (1...n).reduce(-Double.infinity) { max($0, exponent($1)) }
    let total = (1...n).reduce(0.0) { $0 + exp(exponent($1) - top) }
    var sum = 0.0
    for k in 1..<max(1, n) {
      sum += exp(exponent(k) - top)
      if sum > u * total { return k }
    }
    return n
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], u = Double(try x["u"][0]), n = x.sizes["n"], count = try area(x.sizes.samples, n)
    let g = Upstream(x)
    guard u >= 0, u <= 1 else {
      throw Failure(Status.range, "nested_dropout: `u` must be in [0, 1), got \(text(u))")
    }
    let k = draw(u, n), out = try cache?.keep("effective", count, T.self), back = try cache?.keep("z", count, T.self)
    try cache?.keep("kept", 1, T.self)[0] = T(k)
    return Rows.sum(count, work: 3) { i in
      if i % n >= k { return 0 }
      out?[i] = z[i]
      back?[i] = T(g[i])
      return g[i] * Double(z[i])
    }
  }
}
