import CThalweg

/// Several rows of numbers that become one, entry by entry: a run of the gradient of which the slots hold versions.
enum Blend {
  typealias List<T> = UnsafeMutablePointer<UnsafePointer<T>>
  /// Vectors that are at work at once.
  private static var tile: Int { 4 }

  /// Asks for the next numbers of a row: of so many rows the processor does not see them coming.
  @inline(__always) private static func fetch<T>(_ p: UnsafePointer<T>, _ count: Int) {
    for line in stride(from: 0, to: count &* MemoryLayout<T>.stride, by: 64) {
      twi_prefetch(UnsafeRawPointer(p) + line)
    }
  }

  /// out ← Σ weights[k]·row k.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  static func combine<T: Real>(_ n: Int, _ rows: List<T>, _ weights: [Double], _ out: UnsafeMutablePointer<T>) {
    let width = T.Vector.width, wide = 4 * width
    var i = 0
    if !weights.allSatisfy(T.holds) {
      // a weight is in range beside its row alone
      while i < n {
        var sum = 0.0
        for k in weights.indices { sum += weights[k] * Double(rows[k][i]) }
        out[i] = T(sum)
        i &+= 1
      }
      return
    }
    while i &+ wide <= n {
      var (a, b, c, d) = (T.Vector(0), T.Vector(0), T.Vector(0), T.Vector(0))
      for k in weights.indices {
        let w = T.Vector(weights[k]), p = rows[k] + i
        fetch(p + wide, wide)
        a = a + w * T.Vector.load(p)
        b = b + w * T.Vector.load(p + width)
        c = c + w * T.Vector.load(p + 2 &* width)
        d = d + w * T.Vector.load(p + 3 &* width)
      }
      a.store(out + i)
      b.store(out + i + width)
      c.store(out + i + 2 &* width)
      d.store(out + i + 3 &* width)
      i &+= wide
    }
    while i < n {
      var sum: T = 0
      for k in weights.indices { sum += T(weights[k]) * rows[k][i] }
      out[i] = sum
      i &+= 1
    }
  }

  /// Two places whose smaller number comes to the first, and which of the two somebody reads later.
  struct Comparison {
    let low, high: Int
    var keepsLow = false, keepsHigh = false
  }
  /// What is compared one after the other to bring the numbers whose weights are not 0 to their places in ascending
  /// order: Batcher's network, without what only the others need. Runs of p numbers are merged, which compares ever
  /// nearer ones.
  static func network(_ weights: [Double]) -> [Comparison] {
    let count = weights.count
    var all: [Comparison] = []
    var p = 1
    while p < count {
      var apart = p
      while apart > 0 {
        for first in stride(from: apart & (p - 1), to: max(0, count - apart), by: 2 * apart) {
          for k in first..<min(first + apart, count - apart) where (k ^ (k + apart)) < 2 * p {
            all.append(Comparison(low: k, high: k + apart))
          }
        }
        apart >>= 1
      }
      p <<= 1
    }
    var isRead = weights.map { $0 != 0 }, needed: [Comparison] = []
    for var c in all.reversed() where isRead[c.low] || isRead[c.high] {
      (c.keepsLow, c.keepsHigh) = (isRead[c.low], isRead[c.high])
      (isRead[c.low], isRead[c.high]) = (true, true)
      needed.append(c)
    }
    return needed.reversed()
  }

  /// out ← Σ weights[k]·(the k-th smallest entry of the rows). No entry is NaN.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  static func order<T: Real>(
    _ n: Int, _ rows: List<T>, _ network: [Comparison], _ weights: [Double], _ out: UnsafeMutablePointer<T>
  ) {
    if let inner = weights.dropFirst().dropLast().first, weights.first == 0, weights.last == 0,
      weights.dropFirst().dropLast().allSatisfy({ $0 == inner })
    {
      return trim(n, rows, weights.count, inner, out)
    }
    typealias L = T.Vector
    let wide = tile &* L.width, m = weights.count
    withUnsafeTemporaryAllocation(of: T.self, capacity: (m &+ 1) &* wide) { buffer in
      guard let block = buffer.baseAddress else { return }
      let sum = block + m &* wide
      for i in stride(from: 0, to: n, by: wide) {
        let some = min(wide, n &- i)
        for k in 0..<m {
          let row = block + k &* wide
          if some == wide {
            fetch(rows[k] + (i &+ wide), wide)
            for at in stride(from: 0, to: wide, by: L.width) { L.load(rows[k] + (i &+ at)).store(row + at) }
          } else {
            row.initialize(from: rows[k] + i, count: some)
            (row + some).initialize(repeating: 0, count: wide &- some)
          }
        }
        for c in network {
          let a = block + c.low &* wide, b = block + c.high &* wide
          if c.keepsLow, c.keepsHigh {
            for at in stride(from: 0, to: wide, by: L.width) {
              let x = L.load(a + at), y = L.load(b + at), less = L.less(x, y)
              L.select(less, x, y).store(a + at)
              L.select(less, y, x).store(b + at)
            }
          } else if c.keepsLow {
            for at in stride(from: 0, to: wide, by: L.width) {
              let x = L.load(a + at), y = L.load(b + at)
              L.select(L.less(x, y), x, y).store(a + at)
            }
          } else {
            for at in stride(from: 0, to: wide, by: L.width) {
              let x = L.load(a + at), y = L.load(b + at)
              L.select(L.less(x, y), y, x).store(b + at)
            }
          }
        }
        for at in stride(from: 0, to: wide, by: L.width) {
          var total = L(0)
          for k in 0..<m where weights[k] != 0 { total = total + weights[k] * L.load(block + k &* wide + at) }
          total.store(sum + at)
        }
        (out + i).update(from: sum, count: some)
      }
    }
  }
  /// out ← weight·Σ(entries of the rows without the smallest and the largest), of three rows or more. An entry that is
  /// no longer the smallest or largest so far joins the sum: nothing large is added that would have to go again.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private static func trim<T: Real>(
    _ n: Int, _ rows: List<T>, _ count: Int, _ weight: Double, _ out: UnsafeMutablePointer<T>
  ) {
    typealias L = T.Vector
    var i = 0
    while i < n {
      // the last vector is taken from the end once more, or the rest one by one
      let at = i &+ L.width <= n ? i : n &- L.width
      guard at >= 0 else { break }
      let a = L.load(rows[0] + at), b = L.load(rows[1] + at), first = L.less(a, b)
      var low = L.select(first, a, b), high = L.select(first, b, a), sum = L(0)
      for k in 2..<count {
        let x = L.load(rows[k] + at), below = L.less(x, low)
        let y = L.select(below, low, x)
        low = L.select(below, x, low)
        let above = L.less(high, y)
        sum = sum + weight * L.select(above, high, y)
        high = L.select(above, y, high)
      }
      sum.store(out + at)
      i = at &+ L.width
    }
    while i < n {
      var (low, high) = (min(rows[0][i], rows[1][i]), max(rows[0][i], rows[1][i])), sum: T = 0
      for k in 2..<count {
        let x = rows[k][i]
        sum += T(weight) * min(max(x, low), high)
        (low, high) = (min(low, x), max(high, x))
      }
      out[i] = sum
      i &+= 1
    }
  }
}
