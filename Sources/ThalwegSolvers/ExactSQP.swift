import Glibc
import ThalwegCore

/// Inexact Newton steps on the exact augmented Lagrangian of a problem with equalities, their linear systems solved by
/// sketching.
///
///     g = ∇f + Jᵀ·λ,  b = −(g, c);   H the Hessian of f + λ·c;   Z spans the null space of J
///     B = H + t·I,  t = xi_b + |H| where the least eigenvalue of Zᵀ·H·Z is below 1e-6, else 0;   K = [B Jᵀ; J 0]
///     Psi = 7·max(|B|², 1)/(min(λ_min(J·Jᵀ), 1)·xi_b),  U = max(|B|, |H|, |J|)
///     delta ← min(delta, (½ − beta)·eta2/(2·Psi²·(3·U + 4·eta2·U² + eta1·U²)))
///     d from 0: sketch and project on K·d = b until |K·d − b| ≤ delta·|b|/(|K|·Psi)
///     accepted where ∇L·d ≤ −eta2·|b|²/2,  ∇L = (g + eta2·H·g + eta1·Jᵀ·c, c + eta2·J·g);   else, with d as it is,
///     eta1 ← nu²·eta1,  eta2 ← eta2/nu,  delta ← min(delta/nu⁴, the bound);   no more at eta1 > 1e8, eta2 < 1e-8
///     (x, λ) ← (x, λ) + s·d,  s = 1, rho, rho², ... until L falls by −beta·s·∇L·d
///     L = f + λ·c + eta1·|c|²/2 + eta2·|g|²/2
///
/// kaczmarz projects on single rows of K, gaussian on normal combinations of them.
/// Ends     converged: |b| ≤ tol; max_iter; line_search_failed: steps have become rounding; nonfinite.
/// Errors   TW_ERROR_NUMERIC: λ_min(J·Jᵀ) ≤ 1e-12·tr(J·Jᵀ), the constraints are not independent.
/// Differs  |·| of matrices is Frobenius' norm, as in the authors' code, which takes the Hessian of f for H in ∇L: the
///          derivative of L has that of the Lagrangian. What the systems are solved to is at least 1e-13·|b|, in at
///          most `sketch_steps` steps between two looks. Row ⌊N·u⌋ of step j, u the normal distribution function at
///          draw j of (seed, 0, k, 0) in iteration k; normal combinations are its draws j·N and following.
/// Source   Hong, Na, Mahoney, Kolar, 2023, arXiv:2305.18379.
struct ExactALSQP: Driver {
  static let method = Method.solver(
    "exact_al_sqp", "Inexact Newton steps on the exact augmented Lagrangian, their systems solved by sketching.",
    rule: """
      g = grad f + J' lambda;  K d = -(g, c), K = [H + t I, J'; J, 0], by sketch and project
      L = f + lambda.c + eta1 |c|^2/2 + eta2 |g|^2/2;  eta1, 1/eta2 grow until grad L.d <= -eta2 |(g, c)|^2/2
      (x, lambda) <- (x, lambda) + s d, s from 1 by rho until L falls by -beta s grad L.d
      """,
    source: "Hong, Na, Mahoney, Kolar, 2023, arXiv:2305.18379",
    parameters: [
      .number("eta1", 1, .above(0), "penalty of the constraints, at first"),
      .number("eta2", 0.1, .above(0), "penalty of the Lagrangian's gradient, at first"),
      .number("delta", 0.1, .between(0, 1, lowOpen: true, highOpen: true), "accuracy of the systems, at first"),
      .number("xi_b", 0.1, .above(0), "least regularisation of the Hessian"),
      .number("beta", 0.1, .between(0, 0.5, lowOpen: true, highOpen: true), "share of the slope that a step gains"),
      .number("rho", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "by which steps shrink"),
      .number("nu", 1.4, .above(1), "by which penalties grow"),
      .choice("sketch", ["kaczmarz", "gaussian"], "single rows, or normal combinations"),
      .number("tol", 1e-8, .atLeast(0), "norm of (g, c) that ends it"),
      .integer("max_iter", 100, .atLeast(0), "iterations"),
      .integer("sketch_steps", 100_000, .within(1, 1_000_000), "projections between two looks at the direction"),
      Population.seed,
    ],
    inputs: [
      .constant("x0", "n", "where it starts"), .constant("multipliers0", "m", "multipliers to start with"),
      .result("x", "n", "the point"), .result("multipliers", "m", "lambda"), .result("iterations", "", "iterations"),
      .result("residual", "", "norm of (g, c)"), .result("eta1", "", "penalty at the end"),
      .result("eta2", "", "penalty at the end"), .result("delta", "", "accuracy at the end"),
    ],
    asks: [
      RequestKind(
        "problem", "the function and its constraints", given: [.given("point", "n", "where")],
        wanted: [
          .wanted("value", "", "f there"), .wanted("gradient", "n", "of f"), .wanted("constraints", "m", "c, 0 wanted"),
          .wanted("jacobian", "m, n", "of c"),
        ], takesNonfinite: true),
      RequestKind(
        "lagrangian_hessian", "the Hessian of f + lambda.c, symmetric",
        given: [.given("point", "n", "where"), .given("multipliers", "m", "lambda")],
        wanted: [.wanted("hessian", "n, n", "there")]),
    ],
    kept: [
      .kept("f", "", "f at x"), .kept("grad", "n", "its gradient"), .kept("c", "m", "constraints"),
      .kept("J", "m, n", "their Jacobian"), .kept("H", "n, n", "Hessian of the Lagrangian"),
      .kept("d", "both", "direction"), .kept("slope", "", "grad L.d"), .kept("step", "", "s"),
      .kept("trial", "n", "point that is tried"), .kept("trial_grad", "n", "gradient of f there"),
      .kept("trial_c", "m", "constraints there"), .kept("trial_jacobian", "m, n", "their Jacobian"),
    ])

