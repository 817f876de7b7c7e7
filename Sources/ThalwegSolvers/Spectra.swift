import Glibc
import ThalwegCore

/// The random vectors of a probe of an operator: given by the host, or drawn. Vector k is the draws of (seed, 0, k, 0).
enum Draws {
  static let inputs = inputs("probes")
  /// The same, for a hyper-parameter of another name.
  static func inputs(_ axis: String) -> [Input] {
    [
      .constant(
        "like", "...", "an array of the shape that the operator takes; its values do not count", optional: true
      ).orNonfinite,
      .constant("vectors0", "\(axis), ...", "the vectors; drawn when left out", optional: true),
    ]
  }
  static func take<T: Real>(_ io: DriverIO<T>, _ k: Int, seed: Int, signs: Bool, into v: Vector<T>) {
    if let given = io.optional("vectors0") {
      v.copy(given.row(k))
    } else {
      v.draw(
        Random.key(seed: UInt64(bitPattern: Int64(seed)), stream: 0, step: UInt64(k), tensor: 0), signs: signs)
    }
  }
}

/// The trace of a symmetric operator, and its Frobenius norm, from products with random vectors.
///
///     trace = mean of v·A·v;  standard error = std/√m;  |A|_F² = mean of |A·v|²
///
/// Signs (Rademacher) have no variance on a diagonal operator.
/// Source   Hutchinson, 1990.
struct HutchinsonTrace: Driver {
  static let method = Method.solver(
    "hutchinson_trace", "Hutchinson's estimate of a trace, and of the Frobenius norm.",
    rule: "trace = mean v.A v;  standard_error = std/sqrt(probes);  frobenius^2 = mean |A v|^2",
    source: "Hutchinson, 1990",
    parameters: [
      .integer("probes", 10, .atLeast(1), "random vectors"),
      .choice("distribution", ["rademacher", "normal"], "of their elements"),
      .integer("seed", 0, .atLeast(0), "of the draws"),
    ],
    inputs: Draws.inputs + [
      .result("trace", "", "the estimate"), .result("standard_error", "", "its standard error; 0 for one vector"),
      .result("frobenius", "", "estimate of the Frobenius norm"), .result("iterations", "", "vectors used"),
    ], asks: [.product],
    kept: [
      .kept("v", "...", "vector"), .kept("q", "...", "product"), .kept("spread", "", "squared deviations"),
      .kept("squares", "", "squared lengths of the products"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { [:] }
  enum Phase: Int { case start, product }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let v = try io["v"], q = try io["q"], probes = io.optional("vectors0")?.rows ?? h.integer("probes")
    if phase == .product {
      let x = v.dot(q), length = q.norm
      io.iterations += 1
      let d = x - io.trace
      io.trace += d / io.iterations
      io.spread += d * (x - io.trace)
      io.squares += length * length
      io.standard_error = (io.spread / max(1, io.iterations - 1) / io.iterations).squareRoot()
      io.frobenius = (io.squares / io.iterations).squareRoot()
    }
    let k = try io.count("iterations")
    if k >= probes { return .done(.converged) }
    Draws.take(io, k, seed: h.integer("seed"), signs: h.is("distribution", "rademacher"), into: v)
    return .ask("product", [v], [q], then: .product)
  }
}

/// The diagonal of a symmetric operator, from products with random signs.
///
///     diagonal = Σ v ⊙ A·v / Σ v ⊙ v
///
/// Signs make that a mean; `vectors0` may hold others. An entry whose denominator is 0 is 0.
/// Source   Bekas, Kokiopoulou, Saad, 2007.
struct HutchinsonDiagonal: Driver {
  static let method = Method.solver(
    "hutchinson_diagonal", "An estimate of a diagonal from products with random signs.",
    rule: "diagonal = sum v * A v/sum v * v", source: "Bekas, Kokiopoulou, Saad, 2007",
    parameters: [
      .integer("probes", 10, .atLeast(1), "random vectors"), .integer("seed", 0, .atLeast(0), "of the draws"),
    ],
    inputs: DiagonalProbes.inputs, asks: [.product], kept: DiagonalProbes.kept)

  let probes: DiagonalProbes
  init(_ h: Hyper) {
    probes = DiagonalProbes(count: h.integer("probes"), seed: h.integer("seed"), signs: true, ratio: true)
  }
  func advance<T: Real>(_ phase: DiagonalProbes.Phase, _ io: DriverIO<T>) throws(Failure)
    -> Verdict<DiagonalProbes.Phase>
  { try probes.advance(phase, io) }
  typealias Phase = DiagonalProbes.Phase
}

/// The diagonal of a Hessian, from its products with random signs or normal numbers.
///
///     diagonal = mean of z ⊙ H·z
///
/// Signs are exact for a diagonal Hessian, and have the variance Σ_{j≠i} h_ij² in entry i for one probe; normal numbers
/// add 2·h_ii².
/// Ends     converged; nonfinite: a product.
/// Source   Hutchinson, 1990; Bekas, Kokiopoulou, Saad, 2007; in optimizers: arXiv:2006.00719, arXiv:2305.14342.
struct HutchinsonDiag: Driver {
  static let method = Method.solver(
    "hutchinson_diag", "An estimate of the diagonal of a Hessian from its products with random vectors.",
    rule: "diagonal = mean of z * H z", source: "Hutchinson, 1990; Bekas, Kokiopoulou, Saad, 2007",
    parameters: [
      .integer("n_probes", 1, .atLeast(1), "random vectors"),
      .choice("kind", ["rademacher", "gaussian"], "of their elements"),
      .integer("seed", 0, .atLeast(0), "of the draws"),
    ],
    inputs: DiagonalProbes.inputs, asks: [.product], kept: DiagonalProbes.kept)

  let probes: DiagonalProbes
  init(_ h: Hyper) {
    probes = DiagonalProbes(
      count: h.integer("n_probes"), seed: h.integer("seed"), signs: h.is("kind", "rademacher"))
  }
  func advance<T: Real>(_ phase: DiagonalProbes.Phase, _ io: DriverIO<T>) throws(Failure)
    -> Verdict<DiagonalProbes.Phase>
  { try probes.advance(phase, io) }
  typealias Phase = DiagonalProbes.Phase
}

/// What both are.
struct DiagonalProbes {
  static let inputs =
    Draws.inputs + [.result("diagonal", "...", "the estimate"), .result("iterations", "", "vectors used")]
  static let kept: [Input] = [
    .kept("v", "...", "vector"), .kept("q", "...", "product"), .kept("squares", "...", "squares of the vectors"),
  ]
  enum Phase: Int { case start, product }
  let count: Int, seed: Int, signs: Bool
  /// Over the squares of the vectors, not their number.
  var ratio = false

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let v = try io["v"], q = try io["q"], diagonal = try io["diagonal"], squares = try io["squares"]
    let probes = io.optional("vectors0")?.rows ?? count
    if phase == .product {
      io.iterations += 1
      for i in 0..<v.count {
        let z = Double(v.p[i]), mean = Double(diagonal.p[i]), share = ratio ? z * z : 1
        squares.p[i] += T(share)
        if squares.p[i] != 0 { diagonal.p[i] = T(mean + (z * Double(q.p[i]) - share * mean) / Double(squares.p[i])) }
      }
    }
    let k = try io.count("iterations")
    if k >= probes { return .done(.converged) }
    Draws.take(io, k, seed: seed, signs: signs, into: v)
    return .ask("product", [v], [q], then: .product)
  }
}

/// The eigenvalues of largest magnitude, one after the other, by power iteration with deflation.
///
///     v ⊥ found vectors, |v| = 1;  w = A·v, made orthogonal to them too;  λ = v·w;  v ← w/|w|
///
/// Values have their signs and come in order of magnitude. A vector in the null space has the value 0. Two values of
/// one magnitude and opposite signs do not converge: `lanczos` finds those.
/// Ends     converged: |λ − λ before| ≤ tol·(|λ| + 1e-6) for every pair; max_iter: at least one took iters products;
///          they are sorted then too.
/// Source   von Mises, Pollaczek-Geiringer, 1929; for Hessians: Yao, Gholami, Keutzer, Mahoney, 2020, arXiv:1912.07145.
struct PowerIteration: Driver {
  static let method = Method.solver(
    "power_iteration", "Leading eigenpairs by power iteration with deflation.",
    rule: "v orthogonal to the vectors found, |v| = 1;  w = A v;  lambda = v.w;  v <- w/|w|",
    source: "von Mises, Pollaczek-Geiringer, 1929; Yao, Gholami, Keutzer, Mahoney, 2020, arXiv:1912.07145",
    parameters: [
      .integer("num", 1, .atLeast(1), "eigenpairs"),
      .integer("iters", 100, .atLeast(1), "most products for a pair"),
      .number("tol", 1e-3, .atLeast(0), "relative change that ends a pair"),
      .integer("seed", 0, .atLeast(0), "of the start vectors"),
    ],
    inputs: Draws.inputs("num") + [
      .result("eigenvalues", "num", "eigenvalues, the largest in magnitude first"),
      .result("vectors", "num, ...", "eigenvectors"), .result("iterations", "", "products"),
    ], asks: [.product],
    kept: [
      .kept("v", "...", "vector"), .kept("w", "...", "product"), .kept("pair", "", "pairs found"),
      .kept("tries", "", "products of this pair"), .kept("last", "", "value before"),
      .kept("unfinished", "", "pairs that took iters products"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  enum Phase: Int { case start, product }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let v = try io["v"], w = try io["w"], values = try io["eigenvalues"], found = try io["vectors"]
    if phase == .product {
      let k = try io.count("pair", found.rows - 1)
      clear(w, found, k)
      let value = v.dot(w), size = w.norm
      io.iterations += 1
      io.tries += 1
      values.p[k] = T(value)
      let settled = size == 0 || abs(value - io.last) <= h.tol * (abs(value) + 1e-6)
      io.last = value
      if !settled, io.tries < h.iters {
        v.set(1 / size, w)
        clear(v, found, k)
        v.set(1 / v.norm, v)
        return .ask("product", [v], [w], then: .product)
      }
      if !settled { io.unfinished += 1 }
      found.row(k).copy(v)
      io.pair += 1
    }
    let k = try io.count("pair", found.rows)
    if k >= found.rows {
      sort(values, found, v)
      return .done(io.unfinished > 0 ? .maxIter : .converged)
    }
    (io.tries, io.last) = (0, .nan)
    Draws.take(io, k, seed: h.integer("seed"), signs: false, into: v)
    clear(v, found, k)
    let size = v.norm
    guard size > 0, size.isFinite else {
      throw Failure(Status.range, "start vector \(k) must be finite, and no combination of the vectors found before")
    }
    v.set(1 / size, v)
    return .ask("product", [v], [w], then: .product)
  }

  /// The largest magnitude first: pairs that did not converge may have been found in another order.
  private func sort<T: Real>(_ values: Vector<T>, _ found: Vector<T>, _ spare: Vector<T>) {
    for i in 0..<values.count {
      var top = i
      for j in i..<values.count where abs(values.p[j]) > abs(values.p[top]) { top = j }
      if top == i { continue }
      (values.p[i], values.p[top]) = (values.p[top], values.p[i])
      spare.copy(found.row(i))
      found.row(i).copy(found.row(top))
      found.row(top).copy(spare)
    }
  }

  /// Takes out of v what lies along the first k vectors found.
  private func clear<T: Real>(_ v: Vector<T>, _ found: Vector<T>, _ k: Int) {
    for i in 0..<k { v.add(found.row(i), times: -found.row(i).dot(v)) }
  }
}

/// The spectral density of a symmetric operator, and traces of its functions, by stochastic Lanczos quadrature.
///
///     probe k: Lanczos gives nodes λ and weights w with Σ w = 1
///     density(x) = mean over k of Σ w·N(x; λ, s²),  s² = sigma2·max(1, λ_max − λ_min)²;  tr f(A) = n·mean of Σ w·f(λ)
///
/// The density is given at `points`, when there are some; `trace` is that of A. A probe inside an invariant subspace
/// has fewer nodes: the rest have the weight 0.
/// Source   Lin, Saad, Yang, 2016, arXiv:1308.5467; Ghorbani, Krishnan, Xiao, 2019, arXiv:1901.10159.
struct SLQDensity: Driver {
  static let method = Method.solver(
    "slq_density", "Spectral density by stochastic Lanczos quadrature.",
    rule: """
      density(x) = mean over probes of sum_k w_k N(x; lambda_k, s^2);  s^2 = sigma2 max(1, lambda_max - lambda_min)^2
      tr f(A) = n mean over probes of sum_k w_k f(lambda_k)
      """,
    source: "Lin, Saad, Yang, 2016, arXiv:1308.5467; Ghorbani, Krishnan, Xiao, 2019, arXiv:1901.10159",
    parameters: [
      .integer("probes", 10, .atLeast(1), "random vectors"),
      .integer("steps", 80, .atLeast(2), "products for each; at most the number of unknowns"),
      .number("sigma2", 1e-5, .above(0), "variance of the kernel, relative to max(1, range)^2"),
      .choice("distribution", ["rademacher", "normal"], "of the vectors"),
      .number("tol", 1e-12, .atLeast(0), "length that ends a probe, relative to the largest entry of T"),
      .integer("seed", 0, .atLeast(0), "of the draws"),
    ],
    inputs: Draws.inputs + [
      .constant("points", "points", "where the density is wanted", optional: true),
      .result("nodes", "probes, steps", "Ritz values of each probe, ascending"),
      .result("weights", "probes, steps", "their weights"), .result("density", "points", "the density at `points`"),
      .result("trace", "", "trace of the operator"), .result("lowest", "", "least node"),
      .result("highest", "", "largest node"), .result("iterations", "", "products"),
    ], asks: [.product],
    kept: [
      .kept("basis", "steps, ...", "Lanczos vectors of a probe"), .kept("w", "...", "product"),
      .kept("alpha", "steps", "diagonal"), .kept("beta", "steps", "beside it"), .kept("probe", "", "probes done"),
      .kept("step", "", "steps of this one"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    ["steps": min(h.integer("steps"), max(1, sizes.samples))]
  }

  enum Phase: Int { case start, product }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let basis = try io["basis"], w = try io["w"], nodes = try io["nodes"]
    let alpha = try io["alpha"], beta = try io["beta"]
    if phase == .product {
      let k = try io.count("step", basis.rows - 1), probe = try io.count("probe", nodes.rows - 1)
      let more = LanczosStep.take(k, basis, w, alpha.p, beta.p, h.tol)
      io.step += 1
      io.iterations += 1
      if more { return .ask("product", [basis.row(k + 1)], [w], then: .product) }
      let t = try Tridiagonal(alpha.p, beta.p, k + 1), weights = try io["weights"]
      for i in 0...k {
        nodes.row(probe).p[i] = T(t.values[i])
        weights.row(probe).p[i] = T(t.first(i) * t.first(i))
      }
      io.lowest = probe == 0 ? t.values[0] : min(io.lowest, t.values[0])
      io.highest = probe == 0 ? t.values[k] : max(io.highest, t.values[k])
      io.probe += 1
    }
    let probe = try io.count("probe", nodes.rows)
    if probe >= nodes.rows {
      try finish(io)
      return .done(.converged)
    }
    io.step = 0
    Draws.take(io, probe, seed: h.integer("seed"), signs: h.is("distribution", "rademacher"), into: w)
    try LanczosStep.begin(io, w, basis)
    return .ask("product", [basis.row(0)], [w], then: .product)
  }

  private func finish<T: Real>(_ io: DriverIO<T>) throws(Failure) {
    let nodes = try io["nodes"], weights = try io["weights"], probes = Double(nodes.rows)
    io.trace = Double(max(1, io.sizes.samples)) / probes * nodes.dot(weights)
    guard let points = io.optional("points"), let density = io.optional("density") else { return }
    let range = max(1, io.highest - io.lowest), variance = h.sigma2 * range * range
    let scale = 1 / (probes * (2 * Double.pi * variance).squareRoot())
    _ = Rows.sum(points.count, work: 32 * nodes.count) { i in
      var sum = 0.0
      for k in 0..<nodes.count where weights.p[k] > 0 {
        let d = Double(points.p[i]) - Double(nodes.p[k])
        sum += Double(weights.p[k]) * exp(-d * d / (2 * variance))
      }
      density.p[i] = T(scale * sum)
      return 0
    }
  }
}
