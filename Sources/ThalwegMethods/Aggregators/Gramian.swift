import Glibc
import ThalwegCore

/// A small symmetric matrix of inner products ⟨g_i, g_j⟩, and what rules need of it. Everything is in double.
typealias Gramian = [[Double]]

extension Gramian {
  var trace: Double { indices.reduce(0) { $0 + self[$1][$1] } }
  var largest: Double { indices.reduce(0) { Swift.max($0, self[$1][$1]) } }
  /// The lengths of the gradients.
  var norms: [Double] { indices.map { self[$0][$0].squareRoot() } }
  func times(_ v: [Double]) -> [Double] { map { dot($0, v) } }
  /// aᵀGb.
  func form(_ a: [Double], _ b: [Double]) -> Double { dot(a, times(b)) }
  /// ‖Jᵀa‖.
  func length(_ a: [Double]) -> Double { Swift.max(0, form(a, a)).squareRoot() }
  func scaled(by f: Double) -> Gramian { map { $0.map { $0 * f } } }
  /// Of the gradients times `f`, one factor each.
  func scaled(rows f: [Double]) -> Gramian { indices.map { i in indices.map { f[i] * f[$0] * self[i][$0] } } }

  /// x with G_FF·x = b; nil when G_FF is singular.
  func cholesky(_ f: [Int], _ b: [Double]) -> [Double]? {
    let n = f.count
    var l = [[Double]](repeating: [Double](repeating: 0, count: n), count: n)
    var x = b
    for r in 0..<n {
      for c in 0...r {
        var d = self[f[r]][f[c]]
        for k in 0..<c { d -= l[r][k] * l[c][k] }
        if c < r { l[r][c] = d / l[c][c]; continue }
        guard d > 1e-15 * self[f[r]][f[r]] else { return nil }
        l[r][r] = d.squareRoot()
      }
      for k in 0..<r { x[r] -= l[r][k] * x[k] }
      x[r] /= l[r][r]
    }
    for r in stride(from: n - 1, through: 0, by: -1) {
      for k in (r + 1)..<Swift.max(n, r + 1) { x[r] -= l[k][r] * x[k] }
      x[r] /= l[r][r]
    }
    return x
  }

  /// Singular values and vectors, as of a matrix.
  func decomposed() throws(Failure) -> LinearAlgebra.SVD {
    try LinearAlgebra.SVD(flatMap { $0 }, count, count)
  }
  /// f(G)·v with f on the singular values above m·2⁻⁵² (or another rounding) of the largest, and 0 on the others.
  func applying(_ f: (Double) -> Double, to v: [Double], rounding: Double = 0x1p-52) throws(Failure) -> [Double] {
    let m = count, d = try decomposed()
    let floor = (d.s.first ?? 0) * Double(m) * rounding
    var out = [Double](repeating: 0, count: m)
    for k in d.s.indices where d.s[k] > floor {
      let x = f(d.s[k]) * (0..<m).reduce(0) { $0 + d.u[$1 * m + k] * v[$1] }
      for i in 0..<m { out[i] += x * d.u[i * m + k] }
    }
    return out
  }
}

func dot(_ a: [Double], _ b: [Double]) -> Double { zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } }

/// The point of the hull of points p_i that is nearest to 0, from the inner products of the p_i: the weights on the
/// simplex. Wolfe's method (1976): points join a corral, whose nearest affine point is found exactly, and leave it
/// where a weight would become negative. A point that joins costs m² operations, one that leaves m³. `start`: weights
/// of a point of the hull that is near it.
func nearestPoint(_ G: Gramian, from start: [Double]? = nil) throws(Failure) -> (weights: [Double], iterations: Int) {
  let m = G.count, top = G.largest
  var w = [Double](repeating: 0, count: m)
  let first = G.indices.min { G[$0][$0] < G[$1][$1] } ?? 0
  w[first] = 1
  guard top > 0 else { return (w, 0) }
  let unit = G.scaled(by: 1 / top)
  if let start { w = start }
  var corral = Corral(unit, G.indices.filter { w[$0] > 0 }), newest: Int?
  for iteration in 0..<(100 * m + 100) {
    while true {
      guard let z = corral.nearest else {
        if newest == nil, start != nil { return try nearestPoint(G) }
        // it depends on those that are there: it can bring the hull no nearer
        return (w, iteration)
      }
      if z.allSatisfy({ $0 > 0 }) {
        for (k, i) in corral.points.enumerated() { w[i] = z[k] }
        break
      }
      // back along the way to the first boundary, whose points leave
      let reach = zip(corral.points, z).map { i, x in x > 0 ? 1 : w[i] > 0 ? w[i] / (w[i] - x) : 0 }
      let t = reach.min() ?? 0
      for (k, i) in corral.points.enumerated() {
        w[i] += t * (z[k] - w[i])
        if z[k] <= 0, reach[k] <= t || w[i] <= 0 { w[i] = 0 }
      }
      corral.keep { w[$0] > 0 }
      if let newest, w[newest] == 0 { return (w, iteration) }
    }
    let slopes = unit.times(w), length = dot(w, slopes)
    guard let next = unit.indices.min(by: { slopes[$0] < slopes[$1] }), w[next] == 0 else { return (w, iteration) }
    let noise = 1e-15 * Double(m) * dot(unit[next].map(\.magnitude), w)
    guard slopes[next] < length - 1e-13 * length - noise else { return (w, iteration) }
    corral.add(next)
    newest = next
  }
  throw Failure(Status.numeric, "the nearest point of the gradients' hull was not found")
}

