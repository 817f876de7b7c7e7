/// A positive tensor as the means of its rows and columns over the last two axes; leading axes stand for many matrices.
///
/// Many matrices are worked on side by side, or one in parts of its rows; the cut depends on the shape alone. One pass
/// over a matrix x moves the means r and c of its squares and gives Σ x²/(r·c): a row is read again, for its share in
/// that sum, while the cache holds it. So what x is divided by is known in size before it is divided. A mean of squares
/// beyond the largest number is that number.
public struct FactoredMoment {
  public let matrices, rows, columns: Int
  /// The matrices, and the rows of each.
  public let all, lines: Parts

  /// nil: the tensor has no two axes.
  public init?(_ shape: Shape) {
    guard shape.ndim >= 2 else { return nil }
    (rows, columns) = (shape.dimensions[shape.ndim - 2], shape.dimensions[shape.ndim - 1])
    matrices = shape.count / max(1, rows &* columns)
    all = Parts(matrices, of: rows &* columns)
    lines = all.lines == 1 ? Parts(rows, of: columns) : Parts(whole: rows)
  }
  /// Two slots of the right size.
  public static func slots(_ r: Slot, _ c: Slot, _ shape: Shape) -> [Slot] {
    guard let f = FactoredMoment(shape) else { return [] }
    var (r, c) = (r, c)
    r.count = f.matrices &* f.rows
    c.count = f.matrices &* f.columns
    return [r, c]
  }

  /// How a mean moves: to keep·mean + new·(what it is now + eps).
  public struct Rate {
    public let keep, new, eps: Double
    public init(keep: Double, new: Double, eps: Double) { (self.keep, self.new, self.eps) = (keep, new, eps) }
    @inline(__always) public func callAsFunction(_ old: Double, _ now: Double) -> Double {
      keep * old + new * (now + eps)
    }
  }

  /// What is worked with on one matrix: two sums of the columns for every part of the rows, and the factors of rows and
  /// columns.
  public struct Room<T: Real> {
    public let sums: UnsafeMutablePointer<Double>
    public let row, column: UnsafeMutablePointer<T>
  }
  private var wide: Int { aligned(16 &* lines.count &* columns) }
  private func bytes(_ size: Int) -> Int { wide &+ aligned(size &* (rows &+ columns)) }
  /// Bytes of it for all matrices that are worked on at a time.
  public static func workspace(_ shape: Shape, _ size: Int) -> Int {
    guard let f = FactoredMoment(shape) else { return 0 }
    return f.all.count &* f.bytes(size)
  }
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func room<T: Real>(_ workspace: UnsafeMutableRawPointer, _ part: Int) -> Room<T> {
    let space = workspace + part &* bytes(MemoryLayout<T>.stride)
    let row = (space + wide).assumingMemoryBound(to: T.self)
    return Room(sums: space.assumingMemoryBound(to: Double.self), row: row, column: row + rows)
  }

  /// Rows are shorter than a vector, and there are many matrices.
  private func isNarrow<T: Real>(_: T.Type) -> Bool { columns < T.Vector.width && lines.count == 1 }

