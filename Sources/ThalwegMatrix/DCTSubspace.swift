import Glibc
import ThalwegCore

/// AdamW in the columns of the discrete cosine transform that the gradient uses most.
///
///     θ ← θ·(1 − lr·wd);   A = g + e (error_feedback)
///     every `update_proj_gap` steps, and first: S = A·Q (right, where rows ≥ columns) or Qᵀ·A, Q the orthonormal DCT;
///     the r columns (rows) of S with the largest ℓ-norm are kept, a of them; else a = A·Q_r;   e ← A − a·Q_rᵀ
///     at a new choice the moments of an index that stays move to its new place, others begin at 0 (rotate_subspace)
///     m, v from a as in Adam;   u = m/(√v + ε·√(1 − β₂ᵗ));   θ ← θ − lr·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·u·Q_rᵀ
///
/// State    the indices, m and v of the chosen columns, e.
/// Differs  one basis a side length; ties go to the lower index, indices ascend. Tensors that are no matrices, and
///          those with a side of `max_shape` or more, take plain AdamW.
/// Source   Modoranu et al., 2025, arXiv:2505.17967.
struct DCTAdamW: WholeRule {
  static let method = Method(
    "dct_adamw", .optimizer, "AdamW in the columns of the discrete cosine transform that the gradient uses most.",
    rule: """
      theta <- theta*(1 - lr*weight_decay);  A = g + e (error_feedback);  S = A Q, or Q'A, Q the orthonormal DCT
      every update_proj_gap steps the rank columns (rows) of S with the largest norm are chosen; a = A Q_r
      e <- A - a Q_r';  m, v from a as in Adam, those of new columns begin at 0
      theta <- theta - lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/(sqrt(v) + eps*sqrt(1 - beta2^t)) Q_r'
      tensors that are no matrices (kernels, too): all of g as in AdamW
      """,
    source: "Modoranu, Safaryan, Schultheis, Ryabinin, Chumachenko, Alistarh, 2025, arXiv:2505.17967",
    parameters: [
      .lr(1e-3), .integer("rank", nil, .atLeast(1), "columns kept, at most the smaller side", live: false),
      .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"), .eps(1e-8),
      .weightDecay(0, "decoupled weight decay"),
      .integer("update_proj_gap", 1, .atLeast(1), "steps between choices"),
      .flag("rotate_subspace", true, "the moments follow their columns"),
      .flag("error_feedback", false, "what the columns miss is added to the next gradient", live: false),
      .choice("ell", ["1", "2"], "norm that ranks the columns"), DCT.basis,
      .integer("max_shape", 32_000, .atLeast(1), "from this side on plain AdamW", live: false),
    ],
    slots: [
      .moment("exp_avg", "first moment m of the columns"), .square("exp_avg_sq", "second moment v of the columns"),
      Slot("indices", "the chosen columns, ascending"), Slot("error", "what the columns missed"),
    ], needsFinite: true)

