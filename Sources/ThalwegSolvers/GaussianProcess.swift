import Glibc
import ThalwegCore

/// A stationary kernel of unit variance, and its derivative by the first point.
struct ProcessKernel {
  static func parameters(noise: Double = 1e-6) -> [Parameter] {
    [
      .choice("kernel", ["matern52", "rbf"], "of the process"),
      .number("lengthscale", 1, .above(0), "length over which values are alike"),
      .number("noise", noise, .atLeast(0), "variance of the values"),
    ]
  }
  let matern: Bool, length: Double, noise: Double
  init(_ h: Hyper) { (matern, length, noise) = (h.is("kernel", "matern52"), h.lengthscale, h.noise) }

  /// k at a distance, and what z − x is multiplied by in its gradient.
  func at(_ distance: Double) -> (value: Double, slope: Double) {
    let r = distance / length
    guard matern else {
      let k = exp(-r * r / 2)
      return (k, -k / (length * length))
    }
    let s = 5.0.squareRoot() * r, e = exp(-s)
    return ((1 + s + s * s / 3) * e, -5 / (3 * length * length) * (1 + s) * e)
  }

  static func distance<T: Real>(_ a: UnsafePointer<T>, _ b: UnsafePointer<T>, _ d: Int) -> Double {
    var sum = 0.0
    for j in 0..<d {
      let c = Double(a[j]) - Double(b[j])
      sum += c * c
    }
    return sum.squareRoot()
  }

  /// K + noise·I of the points.
  func matrix<T: Real>(_ X: Vector<T>) -> [Double] { matrix(Array(0..<X.rows), X) }
  /// The same of some of the points.
  func matrix<T: Real>(_ points: [Int], _ X: Vector<T>) -> [Double] {
    let n = points.count, d = X.count / max(1, X.rows)
    var K = [Double](repeating: 0, count: n * n)
    for (i, a) in points.enumerated() {
      for (j, b) in points.enumerated() {
        K[i * n + j] = at(ProcessKernel.distance(X.p + a * d, X.p + b * d, d)).value + (i == j ? noise : 0)
      }
    }
    return K
  }
  /// k(z, X), one row for each z.
  func cross<T: Real>(_ Z: Vector<T>, _ X: Vector<T>) -> [Double] {
    let n = X.rows, d = X.count / max(1, n)
    return (0..<Z.rows).flatMap { i in
      (0..<n).map { at(ProcessKernel.distance(Z.p + i * d, X.p + $0 * d, d)).value }
    }
  }

  /// Means of several functions at Z, (functions, points), and the common standard deviation.
  func posterior<T: Real>(_ Z: Vector<T>, _ X: Vector<T>, _ values: [[Double]]) throws(Failure)
    -> (means: [[Double]], deviations: [Double])
  {
    let n = X.rows, m = Z.rows, count = values.count
    try Memory.ask(32 &* n &* (n &+ m &+ count))
    let K = matrix(X), k = cross(Z, X)
    // K⁻¹·(values, k(Z, X)ᵀ) at once
    var right = [Double](repeating: 0, count: n * (count + m))
    for i in 0..<n {
      for f in 0..<count { right[i * (count + m) + f] = values[f][i] }
      for z in 0..<m { right[i * (count + m) + count + z] = k[z * n + i] }
    }
    let solved = try LinearAlgebra.solvePositive(K, right, n, count + m)
    let means = (0..<count).map { f in
      (0..<m).map { z in (0..<n).reduce(0.0) { $0 + k[z * n + $1] * solved[$1 * (count + m) + f] } }
    }
    let deviations = (0..<m).map { z in
      max(0, 1 - (0..<n).reduce(0.0) { $0 + k[z * n + $1] * solved[$1 * (count + m) + count + z] }).squareRoot()
    }
    return (means, deviations)
  }
}

