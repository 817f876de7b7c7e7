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
///          computed with; eps1² is at least the smallest normal number of that type.
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
    let all = method.slots
    return shape.ndim >= 2 ? FactoredMoment.slots(all[0], all[1], shape) : [all[2]]
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

  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { FactoredMoment.workspace(shape, size) }

  /// u of a tensor of rank 0 or 1.
  struct Direction: ElementOperation {
    let k, floor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let v = (1 - k) * s[0] + k * (x * x)
      s[0] = v
      x = x / L.max(v, floor).squareRoot()
    }
  }
  struct Scale: ElementOperation {
    let factor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = x * factor }
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let n = Double(t.count)
    guard n > 0 else { return }
    let scale = step * max(eps2, (t.sums(SquaredNorm()).first / n).squareRoot())
    func share(_ square: Double) -> Double { scale / max(1, (square / n).squareRoot() / d) }
    guard let f = FactoredMoment(t.shape) else {
      t.change(Direction(k: k, floor: max(floor * floor, Double(T.leastNormalMagnitude))), slots: 0..<1)
      return t.change(Scale(factor: share(t.sums(SquaredValues()).first)))
    }
    let size = f.rows * f.columns, rate = FactoredMoment.Rate(keep: 1 - k, new: k, eps: 0)
    func estimate(_ b: Int) -> Estimate<T> {
      Estimate(f, t.slots[0] + b * f.rows, t.slots[1] + b * f.columns, floor)
    }
    let square = f.all.sum { part, list in
      list.reduce(0) { sum, b in
        let g = t.v + b * size, r = t.slots[0] + b * f.rows, c = t.slots[1] + b * f.columns
        let over = f.take(g, r, c, rate, f.room(t.workspace, part)), v = estimate(b)
        return sum + (v.isProduct(v.leastRow) ? over * v.mean : f.lines.sum { _, rows in v.squares(g, rows) })
      }
    }
    let factor = share(square)
    f.all.forEach { part, list in
      for b in list {
        let g = t.v + b * size, v = estimate(b), room: FactoredMoment.Room<T> = f.room(t.workspace, part)
        f.factors(v.r, v.c, mean: v.mean, scale: factor, into: room)
        f.lines.forEach { _, rows in
          if v.isProduct(v.leastRow) { return f.multiply(g, rows, by: room, into: g) }
          for i in rows {
            if v.isProduct(Double(v.r[i])) {
              f.multiply(g, i..<(i + 1), by: room, into: g)
            } else {
              v.divide(g + i * f.columns, i, times: factor)
            }
          }
        }
      }
    }
  }

  /// The estimate V = r·c/mean(r) of one matrix. It is a product of a factor a row and one a column, but in rows where
  /// some entry meets the floor: those are computed entry by entry.
  private struct Estimate<T: Real> {
    let r, c: UnsafeMutablePointer<T>
    let columns: Int
    let mean, floor, leastRow, leastColumn: Double

    init(_ f: FactoredMoment, _ r: UnsafeMutablePointer<T>, _ c: UnsafeMutablePointer<T>, _ eps: Double) {
      (self.r, self.c, columns, floor) = (r, c, f.columns, max(eps * eps, Double(T.leastNormalMagnitude)))
      mean = max(Flat.sum(r, f.rows) / Double(f.rows), eps)
      var (row, column) = (Double.infinity, Double.infinity)
      for i in 0..<f.rows { row = min(row, Double(r[i])) }
      for j in 0..<f.columns { column = min(column, Double(c[j])) }
      (leastRow, leastColumn) = (row, column)
    }

    /// Whether a row with this mean stays above the floor.
    func isProduct(_ row: Double) -> Bool {
      let least = row / mean * leastColumn
      return least >= floor && least < .infinity
    }

    /// u = g/√V over one row, entry by entry.
    private struct Row {
      let g, c: UnsafeMutablePointer<T>
      let share, floor: Double
      @inline(__always) func vector(_ j: Int) -> T.Vector {
        typealias L = T.Vector
        return L.load(g + j) / L.max(L(share) * L.load(c + j), L(floor)).squareRoot()
      }
      @inline(__always) func entry(_ j: Int) -> T { g[j] / max(T(share) * c[j], T(floor)).squareRoot() }
    }

    func squares(_ g: UnsafeMutablePointer<T>, _ rows: Swift.Range<Int>) -> Double {
      var sums = Sums(), rest = 0.0
      for i in rows {
        let u = Row(g: g + i * columns, c: c, share: Double(r[i]) / mean, floor: floor)
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

    /// g of row i becomes u, times a factor.
    func divide(_ g: UnsafeMutablePointer<T>, _ i: Int, times factor: Double) {
      let u = Row(g: g, c: c, share: Double(r[i]) / mean, floor: floor), scale = T.Vector(factor)
      var j = 0
      while j &+ T.Vector.width <= columns {
        (u.vector(j) * scale).store(g + j)
        j &+= T.Vector.width
      }
      while j < columns {
        g[j] = u.entry(j) * T(factor)
        j &+= 1
      }
    }
  }
}
