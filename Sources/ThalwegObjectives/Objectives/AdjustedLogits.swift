import Glibc
import ThalwegCore

/// How often classes occur, turned into an affine change of their logits, z′ = Δ·z + ι.
private struct Imbalance {
  var scale: [Double], shift: [Double]

  /// Δ = (n_c/max n)^γ, ι = τ·log(n_c/Σ n). A class that never occurs is masked out; as a label it is refused, and
  /// everywhere when `strict`.
  init<T: Real>(
    _ counts: UnsafePointer<T>, _ classes: Int, gamma: Double, tau: Double, labels y: UnsafePointer<Int>, _ rows: Int,
    _ entropy: CrossEntropy, strict: Bool = false
  ) throws(Failure) {
    var total = 0.0, most = 0.0
    for c in 0..<classes {
      let n = Double(counts[c])
      guard n >= 0, n.isFinite, !(strict && n == 0) else {
        throw Failure(
          Status.range,
          "`counts` must hold numbers \(strict ? "above 0" : "of at least 0"), got \(text(n)) at element \(c)")
      }
      total += n
      most = max(most, n)
    }
    for i in 0..<rows where y[i] >= 0 && y[i] < classes && y[i] != entropy.ignored && counts[y[i]] == 0 {
      throw Failure(Status.range, "`counts` is 0 for the class \(y[i]), which is a label at element \(i)")
    }
    (scale, shift) = ([], [])
    for c in 0..<classes {
      let n = Double(counts[c])
      guard n > 0 || entropy.smoothing == 0 else {
        throw Failure(Status.range, "`counts` is 0 for the class \(c), which label_smoothing makes a target")
      }
      scale.append(pow(n / most, gamma))
      shift.append(n == 0 ? -.infinity : tau * log(n / total))
    }
  }

  func evaluate<T: Real>(
    _ entropy: CrossEntropy, _ z: UnsafePointer<T>, _ y: UnsafePointer<Int>, _ rows: Int,
    into g: UnsafeMutablePointer<T>?
  ) throws(Failure) -> Double {
    let classes = scale.count
    return try entropy.labels(y, rows, classes, into: g) { i, out in
      for c in 0..<classes {
        // what is masked stays so, whatever its logit
        out[c] = shift[c] == -.infinity ? shift[c] : scale[c] * Double(z[i * classes + c]) + shift[c]
      }
    } chain: { _, d in
      for c in 0..<classes { d[c] *= scale[c] }
    }
  }
}

private let logitInputs: [Input] = [
  .variable("z", "..., C", "logits"), .integer("y", "...", "labels, from 0 to C - 1"),
  .constant("counts", "C", "how often each class occurs"),
]

/// Logit adjustment, with τ = 1 the balanced softmax: cross-entropy of logits that are shifted by the logarithms of the
/// class frequencies.
///
///     z′ = z + τ·log(n_c/Σ n)     value = cross-entropy(z′)
///
/// Errors   TW_ERROR_RANGE: a count below 0, or 0 for a class that occurs as a label (or with label smoothing); other
///          classes with a count of 0 are masked out.
/// Source   Menon et al., 2020, arXiv:2007.07314; Ren et al., 2020, arXiv:2007.10740.
struct LogitAdjustment: Objective {
  static let method = Method(
    "logit_adjustment", .objective, "Cross-entropy of logits shifted by the logarithms of the class frequencies.",
    rule: "z' = z + tau*log(counts/sum counts);  value = cross-entropy of z'",
    source: "Menon et al., 2020, arXiv:2007.07314; Ren et al., 2020, arXiv:2007.10740",
    parameters: [.number("tau", 1, .atLeast(0), "strength; 1 is the balanced softmax")] + CrossEntropy.parameters,
    inputs: logitInputs, validate: CrossEntropy.validate)

