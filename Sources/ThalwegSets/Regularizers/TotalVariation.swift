import Glibc
import ThalwegCore

/// Total variation of the flattened tensor: the sum of the jumps from entry to entry.
///
///     d_i = w_{i+1} − w_i     value = λ·Σ√(d_i² + ε²)     gradient: the adjoint difference of λd/√(d² + ε²), of
///     λ·sign(d) with ε = 0
///     prox, exact in O(n), takes ε as 0
///
/// Differs  nothing from copt.prox_tv1d.
/// Source   Rudin, Osher and Fatemi, 1992; prox: the taut string of Davies and Kovac, 2001.
struct TV1D: WholeRegularizer {
  static let method = Method(
    "tv_1d", .regularizer, "Total variation of the flattened tensor: its prox makes it piecewise constant.",
    rule: """
      d_i = w_(i+1) - w_i;  value = weight*sum sqrt(d_i^2 + eps^2);  gradient: adjoint difference of weight*d/sqrt(..)
      prox: exact, eps counts as 0
      """,
    source: "Rudin, Osher, Fatemi, 1992; Davies, Kovac, 2001",
    parameters: [.weight(), .eps(0, "smoothing inside the root, of value and gradient")])
  static var mayFail: Bool { true }

  let weight, eps: Double
  init(_ h: Hyper) { self.init(weight: h.weight, eps: h.eps) }
  init(weight: Double, eps: Double) { (self.weight, self.eps) = (weight, eps) }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let x = try doubles(w.v, w.count, "tv_1d")
    return weight * zip(x.dropFirst(), x).reduce(0) { $0 + smoothed($1.0 - $1.1, eps) }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let x = try doubles(w.w, w.count, "tv_1d")
    for i in 0..<max(0, w.count - 1) {
      let g = T(scale * weight * slope(x[i + 1] - x[i], eps))
      w.v[i + 1] += g
      w.v[i] -= g
    }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    try finite(w.v, w.count, "tv_1d")
    let k = t * weight, n = w.count
    if k == 0 || n < 2 { return }
    // so strong that all becomes the mean: below, small numbers would drown in ±k
    let first = Double(w.v[0])
    var rise = 0.0, drift = 0.0
    for i in 1..<n { rise += (Double(w.v[i]) - first) / Double(n) }
    let mean = first + rise
    let isFlat = (0..<n).allSatisfy {
      drift += Double(w.v[$0]) - mean
      return abs(drift) <= k
    }
    if isFlat { return w.v.update(repeating: T(mean + drift / Double(n)), count: n) }
    try tautString(w.v, n, k)
  }
}

