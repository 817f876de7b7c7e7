import Glibc
import ThalwegCore

/// The two halves of Sinkhorn's iteration over one cost matrix, in logarithms.
struct Scaling<T: Real> {
  private typealias L = T.Vector
  let c: UnsafePointer<T>, epsilon: Double, n: Int, m: Int
  init(_ cost: Vector<T>, _ epsilon: Double, _ n: Int, _ m: Int) {
    (c, self.epsilon, self.n, self.m) = (UnsafePointer(cost.p), epsilon, n, m)
  }

  /// Whether every positive weight has a pair that is not forbidden.
  func feasible(_ a: Vector<T>, _ b: Vector<T>) throws(Failure) -> Bool {
    for i in 0..<n * m where !(c[i] > -.infinity) {
      throw Failure(Status.range, "`cost` must hold numbers above -inf, got \(c[i]) at element \(i)")
    }
    for i in 0..<n where a.p[i] > 0 && !(0..<m).contains(where: { b.p[$0] > 0 && c[i * m + $0] < .infinity }) {
      return false
    }
    for j in 0..<m where b.p[j] > 0 && !(0..<n).contains(where: { a.p[$0] > 0 && c[$0 * m + j] < .infinity }) {
      return false
    }
    return true
  }

  /// ε·(log w − LSE), where a weight of 0 has the potential −∞.
  private func potential(_ w: T, _ top: Double, _ sum: Double) -> T {
    w > 0 ? T(epsilon * (log(Double(w)) - (top == -.infinity ? top : top + log(sum)))) : -.infinity
  }
  /// e^((x − y)/ε − top) of vectors whose potentials and costs are x and y.
  @inline(__always) private func exponential(_ x: L, _ y: L, _ top: SIMD8<Double>, _ more: SIMD8<Double>) -> L {
    let (a, b) = (x.wide, y.wide), scale = 1 / epsilon
    return L.exp(L(wide: (a.low - b.low) * scale - top, (a.high - b.high) * scale - more))
  }

  /// Returns Σ (row marginal − a)² of the potentials `old` and g; 0 without them.
  @discardableResult
  func rows(_ g: Vector<T>, _ a: Vector<T>, into f: Vector<T>, from old: Vector<T>? = nil) -> Double {
    let scale = 1 / epsilon, whole = m / L.width * L.width
    return Parts(n, of: m).sum { _, lines in
      var square = 0.0
      for i in lines {
        let row = c + i * m
        var peaks = L(-.infinity)
        for j in stride(from: 0, to: whole, by: L.width) {
          let z = L.load(g.p + j) - L.load(row + j)
          peaks = L.select(L.less(peaks, z), z, peaks)
        }
        let (low, high) = peaks.wide
        var peak = L.width == 16 ? max(low.max(), high.max()) : low.max(), sum = 0.0
        for j in whole..<m { peak = max(peak, Double(g.p[j]) - Double(row[j])) }
        let top = peak * scale
        if top > -.infinity {
          let shift = SIMD8<Double>(repeating: top)
          var sums = SIMD8<Double>(repeating: 0)
          for j in stride(from: 0, to: whole, by: L.width) {
            let e = exponential(L.load(g.p + j), L.load(row + j), shift, shift).wide
            sums += e.low + e.high
          }
          sum = sums.sum()
          for j in whole..<m { sum += exp((Double(g.p[j]) - Double(row[j])) * scale - top) }
        }
        if let old {
          let none = top == -.infinity || old.p[i] == -.infinity
          let d = (none ? 0 : exp(Double(old.p[i]) * scale + top) * sum) - Double(a.p[i])
          square += d * d
        }
        f.p[i] = potential(a.p[i], top, sum)
      }
      return square
    }
  }

  func columns(_ f: Vector<T>, _ b: Vector<T>, into g: Vector<T>) {
    _ = each(f) { j, top, sum in
      g.p[j] = potential(b.p[j], top, sum)
      return 0
    }
  }