  private static func plan(_ h: Hyper, _ shape: Shape) -> DCT? {
    guard shape.ndim == 2, max(shape.rows, shape.columns) < h.integer("max_shape"), shape.count > 0 else { return nil }
    return DCT(h, shape.rows, shape.columns)
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let plan = plan(h, shape)
    var list = method.slots
    (list[0].count, list[1].count, list[2].count) = (
      plan?.low ?? shape.count, plan?.low ?? shape.count, plan?.rank ?? 0
    )
    if plan == nil { list[3].count = 0 }
    return h.error_feedback ? list : Array(list.prefix(3))
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try LinearAlgebra.require() }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    plan(h, shape).map { $0.space(size) &+ aligned($0.low &* size) } ?? 0
  }

  let h: Hyper
  let t: Int
  let beta1, beta2, eps, scale: Double
  init(_ h: Hyper, _ c: StepContext) {
    (self.h, t, beta1, beta2) = (h, c.t, h.beta1, h.beta2)
    let root = (1 - power(beta2, t)).squareRoot()
    (eps, scale) = (h.eps * root, root / (1 - power(beta1, t)))
  }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    guard let plan = DCTAdamW.plan(h, w.shape) else { return adam(w, w.v, w.count) }
    let a = (w.workspace + plan.space(MemoryLayout<T>.stride)).assumingMemoryBound(to: T.self)
    let feedback = h.error_feedback as Bool, indices = w.slots[2]
    if feedback { Flat.add(w.slots[3], times: 1, into: w.v, w.count) }
    if t == 1 || t % max(1, h.integer("update_proj_gap")) == 0 {
      let old = (0..<plan.rank).map { plan.index(indices[$0]) }
      let new = try plan.choose(w.v, w.workspace) ?? (t == 1 ? Array(0..<plan.rank) : old)
      if t > 1, h.rotate_subspace {
        for slot in [w.slots[0], w.slots[1]] { rotate(slot, plan, from: old, to: new, copy: a) }
      }
      for k in 0..<plan.rank { indices[k] = T(new[k]) }
    }
    let chosen = (0..<plan.rank).map { plan.index(indices[$0]) }
    try plan.project(w.v, chosen, into: a, w.workspace)
    if feedback {
      w.slots[3].update(from: w.v, count: w.count)
      try plan.back(a, into: w.slots[3], w.workspace, alpha: -1, beta: 1)
    }
    adam(w, a, plan.low)
    try plan.back(a, into: w.v, w.workspace)
  }

  /// Column (or row) k of the moments is that of the k-th index.
  private func rotate<T: Real>(
    _ m: UnsafeMutablePointer<T>, _ plan: DCT, from old: [Int], to new: [Int], copy: UnsafeMutablePointer<T>
  ) {
    copy.update(from: m, count: plan.low)
    let r = plan.rank, lines = plan.low / r
    for (k, index) in new.enumerated() {
      let was = old.firstIndex(of: index)
      for i in 0..<lines {
        let (to, from) = plan.right ? (i &* r &+ k, i &* r) : (k &* lines &+ i, i)
        m[to] = was.map { copy[plan.right ? from &+ $0 : $0 &* lines &+ i] } ?? 0
      }
    }
  }

  /// x: the gradient, then the update.
  private func adam<T: Real>(_ w: Whole<T>, _ x: UnsafeMutablePointer<T>, _ n: Int) {
    let (m, v) = (w.slots[0], w.slots[1])
    let (k1, t1, k2, t2, e, f) = (T(beta1), T(1 - beta1), T(beta2), T(1 - beta2), T(eps), T(scale))
    for i in 0..<n {
      m[i] = k1 * m[i] + t1 * x[i]
      v[i] = k2 * v[i] + t2 * x[i] * x[i]
      x[i] = m[i] == 0 ? 0 : f * m[i] / (v[i].squareRoot() + e)
    }
  }
}