/// v ← the u that minimises ½‖u − v‖² + k·Σ|u_{i+1} − u_i|, for finite v, n ≥ 2 and k > 0.
///
/// The running sum of u is the taut string between those of v − k and v + k that starts and ends at the sum of v. Kept
/// are the two shortest paths from the last bend to the newest bounds: the convex one under the upper bounds, and the
/// concave one over the lower bounds. When the newest bound makes one of them a straight line that crosses the other,
/// the string follows the first piece of the other. Every piece is made, joined to another and given up once.
@_specialize(where T == Float)
@_specialize(where T == Double)
private func tautString<T: Real>(_ v: UnsafeMutablePointer<T>, _ n: Int, _ k: Double) throws(Failure) {
  // Only as much of it is touched as the paths have pieces at a time.
  let room = try Memory(2 &* n &* MemoryLayout<Piece>.stride, .current, zeroed: false)
  defer { withExtendedLifetime(room) {} }
  // the pieces before the last one, which is kept apart
  let above = room.base.bindMemory(to: Piece.self, capacity: 2 &* n), below = above + n
  // small numbers on a large one would drown in the sums, and so would they below one large number at the start
  let first = Double(v[0]), second = Double(v[1]), base = abs(second) < abs(first) ? second : first
  var (a, aEnd, b, bEnd) = (above, above, below, below)
  var start = 0, up = Piece(sum: (first - base) + k, count: 1), down = Piece(sum: (first - base) - k, count: 1)
  for i in 1..<n {
    // both bounds end in the sum of v
    let y = Double(v[i]) - base, edge = i == n &- 1 ? k : 0
    if up.sum < (y - edge) * up.count {
      aEnd.pointee = up
      aEnd += 1
      up = Piece(sum: y - edge, count: 1)
    } else {
      up = Piece(sum: up.sum + (y - edge), count: up.count + 1)
      while aEnd > a, (aEnd - 1).pointee.sum * up.count >= up.sum * (aEnd - 1).pointee.count {
        aEnd -= 1
        up = Piece(sum: up.sum + aEnd.pointee.sum, count: up.count + aEnd.pointee.count)
      }
    }
    if down.sum > (y + edge) * down.count {
      bEnd.pointee = down
      bEnd += 1
      down = Piece(sum: y + edge, count: 1)
    } else {
      down = Piece(sum: down.sum + (y + edge), count: down.count + 1)
      while bEnd > b, (bEnd - 1).pointee.sum * down.count <= down.sum * (bEnd - 1).pointee.count {
        bEnd -= 1
        down = Piece(sum: down.sum + bEnd.pointee.sum, count: down.count + bEnd.pointee.count)
      }
    }
    // only a path of one piece can have come to cross the other
    while aEnd > a, bEnd == b, a.pointee.sum * down.count < down.sum * a.pointee.count {
      start = fill(v, start, base, a.pointee)
      down = Piece(sum: down.sum - a.pointee.sum, count: down.count - a.pointee.count)
      a += 1
    }
    while bEnd > b, aEnd == a, b.pointee.sum * up.count > up.sum * b.pointee.count {
      start = fill(v, start, base, b.pointee)
      up = Piece(sum: up.sum - b.pointee.sum, count: up.count - b.pointee.count)
      b += 1
    }
  }
  while a < aEnd {
    up = Piece(sum: up.sum + a.pointee.sum, count: up.count + a.pointee.count)
    a += 1
  }
  _ = fill(v, start, base, up)
}

/// A straight piece of a path: how much it rises over how many entries.
private struct Piece {
  var sum, count: Double
}
@inline(__always)
private func fill<T: Real>(_ v: UnsafeMutablePointer<T>, _ start: Int, _ base: Double, _ p: Piece) -> Int {
  let count = Int(p.count)
  (v + start).update(repeating: T(base + p.sum / p.count), count: count)
  return start &+ count
}

/// The fused lasso: sparse, and piecewise constant along the flattened tensor.
///
///     value = λ₁·Σ|w| + λ₂·Σ|w_{i+1} − w_i|     prox = S(prox of the total variation, tλ₁), exact in this order
///
/// Source   Tibshirani, Saunders, Rosset, Zhu and Knight, 2005; prox: Friedman et al., 2007.
struct FusedLasso: WholeRegularizer {
  static let method = Method(
    "fused_lasso", .regularizer, "The fused lasso: sparse, and piecewise constant along the flattened tensor.",
    rule: """
      value = l1_weight*sum|w| + tv_weight*sum sqrt((w_(i+1) - w_i)^2 + eps^2)
      prox = S(prox of the total variation, t*l1_weight)
      """,
    source: "Tibshirani, Saunders, Rosset, Zhu, Knight, 2005",
    parameters: [
      .number("l1_weight", 1e-4, .atLeast(0), "coefficient of the L1 part"),
      .number("tv_weight", 1e-4, .atLeast(0), "coefficient of the total variation"),
      .eps(0, "smoothing inside the root of the total variation, of value and gradient"),
    ])
  static var mayFail: Bool { true }

  let sparse: Double, variation: TV1D
  init(_ h: Hyper) { (sparse, variation) = (h.l1_weight, TV1D(weight: h.tv_weight, eps: h.eps)) }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let x = w.v
    return sparse * Rows.sum(w.count, work: 1) { abs(Double(x[$0])) } + (try variation.value(w))
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    try variation.addGradient(w, scale)
    for i in 0..<w.count { w.v[i] += T(scale * sparse * signOf(Double(w.w[i]))) }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    try finite(w.v, w.count, "fused_lasso")
    try variation.prox(w, t)
    if t * sparse > 0 { for i in 0..<w.count { w.v[i] = T(shrunk(Double(w.v[i]), by: t * sparse)) } }
  }
}

