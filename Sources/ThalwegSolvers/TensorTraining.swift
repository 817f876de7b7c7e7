import ThalwegCore

/// A dense tensor whose axes have names, row-major.
struct NamedTensor {
  var names: [Int], dims: [Int], values: [Double]
  var count: Int { values.count }

  /// The same with its axes in another order: the names of `order`, all of them.
  func arranged(_ order: [Int]) -> NamedTensor {
    if order == names { return self }
    var strides = [Int](repeating: 1, count: dims.count)
    for k in dims.indices.dropLast().reversed() { strides[k] = strides[k + 1] * dims[k + 1] }
    let from = order.compactMap { names.firstIndex(of: $0) }
    let new = from.map { dims[$0] }, steps = from.map { strides[$0] }
    var out = [Double](repeating: 0, count: values.count), index = [Int](repeating: 0, count: new.count), at = 0
    for i in out.indices {
      out[i] = values[at]
      var k = new.count - 1
      while k >= 0 {
        index[k] += 1
        at += steps[k]
        if index[k] < new[k] { break }
        at -= steps[k] * new[k]
        index[k] = 0
        k -= 1
      }
    }
    return NamedTensor(names: order, dims: new, values: out)
  }
  func size(_ name: Int) -> Int { names.firstIndex(of: name).map { dims[$0] } ?? 1 }

  /// The sum over all names that both have.
  func contracted(_ other: NamedTensor) throws(Failure) -> NamedTensor {
    let shared = names.filter(other.names.contains), mine = names.filter { !shared.contains($0) }
    let theirs = other.names.filter { !shared.contains($0) }
    let a = arranged(mine + shared), b = other.arranged(shared + theirs)
    let k = shared.reduce(1) { $0 * size($1) }, m = a.count / max(1, k), n = b.count / max(1, k)
    try Memory.ask(8 * m * n)
    var c = [Double](repeating: 0, count: m * n)
    try LinearAlgebra.multiply(a.values, b.values, into: &c, m, n, k)
    return NamedTensor(names: mine + theirs, dims: mine.map(size) + theirs.map(other.size), values: c)
  }
  /// mᵀ·x or m·x along one axis; m is (rows, columns).
  func times(_ m: [Double], _ rows: Int, _ columns: Int, along name: Int, transposed: Bool) throws(Failure)
    -> NamedTensor
  {
    let matrix = NamedTensor(names: transposed ? [name, -1] : [-1, name], dims: [rows, columns], values: m)
    var out = try contracted(matrix)
    out.names = out.names.map { $0 == -1 ? name : $0 }
    return out.arranged(names)
  }
  /// One axis as rows, all others as columns.
  func unfolded(_ name: Int) -> (values: [Double], rows: Int, columns: Int) {
    let rows = size(name)
    return (arranged([name] + names.filter { $0 != name }).values, rows, count / max(1, rows))
  }
}

