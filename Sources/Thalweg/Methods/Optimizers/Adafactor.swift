import Glibc

/// Adafactor: the second moment of a matrix is kept as the sums of its rows and columns.
///
///     k = t^beta2_decay;   a = max(eps2, RMS(θ))·min(lr, 1/√t);   θ ← θ·(1 − lr·wd)
///     r ← r + k·(mean of g² over columns − r);   c ← c + k·(mean over rows − c);   V = r·c/max(mean(r), eps1)
///     u = g/√max(V, eps1²);   θ ← θ − a/max(1, RMS(u)/d)·u
///
/// State    r and c over the last two axes (leading axes are problems of their own); v for tensors of rank 0 and 1.
/// Differs  nothing from torch.optim.Adafactor: no first moment. `eps1=none` is the machine epsilon of the type that is computed with.
/// Source   Shazeer and Stern, 2018, arXiv:1804.04235.
struct Adafactor: WholeRule {
  static let method = Method(
    "adafactor", .optimizer, "Adafactor: the second moment of a matrix is kept as the sums of its rows and columns.",
    rule: """
      k = t^beta2_decay;  a = max(eps2, RMS(theta))*min(lr, 1/sqrt(t));  theta <- theta*(1 - lr*weight_decay)
      r <- r + k*(mean_columns(g^2) - r);  c <- c + k*(mean_rows(g^2) - c);  V = r*c/max(mean(r), eps1)
      u = g/sqrt(max(V, eps1^2));  theta <- theta - a/max(1, RMS(u)/d)*u
      """,
    source: "Shazeer, Stern, 2018, arXiv:1804.04235",
    parameters: [
      .lr(1e-2), .number("beta2_decay", -0.8, .atMost(0), "the second moment takes t^beta2_decay of the new square"),
      .maybe("eps1", .above(0), "floor of the root of the estimate; none: the machine epsilon"),
      .number("eps2", 1e-3, .atLeast(0), "floor of the RMS of the parameters"), .number("d", 1, .atLeast(1), "largest RMS of the update"),
      .weightDecay(0, "decoupled weight decay"),
    ],
    slots: [
      Slot("row_var", "second moment of the rows r"), Slot("col_var", "second moment of the columns c"),
      Slot("variance", "second moment v of tensors of rank 0 and 1"),
    ])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    guard shape.ndim >= 2 else { return [method.slots[2]] }
    let d = shape.dimensions.suffix(2), n = shape.count
    var (rows, columns) = (method.slots[0], method.slots[1])
    rows.count = n / max(1, d[d.endIndex - 1])
    columns.count = n / max(1, d[d.endIndex - 2])
    return [rows, columns]
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let k, step, floor, eps2, d: Double

  init(_ h: Hyper, _ c: StepContext) {
    k = pow(c.time, h.beta2_decay)
    // the engine multiplies by lr: what is left of min(lr, 1/√t)
    step = min(1, 1 / (c.lr * c.time.squareRoot()))
    floor = h.has("eps1") ? h.eps1 : c.isDouble ? Double.ulpOfOne : Double(Float.ulpOfOne)
    (eps2, d) = (h.eps2, h.d)
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let n = t.count
    guard n > 0 else { return }
    let scale = step * max(eps2, (Flat.squaredNorm(t.w, n) / Double(n)).squareRoot())
    guard t.shape.ndim >= 2 else {
      let v = t.slots[0]
      for i in 0..<n { v[i] += T(k) * (t.v[i] * t.v[i] - v[i]) }
      let least = T(floor * floor)
      for i in 0..<n { t.v[i] /= max(v[i], least).squareRoot() }
      Flat.scale(t.v, by: scale / max(1, (Flat.squaredNorm(t.v, n) / Double(n)).squareRoot() / d), into: t.v, n)
      return
    }
    let columns = t.shape.dimensions[t.shape.ndim - 1], rows = t.shape.dimensions[t.shape.ndim - 2]
    let size = rows * columns, problems = n / size
    let factors = (0..<problems).map { b in
      moments(t.v + b * size, rows, columns, t.slots[0] + b * rows, t.slots[1] + b * columns)
    }
    var square = 0.0
    for b in 0..<problems { square += factors[b].squares(t.v + b * size) }
    let share = scale / max(1, (square / Double(n)).squareRoot() / d)
    for b in 0..<problems { factors[b].scale(t.v + b * size, by: share) }
  }