/// Total variation along every axis of a tensor.
///
///     D: the forward differences along every axis, zero on its last slice
///     isotropic     value = λ·Σ_cells √(Σ_axes d² + ε²)      anisotropic  value = λ·Σ_axes Σ √(d² + ε²)
///     prox (ε as 0): u = w − Dᵀp;  p ← P(q + D(w − Dᵀq)/(4·ndim)), P on balls of radius tλ, q with FISTA's momentum,
///                    until the largest change of p is at most tol·tλ
///
/// Differs  copt.TotalVariation2D is the anisotropic form. p starts from zero in every call; with ε, the isotropic sum
///          counts every cell and the anisotropic one every difference.
/// Source   Rudin, Osher and Fatemi, 1992; Beck and Teboulle, 2009.
struct TVND: WholeRegularizer {
  static let method = Method(
    "tv_nd", .regularizer, "Total variation along every axis of a tensor: flat regions with sharp edges.",
    rule: """
      D: forward differences along every axis, zero on the last slice
      isotropic: value = weight*sum_cells sqrt(sum_axes d^2 + eps^2);  else weight*sum_axes sum sqrt(d^2 + eps^2)
      prox: u = w - D'p, p <- P(q + D(w - D'q)/(4*ndim)) on balls of radius t*weight, FISTA momentum
      """,
    source: "Rudin, Osher, Fatemi, 1992; Beck, Teboulle, 2009",
    parameters: [
      .weight(), .eps(0, "smoothing inside the root, of value and gradient"),
      .flag("isotropic", true, "one root a cell, not one a difference"),
      .integer("max_iter", 200, .within(1, 1e9), "most iterations of the prox"),
      .number("tol", 1e-6, .atLeast(0), "change that stops the prox, relative to t*weight"),
    ])
  static var mayFail: Bool { true }

  let weight, eps, tol: Double, isotropic: Bool, iterations: Int
  init(_ h: Hyper) {
    (weight, eps, tol, isotropic, iterations) = (h.weight, h.eps, h.tol, h.isotropic, h.integer("max_iter"))
  }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let grid = Grid(w.shape), x = try doubles(w.v, w.count, "tv_nd")
    if grid.axes == 0 || x.isEmpty { return 0 }
    let d = try grid.differences(x)
    if isotropic { return weight * x.indices.reduce(0) { $0 + grid.length(d, $1, eps) } }
    var sum = 0.0
    for a in 0..<grid.axes { for i in x.indices where !grid.isLast(i, a) { sum += smoothed(d[a][i], eps) } }
    return weight * sum
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let grid = Grid(w.shape), x = try doubles(w.w, w.count, "tv_nd")
    if grid.axes == 0 || x.isEmpty { return }
    var d = try grid.differences(x)
    for i in x.indices {
      let root = isotropic ? grid.length(d, i, eps) : 0
      for a in 0..<grid.axes { d[a][i] = isotropic ? (root > 0 ? d[a][i] / root : 0) : slope(d[a][i], eps) }
    }
    var g = [Double](repeating: 0, count: w.count)
    grid.addAdjoint(d, 1, to: &g)
    for i in g.indices { w.v[i] += T(scale * weight * g[i]) }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    let grid = Grid(w.shape), reach = t * weight
    var y = try doubles(w.v, w.count, "tv_nd")
    let n = y.count
    if reach == 0 || grid.axes == 0 || y.isEmpty { return }
    // in units in which squares of its size are numbers
    let unit = reach > 1e-100 && reach < 1e100 ? 1 : reach, k = reach / unit
    if unit != 1 { for i in 0..<n { y[i] /= unit } }
    try Memory.ask(8 &* n &* (1 &+ 2 &* grid.axes))
    let parts = Parts(n, of: 1)
    var u = y, p = [Double](repeating: 0, count: grid.axes * n), q = p, momentum = 1.0
    var changes = [Double](repeating: 0, count: parts.count)
    u.withUnsafeMutableBufferPointer { u in
      p.withUnsafeMutableBufferPointer { p in
        q.withUnsafeMutableBufferPointer { q in
          guard let u = u.baseAddress, let p = p.baseAddress, let q = q.baseAddress else { return }
          nonisolated(unsafe) let (point, dual, ahead) = (u, p, q)
          for _ in 0..<iterations {
            parts.forEach { _, cells in grid.primal(y, ahead, cells, into: point) }
            let next = (1 + (1 + 4 * momentum * momentum).squareRoot()) / 2, keep = (momentum - 1) / next
            changes.withUnsafeMutableBufferPointer { changes in
              nonisolated(unsafe) let out = changes
              parts.forEach { part, cells in
                out[part] = grid.ascend(point, dual, ahead, cells, k, keep, isotropic)
              }
            }
            momentum = next
            if (changes.max() ?? 0) <= tol * k { break }
          }
          parts.forEach { _, cells in grid.primal(y, dual, cells, into: point) }
        }
      }
    }
    for i in 0..<n { w.v[i] = T(u[i] * unit) }
  }
}