  let tau: Double, entropy: CrossEntropy
  init(_ h: Hyper) { (tau, entropy) = (h.tau, CrossEntropy(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = x.sizes.samples, classes = x.sizes["C"], y = try x.integers("y")
    let change = try Imbalance(x["counts"], classes, gamma: 0, tau: tau, labels: y, rows, entropy)
    return try change.evaluate(entropy, x["z"], y, rows, into: cache?.keep("z", rows * classes, T.self))
  }
}

/// Vector scaling: cross-entropy of logits that are scaled and shifted by the class frequencies.
///
///     Δ_c = (n_c/max n)^γ     ι_c = τ·log(n_c/Σ n)     value = cross-entropy(Δ·z + ι)     ∂z = Δ·∂z′
///
/// Errors   those of `logit_adjustment`, which γ = 0 is.
/// Source   Kini et al., 2021, arXiv:2103.01550.
struct VectorScaling: Objective {
  static let method = Method(
    "vector_scaling", .objective, "Cross-entropy of logits scaled and shifted by the class frequencies.",
    rule: "z' = (counts/max counts)^gamma*z + tau*log(counts/sum counts);  value = cross-entropy of z'",
    source: "Kini et al., 2021, arXiv:2103.01550",
    parameters: [
      .number("gamma", 0.3, .atLeast(0), "strength of the scaling"),
      .number("tau", 1, .atLeast(0), "strength of the shift"),
      CrossEntropy.weights, Reduction.parameter,
    ],
    inputs: logitInputs, validate: CrossEntropy.validate)

  let gamma: Double, tau: Double, entropy: CrossEntropy
  init(_ h: Hyper) { (gamma, tau, entropy) = (h.gamma, h.tau, CrossEntropy(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = x.sizes.samples, classes = x.sizes["C"], y = try x.integers("y")
    let change = try Imbalance(x["counts"], classes, gamma: gamma, tau: tau, labels: y, rows, entropy)
    return try change.evaluate(entropy, x["z"], y, rows, into: cache?.keep("z", rows * classes, T.self))
  }
}

/// The vector-scaling loss as long-tailed recognition writes it, z′ = z/Δ + ι with Δ = (max n/n_c)^γ: `vector_scaling`,
/// but every class must occur.
///
/// Errors   TW_ERROR_RANGE: a count of 0.
/// Source   Kini et al., 2021, arXiv:2103.01550; Rangwani et al., 2022, arXiv:2212.13827.
struct VSLoss: Objective {
  static let method = Method(
    "vs_loss", .objective, "Vector-scaling cross-entropy for long-tailed classes, every one of which occurs.",
    rule: "z' = z/(max counts/counts)^gamma + tau*log(counts/sum counts);  value = cross-entropy of z'",
    source: "Kini et al., 2021, arXiv:2103.01550; Rangwani et al., 2022, arXiv:2212.13827",
    parameters: VectorScaling.method.parameters, inputs: logitInputs, validate: CrossEntropy.validate)

  let same: VectorScaling
  init(_ h: Hyper) { same = VectorScaling(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = x.sizes.samples, classes = x.sizes["C"], y = try x.integers("y")
    let change = try Imbalance(
      x["counts"], classes, gamma: same.gamma, tau: same.tau, labels: y, rows, same.entropy, strict: true)
    return try change.evaluate(same.entropy, x["z"], y, rows, into: cache?.keep("z", rows * classes, T.self))
  }
}

/// Label-distribution-aware margins: rare classes are asked for a larger margin.
///
///     m_c ∝ n_c^(−1/4), the largest max_m     z_y ← cos_y − m_y     value = cross-entropy(s·z)
///
/// z holds cosines. For deferred re-weighting pass no weights at first.
/// Errors   TW_ERROR_RANGE: a count that is not above 0.
/// Source   Cao et al., 2019, arXiv:1906.07413.
struct LDAM: Objective {
  static let method = Method(
    "ldam", .objective, "Cross-entropy with margins that grow for rare classes.",
    rule: """
      m_c = counts_c^(-1/4), scaled so that the largest is max_m;  z_y <- z_y - m_y
      value = cross-entropy of scale*z
      """,
    source: "Cao et al., 2019, arXiv:1906.07413",
    parameters: [
      .number("max_m", 0.5, .above(0), "largest margin"), .number("scale", 30, .above(0), "factor of the cosines"),
      CrossEntropy.weights, Reduction.parameter,
    ],
    inputs: [
      .variable("z", "..., C", "cosines between features and class weights"),
      .integer("y", "...", "labels, from 0 to C - 1"), .constant("counts", "C", "how often each class occurs"),
    ], validate: CrossEntropy.validate)

  let largest: Double, scale: Double, entropy: CrossEntropy
  init(_ h: Hyper) { (largest, scale, entropy) = (h.max_m, h.scale, CrossEntropy(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], y = try x.integers("y"), counts = try x["counts"]
    let rows = x.sizes.samples, classes = x.sizes["C"]
    var least = Double.infinity
    for c in 0..<classes {
      let n = Double(counts[c])
      guard n > 0, n.isFinite else {
        throw Failure(Status.range, "`counts` must hold numbers above 0, got \(text(n)) at element \(c)")
      }
      least = min(least, n)
    }
    let margins = (0..<classes).map { largest * pow(Double(counts[$0]) / least, -0.25) }
    return try entropy.labels(y, rows, classes, into: cache?.keep("z", rows * classes, T.self)) { i, out in
      for c in 0..<classes { out[c] = scale * (Double(z[i * classes + c]) - (c == y[i] ? margins[c] : 0)) }
    } chain: { _, d in
      for c in 0..<classes { d[c] *= scale }
    }
  }
}

/// ArcFace and CosFace: a margin on the angle, or on the cosine, between a feature and the weight of its class.
///
///     arcface  cos(θ_y + m), beyond θ_y = π − m the monotone c − m·sin m     cosface  cos θ_y − m
///     value = cross-entropy(s·z′)
///
/// z holds cosines; that of the label is clipped to ±(1 − 10⁻⁷), with the derivative of the clipped point.
/// Source   Deng et al., 2019, arXiv:1801.07698; Wang et al., 2018, arXiv:1801.09414.
struct AngularMargin: Objective {
  static let method = Method(
    "angular_margin", .objective, "ArcFace and CosFace: cross-entropy of cosines with a margin for the label.",
    rule: """
      arcface: z_y <- cos(theta_y + margin), or z_y - margin*sin(margin) where theta_y > pi - margin
      cosface: z_y <- z_y - margin;  value = cross-entropy of scale*z
      """,
    source: "Deng et al., 2019, arXiv:1801.07698; Wang et al., 2018, arXiv:1801.09414",
    parameters: [
      .choice("kind", ["arcface", "cosface"], "where the margin stands: on the angle or on the cosine"),
      .maybe("margin", .atLeast(0), "margin; none: 0.5 radians for arcface, 0.35 for cosface"),
      .number("scale", 64, .above(0), "factor of the cosines"), Reduction.parameter,
    ],
    inputs: [
      .variable("z", "..., C", "cosines between features and class weights"),
      .integer("y", "...", "labels, from 0 to C - 1"),
    ])

  let angle: Bool, margin: Double, scale: Double, entropy: CrossEntropy
  init(_ h: Hyper) {
    angle = h.is("kind", "arcface")
    margin = h.has("margin") ? h.margin : h.is("kind", "arcface") ? 0.5 : 0.35
    (scale, entropy) = (h.scale, CrossEntropy(h))
  }

  /// The cosine with its margin, and its derivative.
  private func target(_ cosine: Double) -> (value: Double, slope: Double) {
    let c = cosine.isNaN ? cosine : min(max(cosine, -1 + 1e-7), 1 - 1e-7)
    guard angle else { return (c - margin, 1) }
    if c <= -cos(margin) { return (c - margin * sin(margin), 1) }
    let sine = (1 - c * c).squareRoot()
    return (c * cos(margin) - sine * sin(margin), cos(margin) + c * sin(margin) / sine)
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], y = try x.integers("y"), rows = x.sizes.samples, classes = x.sizes["C"]
    return try entropy.labels(y, rows, classes, into: cache?.keep("z", rows * classes, T.self)) { i, out in
      for c in 0..<classes { out[c] = scale * Double(z[i * classes + c]) }
      out[y[i]] = scale * target(Double(z[i * classes + y[i]])).value
    } chain: { i, d in
      for c in 0..<classes { d[c] *= scale }
      d[y[i]] *= target(Double(z[i * classes + y[i]])).slope
    }
  }
}