/// Points, and the point of their affine hull that is nearest to 0. They are seen from the shortest of them, so that no
/// digits of short ones are lost beside long ones.
private struct Corral {
  let G: Gramian
  private(set) var points: [Int] = []
  private var base = 0, factor = GrowingFactor(), depends = false

  init(_ G: Gramian, _ points: [Int]) {
    self.G = G
    build(points)
  }
  private mutating func build(_ list: [Int]) {
    base = list.min { G[$0][$0] < G[$1][$1] } ?? 0
    (points, factor, depends) = ([base], GrowingFactor(), false)
    for i in list where i != base { append(i) }
  }
  private func product(_ i: Int, _ j: Int) -> Double { (G[i][j] - G[i][base]) - (G[j][base] - G[base][base]) }
  private mutating func append(_ i: Int) {
    if !factor.append(points.dropFirst().map { product(i, $0) }, product(i, i)) { depends = true }
    points.append(i)
  }
  mutating func add(_ i: Int) { if G[i][i] < G[base][base] { build(points + [i]) } else { append(i) } }
  mutating func keep(_ stays: (Int) -> Bool) { build(points.filter(stays)) }

  /// The weights, which add up to 1; nil when some point depends on the others.
  var nearest: [Double]? {
    if depends { return nil }
    let y = factor.solve(points.dropFirst().map { G[base][base] - G[$0][base] })
    return [y.reduce(1) { $0 - $1 }] + y
  }
}

/// The minimum over a > 0 of ½·aᵀAa − Σ ψ(a_i), with ψ′(a) = a^(−p), by Newton's method with shortened steps. Where
/// there is none, that is where some combination of the gradients with weights that are not negative is 0, some weight
/// would grow without end: all are kept at most `most` times their unit, A_ii^(−1/(1 + p)), which is what they are
/// where the gradients are orthogonal, and `bounded` is false.
func balanced(_ A: Gramian, _ p: Double, most: Double = 1e6) -> (
  weights: [Double], bounded: Bool, convergence: Convergence
) {
  // with a small p some weights all but vanish: they get there by way of larger ones
  var q = max(p, 1), a: [Double] = [], last: [Double] = [], iterations = 0
  while true {
    let unit = A.indices.map { A[$0][$0] > 0 ? min(pow(A[$0][$0], -1 / (1 + q)), 1e150) : 1 }
    let top = unit.map { most * $0 }
    // (what a weight is in its unit hardly changes)
    a = a.isEmpty ? unit : A.indices.map { min(a[$0] * (unit[$0] / last[$0]), top[$0]) }
    last = unit
    iterations += descend(A, q, &a, top)
    if q <= p {
      // at the minimum aᵀAa = Σ a_i^(1 − p); rounding may end the way without an end before a bound does
      let size = a.reduce(0) { $0 + pow($1, 1 - p) }, isSolved = abs(A.form(a, a) - size) <= 1e-6 * size
      // (A a)_i = a_i^(−p), each in units of its size
      let worst = zip(A.times(a), a).reduce(0.0) { worst, pair in
        let pull = pow(pair.1, -p)
        return max(worst, (pair.0 - pull).magnitude / (pair.0.magnitude + pull))
      }
      return (a, isSolved && zip(a, top).allSatisfy { $0 < $1 }, Convergence(worst, iterations))
    }
    q = max(p, q / 2)
  }
}

/// Projected Newton steps of `balanced` from a, within 0 < a ≤ top; how many.
private func descend(_ A: Gramian, _ p: Double, _ a: inout [Double], _ top: [Double]) -> Int {
  let m = A.count
  func value(_ a: [Double]) -> Double {
    A.form(a, a) / 2 - a.reduce(0) { $0 + (p == 1 ? log($1) : expm1((1 - p) * log($1)) / (1 - p)) }
  }
  var before = Double.infinity
  for iteration in 0..<500 {
    let pull = a.map { pow($0, -p) }, slope = zip(A.times(a), pull).map { $0 - $1 }
    let sizes = zip(a, pull).map { $0 * $1 }
    var H = A
    for i in 0..<m { H[i][i] += p * pull[i] / a[i] }
    // what stands at its bound, and would go beyond, stays
    let free = a.indices.filter { a[$0] < top[$0] || slope[$0] > 0 }
    guard let found = H.cholesky(free, free.map { slope[$0] }) else { return iteration }
    var d = [Double](repeating: 0, count: m)
    for (k, i) in free.enumerated() { d[i] = found[k] }
    let decrement = dot(slope, d), scale = sizes.reduce(0, +), isSmall = decrement < 1e-12 * scale
    // Newton's steps shrink fast: those that no longer do are rounding
    if decrement <= 1e-20 * (sizes.min() ?? 0) || (isSmall && decrement > before / 4) { return iteration }
    before = decrement
    let now = value(a)
    var t = 1.0
    var next = a
    repeat {
      // one weight on its way to 0 must not shorten the step of the others
      next = a.indices.map { min(max(a[$0] - t * d[$0], 0.02 * a[$0], 1e-250), top[$0]) }
      let gain = zip(slope, zip(a, next)).reduce(0) { $0 + $1.0 * ($1.1.0 - $1.1.1) }
      // at the end rounding hides the descent: a whole step is right there
      if isSmall || (gain > 0 && value(next) <= now - gain / 4) { break }
      t /= 2
    } while t > 1e-18
    if t <= 1e-18 { return iteration }
    a = next
  }
  return 500
}
