import Glibc
import ThalwegCore

/// One direction of a projection that keeps neighbours apart. It is to be maximised, on the unit sphere.
///
///     value = mean of the smallest b % of |⟨x_i − x_j, w⟩|, i < j, less α·Σ_l ⟨w_l, w⟩²
///
/// w is (d,), x is (N, d), found is (k, d): the directions before it. At least one pair counts. The projections are
/// sorted once, the bound of the pairs that count is found by bisection, and only those pairs are looked at. Where
/// several lie at the bound, those of the smallest projections count.
/// Errors   TW_ERROR_SHAPE: a single row, which makes no pair.
/// Differs  b and α are the card's; the paper's are not verified.
/// Source   Fu and Zhao, 2025, arXiv:2504.16335.
struct MPADDirection: Objective {
  static let method = Method(
    "mpad_direction", .objective, "One direction of a projection that keeps neighbours apart; to be maximised.",
    rule: "value = mean of the smallest b percent of |<x_i - x_j, w>|, i < j, less alpha*sum_l <w_l, w>^2",
    source: "Fu, Zhao, 2025, arXiv:2504.16335", parameters: MPADUtility.parameters,
    inputs: [
      .variable("w", "d", "direction"), .constant("x", "N, d", "data"),
      .constant("found", "k, d", "directions before it", optional: true),
    ])
  let utility: MPADUtility
  init(_ h: Hyper) { utility = MPADUtility(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["N"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let g = try space.room(d, Double.self)
    let value = try utility.take(x["w"], x["x"], n, d, x.optional("found"), x.sizes["k"], into: g)
    if let out = try cache?.keep("w", d, T.self) { for c in 0..<d { out[c] = T(g[c]) } }
    return value
  }
}

/// Directions of a projection that keeps neighbours apart, one after the other.
///
///     for each row of start: w ← start/|start|;  iters times  g ← the gradient of `mpad_direction`,
///     w ← w + lr·(g − ⟨g, w⟩·w), over its length; the best w that was met stays
///
/// x is (N, d), start is (m, d), directions is (m, d). The data are (x − mean)·directionsᵀ afterwards.
/// Errors   TW_ERROR_SHAPE: a single row, which makes no pair; TW_ERROR_RANGE: numbers that are not finite, or a start
///          of zeros.
/// Differs  the ascent, b and α are the card's; the paper's are not verified. All pairs are looked at.
/// Source   Fu and Zhao, 2025, arXiv:2504.16335.
struct MPAD: Driver {
  static let method = Method.solver(
    "mpad", "Directions of a projection that keeps neighbours apart.",
    rule: "w <- w + lr (g - <g, w> w), over its length, g the gradient of mpad_direction;  the best w that was met",
    source: "Fu, Zhao, 2025, arXiv:2504.16335",
    parameters: MPADUtility.parameters + [
      .number("lr", 0.1, .above(0), "step of the ascent"), .integer("iters", 200, .atLeast(1), "steps for each"),
    ],
    inputs: [
      .constant("x", "N, d", "data"), .constant("start", "m, d", "where the directions begin"),
      .result("directions", "m, d", "directions, of length 1"), .result("utilities", "m", "what each reaches"),
    ], kept: [.kept("w", "d", "direction")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], start = try io["start"], found = try io["directions"], utilities = try io["utilities"]
    let w = try io["w"], d = w.count, utility = MPADUtility(h), space = Workspace()
    defer { space.close() }
    guard x.isFinite else { throw Failure(Status.range, "`x` must be finite") }
    let g = try space.room(d, Double.self)
    for k in 0..<start.rows {
      let size = start.row(k).norm
      guard size > 0, size.isFinite else {
        throw Failure(Status.range, "row \(k) of `start` must be finite and not zero; its norm is \(text(size))")
      }
      w.set(1 / size, start.row(k))
      var best = -Double.infinity
      for step in 0...h.integer("iters") {
        for c in 0..<d { g[c] = 0 }
        let value = try utility.take(
          UnsafePointer(w.p), UnsafePointer(x.p), x.rows, d, UnsafePointer(found.p), k, into: g)
        if value > best {
          best = value
          found.row(k).copy(w)
        }
        if step == h.integer("iters") { break }
        var along = 0.0
        for c in 0..<d { along += g[c] * Double(w.p[c]) }
        for c in 0..<d { w.p[c] += T(h.lr * (g[c] - along * Double(w.p[c]))) }
        w.set(1 / w.norm, w)
      }
      utilities.p[k] = T(best)
    }
    return .done(.converged)
  }
}

/// The utility of a direction, and its gradient.
struct MPADUtility: Sendable {
  static let parameters: [Parameter] = [
    .number("b", 20, .between(0, 100, lowOpen: true, highOpen: false), "percentage of the pairs that count"),
    .number("alpha", 1, .atLeast(0), "soft orthogonality to the directions before"),
  ]
  let share: Double, alpha: Double
  init(_ h: Hyper) { (share, alpha) = (h.b / 100, h.alpha) }

  /// The value for `found` directions before; g, which holds zeros, takes the gradient.
  func take<T: Real>(
    _ w: UnsafePointer<T>, _ rows: UnsafePointer<T>, _ n: Int, _ d: Int, _ found: UnsafePointer<T>?, _ before: Int,
    into g: UnsafeMutablePointer<Double>
  ) throws(Failure) -> Double {
    guard n > 1 else { throw Failure(Status.shape, "one row makes no pair; at least 2 are needed") }
    let pairs = try area(n, n - 1) / 2, wanted = max(1, Int(share * Double(pairs)))
    let sorted = (0..<n).map { (Flat.dot(rows + $0 * d, w, d), $0) }.sorted { $0 < $1 }, p = sorted.map(\.0)
    guard p.allSatisfy(\.isFinite) else { return .nan }
    // pairs nearer than a bound, in one walk with two ends
    func nearer(_ bound: Double, _ visit: (_ low: Int, _ first: Int) -> Void = { _, _ in }) -> Int {
      var low = 0, count = 0
      for high in 0..<n {
        while low < high, p[high] - p[low] >= bound { low += 1 }
        visit(high, low)
        count += high - low
      }
      return count
    }
    // the largest bound with at most `wanted` pairs below it: bits of positive numbers sort as the numbers do
    var low = UInt64(0), high = Double.infinity.bitPattern
    while high - low > 1 {
      let middle = low + (high - low) / 2
      if nearer(Double(bitPattern: middle)) <= wanted { low = middle } else { high = middle }
    }
    let bound = Double(bitPattern: low)
    var slopes = [Double](repeating: 0, count: n), sum = 0.0
    var left =
      wanted
      - nearer(bound) { high, first in
        for k in first..<high {
          sum += p[high] - p[k]
          if p[high] > p[k] {
            slopes[high] += 1
            slopes[k] -= 1
          }
        }
      }
    for high in 0..<n where left > 0 {
      for k in 0..<high where left > 0 && p[high] - p[k] == bound {
        left -= 1
        sum += bound
        if bound > 0 {
          slopes[high] += 1
          slopes[k] -= 1
        }
      }
    }
    var value = sum / Double(wanted)
    for (k, (_, i)) in sorted.enumerated() where slopes[k] != 0 {
      for c in 0..<d { g[c] += slopes[k] / Double(wanted) * Double(rows[i * d + c]) }
    }
    if let found {
      for l in 0..<before {
        let along = Flat.dot(found + l * d, w, d)
        value -= alpha * along * along
        for c in 0..<d { g[c] -= 2 * alpha * along * Double(found[l * d + c]) }
      }
    }
    return value
  }
}
