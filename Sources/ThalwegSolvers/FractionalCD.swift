import Glibc
import ThalwegCore

/// Coordinate descent for a ratio (f + h)/g: every coordinate goes to the global minimum of its own model.
///
///     J(e) = f(x) + g_i·e + (c_i + theta)/2·e² + h(x + e·e_i)
///     fractional: e = argmin J(e)/g(x + e·e_i);   parametric: e = argmin J(e) − F·g(x + e·e_i), F the ratio at x
///     h = l1·|x|₁ on the box [lo, hi];   g: norm1 |A·x|₁;  quadratic √(xᵀ·Q·x);  top_k the sum of the k largest |x|
///
/// The line is cut where |·| has a corner; in every piece the stationary points are roots of polynomials of degree two
/// to four, and the best of all points is taken. Coordinates go in turn. c_i bounds the curvature of f along i; the
/// ratio then never rises. `value` is the ratio before the last move.
/// Errors   TW_ERROR_RANGE: g(x) ≤ 0, x0 outside of the box. TW_ERROR_NEEDS: norm1 without a, quadratic without q.
/// Ends     converged: no coordinate of a sweep moved by more than tol; max_iter; nonfinite.
/// Differs  the pieces and their roots are our own: the paper gives the models.
/// Source   Yuan, 2023, arXiv:2201.12691.
struct FractionalCD: Driver {
  static let method = Method.solver(
    "fractional_cd", "Coordinate descent for ratios (f + h)/g, each step a global minimum in one coordinate.",
    rule: """
      J(e) = f(x) + g_i e + (c_i + theta)/2 e^2 + h(x + e e_i)
      fractional: e = argmin J(e)/g(x + e e_i);  parametric: e = argmin J(e) - F g(x + e e_i)
      """,
    source: "Yuan, 2023, arXiv:2201.12691",
    parameters: [
      .choice("mode", ["fractional", "parametric"], "the model"), .number("theta", 1e-6, .above(0), "proximal term"),
      .choice("denominator", ["norm1", "quadratic", "top_k"], "g"),
      .integer("k", 1, .atLeast(1), "top_k: how many entries"), .number("l1", 0, .atLeast(0), "coefficient of |x|_1"),
      .number("lo", -.infinity, .any, "lower bound").orInfinite(),
      .number("hi", .infinity, .any, "upper bound").orInfinite(),
      .integer("max_iter", 100, .atLeast(0), "sweeps"),
      .number("tol", 1e-10, .atLeast(0), "largest move of a sweep that ends it"),
    ],
    inputs: [
      .constant("x0", "n", "where it starts"),
      .constant("curvature", "n", "c_i, a bound of the second derivatives of f"),
      .constant("a", "m, n", "A of norm1", optional: true), .constant("q", "n, n", "Q of quadratic", optional: true),
      .result("x", "n", "the point"), .result("value", "", "(f + h)/g before the last move"),
      .result("iterations", "", "sweeps"),
      .result("residual", "", "largest move of the last sweep"),
    ],
    asks: [
      RequestKind(
        "coordinate", "f, and one entry of its gradient",
        given: [.given("point", "n", "where"), .given("index", "", "which entry, from 0")],
        wanted: [.wanted("f", "", "f there"), .wanted("slope", "", "the entry")])
    ],
    kept: [.kept("move", "", "largest move so far")],
    validate: { (h) throws(Failure) in
      guard h.lo <= h.hi else { throw Failure(Status.range, "fractional_cd: `lo` must not be above `hi`") }
    })

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, coordinate }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], n = x.count
    if phase == .start {
      x.copy(try io["x0"])
      guard (0..<n).allSatisfy({ Double(x.p[$0]) >= h.lo && Double(x.p[$0]) <= h.hi }) else {
        throw Failure(Status.range, "`x0` must lie in [lo, hi]")
      }
      guard !h.is("denominator", "norm1") || io.optional("a") != nil else {
        throw Failure(Status.needs, "norm1 needs `a`")
      }
      guard !h.is("denominator", "quadratic") || io.optional("q") != nil else {
        throw Failure(Status.needs, "quadratic needs `q`")
      }
      guard !h.is("denominator", "top_k") || h.integer("k") <= n else {
        throw Failure(Status.range, "`k` must not be above \(n), got \(h.integer("k"))")
      }
      if h.max_iter == 0 { return .done(.maxIter) }
    } else {
      let i = try io.count("index", n - 1)
      guard io.f.isFinite, io.slope.isFinite else { return .done(.nonfinite) }
      let point = (0..<n).map { Double(x.p[$0]) }
      let bottom = try line(io, point, i)
      let line = Line(
        value: io.f, slope: io.slope, curvature: Double(try io["curvature"].p[i]) + h.theta, l1: h.l1, x: point[i],
        rest: point.indices.reduce(0.0) { $1 == i ? $0 : $0 + abs(point[$1]) }, low: h.lo - point[i],
        high: h.hi - point[i],
        bottom: bottom)
      guard bottom.value(0) > 0 else { throw Failure(Status.range, "fractional_cd: g(x) must be positive") }
      let e = line.best(fractional: h.is("mode", "fractional"))
      x.p[i] = T(min(max(point[i] + e, h.lo), h.hi))
      io.move = max(io.move, abs(Double(x.p[i]) - point[i]))
      io.value = line.ratio(0)
      io.index += 1
      if io.index >= Double(n) {
        (io.residual, io.move, io.index) = (io.move, 0, 0)
        io.iterations += 1
        if io.residual <= h.tol { return .done(.converged) }
        if io.iterations >= h.max_iter { return .done(.maxIter) }
      }
    }
    return .ask("coordinate", [x], [], then: .coordinate)
  }

  /// g along coordinate i, as a function of the move e.
  private func line<T: Real>(_ io: DriverIO<T>, _ x: [Double], _ i: Int) throws(Failure) -> Denominator {
    let n = x.count
    if h.is("denominator", "quadratic"), let q = io.optional("q") {
      var square = 0.0, linear = 0.0
      for r in 0..<n {
        for c in 0..<n { square += x[r] * x[c] * Double(q.p[r * n + c]) }
        linear += x[r] * (Double(q.p[i * n + r]) + Double(q.p[r * n + i]))
      }
      return .root(square, linear, Double(q.p[i * n + i]))
    }
    if h.is("denominator", "norm1"), let a = io.optional("a") {
      let m = a.count / max(1, n)
      try Memory.ask(16 &* m)
      var terms: [(offset: Double, slope: Double)] = []
      for r in 0..<m {
        var offset = 0.0
        for c in 0..<n { offset += Double(a.p[r * n + c]) * x[c] }
        terms.append((offset, Double(a.p[r * n + i])))
      }
      return .lines(terms)
    }
    let k = h.integer("k"), others = x.indices.filter { $0 != i }.map { abs(x[$0]) }.sorted(by: >)
    let without = others.prefix(k).reduce(0, +), with = others.prefix(k - 1).reduce(0, +)
    // fewer others than k: the entry always counts
    return .top(without: others.count < k ? -.infinity : without, with: with, x: x[i])
  }
}

