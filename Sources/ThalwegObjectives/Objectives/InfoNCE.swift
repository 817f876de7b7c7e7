import Glibc
import ThalwegCore

/// InfoNCE, with `symmetric` the loss of CLIP: every query should find its key.
///
///     S = q·kᵀ of normalised rows, columns: the n keys, then extra negatives
///     value = mean_i −log softmax(S_i/τ)_i; symmetric: its mean with the same of the keys among the queries
///
/// q and k are (n, d), extra is (m, d). `log_scale`, a learned log(1/τ), takes the place of the temperature when given
/// and has a gradient then. A queue of negatives is the host's. One pair without negatives costs nothing.
/// Differs  open_clip (symmetric) clamps its log_scale at log 100; that is the host's here.
/// Source   van den Oord et al., 2018, arXiv:1807.03748; Radford et al., 2021, arXiv:2103.00020.
struct InfoNCE: Objective {
  static let method = Method(
    "info_nce", .objective, "Every query should find its key among all keys: InfoNCE, and the loss of CLIP.",
    rule: """
      S = q k' of normalised rows and extra negatives;  value = mean_i -log softmax(S_i/temperature)_i
      symmetric: the mean of this and the same of S' (without the extra negatives)
      """,
    source: "van den Oord et al., 2018, arXiv:1807.03748; Radford et al., 2021, arXiv:2103.00020",
    parameters: [
      .number("temperature", 0.07, .above(0), "tau"), .flag("symmetric", false, "keys look for their queries too"),
      .flag("normalize", true, "compare on the unit sphere"),
    ],
    inputs: [
      .variable("q", "n, d", "queries"), .variable("k", "n, d", "keys, row by row"),
      .constant("extra", "m, d", "more negatives", optional: true),
      .variable("log_scale", "", "log(1/temperature), in place of the hyper-parameter", optional: true),
    ])

  let temperature: Double, symmetric: Bool, normalize: Bool
  init(_ h: Hyper) { (temperature, symmetric, normalize) = (h.temperature, h.symmetric, h.normalize) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], m = x.sizes["m"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let scale = x.optional("log_scale").map { exp(Double($0.pointee)) } ?? 1 / temperature
    guard scale.isFinite else { throw Failure(Status.range, "`log_scale` is too large, exp of it is \(text(scale))") }
    let both = try Embedding([x["q"], x["k"]], n, d, normalize: normalize, cache, space)
    let q = both.u, k = q + n * d
    // log-sum-exps of the rows, then of the columns
    let sums = try space.room(2 * n, LogSum.self), own = try space.room(n, Double.self)
    sums.update(repeating: LogSum(), count: 2 * n)
    try Tiles(x: q, n: n, y: k, m: n, d: d).forEachRow { i, j, s, count in
      for c in 0..<count {
        sums[i].add(scale * Double(s[c]))
        if j + c == i { own[i] = scale * Double(s[c]) }
      }
    }
    if let extra = x.optional("extra") {
      let u = try space.room(cache, "extra", area(m, d), T.self), norms = try space.room(m, Double.self)
      u.update(from: extra, count: m * d)
      if normalize { Directions.take(extra, m, d, into: u, norms: norms) }
      try Tiles(x: q, n: n, y: u, m: m, d: d).forEachRow { i, _, s, count in
        for c in 0..<count { sums[i].add(scale * Double(s[c])) }
      }
    }
    if symmetric {
      try Tiles(x: k, n: n, y: q, m: n, d: d).forEachRow { j, _, s, count in
        for c in 0..<count { sums[n + j].add(scale * Double(s[c])) }
      }
    }
    let logs = try space.room(cache, "logs", 2 * n, Double.self), weight = (symmetric ? 0.5 : 1) / Double(n)
    var value = 0.0, slope = 0.0
    for i in 0..<(symmetric ? 2 * n : n) {
      logs[i] = sums[i].value
      value += weight * (logs[i] - own[i % n])
      slope += weight * (sums[i].mean - own[i % n])
    }
    if let cache {
      try cache.keep("scale", 1, Double.self).pointee = scale
      try cache.keep("log_scale", 1, T.self).pointee = T(slope)
    }
    return value
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    if name == "log_scale" {
      g.pointee = try cache.kept(name, T.self).pointee
      return
    }
    let n = cache.sizes["n"], m = cache.sizes["m"], both = try Embedding<T>(cache, cache.sizes["d"]), d = both.d
    let scale = try cache.kept("scale", Double.self).pointee, logs = try cache.kept("logs", Double.self)
    let weight = (symmetric ? 0.5 : 1) / Double(n) * scale, queries = name == "q", first = queries ? 0 : n
    g.update(repeating: 0, count: n * d)
    let mine = both.u + first * d, other = both.u + (n - first) * d
    try Tiles(x: mine, n: n, y: other, m: n, d: d).pull(into: g) { i, j, s, count in
      for c in 0..<count {
        let query = queries ? i : j + c, key = queries ? j + c : i, own = query == key ? 1.0 : 0
        let x = scale * Double(s[c])
        let back = symmetric ? exp(x - logs[n + key]) - own : 0
        s[c] = T(weight * (exp(x - logs[query]) - own + back))
      }
    }
    if queries, cache.count("extra") > 0 {
      try Tiles(x: mine, n: n, y: cache.kept("extra", T.self), m: m, d: d).pull(into: g) { i, _, s, count in
        for c in 0..<count { s[c] = T(weight * exp(scale * Double(s[c]) - logs[i])) }
      }
    }
    both.pull(g, rows: first, n, normalize: normalize)
  }
}

