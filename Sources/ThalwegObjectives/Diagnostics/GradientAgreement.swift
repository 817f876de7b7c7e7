import Glibc
import ThalwegCore

/// How far gradients of tasks, or of samples, agree.
///
///     cosines_ij = ⟨g_i, g_j⟩/(|g_i|·|g_j|)     similarity_ij = 2·|g_i|·|g_j|/(|g_i|² + |g_j|²)
///     conflicts = the share of pairs with a negative cosine     diversity = Σ |g_i|²/|Σ g_i|²
///
/// g is (m, ...); only its Gram matrix is used. Both matrices have ones on their diagonals; a gradient of zeros has the
/// cosine and the similarity 0 with all others. One gradient has no conflicts. The diversity is infinite where the
/// gradients cancel, and NaN where all are 0. The value is `conflicts`.
/// Source   Yu et al., 2020, arXiv:2001.06782 (conflicts, similarity); Yin et al., 2018, arXiv:1706.05699 (diversity).
struct GradientCosines: Objective {
  static let method = Method(
    "gradient_cosines", .diagnostic, "How far gradients of tasks or samples agree.",
    rule: """
      cosines_ij = <g_i, g_j>/(|g_i| |g_j|);  similarity_ij = 2 |g_i| |g_j|/(|g_i|^2 + |g_j|^2)
      conflicts = share of pairs with a negative cosine;  diversity = sum |g_i|^2/|sum g_i|^2
      """,
    source: "Yu et al., 2020, arXiv:2001.06782; Yin et al., 2018, arXiv:1706.05699",
    inputs: [
      .constant("g", "m, ...", "gradients"), .result("cosines", "m, m", "cosines"),
      .result("similarity", "m, m", "similarities of the lengths"),
      .result("conflicts", "", "share of pairs with a negative cosine"),
      .result("diversity", "", "sum |g_i|^2/|sum g_i|^2"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let g = try x["g"], m = x.sizes["m"], p = x.sizes.samples, space = Workspace()
    defer { space.close() }
    let size = try area(m, m), gram = try space.room(size, Double.self)
    let norms = (0..<m).map { Flat.norm(g + $0 * p, p) }
    // gradients whose squares leave the range of doubles are scaled by powers of 2
    let powers = norms.map { $0 > 0 && $0.isFinite && !(1e-140...1e140).contains($0) ? Int($0.exponent) : 0 }
    var rows = g
    if powers.contains(where: { $0 != 0 }) {
      let scaled = try space.room(area(m, p), T.self)
      for i in 0..<(m * p) { scaled[i] = T(scalbn(Double(g[i]), -powers[i / p])) }
      rows = UnsafePointer(scaled)
    }
    let top = (0..<m).filter { norms[$0] > 0 }.map { powers[$0] }.max() ?? 0
    let scales = powers.map { scalbn(1.0, $0 - top) }
    _ = Rows.sum(m, work: m * p) { i in
      for j in i..<m { gram[i * m + j] = Flat.dot(rows + i * p, rows + j * p, p) }
      return 0
    }
    let cosines = try space.room(cache, "cosines", size, T.self)
    let similarity = try space.room(cache, "similarity", size, T.self)
    var conflicts = 0, trace = 0.0, all = 0.0
    for i in 0..<m {
      for j in i..<m {
        let (a, b) = (norms[i], norms[j]), none = a == 0 || b == 0, product = gram[i * m + j]
        let lengths = scalbn(a, -powers[i]) * scalbn(b, -powers[j])
        var cosine = none ? 0 : product / lengths, alike = none ? 0 : 2 / (a / b + b / a)
        if i == j, !a.isNaN { (cosine, alike) = (1, 1) }
        conflicts += cosine < 0 ? 1 : 0
        trace += i == j ? product * scales[i] * scales[i] : 0
        all += (i == j ? 1 : 2) * product * scales[i] * scales[j]
        (cosines[i * m + j], cosines[j * m + i]) = (T(cosine), T(cosine))
        (similarity[i * m + j], similarity[j * m + i]) = (T(alike), T(alike))
      }
    }
    let share = m < 2 ? 0 : Double(conflicts) / (Double(m) * Double(m - 1) / 2)
    try cache?.keep("conflicts", numbers: [share], T.self)
    // rounding may leave less than nothing of gradients that cancel
    try cache?.keep("diversity", numbers: [trace / larger(0, all)], T.self)
    return share
  }
}

/// The two parts of the noise scale: its results, and what becomes of them.
private enum NoiseScale {
  static let results: [Input] = [
    .result("noise_scale", "", "tr Sigma/|G|^2; infinite where |G|^2 is not above 0"),
    .result("squared_norm", "", "|G|^2"), .result("trace", "", "tr Sigma"),
  ]
  static func finish<T: Real>(_ squared: Double, _ trace: Double, _ cache: Cache?, _: T.Type) throws(Failure) -> Double
  {
    let scale = squared.isNaN || trace.isNaN ? .nan : squared > 0 ? trace / squared : .infinity
    for (name, x) in [("noise_scale", scale), ("squared_norm", squared), ("trace", trace)] {
      try cache?.keep(name, numbers: [x], T.self)
    }
    return scale
  }
}

/// The simple noise scale, about the batch size at which more samples stop to help much, from gradients at two sizes.
///
///     |G|² = (B·|G_B|² − b·|G_b|²)/(B − b)     tr Σ = (|G_b|² − |G_B|²)/(1/b − 1/B)
///     each part: m ← decay·m + (1 − decay)·part, over 1 − decayᵗ     value = tr Σ/|G|²
///
/// small and big are numbers: |G_b|² and |G_B|², squared lengths of gradients of b and of B samples.
/// State    the two averages.
/// Errors   TW_ERROR_RANGE: b_small is not below b_big.
/// Source   McCandlish, Kaplan, Amodei et al., 2018, arXiv:1812.06162.
struct GradientNoiseScale: Objective {
  static let method = Method(
    "gradient_noise_scale", .diagnostic, "The simple noise scale, from gradients at two batch sizes.",
    rule: """
      |G|^2 = (B |G_B|^2 - b |G_b|^2)/(B - b);  tr S = (|G_b|^2 - |G_B|^2)/(1/b - 1/B)
      each averaged with decay, over 1 - decay^t;  value = tr S/|G|^2
      """,
    source: "McCandlish, Kaplan, Amodei et al., 2018, arXiv:1812.06162",
    parameters: [
      .number("b_small", nil, .above(0), "samples of the smaller gradient"),
      .number("b_big", nil, .above(0), "samples of the larger one"), .rate("decay", 0.99, "rate of both averages"),
    ],
    inputs: [
      .constant("small", "", "squared length of the gradient of b_small samples"),
      .constant("big", "", "squared length of the gradient of b_big samples"),
    ] + NoiseScale.results,
    validate: { (h) throws(Failure) in
      guard h.b_small < h.b_big else {
        throw Failure(
          Status.range,
          "gradient_noise_scale: `b_small` must be below `b_big`, got \(text(h.b_small)) and \(text(h.b_big))")
      }
    })
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("squared_norm"), Recollection("trace")] }
  let small: Double, big: Double, decay: Double
  init(_ h: Hyper) { (small, big, decay) = (h.b_small, h.b_big, h.decay) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = Double(try x["small"].pointee), b = Double(try x["big"].pointee)
    let squared = try x.memory["squared_norm"], trace = try x.memory["trace"]
    squared[0] = decay * squared[0] + (1 - decay) * (big * b - small * a) / (big - small)
    trace[0] = decay * trace[0] + (1 - decay) * (a - b) / (1 / small - 1 / big)
    let correction = 1 - power(decay, x.memory.passes + 1)
    return try NoiseScale.finish(squared[0] / correction, trace[0] / correction, cache, T.self)
  }
}

