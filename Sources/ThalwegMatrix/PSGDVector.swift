import ThalwegCore

/// PSGD with a preconditioner of low rank plus diagonal on the model as one vector.
///
///     Q = (I + U·Vᵀ)·diag(d),  P = Qᵀ·Q;   fitted to pairs v, h: h = H·v (newton), or h = g + 2⁻¹³·mean|g|·v (whiten)
///     a = Q·h, b = Q⁻ᵀ·v:  U or V, by the sign of the first entry of v, and d move along the relative gradient of
///         hᵀ·P·h + vᵀ·P⁻¹·v
///     m ← μ·m + (1 − μ)·g;   u = P·m, its norm at most grad_clip_max_norm;   θ ← θ − lr·u
///
/// The vector is that of all tensors that have a gradient, one behind the other.
///
/// State    U, V, d, m (μ > 0); how many steps there were; within a step v, h and the gradient. `skipped_fits`: those
///          that were left out.
/// Differs  U and V are balanced before a fit with probability `balance_prob`. Before the first fit of an unset scale P
///          is the identity. The normalizers are `first` and `second` (1st and 2nd in the original). A fit whose
///          numbers are not finite, or that meets a singular matrix, is left out. A tensor that comes later
///          starts with the mean of d.
/// Source   Pooladzandi and Li, 2024, arXiv:2402.04553.
struct PSGDLRA: WholeRule {
  static let method = Method(
    "psgd_lra", .optimizer, "PSGD with a preconditioner of low rank plus diagonal on the model as one vector.",
    rule: """
      Q = (I + U V') diag(d), P = Q'Q;  fitted to v and h = Hv (newton) or h = g + noise*v (whiten), of all tensors
      one of U and V, and d, move along the relative gradient of h'P h + v'P^-1 v, by precond_lr over a bound of it
      m <- momentum*m + (1 - momentum)*g;  theta <- theta - lr*min(1, grad_clip_max_norm/|P m|)*P m
      """,
    source: "Pooladzandi, Li, 2024, arXiv:2402.04553",
    parameters: psgdParameters.map { $0.name == "lr" ? $0 : $0.forAll } + [
      .integer("rank", 10, .atLeast(0), "columns of U and V", live: false),
      .number("balance_prob", 0.01, .within(0, 1), "balancings a fit").forAll,
    ],
    slots: psgdSlots + [
      .apart("left", "U, one row an element"), .apart("right", "V, one row an element"),
      .apart("diagonal", "the diagonal d"),
    ], requests: "hessian_vector", needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = PSGDPair.slots(h, method)
    let n = list.count, r = h.integer("rank")
    (list[n - 3].count, list[n - 2].count, list[n - 1].count) = (r &* shape.count, r &* shape.count, shape.count)
    return list
  }
  static func scalars(_ h: Hyper) -> [Scalar] { PSGDPair.scalars }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    guard !shape.count.multipliedReportingOverflow(by: h.integer("rank")).overflow else {
      throw Failure(Status.shape, "psgd_lra: `rank` vectors of \(shape.count) elements are too many")
    }
    try LinearAlgebra.require()
  }
  static let registered = entry(PSGDLRA.self, source: { (h) throws(Failure) in PSGDModel(LowRankFactors(h), h) })

  init(_ h: Hyper, _ c: StepContext) {}
  func apply<T: Real>(_ t: Whole<T>) {}
}

/// U, V and d of the model.
private struct LowRankFactors: PSGDFactors {
  static var method: Method { PSGDLRA.method }
  let r: Int
  init(_ h: Hyper) { r = h.integer("rank") }
  var widths: [Int] { [r, r, 1] }
  var U = Dense([], 0, 0), V = Dense([], 0, 0), d: [Double] = []