/// SigLIP: every pair of rows is a yes-or-no question of its own.
///
///     L_ij = e^{log_scale}·x_i·y_j + bias     value = (1/n)·Σ_ij softplus(−s_ij·L_ij), s = 1 on the diagonal, else −1
///
/// x and y are (n, d), taken as they are. log_scale and bias are hyper-parameters, or inputs with a gradient.
/// Source   Zhai et al., 2023, arXiv:2303.15343.
struct SigmoidContrastive: Objective {
  static let method = Method(
    "sigmoid_contrastive", .objective, "The loss of SigLIP: every pair of rows is a yes-or-no question of its own.",
    rule: """
      L_ij = exp(log_scale)*x_i.y_j + bias;  value = 1/n*sum_ij softplus(-s_ij*L_ij), s_ii = 1, else s_ij = -1
      """,
    source: "Zhai et al., 2023, arXiv:2303.15343",
    parameters: [
      .number("log_scale", 2.302585092994046, .any, "logarithm of the scale"), .number("bias", -10, .any, "bias"),
    ],
    inputs: [
      .variable("x", "n, d", "embeddings of one kind"), .variable("y", "n, d", "those of the other, row by row"),
      .variable("log_scale", "", "in place of the hyper-parameter", optional: true),
      .variable("bias", "", "in place of the hyper-parameter", optional: true),
    ])

  let logScale: Double, bias: Double
  init(_ h: Hyper) { (logScale, bias) = (h.log_scale, h.bias) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let scale = exp(x.optional("log_scale").map { Double($0.pointee) } ?? logScale)
    let shift = x.optional("bias").map { Double($0.pointee) } ?? bias
    // of every row: the value, and the derivatives by log_scale and bias
    let sums = try space.room(n, SIMD3<Double>.self), weight = 1 / Double(n)
    try Tiles(x: x["x"], n: n, y: x["y"], m: n, d: d).forEachRow { i, j, s, count in
      for c in 0..<count {
        let sign = i == j + c ? 1.0 : -1, l = scale * Double(s[c]), slope = -sign * sigmoid(-sign * (l + shift))
        sums[i] += [softplus(-sign * (l + shift)), slope * l, slope]
      }
    }
    var total = SIMD3<Double>.zero
    for i in 0..<n { total += weight * sums[i] }
    if let cache {
      try cache.keep("x", n * d, of: x["x"])
      try cache.keep("y", n * d, of: x["y"])
      try cache.keep("scale", 1, Double.self).pointee = scale
      try cache.keep("shift", 1, Double.self).pointee = shift
      try cache.keep("log_scale", 1, T.self).pointee = T(total[1])
      try cache.keep("bias", 1, T.self).pointee = T(total[2])
    }
    return total[0]
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    if name == "log_scale" || name == "bias" {
      g.pointee = try cache.kept(name, T.self).pointee
      return
    }
    let n = cache.sizes["n"], d = cache.sizes["d"], other = name == "x" ? "y" : "x"
    let scale = try cache.kept("scale", Double.self).pointee, shift = try cache.kept("shift", Double.self).pointee
    g.update(repeating: 0, count: n * d)
    try Tiles(x: cache.kept(name, T.self), n: n, y: cache.kept(other, T.self), m: n, d: d).pull(into: g) {
      i, j, s, count in
      for c in 0..<count {
        let sign = i == j + c ? 1.0 : -1
        s[c] = T(-sign * sigmoid(-sign * (scale * Double(s[c]) + shift)) * scale / Double(n))
      }
    }
  }
}