/// √(d² + ε²) and its derivative; |d| and its sign with ε = 0.
private func smoothed(_ d: Double, _ eps: Double) -> Double { eps == 0 ? abs(d) : hypot(d, eps) }
private func slope(_ d: Double, _ eps: Double) -> Double { eps == 0 ? signOf(d) : d / smoothed(d, eps) }

/// The neighbours of a dense tensor: entry i and entry i + step[a] along axis a.
struct Grid {
  let sizes: [Int], steps: [Int], count: Int
  var axes: Int { sizes.count }
  init(_ shape: Shape) {
    sizes = shape.dimensions
    var steps = [Int](repeating: 1, count: sizes.count)
    for a in sizes.indices.dropLast().reversed() { steps[a] = steps[a + 1] &* sizes[a + 1] }
    self.steps = steps
    count = shape.count
  }
  func isLast(_ i: Int, _ a: Int) -> Bool { i / steps[a] % sizes[a] == sizes[a] - 1 }

  /// Calls `body` with every run of cells that are not on the last slice of an axis, or the first.
  @inline(__always)
  private func runs(_ a: Int, _ cells: Swift.Range<Int>, exceptFirst: Bool, _ body: (Swift.Range<Int>) -> Void) {
    let period = steps[a] &* sizes[a]
    var start = cells.lowerBound / period &* period
    while start < cells.upperBound {
      let low = max(cells.lowerBound, exceptFirst ? start &+ steps[a] : start)
      let high = min(cells.upperBound, exceptFirst ? start &+ period : start &+ period &- steps[a])
      if low < high { body(low..<high) }
      start &+= period
    }
  }

  /// The forward differences along every axis; 0 on its last slice.
  func differences(_ x: [Double]) throws(Failure) -> [[Double]] {
    try Memory.ask(8 &* axes &* x.count)
    return sizes.indices.map { a in
      var d = [Double](repeating: 0, count: x.count)
      runs(a, x.indices, exceptFirst: false) { cells in for i in cells { d[i] = x[i &+ steps[a]] - x[i] } }
      return d
    }
  }
  /// out ← out + factor·Dᵀp.
  func addAdjoint(_ p: [[Double]], _ factor: Double, to out: inout [Double]) {
    for a in sizes.indices {
      let step = steps[a], line = p[a]
      runs(a, out.indices, exceptFirst: false) { cells in for i in cells { out[i] -= factor * line[i] } }
      runs(a, out.indices, exceptFirst: true) { cells in for i in cells { out[i] += factor * line[i &- step] } }
    }
  }

  /// u ← y − Dᵀq for some cells; q is 0 on the last slice of its axis, and the axes are stored one after the other.
  func primal(
    _ y: [Double], _ q: UnsafePointer<Double>, _ cells: Swift.Range<Int>, into u: UnsafeMutablePointer<Double>
  ) {
    y.withUnsafeBufferPointer { y in
      guard let y = y.baseAddress else { return }
      for i in cells { u[i] = y[i] + q[i] }
      for a in 1..<max(1, axes) {
        let q = q + a * self.count
        for i in cells { u[i] += q[i] }
      }
    }
    for a in sizes.indices {
      let q = q + a * count, step = steps[a]
      runs(a, cells, exceptFirst: true) { cells in for i in cells { u[i] -= q[i &- step] } }
    }
  }