  mutating func read(_ parts: [[Double]], _ n: Int) {
    (U, V, d) = (Dense(parts[0], n, r), Dense(parts[1], n, r), parts[2])
  }
  var parts: [[Double]] { [U.values, V.values, d] }
  func isFresh(_ i: Int) -> Bool { d[i] == 0 && (0..<r).allSatisfy { U.values[i * r + $0] == 0 } }
  mutating func start(_ range: Swift.Range<Int>, _ n: Int, _ draw: (_ apart: Int, _ column: Int) -> [Double]) {
    let scale = 1 / (Double(n) * Double(r + 10)).squareRoot()
    for j in 0..<r {
      let left = draw(3, j), right = draw(4, j)
      for (k, i) in range.enumerated() {
        U.values[i * r + j] = scale * left[k]
        V.values[i * r + j] = scale * right[k]
      }
    }
  }
  var diagonal: [Double] {
    get { d }
    set { d = newValue }
  }
  func times(_ x: [Double]) throws(Failure) -> [Double] {
    let y = zip(d, x).map { $0 * $1 }
    let once = add(y, try U.times(V.times(Dense(y), leftTransposed: true)))
    return zip(d, add(once, try V.times(U.times(Dense(once), leftTransposed: true)))).map { $0 * $1 }
  }
  mutating func fit(_ v: [Double], _ h: [Double], _ numbers: PSGDNumbers) throws(Failure) -> Bool {
    try fit(&U, &V, &d, v, h, numbers) && U.isFinite && V.isFinite && d.allSatisfy(\.isFinite)
  }
  private func add(_ a: [Double], _ b: Dense) -> [Double] { zip(a, b.values).map { $0 + $1 } }

  /// False where Vᵀ·U + I is singular.
  private func fit(
    _ U: inout Dense, _ V: inout Dense, _ d: inout [Double], _ v: [Double], _ h: [Double], _ numbers: PSGDNumbers
  ) throws(Failure) -> Bool {
    let n = v.count, r = U.columns
    let rate = numbers.rate, second = numbers.second, tiny = 0x1p-1022
    if r > 0, numbers.balances {
      let rho = (norm(U.values) / norm(V.values)).squareRoot()
      if rho > 0, rho.isFinite {
        U.values = U.values.map { $0 / rho }
        V.values = V.values.map { $0 * rho }
      }
    }
    let scaled = zip(d, h).map { $0 * $1 }
    let a = add(scaled, try U.times(V.times(Dense(scaled), leftTransposed: true)))
    let Ph = zip(d, add(a, try V.times(U.times(Dense(a), leftTransposed: true)))).map { $0 * $1 }
    let inverse = zip(v, d).map { $0 / $1 }
    var b = inverse, iP = zip(inverse, d).map { $0 / $1 }
    if r > 0 {
      var W = try V.times(U, leftTransposed: true)
      for i in 0..<r { W.values[i * r + i] += 1 }
      guard let y = solve(W.transposed, try U.times(Dense(inverse), leftTransposed: true)) else { return false }
      b = zip(inverse, try V.times(y).values).map { $0 - $1 }
      guard let z = solve(W, try V.times(Dense(b), leftTransposed: true)) else { return false }
      iP = zip(zip(b, try U.times(z).values).map { $0 - $1 }, d).map { $0 / $1 }
      let (u, left) = (U, v[0] >= 0)
      // both from the old U and V
      let (p, q) = left ? (V, W) : (U, W)
      let pa = try Dense(a).times(p, leftTransposed: true), pb = try Dense(b).times(p, leftTransposed: true)
      if left {
        let ra = try pa.times(q), rb = try pb.times(q)
        let step = bound(a, b, try p.times(pa.transposed), try p.times(pb.transposed))
        for i in 0..<n {
          for j in 0..<r { U.values[i * r + j] -= step * (a[i] * ra.values[j] - b[i] * rb.values[j]) }
        }
      } else {
        let wa = add(a, try V.times(pa.transposed)), wb = add(b, try V.times(pb.transposed))
        let step = bound(a, b, try u.times(pa.transposed), try u.times(pb.transposed))
        for i in 0..<n {
          for j in 0..<r { V.values[i * r + j] -= step * (wa[i] * pa.values[j] - wb[i] * pb.values[j]) }
        }
      }
    }
    var slope = [Double](repeating: 0, count: n), top = 0.0, least = Double.infinity
    for i in 0..<n {
      slope[i] = Ph[i] * h[i] - v[i] * iP[i]
      top = max(top, abs(slope[i]))
      let left = (Ph[i] * Ph[i] + v[i] * v[i] + tiny).squareRoot()
      let right = (h[i] * h[i] + iP[i] * iP[i] + tiny).squareRoot()
      least = min(least, 1 / left / right)
    }
    let step = rate * (second ? least : 1 / max(top, tiny))
    for i in 0..<n { d[i] -= step * d[i] * slope[i] }
    return true

    /// The step size of a factor: over the Frobenius norm of x·pxᵀ − y·pyᵀ, or over a bound of it.
    func bound(_ x: [Double], _ y: [Double], _ px: Dense, _ py: Dense) -> Double {
      if second { return rate / (norm(x) * norm(px.values) + norm(y) * norm(py.values) + tiny) }
      let (p, q) = (px.values, py.values), (xx, yy, xy) = (dot(x, x), dot(y, y), dot(x, y))
      let square = xx * dot(p, p) + yy * dot(q, q) - 2 * xy * dot(p, q)
      return rate / (max(square, 0).squareRoot() + tiny)
    }
  }
  private func solve(_ a: Dense, _ b: Dense) -> Dense? {
    do throws(Failure) {
      return Dense(try LinearAlgebra.solve(a.values, b.values, a.rows, b.columns), a.rows, b.columns)
    } catch { return nil }
  }
}