/// The denominator along one coordinate.
private enum Denominator {
  /// √(square + linear·e + quadratic·e²)
  case root(Double, Double, Double)
  /// Σ |offset + slope·e|
  case lines([(offset: Double, slope: Double)])
  /// max(without, with + |x + e|)
  case top(without: Double, with: Double, x: Double)

  func value(_ e: Double) -> Double {
    switch self {
    case .root(let a, let b, let c): max(0, a + b * e + c * e * e).squareRoot()
    case .lines(let terms): terms.reduce(0) { $0 + abs($1.offset + $1.slope * e) }
    case .top(let without, let with, let x): max(without, with + abs(x + e))
    }
  }
  /// Where its slope jumps.
  var corners: [Double] {
    switch self {
    case .root: []
    case .lines(let terms): terms.filter { $0.slope != 0 }.map { -$0.offset / $0.slope }
    case .top(let without, let with, let x):
      without > with ? [-x, -x + (without - with), -x - (without - with)] : [-x]
    }
  }
  /// In a piece without corners around e: offset and slope of the line there.
  func affine(_ e: Double) -> (offset: Double, slope: Double) {
    switch self {
    case .root: return (0, 0)
    case .lines(let terms):
      var offset = 0.0, slope = 0.0
      for t in terms {
        let sign = t.offset + t.slope * e < 0 ? -1.0 : 1.0
        offset += sign * t.offset
        slope += sign * t.slope
      }
      return (offset, slope)
    case .top(let without, let with, let x):
      if without >= with + abs(x + e) { return (without, 0) }
      return x + e < 0 ? (with - x, -1) : (with + x, 1)
    }
  }
}

/// The problem of one coordinate.
private struct Line {
  let value, slope, curvature, l1, x, rest, low, high: Double, bottom: Denominator

