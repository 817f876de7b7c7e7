import Glibc
import ThalwegCore

/// Convex pruning of a trained layer: the sparsest weights of a unit that give its outputs, as far as they are
/// positive.
///
///     O = {y > 0} (linear: all).  min |w|₁ with |(Xᵀw)_O − y_O| ≤ eps_ratio·|y| and (Xᵀw)_i ≤ v off O
///     ADMM: w1 = S_{1/rho}(w3 − u1);  w2 = P(Xᵀw3 − u2)
///           h1 = relax·w1 + (1 − relax)·w3,  h2 = relax·w2 + (1 − relax)·Xᵀw3
///           w3 = (I + XXᵀ)⁻¹(h1 + u1 + X(h2 + u2));  u1 += h1 − w3;  u2 += h2 − Xᵀw3
///
/// x (p, n) has one column a sample; a bias is a row of ones. The answer is w1, with exact zeros.
/// Ends     converged: |w1 − w3| and |w2 − Xᵀw3| ≤ tol·max(1, their sizes); max_iter; nonfinite.
/// Differs  the authors' script solves the penalised form, and cuts at 10⁻³. The over-relaxation is that of Eckstein
///          and Bertsekas, 1992, which converges on all of (0, 2): that of w3 before the shrinkage alone does not.
/// Source   Aghasi, Abdi, Romberg, 2020, arXiv:1806.06457.
struct NetTrim: Driver {
  static let method = Method.solver(
    "net_trim", "Convex pruning of a unit of a layer: the sparsest weights that give its outputs.",
    rule: """
      min |w|_1 with |(X'w)_O - y_O| <= eps_ratio |y|, (X'w)_i <= v off O, O = {y > 0};  ADMM
      w1 = S(w3 - u1; 1/rho);  w2 = P(X'w3 - u2);  w3 = (I + XX')^-1 (w1 + u1 + X (w2 + u2))
      relax: w3, u1, u2 take relax w1 + (1 - relax) w3 for w1, relax w2 + (1 - relax) X'w3 for w2
      """,
    source: "Aghasi, Abdi, Romberg, 2020, arXiv:1806.06457",
    parameters: [
      .number("eps_ratio", 0.02, .atLeast(0), "allowed residual over the norm of y"),
      .number("v", 0, .any, "bound on the other side"), .number("rho", 1, .above(0), "penalty"),
      .integer("max_iter", 1000, .atLeast(1), "most iterations"),
      .number("relax", 1, .between(0, 2, lowOpen: true, highOpen: true), "over-relaxation"),
      .number("tol", 1e-6, .atLeast(0), "residuals that end it"),
      .flag("linear", false, "no ReLU: all outputs are fitted"),
    ],
    inputs: [
      .constant("x", "p, n", "inputs of the layer, one column a sample"), .constant("y", "n", "outputs of the unit"),
      .result("w", "p", "the weights"), .result("iterations", "", "iterations"),
      .result("residual", "", "|w1 - w3| and |w2 - X'w3| together"),
    ],
    kept: [
      .kept("w3", "p", "w3"), .kept("u1", "p", "u1"), .kept("w2", "n", "w2"), .kept("u2", "n", "u2"),
      .kept("outputs", "n", "X'w3"), .kept("right", "p", "right side"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], y = try io["y"], w = try io["w"], w3 = try io["w3"], u1 = try io["u1"], w2 = try io["w2"]
    let u2 = try io["u2"], out = try io["outputs"], right = try io["right"]
    let p = w.count, n = y.count, size = y.norm
    if size == 0 { return .done(.converged) }
    try Memory.ask(32 &* p &* p)
    var gram = [T](repeating: 0, count: p * p)
    try LinearAlgebra.gram(x.p, into: &gram, p, n)
    var system = gram.map { Double($0) }, identity = [Double](repeating: 0, count: p * p)
    for i in 0..<p { (system[i * p + i], identity[i * p + i]) = (system[i * p + i] + 1, 1) }
    let inverse = try LinearAlgebra.solvePositive(system, identity, p, p)
    while true {
      for i in 0..<p { w.p[i] = T(shrunk(Double(w3.p[i]) - Double(u1.p[i]), by: 1 / h.rho)) }
      w2.set(1, out, -1, u2)
      constrain(w2, y, h.eps_ratio * size)
      for (u, new, old) in [(u1, w, w3), (u2, w2, out)] {
        u.add(new, times: h.relax)
        u.add(old, times: 1 - h.relax)
      }
      right.copy(u1)
      try LinearAlgebra.multiply(x.p, u2.p, into: right.p, p, 1, n, beta: 1)
      for i in 0..<p { w3.p[i] = T((0..<p).reduce(0.0) { $0 + inverse[i * p + $1] * Double(right.p[$1]) }) }
      try LinearAlgebra.multiply(x.p, transposed: true, w3.p, into: out.p, n, 1, p)
      u1.add(w3, times: -1)
      u2.add(out, times: -1)
      io.iterations += 1
      let first = w.distance(w3), second = w2.distance(out)
      io.residual = (first * first + second * second).squareRoot()
      guard io.residual.isFinite else { return .done(.nonfinite) }
      if first <= h.tol * max(1, w.norm), second <= h.tol * max(1, w2.norm) { return .done(.converged) }
      if io.iterations >= h.max_iter { return .done(.maxIter) }
    }
  }

  /// A ball on O, at most v elsewhere.
  private func constrain<T: Real>(_ w: Vector<T>, _ y: Vector<T>, _ radius: Double) {
    var square = 0.0
    let fitted = (0..<y.count).map { h.linear || y.p[$0] > 0 }
    for i in 0..<y.count where fitted[i] {
      let d = Double(w.p[i]) - Double(y.p[i])
      square += d * d
    }
    let factor = square.squareRoot() <= radius ? 1 : radius / square.squareRoot()
    for i in 0..<y.count {
      if fitted[i] {
        if factor < 1 { w.p[i] = T(Double(y.p[i]) + factor * (Double(w.p[i]) - Double(y.p[i]))) }
      } else {
        w.p[i] = min(w.p[i], T(h.v))
      }
    }
  }
}

/// Predictive sparse decomposition: sparse codes of a dictionary, and an encoder that learns to foresee them.
///
///     energy ½|y − B·z|² + lam·|z|₁ + alpha/2·|z − F(y)|²,  F(y) = gain·tanh(D·y + bias)
///     z by FISTA from F(y), L = |B|₂² + alpha;  then one gradient step of the mean energy in B, D, bias, gain, and the
///     columns of B over their norms
///
/// y (s, n) are samples in rows. A column of zeros stays.
/// Ends     max_iter.
/// Differs  the paper writes alpha without the half.
/// Source   Kavukcuoglu, Ranzato, LeCun, 2010, arXiv:1010.3467.
struct SparseCodingPSD: Driver {
  static let method = Method.solver(
    "sparse_coding_psd", "Predictive sparse decomposition: sparse codes, and an encoder that learns to foresee them.",
    rule: """
      energy |y - B z|^2/2 + lam |z|_1 + alpha/2 |z - F(y)|^2,  F = gain tanh(D y + bias)
      z by FISTA from F(y);  one gradient step in B, D, bias, gain;  columns of B over their norms
      """,
    source: "Kavukcuoglu, Ranzato, LeCun, 2010, arXiv:1010.3467",
    parameters: [
      .number("lam", 0.5, .atLeast(0), "coefficient of the sparsity"),
      .number("alpha", 1, .atLeast(0), "coefficient of the prediction"),
      .integer("max_iter", 100, .atLeast(0), "steps of inference"),
      .number("lr", 0.01, .atLeast(0), "step of learning"),
    ],
    inputs: [
      .constant("y", "s, n", "samples"), .constant("dictionary", "n, k", "B"), .constant("encoder", "k, n", "D"),
      .constant("bias", "k", "of the encoder"), .constant("gain", "k", "of the encoder"),
      .result("z", "s, k", "codes"), .result("new_dictionary", "n, k", "B after the step"),
      .result("new_encoder", "k, n", "D after the step"), .result("new_bias", "k", "bias after the step"),
      .result("new_gain", "k", "gain after the step"), .result("value", "", "mean energy at the codes"),
      .result("iterations", "", "steps of inference"),
      .result("residual", "", "L*|z - the proximal gradient step from z|, L = |B|^2 + alpha, the largest"),
    ], kept: [.kept("forecast", "s, k", "F(y)")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let samples = try io["y"], b = try io["dictionary"], d = try io["encoder"], bias = try io["bias"]
    let gain = try io["gain"], codes = try io["z"], forecast = try io["forecast"]
    let s = samples.rows, n = b.rows, k = bias.count
    try Memory.ask(8 &* (6 &* k + 3 &* n + 2 &* n &* k))
    let top = try LinearAlgebra.SVD(b.p, n, k).s.first ?? 0
    let curvature = top * top + h.alpha
    var dB = [Double](repeating: 0, count: n * k), dD = dB, dBias = [Double](repeating: 0, count: k), dGain = dBias
    for i in 0..<s {
      let y = samples.row(i), z = codes.row(i), f = forecast.row(i)
      let hidden = (0..<k).map { j in tanh(d.row(j).dot(y) + Double(bias.p[j])) }
      for j in 0..<k { f.p[j] = T(Double(gain.p[j]) * hidden[j]) }
      let foreseen = (0..<k).map { Double(gain.p[$0]) * hidden[$0] }, code = infer(b, y, foreseen, curvature)
      let rest = residual(b, y, code)
      if curvature > 0 {
        let moves = zip(code, step(b, y, foreseen, code, curvature)).map { $0 - $1 }
        io.residual = max(io.residual, curvature * Flat.norm(moves, k))
      }
      var sparse = 0.0, apart = 0.0
      for j in 0..<k {
        let miss = code[j] - Double(gain.p[j]) * hidden[j], slope = -h.alpha * miss
        z.p[j] = T(code[j])
        sparse += abs(code[j])
        apart += miss * miss
        dGain[j] += slope * hidden[j]
        let inner = slope * Double(gain.p[j]) * (1 - hidden[j] * hidden[j])
        dBias[j] += inner
        for l in 0..<n {
          dD[j * n + l] += inner * Double(y.p[l])
          dB[l * k + j] -= rest[l] * code[j]
        }
      }
      io.value += (rest.reduce(0) { $0 + $1 * $1 } / 2 + h.lam * sparse + h.alpha / 2 * apart) / Double(s)
    }
    io.iterations = h.max_iter
    let rate = h.lr / Double(s)
    let newB = try io["new_dictionary"], newD = try io["new_encoder"], newBias = try io["new_bias"]
    let newGain = try io["new_gain"]
    for j in 0..<k {
      newBias.p[j] = T(Double(bias.p[j]) - rate * dBias[j])
      newGain.p[j] = T(Double(gain.p[j]) - rate * dGain[j])
      for l in 0..<n { newD.p[j * n + l] = T(Double(d.p[j * n + l]) - rate * dD[j * n + l]) }
      let column = (0..<n).map { l in Double(b.p[l * k + j]) - rate * dB[l * k + j] }
      let norm = column.reduce(0) { $0 + $1 * $1 }.squareRoot()
      for l in 0..<n { newB.p[l * k + j] = T(norm == 0 ? 0 : column[l] / norm) }
    }
    return .done(.maxIter)
  }

  /// y − B·z.
  private func residual<T: Real>(_ b: Vector<T>, _ y: Vector<T>, _ z: [Double]) -> [Double] {
    (0..<y.count).map { l in z.indices.reduce(Double(y.p[l])) { $0 - Double(b.p[l * z.count + $1]) * z[$1] } }
  }
  private func infer<T: Real>(_ b: Vector<T>, _ y: Vector<T>, _ f: [Double], _ curvature: Double) -> [Double] {
    var z = f, ahead = f, t = 1.0
    if curvature == 0 { return z }
    for _ in 0..<h.integer("max_iter") {
      let last = z, next = (1 + (1 + 4 * t * t).squareRoot()) / 2
      z = step(b, y, f, ahead, curvature)
      for j in z.indices { ahead[j] = z[j] + (t - 1) / next * (z[j] - last[j]) }
      t = next
    }
    return z
  }
  /// The proximal gradient step from z.
  private func step<T: Real>(
    _ b: Vector<T>, _ y: Vector<T>, _ f: [Double], _ z: [Double], _ curvature: Double
  ) -> [Double] {
    let rest = residual(b, y, z), k = z.count
    return (0..<k).map { j in
      var slope = h.alpha * (z[j] - f[j])
      for l in 0..<y.count { slope -= Double(b.p[l * k + j]) * rest[l] }
      return shrunk(z[j] - slope / curvature, by: h.lam / curvature)
    }
  }
}

/// Robust nonnegative factorisation: rows that fit badly count little, and columns of the second factor are sparse.
///
///     min Σ_i |(X − M·A)_i| + lam·Σ_n Σ_k A_kn^p_n,  M, A ≥ 0;   d_i = 1/(2·max(|(X − M·A)_i|, eps))
///     A ← A·((d⊙M)ᵀX)/((d⊙M)ᵀMA + lam/2·p_n·max(A, eps)^(p_n − 1));   M ← M·(XAᵀ)/(MAAᵀ)
///
/// Rows are channels. `p` may be given for each column.
/// Errors   TW_ERROR_RANGE: a negative factor, or an exponent outside (0, 1].
/// Ends     max_iter.
/// Differs  the exponents that the paper learns from A are the caller's.
/// Source   Zhu, Wang, Fan, Meng, Xiang, Pan, 2014.
struct NMFRobust: Driver {
  static let method = Method.solver(
    "nmf_robust", "Robust nonnegative factorisation with column-wise sparsity.",
    rule: """
      min sum_i |(X - M A)_i| + lam sum A_kn^p_n;  d_i = 1/(2 max(|(X - M A)_i|, eps))
      A <- A ((d M)'X)/((d M)'M A + lam/2 p_n max(A, eps)^(p_n - 1));  M <- M (X A')/(M A A')
      """,
    source: "Zhu, Wang, Fan, Meng, Xiang, Pan, 2014",
    parameters: [
      .number("lam", 0.1, .atLeast(0), "coefficient of the sparsity"),
      .number("p", 0.5, .between(0, 1, lowOpen: true, highOpen: false), "exponent of all columns"),
      .integer("max_iter", 100, .atLeast(0), "sweeps"), .number("eps", 1e-12, .above(0), "floor"),
    ],
    inputs: [
      .constant("x", "n, m", "data, one row a channel"), .constant("m0", "n, k", "first factor to start with"),
      .constant("a0", "k, m", "second factor to start with"),
      .constant("exponents", "m", "exponent of each column", optional: true),
      .result("factor", "n, k", "M"), .result("coefficients", "k, m", "A"), .result("iterations", "", "sweeps"),
      .result("value", "", "the objective"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let n = io.sizes["n"], m = io.sizes["m"], k = io.sizes["k"]
    try Memory.ask(8 &* (4 &* n &* m + 3 &* n &* k + 3 &* k &* m + k &* k + 2 &* m))
    func wide(_ v: Vector<T>) -> [Double] { (0..<v.count).map { Double(v.p[$0]) } }
    let x = wide(try io["x"])
    var f = wide(try io["m0"]), a = wide(try io["a0"]), p = [Double](repeating: h.p, count: m)
    if let given = io.optional("exponents") { p = wide(given) }
    guard f.allSatisfy({ $0 >= 0 }), a.allSatisfy({ $0 >= 0 }) else {
      throw Failure(Status.range, "`m0` and `a0` must not be negative")
    }
    guard p.allSatisfy({ $0 > 0 && $0 <= 1 }) else { throw Failure(Status.range, "`exponents` must be in (0, 1]") }
    var product = [Double](repeating: 0, count: n * m)
    /// The norms of the rows of X − M·A.
    func misses() throws(Failure) -> [Double] {
      try LinearAlgebra.multiply(f, a, into: &product, n, m, k)
      return (0..<n).map { i in
        (0..<m).reduce(0.0) { sum, j in
          let d = x[i * m + j] - product[i * m + j]
          return sum + d * d
        }.squareRoot()
      }
    }
    var top = [Double](repeating: 0, count: k * m), bottom = top
    var upper = [Double](repeating: 0, count: n * k), lower = upper, gram = [Double](repeating: 0, count: k * k)
    for _ in 0..<h.integer("max_iter") {
      let weights = try misses().map { 1 / (2 * max($0, h.eps)) }
      let weighted = (0..<(n * k)).map { f[$0] * weights[$0 / k] }
      try LinearAlgebra.multiply(weighted, transposed: true, x, into: &top, k, m, n)
      try LinearAlgebra.multiply(weighted, transposed: true, product, into: &bottom, k, m, n)
      for i in a.indices {
        let q = p[i % m], below = bottom[i] + h.lam / 2 * q * pow(max(a[i], h.eps), q - 1)
        a[i] = below > 0 ? a[i] * top[i] / below : 0
      }
      try LinearAlgebra.multiply(x, transposed: false, a, transposed: true, into: &upper, n, k, m)
      try LinearAlgebra.multiply(a, transposed: false, a, transposed: true, into: &gram, k, k, m)
      try LinearAlgebra.multiply(f, gram, into: &lower, n, k, k)
      for i in f.indices { f[i] = lower[i] > 0 ? f[i] * upper[i] / lower[i] : 0 }
      io.iterations += 1
    }
    io.value = try misses().reduce(0, +) + h.lam * a.indices.reduce(0.0) { $0 + pow(a[$1], p[$1 % m]) }
    let factor = try io["factor"], coefficients = try io["coefficients"]
    for i in f.indices { factor.p[i] = T(f[i]) }
    for i in a.indices { coefficients.p[i] = T(a[i]) }
    return .done(.maxIter)
  }
}

/// Soft threshold of one number; NaN stays.
func shrunk(_ x: Double, by k: Double) -> Double { x > k ? x - k : x < -k ? x + k : x.isNaN ? x : 0 }