  /// Of penalties; with `nu` 1.4 a third of these come to their limits.
  private static let mostTrials = 100
  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { ["both": sizes["n"] + sizes["m"]] }
  enum Phase: Int { case start, first, look, direct, trial, tried }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], l = try io["multipliers"], grad = try io["grad"], c = try io["c"], J = try io["J"]
    let trial = try io["trial"], d = try io["d"], n = x.count
    let tried = (grad: try io["trial_grad"], c: try io["trial_c"], J: try io["trial_jacobian"])
    switch phase {
    case .start:
      x.copy(try io["x0"])
      l.copy(try io["multipliers0"])
      (io.eta1, io.eta2, io.delta) = (h.eta1, h.eta2, h.delta)
      return .ask("problem", [x], [grad, c, J], then: .first)
    case .first:
      io.f = io.value
      return .go(.look)
    case .look:
      let g = gradient(grad, J, numbers(l))
      io.residual = (squares(g) + c.dot(c)).squareRoot()
      guard io.residual.isFinite, io.f.isFinite, J.isFinite else { return .done(.nonfinite) }
      if io.residual <= h.tol { return .done(.converged) }
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("lagrangian_hessian", [x, l], [try io["H"]], then: .direct)
    case .direct:
      try direct(io, gradient(grad, J, numbers(l)))
      io.step = 1
      return .go(.trial)
    case .trial:
      for i in 0..<n { trial.p[i] = x.p[i] + T(io.step) * d.p[i] }
      return .ask("problem", [trial], [tried.grad, tried.c, tried.J], then: .tried)
    case .tried:
      let old = numbers(l), moved = old.indices.map { old[$0] + io.step * Double(d.p[n + $0]) }
      let before = lagrangian(io, io.f, gradient(grad, J, old), c, old)
      let after = lagrangian(io, io.value, gradient(tried.grad, tried.J, moved), tried.c, moved)
      guard Trial.lowers(before, after, T.self, by: h.beta * io.step * io.slope) else {
        io.step *= h.rho
        return io.step < 0x1p-52 ? .done(.lineSearchFailed) : .go(.trial)
      }
      x.copy(trial)
      for i in 0..<l.count { l.p[i] = T(moved[i]) }
      (io.f, io.iterations) = (io.value, io.iterations + 1)
      grad.copy(tried.grad)
      c.copy(tried.c)
      J.copy(tried.J)
      return .go(.look)
    }
  }

  private func numbers<T: Real>(_ l: Vector<T>) -> [Double] { (0..<l.count).map { Double(l.p[$0]) } }
  /// ∇f + Jᵀ·λ.
  private func gradient<T: Real>(_ grad: Vector<T>, _ J: Vector<T>, _ l: [Double]) -> [Double] {
    let n = grad.count
    return (0..<n).map { j in l.indices.reduce(Double(grad.p[j])) { $0 + l[$1] * Double(J.p[$1 * n + j]) } }
  }
  private func squares(_ v: [Double]) -> Double { v.reduce(0) { $0 + $1 * $1 } }

  private func lagrangian<T: Real>(_ io: DriverIO<T>, _ f: Double, _ g: [Double], _ c: Vector<T>, _ l: [Double])
    -> Double
  {
    let product = l.indices.reduce(0.0) { $0 + l[$1] * Double(c.p[$1]) }
    return f + product + io.eta1 / 2 * c.dot(c) + io.eta2 / 2 * squares(g)
  }

  /// The direction and its slope; penalties and accuracy as they are accepted with it.
  private func direct<T: Real>(_ io: DriverIO<T>, _ g: [Double]) throws(Failure) {
    let J = try io["J"], c = try io["c"], given = try io["H"], d = try io["d"]
    let n = g.count, m = c.count, N = n + m
    try Memory.ask(8 &* (4 &* N &* N &+ 4 &* n &* n))
    let H = (0..<n * n).map { (Double(given.p[$0]) + Double(given.p[$0 % n * n + $0 / n])) / 2 }
    let jacobian = (0..<m * n).map { Double(J.p[$0]) }
    let least = try independence(jacobian, m, n), sizeH = squares(H).squareRoot()
    var B = H
    if m < n, try curvature(H, jacobian, m, n) < 1e-6 { for i in 0..<n { B[i * (n + 1)] += h.xi_b + sizeH } }
    let sizeB = squares(B).squareRoot(), psi: Double = 7 * max(sizeB * sizeB, 1) / (min(least, 1) * h.xi_b)
    let U = max(sizeB, sizeH, squares(jacobian).squareRoot())
    func bound() -> Double {
      let sum = 3 * U + 4 * io.eta2 * U * U + io.eta1 * U * U
      return (0.5 - h.beta) * io.eta2 / (2 * psi * psi * sum)
    }
    io.delta = min(io.delta, bound())
    var K = [Double](repeating: 0, count: N * N)
    for i in 0..<n {
      for j in 0..<n { K[i * N + j] = B[i * n + j] }
      for k in 0..<m { (K[i * N + n + k], K[(n + k) * N + i]) = (jacobian[k * n + i], jacobian[k * n + i]) }
    }
    let b = g.map { -$0 } + (0..<m).map { -Double(c.p[$0]) }
    let sizeb = squares(b).squareRoot(), sizeK = squares(K).squareRoot()
    // what does not depend on the penalties in ∇L: (g, c), and (H·g, J·g), and (Jᵀ·c, 0)
    let along =
      (0..<n).map { i in (0..<n).reduce(0.0) { $0 + H[i * n + $1] * g[$1] } }
      + (0..<m).map { k in (0..<n).reduce(0.0) { $0 + jacobian[k * n + $1] * g[$1] } }
    let across = (0..<n).map { i in (0..<m).reduce(0.0) { $0 + jacobian[$1 * n + i] * Double(c.p[$1]) } }
    var system = try Sketched(K, b, gaussian: h.is("sketch", "gaussian"), Population.key(h, io.iterations))
    for _ in 0..<ExactALSQP.mostTrials {
      system.solve(to: max(io.delta * sizeb / (sizeK * psi), 1e-13 * sizeb), h.integer("sketch_steps"))
      io.slope = (0..<N).reduce(0.0) {
        let a = -b[$1] + io.eta2 * along[$1] + ($1 < n ? io.eta1 * across[$1] : 0)
        return $0 + a * system.d[$1]
      }
      if io.eta1 > 1e8 || io.eta2 < 1e-8 || io.slope <= -io.eta2 / 2 * sizeb * sizeb { break }
      io.eta1 *= h.nu * h.nu
      io.eta2 /= h.nu
      io.delta = min(io.delta / pow(h.nu, 4), bound())
    }
    for i in 0..<N { d.p[i] = T(system.d[i]) }
  }

  /// The least eigenvalue of J·Jᵀ.
  private func independence(_ J: [Double], _ m: Int, _ n: Int) throws(Failure) -> Double {
    var product = [Double](repeating: 0, count: m * m)
    try LinearAlgebra.multiply(J, transposed: false, J, transposed: true, into: &product, m, m, n)
    let least = try LinearAlgebra.Eigen(product, m).values.last ?? 1
    let trace = (0..<m).reduce(0.0) { $0 + product[$1 * (m + 1)] }
    guard least > 1e-12 * trace else {
      throw Failure(
        Status.numeric,
        "exact_al_sqp: the constraints are not independent: the least eigenvalue of J J' is \(text(least)), "
          + "its trace \(text(trace))")
    }
    return least
  }
  /// The least eigenvalue of Zᵀ·H·Z.
  private func curvature(_ H: [Double], _ J: [Double], _ m: Int, _ n: Int) throws(Failure) -> Double {
    let free = n - m
    var square = [Double](repeating: 0, count: n * n)
    try LinearAlgebra.multiply(J, transposed: true, J, into: &square, n, n, m)
    let all = try LinearAlgebra.Eigen(square, n).vectors
    let Z = (0..<n * free).map { all[$0 / free * n + m + $0 % free] }
    var half = [Double](repeating: 0, count: n * free), reduced = [Double](repeating: 0, count: free * free)
    try LinearAlgebra.multiply(H, Z, into: &half, n, free, n)
    try LinearAlgebra.multiply(Z, transposed: true, half, into: &reduced, free, free, n)
    return try LinearAlgebra.Eigen(reduced, free).values.last ?? 0
  }
}

