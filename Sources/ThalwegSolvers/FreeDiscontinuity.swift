import Glibc
import ThalwegCore

/// Free-discontinuity regression on a grid of any number of axes: piecewise smooth, with a price for jumps, as a convex
/// problem one dimension higher.
///
///     min lam·Σ (u − f)² + Σ |du|² + nu·#jumps,  f scaled to [0, 1];  labels t_k = (k + ½)·h, h = 1/levels
///     v(x, k) falls from 1 (first label) to 0 (last);  duals px (one an axis), pt; pair fields s and multipliers mu
///     for every interval [a, b] of labels
///     (px, pt) ← P(px + σ·(Dx v̄ − h·Σ_{[a,b]∋k} mū_ab), pt + σ·Dt v̄) onto pt ≥ |px|²/4 − lam·(t_k − f)²
///     s ← P(s + σ·mū) onto |s| ≤ nu;   v ← clip(v − τ·(Dxᵀ px + Dtᵀ pt), 0, 1), the two labels fixed
///     mu ← mu + τ·(h·Σ_{k in [a,b]} px_k − s);   v̄ = 2v − v_old, mū = 2mu − mu_old
///     τ = σ = 0.99/√(4·D + 4/h² + |B|² + 1), B the sums over intervals
///
/// u is where v crosses ½ between labels, scaled back. A cell is a jump where |du| (of the scaled u) exceeds √nu, or
/// with split=two_means where it belongs to the upper of two means of |du|. Memory: of the order of
/// 3·D·N·levels·(levels + 1)/2 numbers.
/// Errors   TW_ERROR_NONFINITE: a field that is not finite.
/// Ends     converged: mean |v − v_old| ≤ tol; max_iter. A constant field is its own answer.
/// Differs  the authors scale their steps by the size of the grid, and compare with nu times its side but rescale to
///          nu: not followed. Tuning by SURE is not here.
/// Source   "Free Discontinuity Regression: With an Application to the Economic Effects of Internet Shutdowns"; the
///          relaxation: Pock, Cremers, Bischof, Chambolle, 2009; Strekalovskiy, Chambolle, Cremers, 2012.
struct FDRLifted: Driver {
  static let method = Method.solver(
    "fdr_lifted", "Free-discontinuity regression on a grid, lifted to a convex problem.",
    rule: """
      min lam sum (u - f)^2 + sum |du|^2 + nu #jumps, f scaled to [0, 1], over v(x, k) = [u(x) > t_k], relaxed
      (px, pt) in {pt >= |px|^2/4 - lam (t_k - f)^2},  |h sum_{k in [a,b]} px_k| <= nu for all a <= b
      primal-dual steps
      """,
    source: "Free Discontinuity Regression; Pock, Cremers, Bischof, Chambolle, 2009; Strekalovskiy et al., 2012",
    parameters: [
      .number("lam", 10, .above(0), "data weight"), .number("nu", 0.1, .above(0), "price of a jump"),
      .integer("levels", 16, .within(3, 1024), "labels on [0, 1]"),
      .integer("max_iter", 1000, .atLeast(1), "most iterations"),
      .number("tol", 5e-5, .atLeast(0), "mean change of v that ends it"),
      .choice("split", ["threshold", "two_means"], "what a jump is"),
    ],
    inputs: [
      .constant("f", "...", "the field"), .result("u", "...", "the piecewise smooth field"),
      .result("jumps", "...", "1 at a jump"), .result("iterations", "", "iterations"),
      .result("residual", "", "the last mean change of v"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let f = try io["f"], u = try io["u"], jumps = try io["jumps"], count = f.count
    guard f.isFinite else { throw Failure(Status.nonfinite, "`f` must be finite") }
    u.copy(f)
    let field = (0..<count).map { Double(f.p[$0]) }
    let low = field.reduce(.infinity) { min($0, $1) }, high = field.reduce(-.infinity) { max($0, $1) }
    if !(high > low) { return .done(.converged) }
    var lifted = try Lifted(field.map { ($0 - low) / (high - low) }, f.shape, h.integer("levels"), h.lam, h.nu)
    var end = Ending.maxIter
    while io.iterations < h.max_iter {
      io.residual = lifted.step()
      io.iterations += 1
      if io.residual <= h.tol {
        end = .converged
        break
      }
    }
    let found = lifted.level(), slopes = lifted.slopes(found)
    let border = h.is("split", "two_means") ? Lifted.twoMeans(slopes) : h.nu.squareRoot()
    for i in 0..<count {
      u.p[i] = T(low + (high - low) * found[i])
      jumps.p[i] = slopes[i] > border ? 1 : 0
    }
    return .done(end)
  }
}

/// The lifted problem: everything indexed by cell, then label or interval, then axis.
private struct Lifted {
  private let f: [Double], steps: [Int], sizes: [Int], levels: Int, lam: Double, nu: Double, rate: Double
  private let intervals: [(a: Int, b: Int)]
  private var v, vbar, px, pt, s, mu, mubar: [Double]
  private var axes: Int { sizes.count }
  private var label: Double { 1 / Double(levels) }

  init(_ f: [Double], _ shape: [Int], _ levels: Int, _ lam: Double, _ nu: Double) throws(Failure) {
    (self.f, sizes, self.levels, self.lam, self.nu) = (f, shape, levels, lam, nu)
    var steps = [Int](repeating: 1, count: shape.count)
    for a in shape.indices.dropLast().reversed() { steps[a] = steps[a + 1] * shape[a + 1] }
    self.steps = steps
    intervals = (0..<levels).flatMap { a in (a..<levels).map { (a, $0) } }
    let pairs = intervals.count, n = f.count, d = max(1, shape.count)
    let whole = n.multipliedReportingOverflow(by: 8 * (3 * levels * (d + 1) + 3 * d * pairs))
    try Memory.ask(whole.overflow ? Int.max : whole.partialValue)
    v = [Double](repeating: 0, count: n * levels)
    for x in 0..<n {
      v[x * levels] = 1
      for k in 1..<(levels - 1) where (Double(k) + 0.5) / Double(levels) < f[x] { v[x * levels + k] = 1 }
    }
    vbar = v
    px = [Double](repeating: 0, count: n * levels * shape.count)
    pt = [Double](repeating: 0, count: n * levels)
    s = [Double](repeating: 0, count: n * pairs * shape.count)
    (mu, mubar) = (s, s)
    // |B|²: the largest eigenvalue of h²·(k + 1 ∧ l + 1)·(L − k ∨ l), by power iteration
    var b = [Double](repeating: 1, count: levels), top = 0.0
    for _ in 0..<100 {
      var next = [Double](repeating: 0, count: levels)
      for k in 0..<levels {
        for l in 0..<levels {
          let shared = (min(k, l) + 1) * (levels - max(k, l))  // intervals that hold both
          next[k] += Double(shared) * b[l]
        }
      }
      top = next.reduce(0) { max($0, $1) }
      b = next.map { $0 / top }
    }
    let h = 1 / Double(levels)
    rate = 0.99 / (4 * Double(shape.count) + 4 / (h * h) + top * h * h + 1).squareRoot()
  }

  private func isLast(_ x: Int, _ a: Int) -> Bool { x / steps[a] % sizes[a] == sizes[a] - 1 }

  /// One step of all; the mean change of v.
  mutating func step() -> Double {
    let n = f.count, pairs = intervals.count, d = axes
    // the duals of v
    var load = [Double](repeating: 0, count: levels + 1)
    for x in 0..<n {
      for a in 0..<d {
        for k in load.indices { load[k] = 0 }
        for (j, i) in intervals.enumerated() {
          let m = mubar[(x * pairs + j) * d + a]
          load[i.a] += m
          load[i.b + 1] -= m
        }
        var open = 0.0
        for k in 0..<levels {
          open += load[k]
          let at = x * levels + k, rise = isLast(x, a) ? 0 : vbar[(x + steps[a]) * levels + k] - vbar[at]
          px[at * d + a] += rate * (rise - label * open)
        }
      }
      for k in 0..<levels {
        let at = x * levels + k
        if k + 1 < levels { pt[at] += rate * (vbar[at + 1] - vbar[at]) / label }
        let miss = (Double(k) + 0.5) * label - f[x]
        project(at, lam * miss * miss)
      }
      // the pair fields
      for j in 0..<pairs {
        let at = (x * pairs + j) * d
        var square = 0.0
        for a in 0..<d {
          s[at + a] += rate * mubar[at + a]
          square += s[at + a] * s[at + a]
        }
        let length = square.squareRoot()
        if length > nu { for a in 0..<d { s[at + a] *= nu / length } }
      }
    }
    // v, and the multipliers
    var change = 0.0
    for x in 0..<n {
      for k in 0..<levels {
        let at = x * levels + k
        var slope = 0.0
        for a in 0..<d {
          if !isLast(x, a) { slope -= px[at * d + a] }
          if x / steps[a] % sizes[a] > 0 { slope += px[(at - steps[a] * levels) * d + a] }
        }
        if k + 1 < levels { slope -= pt[at] / label }
        if k > 0 { slope += pt[at - 1] / label }
        let new = k == 0 ? 1 : k == levels - 1 ? 0 : min(max(v[at] - rate * slope, 0), 1)
        change += abs(new - v[at])
        (vbar[at], v[at]) = (2 * new - v[at], new)
      }
      var sums = [Double](repeating: 0, count: levels + 1)
      for a in 0..<d {
        for k in 0..<levels { sums[k + 1] = sums[k] + px[(x * levels + k) * d + a] }
        for (j, i) in intervals.enumerated() {
          let at = (x * pairs + j) * d + a, old = mu[at]
          mu[at] += rate * (label * (sums[i.b + 1] - sums[i.a]) - s[at])
          mubar[at] = 2 * mu[at] - old
        }
      }
    }
    return change / Double(n * levels)
  }
  /// (px, pt) of one cell and label onto pt ≥ |px|²/4 − c.
  private mutating func project(_ at: Int, _ c: Double) {
    let d = axes
    var square = 0.0
    for a in 0..<d { square += px[at * d + a] * px[at * d + a] }
    if pt[at] >= square / 4 - c { return }
    // the length r of the projection: (r − |px|) + (r²/4 − c − pt)·r/2 = 0, whose left side rises
    let length = square.squareRoot()
    var low = 0.0, high = length, r = length
    for _ in 0..<100 {
      let value = r - length + (r * r / 4 - c - pt[at]) * r / 2
      if value > 0 { high = r } else { low = r }
      let slope = 1 + 3 * r * r / 8 - (c + pt[at]) / 2, newton = r - value / slope
      let next = slope > 0 && newton >= low && newton <= high ? newton : (low + high) / 2
      if abs(next - r) <= 1e-16 * length { break }
      r = next
    }
    for a in 0..<d { px[at * d + a] *= length > 0 ? r / length : 0 }
    pt[at] = r * r / 4 - c
  }

  /// Where v crosses ½, between labels.
  func level() -> [Double] {
    f.indices.map { x in
      let row = Array(v[(x * levels)..<((x + 1) * levels)])
      let k = row.indices.dropLast().last { row[$0] >= 0.5 && row[$0 + 1] < 0.5 } ?? 0
      let part = (row[k] - 0.5) / (row[k] - row[k + 1])
      return (Double(k) + 0.5 + part) * label
    }
  }
  /// |du| at every cell.
  func slopes(_ u: [Double]) -> [Double] {
    u.indices.map { x in
      (0..<axes).reduce(0.0) { sum, a in
        let d = isLast(x, a) ? 0 : u[x + steps[a]] - u[x]
        return sum + d * d
      }.squareRoot()
    }
  }
  /// Halfway between two means.
  static func twoMeans(_ x: [Double]) -> Double {
    var low = x.reduce(.infinity) { min($0, $1) }, high = x.reduce(0) { max($0, $1) }
    for _ in 0..<100 {
      let middle = (low + high) / 2, above = x.filter { $0 > middle }, below = x.filter { $0 <= middle }
      guard !above.isEmpty, !below.isEmpty else { break }
      let next = (below.reduce(0, +) / Double(below.count), above.reduce(0, +) / Double(above.count))
      if next == (low, high) { break }
      (low, high) = next
    }
    return (low + high) / 2
  }
}
