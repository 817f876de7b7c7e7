import ThalwegCore

extension RequestKind {
  /// The gradient of the host's function at a point.
  static let gradient = RequestKind(
    "gradient", "the gradient", given: [.given("point", "...", "where")],
    wanted: [.wanted("gradient", "...", "gradient there")])
}

/// SmoothGrad: gradients at noisy copies of an input, averaged.
///
///     point_k = x + s·e_k, s = noise·(max x − min x), e_k ~ N(0, I)
///     saliency = mean of g_k;  squared: mean of g_k²;  variance: mean of (g_k − mean)²
///
/// A constant x has s = 0: the plain gradient. The draws are those of (seed, 0, k, 0), or `vectors0`.
/// Differs  absolute values, sums over channels and clipping are the host's.
/// Source   Smilkov, Thorat, Kim, Viégas, Wattenberg, 2017, arXiv:1706.03825.
struct SmoothGrad: Driver {
  static let method = Method.solver(
    "smoothgrad", "Gradients at noisy copies of an input, averaged.",
    rule: """
      point_k = x + noise*(max x - min x)*e_k, e_k normal
      saliency = mean g_k;  squared: mean g_k^2;  variance: mean (g_k - mean)^2
      """,
    source: "Smilkov, Thorat, Kim, Viegas, Wattenberg, 2017, arXiv:1706.03825",
    parameters: [
      .number("noise", 0.15, .above(0), "std, as a share of the range of x"),
      .integer("samples", 50, .atLeast(1), "noisy copies"),
      .choice("reduce", ["mean", "squared", "variance"], "what becomes of the gradients"),
      .integer("seed", 0, .atLeast(0), "of the draws"),
    ],
    inputs: [
      .constant("x", "...", "the input"),
      .constant("vectors0", "samples, ...", "the e_k; drawn when left out", optional: true),
      .result("saliency", "...", "what became of the gradients"), .result("iterations", "", "gradients"),
    ], asks: [.gradient],
    kept: [
      .kept("point", "...", "noisy copy"), .kept("g", "...", "gradient"), .kept("mean", "...", "mean gradient"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, gradient }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], point = try io["point"], g = try io["g"], mean = try io["mean"]
    let saliency = try io["saliency"], samples = io.optional("vectors0")?.rows ?? h.integer("samples")
    if phase == .gradient {
      io.iterations += 1
      for i in 0..<x.count {
        let value = Double(g.p[i]), old = Double(mean.p[i]), apart = value - old
        mean.p[i] = T(old + apart / io.iterations)
        let term = h.is("reduce", "squared") ? value * value : apart * (value - Double(mean.p[i]))
        saliency.p[i] = T(Double(saliency.p[i]) + (term - Double(saliency.p[i])) / io.iterations)
      }
      if h.is("reduce", "mean") { saliency.copy(mean) }
    }
    let k = try io.count("iterations")
    if k >= samples { return .done(.converged) }
    var least = Double.infinity, most = -Double.infinity
    for i in 0..<x.count { (least, most) = (smaller(least, Double(x.p[i])), larger(most, Double(x.p[i]))) }
    guard (most - least).isFinite else { throw Failure(Status.range, "`x` must be finite") }
    Draws.take(io, k, seed: h.integer("seed"), signs: false, into: point)
    point.set(1, x, h.noise * (most - least), point)
    return .ask("gradient", [point], [g], then: .gradient)
  }
}