/// A symmetric system that is solved by projections on its rows, or on combinations of them, a little further at every
/// call.
private struct Sketched {
  private(set) var d: [Double]
  private let K: [Double], b: [Double], N: Int, gaussian: Bool, key: UInt64
  /// K·K, whose rows are how the residual changes with a projection; squared norms of the rows of K.
  private var square: [Double] = [], norms: [Double] = []
  private var residual: [Double], used = 0

  init(_ K: [Double], _ b: [Double], gaussian: Bool, _ key: UInt64) throws(Failure) {
    (self.K, self.b, N, self.gaussian, self.key) = (K, b, b.count, gaussian, key)
    d = [Double](repeating: 0, count: N)
    residual = b.map { -$0 }
    if gaussian { return }
    square = [Double](repeating: 0, count: N * N)
    try LinearAlgebra.multiply(K, K, into: &square, N, N, N)
    norms = (0..<N).map { square[$0 * (N + 1)] }
  }

  private func image(_ v: [Double]) -> [Double] {
    (0..<N).map { i in (0..<N).reduce(0.0) { $0 + K[i * N + $1] * v[$1] } }
  }

  private var size: Double { residual.reduce(0) { $0 + $1 * $1 }.squareRoot() }
  /// Until |K·d − b| is at most `tolerance`, or the steps are used up.
  mutating func solve(to tolerance: Double, _ steps: Int) {
    var left = steps
    var before = Double.infinity
    // (where it no longer falls it is rounding)
    while size > tolerance, size < before, left > 0 {
      before = size
      while size > tolerance, left > 0 {
        project()
        left -= 1
      }
      // what was added up has its own rounding
      residual = zip(image(d), b).map { $0 - $1 }
    }
  }

  private mutating func project() {
    if gaussian {
      let s = (0..<N).map { Random.normal(key, used * N + $0) }, a = image(s)
      let size = a.reduce(0) { $0 + $1 * $1 }
      used += 1
      guard size > 0 else { return }
      let step = zip(s, residual).reduce(0) { $0 + $1.0 * $1.1 } / size, change = image(a)
      for j in 0..<N {
        d[j] -= step * a[j]
        residual[j] -= step * change[j]
      }
      return
    }
    let u = 0.5 * erfc(-Random.normal(key, used) * 0.5.squareRoot())
    let i = min(N - 1, max(0, Int(u * Double(N))))
    used += 1
    guard norms[i] > 0 else { return }
    let step = residual[i] / norms[i]
    for j in 0..<N {
      d[j] -= step * K[i * N + j]
      residual[j] -= step * square[i * N + j]
    }
  }
}