/// Training of a kernel in Tucker form along the manifold of its ranks, which adapt.
///
///     W = C ×ᵢ Uᵢ;   unfoldᵢ(C)ᵀ = Q·R, Kᵢ = Uᵢ·Rᵀ;   Kᵢ ← Kᵢ − lr·unfoldᵢ(G ×_{j≠i} Uⱼᵀ)·Q, all from one G
///     Uᵢ' = qr([Kᵢ | Uᵢ]);   C' = C ×ᵢ Uᵢ'ᵀ·Uᵢ;   C' ← C' − lr·(G' ×ᵢ Uᵢ'ᵀ),  G' the gradient at C' ×ᵢ Uᵢ'
///     rᵢ the smallest rank whose tail of singular values of unfoldᵢ(C') is at most tol·|C'|;   C = C' ×ᵢ Pᵢᵀ, Uᵢ =
///     Uᵢ'·Pᵢ
///
/// w0 has four axes (out, in, kh, kw); an axis of length 1 stands for one that is not there. Modes of at most `freeze`
/// entries keep all: their factor is the identity. It starts at the full ranks, or r_max, of w0.
/// Ends     max_iter.
/// Errors   TW_ERROR_NONFINITE: a gradient.
/// Differs  the whole tolerance goes to every mode (how it is split is UNVERIFIED). Between steps W is kept, and its
///          decomposition made anew: the step does not depend on the bases.
/// Source   Zangrando, Schotthöfer, Ceruti, Kusch, Tudisco, 2023, arXiv:2305.19059.
struct TDLRT: Driver {
  static let method = Method.solver(
    "tdlrt", "Training of a kernel in Tucker form along the manifold of its ranks, which adapt.",
    rule: """
      W = C x_i U_i;  unfold_i(C)' = Q R;  K_i = U_i R' - lr unfold_i(G x_j U_j') Q;  U_i' = qr([K_i, U_i])
      C' = C x_i U_i''U_i;  C' <- C' - lr (G x_i U_i''), G the gradient there;  cut every mode where |tail| <= tol |C'|
      """,
    source: "Zangrando, Schotthoefer, Ceruti, Kusch, Tudisco, 2023, arXiv:2305.19059",
    parameters: [
      .lr(0.1, .above(0)), .number("tol", 0.1, .rate, "tail of the singular values of a mode that is cut, relative"),
      .integer("r_min", 1, .atLeast(1), "least rank of a mode"),
      .maybeInteger("r_max", .atLeast(1), "largest rank of a mode; none: its length"),
      .integer("freeze", 0, .atLeast(0), "modes of at most so many entries keep all"),
      .integer("max_iter", 100, .atLeast(0), "steps"),
    ],
    inputs: [
      .constant("w0", "n0, n1, n2, n3", "where it starts"), .result("w", "n0, n1, n2, n3", "the kernel"),
      .result("ranks", "4", "of its modes"), .result("iterations", "", "steps"),
    ],
    asks: [
      RequestKind(
        "gradient", "the gradient at W", given: [.given("point", "n0, n1, n2, n3", "W")],
        wanted: [.wanted("gradient", "n0, n1, n2, n3", "there")])
    ],
    kept: [
      .kept("g", "n0, n1, n2, n3", "gradient"), .kept("bases", "room", "augmented bases, one after the other"),
      .kept("core", "n0, n1, n2, n3", "core in them"), .kept("widths", "4", "its sides"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    ["room": (0..<4).reduce(0) { $0 &+ sizes["n\($1)"] &* sizes["n\($1)"] }]
  }
  enum Phase: Int { case start, ready, bases, core }

  private func isFrozen(_ n: Int) -> Bool { n <= h.integer("freeze") }
  private func most(_ n: Int) -> Int { isFrozen(n) ? n : min(n, h.has("r_max") ? h.integer("r_max") : n) }
  private func least(_ n: Int) -> Int { min(h.integer("r_min"), most(n)) }
  private func identity(_ n: Int) -> [Double] { (0..<n * n).map { $0 % (n + 1) == 0 ? 1 : 0 } }
  private func tensor<T: Real>(_ v: Vector<T>, _ dims: [Int]) -> NamedTensor {
    NamedTensor(names: [0, 1, 2, 3], dims: dims, values: (0..<dims.reduce(1, *)).map { Double(v.p[$0]) })
  }
  private func put<T: Real>(_ t: NamedTensor, _ v: Vector<T>) {
    v.fill(0)
    for (i, x) in t.values.enumerated() { v.p[i] = T(x) }
  }
  private func counts<T: Real>(_ v: Vector<T>, _ dims: [Int]) throws(Failure) -> [Int] {
    var out: [Int] = []
    for k in 0..<4 {
      let x = Double(v.p[k])
      guard x >= 1, x <= Double(dims[k]), x == x.rounded() else {
        throw Failure(Status.format, "rank \(k) must be from 1 to \(dims[k]), got \(text(x))")
      }
      out.append(Int(x))
    }
    return out
  }
  /// The first columns of the left singular vectors of every mode, the identity of a frozen one.
  private func factors(_ w: NamedTensor, _ ranks: [Int]) throws(Failure) -> [[Double]] {
    var out: [[Double]] = []
    for k in 0..<4 {
      if isFrozen(w.dims[k]) {
        out.append(identity(w.dims[k]))
        continue
      }
      let a = w.unfolded(k), svd = try LinearAlgebra.SVD(a.values, a.rows, a.columns), r = ranks[k]
      out.append((0..<a.rows * r).map { svd.u[$0 / r * svd.r + $0 % r] })
    }
    return out
  }
  /// A rank is no larger than the product of the others, nor than the sides of the unfolding; a frozen mode keeps its
  /// length.
  private func feasible(_ ranks: [Int], _ dims: [Int]) -> [Int] {
    var r = ranks
    for _ in 0..<4 {
      for k in 0..<4 where !isFrozen(dims[k]) {
        let others = (0..<4).reduce(1) { $1 == k ? $0 : $0 * r[$1] }
        r[k] = max(1, min(r[k], dims[k], others))
      }
    }
    return r
  }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let w = try io["w"], g = try io["g"], ranks = try io["ranks"], dims = w.shape, lr: Double = h.lr
    guard dims.count == 4 else { throw Failure(Status.internal, "tdlrt: four axes") }
    switch phase {
    case .start:
      let r = feasible(dims.map(most), dims), start = tensor(try io["w0"], dims), bases = try factors(start, r)
      var kernel = start
      for k in 0..<4 {
        kernel = try kernel.times(bases[k], dims[k], r[k], along: k, transposed: true)
      }
      for k in 0..<4 { kernel = try kernel.times(bases[k], dims[k], r[k], along: k, transposed: false) }
      put(kernel, w)
      for k in 0..<4 { ranks.p[k] = T(r[k]) }
      return .go(.ready)
    case .ready:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("gradient", [w], [g], then: .bases)
    case .bases:
      let r = try counts(ranks, dims), kernel = tensor(w, dims), G = tensor(g, dims)
      let U = try factors(kernel, r)
      var core = kernel
      for k in 0..<4 { core = try core.times(U[k], dims[k], r[k], along: k, transposed: true) }
      var moved = core, place = 0, widths: [Int] = []
      let bases = try io["bases"]
      for k in 0..<4 {
        let n = dims[k]
        if isFrozen(n) {
          for (i, x) in identity(n).enumerated() { bases.p[place + i] = T(x) }
          place += n * n
          widths.append(n)
          continue
        }
        let c = core.unfolded(k)
        let Q = try LinearAlgebra.orthonormal(LinearAlgebra.transposed(c.values, c.rows, c.columns), c.columns, r[k])
        var cut = G
        for j in 0..<4 where j != k { cut = try cut.times(U[j], dims[j], r[j], along: j, transposed: true) }
        // K = U·Rᵀ with Rᵀ = unfold(C)·Q
        var coordinates = [Double](repeating: 0, count: r[k] * r[k]), K = [Double](repeating: 0, count: n * r[k])
        try LinearAlgebra.multiply(c.values, Q, into: &coordinates, r[k], r[k], c.columns)
        try LinearAlgebra.multiply(U[k], coordinates, into: &K, n, r[k], r[k])
        try LinearAlgebra.multiply(cut.unfolded(k).values, Q, into: &K, n, r[k], c.columns, alpha: -lr, beta: 1)
        let basis = try LowRank.augmented(K, U[k], n, r[k], min(2 * r[k], n)), width = min(2 * r[k], n)
        for i in 0..<n * width { bases.p[place + i] = T(basis[i]) }
        place += n * n
        widths.append(width)
        var turn = [Double](repeating: 0, count: width * r[k])
        try LinearAlgebra.multiply(basis, transposed: true, U[k], into: &turn, width, r[k], n)
        moved = try moved.times(turn, width, r[k], along: k, transposed: false)
      }
      put(moved, try io["core"])
      for k in 0..<4 { try io["widths"].p[k] = T(widths[k]) }
      put(try expanded(moved, io, widths, dims), w)
      return .ask("gradient", [w], [g], then: .core)
    case .core:
      let widths = try counts(try io["widths"], dims), bases = try bases(io, widths, dims)
      var core = tensor(try io["core"], widths), cut = tensor(g, dims)
      for k in 0..<4 { cut = try cut.times(bases[k], dims[k], widths[k], along: k, transposed: true) }
      for i in 0..<core.count { core.values[i] -= lr * cut.values[i] }
      let size = core.values.reduce(0) { $0 + $1 * $1 }.squareRoot()
      var small = core, r: [Int] = []
      var turns: [[Double]] = []
      for k in 0..<4 {
        if isFrozen(dims[k]) {
          turns.append(identity(dims[k]))
          r.append(dims[k])
          continue
        }
        let a = core.unfolded(k), svd = try LinearAlgebra.SVD(a.values, a.rows, a.columns)
        let rank = LowRank.cut(svd.s, h.tol, of: size, least: least(dims[k]), most: most(dims[k]))
        turns.append((0..<a.rows * rank).map { svd.u[$0 / rank * svd.r + $0 % rank] })
        r.append(rank)
      }
      for k in 0..<4 { small = try small.times(turns[k], widths[k], r[k], along: k, transposed: true) }
      for k in 0..<4 { small = try small.times(turns[k], widths[k], r[k], along: k, transposed: false) }
      put(try expanded(small, io, widths, dims), w)
      for (k, rank) in feasible(r, dims).enumerated() { ranks.p[k] = T(rank) }
      io.iterations += 1
      return .go(.ready)
    }
  }

  private func bases<T: Real>(_ io: DriverIO<T>, _ widths: [Int], _ dims: [Int]) throws(Failure) -> [[Double]] {
    let all = try io["bases"]
    var out: [[Double]] = [], place = 0
    for k in 0..<4 {
      out.append((0..<dims[k] * widths[k]).map { Double(all.p[place + $0]) })
      place += dims[k] * dims[k]
    }
    return out
  }
  private func expanded<T: Real>(_ core: NamedTensor, _ io: DriverIO<T>, _ widths: [Int], _ dims: [Int]) throws(Failure)
    -> NamedTensor
  {
    var out = core
    for (k, basis) in try bases(io, widths, dims).enumerated() {
      out = try out.times(basis, dims[k], widths[k], along: k, transposed: false)
    }
    return out
  }
}

/// A network of one tensor an axis, whose bonds grow where that helps most.
///
///     every axis of the target has a core with one bond to each other core, of rank 1 at first
///     fit; then max_steps times: for every edge (i, j) a slice is added to the bond of a copy (small normal numbers),
///     which is fitted for probe_sweeps; the copy of the least loss (the first on a tie) is fitted in full, and kept
///     a sweep: the least squares of each core, the others fixed
///
/// The loss is Σ mask·(T − network)² over Σ mask·T². It never rises: the larger network contains the smaller one.
/// Ends     converged: loss ≤ target; max_iter: max_steps bonds have grown.
/// Errors   TW_ERROR_SHAPE: more than 8 axes, or fewer than 2.
/// Differs  the loss is relative (UNVERIFIED). Draws of the first cores are (seed, 0, 0, axis), those of the slices of
///          edge (i, j) of growth s (seed, 0, 1 + s·d² + i·d + j, i or j). Singular values below 1e-12 of the largest
///          count as 0 in the least squares. Splitting of cores is not carried, nor losses that the host computes.
/// Source   Hashemizadeh, Liu, Miller, Rabusseau, 2020, arXiv:2008.05437.
struct GreedyTN: Driver {
  static let method = Method.solver(
    "greedy_tn", "A tensor network for a target tensor, whose bonds grow where that helps most.",
    rule: """
      rank 1 everywhere, fit;  for every edge: add a slice to its bond, fit shortly;  keep the best, fit;  repeat
      fit: the least squares of each core, the others fixed
      """,
    source: "Hashemizadeh, Liu, Miller, Rabusseau, 2020, arXiv:2008.05437",
    parameters: [
      .integer("max_steps", 5, .within(0, 4096), "bonds that grow"),
      .number("target", 1e-6, .atLeast(0), "loss that ends it"),
      .integer("sweeps", 10, .atLeast(1), "of a full fit"), .integer("probe_sweeps", 1, .atLeast(1), "of a trial"),
      .number("slice_scale", 1e-2, .above(0), "standard deviation of new slices"),
      .integer("seed", 0, .atLeast(0), "of the draws"),
    ],
    inputs: [
      .constant("tensor", "...", "the target"),
      .constant("mask", "...", "weights of its entries, 0 or 1", optional: true),
      .result("network", "...", "the network, contracted"),
      .result("ranks", "8, 8", "of the bonds, in the first rows and columns; 0 elsewhere"),
      .result("loss", "", "relative squared error"), .result("steps", "", "bonds that have grown"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let t = try io["tensor"], d = t.shape.count, seed = UInt64(bitPattern: Int64(h.integer("seed")))
    guard (2...8).contains(d) else {
      throw Failure(Status.shape, "`tensor` must have 2 to 8 axes, got shape \(t.shape)")
    }
    guard t.isFinite else { throw Failure(Status.nonfinite, "`tensor` must be finite") }
    let mask = io.optional("mask").map { m in (0..<m.count).map { Double(m.p[$0]) } }
    if let (i, x) = mask?.enumerated().first(where: { !($0.element >= 0 && $0.element.isFinite) }) {
      throw Failure(Status.range, "`mask` must hold weights of at least 0, got \(text(x)) at element \(i)")
    }
    let target = NamedTensor(names: Array(0..<d), dims: t.shape, values: (0..<t.count).map { Double(t.p[$0]) })
    func draws(_ step: Int, _ tensor: Int, _ n: Int) -> [Double] {
      let key = Random.key(seed: seed, stream: 0, step: UInt64(step), tensor: UInt32(tensor))
      return (0..<n).map { Random.normal(key, $0) }
    }
    var best = Network(target: target, mask: mask, cores: (0..<d).map { draws(0, $0, t.shape[$0]) })
    io.loss = try best.fit(h.integer("sweeps"))
    while io.loss > h.target, io.steps < h.max_steps {
      let growth = try io.count("steps")
      var found: (network: Network, loss: Double)?
      for i in 0..<d {
        for j in (i + 1)..<max(i + 1, d) {
          var trial = best
          let step = 1 + growth * d * d + i * d + j
          trial.grow(i, j) { draws(step, $0, $1).map { $0 * h.slice_scale } }
          let loss = try trial.fit(h.integer("probe_sweeps"))
          if loss < found?.loss ?? .infinity { found = (trial, loss) }
        }
      }
      guard var next = found?.network else { break }
      let loss = try next.fit(h.integer("sweeps"))
      best = next
      io.loss = loss
      io.steps += 1
    }
    let whole = try best.contracted(), out = try io["network"], ranks = try io["ranks"]
    for (i, x) in whole.enumerated() { out.p[i] = T(x) }
    for i in 0..<d { for j in 0..<d where i != j { ranks.p[i * 8 + j] = T(best.rank(i, j)) } }
    return .done(io.loss <= h.target ? .converged : .maxIter)
  }

  /// The cores; core i has its bonds to the others, in their order, then its own axis.
  struct Network {
    let target: NamedTensor, mask: [Double]?
    private var cores: [NamedTensor]
    private var d: Int { cores.count }

    init(target: NamedTensor, mask: [Double]?, cores: [[Double]]) {
      (self.target, self.mask) = (target, mask)
      let d = cores.count
      self.cores = cores.enumerated().map { i, values in
        let bonds = (0..<d).filter { $0 != i }.map { Network.bond(i, $0, d) }
        return NamedTensor(
          names: bonds + [i], dims: bonds.map { _ in 1 } + [values.count], values: values)
      }
    }
    private static func bond(_ i: Int, _ j: Int, _ d: Int) -> Int { d + min(i, j) * d + max(i, j) }
    func rank(_ i: Int, _ j: Int) -> Int { cores[i].size(Network.bond(i, j, d)) }

    mutating func grow(_ i: Int, _ j: Int, _ slice: (_ core: Int, _ count: Int) -> [Double]) {
      let name = Network.bond(i, j, d)
      for k in [i, j] {
        let order = cores[k].names, rest = order.filter { $0 != name }
        var first = cores[k].arranged([name] + rest)
        first.values += slice(k, first.count / first.dims[0])
        first.dims[0] += 1
        cores[k] = first.arranged(order)
      }
    }
    /// The other cores contracted: (their axes, bonds of i).
    private func environment(_ i: Int) throws(Failure) -> NamedTensor {
      var all: NamedTensor?
      for k in 0..<d where k != i {
        if let so = all { all = try so.contracted(cores[k]) } else { all = cores[k] }
      }
      let others = (0..<d).filter { $0 != i }
      guard let all else { throw Failure(Status.internal, "a network of one core") }
      return all.arranged(others + others.map { Network.bond(i, $0, d) })
    }
    func contracted() throws(Failure) -> [Double] {
      try environment(0).contracted(cores[0]).arranged(Array(0..<d)).values
    }

    mutating func fit(_ sweeps: Int) throws(Failure) -> Double {
      for _ in 0..<sweeps { for i in 0..<d { try solve(i) } }
      let network = try contracted()
      var error = 0.0, size = 0.0
      for (k, x) in target.values.enumerated() {
        let weight = mask?[k] ?? 1
        error += weight * (x - network[k]) * (x - network[k])
        size += weight * x * x
      }
      return size == 0 ? error : error / size
    }

    /// The least squares of core i.
    private mutating func solve(_ i: Int) throws(Failure) {
      let E = try environment(i), n = cores[i].size(i), columns = cores[i].count / max(1, n),
        rows = E.count / max(1, columns)
      let own = [i] + (0..<d).filter { $0 != i }
      let right = target.arranged(own).values
      let weights = mask.map { NamedTensor(names: target.names, dims: target.dims, values: $0).arranged(own).values }
      var solution = [Double](repeating: 0, count: n * columns)
      if weights == nil {
        let inverse = try pseudoinverse(E.values, rows, columns)
        try LinearAlgebra.multiply(
          right, transposed: false, inverse, transposed: true, into: &solution, n, columns, rows)
      } else {
        for x in 0..<n {
          var a = E.values, b = Array(right[(x * rows)..<((x + 1) * rows)])
          for r in 0..<rows {
            let w = (weights?[x * rows + r] ?? 1).squareRoot()
            b[r] *= w
            for c in 0..<columns { a[r * columns + c] *= w }
          }
          let inverse = try pseudoinverse(a, rows, columns)
          for c in 0..<columns {
            solution[x * columns + c] = (0..<rows).reduce(0) { $0 + inverse[c * rows + $1] * b[$1] }
          }
        }
      }
      let bonds = cores[i].names.dropLast()
      cores[i] = NamedTensor(
        names: [i] + bonds, dims: [n] + bonds.map { cores[i].size($0) }, values: solution
      ).arranged(cores[i].names)
    }
    private func pseudoinverse(_ a: [Double], _ rows: Int, _ columns: Int) throws(Failure) -> [Double] {
      let svd = try LinearAlgebra.SVD(a, rows, columns), floor = 1e-12 * (svd.s.first ?? 0)
      try Memory.ask(8 * rows * columns)
      var out = [Double](repeating: 0, count: columns * rows)
      for k in 0..<svd.r where svd.s[k] > floor {
        for c in 0..<columns {
          let f = svd.vt[k * columns + c] / svd.s[k]
          if f != 0 { for r in 0..<rows { out[c * rows + r] += f * svd.u[r * svd.r + k] } }
        }
      }
      return out
    }
  }
}