/// Expected gradients: the difference of an input from references, times gradients on the way.
///
///     r_k: a row of references, α_k uniform;   φ = mean of (x − r_k) ⊙ ∇f(r_k + α_k·(x − r_k))
///
/// In expectation Σ φ = f(x) − E f(r). Pair k takes row k modulo their number and a draw of (seed, 0, k, 0), unless
/// `alphas` gives the α; then there are as many pairs as of them.
/// Differs  references are taken in turn, not at random: shuffle them where they are in an order.
/// Source   Erion, Janizek, Sturmfels, Lundberg, Lee, 2021, arXiv:1906.10670.
struct ExpectedGradients: Driver {
  static let method = Method.solver(
    "expected_gradients", "Differences from references, times gradients on the way.",
    rule: "phi = mean of (x - r_k)*grad f(r_k + alpha_k (x - r_k)), alpha_k uniform",
    source: "Erion, Janizek, Sturmfels, Lundberg, Lee, 2021, arXiv:1906.10670",
    parameters: [
      .integer("samples", 200, .atLeast(1), "pairs of a reference and an alpha"),
      .integer("seed", 0, .atLeast(0), "of the draws"),
    ],
    inputs: [
      .constant("x", "...", "the input"), .constant("references", "r, ...", "references"),
      .constant("alphas", "a", "where on the way, 0 to 1; drawn when left out", optional: true),
      .result("attribution", "...", "phi"), .result("iterations", "", "gradients"),
    ], asks: [.gradient], kept: [.kept("point", "...", "point on the way"), .kept("g", "...", "gradient")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, gradient }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], references = try io["references"], point = try io["point"], g = try io["g"]
    let phi = try io["attribution"], alphas = io.optional("alphas"), samples = alphas?.count ?? h.integer("samples")
    func reference(_ k: Int) -> Vector<T> { references.row(k % max(1, references.rows)) }
    if phase == .gradient {
      let r = reference(try io.count("iterations"))
      io.iterations += 1
      Path.add(phi, x, r, g, count: io.iterations)
    }
    let k = try io.count("iterations")
    if k >= samples { return .done(.converged) }
    let key = Random.key(seed: UInt64(bitPattern: Int64(h.integer("seed"))), stream: 0, step: UInt64(k), tensor: 0)
    let alpha = alphas.map { Double($0.p[k]) } ?? Random.uniform(key, 0)
    point.set(alpha, x, 1 - alpha, reference(k))
    return .ask("gradient", [point], [g], then: .gradient)
  }
}

/// Integrated gradients: the difference of an input from a reference, times the mean gradient on the way.
///
///     φ = (x − r) ⊙ mean_k ∇f(r + α_k·(x − r)),  α_k = (k + ½)/steps
///
/// Σ φ = f(x) − f(r), up to the midpoint rule. The reference is 0 when left out.
/// Source   Sundararajan, Taly, Yan, 2017, arXiv:1703.01365.
struct IntegratedGradients: Driver {
  static let method = Method.solver(
    "integrated_gradients", "The difference from a reference, times the mean gradient on the way.",
    rule: "phi = (x - r)*mean_k grad f(r + alpha_k (x - r)), alpha_k = (k + 1/2)/steps",
    source: "Sundararajan, Taly, Yan, 2017, arXiv:1703.01365",
    parameters: [.integer("steps", 50, .atLeast(1), "points of the midpoint rule")],
    inputs: [
      .constant("x", "...", "the input"), .constant("reference", "...", "where the way begins", optional: true),
      .result("attribution", "...", "phi"), .result("iterations", "", "gradients"),
    ], asks: [.gradient],
    kept: [
      .kept("point", "...", "point on the way"), .kept("g", "...", "gradient"), .kept("from", "...", "the reference"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, gradient }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], from = try io["from"], point = try io["point"], g = try io["g"]
    if phase == .start {
      if let reference = io.optional("reference") { from.copy(reference) }
    } else {
      io.iterations += 1
      Path.add(try io["attribution"], x, from, g, count: io.iterations)
    }
    if io.iterations >= h.steps { return .done(.converged) }
    let alpha = (io.iterations + 0.5) / h.steps
    point.set(alpha, x, 1 - alpha, from)
    return .ask("gradient", [point], [g], then: .gradient)
  }
}

private enum Path {
  /// The running mean of (x − r) ⊙ g, of which this is term `count`.
  static func add<T: Real>(_ phi: Vector<T>, _ x: Vector<T>, _ r: Vector<T>, _ g: Vector<T>, count: Double) {
    for i in 0..<x.count {
      let term = (Double(x.p[i]) - Double(r.p[i])) * Double(g.p[i]), old = Double(phi.p[i])
      phi.p[i] = T(old + (term - old) / count)
    }
  }
}