/// PSGD with a diagonal and an anti-diagonal on the model as one vector.
///
///     Q = diag(a) + antidiag(b),  P = Qᵀ·Q;  f reverses a vector;  v and h as in psgd_lra
///     q = a·h + b·f(h);   w = (f(a)·v − f(b)·f(v))/(a·f(a) − b·f(b))
///     A = q² − w²;   B = q·f(q) − w·f(w), its middle entry 0
///     a ← a − μ·(A·a + B·f(b));   b ← b − μ·(A·b + B·f(a)),   μ = precond_lr/max(q² + w²), or over the
///     largest of |A|, |B|
///     θ ← θ − lr·((a² + f(b²))·m + (a·b + f(a·b))·f(m)), clipped as in psgd_lra
///
/// State    a, b, m (momentum > 0); how many steps there were; within a step v, h and the gradient.
/// Differs  as psgd_lra.
/// Source   Pooladzandi and Li, 2024, arXiv:2402.04553.
struct PSGDXMat: WholeRule {
  static let method = Method(
    "psgd_xmat", .optimizer, "PSGD with a diagonal and an anti-diagonal on the model as one vector.",
    rule: """
      Q = diag(a) + antidiag(b), P = Q'Q;  q = Q h, w = Q^-T v, v and h of all tensors as in psgd_lra;  f reverses
      A = q^2 - w^2, B = q*f(q) - w*f(w);  a <- a - mu*(A*a + B*f(b));  b <- b - mu*(A*b + B*f(a))
      m <- momentum*m + (1 - momentum)*g;  theta <- theta - lr*min(1, grad_clip_max_norm/|P m|)*P m
      """,
    source: "Pooladzandi, Li, 2024, arXiv:2402.04553",
    parameters: psgdParameters.map { $0.name == "lr" ? $0 : $0.forAll },
    slots: psgdSlots + [.apart("antidiagonal", "the anti-diagonal b"), .apart("diagonal", "the diagonal a")],
    requests: "hessian_vector", needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { PSGDPair.slots(h, method) }
  static func scalars(_ h: Hyper) -> [Scalar] { PSGDPair.scalars }
  static let registered = entry(PSGDXMat.self, source: { (h) throws(Failure) in PSGDModel(CrossFactors(h), h) })

  init(_ h: Hyper, _ c: StepContext) {}
  func apply<T: Real>(_ t: Whole<T>) {}
}

/// a and b of the model.
private struct CrossFactors: PSGDFactors {
  static var method: Method { PSGDXMat.method }
  init(_ h: Hyper) {}
  var widths: [Int] { [1, 1] }
  var a: [Double] = [], b: [Double] = []