/// Trion: the momentum's largest columns in the discrete cosine transform, orthogonalised; what was applied leaves the
/// momentum.
///
///     M ← M + g;   a = the r columns (rows) of M·Q (Qᵀ·M) with the largest 1-norm;   M ← M − (1 − μ)·a·Q_rᵀ
///     θ ← θ·(1 − lr·wd) − lr·s·NewtonSchulz(a)·Q_rᵀ,   s as in muon
///
/// State    M.
/// Differs  the basis lies on the shorter side, and its transform is the same for wide and tall matrices (the authors'
///          code takes the other one for wide ones). Tensors of rank above 2 count as (out, rest).
/// Source   Modoranu et al., 2025, arXiv:2505.17967.
struct Trion: WholeRule {
  static let method = Method(
    "trion", .optimizer, "Trion: Muon on the momentum's largest columns in the discrete cosine transform.",
    rule: """
      M <- M + g;  a = the rank columns (rows) of M Q (or Q'M) with the largest 1-norm, Q the orthonormal DCT
      M <- M - (1 - momentum)*a Q_r'
      theta <- theta*(1 - lr*weight_decay) - lr*s*newton_schulz(a) Q_r', s as in muon
      """,
    source: "Modoranu, Safaryan, Schultheis, Ryabinin, Chumachenko, Alistarh, 2025, arXiv:2505.17967",
    parameters: [
      .lr(0.02), .integer("rank", nil, .atLeast(1), "columns kept, at most the smaller side", live: false),
      .rate("momentum", 0.95, "share of what was applied that stays"), .weightDecay(0, "decoupled weight decay"),
      .choice("scaling", ["original", "match_rms_adamw", "spectral", "none"], "the factor s of the shape"),
      .integer("ns_steps", 5, .within(1, 99), "Newton-Schulz iterations"),
      .list("ns_coefficients", NewtonSchulz.simple, "a, b, c of the polynomial, or three numbers for each iteration"),
      .eps(1e-7, "floor of the norm that divides", .above(0)),
      .choice("eps_mode", ["clamp", "add"], "divide by max(norm, eps), or by norm + eps"), DCT.basis,
      NewtonSchulz.precision,
    ],
    slots: [.moment("momentum_buffer", "the momentum M")], needsFinite: true,
    validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "trion") })

  private static func plan(_ h: Hyper, _ shape: Shape) -> DCT { DCT(h, shape.rows, shape.columns) }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "trion") }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    let plan = plan(h, shape)
    return aligned(plan.space(size)) &+ aligned(plan.low &* size)
      &+ NewtonSchulz.space(h, plan.shape.0, plan.shape.1, size)
  }

  let h: Hyper
  let momentum, factor: Double
  init(_ h: Hyper, _ c: StepContext) {
    (self.h, momentum) = (h, h.momentum)
    let out = Double(c.rows), fanIn = Double(c.columns)
    factor =
      h.is("scaling", "original")
      ? max(1, out / fanIn).squareRoot()
      : h.is("scaling", "match_rms_adamw")
        ? 0.2 * max(out, fanIn).squareRoot() : h.is("scaling", "spectral") ? (out / fanIn).squareRoot() : 1
  }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let plan = Trion.plan(h, w.shape), size = MemoryLayout<T>.stride, M = w.slots[0]
    let a = (w.workspace + aligned(plan.space(size))).assumingMemoryBound(to: T.self)
    Flat.add(w.v, times: 1, into: M, w.count)
    guard let chosen = try plan.choose(M, w.workspace) else { return w.v.update(repeating: 0, count: w.count) }
    try plan.project(M, chosen, into: a, w.workspace)
    try plan.back(a, into: M, w.workspace, alpha: momentum - 1, beta: 1)
    let space = w.workspace + aligned(plan.space(size)) + aligned(plan.low &* size)
    try NewtonSchulz(h).apply(a, plan.shape.0, plan.shape.1, scale: factor, space)
    try plan.back(a, into: w.v, w.workspace)
  }
}

/// Columns of the orthonormal discrete cosine transform of the shorter side, from a table of cosines: the matrix itself
/// is never whole.
struct DCT {
  static let basis = Parameter.choice("basis", ["dct2", "dct3"], "the transform, or its transpose", live: false)
  /// Columns at a time.
  private static let panel = 128

  let rows: Int, columns: Int, right: Bool, n: Int, rank: Int
  private let transposed: Bool, squares: Bool

  init(_ h: Hyper, _ rows: Int, _ columns: Int) {
    (self.rows, self.columns, right, n) = (rows, columns, rows >= columns, min(rows, columns))
    rank = min(h.integer("rank"), n)
    (transposed, squares) = (h.is("basis", "dct3"), h.is("ell", "2"))
  }
  /// Shape and elements of the projected matrix.
  var shape: (Int, Int) { right ? (rows, rank) : (rank, columns) }
  var low: Int { shape.0 &* shape.1 }
  private var width: Int { max(min(DCT.panel, n), rank) }
  /// Bytes: columns of the transform, and a product with a panel of them.
  func space(_ size: Int) -> Int {
    aligned(n &* width &* size) &+ aligned(min(DCT.panel, n) &* max(rows, columns) &* size)
  }

