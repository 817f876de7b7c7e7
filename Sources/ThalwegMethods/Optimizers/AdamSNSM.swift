import ThalwegCore

/// Adam with subset norms and subspace momentum: one second moment a subset of a matrix, and momentum in few
/// directions.
///
///     s = Σ g² over each subset;   v ← β₂·v + (1 − β₂)·s  (v + s when β₂ = 1)
///     without rank: m ← β₁·m + (1 − β₁)·g, num = m
///     with rank: c = down(g);  m ← β₁·m + (1 − β₁)·c;  num = lift(m) + (g − lift(c)); the basis is renewed at t = 1
///     and every `gap` steps
///     θ ← (θ − lr·(√c₂/c₁)·num/(√v + ε))·(1 − lr·wd)
///
/// State    v: one number a subset; m: the coordinates; the basis (svd: orthonormal rows; topk, uniform: indices of
///          lines).
/// Differs  a renewed basis starts with m = 0 before the step (the authors' code applies the old buffer once more);
///          `keep_momentum` keeps it. Only tensors of rank 2 have subsets and bases; others, and ranks of the smaller
///          side or more, take full momentum.
/// Source   Nguyen and Nguyen, 2024, arXiv:2411.07120.
struct AdamSNSM: WholeRule {
  static let method = Method(
    "adam_snsm", .optimizer,
    "Adam with subset norms and subspace momentum: one second moment a subset, momentum in few directions.",
    rule: """
      v <- beta2*v + (1 - beta2)*sum of g^2 over each subset (rows or columns, groups, or single entries)
      m <- beta1*m + (1 - beta1)*g, or with rank in a basis of the gradient:  num = lift(m) + (g - lift(down(g)))
      theta <- (theta - lr*sqrt(c2)/c1 * num/(sqrt(v) + eps)) * (1 - lr*weight_decay)
      """,
    source: "Nguyen, Nguyen, 2024, arXiv:2411.07120",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"),
      .number("beta2", 0.999, .within(0, 1), "rate of the second moment; 1: a sum"),
      .eps(1e-6),
      .choiceOrInteger(
        "subset", ["rowcol", "off"], "rowcol, the length k of groups, -k for sqrt(n)/k, or off", live: false),
      .maybeInteger("rank", .atLeast(1), "directions of the momentum; none: all", live: false),
      .choice("proj", ["svd", "topk", "uniform"], "how the directions are chosen", live: false),
      .integer("gap", 200, .atLeast(1), "steps between choices"),
      .flag("keep_momentum", false, "keep the buffer when they change"),
      .weightDecay(0, "decoupled weight decay, after the step"), .flag("correct_bias", true, "bias corrections"),
    ],
    slots: [
      Slot("exp_avg_sq", "second moment of every subset"), Slot("exp_avg", "momentum, or its coordinates"),
      Slot("basis", "directions of the momentum"),
    ],
    validate: { (h) throws(Failure) in
      guard h.is("subset", "rowcol") || h.is("subset", "off") || h.integer("subset") != 0 else {
        throw Failure(Status.range, "adam_snsm: `subset` must be a length above 0, -k for sqrt(n)/k, or a word, got 0")
      }
    })

  /// How a tensor is treated: lengths of its subsets and of its momentum.
  private struct Plan {
    enum Subset { case entries, rows, columns, groups(Int) }
    var subset = Subset.entries
    var subsets: Int
    var coordinates: Int
    var basis = 0
    var rank = 0
    let tall: Bool
    /// The coordinates multiply the basis from the left: C·B, one a row of the tensor.
    var right = false

    /// Elements of a line of the tensor: of a subset, where it is one run.
    func length(_ shape: Shape) -> Int {
      switch subset {
      case .groups(let k): k
      default: max(1, shape.columns)
      }
    }
    /// Bytes for a factor of every subset; entries make theirs as they move.
    func room(_ size: Int) -> Int {
      if case .entries = subset { return 0 }
      return aligned(subsets * size)
    }

    init(_ h: Hyper, _ shape: Shape) {
      let n = shape.count
      (subsets, coordinates, tall) = (n, n, shape.rows >= shape.columns)
      guard shape.ndim == 2, n > 0 else { return }
      if h.is("subset", "rowcol") {
        (subset, subsets) = tall ? (.rows, shape.rows) : (.columns, shape.columns)
      } else if !h.is("subset", "off") {
        let k = h.integer("subset")
        var length = min(max(k >= 0 ? k : Int(Double(n).squareRoot() / -Double(k)), 1), n)
        while n % length != 0 { length -= 1 }
        (subset, subsets) = (.groups(length), n / length)
      }
      guard h.has("rank"), h.integer("rank") < min(shape.rows, shape.columns) else { return }
      let svd = h.is("proj", "svd")
      rank = h.integer("rank")
      right = tall == svd
      coordinates = rank * (right ? shape.rows : shape.columns)
      basis = svd ? rank * (right ? shape.columns : shape.rows) : rank
    }
  }

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let plan = Plan(h, shape)
    var list = method.slots
    (list[0].count, list[1].count, list[2].count) = (plan.subsets, plan.coordinates, plan.basis)
    return plan.rank > 0 ? list : list.dropLast()
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func mayFail(_ h: Hyper) -> Bool { h.has("rank") && h.is("proj", "svd") }

  let h: Hyper
  let beta1, beta2, eps, scale: Double
  let renews: Bool
  let key: UInt64

  init(_ h: Hyper, _ c: StepContext) {
    self.h = h
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    let (c1, c2) = h.correct_bias ? (1 - power(beta1, c.t), beta2 < 1 ? 1 - power(beta2, c.t) : 1) : (1, 1)
    scale = c2.squareRoot() / c1 * (1 - c.lr * c.weightDecay)
    renews = c.t == 1 || c.t % max(1, h.integer("gap")) == 0
    key = Random.key(seed: c.seed, stream: c.stream, step: UInt64(c.step), tensor: UInt32(truncatingIfNeeded: c.tensor))
  }

  /// Room for the factors of subsets; behind them for sums of columns, for every part of the rows, and then for
  /// coordinates.
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    let plan = Plan(h, shape)
    var sums = 0
    if case .columns = plan.subset { sums = 8 * shape.columns * Parts(shape.rows, of: shape.columns).count }
    return plan.room(size) + max(sums, plan.rank > 0 ? plan.coordinates * size : 0)
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    guard t.count > 0 else { return }
    let plan = Plan(h, t.shape), length = plan.length(t.shape), lines = Parts(t.count / length, of: length)
    let full = plan.rank == 0, factors = t.workspace.assumingMemoryBound(to: T.self)
    moveSquares(t, plan, lines, length)
    if plan.rank > 0 { try subspaceMomentum(t, plan) }
    let m = full ? t.slots[1] : nil
    lines.forEach { _, range in
      switch plan.subset {
      case .entries: break
      case .rows, .groups: for i in range { move(t.v + i * length, m.map { $0 + i * length }, length, factors[i]) }
      case .columns:
        for i in range { move(t.v + i * length, m.map { $0 + i * length }, length, 0, factors) }
      }
    }
    if case .entries = plan.subset { t.change(Entries(rule: self, full: full), slots: 0..<(full ? 2 : 1)) }
  }

  /// Every entry is a subset.
  struct Entries: ElementOperation {
    let rule: AdamSNSM, full: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let factor = rule.factor(s[0])
      if full {
        x = rule.averaged(s[1], x)
        s[1] = x
      }
      x = times(x, factor)
    }
  }
  struct Squares: ElementOperation {
    let beta2: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = beta2 == 1 ? s[0] + x * x : beta2 * s[0] + (1 - beta2) * (x * x)
    }
  }

  /// One line of the update, times one factor or one for every entry.
  private func move<T: Real>(
    _ v: UnsafeMutablePointer<T>, _ m: UnsafeMutablePointer<T>?, _ n: Int, _ factor: T,
    _ factors: UnsafeMutablePointer<T>? = nil
  ) {
    typealias L = T.Vector
    var i = 0
    while i < n {
      let left = n &- i
      var x = L.load(v + i, first: left)
      if let m {
        x = averaged(L.load(m + i, first: left), x)
        x.store(m + i, first: left)
      }
      let f = if let factors { L.load(factors + i, first: left) } else { L(Double(factor)) }
      times(x, f).store(v + i, first: left)
      i &+= L.width
    }
  }
  @inline(__always) private func averaged<L: Lane>(_ m: L, _ g: L) -> L { beta1 * m + (1 - beta1) * g }
  /// √c₂/c₁/(√v + ε), infinite where that divides by 0.
  @inline(__always) private func factor<L: Lane>(_ v: L) -> L { scale == 0 ? 0 * v : scale / (v.squareRoot() + eps) }

  /// Moves v by the sums of squares; leaves the factor of every subset, if they are not the entries.
  private func moveSquares<T: Real>(_ t: Whole<T>, _ plan: Plan, _ lines: Parts, _ length: Int) {
    let v = t.slots[0]
    func moved(_ v: T, _ sum: Double) -> T { T(beta2 == 1 ? Double(v) + sum : beta2 * Double(v) + (1 - beta2) * sum) }
    switch plan.subset {
    case .entries: return t.change(Squares(beta2: beta2), slots: 0..<1)
    case .rows, .groups:
      lines.forEach { _, range in for i in range { v[i] = moved(v[i], Flat.squaredNorm(t.v + i * length, length)) } }
    case .columns:
      let sums = (t.workspace + plan.room(MemoryLayout<T>.stride)).assumingMemoryBound(to: Double.self)
      lines.forEach { part, range in
        let columns = sums + part * length
        columns.initialize(repeating: 0, count: length)
        for i in range { _ = Flat.addSquares(t.v + i * length, length, to: columns) }
      }
      for j in 0..<length { v[j] = moved(v[j], (0..<lines.count).reduce(0) { $0 + sums[$1 * length + j] }) }
    }
    let factors = t.workspace.assumingMemoryBound(to: T.self), n = plan.subsets
    for i in stride(from: 0, to: n, by: T.Vector.width) {
      factor(T.Vector.load(v + i, first: n - i)).store(factors + i, first: n - i)
    }
  }

  /// g ← lift(m) + (g − lift(c)): the coordinates c become m, so that g ← g + lift(m − c).
  private func subspaceMomentum<T: Real>(_ t: Whole<T>, _ plan: Plan) throws(Failure) {
    let (m, basis, rows, columns, r) = (t.slots[1], t.slots[2], t.rows, t.columns, plan.rank)
    if renews {
      try choose(t, plan, basis)
      if !h.keep_momentum { for i in 0..<plan.coordinates { m[i] = 0 } }
    }
    let c = (t.workspace + plan.room(MemoryLayout<T>.stride)).assumingMemoryBound(to: T.self)
    let svd = h.is("proj", "svd")
    if svd {
      if plan.right {
        try LinearAlgebra.multiply(
          t.v, transposed: false, basis, transposed: true, into: c, rows, r, columns)
      } else {
        try LinearAlgebra.multiply(basis, t.v, into: c, r, columns, rows)
      }
    } else {
      lines(t, plan) { c[$0] = t.v[$1] }
    }
    for i in stride(from: 0, to: plan.coordinates, by: T.Vector.width) {
      let left = plan.coordinates - i, old = T.Vector.load(c + i, first: left)
      let new = averaged(T.Vector.load(m + i, first: left), old)
      new.store(m + i, first: left)
      (new - old).store(c + i, first: left)
    }
    if svd {
      if plan.right {
        try LinearAlgebra.multiply(c, basis, into: t.v, rows, columns, r, beta: 1)
      } else {
        try LinearAlgebra.multiply(basis, transposed: true, c, into: t.v, rows, columns, r, beta: 1)
      }
    } else {
      lines(t, plan) { t.v[$1] += c[$0] }
    }
  }

  /// Every entry of the chosen lines: its position among the coordinates, and in the tensor.
  private func lines<T: Real>(_ t: Whole<T>, _ plan: Plan, _ body: (Int, Int) -> Void) {
    for k in 0..<plan.rank {
      let index = Double(t.slots[2][k]), count = plan.tall ? t.rows : t.columns
      let line = index >= 0 && index < Double(count) ? Int(index) : 0
      if plan.tall {
        for j in 0..<t.columns { body(k * t.columns + j, line * t.columns + j) }
      } else {
        for i in 0..<t.rows { body(i * plan.rank + k, i * t.columns + line) }
      }
    }
  }

  private func choose<T: Real>(_ t: Whole<T>, _ plan: Plan, _ basis: UnsafeMutablePointer<T>) throws(Failure) {
    let (rows, columns) = (t.rows, t.columns)
    guard h.is("proj", "svd") else {
      let count = plan.tall ? rows : columns
      var score = [Double](repeating: 0, count: count)
      if h.is("proj", "topk") {
        for i in 0..<rows {
          for j in 0..<columns { let x = Double(t.v[i * columns + j]); score[plan.tall ? i : j] += x * x }
        }
      } else {
        for i in 0..<count { score[i] = Random.normal(key, i) }
      }
      let chosen = score.indices.sorted { score[$0] > score[$1] || (score[$0] == score[$1] && $0 < $1) }.prefix(
        plan.rank
      ).sorted()
      for (k, line) in chosen.enumerated() { basis[k] = T(line) }
      return
    }
    let svd = try LinearAlgebra.SVD(t.v, rows, columns)
    let n = plan.right ? columns : rows
    for k in 0..<plan.rank {
      func entry(_ j: Int) -> Double { plan.right ? svd.vt[k * columns + j] : svd.u[j * svd.r + k] }
      var top = 0
      for j in 0..<n where abs(entry(j)) > abs(entry(top)) { top = j }
      let sign = entry(top) < 0 ? -1.0 : 1.0
      for j in 0..<n { basis[k * n + j] = T(sign * entry(j)) }
    }
  }
}

/// A numerator of 0 over a denominator of 0 is 0.
@inline(__always) private func times<L: Lane>(_ x: L, _ factor: L) -> L {
  let zero = L(0), product = x * factor
  let infinite = L.equal(factor.magnitude, L(.infinity))
  return L.select(L.equal(x, zero), L.select(infinite, zero, product), product)
}