/// The simple noise scale of gradients of samples.
///
///     tr Σ = Σ |g_i − ḡ|²/(n − 1)     |G|² = |ḡ|² − tr Σ/n     value = tr Σ/|G|²
///
/// g is (n, ...).
/// Errors   TW_ERROR_SHAPE: a single sample, which has no variance.
/// Source   McCandlish, Kaplan, Amodei et al., 2018, arXiv:1812.06162.
struct NoiseScalePerSample: Objective {
  static let method = Method(
    "noise_scale_per_sample", .diagnostic, "The simple noise scale, from gradients of samples.",
    rule: "tr S = sum |g_i - mean g|^2/(n - 1);  |G|^2 = |mean g|^2 - tr S/n;  value = tr S/|G|^2",
    source: "McCandlish, Kaplan, Amodei et al., 2018, arXiv:1812.06162",
    inputs: [.constant("g", "n, ...", "gradients of samples")] + NoiseScale.results)
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let g = try x["g"], n = x.sizes["n"], p = x.sizes.samples, samples = Double(n)
    guard n > 1 else { throw Failure(Status.shape, "one sample has no variance; at least 2 are needed") }
    func mean(_ c: Int) -> Double {
      var sum = 0.0
      for i in 0..<n { sum += Double(g[i * p + c]) }
      return sum / samples
    }
    let length = Rows.sum(p, work: n) { c in mean(c) * mean(c) }
    let trace =
      Rows.sum(p, work: 2 * n) { c in
        let mean = mean(c)
        var sum = 0.0
        for i in 0..<n { sum += (Double(g[i * p + c]) - mean) * (Double(g[i * p + c]) - mean) }
        return sum
      } / (samples - 1)
    return try NoiseScale.finish(length - trace / samples, trace, cache, T.self)
  }
}