  func top(_ e: Double) -> Double { value + slope * e + curvature / 2 * e * e + l1 * (rest + abs(x + e)) }
  func ratio(_ e: Double) -> Double {
    let g = bottom.value(e)
    return g > 0 ? top(e) / g : .infinity
  }

  /// The move of least model; 0 in a tie.
  func best(fractional: Bool) -> Double {
    let ratio = ratio(0)
    func cost(_ e: Double) -> Double { fractional ? self.ratio(e) : top(e) - ratio * bottom.value(e) }
    let all: [Double] = bottom.corners + (l1 > 0 ? [-x] : []) + [low, high]
    let corners = all.filter { $0.isFinite && $0 >= low && $0 <= high }.sorted()
    var edges = corners
    if !low.isFinite { edges.insert(-.infinity, at: 0) }
    if !high.isFinite { edges.append(.infinity) }
    var found = (e: 0.0, cost: cost(0))
    func consider(_ e: Double) {
      let c = cost(e)
      if e >= low, e <= high, c < found.cost { found = (e, c) }
    }
    for e in corners { consider(e) }
    for (left, right) in zip(edges, edges.dropFirst()) where left < right {
      var middle = (left + right) / 2
      if !left.isFinite { middle = right.isFinite ? right - max(1, abs(right)) : 0 }
      if left.isFinite, !right.isFinite { middle = left + max(1, abs(left)) }
      let sign = x + middle < 0 ? -1.0 : 1
      // J = p + q·e + r·e² here
      let p = value + l1 * (rest + sign * x), q = slope + l1 * sign, r = curvature / 2
      for e in stationary(p, q, r, middle, fractional, ratio) where e > left && e < right { consider(e) }
    }
    return found.e
  }

  private func stationary(_ p: Double, _ q: Double, _ r: Double, _ middle: Double, _ fractional: Bool, _ ratio: Double)
    -> [Double]
  {
    if case .root(let a, let b, let c) = bottom {
      // with s = a + b·e + c·e²: J'·s = J·s'/2, or J' = F·s'/(2·√s), squared
      let slope = [q, 2 * r], half = [b / 2, c], s = [a, b, c]
      return fractional
        ? roots(sum(times(slope, s), times([p, q, r], half), -1))
        : roots(sum(times(times(slope, slope), s), times(half, half), -ratio * ratio))
    }
    let (offset, along) = bottom.affine(middle)
    return fractional
      ? roots(sum(times([q, 2 * r], [offset, along]), [p * along, q * along, r * along], -1))
      : roots([q - ratio * along, 2 * r])
  }
  private func times(_ a: [Double], _ b: [Double]) -> [Double] {
    var out = [Double](repeating: 0, count: a.count + b.count - 1)
    for i in a.indices { for j in b.indices { out[i + j] += a[i] * b[j] } }
    return out
  }
  private func sum(_ a: [Double], _ b: [Double], _ factor: Double) -> [Double] {
    var out = [Double](repeating: 0, count: max(a.count, b.count))
    for i in a.indices { out[i] += a[i] }
    for i in b.indices { out[i] += factor * b[i] }
    return out
  }
  /// The real roots of a polynomial, lowest coefficient first: between those of its derivative, by bisection.
  private func roots(_ p: [Double]) -> [Double] {
    let size = p.reduce(0) { max($0, abs($1)) }
    var p = p
    while let last = p.last, abs(last) <= 1e-300 || abs(last) <= 1e-18 * size { p.removeLast() }
    guard p.count > 1, let lead = p.last else { return [] }
    if p.count == 2 { return [-p[0] / p[1]] }
    func at(_ x: Double) -> Double { p.reversed().reduce(0) { $0 * x + $1 } }
    let derivative = p.indices.dropFirst().map { Double($0) * p[$0] }
    let bound = 1 + p.dropLast().reduce(0) { max($0, abs($1 / lead)) }
    let ends = [-bound] + roots(derivative).filter { abs($0) < bound }.sorted() + [bound]
    var out: [Double] = []
    for (a, b) in zip(ends, ends.dropFirst()) {
      var (low, high) = (a, b)
      let left = at(low)
      if left == 0 { out.append(low) }
      if left * at(high) >= 0 {
        if abs(at(high)) <= 1e-14 * size { out.append(high) }  // it touches 0
        continue
      }
      for _ in 0..<200 {
        let middle = (low + high) / 2
        if middle <= low || middle >= high { break }
        if (at(middle) < 0) == (left < 0) { low = middle } else { high = middle }
      }
      out.append((low + high) / 2)
    }
    return out
  }
}