  /// An index that was kept as a number.
  func index<T: Real>(_ x: T) -> Int { x > 0 ? min(Int(min(Double(x), Double(n))), n - 1) : 0 }

  /// The table cos(π·k/2n), k < 4n, times √(2/n).
  private var cosines: [Double] {
    let scale = (2 / Double(n)).squareRoot()
    return (0..<(4 * n)).map { scale * cos(Double.pi * Double($0) / Double(2 * n)) }
  }
  /// Columns `list` of the transform, (n, list.count).
  private func fill<T: Real>(_ q: UnsafeMutablePointer<T>, _ list: [Int], _ cosines: [Double]) {
    let wide = list.count, first = 0.5.squareRoot()
    for i in 0..<n {
      for (k, j) in list.enumerated() {
        let (row, column) = transposed ? (j, i) : (i, j)
        let x = cosines[column &* (2 &* row &+ 1) % (4 &* n)]
        q[i &* wide &+ k] = T(column == 0 ? first * x : x)
      }
    }
  }

  /// The columns with the largest norms, ascending; nil where the matrix is 0.
  func choose<T: Real>(_ x: UnsafePointer<T>, _ space: UnsafeMutableRawPointer) throws(Failure) -> [Int]? {
    guard Flat.norm(x, rows &* columns) > 0 else { return nil }
    let q = space.assumingMemoryBound(to: T.self)
    let s = (space + aligned(n &* width &* MemoryLayout<T>.stride)).assumingMemoryBound(to: T.self)
    let table = cosines
    var scores = [Double](repeating: 0, count: n)
    for first in stride(from: 0, to: n, by: DCT.panel) {
      let list = Array(first..<min(first + DCT.panel, n)), wide = list.count
      fill(q, list, table)
      if right {
        try LinearAlgebra.multiply(x, q, into: s, rows, wide, columns)
      } else {
        try LinearAlgebra.multiply(q, transposed: true, x, into: s, wide, columns, rows)
      }
      for k in 0..<wide {
        var sum = 0.0
        for i in 0..<max(rows, columns) {
          let y = Double(right ? s[i &* wide &+ k] : s[k &* columns &+ i])
          sum += squares ? y * y : abs(y)
        }
        scores[first + k] = sum
      }
    }
    let order = scores.indices.sorted { scores[$0] > scores[$1] || (scores[$0] == scores[$1] && $0 < $1) }
    return order.prefix(rank).sorted()
  }

  /// a = x·Q_r, or Q_rᵀ·x; the columns stay in the work space for `back`.
  func project<T: Real>(
    _ x: UnsafePointer<T>, _ chosen: [Int], into a: UnsafeMutablePointer<T>, _ space: UnsafeMutableRawPointer
  ) throws(Failure) {
    let q = space.assumingMemoryBound(to: T.self)
    fill(q, chosen, cosines)
    if right {
      try LinearAlgebra.multiply(x, q, into: a, rows, rank, columns)
    } else {
      try LinearAlgebra.multiply(q, transposed: true, x, into: a, rank, columns, rows)
    }
  }
  /// x ← alpha·a·Q_rᵀ (or Q_r·a) + beta·x.
  func back<T: Real>(
    _ a: UnsafePointer<T>, into x: UnsafeMutablePointer<T>, _ space: UnsafeMutableRawPointer, alpha: Double = 1,
    beta: Double = 0
  ) throws(Failure) {
    let q = space.assumingMemoryBound(to: T.self)
    if right {
      try LinearAlgebra.multiply(
        a, transposed: false, q, transposed: true, into: x, rows, columns, rank, alpha: alpha, beta: beta)
    } else {
      try LinearAlgebra.multiply(q, a, into: x, rows, columns, rank, alpha: alpha, beta: beta)
    }
  }
}