/// |Uᵀ·v|² for one vector; the columns of U, (d, k), are taken as they are.
private func within<T: Real>(_ u: UnsafePointer<T>, _ d: Int, _ k: Int, _ v: (Int) -> Double) -> Double {
  Rows.sum(k, work: d) { c in
    var along = 0.0
    for i in 0..<d { along += Double(u[i * k + c]) * v(i) }
    return along * along
  }
}

/// How much of a gradient lies in a subspace.
///
///     value = |Uᵀ·g|²/|g|²
///
/// u is (d, k) with orthonormal columns (eigenvectors of the Hessian, say), g is (d,). No gradient: 0.
/// Differs  k, 100 in the paper, is the number of columns.
/// Source   Schneider, Schumacher, Häufle, Schölkopf, Büchler, 2024, arXiv:2401.06604.
struct GradientSubspaceFraction: Objective {
  static let method = Method(
    "gradient_subspace_fraction", .diagnostic, "How much of a gradient lies in a subspace.",
    rule: "value = |U' g|^2/|g|^2", source: "Schneider et al., 2024, arXiv:2401.06604",
    inputs: [.constant("u", "d, k", "orthonormal columns"), .constant("g", "d", "the gradient")])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let u = try x["u"], g = try x["g"], d = x.sizes["d"], norm = Flat.norm(g, d)
    return norm == 0 ? 0 : within(u, d, x.sizes["k"]) { Double(g[$0]) / norm }
  }
}

/// How much of one subspace lies in another.
///
///     value = 1/k·Σ_i |Uᵀ·v_i|²
///
/// u is (d, m), v is (d, k), a later basis; the columns of both are orthonormal.
/// Source   Schneider, Schumacher, Häufle, Schölkopf, Büchler, 2024, arXiv:2401.06604.
struct SubspaceOverlap: Objective {
  static let method = Method(
    "subspace_overlap", .diagnostic, "How much of one subspace lies in another.",
    rule: "value = 1/k sum_i |U' v_i|^2", source: "Schneider et al., 2024, arXiv:2401.06604",
    inputs: [
      .constant("u", "d, m", "orthonormal columns"), .constant("v", "d, k", "orthonormal columns of the other"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let u = try x["u"], v = try x["v"], d = x.sizes["d"], k = x.sizes["k"]
    var sum = 0.0
    for c in 0..<k { sum += within(u, d, x.sizes["m"]) { Double(v[$0 * k + c]) } }
    return sum / Double(k)
  }
}
