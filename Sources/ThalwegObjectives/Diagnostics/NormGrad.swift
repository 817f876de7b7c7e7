import Glibc
import ThalwegCore

/// NormGrad: where a layer's weights would get their gradient from, if a virtual layer that does nothing stood there.
///
///     conv1x1: |g_u|·|x_u|     bias: |g_u|     scaling: |g_u ⊙ x_u|     conv: |g_u|·√(Σ |x|² over the window around u)
///
/// x and g are (C, H, W): activations, and derivatives by them; lengths are over C at each position u. Windows have
/// zeros around the image. The value is the mean of the map.
/// Errors   TW_ERROR_RANGE: an even kernel.
/// Source   Rebuffi, Fong, Ji, Vedaldi, 2020, arXiv:2004.02866.
struct NormGrad: Objective {
  static let method = Method(
    "normgrad", .diagnostic, "Where a virtual identity layer would get its gradient from.",
    rule: "conv1x1: |g_u| |x_u|;  bias: |g_u|;  scaling: |g_u*x_u|;  conv: |g_u| sqrt(sum |x|^2 over the window)",
    source: "Rebuffi, Fong, Ji, Vedaldi, 2020, arXiv:2004.02866",
    parameters: [
      .choice("virtual", ["conv1x1", "bias", "scaling", "conv"], "the layer that does nothing"),
      .integer("kernel", 3, .within(1, 65_535), "odd side of the window of conv"),
    ],
    inputs: [
      .constant("x", "C, H, W", "activations"), .constant("g", "C, H, W", "derivatives by them"),
      .result("saliency", "H, W", "the map"),
    ],
    validate: { (h) throws(Failure) in
      guard h.integer("kernel") % 2 == 1 else {
        throw Failure(Status.range, "normgrad: `kernel` must be odd, got \(h.integer("kernel"))")
      }
    })
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["x"], g = try x["g"], channels = x.sizes["C"], height = x.sizes["H"], width = x.sizes["W"]
    let plane = height * width, space = Workspace(), out = try cache?.keep("saliency", plane, T.self)
    defer { space.close() }
    let squares = try space.room(plane, Double.self)
    func total(_ u: Int, _ term: (Int) -> Double) -> Double {
      var sum = 0.0
      for c in 0..<channels { sum += term(c * plane + u) * term(c * plane + u) }
      return sum
    }
    if h.is("virtual", "conv1x1") || h.is("virtual", "conv") {
      _ = Rows.sum(plane, work: channels) { u in
        squares[u] = total(u) { Double(a[$0]) }
        return 0
      }
    }
    let reach = h.is("virtual", "conv") ? h.integer("kernel") / 2 : 0
    return Rows.sum(plane, work: 2 * channels + min(reach, height) * min(reach, width)) { u in
      var value = 0.0
      if h.is("virtual", "scaling") {
        value = total(u) { Double(g[$0]) * Double(a[$0]) }.squareRoot()
      } else {
        value = total(u) { Double(g[$0]) }.squareRoot()
        if !h.is("virtual", "bias") {
          let row = u / width, column = u % width
          var sum = 0.0
          for i in max(0, row - reach)...min(height - 1, row + reach) {
            for j in max(0, column - reach)...min(width - 1, column + reach) { sum += squares[i * width + j] }
          }
          value *= sum.squareRoot()
        }
      }
      out?[u] = T(value)
      return value
    } / Double(plane)
  }
}

/// Saliency maps of several layers as one.
///
///     each map from 0 to 1;  product: Π_l m_l^{w_l};  sum: Σ_l w_l·m_l;  weights that sum to 1
///
/// maps is (L, H, W), of one size already; weights is (L,), equal ones when left out, scaled to sum to 1. A constant
/// map is 0 everywhere. The value is the mean of the result.
/// Errors   TW_ERROR_RANGE: weights that are negative, not finite or all 0.
/// Differs  weights of the layers are the host's: the paper's are not verified. 0⁰ is 1.
/// Source   Rebuffi, Fong, Ji, Vedaldi, 2020, arXiv:2004.02866.
struct CombineSaliency: Objective {
  static let method = Method(
    "combine_saliency", .diagnostic, "Saliency maps of several layers as one.",
    rule: "each map from 0 to 1;  product: prod m_l^w_l;  sum: sum w_l m_l",
    source: "Rebuffi, Fong, Ji, Vedaldi, 2020, arXiv:2004.02866",
    parameters: [.choice("mode", ["product", "sum"], "geometric or arithmetic mean")],
    inputs: [
      .constant("maps", "L, H, W", "maps"), .constant("weights", "L", "weights of the layers", optional: true),
      .result("saliency", "H, W", "the combined map"),
    ])
  let multiplies: Bool
  init(_ h: Hyper) { multiplies = h.is("mode", "product") }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let maps = try x["maps"], layers = x.sizes["L"], plane = x.sizes["H"] * x.sizes["W"]
    let given = x.optional("weights")
    if let given { try refuseNonFinite(given, layers, "weights") }
    let raw = (0..<layers).map { l in given.map { Double($0[l]) } ?? 1 }, sum = raw.reduce(0, +)
    guard sum > 0, raw.allSatisfy({ $0 >= 0 }) else {
      throw Failure(Status.range, "`weights` must be at least 0, and some above it")
    }
    let ranges = (0..<layers).map { l in
      var low = Double.infinity, high = -Double.infinity
      for u in 0..<plane {
        (low, high) = (smaller(low, Double(maps[l * plane + u])), larger(high, Double(maps[l * plane + u])))
      }
      return (low, high)
    }
    let out = try cache?.keep("saliency", plane, T.self)
    return Rows.sum(plane, work: 32 * layers) { u in
      var value = multiplies ? 1.0 : 0
      for l in 0..<layers {
        let (low, high) = ranges[l], m = low == high ? 0 : (Double(maps[l * plane + u]) - low) / (high - low)
        if multiplies { value *= pow(m, raw[l] / sum) } else { value += raw[l] / sum * m }
      }
      out?[u] = T(value)
      return value
    } / Double(plane)
  }
}

