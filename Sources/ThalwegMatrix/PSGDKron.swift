import Glibc
import ThalwegCore

/// PSGD with one triangular factor an axis, fitted so that the preconditioned gradient becomes white.
///
///     m ← b₁·m + (1 − b₁)·g, m̂ = m/(1 − b₁ᵗ);   a fit when 1/update_prob steps have passed since the last one
///     X = m̂ (or g) + √(2⁻²³)·mean|X|·V, V normal numbers; newton: X = H·V
///     A = X times Q_k on every axis;   B = V times Q_k⁻ᵀ
///     Q_k ← Q_k − precond_lr/ℓ·triu(T₁ − T₂)·Q_k,  T₁, T₂ the Gram matrices of A and B unfolded along k,
///         ℓ a lower bound of ‖T₁ + T₂‖;  a diagonal factor takes their diagonals, ℓ the largest entry
///     u = m̂ times Q_kᵀ·Q_k on every axis, its RMS at most clip_rms;   θ ← θ − lr·(u + wd·θ),  wd for matrices alone
///
/// State    m, the factors; how many steps passed since the last fit; within a step of newton V, X and the gradient.
/// Differs  the noise stays out of the step (the package kron_torch adds it in place). A gradient of 0 is not fitted.
///          The factors are balanced before a fit with probability `balance_prob`. smart_one_diag: the longest axis is
///          diagonal where no other is as long (UNVERIFIED). No update_prob: min(max(e^(−(n − 500)/1000), 0.03), 1)
///          after n steps. Newton's fit has one schedule for all tensors; with no first scale it takes that of the pair
///          of the first step.
/// Source   Li, 2015, arXiv:1512.04202; Pooladzandi and Li, 2024, arXiv:2402.04553.
struct PSGDKron: WholeRule {
  static let method = Method(
    "psgd_kron", .optimizer,
    "PSGD with one triangular factor an axis, fitted so that the preconditioned gradient becomes white.",
    rule: """
      m <- b1*m + (1 - b1)*g, m^ = m/(1 - b1^t);  a fit every 1/update_prob steps
      X = m^ + noise*V;  A = X times Q_k on every axis, B = V times Q_k^-T;  T1, T2 their Gram matrices along k
      Q_k <- Q_k - precond_lr/norm(T1 + T2) * triu(T1 - T2) Q_k (diagonal factors: the diagonals)
      u = m^ times Q_k'Q_k on every axis, RMS at most clip_rms;  theta <- theta - lr*(u + weight_decay*theta)
      fit=newton: X = Hessian times V, which is asked for
      """,
    source: "Li, 2015, arXiv:1512.04202; Pooladzandi, Li, 2024, arXiv:2402.04553",
    parameters: [
      .lr(3e-4), .rate("b1", 0.9, "rate of the momentum"), .weightDecay(0, "weight decay of matrices, in the update"),
      .number("precond_lr", 0.1, .between(0, 1, lowOpen: true, highOpen: false), "step size of the fit"),
      Parameter.number(
        "precond_init_scale", 1, .above(0), "first scale of the product of factors; none: from the first gradient",
        optional: true
      ).fixed,
      .integer("max_size_triangular", 8192, .atLeast(0), "longer axes have a diagonal factor", live: false),
      .integer("min_ndim_triangular", 2, .atLeast(0), "tensors of lower rank have diagonal factors", live: false),
      .choice(
        "memory_save_mode", ["none", "one_diag", "smart_one_diag", "all_diag"], "which factors are diagonal besides",
        live: false),
      .flag("merge_dims", true, "tensors of rank above 2 count as matrices", live: false),
      .flag("momentum_into_precond_update", true, "the fit is to the momentum, not to the gradient"),
      .number("clip_rms", 1.1, .above(0), "largest RMS of the update"),
      .maybe("update_prob", .between(0, 1, lowOpen: true, highOpen: false), "fits a step; none: falls from 1 to 0.03"),
      .number("balance_prob", 0.01, .within(0, 1), "balancings a fit"),
      .choice("fit", ["whiten", "newton"], "to gradients, or to Hessian-vector products", live: false), .products,
    ],
    slots: [.moment("exp_avg", "the momentum m"), .half("factors", "the factors Q_k, one after the other")],
    needsFinite: true)