  /// Σ body(column, maximum of (f_i − C_ij)/ε over i, sum of the exponentials of what is left); columns go side by
  /// side, as many as a cache holds.
  private func each(_ f: Vector<T>, _ body: (Int, Double, Double) -> Double) -> Double {
    let scale = 1 / epsilon, width = 256, blocks = (m + width - 1) / width
    return Rows.sum(blocks, work: 16 * width * n) { block in
      let first = block * width, count = min(width, m - first), whole = count / L.width * L.width
      return withUnsafeTemporaryAllocation(of: Double.self, capacity: 2 * width) { room in
        guard let tops = room.baseAddress else { return 0 }
        let sums = tops + width
        tops.initialize(repeating: -.infinity, count: width)
        sums.initialize(repeating: 0, count: width)
        for i in 0..<n where f.p[i] > -.infinity {
          let row = c + (i * m + first), x = L(Double(f.p[i]))
          for j in stride(from: 0, to: whole, by: L.width) {
            let z = (x - L.load(row + j)).wide
            raise(tops + j, z.low * scale)
            if L.width == 16 { raise(tops + (j + 8), z.high * scale) }
          }
          for j in whole..<count { tops[j] = max(tops[j], (Double(f.p[i]) - Double(row[j])) * scale) }
        }
        for i in 0..<n where f.p[i] > -.infinity {
          let row = c + (i * m + first), x = L(Double(f.p[i]))
          for j in stride(from: 0, to: whole, by: L.width) {
            let high = L.width == 16 ? tops + (j + 8) : tops + j
            let e = exponential(x, L.load(row + j), .load(tops + j), .load(high)).wide
            (SIMD8<Double>.load(sums + j) + e.low).store(sums + j)
            if L.width == 16 { (SIMD8<Double>.load(sums + (j + 8)) + e.high).store(sums + (j + 8)) }
          }
          for j in whole..<count where tops[j] > -.infinity {
            sums[j] += exp((Double(f.p[i]) - Double(row[j])) * scale - tops[j])
          }
        }
        return (0..<count).reduce(0) { $0 + body(first + $1, tops[$1], sums[$1]) }
      }
    }
  }
  @inline(__always) private func raise(_ top: UnsafeMutablePointer<Double>, _ x: SIMD8<Double>) {
    let old = SIMD8<Double>.load(top)
    old.replacing(with: x, where: old .< x).store(top)
  }

  /// The distance of the column marginal from b.
  func error(_ f: Vector<T>, _ g: Vector<T>, _ b: Vector<T>) -> Double {
    each(f) { j, top, sum in
      let none = top == -.infinity || g.p[j] == -.infinity
      let d = (none ? 0 : exp(Double(g.p[j]) / epsilon + top) * sum) - Double(b.p[j])
      return d * d
    }.squareRoot()
  }

  /// P_ij = e^((f_i + g_j − C_ij)/ε), numbers below `least` as 0; returns what it costs.
  @discardableResult
  func fill(_ p: Vector<T>, _ f: Vector<T>, _ g: Vector<T>, least: Double = 0) -> Double {
    let whole = m / L.width * L.width, none = SIMD8<Double>(repeating: 0)
    return Parts(n, of: m).sum { _, lines in
      var cost = 0.0
      for i in lines {
        let row = c + i * m, out = p.p + i * m
        // a weight of 0 has no pair, not even one whose cost is infinite
        if f.p[i] == -.infinity {
          out.update(repeating: 0, count: m)
          continue
        }
        let shift = SIMD8<Double>(repeating: -Double(f.p[i]) / epsilon)
        var sums = none
        for j in stride(from: 0, to: whole, by: L.width) {
          let price = L.load(row + j), e = exponential(L.load(g.p + j), price, shift, shift)
          let x = L.select(L.less(e, L(least)), L(0), e)
          x.store(out + j)
          let (u, v) = (x.wide, price.wide)
          sums += none.replacing(with: u.low * v.low, where: u.low .> none)
          sums += none.replacing(with: u.high * v.high, where: u.high .> none)
        }
        cost += sums.sum()
        for j in whole..<m {
          let e = exp((Double(f.p[i]) + Double(g.p[j]) - Double(row[j])) / epsilon), x = e < least ? 0 : e
          out[j] = T(x)
          if x > 0 { cost += x * Double(row[j]) }
        }
      }
      return cost
    }
  }
}