/// The posterior of a Gaussian process: mean, deviation and gradient of the mean at new points.
///
///     mean = k(z, X)·(K + noise·I)⁻¹·y;   variance = 1 − k·(K + noise·I)⁻¹·kᵀ;   gradient = Σ α_i·∂k(z, x_i)/∂z
///     rbf: exp(−r²/2);  matern52: (1 + √5·r + 5r²/3)·exp(−√5·r),  r = ‖z − x‖/lengthscale
///
/// Ends     converged; nonfinite: NaN or infinite in the data.
/// Errors   the matrix is not positive definite: points that are twice there need noise.
/// Differs  nothing from scikit-learn's regressor with a fixed kernel. The prior has mean 0 and variance 1.
/// Source   Rasmussen and Williams, 2006, chapter 2; Shu, Lin, Dai and Low, 2023, arXiv:2308.04077.
struct GPPosterior: Driver {
  static let method = Method.solver(
    "gp_posterior", "The posterior of a Gaussian process at new points, with the gradient of its mean.",
    rule: """
      mean = k(z, X) (K + noise I)^-1 y;  deviation^2 = 1 - k (K + noise I)^-1 k';  gradient of the mean in z
      """,
    source: "Rasmussen, Williams, 2006; Shu, Lin, Dai, Low, 2023, arXiv:2308.04077",
    parameters: ProcessKernel.parameters(),
    inputs: [
      .constant("points", "n, d", "where values are known"), .constant("values", "n", "the values"),
      .constant("queries", "m, d", "new points"), .result("mean", "m", "posterior mean"),
      .result("deviation", "m", "posterior standard deviation"),
      .result("gradient", "m, d", "gradient of the mean"),
    ])
  private let kernel: ProcessKernel
  init(_ h: Hyper) { kernel = ProcessKernel(h) }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let X = try io["points"], Z = try io["queries"], y = try io["values"], gradient = try io["gradient"]
    let n = X.rows, d = X.shape[1], values = (0..<n).map { Double(y.p[$0]) }
    guard X.isFinite, Z.isFinite, y.isFinite else { return .done(.nonfinite) }
    let found = try kernel.posterior(Z, X, [values])
    let alpha = try LinearAlgebra.solvePositive(kernel.matrix(X), values, n, 1)
    for z in 0..<Z.rows {
      try io["mean"].p[z] = T(found.means[0][z])
      try io["deviation"].p[z] = T(found.deviations[z])
      var g = [Double](repeating: 0, count: d)
      for i in 0..<n {
        let slope = alpha[i] * kernel.at(ProcessKernel.distance(Z.p + z * d, X.p + i * d, d)).slope
        for j in 0..<d { g[j] += slope * (Double(Z.p[z * d + j]) - Double(X.p[i * d + j])) }
      }
      for j in 0..<d { gradient.p[z * d + j] = T(g[j]) }
    }
    return .done(.converged)
  }
}

/// The next point of a search under constraints: the least lower confidence bound among those that may be feasible.
///
///     LCB = mean − beta·deviation of the objective and of every constraint;   candidates with all LCB of constraints
///     at most 0;   the one with the least LCB of the objective, the first of equal ones
///
/// values (n,), constraints (c, n): what is known at `points`; a constraint holds where it is at most 0.
/// Ends     converged; infeasible: no candidate is left (`index` is -1); nonfinite: NaN or infinite in the data.
/// Errors   the matrix is not positive definite.
/// Differs  one kernel for all functions, so that they have one deviation.
/// Source   Xu, Jiang, Svetozarevic and Jones, 2022, arXiv:2211.00162.
struct ConfigBO: Driver {
  static let method = Method.solver(
    "config_bo", "The next point of a search under constraints, by lower confidence bounds.",
    rule: """
      LCB = mean - beta deviation;  among the candidates with LCB <= 0 of all constraints the least LCB of the objective
      """,
    source: "Xu, Jiang, Svetozarevic, Jones, 2022, arXiv:2211.00162",
    parameters: [.number("beta", 3, .atLeast(0), "deviations below the mean")] + ProcessKernel.parameters(),
    inputs: [
      .constant("candidates", "m, d", "points to choose from"), .constant("points", "n, d", "points that are known"),
      .constant("values", "n", "the objective there"), .constant("constraints", "c, n", "the constraints there"),
      .result("index", "", "the candidate that is next; -1: none"), .result("bounds", "m", "LCB of the objective"),
    ])
  private let kernel: ProcessKernel, beta: Double
  init(_ h: Hyper) { (kernel, beta) = (ProcessKernel(h), h.beta) }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let Z = try io["candidates"], X = try io["points"], y = try io["values"], G = try io["constraints"]
    let n = X.rows, bounds = try io["bounds"]
    guard X.isFinite, Z.isFinite, y.isFinite, G.isFinite else { return .done(.nonfinite) }
    let known = [(0..<n).map { Double(y.p[$0]) }] + (0..<G.rows).map { c in (0..<n).map { Double(G.p[c * n + $0]) } }
    let (means, deviations) = try kernel.posterior(Z, X, known)
    io.index = -1
    var least = Double.infinity
    for z in 0..<Z.rows {
      let bound = means[0][z] - beta * deviations[z]
      bounds.p[z] = T(bound)
      let feasible = means.dropFirst().allSatisfy { $0[z] - beta * deviations[z] <= 0 }
      if feasible, bound < least { (least, io.index) = (bound, Double(z)) }
    }
    return .done(io.index < 0 ? .infeasible : .converged)
  }
}

