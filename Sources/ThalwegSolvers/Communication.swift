import Glibc
import ThalwegCore

/// PowerSGD: a gradient of several workers in a few columns, by one step of subspace iteration, its error fed back.
///
///     M = gradient + error;  P = mean(M·Q), its columns orthonormal;  Q = mean(Mᵀ·P);  output = P·Qᵀ
///     error = M − output
///
/// mean is over the workers, who all begin with the same Q. Small matrices, n·m < (n + m)·r, and all at steps before
/// `start`, are averaged as they are. The host hands error and q in again with the next gradient; without q, or
/// `warm_start`, Q is drawn, the same at all workers. r is at most the smaller side.
/// Ends     converged.
/// Differs  torch's powerSGD_hook orthonormalises Q too: the output is the same. It averages n·m = (n + m)·r as it is.
///          Q is the draws of (seed, 0, step, 0).
/// Source   Vogels, Karimireddy and Jaggi, 2019, arXiv:1905.13727.
struct PowerSGD: Driver {
  static let method = Method.solver(
    "powersgd", "PowerSGD: a gradient of several workers in a few columns, with its error fed back.",
    rule: """
      M = gradient + error;  P = orthonormal(mean(M Q));  Q = mean(M' P);  output = P Q';  error = M - output
      """,
    source: "Vogels, Karimireddy, Jaggi, 2019, arXiv:1905.13727",
    parameters: [
      .integer("rank", 2, .atLeast(1), "columns r"), .flag("warm_start", true, "the last Q begins the next step"),
      .eps(1e-8, "added to the norms of columns", .above(0)),
      .integer("start", 0, .atLeast(0), "step at which compression begins"),
      Population.seed,
    ],
    inputs: [
      .constant("gradient", "n, m", "this worker's gradient"),
      .constant("error0", "n, m", "this worker's error before; 0 when left out", optional: true),
      .constant("q0", "m, r", "the last Q; drawn when left out", optional: true),
      .constant("step", "", "which step this is, from 0; 0 when left out", optional: true),
      .result("output", "n, m", "the compressed mean, the same at all workers"),
      .result("error", "n, m", "this worker's error"), .result("q", "m, r", "Q"),
    ],
    asks: [
      RequestKind(
        "mean_left", "the mean over the workers", given: [.given("p", "n, r", "this worker's M Q")],
        wanted: [.wanted("mean", "n, r", "the mean")]),
      RequestKind(
        "mean_right", "the mean over the workers", given: [.given("q", "m, r", "this worker's M' P")],
        wanted: [.wanted("mean", "m, r", "the mean")]),
      RequestKind(
        "mean_whole", "the mean over the workers", given: [.given("matrix", "n, m", "this worker's M")],
        wanted: [.wanted("mean", "n, m", "the mean")]),
    ],
    kept: [
      .kept("matrix", "n, m", "M"), .kept("left", "n, r", "M Q"), .kept("p", "n, r", "P"),
      .kept("right", "m, r", "M' P"), .kept("common", "m, r", "its mean"), .kept("whole", "n, m", "the mean of M"),
    ])

  let rank: Int, eps: Double, h: Hyper
  init(_ h: Hyper) { (rank, eps, self.h) = (h.integer("rank"), h.eps, h) }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    let r = min(rank, sizes["n"], sizes["m"])
    if sizes["r"] == 0 { return ["r": r] }
    guard sizes["r"] == r else {
      throw Failure(Status.shape, "`q0` must have \(r) columns, got \(sizes["r"])")
    }
    return [:]
  }
  enum Phase: Int { case start, left, right, whole }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let M = try io["matrix"], output = try io["output"], error = try io["error"], q = try io["q"], p = try io["p"]
    let left = try io["left"], right = try io["right"], n = M.shape[0], m = M.shape[1], r = q.shape[1]
    switch phase {
    case .start:
      M.copy(try io["gradient"])
      if let e = io.optional("error0") { M.add(e) }
      let step = io.step.isNaN ? 0 : io.step
      guard step >= 0, step == step.rounded() else {
        throw Failure(Status.range, "`step` must be a whole number of at least 0, got \(text(step))")
      }
      if h.warm_start, let q0 = io.optional("q0") { q.copy(q0) } else { q.draw(Population.key(h, step)) }
      if step < Double(h.integer("start")) || Double(n) * Double(m) < Double(n + m) * Double(r) {
        return .ask("mean_whole", [M], [try io["whole"]], then: .whole)
      }
      try LinearAlgebra.multiply(UnsafePointer(M.p), UnsafePointer(q.p), into: left.p, n, r, m)
      return .ask("mean_left", [left], [p], then: .left)
    case .left:
      for k in 0..<r {
        let size = Flat.norm(UnsafePointer(p.p + k), n, stride: r) + eps
        for i in 0..<n { p.p[i * r + k] = T(Double(p.p[i * r + k]) / size) }
        for other in (k + 1)..<max(r, k + 1) {
          var along = 0.0
          for i in 0..<n { along += Double(p.p[i * r + k]) * Double(p.p[i * r + other]) }
          for i in 0..<n { p.p[i * r + other] -= T(along * Double(p.p[i * r + k])) }
        }
      }
      try LinearAlgebra.multiply(UnsafePointer(M.p), transposed: true, UnsafePointer(p.p), into: right.p, m, r, n)
      return .ask("mean_right", [right], [try io["common"]], then: .right)
    case .right:
      q.copy(try io["common"])
      try LinearAlgebra.multiply(
        UnsafePointer(p.p), transposed: false, UnsafePointer(q.p), transposed: true, into: output.p, n, m, r)
      error.set(1, M, -1, output)
      return .done(.converged)
    case .whole:
      output.copy(try io["whole"])
      return .done(.converged)
    }
  }
}