/// Sweeps by scaling: with K = e^((f + g − C)/ε) of potentials f and g a sweep is v = b/(Kᵀu), u = a/(K·v), one pass
/// over K and no exponential; the potentials are f + ε·log u and g + ε·log v.
///
/// A factor beyond e^±10, or a weight too small beside the others, and the sweep is one in logarithms instead, after
/// which K is made anew: what K cannot hold, below 1e-30 in Float, is nothing then. Where that happens sweep after
/// sweep K is made ever more seldom.
final class Sweeps<T: Real> {
  private typealias L = T.Vector
  private let problem: Scaling<T>, a: Vector<T>, b: Vector<T>, k: Vector<T>, fits: Bool, parts: Parts
  private var u, sums, nextU, nextSums, room: [Double], v, nextV: [T]
  private var active = false, accepted = false, pause = 0, wait = 0

  /// `k` is room for the matrix.
  init(_ problem: Scaling<T>, _ a: Vector<T>, _ b: Vector<T>, _ k: Vector<T>) throws(Failure) {
    (self.problem, self.a, self.b, self.k, parts) = (problem, a, b, k, Parts(problem.n, of: problem.m))
    let n = problem.n, m = problem.m
    fits = [a, b].allSatisfy { w in
      let total = (0..<w.count).reduce(0) { $0 + Double(w.p[$1]) }
      return (0..<w.count).allSatisfy { w.p[$0] == 0 || Double(w.p[$0]) > 1e-9 * total }
    }
    try Memory.ask(8 &* (2 &* n &+ (5 &+ parts.count) &* m))
    (u, nextU) = ([Double](repeating: 1, count: n), [Double](repeating: 1, count: n))
    (sums, nextSums) = ([Double](repeating: 0, count: m), [Double](repeating: 0, count: m))
    (v, nextV) = ([T](repeating: 1, count: m), [T](repeating: 1, count: m))
    room = [Double](repeating: 0, count: parts.count * m)
  }

  private static var most: Double { exp(10) }
  private static func isInRange(_ x: Double) -> Bool { x > 1 / most && x < most }

  /// The factor of a column in the sweep ahead.
  private func factor(_ j: Int) -> Double { b.p[j] > 0 ? Double(b.p[j]) / sums[j] : 0 }

  /// One sweep ahead; false where there is none by scaling.
  func advance() -> Bool {
    guard active else { return false }
    for j in 0..<problem.m {
      let factor = factor(j)
      nextV[j] = T(factor)
      if b.p[j] > 0, !Sweeps.isInRange(factor) { return false }
    }
    pass(scaled: true)
    return (0..<problem.n).allSatisfy { a.p[$0] == 0 || Sweeps.isInRange(nextU[$0]) }
  }

  /// The sweep is taken.
  func accept() {
    swap(&u, &nextU)
    swap(&v, &nextV)
    swap(&sums, &nextSums)
    accepted = true
  }

  /// ‖a·(u/u' − 1)‖, u' the factors of the sweep ahead: what the row marginal is off.
  var change: Double {
    (0..<problem.n).reduce(0.0) { sum, i in
      let d = a.p[i] > 0 ? Double(a.p[i]) * (u[i] / nextU[i] - 1) : 0
      return sum + d * d
    }.squareRoot()
  }
  /// What the column marginal is off after the last sweep taken.
  var error: Double {
    (0..<problem.m).reduce(0.0) { sum, j in
      let d = Double(v[j]) * sums[j] - Double(b.p[j])
      return sum + d * d
    }.squareRoot()
  }

  /// From potentials of a sweep in logarithms on.
  func enter(_ f: Vector<T>, _ g: Vector<T>) {
    guard fits else { return }
    if wait > 0 {
      wait -= 1
      return
    }
    (active, accepted) = (true, false)
    for i in u.indices { nextU[i] = 1 }
    for j in v.indices { nextV[j] = 1 }
    problem.fill(k, f, g, least: T.isDouble ? 1e-250 : 1e-30)
    pass(scaled: false)
    accept()
    accepted = false
  }