  /// Moves the means of all matrices; returns Σ x²/V, V = r·c/mean(r).
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func take<T: Real>(
    _ x: UnsafePointer<T>, _ r: UnsafeMutablePointer<T>, _ c: UnsafeMutablePointer<T>, _ rate: Rate,
    _ workspace: UnsafeMutableRawPointer
  ) -> Double {
    all.sum { part, list in
      let room: Room<T> = room(workspace, part)
      if isNarrow(T.self) { return takeNarrow(x, r, c, list, rate, room.sums) }
      return list.reduce(0) { sum, b in
        let r = r + b &* rows, over = take(x + b &* rows &* columns, r, c + b &* columns, rate, room)
        return sum + over * (Flat.sum(r, rows) / Double(rows))
      }
    }
  }
  /// out ← scale·x/√V.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func divide<T: Real>(
    _ x: UnsafePointer<T>, _ r: UnsafePointer<T>, _ c: UnsafePointer<T>, scale: Double = 1,
    _ workspace: UnsafeMutableRawPointer, into out: UnsafeMutablePointer<T>
  ) {
    all.forEach { part, list in
      let room: Room<T> = room(workspace, part)
      if isNarrow(T.self) { return divideNarrow(x, r, c, list, scale, room.column, into: out) }
      for b in list {
        let at = b &* rows &* columns, r = r + b &* rows
        factors(r, c + b &* columns, mean: Flat.sum(r, rows) / Double(rows), scale: scale, into: room)
        lines.forEach { _, some in multiply(x + at, some, by: room, into: out + at) }
      }
    }
  }

  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private func takeNarrow<T: Real>(
    _ x: UnsafePointer<T>, _ r: UnsafeMutablePointer<T>, _ c: UnsafeMutablePointer<T>, _ list: Swift.Range<Int>,
    _ rate: Rate, _ sums: UnsafeMutablePointer<Double>
  ) -> Double {
    let n = columns, perRow = 1 / Double(columns), perColumn = 1 / Double(rows), shares = sums + columns
    var total = 0.0
    for b in list {
      for j in 0..<(2 &* n) { sums[j] = 0 }
      var all = 0.0
      for i in (b &* rows)..<((b &+ 1) &* rows) {
        let row = x + i &* n
        var sum = 0.0
        for j in 0..<n {
          let square = Double(row[j]) * Double(row[j])
          sum += square
          sums[j] += square
        }
        r[i] = .within(rate(Double(r[i]), sum * perRow))
        all += Double(r[i])
        let share = 1 / Double(r[i])
        for j in 0..<n { shares[j] += share * (Double(row[j]) * Double(row[j])) }
      }
      var own = 0.0
      for j in 0..<n {
        let at = b &* n &+ j
        c[at] = .within(rate(Double(c[at]), sums[j] * perColumn))
        own += shares[j] / Double(c[at])
      }
      total += own * (all * perColumn)
    }
    return total
  }
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private func divideNarrow<T: Real>(
    _ x: UnsafePointer<T>, _ r: UnsafePointer<T>, _ c: UnsafePointer<T>, _ list: Swift.Range<Int>, _ scale: Double,
    _ column: UnsafeMutablePointer<T>, into out: UnsafeMutablePointer<T>
  ) {
    let n = columns
    for b in list {
      for j in 0..<n { column[j] = T(1 / Double(c[b &* n &+ j]).squareRoot()) }
      var mean = 0.0
      for i in (b &* rows)..<((b &+ 1) &* rows) { mean += Double(r[i]) }
      mean /= Double(rows)
      for i in (b &* rows)..<((b &+ 1) &* rows) {
        let row = T(scale * (mean / Double(r[i])).squareRoot())
        for j in (i &* n)..<((i &+ 1) &* n) { out[j] = x[j] * row * column[j &- i &* n] }
      }
    }
  }

  /// Moves r and c of one matrix x; returns Σ x²/(r·c).
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func take<T: Real>(
    _ x: UnsafePointer<T>, _ r: UnsafeMutablePointer<T>, _ c: UnsafeMutablePointer<T>, _ rate: Rate, _ room: Room<T>
  ) -> Double {
    take(c, rate, room) { some, sums in
      let first = some.lowerBound
      FactoredMoment.add(x + first &* columns, r + first, some.count, columns, rate, sums, sums + columns)
    }
  }
  /// Moves c by what `body` adds of some of the rows to the sums of the columns; behind those lies room for sums of
  /// what belongs over c, whose quotients are returned.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func take<T: Real>(
    _ c: UnsafeMutablePointer<T>, _ rate: Rate, _ room: Room<T>,
    _ body: (_ rows: Swift.Range<Int>, _ sums: UnsafeMutablePointer<Double>) -> Void
  ) -> Double {
    lines.forEach { part, some in
      let sums = room.sums + 2 &* columns &* part
      sums.update(repeating: 0, count: 2 &* columns)
      body(some, sums)
    }
    for part in 1..<lines.count {
      Flat.add(room.sums + 2 &* columns &* part, times: 1, into: room.sums, 2 &* columns)
    }
    return FactoredMoment.move(c, columns, rate, Double(rows), room.sums, room.sums + columns)
  }

  /// Moves r by the rows of x; adds the squares to the sums of the columns, and the squares over r to `shares`. Four
  /// rows at a time, so that the sums are read and written less often.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private static func add<T: Real>(
    _ x: UnsafePointer<T>, _ r: UnsafeMutablePointer<T>, _ rows: Int, _ n: Int, _ rate: Rate,
    _ columns: UnsafeMutablePointer<Double>, _ shares: UnsafeMutablePointer<Double>
  ) {
    /// Moves the mean of row i; returns one over it.
    @inline(__always) func over(_ i: Int) -> Double {
      r[i] = .within(rate(Double(r[i]), Flat.squaredNorm(x + i &* n, n) / Double(n)))
      return 1 / Double(r[i])
    }
    var i = 0
    while i &+ 4 <= rows, n >= T.Vector.width {
      let share = SIMD4<Double>(over(i), over(i &+ 1), over(i &+ 2), over(i &+ 3))
      addFour(Rows4 { x + (i &+ $0) &* n }, n, share, columns, shares)
      i &+= 4
    }
    while i < rows {
      addOne(x + i &* n, n, over(i), columns, shares)
      i &+= 1
    }
  }
  @inline(__always)
  private static func addOne<T: Real>(
    _ row: UnsafePointer<T>, _ n: Int, _ share: Double, _ columns: UnsafeMutablePointer<Double>,
    _ shares: UnsafeMutablePointer<Double>
  ) {
    typealias L = T.Vector
    typealias D = SIMD8<Double>
    let factor = D(share)
    @inline(__always) func add(_ a: D, _ j: Int) {
      let square = a * a
      (D.load(columns + j) + square).store(columns + j)
      (D.load(shares + j) + factor * square).store(shares + j)
    }
    var j = 0
    while j &+ L.width <= n {
      let w = L.load(row + j).wide
      add(w.low, j)
      if L.width == 16 { add(w.high, j &+ 8) }
      j &+= L.width
    }
    while j < n {
      let square = Double(row[j]) * Double(row[j])
      columns[j] += square
      shares[j] += share * square
      j &+= 1
    }
  }
  @inline(__always)
  private static func addFour<T: Real>(
    _ rows: Rows4<T>, _ n: Int, _ share: SIMD4<Double>, _ columns: UnsafeMutablePointer<Double>,
    _ shares: UnsafeMutablePointer<Double>
  ) {
    typealias L = T.Vector
    typealias D = SIMD8<Double>
    let (k, l, m, o) = (D(share[0]), D(share[1]), D(share[2]), D(share[3]))
    @inline(__always) func add(_ a: D, _ b: D, _ c: D, _ d: D, _ j: Int) {
      let p = a * a, q = b * b, u = c * c, v = d * d
      let pair = p + q, other = u + v
      (D.load(columns + j) + (pair + other)).store(columns + j)
      let first = k * p + l * q, second = m * u + o * v
      (D.load(shares + j) + (first + second)).store(shares + j)
    }
    var j = 0
    while j &+ L.width <= n {
      let (a, b) = (L.load(rows.a + j).wide, L.load(rows.b + j).wide)
      let (c, d) = (L.load(rows.c + j).wide, L.load(rows.d + j).wide)
      add(a.low, b.low, c.low, d.low, j)
      if L.width == 16 { add(a.high, b.high, c.high, d.high, j &+ 8) }
      j &+= L.width
    }
    while j < n {
      let (a, b, c, d) = (Double(rows.a[j]), Double(rows.b[j]), Double(rows.c[j]), Double(rows.d[j]))
      let (p, q, u, v) = (a * a, b * b, c * c, d * d)
      columns[j] += (p + q) + (u + v)
      shares[j] += (share[0] * p + share[1] * q) + (share[2] * u + share[3] * v)
      j &+= 1
    }
  }

  /// Moves the means c by the sums of `count` elements; returns Σ shares/c.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private static func move<T: Real>(
    _ c: UnsafeMutablePointer<T>, _ n: Int, _ rate: Rate, _ count: Double, _ sums: UnsafePointer<Double>,
    _ shares: UnsafePointer<Double>
  ) -> Double {
    typealias L = T.Vector
    typealias D = SIMD8<Double>
    var total = D(repeating: 0), rest = 0.0
    let (keep, new, eps, all) = (D(rate.keep), D(rate.new), D(rate.eps), D(count))
    @inline(__always) func moved(_ old: D, _ j: Int) -> D { keep * old + new * (D.load(sums + j) / all + eps) }
    var j = 0
    while j &+ L.width <= n {
      let old = L.load(c + j).wide
      let found = L(wide: moved(old.low, j), L.width == 16 ? moved(old.high, j &+ 8) : old.high)
      let next = L.min(found, Double(T.greatestFiniteMagnitude))
      next.store(c + j)
      total += D.load(shares + j) / next.wide.low
      if L.width == 16 { total += D.load(shares + (j &+ 8)) / next.wide.high }
      j &+= L.width
    }
    while j < n {
      c[j] = .within(rate(Double(c[j]), sums[j] / count))
      rest += shares[j] / Double(c[j])
      j &+= 1
    }
    return total.sum() + rest
  }

  /// The factors of x/√(r·c/mean): scale/√(r/mean) of the rows, 1/√c of the columns.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func factors<T: Real>(
    _ r: UnsafePointer<T>, _ c: UnsafePointer<T>, mean: Double, scale: Double = 1, into room: Room<T>
  ) {
    FactoredMoment.invertRoots(r, rows, over: mean, scale, into: room.row)
    FactoredMoment.invertRoots(c, columns, over: 1, 1, into: room.column)
  }
  /// y ← scale/√(x/unit).
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private static func invertRoots<T: Real>(
    _ x: UnsafePointer<T>, _ n: Int, over unit: Double, _ scale: Double, into y: UnsafeMutablePointer<T>
  ) {
    typealias L = T.Vector
    typealias D = SIMD8<Double>
    let (top, under) = (D(scale), D(unit))
    var i = 0
    while i &+ L.width <= n {
      let w = L.load(x + i).wide
      let low = top / (w.low / under).squareRoot(), high = L.width == 16 ? top / (w.high / under).squareRoot() : w.high
      L(wide: low, high).store(y + i)
      i &+= L.width
    }
    while i < n {
      y[i] = T(scale / (Double(x[i]) / unit).squareRoot())
      i &+= 1
    }
  }
  /// out ← x·row·column over some rows of one matrix.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func multiply<T: Real>(
    _ x: UnsafePointer<T>, _ rows: Swift.Range<Int>, by room: Room<T>, into out: UnsafeMutablePointer<T>
  ) {
    let at = rows.lowerBound &* columns
    FactoredMoment.multiply(x + at, room.row + rows.lowerBound, rows.count, room.column, columns, into: out + at)
  }
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private static func multiply<T: Real>(
    _ x: UnsafePointer<T>, _ row: UnsafePointer<T>, _ rows: Int, _ column: UnsafePointer<T>, _ n: Int,
    into out: UnsafeMutablePointer<T>
  ) {
    typealias L = T.Vector
    for i in 0..<rows {
      let from = x + i &* n, to = out + i &* n, factor = L(Double(row[i]))
      var j = 0
      while j &+ L.width <= n {
        (L.load(from + j) * factor * L.load(column + j)).store(to + j)
        j &+= L.width
      }
      while j < n {
        to[j] = from[j] * row[i] * column[j]
        j &+= 1
      }
    }
  }
}
