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
  /// f(G)·v with f on the singular values above m·2⁻⁵² of the largest, and 0 on the others.
  func applying(_ f: (Double) -> Double, to v: [Double]) throws(Failure) -> [Double] {
    let m = count, d = try decomposed()
    let floor = (d.s.first ?? 0) * Double(m) * 0x1p-52
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
/// where a weight would become negative.
func nearestPoint(_ G: Gramian) throws(Failure) -> [Double] {
  let m = G.count, top = G.largest
  var w = [Double](repeating: 0, count: m)
  let first = G.indices.min { G[$0][$0] < G[$1][$1] } ?? 0
  w[first] = 1
  guard top > 0 else { return w }
  let unit = G.scaled(by: 1 / top)
  var corral = [first]
  for _ in 0..<(100 * m + 100) {
    let slopes = unit.times(w), length = dot(w, slopes)
    guard let next = unit.indices.min(by: { slopes[$0] < slopes[$1] }), !corral.contains(next) else { return w }
    let noise = 1e-15 * Double(m) * dot(unit[next].map(\.magnitude), w)
    guard slopes[next] < length - 1e-13 * length - noise else { return w }
    corral.append(next)
    while true {
      guard let z = nearestAffine(unit, corral) else {
        // it depends on those that are there: it can bring the hull no nearer
        return w
      }
      if z.allSatisfy({ $0 > 0 }) {
        for (k, i) in corral.enumerated() { w[i] = z[k] }
        break
      }
      // back along the way to the first boundary, whose points leave
      let reach = zip(corral, z).map { i, x in x > 0 ? 1 : w[i] > 0 ? w[i] / (w[i] - x) : 0 }
      let t = reach.min() ?? 0
      for (k, i) in corral.enumerated() {
        w[i] += t * (z[k] - w[i])
        if z[k] <= 0, reach[k] <= t || w[i] <= 0 { w[i] = 0 }
      }
      corral.removeAll { w[$0] == 0 }
      if !corral.contains(next) { return w }
    }
  }
  throw Failure(Status.numeric, "the nearest point of the gradients' hull was not found")
}

/// The weights, adding up to 1, of the point nearest to 0 in the affine hull of some points; nil when they are
/// dependent. From the shortest of them, so that no digits of short ones are lost beside long ones.
private func nearestAffine(_ G: Gramian, _ points: [Int]) -> [Double]? {
  guard let base = points.min(by: { G[$0][$0] < G[$1][$1] }) else { return nil }
  let rest = points.filter { $0 != base }
  let differences = G.indices.map { i in G.indices.map { j in (G[i][j] - G[i][base]) - (G[j][base] - G[base][base]) } }
  guard let y = differences.cholesky(rest, rest.map { G[base][base] - G[$0][base] }) else { return nil }
  var weight = [Double](repeating: 0, count: G.count)
  weight[base] = 1
  for (i, x) in zip(rest, y) { (weight[i], weight[base]) = (x, weight[base] - x) }
  return points.map { weight[$0] }
}

/// The minimum over a > 0 of ½·aᵀAa − Σ ψ(a_i), with ψ′(a) = a^(−p), by Newton's method with shortened steps. Where
/// there is none, that is where some combination of the gradients with weights that are not negative is 0, some weight
/// grows beyond `most`: `bounded` is false then.
func balanced(_ A: Gramian, _ p: Double, most: Double = 1e6) -> (weights: [Double], bounded: Bool) {
  let m = A.count, all = Array(0..<m)
  var a = [Double](repeating: 1, count: m)
  func value(_ a: [Double]) -> Double {
    A.form(a, a) / 2 - a.reduce(0) { $0 + (p == 1 ? log($1) : pow($1, 1 - p) / (1 - p)) }
  }
  for _ in 0..<500 {
    let pull = a.map { pow($0, -p) }, slope = zip(A.times(a), pull).map { $0 - $1 }
    var H = A
    for i in 0..<m { H[i][i] += p * pull[i] / a[i] }
    guard let d = H.cholesky(all, slope) else { break }
    let decrement = dot(slope, d)
    if decrement < 1e-20 * Double(m) { break }
    let now = value(a)
    var t = 1.0
    var next = a
    repeat {
      next = zip(a, d).map { $0 - t * $1 }
      // at the end rounding hides the descent: a whole step is right there
      if next.allSatisfy({ $0 > 0 }), decrement < 1e-12 || value(next) <= now - t * decrement / 4 { break }
      t /= 2
    } while t > 1e-18
    if t <= 1e-18 { break }
    a = next
    if a.contains(where: { $0 > most }) { return (a.map { min($0, most) }, false) }
  }
  return (a, true)
}