/// A Gaussian process in random Fourier features: a short vector of weights that stands for all queries, and gradients
/// of the mean that it predicts.
///
///     φ(x) = √(2/M)·cos(W·x/lengthscale + b);   weights = φᵀ(φ·φᵀ + noise·I)⁻¹·y
///     mean(z) = φ(z)·weights;   gradient(z) = −√(2/M)·Σ_m weights_m·sin(W_m·z/lengthscale + b_m)·W_m/lengthscale
///
/// frequencies W (M, d) and phases b (M,) are those given, which all clients share, or drawn: normal for rbf, Student's
/// with 5 degrees for matern52, phases uniform on [0, 2π). Weights of several clients add up.
/// Ends     converged; nonfinite: NaN or infinite in the data.
/// Errors   the matrix is not positive definite: points that are twice there need noise.
/// Differs  W is the draws of (seed, 0, 0, 0), the squares of 5·M draws of (seed, 0, 1, 0) are those of Student's
///          denominators, b is 2π times the normal distribution function of the draws of (seed, 0, 2, 0).
/// Source   Rahimi and Recht, 2007; Shu, Lin, Dai and Low, 2023, arXiv:2308.04077.
struct RFFSurrogate: Driver {
  static let method = Method.solver(
    "rff_surrogate", "A Gaussian process in random Fourier features, with gradients of its mean.",
    rule: """
      phi(x) = sqrt(2/M) cos(W x/lengthscale + b);  weights = phi' (phi phi' + noise I)^-1 y
      gradient(z) = -sqrt(2/M) sum_m weights_m sin(W_m z/lengthscale + b_m) W_m/lengthscale
      """,
    source: "Rahimi, Recht, 2007; Shu, Lin, Dai, Low, 2023, arXiv:2308.04077",
    parameters: ProcessKernel.parameters() + [Features<Double>.count, Population.seed],
    inputs: [
      .constant("points", "n, d", "where values are known"), .constant("values", "n", "the values"),
      .constant("queries", "q, d", "where gradients are wanted"),
    ] + Features<Double>.inputs + [
      .result("weights", "M", "the weights"), .result("mean", "q", "mean at the queries"),
      .result("gradient", "q, d", "its gradient there"),
    ],
    kept: Features<Double>.kept)
  private let kernel: ProcessKernel, h: Hyper
  init(_ h: Hyper) { (kernel, self.h) = (ProcessKernel(h), h) }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { Features<Double>.axes(sizes, h) }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let X = try io["points"], y = try io["values"], Z = try io["queries"]
    guard X.isFinite, Z.isFinite, y.isFinite else { return .done(.nonfinite) }
    let features = try Features(io, kernel, h)
    let weights = try features.weights((0..<X.rows).map { X.row($0) }, (0..<y.count).map { Double(y.p[$0]) })
    for m in weights.indices { try io["weights"].p[m] = T(weights[m]) }
    for z in 0..<Z.rows {
      let (mean, g) = features.at(Z.row(z), weights)
      try io["mean"].p[z] = T(mean)
      for (j, x) in g.enumerated() { try io["gradient"].row(z).p[j] = T(x) }
    }
    return .done(.converged)
  }
}