  /// q ← q + Du/(4·axes), cut to length k: the new p; q ← p + keep·(p − the old p). Returns the largest change of p.
  func ascend(
    _ u: UnsafePointer<Double>, _ p: UnsafeMutablePointer<Double>, _ q: UnsafeMutablePointer<Double>,
    _ cells: Swift.Range<Int>, _ k: Double, _ keep: Double, _ isotropic: Bool
  ) -> Double {
    let rate = 1 / Double(4 &* axes), block = 512
    var most = SIMD8<Double>(repeating: 0)
    return withUnsafeTemporaryAllocation(of: Double.self, capacity: block) { room in
      guard let scale = room.baseAddress else { return 0 }
      for first in stride(from: cells.lowerBound, to: cells.upperBound, by: block) {
        let part = first..<min(cells.upperBound, first &+ block)
        scale.initialize(repeating: 0, count: part.count)
        for a in sizes.indices {
          let q = q + a * count, step = steps[a]
          runs(a, part, exceptFirst: false) { cells in
            for i in cells { q[i] += rate * (u[i &+ step] - u[i]) }
          }
          let line = q + first
          for i in 0..<part.count { scale[i] += line[i] * line[i] }
        }
        for i in 0..<part.count { scale[i] = 1 / max(1, scale[i].squareRoot() / k) }
        for a in sizes.indices {
          let p = p + (a * count + first), q = q + (a * count + first)
          var i = 0
          while i &+ 8 <= part.count {
            cut(p + i, q + i, isotropic ? .load(scale + i) : nil, k, keep, &most)
            i &+= 8
          }
          while i < part.count {
            let clipped = isotropic ? q[i] * scale[i] : q[i] / max(1, abs(q[i]) / k), moved = clipped - p[i]
            most[0] = max(most[0], abs(moved))
            p[i] = clipped
            q[i] = clipped + keep * moved
            i &+= 1
          }
        }
      }
      return most.max()
    }
  }
  @inline(__always)
  private func cut(
    _ p: UnsafeMutablePointer<Double>, _ q: UnsafeMutablePointer<Double>, _ scale: SIMD8<Double>?, _ k: Double,
    _ keep: Double, _ most: inout SIMD8<Double>
  ) {
    let x = SIMD8<Double>.load(q)
    let clipped = scale.map { x * $0 } ?? x.clipped(to: k)
    let moved = clipped - .load(p), size = moved.magnitude
    most = most.replacing(with: size, where: most .< size)
    clipped.store(p)
    (clipped + keep * moved).store(q)
  }
  /// √(Σ_axes d² + ε²) of one cell.
  func length(_ d: [[Double]], _ i: Int, _ eps: Double) -> Double {
    let square = sizes.indices.reduce(eps * eps) { $0 + d[$1][i] * d[$1][i] }
    if square > 1e-280, square < 1e280 { return square.squareRoot() }
    return sizes.indices.reduce(eps) { hypot($0, d[$1][i]) }
  }
}

/// The truncated quadratic: smooth inside regions, with a fixed price for an edge.
///
///     value = Σ min(αd², ν) over the neighbours d along every axis     gradient: the adjoint difference of 2αd where
///     αd² < ν, else of 0
///
/// It has no prox of whole tensors.
/// Source   Blake and Zisserman, 1987.
struct TruncatedQuadratic: WholeRegularizer {
  static let method = Method(
    "truncated_quadratic", .regularizer, "Smooth inside regions, with a fixed price for an edge between neighbours.",
    rule: """
      value = sum min(alpha*d^2, nu), d the differences of neighbours along every axis
      gradient: adjoint difference of 2*alpha*d where alpha*d^2 < nu, else of 0
      """,
    source: "Blake, Zisserman, 1987",
    parameters: [
      .number("alpha", 1, .above(0), "smoothness"), .number("nu", 0.1, .above(0), "price of one unit of edge"),
    ])
  static var hasProx: Bool { false }
  static var mayFail: Bool { true }

  let alpha, nu: Double
  init(_ h: Hyper) { (alpha, nu) = (h.alpha, h.nu) }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let grid = Grid(w.shape), x = try doubles(w.v, w.count, "truncated_quadratic")
    return try grid.differences(x).reduce(0) { $0 + $1.reduce(0) { $0 + min(alpha * $1 * $1, nu) } }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let grid = Grid(w.shape), x = try doubles(w.w, w.count, "truncated_quadratic")
    let d = try grid.differences(x).map { $0.map { alpha * $0 * $0 < nu ? 2 * alpha * $0 : 0 } }
    var g = [Double](repeating: 0, count: w.count)
    grid.addAdjoint(d, 1, to: &g)
    for i in g.indices { w.v[i] += T(scale * g[i]) }
  }
}