  /// The plan u·K·v in place of K, and the potentials, or the plan of these; returns what it costs. The plan keeps what
  /// the potentials lose when they are rounded.
  func finish(_ f: Vector<T>, _ g: Vector<T>, ahead: Bool = false) -> Double {
    guard active else { return problem.fill(k, f, g) }
    for j in v.indices where ahead { v[j] = T(factor(j)) }
    leave(f, g)
    let m = problem.m
    return v.withUnsafeBufferPointer { v in
      parts.sum { _, lines in
        var cost = 0.0
        for i in lines {
          let row = self.k.p + i * m, price = self.problem.c + i * m, factor = T(self.u[i])
          for j in 0..<m {
            row[j] *= factor * v[j]
            if row[j] > 0 { cost += Double(row[j]) * Double(price[j]) }
          }
        }
        return cost
      }
    }
  }

  /// Back to potentials; `ahead`: the columns of the sweep ahead belong to them already.
  func leave(_ f: Vector<T>, _ g: Vector<T>, ahead: Bool = false) {
    guard active else { return }
    active = false
    pause = accepted ? 0 : min(2 * pause + 1, 64)
    wait = pause
    for i in 0..<problem.n where a.p[i] > 0 { f.p[i] = T(Double(f.p[i]) + problem.epsilon * log(u[i])) }
    for j in 0..<problem.m where b.p[j] > 0 {
      g.p[j] = T(Double(g.p[j]) + problem.epsilon * log(ahead ? factor(j) : Double(v[j])))
    }
  }

  /// u' ← a/(K·v'), or 1 where not `scaled`; sums' ← Kᵀu'.
  private func pass(scaled: Bool) {
    let (n, m) = (problem.n, problem.m), exact = m < InnerProducts.exactBelow
    room.withUnsafeMutableBufferPointer { room in
      nextU.withUnsafeMutableBufferPointer { u in
        nextV.withUnsafeBufferPointer { v in
          guard let v = v.baseAddress, let room = room.baseAddress else { return }
          nonisolated(unsafe) let (out, all) = (u, room)
          parts.forEach { part, lines in
            let columns = all + part * m
            columns.update(repeating: 0, count: m)
            for i in stride(from: lines.lowerBound, to: lines.upperBound, by: 4) {
              // beyond the last a row stands for another: with factor 0
              let rows = Rows4 { UnsafePointer(self.k.p) + min(i + $0, n - 1) * m }
              let products = scaled ? InnerProducts.products(rows, v, m, exact: exact) : SIMD4(repeating: 1)
              var factors = SIMD4<Double>(repeating: 0)
              for r in 0..<min(4, lines.upperBound - i) {
                let w = Double(self.a.p[i + r])
                // as the pass multiplies with it
                factors[r] = w == 0 ? 0 : scaled ? Double(T(w / products[r])) : 1
                out[i + r] = factors[r]
              }
              Sweeps.add(rows, factors, to: columns, m)
            }
          }
        }
      }
      for j in 0..<m { nextSums[j] = (0..<parts.count).reduce(0) { $0 + room[$1 * m + j] } }
    }
  }

  /// out ← out + Σ factor·row: four floats are added as they are, and then in double.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private static func add(_ rows: Rows4<T>, _ factors: SIMD4<Double>, to out: UnsafeMutablePointer<Double>, _ n: Int) {
    let (a, b, c, d) = (L(factors[0]), L(factors[1]), L(factors[2]), L(factors[3]))
    var j = 0
    while j &+ L.width <= n {
      let x = L.load(rows.a + j) * a + L.load(rows.b + j) * b, y = L.load(rows.c + j) * c + L.load(rows.d + j) * d
      let w = (x + y).wide
      (SIMD8<Double>.load(out + j) + w.low).store(out + j)
      if L.width == 16 { (SIMD8<Double>.load(out + (j &+ 8)) + w.high).store(out + (j &+ 8)) }
      j &+= L.width
    }
    while j < n {
      let x = rows.a[j] * T(factors[0]) + rows.b[j] * T(factors[1])
      out[j] += Double(x + (rows.c[j] * T(factors[2]) + rows.d[j] * T(factors[3])))
      j &+= 1
    }
  }
}