/// Gradient codes: messages of workers from which the sum of all parts is found while some are missing.
///
///     worker i sends Σ_j B_ij·g_j;   decode: a on those alive with Bᵀ·a = 1, so that Σ a_i·message_i = Σ g_j
///     fractional: each group of s + 1 workers has the same s + 1 parts
///     cyclic: B_ii = 1, the next s entries of row i solve H·B_iᵀ = 0;  H is (s, n), normal, each row less its mean
///
/// Ends     converged; infeasible: those alive do not determine the sum.
/// Differs  row i of H is the draws of (seed, 0, i, 0).
/// Source   Tandon, Lei, Dimakis and Karampatziakis, 2016, arXiv:1612.03301.
struct GradientCode: Driver {
  static let method = Method.solver(
    "gradient_code", "Gradient codes: the sum of all parts from the messages of those workers that answer.",
    rule: """
      worker i sends sum_j B_ij g_j;  a on those alive with B' a = 1: sum a_i message_i = sum g_j
      """,
    source: "Tandon, Lei, Dimakis, Karampatziakis, 2016, arXiv:1612.03301",
    parameters: [
      .integer("stragglers", nil, .atLeast(0), "how many may be missing"),
      .choice("kind", ["cyclic", "fractional"], "of the code"), Population.seed,
    ],
    inputs: [
      .constant("alive", "n", "1 for every worker that answered, else 0"),
      .result("encoding", "n, n", "B"), .result("weights", "n", "factors of the messages"),
      .result("residual", "", "distance of B' a from 1"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  private func encoding(_ n: Int, _ s: Int) throws(Failure) -> [Double] {
    var B = [Double](repeating: 0, count: n * n)
    if h.is("kind", "fractional") {
      guard n % (s + 1) == 0 else {
        throw Failure(
          Status.range, "a fractional code of \(n) workers needs a divisor for stragglers + 1, got \(s + 1)")
      }
      for i in 0..<n { for k in 0...s { B[i * n + i / (s + 1) * (s + 1) + k] = 1 } }
      return B
    }
    var H = [Double](repeating: 0, count: s * n)
    for i in 0..<s {
      let key = Population.key(h, Double(i)), row = (0..<n).map { Random.normal(key, $0) }
      let mean = row.reduce(0, +) / Double(n)
      for j in 0..<n { H[i * n + j] = row[j] - mean }
    }
    for i in 0..<n {
      B[i * n + i] = 1
      guard s > 0 else { continue }
      let rest = (1...s).map { (i + $0) % n }
      var A = [Double](repeating: 0, count: s * s)
      for k in 0..<s { for (c, j) in rest.enumerated() { A[k * s + c] = H[k * n + j] } }
      let found = try LinearAlgebra.solve(A, (0..<s).map { -H[$0 * n + i] }, s, 1)
      for (c, j) in rest.enumerated() { B[i * n + j] = found[c] }
    }
    return B
  }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let flags = try io["alive"], encoding = try io["encoding"], weights = try io["weights"]
    let n = weights.count, s = h.integer("stragglers")
    guard s < n else {
      throw Failure(Status.range, "`stragglers` must be fewer than the \(n) workers, got \(s)")
    }
    try Memory.ask(64 &* n &* n)
    let B = try self.encoding(n, s), alive = (0..<n).filter { flags.p[$0] != 0 }
    for i in 0..<B.count { encoding.p[i] = T(B[i]) }
    var a = [Double](repeating: 0, count: alive.count)
    if !alive.isEmpty {
      // the shortest solution of (rows alive)ᵀ·a = 1
      let rows = alive.flatMap { i in (0..<n).map { B[i * n + $0] } }
      let svd = try LinearAlgebra.SVD(rows, alive.count, n), top = svd.s.first ?? 0
      for k in 0..<svd.r where svd.s[k] > top * 1e-12 {
        let sum = (0..<n).reduce(0.0) { $0 + svd.vt[k * n + $1] } / svd.s[k]
        for i in 0..<alive.count { a[i] += svd.u[i * svd.r + k] * sum }
      }
    }
    var far = 0.0
    for j in 0..<n {
      let d = alive.indices.reduce(-1.0) { $0 + a[$1] * B[alive[$1] * n + j] }
      far += d * d
    }
    io.residual = far.squareRoot()
    guard io.residual <= 1e-6 else { return .done(.infeasible) }
    for (k, i) in alive.enumerated() { weights.p[i] = T(a[k]) }
    return .done(.converged)
  }
}
