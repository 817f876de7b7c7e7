import Glibc
import ThalwegCore

extension RequestKind {
  /// A population's losses; one that is not finite counts as the worst.
  static func population(_ name: String) -> RequestKind {
    RequestKind(
      "losses", "the losses of all points; NaN and infinities count as the worst",
      given: [.given("points", "\(name), n", "one point a row")],
      wanted: [.wanted("losses", name, "their losses")], takesNonfinite: true)
  }
}

/// What searches by populations share: ranks, and draws of (seed, 0, k, 0).
enum Population {
  static let seed = Parameter.integer("seed", 0, .atLeast(0), "of the draws")
  static func key(_ h: Hyper, _ k: Double) -> UInt64 {
    Random.key(seed: UInt64(max(0, h.integer("seed"))), stream: 0, step: UInt64(max(0, min(k, 0x1p52))), tensor: 0)
  }
  /// Positions from the best loss on, equal ones as they stand, what is not finite last.
  static func order<T: Real>(_ losses: Vector<T>) -> [Int] {
    let f = (0..<losses.count).map { losses.p[$0].isFinite ? Double(losses.p[$0]) : .infinity }
    return f.indices.sorted { f[$0] < f[$1] || (f[$0] == f[$1] && $0 < $1) }
  }
}

/// CMA-ES: a normal distribution that follows the better half of its samples.
///
///     Y = Z·C^½,  Z ~ N(0, I);  X = m + σ·Y;   the losses of X, sorted:  y_w = Σ_{i ≤ μ} w_i·y_i;   m ← m + σ·y_w
///     p_σ ← (1−c_σ)·p_σ + √(c_σ(2−c_σ)μ_eff)·C^−½·y_w;   h = 1 where |p_σ|/√(1−(1−c_σ)^(2(g+1))) < (1.4+2/(n+1))·χ
///     p_c ← (1−c_c)·p_c + h·√(c_c(2−c_c)μ_eff)·y_w;      negative w_i: times n/|C^−½·y_i|²
///     C ← (1 + c₁(1−h)c_c(2−c_c) − c₁ − c_μ·Σw)·C + c₁·p_c·p_cᵀ + c_μ·Σ w_i·y_i·y_iᵀ
///     σ ← σ·exp(min(1, (c_σ/d_σ)(|p_σ|/χ − 1)))
///
/// The constants are those of the tutorial; C^½ is the symmetric root. `diagonal`: C is a diagonal.
/// Ends     converged: σ·√(largest eigenvalue) < 1e-11, or a condition above 1e14, or a loss of `target`; max_iter.
/// Differs  pycma has other weights and c_σ.
/// Source   Hansen, 2016, arXiv:1604.00772; Ros, Hansen, 2008 (diagonal).
struct CMAES: Driver {
  static let method = Method.solver(
    "cma_es", "CMA-ES: a normal distribution that follows the better half of its samples.",
    rule: """
      X = m + sigma*Y, Y = Z C^(1/2);  m <- m + sigma*sum_{i <= mu} w_i y_i of the sorted losses
      p_s, p_c: paths of C^(-1/2) y_w and y_w;  C <- decay*C + c1*p_c p_c' + cmu*sum w_i y_i y_i'
      sigma <- sigma*exp(min(1, (cs/ds)(|p_s|/chi - 1)))
      """,
    source: "Hansen, 2016, arXiv:1604.00772; Ros, Hansen, 2008",
    parameters: [
      .number("sigma0", 0.5, .above(0), "standard deviation at first"),
      .maybeInteger("popsize", .within(4, 0x1p20), "samples a generation; none: 4 + floor(3 log n)"),
      .flag("active", true, "the worse half pushes away"), .flag("diagonal", false, "C is a diagonal"),
      .flag("lazy", false, "the roots of C wait for 1/(10 n (c1 + cmu)) generations"),
      .maybe("target", .any, "a loss that ends it"), .integer("max_iter", 1000, .atLeast(0), "generations"),
      Population.seed,
    ],
    inputs: [
      .constant("x0", "n", "the mean to start with"), .result("x", "n", "the mean"),
      .result("best", "n", "the best sample"), .result("value", "", "its loss"), .result("sigma", "", "step size"),
      .result("covariance", "q, n", "C; its diagonal alone with `diagonal`"), .result("iterations", "", "generations"),
    ],
    asks: [.population("lambda")],
    kept: [
      .kept("points", "lambda, n", "samples"), .kept("losses", "lambda", "their losses"),
      .kept("y", "lambda, n", "steps from the mean over sigma"), .kept("root", "q, n", "root of C"),
      .kept("inverse", "q, n", "inverse root of C"), .kept("ps", "n", "path of the step size"),
      .kept("pc", "n", "path of the covariance"), .kept("spread", "", "largest standard deviation over sigma"),
      .kept("condition", "", "of C"), .kept("decomposed", "", "generation of the roots"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    let n = sizes["n"]
    return [
      "lambda": h.has("popsize") ? h.integer("popsize") : 4 + Int(3 * log(Double(n))), "q": h.diagonal ? 1 : n,
    ]
  }

  enum Phase: Int { case start, sample, losses }

  private struct Constants {
    let mu: Int, w: [Double], mueff, cc, cs, c1, cmu, ds, chi: Double
    init(_ h: Hyper, _ size: Int, _ dimension: Int) {
      let n = Double(dimension), raw = (1...size).map { log((Double(size) + 1) / 2) - log(Double($0)) }
      func effective(_ list: ArraySlice<Double>) -> Double {
        let sum = list.reduce(0, +), squares = list.reduce(0) { $0 + $1 * $1 }
        return squares > 0 ? sum * sum / squares : 0
      }
      mu = size / 2
      mueff = effective(raw.prefix(mu))
      let minus = effective(raw.dropFirst(mu))
      cc = (4 + mueff / n) / (n + 4 + 2 * mueff / n)
      cs = (mueff + 2) / (n + mueff + 5)
      var one = 2 / ((n + 1.3) * (n + 1.3) + mueff)
      var many = min(1 - one, 2 * (0.25 + mueff + 1 / mueff - 2) / ((n + 2) * (n + 2) + mueff))
      if h.diagonal {
        one = min(1, one * (n + 2) / 3)
        many = min(1 - one, many * (n + 2) / 3)
      }
      (c1, cmu) = (one, many)
      ds = 1 + 2 * max(0, ((mueff - 1) / (n + 1)).squareRoot() - 1) + cs
      chi = n.squareRoot() * (1 - 1 / (4 * n) + 1 / (21 * n * n))
      let up = raw.prefix(mu).reduce(0, +), down = raw.dropFirst(mu).reduce(0) { $0 + min($1, 0) }
      let bound = many > 0 ? min(1 + one / many, 1 + 2 * minus / (mueff + 2), (1 - one - many) / (n * many)) : 0
      let active: Bool = h.active, mu = self.mu
      w = raw.enumerated().map { i, r in
        i < mu ? r / up : active && down < 0 ? min(r, 0) / -down * max(0, bound) : 0
      }
    }
  }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let m = try io["x"], n = m.count, C = try io["covariance"], points = try io["points"], y = try io["y"]
    let diagonal: Bool = h.diagonal, size = points.rows
    switch phase {
    case .start:
      m.copy(try io["x0"])
      try io["best"].copy(m)
      for i in 0..<n { C.p[diagonal ? i : i * n + i] = 1 }
      (io.sigma, io.value, io.decomposed) = (h.sigma0, .infinity, -1)
      return .go(.sample)
    case .sample:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      let c = Constants(h, size, n)
      let wait = h.lazy ? max(1, 1 / (10 * Double(n) * (c.c1 + c.cmu))) : 1
      if io.decomposed < 0 || io.iterations - io.decomposed >= wait { try decompose(io) }
      if io.sigma * io.spread < 1e-11 || io.condition > 1e14 { return .done(.converged) }
      points.draw(Population.key(h, io.iterations))
      try apply(try io["root"], points, into: y)
      for i in 0..<size { points.row(i).set(1, m, io.sigma, y.row(i)) }
      return .ask("losses", [points], [try io["losses"]], fresh: true, then: .losses)
    case .losses:
      let losses = try io["losses"], order = Population.order(losses), c = Constants(h, size, n)
      let best = Double(losses.p[order[0]])
      if best < io.value {
        io.value = best
        try io["best"].copy(points.row(order[0]))
      }
      let inverse = try io["inverse"], ps = try io["ps"], pc = try io["pc"]
      var step = [Double](repeating: 0, count: n)
      for i in 0..<c.mu {
        let row = y.row(order[i])
        for j in 0..<n { step[j] += c.w[i] * Double(row.p[j]) }
      }
      for j in 0..<n { m.p[j] += T(io.sigma * step[j]) }
      let white = product(inverse, step), g = io.iterations + 1
      for j in 0..<n {
        ps.p[j] = T((1 - c.cs) * Double(ps.p[j]) + (c.cs * (2 - c.cs) * c.mueff).squareRoot() * white[j])
      }
      let length = ps.norm
      let stays = length / (1 - pow(1 - c.cs, 2 * g)).squareRoot() < (1.4 + 2 / (Double(n) + 1)) * c.chi ? 1.0 : 0
      for j in 0..<n {
        pc.p[j] = T(
          (1 - c.cc) * Double(pc.p[j]) + stays * (c.cc * (2 - c.cc) * c.mueff).squareRoot() * step[j])
      }
      adapt(C, y, order, c, pc, stays: stays, inverse: inverse)
      io.sigma *= exp(min(1, c.cs / c.ds * (length / c.chi - 1)))
      io.iterations += 1
      if h.has("target"), io.value <= h.target { return .done(.converged) }
      return .go(.sample)
    }
  }

  /// root = C^½, inverse = C^−½; eigenvalues count as 1e-300 at least.
  private func decompose<T: Real>(_ io: DriverIO<T>) throws(Failure) {
    let C = try io["covariance"], root = try io["root"], inverse = try io["inverse"], n = try io["x"].count
    var low = Double.infinity, high = 0.0
    if h.diagonal {
      for i in 0..<n {
        let v = max(Double(C.p[i]), 1e-300)
        (low, high) = (min(low, v), max(high, v))
        (root.p[i], inverse.p[i]) = (T(v.squareRoot()), T(1 / v.squareRoot()))
      }
    } else {
      let e = try LinearAlgebra.Eigen(UnsafePointer(C.p), n)
      low = max(e.values.last ?? 1, 1e-300)
      high = max(e.values.first ?? 1, 1e-300)
      try e.compose(root.p) { max($0, 1e-300).squareRoot() }
      try e.compose(inverse.p) { 1 / max($0, 1e-300).squareRoot() }
    }
    (io.spread, io.condition, io.decomposed) = (high.squareRoot(), high / low, io.iterations)
  }

  private func product<T: Real>(_ a: Vector<T>, _ x: [Double]) -> [Double] {
    let n = x.count
    if h.diagonal { return (0..<n).map { Double(a.p[$0]) * x[$0] } }
    return (0..<n).map { i in (0..<n).reduce(0) { $0 + Double(a.p[i * n + $1]) * x[$1] } }
  }
  /// Rows times a symmetric matrix.
  private func apply<T: Real>(_ a: Vector<T>, _ x: Vector<T>, into y: Vector<T>) throws(Failure) {
    let n = x.shape[1]
    if h.diagonal {
      for i in 0..<x.count { y.p[i] = a.p[i % n] * x.p[i] }
    } else {
      try LinearAlgebra.multiply(UnsafePointer(x.p), UnsafePointer(a.p), into: y.p, x.rows, n, n)
    }
  }

  private func adapt<T: Real>(
    _ C: Vector<T>, _ y: Vector<T>, _ order: [Int], _ c: Constants, _ pc: Vector<T>, stays: Double,
    inverse: Vector<T>
  ) {
    let n = pc.count
    let keep = 1 + c.c1 * (1 - stays) * c.cc * (2 - c.cc) - c.c1 - c.cmu * c.w.reduce(0, +)
    var new = (0..<C.count).map { keep * Double(C.p[$0]) }
    func add(_ factor: Double, _ v: [Double]) {
      if h.diagonal {
        for i in 0..<n { new[i] += factor * v[i] * v[i] }
      } else {
        for i in 0..<n { for j in 0..<n { new[i * n + j] += factor * v[i] * v[j] } }
      }
    }
    add(c.c1, (0..<n).map { Double(pc.p[$0]) })
    for (k, i) in order.enumerated() where c.w[k] != 0 {
      let row = y.row(i), v = (0..<n).map { Double(row.p[$0]) }
      var w = c.w[k]
      if w < 0 {
        let white = product(inverse, v).reduce(0) { $0 + $1 * $1 }
        w *= white > 0 ? Double(n) / white : 0
      }
      add(c.cmu * w, v)
    }
    for i in 0..<C.count { C.p[i] = T(new[i]) }
  }
}

/// What consensus methods share: the mean of the points under the weights exp(−α·(loss − the least loss)).
private enum Consensus {
  static let alpha = Parameter.number("alpha", 100, .atLeast(0), "inverse temperature of the weights")
  static let dynamics: [Input] = [
    .result("x", "n", "the consensus"), .result("value", "", "the least loss of the last points"),
    .result("iterations", "", "steps"),
  ]
  /// Puts the consensus into x; false where no loss is finite.
  static func take<T: Real>(_ io: DriverIO<T>, _ points: Vector<T>, alpha: Double) throws(Failure) -> Bool {
    let losses = try io["losses"], x = try io["x"], n = x.count
    var least = Double.infinity
    for i in 0..<losses.count where losses.p[i].isFinite { least = min(least, Double(losses.p[i])) }
    guard least.isFinite else { return false }
    var total = 0.0, sum = [Double](repeating: 0, count: n)
    for i in 0..<losses.count where losses.p[i].isFinite {
      let w = exp(-alpha * (Double(losses.p[i]) - least)), row = points.row(i)
      total += w
      for j in 0..<n { sum[j] += w * Double(row.p[j]) }
    }
    for j in 0..<n { x.p[j] = T(sum[j] / total) }
    io.value = least
    return true
  }
}

/// Consensus-based optimisation: particles drift to their weighted mean, and the farther they are the more they jitter.
///
///     c = Σ w_i·x_i/Σ w_i,  w_i = exp(−α·(l_i − min l));   D_i = x_i − c
///     x_i ← x_i − lam·dt·D_i + sigma·√dt·(D_i·z_i  (anisotropic), or |D_i|·z_i),   z ~ N(0, I)
///
/// A loss that is not finite weighs nothing.
/// Ends     converged: all particles at the consensus to `tol`; nonfinite: no loss is finite; max_iter.
/// Differs  nothing from CBXpy.
/// Source   Pinnau, Totzeck, Tse and Martin, 2017, arXiv:1604.05648; Carrillo, Jin, Li, Zhu, 2019 (anisotropic).
struct CBO: Driver {
  static let method = Method.solver(
    "cbo", "Consensus-based optimisation: particles drift to their weighted mean and jitter.",
    rule: """
      c = sum w_i x_i/sum w_i, w_i = exp(-alpha (l_i - min l));  D_i = x_i - c
      x_i <- x_i - lam dt D_i + sigma sqrt(dt) (D_i z_i, or |D_i| z_i)
      """,
    source: "Pinnau, Totzeck, Tse, Martin, 2017, arXiv:1604.05648; Carrillo, Jin, Li, Zhu, 2019",
    parameters: [
      .number("dt", 0.1, .above(0), "length of a step"), .number("lam", 1, .atLeast(0), "strength of the drift"),
      .number("sigma", 1, .atLeast(0), "strength of the noise"), Consensus.alpha,
      .choice("noise", ["anisotropic", "isotropic"], "by entry, or by distance"),
      .number("tol", 0, .atLeast(0), "largest distance from the consensus that ends it"),
      .integer("max_iter", 100, .atLeast(0), "steps"), Population.seed,
    ],
    inputs: [.constant("points0", "N, n", "the particles to start with")] + Consensus.dynamics
      + [.result("points", "N, n", "the particles"), .result("spread", "", "their largest distance")],
    asks: [.population("N")],
    kept: [.kept("losses", "N", "losses"), .kept("noise", "N, n", "normal draws")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step, losses }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let points = try io["points"], x = try io["x"], noise = try io["noise"], n = x.count
    switch phase {
    case .start:
      points.copy(try io["points0"])
      return .go(.step)
    case .step: return .ask("losses", [points], [try io["losses"]], fresh: true, then: .losses)
    case .losses:
      guard try Consensus.take(io, points, alpha: h.alpha) else { return .done(.nonfinite) }
      io.spread = (0..<points.rows).reduce(0) { max($0, points.row($1).distance(x)) }
      if io.spread <= h.tol { return .done(.converged) }
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      noise.draw(Population.key(h, io.iterations))
      let drift: Double = h.lam * h.dt, jitter = h.sigma * (h.dt as Double).squareRoot()
      for i in 0..<points.rows {
        let row = points.row(i), far = row.distance(x)
        for j in 0..<n {
          let d = Double(row.p[j]) - Double(x.p[j])
          let size = h.is("noise", "isotropic") ? far : d
          row.p[j] += T(-drift * d + jitter * size * Double(noise.p[i * n + j]))
        }
      }
      io.iterations += 1
      return .go(.step)
    }
  }
}

/// Consensus hopping: the consensus of points drawn around the last one.
///
///     x ← consensus of x + sigma·z_i, i = 1..particles,  z ~ N(0, I);   sigma ← decay·sigma
///
/// It behaves like stochastically relaxed gradient descent.
/// Ends     nonfinite: no loss of a step is finite; max_iter.
/// Source   Riedl, Klock, Geldhauser and Fornasier, 2023, arXiv:2306.09778.
struct ConsensusHopping: Driver {
  static let method = Method.solver(
    "consensus_hopping", "Consensus hopping: the consensus of points drawn around the last one.",
    rule: "x <- consensus of x + sigma z_i, i = 1..particles;  sigma <- decay sigma",
    source: "Riedl, Klock, Geldhauser, Fornasier, 2023, arXiv:2306.09778",
    parameters: [
      .integer("particles", 100, .within(1, 0x1p24), "points a step"),
      .number("sigma", 0.4, .atLeast(0), "standard deviation of the points at first"),
      .number("decay", 1, .above(0), "its factor a step"), Consensus.alpha,
      .integer("max_iter", 100, .atLeast(0), "steps"), Population.seed,
    ],
    inputs: [.constant("x0", "n", "the point to start with")] + Consensus.dynamics,
    asks: [.population("particles")],
    kept: [.kept("points", "particles, n", "points"), .kept("losses", "particles", "their losses")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step, losses }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let points = try io["points"], x = try io["x"]
    if phase == .start { x.copy(try io["x0"]) }
    if phase == .losses {
      guard try Consensus.take(io, points, alpha: h.alpha) else { return .done(.nonfinite) }
      io.iterations += 1
    }
    if io.iterations >= h.max_iter { return .done(.maxIter) }
    points.draw(Population.key(h, io.iterations))
    let sigma = h.sigma * pow(h.decay, io.iterations)
    for i in 0..<points.rows { points.row(i).set(1, x, sigma, points.row(i)) }
    return .ask("losses", [points], [try io["losses"]], fresh: true, then: .losses)
  }
}