/// Random Fourier features of a process: those given as `frequencies` and `phases`, or drawn into `W`, `b` and `rest`.
struct Features<T: Real> {
  static var inputs: [Input] {
    [
      .constant("frequencies", "M, d", "W, drawn when left out", optional: true),
      .constant("phases", "M", "b, drawn when left out", optional: true),
    ]
  }
  static var kept: [Input] {
    [.kept("W", "M, d", "frequencies"), .kept("b", "M", "phases"), .kept("rest", "M, 5", "draws")]
  }
  static var count: Parameter {
    .integer("features", 10_000, .within(1, 0x1p24), "M, when frequencies are drawn")
  }
  static func axes(_ sizes: Sizes, _ h: Hyper) -> [String: Int] {
    sizes["M"] == 0 ? ["M": h.integer("features")] : [:]
  }

  private let W: Vector<T>, b: Vector<T>, kernel: ProcessKernel
  private var M: Int { b.count }
  private var scale: Double { (2 / Double(M)).squareRoot() }

  init(_ io: DriverIO<T>, _ kernel: ProcessKernel, _ h: Hyper) throws(Failure) {
    (W, b, self.kernel) = (try io["W"], try io["b"], kernel)
    if let given = io.optional("frequencies") {
      W.copy(given)
    } else {
      W.draw(Population.key(h, 0))
      if kernel.matern {
        let rest = try io["rest"]
        rest.draw(Population.key(h, 1))
        for m in 0..<M {
          let row = W.row(m)
          row.set((5 / rest.row(m).dot(rest.row(m))).squareRoot(), row)
        }
      }
    }
    if let given = io.optional("phases") {
      b.copy(given)
    } else {
      b.draw(Population.key(h, 2))
      for m in 0..<M { b.p[m] = T(Double.pi * erfc(-Double(b.p[m]) * 0.5.squareRoot())) }
    }
  }
  /// Those that an earlier request has left.
  init(again io: DriverIO<T>, _ kernel: ProcessKernel) throws(Failure) {
    (W, b, self.kernel) = (try io["W"], try io["b"], kernel)
  }

  private func angle(_ x: Vector<T>, _ m: Int) -> Double {
    Flat.dot(UnsafePointer(W.p + m * x.count), UnsafePointer(x.p), x.count) / kernel.length + Double(b.p[m])
  }

  /// The weights that stand for values at points.
  func weights(_ points: [Vector<T>], _ values: [Double]) throws(Failure) -> [Double] {
    let n = points.count
    try Memory.ask(8 &* n &* (n &+ M))
    var phi = [Double](repeating: 0, count: n * M), K = [Double](repeating: 0, count: n * n)
    for i in 0..<n { for m in 0..<M { phi[i * M + m] = scale * cos(angle(points[i], m)) } }
    try LinearAlgebra.multiply(phi, transposed: false, phi, transposed: true, into: &K, n, n, M)
    for i in 0..<n { K[i * n + i] += kernel.noise }
    let alpha = try LinearAlgebra.solvePositive(K, values, n, 1)
    var weights = [Double](repeating: 0, count: M)
    try LinearAlgebra.multiply(phi, transposed: true, alpha, into: &weights, M, 1, n)
    return weights
  }

  /// The mean that weights predict at a point, and its gradient there.
  func at(_ z: Vector<T>, _ weights: [Double]) -> (mean: Double, gradient: [Double]) {
    var mean = 0.0, g = [Double](repeating: 0, count: z.count)
    for m in weights.indices {
      let a = angle(z, m), row = W.p + m * z.count
      mean += scale * weights[m] * cos(a)
      let slope = -scale * weights[m] * sin(a) / kernel.length
      for j in g.indices { g[j] += slope * Double(row[j]) }
    }
    return (mean, g)
  }
}
