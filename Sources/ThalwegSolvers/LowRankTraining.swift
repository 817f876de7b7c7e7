import Glibc
import ThalwegCore

/// Training of a matrix as U·S·Vᵀ along the manifold of its rank, which adapts.
///
///     G = the gradient at W = U·S·Vᵀ;   K = U·S − lr·G·V;   L = V·Sᵀ − lr·Gᵀ·U
///     U₁ = qr([K | U]), V₁ = qr([L | V]) (adaptive=false: qr(K), qr(L));   S = (U₁ᵀ·U)·S·(V₁ᵀ·V)ᵀ
///     S ← S − lr·U₁ᵀ·G'·V₁,  G' the gradient at U₁·S·V₁ᵀ
///     adaptive: S = P·diag(s)·Qᵀ, r the smallest rank with |s from r on| ≤ tol·|s|, r_min ≤ r ≤ r_max;
///     U = U₁·P_r, V = V₁·Q_r, S = diag(s_r)
///
/// It starts at the decomposition of w0 with `rank` values (none: r_max). Columns beyond the rank are 0.
/// Ends     max_iter.
/// Errors   TW_ERROR_NONFINITE: a gradient.
/// Differs  V comes from Vᵀ transposed, and the tail counts its last value: both are slips in the authors' code. A rank
///          never is more than twice the one before, or the smaller side.
/// Source   Schotthöfer, Zangrando, Kusch, Ceruti, Tudisco, 2022, arXiv:2205.13571.
struct DLRT: Driver {
  static let method = Method.solver(
    "dlrt", "Training of a matrix as U S V' along the manifold of its rank, which adapts.",
    rule: """
      K = U S - lr G V;  L = V S' - lr G'U;  U1 = qr([K, U]), V1 = qr([L, V]);  S = (U1'U) S (V1'V)'
      S <- S - lr U1'G V1, G the gradient at U1 S V1';  adaptive: cut its singular values where |tail| <= tol |s|
      """,
    source: "Schotthoefer, Zangrando, Kusch, Ceruti, Tudisco, 2022, arXiv:2205.13571",
    parameters: [
      .lr(0.1, .above(0)), .number("tol", 0.1, .rate, "tail of the singular values that is cut, relative"),
      .flag("adaptive", true, "augment the bases, and cut"), .integer("r_min", 2, .atLeast(1), "least rank"),
      .maybeInteger(
        "r_max", .atLeast(1), "largest rank; none: half of the smaller side, or the one rank of adaptive=false"),
      .maybeInteger("rank", .atLeast(1), "at the start; none: r_max"),
      .integer("max_iter", 100, .atLeast(0), "steps"),
    ],
    inputs: [
      .constant("w0", "m, n", "where it starts"), .result("w", "m, n", "U S V'"), .result("u", "m, most", "U"),
      .result("s", "most, most", "S"), .result("v", "n, most", "V"), .result("rank", "", "of W"),
      .result("iterations", "", "steps"),
    ],
    asks: [
      RequestKind(
        "gradient", "the gradient at W", given: [.given("point", "m, n", "W")],
        wanted: [.wanted("gradient", "m, n", "there")])
    ],
    kept: [
      .kept("g", "m, n", "gradient"), .kept("u1", "m, tall", "augmented basis"), .kept("v1", "n, wide", "the other"),
      .kept("s1", "tall, wide", "S in them"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, ready, bases, core }

  private func most(_ m: Int, _ n: Int) -> Int {
    let half = max(1, min(m, n) / 2), fixed = !h.adaptive && h.has("rank")
    return max(1, min(h.has("r_max") ? h.integer("r_max") : fixed ? h.integer("rank") : half, min(m, n)))
  }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    let m = sizes["m"], n = sizes["n"], top = most(m, n)
    return ["most": top, "tall": min(2 * top, m), "wide": min(2 * top, n)]
  }
  /// The columns of a basis of a side of `length`, at rank r.
  private func width(_ r: Int, _ length: Int) -> Int { h.adaptive ? min(2 * r, length) : r }

  /// The first columns of a stored factor.
  private func read<T: Real>(_ v: Vector<T>, _ rows: Int, _ columns: Int) -> [Double] {
    let stride = v.shape.last ?? 1
    return (0..<rows * columns).map { Double(v.p[$0 / columns * stride + $0 % columns]) }
  }
  private func write<T: Real>(_ x: [Double], _ v: Vector<T>, _ rows: Int, _ columns: Int) {
    let stride = v.shape.last ?? 1
    v.fill(0)
    for i in 0..<rows { for j in 0..<columns { v.p[i * stride + j] = T(x[i * columns + j]) } }
  }
  private func product(
    _ a: [Double], transposed ta: Bool = false, _ b: [Double], transposed tb: Bool = false, _ m: Int, _ n: Int, _ k: Int
  ) throws(Failure) -> [Double] {
    try Memory.ask(8 * m * n)
    var c = [Double](repeating: 0, count: m * n)
    try LinearAlgebra.multiply(a, transposed: ta, b, transposed: tb, into: &c, m, n, k)
    return c
  }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let w = try io["w"], g = try io["g"], m = w.rows, n = w.count / max(1, m), top = most(m, n)
    let (u, s, v) = (try io["u"], try io["s"], try io["v"]), lr: Double = h.lr
    switch phase {
    case .start:
      let svd = try LinearAlgebra.SVD(try io["w0"].p, m, n), r = min(h.has("rank") ? h.integer("rank") : top, top)
      io.rank = Double(r)
      store(svd, r, u, s, v, m, n)
      return .go(.ready)
    case .ready:
      let r = try io.count("rank", top)
      try contract(read(u, m, r), read(s, r, r), read(v, n, r), r, r, w, m, n)
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("gradient", [w], [g], then: .bases)
    case .bases:
      let r = try io.count("rank", top), G = read(g, m, n), U = read(u, m, r), S = read(s, r, r), V = read(v, n, r)
      var K = try product(U, S, m, r, r), L = try product(V, transposed: false, S, transposed: true, n, r, r)
      let gv = try product(G, V, m, r, n), gu = try product(G, transposed: true, U, n, r, m)
      for i in K.indices { K[i] -= lr * gv[i] }
      for i in L.indices { L[i] -= lr * gu[i] }
      let tall = width(r, m), wide = width(r, n)
      let U1 = try LowRank.augmented(K, U, m, r, tall), V1 = try LowRank.augmented(L, V, n, r, wide)
      let left = try product(U1, transposed: true, U, tall, r, m),
        right = try product(V1, transposed: true, V, wide, r, n)
      let core = try product(
        try product(left, S, tall, r, r), transposed: false, right, transposed: true, tall, wide, r)
      write(U1, try io["u1"], m, tall)
      write(V1, try io["v1"], n, wide)
      write(core, try io["s1"], tall, wide)
      try contract(U1, core, V1, tall, wide, w, m, n)
      return .ask("gradient", [w], [g], then: .core)
    case .core:
      let old = try io.count("rank", top), tall = width(old, m), wide = width(old, n)
      let U1 = read(try io["u1"], m, tall), V1 = read(try io["v1"], n, wide)
      var core = read(try io["s1"], tall, wide)
      let move = try product(try product(U1, transposed: true, read(g, m, n), tall, n, m), V1, tall, wide, n)
      for i in core.indices { core[i] -= lr * move[i] }
      io.iterations += 1
      if h.adaptive {
        let svd = try LinearAlgebra.SVD(core, tall, wide)
        let r = LowRank.cut(svd.s, h.tol, least: min(h.integer("r_min"), top), most: top)
        let P = (0..<tall * r).map { svd.u[$0 / r * svd.r + $0 % r] }
        let Q = (0..<wide * r).map { svd.vt[$0 % r * wide + $0 / r] }
        write(try product(U1, P, m, r, tall), u, m, r)
        write(try product(V1, Q, n, r, wide), v, n, r)
        write((0..<r * r).map { $0 % (r + 1) == 0 ? svd.s[$0 / (r + 1)] : 0 }, s, r, r)
        io.rank = Double(r)
      } else {
        write(U1, u, m, tall)
        write(V1, v, n, wide)
        write(core, s, tall, wide)
      }
      return .go(.ready)
    }
  }

