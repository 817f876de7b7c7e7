import ThalwegCore

/// Training a two-layer ReLU network to its global minimum: ADMM on the convex problem over activation patterns.
///
///     F = [D_i·X, −D_i·X], G the blocks (2·D_i − I)·X;  min ½‖F·u − y‖² + beta·Σ‖block‖, G·u ≥ 0
///     u = (I + FᵀF/ρ + GᵀG)⁻¹·(Fᵀy/ρ + v − λ + Gᵀ(s − ν));   v = blocks of u + λ shrunk by beta/ρ
///     s = max(G·u + ν, 0)
///     λ ← λ + γ/ρ·(u − v);   ν ← ν + γ/ρ·(G·u − s)
///
/// x (n, d), y (n,). Patterns (P, n) are those given, or 1[X·g ≥ 0] of P normal g with repeated ones left out (their
/// rows, and their weights, are 0). v, w (P, d) are the blocks; `convex_relu_to_network` makes a network of them. The
/// answer is v, whose dead blocks are exactly 0 and which is feasible in the limit.
/// Ends     converged: ‖u − v‖ and ‖G·u − s‖ at most tol; max_iter.
/// Errors   TW_ERROR_RANGE: a pattern that holds other numbers than 0 and 1.
/// Differs  direction k is the draws of (seed, 0, k, 0). The linear system is dense, (2·P·d)² numbers.
/// Source   Bai, Gautam and Sojoudi, 2022, arXiv:2201.01965.
struct ConvexReLUADMM: Driver {
  static let method = Method.solver(
    "convex_relu_admm", "ADMM on the convex problem of a two-layer ReLU network.",
    rule: """
      u = (I + F'F/rho + G'G)^-1 (F'y/rho + v - lam + G'(s - nu));  v = shrink(u + lam, beta/rho);  s = max(G u + nu, 0)
      lam += gamma/rho (u - v);  nu += gamma/rho (G u - s)
      """,
    source: "Bai, Gautam, Sojoudi, 2022, arXiv:2201.01965",
    parameters: [
      .integer("P", 10, .within(1, 4096), "patterns that are drawn, when none are given"),
      .number("beta", 1e-3, .atLeast(0), "weight of the norms"), .number("rho", 0.1, .above(0), "penalty"),
      .maybe("gamma", .above(0), "dual step times rho; none: rho"),
      .number("tol", 0, .atLeast(0), "both residuals that end it"),
      .integer("max_iter", 1000, .atLeast(0), "iterations"), Population.seed,
    ],
    inputs: [
      .constant("x", "n, d", "inputs"), .constant("y", "n", "targets"),
      .constant("patterns0", "P, n", "1 where a neuron is active; drawn when left out", optional: true),
      .result("v", "P, d", "weights of neurons that count up"),
      .result("w", "P, d", "weights of those that count down"), .result("patterns", "P, n", "the patterns"),
      .result("value", "", "the objective"), .result("residual", "", "the larger of the two residuals"),
      .result("iterations", "", "iterations"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { sizes["P"] == 0 ? ["P": h.integer("P")] : [:] }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], D = try io["patterns"], n = y.count, d = x.count / n, P = D.rows
    try choose(io, x, D, n, d)
    let N = 2 * P * d, M = 2 * P * n
    try Memory.ask(8 &* (4 &* N &* N &+ 8 &* (N &+ M)))
    // rows of F and G by sample and block: block b has the pattern b mod P and the sign + in its first half
    func active(_ b: Int, _ j: Int) -> Bool { D.p[b % P * n + j] == 1 }
    func sign(_ b: Int, _ j: Int) -> Double { active(b, j) ? 1 : -1 }
    func row(_ j: Int, _ k: Int) -> Double { Double(x.p[j * d + k]) }
    func half(_ b: Int) -> Double { b < P ? 1 : -1 }
    let rho: Double = h.rho, share = 1 / rho, step = h.has("gamma") ? h.gamma / rho : 1
    var A = [Double](repeating: 0, count: N * N), Fy = [Double](repeating: 0, count: N)
    for i in 0..<N { A[i * N + i] = 1 }
    for a in 0..<(2 * P) {
      for b in 0..<(2 * P) {
        for j in 0..<n {
          let f = active(a, j) && active(b, j) ? share * half(a) * half(b) : 0, factor = f + (a == b ? 1 : 0)
          guard factor != 0 else { continue }
          for k in 0..<d {
            for l in 0..<d { A[(a * d + k) * N + b * d + l] += factor * row(j, k) * row(j, l) }
          }
        }
      }
      for j in 0..<n where active(a, j) {
        for k in 0..<d { Fy[a * d + k] += share * half(a) * row(j, k) * Double(y.p[j]) }
      }
    }
    var identity = [Double](repeating: 0, count: N * N)
    for i in 0..<N { identity[i * N + i] = 1 }
    let inverse = try LinearAlgebra.solvePositive(A, identity, N, N)
    var u = [Double](repeating: 0, count: N), v = u, lam = u, right = u
    var s = [Double](repeating: 0, count: M), nu = s, Gu = s
    func constrain(_ u: [Double]) {
      for b in 0..<(2 * P) {
        for j in 0..<n {
          let along = (0..<d).reduce(0.0) { $0 + row(j, $1) * u[b * d + $1] }
          Gu[b * n + j] = sign(b, j) * along
        }
      }
    }
    var outcome = Ending.maxIter
    while true {
      if io.iterations > 0, io.residual <= h.tol {
        outcome = .converged
        break
      }
      if io.iterations >= h.max_iter { break }
      for i in 0..<N { right[i] = Fy[i] + v[i] - lam[i] }
      for b in 0..<(2 * P) {
        for j in 0..<n {
          let f = sign(b, j) * (s[b * n + j] - nu[b * n + j])
          if f != 0 { for k in 0..<d { right[b * d + k] += f * row(j, k) } }
        }
      }
      try LinearAlgebra.multiply(inverse, right, into: &u, N, 1, N)
      for b in 0..<(2 * P) {
        let z = (0..<d).map { u[b * d + $0] + lam[b * d + $0] }, size = Flat.norm(z, d)
        let keep = size > 0 ? max(1 - h.beta / (rho * size), 0) : 0
        for k in 0..<d { v[b * d + k] = keep * z[k] }
      }
      constrain(u)
      var far = (0.0, 0.0)
      for i in 0..<M {
        s[i] = max(Gu[i] + nu[i], 0)
        far.1 += (Gu[i] - s[i]) * (Gu[i] - s[i])
        nu[i] += step * (Gu[i] - s[i])
      }
      for i in 0..<N {
        far.0 += (u[i] - v[i]) * (u[i] - v[i])
        lam[i] += step * (u[i] - v[i])
      }
      io.residual = max(far.0, far.1).squareRoot()
      io.iterations += 1
    }
    let up = try io["v"], down = try io["w"]
    for i in 0..<(P * d) { (up.p[i], down.p[i]) = (T(v[i]), T(v[P * d + i])) }
    var value = 0.0
    for j in 0..<n {
      var r = -Double(y.p[j])
      for b in 0..<(2 * P) where active(b, j) {
        r += half(b) * (0..<d).reduce(0.0) { $0 + row(j, $1) * v[b * d + $1] }
      }
      value += r * r / 2
    }
    io.value = (0..<(2 * P)).reduce(value) { $0 + h.beta * Flat.norm(Array(v[($1 * d)..<($1 * d + d)]), d) }
    return .done(outcome)
  }

  /// The patterns: given, or drawn without repetitions.
  private func choose<T: Real>(_ io: DriverIO<T>, _ x: Vector<T>, _ D: Vector<T>, _ n: Int, _ d: Int) throws(Failure) {
    if let given = io.optional("patterns0") {
      for i in 0..<given.count where given.p[i] != 0 && given.p[i] != 1 {
        throw Failure(Status.range, "`patterns0` must hold 0 and 1, got \(given.p[i]) at element \(i)")
      }
      return D.copy(given)
    }
    var seen: Set<[Bool]> = []
    for k in 0..<D.rows {
      let key = Population.key(h, Double(k)), g = (0..<d).map { Random.normal(key, $0) }
      let pattern = (0..<n).map { j in (0..<d).reduce(0.0) { $0 + Double(x.p[j * d + $1]) * g[$1] } >= 0 }
      guard seen.insert(pattern).inserted else { continue }
      for j in 0..<n { D.p[k * n + j] = pattern[j] ? 1 : 0 }
    }
  }
}

/// Neurons of a convex ReLU solution that are not needed: their fits are written in those of the others.
///
///     fits F_i (rows), weights w_i:   zero fits go
///     while fits are linearly dependent: b a null vector, Σ b_i·F_i = 0
///     j = argmax|b|, the lowest of equal ones;   every active neuron times 1 − b_i/b_j ≥ 0, neuron j is 0 then
///     keep: further ones go, that of the least score each time, with b_j = −1 and b_i its least-squares coefficients
///
/// fits (P, n), weights (P, d); gradient (P, d) for score=gradient. As many neurons as the rank are left, Σ F_i is what
/// it was. Scores: residual of the fit on the others, |w_i|, |F_i|, or ‖w_i·gradient_i‖.
/// Ends     converged.
/// Differs  of several null vectors that of the smallest singular value is taken.
/// Source   Mishkin and Pilanci, 2023, arXiv:2306.00119.
struct ReLUOptimalPrune: Driver {
  static let method = Method.solver(
    "relu_optimal_prune", "Neurons of a convex ReLU solution that can be written in the others are taken out.",
    rule: """
      while fits F_i depend linearly, sum b_i F_i = 0: j = argmax |b|;  F_i, w_i times 1 - b_i/b_j
      keep: the neuron of the least score goes, b its least-squares coefficients in the others, b_j = -1
      """,
    source: "Mishkin, Pilanci, 2023, arXiv:2306.00119",
    parameters: [
      .number("tol", 1e-8, .atLeast(0), "singular value that counts as 0, over the largest"),
      .maybeInteger("keep", .atLeast(1), "most neurons that are left; none: as many as the rank"),
      .choice("score", ["residual", "norm", "fit", "gradient"], "of the neurons that go for `keep`"),
    ],
    inputs: [
      .constant("fits", "P, n", "what every neuron gives on the data, D_i X w_i"),
      .constant("weights", "P, d", "weights of the neurons"),
      .constant("gradient", "P, d", "gradient of the loss by the weights, for score=gradient", optional: true),
      .result("pruned", "P, d", "weights of the neurons that are left, 0 elsewhere"),
      .result("scales", "P", "what every neuron was multiplied by"), .result("active", "P", "1: it is left"),
      .result("remaining", "", "how many are left"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let fits = try io["fits"], w = try io["weights"], P = fits.rows, n = fits.count / P, d = w.count / P
    let slope = io.optional("gradient")
    guard slope != nil || !h.is("score", "gradient") || !h.has("keep") else {
      throw Failure(Status.needs, "relu_optimal_prune: score=gradient needs `gradient`")
    }
    guard fits.isFinite, w.isFinite else { throw Failure(Status.range, "`fits` and `weights` must be finite") }
    var scale = [Double](repeating: 1, count: P)
    var active = (0..<P).filter { fits.row($0).norm > 0 }
    func fit(_ i: Int, _ k: Int) -> Double { scale[i] * Double(fits.p[i * n + k]) }
    /// Neuron j goes: every other one times 1 − b_i/b_j.
    func drop(_ j: Int, _ b: [Double]) {
      for (k, i) in active.enumerated() { scale[i] *= max(1 - b[k] / b[j], h.has("keep") ? -.infinity : 0) }
      active.remove(at: j)
    }
    while !active.isEmpty {
      // as many columns as rows at least, so that all left singular vectors are there
      let k = active.count, columns = max(n, k)
      try Memory.ask(8 &* k &* columns)
      var F = [Double](repeating: 0, count: k * columns)
      for (r, i) in active.enumerated() { for c in 0..<n { F[r * columns + c] = fit(i, c) } }
      let svd = try LinearAlgebra.SVD(F, k, columns)
      guard let last = svd.s.last, last <= h.tol * (svd.s.first ?? 0) else { break }
      let b = (0..<k).map { svd.u[$0 * svd.r + svd.r - 1] }
      var j = 0
      for i in 0..<k where abs(b[i]) > abs(b[j]) * (1 + 1e-12) { j = i }
      drop(j, b)
    }
    while h.has("keep"), active.count > h.integer("keep") {
      var least = Double.infinity, choice = (0, [Double]())
      for j in active.indices {
        let (b, rest) = try explain(j, active, n, fit), i = active[j]
        let score: Double
        if h.is("score", "residual") {
          score = rest
        } else if h.is("score", "fit") {
          score = abs(scale[i]) * fits.row(i).norm
        } else if h.is("score", "norm") {
          score = abs(scale[i]) * w.row(i).norm
        } else {
          score = (0..<d).reduce(0.0) { sum, k in
            let x = scale[i] * Double(w.p[i * d + k]) * (slope.map { Double($0.p[i * d + k]) } ?? 0)
            return sum + x * x
          }.squareRoot()
        }
        if score < least { (least, choice) = (score, (j, b)) }
      }
      drop(choice.0, choice.1)
    }
    let pruned = try io["pruned"], scales = try io["scales"], flags = try io["active"]
    for i in active {
      (scales.p[i], flags.p[i]) = (T(scale[i]), 1)
      for k in 0..<d { pruned.p[i * d + k] = T(scale[i] * Double(w.p[i * d + k])) }
    }
    io.remaining = Double(active.count)
    return .done(.converged)
  }

  /// The least-squares coefficients of fit j in the other active ones, −1 at j, and what is left of it.
  private func explain(_ j: Int, _ active: [Int], _ n: Int, _ fit: (Int, Int) -> Double) throws(Failure)
    -> ([Double], Double)
  {
    let others = active.indices.filter { $0 != j }, k = others.count
    var b = [Double](repeating: 0, count: active.count), left = (0..<n).map { fit(active[j], $0) }
    b[j] = -1
    let F = others.flatMap { r in (0..<n).map { fit(active[r], $0) } }
    let svd = try LinearAlgebra.SVD(F, k, n), top = svd.s.first ?? 0, target = left
    for q in 0..<svd.r where svd.s[q] > top * 1e-12 {
      let along = (0..<n).reduce(0.0) { $0 + svd.vt[q * n + $1] * target[$1] }
      for (r, o) in others.enumerated() { b[o] += svd.u[r * svd.r + q] * along / svd.s[q] }
      for c in 0..<n { left[c] -= along * svd.vt[q * n + c] }
    }
    return (b, Flat.norm(left, n))
  }
}
