import Glibc
import ThalwegCore

/// Adafactor: the second moment of a matrix is kept as the sums of its rows and columns.
///
///     k = t^beta2_decay;   a = max(eps2, RMS(θ))·min(lr, 1/√t);   θ ← θ·(1 − lr·wd)
///     r ← r + k·(mean of g² over columns − r);   c ← c + k·(mean over rows − c);   V = r·c/max(mean(r), eps1)
///     u = g/√max(V, eps1²);   θ ← θ − a/max(1, RMS(u)/d)·u
///
/// State    r and c over the last two axes (leading axes are problems of their own); v for tensors of rank 0 and 1.
/// Differs  nothing from torch.optim.Adafactor: no first moment. `eps1=none` is the machine epsilon of the type that is
///          computed with.
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
      .number("eps2", 1e-3, .atLeast(0), "floor of the RMS of the parameters"),
      .number("d", 1, .atLeast(1), "largest RMS of the update"),
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

  /// Matrices over the last two axes, and how they are cut: many side by side, or one in parts of its rows.
  private struct Matrices {
    let rows, columns: Int
    let all, lines: Parts

    init(_ shape: Shape) {
      (rows, columns) = (shape.dimensions[shape.ndim - 2], shape.dimensions[shape.ndim - 1])
      all = Parts(shape.count / max(1, rows &* columns), of: rows &* columns)
      lines = all.lines == 1 ? Parts(rows, of: columns) : Parts(whole: rows)
    }
    /// Room for the work on one matrix: sums of columns for every part of the rows, what Factors holds.
    var wide: Int { aligned(8 * (lines.count * columns + rows)) }
    func room(_ size: Int) -> Int { wide + aligned(size * (rows + columns)) }
  }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    guard shape.ndim >= 2, shape.count > 0 else { return 0 }
    let m = Matrices(shape)
    return m.all.count * m.room(size)
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let n = t.count, entries = Parts(n, of: 1)
    guard n > 0 else { return }
    func rms(_ square: Double) -> Double { (square / Double(n)).squareRoot() }
    let scale = step * max(eps2, rms(entries.sum { _, i in Flat.squaredNorm(t.w + i.lowerBound, i.count) }))
    guard t.shape.ndim >= 2 else {
      let v = t.slots[0], least = T(floor * floor)
      for i in 0..<n {
        v[i] += T(k) * (t.v[i] * t.v[i] - v[i])
        t.v[i] /= max(v[i], least).squareRoot()
      }
      return Flat.scale(t.v, by: scale / max(1, rms(Flat.squaredNorm(t.v, n)) / d), into: t.v, n)
    }
    let m = Matrices(t.shape)
    m.all.forEach { part, list in for b in list { moveMoments(t, m, b, part) } }
    let square = m.all.sum { part, list in
      list.reduce(0) { sum, b in
        let u = Factors(t, m, b, part, floor)
        return sum + m.lines.sum { _, rows in u.squares(rows) }
      }
    }
    let share = scale / max(1, rms(square) / d)
    m.all.forEach { part, list in
      for b in list {
        let u = Factors(t, m, b, part, floor)
        m.lines.forEach { _, rows in u.scale(rows, by: share) }
      }
    }
  }

  private func moveMoments<T: Real>(_ t: Whole<T>, _ m: Matrices, _ b: Int, _ part: Int) {
    let g = t.v + b * m.rows * m.columns, r = t.slots[0] + b * m.rows, c = t.slots[1] + b * m.columns
    let sums = (t.workspace + part * m.room(MemoryLayout<T>.stride)).assumingMemoryBound(to: Double.self)
    m.lines.forEach { p, rows in
      let columns = sums + p * m.columns
      columns.initialize(repeating: 0, count: m.columns)
      for i in rows {
        let mean = Flat.addSquares(g + i * m.columns, m.columns, to: columns) / Double(m.columns)
        r[i] = T(Double(r[i]) + k * (mean - Double(r[i])))
      }
    }
    for j in 0..<m.columns {
      let sum = (0..<m.lines.count).reduce(0) { $0 + sums[$1 * m.columns + j] }
      c[j] = T(Double(c[j]) + k * (sum / Double(m.rows) - Double(c[j])))
    }
  }

  /// One over the root of the estimate r·c, as a product of a factor a row and one a column; rows where some entry
  /// meets the floor are computed entry by entry.
  private struct Factors<T: Real> {
    let g, c, row, column: UnsafeMutablePointer<T>
    let share: UnsafeMutablePointer<Double>
    let columns: Int
    let floor, least: Double

    init(_ t: Whole<T>, _ m: Matrices, _ b: Int, _ part: Int, _ eps: Double) {
      let space = t.workspace + part * m.room(MemoryLayout<T>.stride), r = t.slots[0] + b * m.rows
      (g, c, columns) = (t.v + b * m.rows * m.columns, t.slots[1] + b * m.columns, m.columns)
      share = space.assumingMemoryBound(to: Double.self) + m.lines.count * m.columns
      row = (space + m.wide).assumingMemoryBound(to: T.self)
      column = row + m.rows
      let mean = max((0..<m.rows).reduce(0) { $0 + Double(r[$1]) } / Double(m.rows), eps)
      for i in 0..<m.rows {
        share[i] = Double(r[i]) / mean
        row[i] = T(1 / share[i].squareRoot())
      }
      var least = Double.infinity
      for j in 0..<columns {
        let x = Double(c[j])
        column[j] = T(1 / x.squareRoot())
        least = min(least, x)
      }
      (self.least, floor) = (least, eps * eps)
    }

    /// u = g/√V over one row.
    private struct Row {
      let g, c, column: UnsafeMutablePointer<T>
      let row: T, share, floor: Double
      let product: Bool

      @inline(__always) func vector(_ j: Int) -> T.Vector {
        typealias L = T.Vector
        let x = L.load(g + j)
        return product
          ? x * L(Double(row)) * L.load(column + j) : x / L.max(L(share) * L.load(c + j), L(floor)).squareRoot()
      }
      @inline(__always) func entry(_ j: Int) -> T {
        product ? g[j] * row * column[j] : g[j] / max(T(share) * c[j], T(floor)).squareRoot()
      }
    }
    @inline(__always) private func u(_ i: Int) -> Row {
      let low = share[i] * least
      return Row(
        g: g + i * columns, c: c, column: column, row: row[i], share: share[i], floor: floor,
        product: low >= floor && low < .infinity)
    }

    func squares(_ rows: Swift.Range<Int>) -> Double {
      var sums = Sums(), rest = 0.0
      for i in rows {
        let u = u(i)
        var j = 0
        while j &+ T.Vector.width <= columns {
          let x = u.vector(j)
          sums.add(0, x, times: x)
          j &+= T.Vector.width
        }
        while j < columns {
          let x = Double(u.entry(j))
          rest += x * x
          j &+= 1
        }
      }
      return sums.first + rest
    }

    func scale(_ rows: Swift.Range<Int>, by share: Double) {
      let factor = T.Vector(share)
      for i in rows {
        let u = u(i)
        var j = 0
        while j &+ T.Vector.width <= columns {
          (u.vector(j) * factor).store(u.g + j)
          j &+= T.Vector.width
        }
        while j < columns {
          u.g[j] = u.entry(j) * T(share)
          j &+= 1
        }
      }
    }
  }
}