  /// Moves the sums of rows and columns, and returns the estimate that they make.
  private func moments<T: Real>(
    _ g: UnsafePointer<T>, _ rows: Int, _ columns: Int, _ r: UnsafeMutablePointer<T>, _ c: UnsafeMutablePointer<T>
  ) -> Factors<T> {
    var sums = [Double](repeating: 0, count: columns)
    sums.withUnsafeMutableBufferPointer { p in
      guard let column = p.baseAddress else { return }
      for i in 0..<rows {
        let mean = Adafactor.addSquares(g + i * columns, columns, column) / Double(columns)
        r[i] = T(Double(r[i]) + k * (mean - Double(r[i])))
      }
    }
    for j in 0..<columns { c[j] = T(Double(c[j]) + k * (sums[j] / Double(rows) - Double(c[j]))) }
    var total = 0.0
    for i in 0..<rows { total += Double(r[i]) }
    return Factors(r, c, rows, columns, mean: max(total / Double(rows), floor), floor: floor * floor)
  }

  /// One over the root of the estimate r·c, as a product of a factor a row and one a column; rows where some entry meets the floor are
  /// computed entry by entry.
  private struct Factors<T: Real> {
    let rows, columns: Int
    let row: [T], column: [T]
    let share: [Double]
    let c: UnsafeMutablePointer<T>
    let floor, least: Double

    init(_ r: UnsafeMutablePointer<T>, _ c: UnsafeMutablePointer<T>, _ rows: Int, _ columns: Int, mean: Double, floor: Double) {
      (self.rows, self.columns, self.c, self.floor) = (rows, columns, c, floor)
      share = (0..<rows).map { Double(r[$0]) / mean }
      row = share.map { T(1 / $0.squareRoot()) }
      column = (0..<columns).map { T(1 / Double(c[$0]).squareRoot()) }
      var least = Double.infinity
      for j in 0..<columns { least = min(least, Double(c[j])) }
      self.least = least
    }

    /// Calls `body` with every vector of u = g/√V of the whole width, then with the entries that are left.
    @inline(__always)
    func forEach(_ g: UnsafeMutablePointer<T>, _ vector: (UnsafeMutablePointer<T>, T.Vector) -> Void, _ entry: (UnsafeMutablePointer<T>, T) -> Void) {
      typealias L = T.Vector
      column.withUnsafeBufferPointer { p in
        guard let column = p.baseAddress else { return }
        for i in 0..<rows {
          let line = g + i * columns, share = self.share[i]
          let product = share * least >= floor && share * least < .infinity
          let factor = L(Double(row[i])), low = L(floor), scale = L(share)
          var j = 0
          while j &+ L.width <= columns {
            let at = line + j, x = L.load(at)
            vector(at, product ? x * factor * L.load(column + j) : x / L.max(scale * L.load(c + j), low).squareRoot())
            j &+= L.width
          }
          while j < columns {
            entry(line + j, product ? line[j] * row[i] * column[j] : line[j] / max(T(share) * c[j], T(floor)).squareRoot())
            j &+= 1
          }
        }
      }
    }

    func squares(_ g: UnsafeMutablePointer<T>) -> Double {
      var sums = Sums(), rest = 0.0
      forEach(g, { _, u in sums.add(0, u, times: u) }, { _, u in rest += Double(u) * Double(u) })
      return sums.first + rest
    }

    func scale(_ g: UnsafeMutablePointer<T>, by share: Double) {
      let factor = T.Vector(share), one = T(share)
      forEach(g, { p, u in (u * factor).store(p) }, { p, u in p.pointee = u * one })
    }
  }

  /// Adds the squares of a row to the sums of the columns; returns their sum.
  private static func addSquares<T: Real>(_ x: UnsafePointer<T>, _ n: Int, _ columns: UnsafeMutablePointer<Double>) -> Double {
    typealias L = T.Vector
    var low = SIMD8<Double>(repeating: 0), high = low, rest = 0.0
    var j = 0
    while j &+ L.width <= n {
      let w = L.load(x + j).wide
      let a = w.low * w.low
      low += a
      (SIMD8<Double>.load(UnsafePointer(columns + j)) + a).store(columns + j)
      if L.width == 16 {
        let b = w.high * w.high
        high += b
        (SIMD8<Double>.load(UnsafePointer(columns + (j &+ 8))) + b).store(columns + (j &+ 8))
      }
      j &+= L.width
    }
    while j < n {
      let a = Double(x[j]) * Double(x[j])
      rest += a
      columns[j] += a
      j &+= 1
    }
    return (low + high).sum() + rest
  }
}