  /// The axes as they are preconditioned.
  private struct Plan {
    struct Axis { let lines: Slices, diagonal: Bool, at: Int, count: Int }
    let axes: [Axis]
    let factors: Int, longest: Int

    init(_ h: Hyper, _ shape: Shape) {
      var d = shape.dimensions.isEmpty ? [1] : shape.dimensions
      if d.count > 2, h.merge_dims {
        let front = d.dropLast().reduce(1, &*), back = d.dropFirst().reduce(1, &*)
        d = d[d.count - 1] - front <= back - d[0] ? [front, d[d.count - 1]] : [d[0], back]
      }
      let top = d.max() ?? 1, last = d.lastIndex(of: top)
      let alone = d.filter { $0 == top }.count == 1
      var list: [Axis] = [], at = 0, longest = 0
      for k in d.indices {
        let saved =
          h.is("memory_save_mode", "all_diag") || (h.is("memory_save_mode", "one_diag") && k == last)
          || (h.is("memory_save_mode", "smart_one_diag") && k == last && alone && d.count > 1)
        let diagonal =
          saved || d[k] <= 1 || d[k] > h.integer("max_size_triangular") || d.count < h.integer("min_ndim_triangular")
        let count = diagonal ? d[k] : d[k] &* d[k]
        list.append(Axis(lines: .along(k, Shape(dimensions: d)), diagonal: diagonal, at: at, count: count))
        at = at &+ count
        if !diagonal { longest = max(longest, d[k]) }
      }
      (axes, factors, self.longest) = (list, at, longest)
    }
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = method.slots
    list[1].count = Plan(h, shape).factors
    return list
  }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("since_fit")] + (isNewton(h) ? [Scalar("steps")] : []) }
  private static func isNewton(_ h: Hyper) -> Bool { h.is("fit", "newton") }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try LinearAlgebra.require()
    guard Plan(h, shape).longest <= Kronecker.most else {
      throw Failure(Status.shape, "psgd_kron: an axis is too long for a triangular factor; lower `max_size_triangular`")
    }
  }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    let plan = Plan(h, shape), side = plan.longest
    return 3 * aligned(shape.count &* size) &+ 3 * aligned(side &* side &* size)
      &+ Products<Float>.space(h, size, plan.axes.filter { !$0.diagonal }.map(\.lines))
  }

  let h: Hyper
  let c: StepContext
  init(_ h: Hyper, _ c: StepContext) { (self.h, self.c) = (h, c) }

  static let registered = entry(
    PSGDKron.self, source: { (h) throws(Failure) in isNewton(h) ? Probe(h) : nil })

  /// Fits a step, after n of them.
  private static func probability(_ h: Hyper, _ n: Double) -> Double {
    h.has("update_prob") ? h.update_prob : min(max(exp(-0.001 * (n - 500)), 0.03), 1)
  }

  /// Asks for the products with normal numbers in the steps that have a fit: `since_fit` is 0 then.
  struct Probe: Source {
    static var method: Method { PSGDKron.method }
    init(_ h: Hyper) {}
    private let vector = 2, product = 3, gradient = 4
    var slots: [Slot] {
      [
        .temporary("probe", "the vector V"), .temporary("product", "the Hessian times it"),
        .temporary("gradient", "the gradient of the step"),
      ]
    }
    var probe: Int? { 0 }
    func most(_ tensors: Int) -> Int { 2 }
    var kinds: [Request.Kind] { [.hessianVector] }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let since = io.scalar(0) + 1, fits = since >= 1 / PSGDKron.probability(io.hyper, io.scalar(1))
      if phase == 0, fits {
        io.change(SaveGradient(), slots: [gradient], parameters: false)
        io.draw(vector, signs: false)
        return .ask(Ask(.hessianVector))
      }
      io.setScalar(0, fits ? 0 : since)
      io.setScalar(1, io.scalar(1) + 1)
      guard fits else { return .update(nil) }
      io.change(SaveGradient(), slots: [product], parameters: false)
      return .update(io.gradient(in: gradient))
    }
  }

  /// x: V; g: X with noise.
  private struct Noise: ElementOperation {
    let key: UInt64, scale: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      x = s.normal(key)
      g = g + scale * x
    }
  }

  /// v ← m/(1 − b₁ᵗ).
  private struct Average: ElementOperation {
    let keep, correct: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = keep * s[0] + (1 - keep) * x
      x = correct * s[0]
    }
  }
  private struct Magnitudes: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, x.magnitude)
    }
  }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let n = w.count, size = MemoryLayout<T>.stride, room = aligned(n &* size), plan = Plan(h, w.shape)
    func buffer(_ k: Int) -> UnsafeMutablePointer<T> { (w.workspace + k &* room).assumingMemoryBound(to: T.self) }
    let (X, V, other) = (buffer(0), buffer(1), buffer(2))
    let factors = Factors(w, plan, h)
    if c.t == 1 { begin(w, plan) }

    let whole = h.momentum_into_precond_update as Bool
    if !whole { X.update(from: w.v, count: n) }
    w.change(Average(keep: h.b1, correct: 1 / (1 - power(h.b1, c.t))), slots: 0..<1)
    if whole { X.update(from: w.v, count: n) }

    if PSGDKron.isNewton(h) {
      if let (v, product) = pair(w) {
        if plan.axes.count > 1, coin() < h.balance_prob { balance(factors.Q, plan) }
        V.update(from: v, count: n)
        X.update(from: product, count: n)
        try factors.fit(X, V, other, w.workspace + 3 * room, rate: h.precond_lr)
      }
    } else if c.scalars[0] + 1 < 1 / PSGDKron.probability(h, Double(c.t - 1)) {
      c.scalars[0] += 1
    } else {
      c.scalars[0] = 0
      let gradient = Whole(v: X, w: X, slots: [], shape: w.shape, workspace: w.workspace)
      let sum = gradient.sums(Magnitudes()).first
      if sum > 0 {
        if plan.axes.count > 1, coin() < h.balance_prob { balance(factors.Q, plan) }
        let key = Random.key(
          seed: c.seed, stream: c.stream, step: UInt64(c.step), tensor: UInt32(truncatingIfNeeded: c.tensor))
        Flat.change(Noise(key: key, scale: 0x1p-23.squareRoot() * sum / Double(n)), V, X, n)
        try factors.fit(X, V, other, w.workspace + 3 * room, rate: h.precond_lr)
      }
    }

    var (u, free) = (w.v, other)
    for a in plan.axes {
      try factors.multiply(a, &u, &free)
      try factors.multiply(a, transposed: true, &u, &free)
    }
    let rms = Flat.norm(u, n) / Double(n).squareRoot()
    Flat.scale(u, by: min(1, h.clip_rms / (rms + 1e-12)), into: w.v, n)
    if c.ndim >= 2, c.weightDecay != 0 { Flat.add(w.w, times: c.weightDecay, into: w.v, n) }
  }

  /// V and H·V of this step, where it has a fit of newton and neither is 0.
  private func pair<T: Real>(_ w: Whole<T>) -> (UnsafeMutablePointer<T>, UnsafeMutablePointer<T>)? {
    guard PSGDKron.isNewton(h), c.scalars[0] == 0, w.slots.count > 3 else { return nil }
    return Flat.norm(w.slots[2], w.count) > 0 && Flat.norm(w.slots[3], w.count) > 0 ? (w.slots[2], w.slots[3]) : nil
  }

  /// A number of this step for all tensors, apart from the noise.
  private func coin() -> Double { Random.fraction(seed: c.seed, stream: c.stream, step: c.step &+ 1 << 40) }

  private func begin<T: Real>(_ w: Whole<T>, _ plan: Plan) {
    var scale: Double = h.precond_init_scale
    if !h.has("precond_init_scale"), PSGDKron.isNewton(h) {
      scale = pair(w).map { PSGDPair.scale(Dense($0, w.count).values, Dense($1, w.count).values, newton: true) } ?? 1
    } else if !h.has("precond_init_scale") {
      var fourth = 0.0
      for i in 0..<w.count { fourth += pow(Double(w.v[i]), 4) }
      scale = fourth > 0 && fourth.isFinite ? pow(fourth / Double(w.count), -0.125) : 1
    }
    let entry = T(pow(scale, 1 / Double(plan.axes.count)))
    for a in plan.axes {
      let q = w.slots[1] + a.at, d = a.lines.length
      for i in 0..<a.count { q[i] = a.diagonal || i % (d + 1) == 0 ? entry : 0 }
    }
  }

  /// Every factor gets the same largest entry.
  private func balance<T: Real>(_ Q: UnsafeMutablePointer<T>, _ plan: Plan) {
    let tops = plan.axes.map { a in (0..<a.count).reduce(0.0) { max($0, abs(Double(Q[a.at + $1]))) } }
    let mean = exp(tops.reduce(0) { $0 + log($1) } / Double(tops.count))
    guard mean > 0, mean.isFinite else { return }
    for (a, top) in zip(plan.axes, tops) { Flat.scale(Q + a.at, by: mean / top, into: Q + a.at, a.count) }
  }

  /// The factors at work.
  private struct Factors<T: Real> {
    let Q: UnsafeMutablePointer<T>, plan: Plan, products: Products<T>

    init(_ w: Whole<T>, _ plan: Plan, _ h: Hyper) {
      let size = MemoryLayout<T>.stride, square = aligned(plan.longest &* plan.longest &* size)
      (Q, self.plan) = (w.slots[1], plan)
      products = Products<T>(h, w.workspace + 3 * aligned(w.count &* size) + 3 * square)
    }
    /// Sides from which on half the work of a triangle pays for a call of the library.
    private func long(_ a: Plan.Axis) -> Bool { a.lines.length > 64 }

    /// x ← Q·x along the axis, or Qᵀ·x; `free` is as large, and may be where it lies then.
    func multiply(
      _ a: Plan.Axis, transposed: Bool = false, _ x: inout UnsafeMutablePointer<T>,
      _ free: inout UnsafeMutablePointer<T>
    ) throws(Failure) {
      if a.diagonal { return scale(a, x) }
      if long(a), !products.isNarrow { return try a.lines.triangle(Q + a.at, transposed: transposed, solves: false, x) }
      try products.multiply(Q + a.at, transposed: transposed, x, into: free, along: a.lines)
      swap(&x, &free)
    }
    private func scale(_ a: Plan.Axis, _ x: UnsafeMutablePointer<T>) {
      let (d, inner, q) = (a.lines.length, a.lines.inner, Q + a.at)
      for o in 0..<a.lines.outer {
        for j in 0..<d {
          let line = x + (o &* d &+ j) &* inner
          for i in 0..<inner { line[i] *= q[j] }
        }
      }
    }

    /// x ← Q⁻ᵀ·x along the axis: substitution from the first row on.
    private func solve(_ a: Plan.Axis, _ x: UnsafeMutablePointer<T>) throws(Failure) {
      if !a.diagonal, long(a) { return try a.lines.triangle(Q + a.at, transposed: true, solves: true, x) }
      let q = Q + a.at, (d, inner) = (a.lines.length, a.lines.inner)
      for o in 0..<a.lines.outer {
        let block = x + o &* d &* inner
        for j in 0..<d {
          let pivot = a.diagonal ? q[j] : q[j &* d &+ j], line = block + j &* inner
          for i in 0..<inner { line[i] /= pivot }
          if a.diagonal { continue }
          if inner == 1 {
            Flat.add(q + (j &* d &+ j &+ 1), times: -Double(line[0]), into: line + 1, d - j - 1)
          } else {
            for k in (j + 1)..<max(d, j + 1) {
              Flat.add(line, times: -Double(q[j &* d &+ k]), into: block + k &* inner, inner)
            }
          }
        }
      }
    }

    func fit(
      _ X: UnsafeMutablePointer<T>, _ V: UnsafeMutablePointer<T>, _ other: UnsafeMutablePointer<T>,
      _ space: UnsafeMutableRawPointer, rate: Double
    ) throws(Failure) {
      var (A, free) = (X, other)
      for a in plan.axes {
        try multiply(a, &A, &free)
        try solve(a, V)
      }
      // the step is the same for a multiple of both: one whose squares are in the range
      let all = plan.axes.first.map { $0.lines.count &* $0.lines.length } ?? 0
      let size = max(Flat.norm(A, all), Flat.norm(V, all))
      if size > 0x1p50, size.isFinite {
        let unit = Double(sign: .plus, exponent: -size.exponent, significand: 1)
        for x in [A, V] { Flat.scale(x, by: unit, into: x, all) }
      }
      let room = aligned(plan.longest &* plan.longest &* MemoryLayout<T>.stride)
      func buffer(_ k: Int) -> UnsafeMutablePointer<T> { (space + k &* room).assumingMemoryBound(to: T.self) }
      let tiny = Double(T.leastNormalMagnitude)
      for a in plan.axes {
        let (d, inner, q) = (a.lines.length, a.lines.inner, Q + a.at)
        if a.diagonal {
          var first = [Double](repeating: 0, count: d), second = first
          for o in 0..<a.lines.outer {
            for j in 0..<d {
              let at = (o &* d &+ j) &* inner
              first[j] += Flat.squaredNorm(A + at, inner)
              second[j] += Flat.squaredNorm(V + at, inner)
            }
          }
          let top = zip(first, second).reduce(0) { max($0, $1.0 + $1.1) }
          for j in 0..<d { q[j] -= T(rate / max(top, tiny) * (first[j] - second[j])) * q[j] }
          continue
        }
        let (first, second, free) = (buffer(0), buffer(1), buffer(2)), count = d &* d
        try products.gram(A, along: a.lines, into: first)
        try products.gram(V, along: a.lines, into: second)
        Flat.change(SumAndDifference(), first, second, count)
        let norm = PSGDKron.lowerBound(second, d, free)
        for i in 0..<d { (first + i &* d).update(repeating: 0, count: i) }
        if long(a), !products.isNarrow {
          // first·Q
          try LinearAlgebra.triangle(q, transposed: false, left: false, solves: false, first, d, d)
          Flat.add(first, times: -rate / max(norm, tiny), into: q, count)
        } else {
          try products.multiply(first, q, into: free, d, d, d)
          Flat.add(free, times: -rate / max(norm, tiny), into: q, count)
        }
      }
    }
  }

  /// x − g and x + g in their place.
  private struct SumAndDifference: ElementOperation {
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      (x, g) = (x - g, x + g)
    }
  }

  /// A lower bound of the spectral norm of a symmetric matrix: two steps of the power method from its largest row.
  private static func lowerBound<T: Real>(_ S: UnsafeMutablePointer<T>, _ d: Int, _ room: UnsafeMutablePointer<T>)
    -> Double
  {
    var best = 0, norm = -1.0
    for i in 0..<d {
      let size = Flat.norm(S + i &* d, d)
      if size > norm { (norm, best) = (size, i) }
    }
    guard norm > 0 else { return 0 }
    let (unit, next) = (room, room + d)
    next.update(from: S + best &* d, count: d)
    for _ in 0..<2 {
      Flat.scale(next, by: 1 / norm, into: unit, d)
      for i in 0..<d { next[i] = T(Flat.dot(S + i &* d, unit, d)) }
      norm = Flat.norm(next, d)
      guard norm > 0 else { return 0 }
    }
    return norm
  }
}