  mutating func read(_ parts: [[Double]], _ n: Int) { (b, a) = (parts[0], parts[1]) }
  var parts: [[Double]] { [b, a] }
  func isFresh(_ i: Int) -> Bool { a[i] == 0 && b[i] == 0 }
  mutating func start(_ range: Swift.Range<Int>, _ n: Int, _ draw: (_ apart: Int, _ column: Int) -> [Double]) {}
  var diagonal: [Double] {
    get { a }
    set { a = newValue }
  }
  func times(_ x: [Double]) throws(Failure) -> [Double] {
    let n = x.count
    return (0..<n).map { i in
      let j = n - 1 - i
      return (a[i] * a[i] + b[j] * b[j]) * x[i] + (i == j ? 0 : (a[i] * b[i] + a[j] * b[j]) * x[j])
    }
  }
  mutating func fit(_ v: [Double], _ h: [Double], _ numbers: PSGDNumbers) throws(Failure) -> Bool {
    let n = v.count, (a0, b0) = (a, b)
    var (A, B) = (a, a), top = 0.0, largest = 0.0
    func q(_ i: Int) -> Double { a0[i] * h[i] + b0[i] * h[n - 1 - i] }
    func w(_ i: Int) -> Double {
      let j = n - 1 - i
      return (a0[j] * v[i] - b0[j] * v[j]) / (a0[i] * a0[j] - b0[i] * b0[j])
    }
    for i in 0..<n {
      let j = n - 1 - i, (qi, wi) = (q(i), w(i))
      A[i] = qi * qi - wi * wi
      B[i] = i == j ? 0 : qi * q(j) - wi * w(j)
      top = max(top, qi * qi + wi * wi)
      largest = max(largest, abs(A[i]), abs(B[i]))
    }
    let mu = numbers.rate / max(numbers.second ? top : largest, 0x1p-1022)
    for i in 0..<n {
      let j = n - 1 - i
      a[i] -= mu * (A[i] * a0[i] + B[i] * b0[j])
      b[i] -= mu * (A[i] * b0[i] + B[i] * a0[j])
    }
    return a.allSatisfy(\.isFinite) && b.allSatisfy(\.isFinite)
  }
}

/// PSGD with a dense triangular preconditioner of the whole tensor as one vector; for tensors of a few thousand
/// elements.
///
///     Q upper triangular,  P = Qᵀ·Q;  a = Q·h, b = Q⁻ᵀ·v, v and h as in psgd_lra
///     Q ← Q − μ·triu(a·aᵀ − b·bᵀ)·Q,   μ = precond_lr/(aᵀ·a + bᵀ·b), or over a lower bound of the norm of the triangle
///     θ ← θ − lr·P·m, clipped as in psgd_lra
///
/// State    Q, m (momentum > 0); within a step v, h and the gradient (newton). `skipped_fits` (whiten): fits that were
///          left out for they would not have been finite, the most of a tensor.
/// Differs  as psgd_lra, but that every tensor has a preconditioner of its own (the same for one tensor: bind the model
///          as one vector). Tensors of more than 4096 elements are refused.
/// Source   Li, 2015, arXiv:1512.04202; Pooladzandi and Li, 2024, arXiv:2402.04553.
struct PSGDDense: WholeRule {
  static let most = 4096
  static let method = Method(
    "psgd_dense", .optimizer, "PSGD with a dense triangular preconditioner of the tensor as one vector.",
    rule: """
      Q upper triangular, P = Q'Q;  a = Q h, b = Q^-T v, v and h as in psgd_lra
      Q <- Q - mu*triu(a a' - b b') Q, mu = precond_lr over a bound of the norm
      m <- momentum*m + (1 - momentum)*g;  theta <- theta - lr*min(1, grad_clip_max_norm/|P m|)*P m
      """,
    source: "Li, 2015, arXiv:1512.04202; Pooladzandi, Li, 2024, arXiv:2402.04553", parameters: psgdParameters,
    slots: psgdSlots + [.half("factor", "the triangular Q")], requests: "hessian_vector", needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = PSGDPair.slots(h, method)
    list[list.count - 1].count = shape.count &* shape.count
    return list
  }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try LinearAlgebra.require()
    guard shape.count <= most else {
      throw Failure(
        Status.shape,
        "psgd_dense takes tensors of at most \(most) elements, got \(shape.count); use `route`, or psgd_lra")
    }
  }
  static var mayFail: Bool { true }
  /// Of each tensor: where there is a source, all have one set of numbers, which no tensor may write.
  static func scalars(_ h: Hyper) -> [Scalar] {
    h.is("fit", "whiten") ? [Scalar("skipped_fits", tells: true)] : []
  }
  static let registered = entry(
    PSGDDense.self, source: { (h) throws(Failure) in PSGDProbe.of(h, PSGDPair.slots(h, method).count) })