/// A head that sees its features only along their leading directions.
///
///     features − mean = U·S·Vᵀ, P: the first d rows of V     projected = mean + P·Pᵀ·(h − mean)
///     the same folded into a linear head: weight = W·P·Pᵀ, bias = b + W·(mean − P·Pᵀ·mean)
///
/// h is (n, D), w is (C, D), b is (C,). Without `d` as many directions stay as have the share `energy` of Σ s², and
/// never more than the features have; d ≥ D leaves everything. center=false: mean = 0. The value is the number of
/// directions that stay; the noise of labels lies in the others.
/// Errors   TW_ERROR_RANGE: features that are not finite.
/// Source   Wang, 2026, arXiv:2603.02293.
struct SpectralTruncation: Objective {
  static let method = Method(
    "spectral_truncation", .diagnostic, "Features, and a linear head, along the leading directions alone.",
    rule: """
      h - mean = U S V', P: the first d rows of V;  projected = mean + P P'(h - mean)
      weight = W P P';  bias = b + W (mean - P P' mean)
      """,
    source: "Wang, 2026, arXiv:2603.02293",
    parameters: [
      .maybeInteger("d", .atLeast(1), "directions that stay; none: by energy"),
      .number("energy", 0.9, .between(0, 1, lowOpen: true, highOpen: false), "share of the squared singular values"),
      .flag("center", true, "take the mean out first"),
    ],
    inputs: [
      .constant("h", "n, D", "training features"), .constant("w", "C, D", "linear head", optional: true),
      .constant("b", "C", "its bias; 0 when left out", optional: true),
      .result("projected", "n, D", "features along the directions"), .result("weight", "C, D", "the folded head"),
      .result("bias", "C", "its bias"), .result("kept", "", "directions that stay"),
      .result("explained", "", "their share of the squared singular values"),
    ])
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = try x["h"], n = x.sizes["n"], d = x.sizes["D"], space = Workspace()
    defer { space.close() }
    try refuseNonFinite(rows, n * d, "h")
    let centred = try space.room(area(n, d), Double.self), mean = try space.room(d, Double.self)
    if h.center { for i in 0..<(n * d) { mean[i % d] += Double(rows[i]) / Double(n) } }
    for i in 0..<(n * d) { centred[i] = Double(rows[i]) - mean[i % d] }
    let svd = try LinearAlgebra.SVD(centred, n, d), all = svd.s.reduce(0) { $0 + $1 * $1 }
    let rank = svd.s.count { $0 > Double(max(n, d)) * 0x1p-52 * svd.s[0] }
    var kept = h.has("d") ? h.integer("d") : 0, energy = 0.0
    if !h.has("d") {
      while kept < rank, kept == 0 || energy < h.energy * all {
        energy += svd.s[kept] * svd.s[kept]
        kept += 1
      }
    }
    // directions that the features do not have are no directions, but all of them are everything
    let whole = kept >= d
    kept = whole ? d : min(kept, rank)
    energy = svd.s.prefix(kept).reduce(0) { $0 + $1 * $1 }
    /// v ← P·Pᵀ·v.
    func project(_ v: UnsafeMutablePointer<Double>) {
      if whole { return }
      var coefficients = [Double](repeating: 0, count: kept)
      for k in 0..<kept { for c in 0..<d { coefficients[k] += svd.vt[k * d + c] * v[c] } }
      for c in 0..<d {
        v[c] = 0
        for k in 0..<kept { v[c] += coefficients[k] * svd.vt[k * d + c] }
      }
    }
    if let cache {
      let projected = try cache.keep("projected", n * d, T.self)
      _ = Rows.sum(n, work: 2 * kept * d) { i in
        project(centred + i * d)
        for c in 0..<d { projected[i * d + c] = T(mean[c] + centred[i * d + c]) }
        return 0
      }
      if let w = x.optional("w") {
        let classes = x.sizes["C"], wide = try widened(w, classes * d, space), b = x.optional("b")
        var bias = (0..<classes).map { k in
          (0..<d).reduce(b.map { Double($0[k]) } ?? 0) { $0 + wide[k * d + $1] * mean[$1] }
        }
        for k in 0..<classes {
          project(wide + k * d)
          for c in 0..<d { bias[k] -= wide[k * d + c] * mean[c] }
        }
        try cache.keep("weight", numbers: (0..<(classes * d)).map { wide[$0] }, T.self)
        try cache.keep("bias", numbers: bias, T.self)
      }
      try cache.keep("kept", numbers: [Double(kept)], T.self)
      try cache.keep("explained", numbers: [all == 0 ? 1 : energy / all], T.self)
    }
    return Double(kept)
  }
}