  private func store<T: Real>(
    _ svd: LinearAlgebra.SVD, _ r: Int, _ u: Vector<T>, _ s: Vector<T>, _ v: Vector<T>, _ m: Int, _ n: Int
  ) {
    write((0..<m * r).map { svd.u[$0 / r * svd.r + $0 % r] }, u, m, r)
    write((0..<n * r).map { svd.vt[$0 % r * n + $0 / r] }, v, n, r)
    write((0..<r * r).map { $0 % (r + 1) == 0 ? svd.s[$0 / (r + 1)] : 0 }, s, r, r)
  }
  private func contract<T: Real>(
    _ U: [Double], _ S: [Double], _ V: [Double], _ tall: Int, _ wide: Int, _ w: Vector<T>, _ m: Int, _ n: Int
  ) throws(Failure) {
    let W = try product(try product(U, S, m, wide, tall), transposed: false, V, transposed: true, m, n, wide)
    for i in W.indices { w.p[i] = T(W[i]) }
  }
}

enum LowRank {
  /// The smallest rank whose tail of (descending) values has a norm of at most tol times that of all, within bounds.
  static func cut(_ s: [Double], _ tol: Double, of size: Double? = nil, least: Int, most: Int) -> Int {
    let total = size ?? s.reduce(0) { $0 + $1 * $1 }.squareRoot()
    var r = s.count, tail = 0.0
    while r > 0, (tail + s[r - 1] * s[r - 1]).squareRoot() <= tol * total {
      tail += s[r - 1] * s[r - 1]
      r -= 1
    }
    return min(max(r, least, 1), max(1, min(most, s.count)))
  }

  /// The first `width` columns of an orthonormal basis of [moved | old].
  static func augmented(_ moved: [Double], _ old: [Double], _ rows: Int, _ r: Int, _ width: Int) throws(Failure)
    -> [Double]
  {
    if width <= r { return try LinearAlgebra.orthonormal(moved, rows, r) }
    let both = (0..<rows * 2 * r).map { i in
      let (row, c) = (i / (2 * r), i % (2 * r))
      return c < r ? moved[row * r + c] : old[row * r + c - r]
    }
    // more columns than rows: the first ones span all
    let columns = min(2 * r, rows)
    let kept = columns == 2 * r ? both : (0..<rows * columns).map { both[$0 / columns * 2 * r + $0 % columns] }
    let q = try LinearAlgebra.orthonormal(kept, rows, columns)
    return columns == width ? q : (0..<rows * width).map { q[$0 / width * columns + $0 % width] }
  }
}