  let pair: PSGDPair
  init(_ h: Hyper, _ c: StepContext) { pair = PSGDPair(h, c) }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let k = pair.averages ? 1 : 0, n = t.count
    try Memory.ask(8 * n * (2 * n + 8))
    var Q = Dense(t.slots[k], n, n)
    func reset(_ scale: Double) { for i in 0..<n { Q.values[i * (n + 1)] = scale } }
    if pair.c.t == 1 { reset(pair.firstScale) }
    if let (v, h) = pair.sample(t, slot: k + 1) {
      if Q.values[0] == 0 { reset(pair.scale(v, h, t)) }
      let a = try Q.times(Dense(h)).values
      var b = v
      for j in 0..<n {
        b[j] /= Q.values[j * (n + 1)]
        for i in (j + 1)..<max(n, j + 1) { b[i] -= Q.values[j * n + i] * b[j] }
      }
      // triu(a·aᵀ − b·bᵀ)·Q row by row: sums over the rows below
      let mu = pair.rate / max(pair.second ? dot(a, a) + dot(b, b) : bound(a, b), 0x1p-1022)
      var (first, other) = ([Double](repeating: 0, count: n), [Double](repeating: 0, count: n)), new = Q
      for i in (0..<n).reversed() {
        for j in i..<n {
          first[j] += a[i] * Q.values[i * n + j]
          other[j] += b[i] * Q.values[i * n + j]
          new.values[i * n + j] -= mu * (a[i] * first[j] - b[i] * other[j])
        }
      }
      if new.isFinite { Q = new } else if !PSGDDense.scalars(pair.h).isEmpty { pair.c.scalars[0] += 1 }
    }
    try pair.move(t) { (x) throws(Failure) in
      Q.values[0] == 0 ? x : try Q.times(Q.times(Dense(x)), leftTransposed: true).values
    }
    for i in Q.values.indices { t.slots[k][i] = T(Q.values[i]) }
  }

  /// A lower bound of the spectral norm of triu(a·aᵀ − b·bᵀ): one step of the power method from its largest row or
  /// column.
  private func bound(_ a: [Double], _ b: [Double]) -> Double {
    let n = a.count
    func entry(_ i: Int, _ j: Int) -> Double { j < i ? 0 : a[i] * a[j] - b[i] * b[j] }
    var rows = [Double](repeating: 0, count: n), columns = rows, top = 0.0
    for i in 0..<n { for j in i..<n { top = max(top, abs(entry(i, j))) } }
    guard top > 0 else { return 0 }
    for i in 0..<n {
      for j in i..<n {
        let x = entry(i, j) / top
        rows[i] += x * x
        columns[j] += x * x
      }
    }
    func largest(_ x: [Double]) -> Int { x.indices.reduce(0) { x[$1] > x[$0] ? $1 : $0 } }
    let i = largest(rows), j = largest(columns), byColumn = columns[j] > rows[i]
    // A·x, or Aᵀ·x
    func times(_ x: [Double], _ transposed: Bool) -> [Double] {
      var y = [Double](repeating: 0, count: n)
      for i in 0..<n {
        for j in i..<n {
          if transposed { y[j] += entry(i, j) / top * x[i] } else { y[i] += entry(i, j) / top * x[j] }
        }
      }
      return y
    }
    let x = times((0..<n).map { byColumn ? entry($0, j) / top : entry(i, $0) / top }, byColumn)
    let length = norm(x)
    return length > 0 ? top * norm(times(x.map { $0 / length }, !byColumn)) : 0
  }
}
