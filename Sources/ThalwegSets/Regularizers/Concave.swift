import Glibc
import ThalwegCore

/// The counting penalty: the number of entries that are not zero.
///
///     value = λ·#{w ≠ 0}     no gradient     prox keeps w where w² > 2tλ, else 0
///
/// Errors   TW_ERROR_UNSUPPORTED where a gradient is asked for.
/// Differs  pyproximal cuts at τσ, not at √(2τσ): another parameter for the same family.
/// Source   Blumensath and Davies, 2008.
struct L0: ElementRegularizer {
  static let method = Method(
    "l0", .regularizer, "The number of entries that are not zero; its prox is the hard threshold.",
    rule: "value = weight*nnz(w);  no gradient;  prox keeps w where w^2 > 2*t*weight, else 0",
    source: "Blumensath, Davies, 2008", parameters: [.weight()])
  static var hasGradient: Bool { false }

  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  @inline(__always) func value<L: Lane>(_ w: L) -> L {
    L.select(L.equal(w, w), L.select(L.equal(w, L(0)), L(0), L(weight)), w)
  }
  @inline(__always) func gradient<L: Lane>(_ w: L) -> L { L(0) }
  @inline(__always) func prox<L: Lane>(_ w: L, _ t: Double) -> L { cut(w, at: L((2 * t * weight).squareRoot())) }
  @inline(__always) func prox<L: Lane>(_ w: L, steps t: L) -> L { cut(w, at: (2 * weight * t).squareRoot()) }
  /// What is not finite stays, and an edge of 0 changes no bit.
  @inline(__always) private func cut<L: Lane>(_ w: L, at edge: L) -> L {
    let kept = L.select(L.less(edge, w.magnitude), w, L(0))
    return L.select(L.equal(w - w, L(0)), L.select(L.less(L(0), edge), kept, w), w)
  }
}

/// The minimax concave penalty: the L1 penalty whose slope fades, so that large entries are not shrunk.
///
///     x = |w|: value = λx − x²/(2γ) up to γλ, then γλ²/2     gradient = sign(w)·max(λ − x/γ, 0)
///     prox, t < γ: S(w, tλ)/(1 − t/γ) up to γλ, then w;   t ≥ γ: w where x > √(tγ)·λ, else 0
///
/// Differs  skglm's prox is the same below t = γ, and not defined above.
/// Source   Zhang, 2010, arXiv:1002.4734.
struct MCP: ElementRegularizer {
  static let method = Method(
    "mcp", .regularizer, "The minimax concave penalty: an L1 penalty that does not shrink large entries.",
    rule: """
      x = |w|: value = weight*x - x^2/(2*gamma) up to gamma*weight, then gamma*weight^2/2
      gradient = sign(w)*max(weight - x/gamma, 0)
      prox, t < gamma: S(w, t*weight)/(1 - t/gamma) up to gamma*weight, then w; else w where x > sqrt(t*gamma)*weight
      """,
    source: "Zhang, 2010, arXiv:1002.4734",
    parameters: [.weight(1e-4, .above(0)), .number("gamma", 3, .above(1), "how far the concave part reaches")])

  let weight, gamma: Double
  init(_ h: Hyper) { (weight, gamma) = (h.weight, h.gamma) }

  @inline(__always) func value<L: Lane>(_ w: L) -> L {
    let x = w.magnitude, end = gamma * weight
    return L.select(L.less(L(end), x), L(end * weight / 2), weight * x - x * x / (2 * gamma))
  }
  @inline(__always) func gradient<L: Lane>(_ w: L) -> L { w.sign * L.max(weight - w.magnitude / gamma, 0) }
  @inline(__always) func prox<L: Lane>(_ w: L, _ t: Double) -> L {
    guard t > 0 else { return w }
    // one of the two forms for all
    let x = w.magnitude, short = t < gamma, reach = short ? gamma * weight : weight * (gamma * t).squareRoot()
    return L.select(L.less(L(reach), x), w, short ? w.shrunk(by: weight * t) * (1 / (1 - t / gamma)) : w - w)
  }
  @inline(__always) func prox<L: Lane>(_ w: L, steps t: L) -> L {
    let x = w.magnitude
    let bent = L.select(L.less(L(gamma * weight), x), w, w.shrunk(by: weight * t) / (1 - t / gamma))
    let cut = L.select(L.less(weight * (gamma * t).squareRoot(), x), w, w - w)
    return L.select(L.less(L(0), t), L.select(L.less(t, L(gamma)), bent, cut), w)
  }
}

/// The smoothly clipped absolute deviation: linear, then bent, then constant.
///
///     x = |w|: value = λx  |  (2aλx − x² − λ²)/(2(a − 1))  |  λ²(a + 1)/2   on x ≤ λ, λ < x ≤ aλ, x > aλ
///     gradient = sign(w)·(λ  |  (aλ − x)/(a − 1)  |  0)
///     prox, t < a − 1: S(w, tλ)  |  ((a − 1)x − taλ)/(a − 1 − t)  |  x   on x ≤ (1 + t)λ, x ≤ aλ, beyond
///     prox, t ≥ a − 1: the better of min(max(x − tλ, 0), λ) and max(x, aλ), the smaller on a tie
///
/// Differs  skglm and pyproximal have the same prox below t = a − 1, and none above.
/// Source   Fan and Li, 2001.
struct SCAD: ElementRegularizer {
  static let method = Method(
    "scad", .regularizer, "The smoothly clipped absolute deviation: an L1 penalty that does not shrink large entries.",
    rule: """
      x = |w|: value = weight*x | (2*a*weight*x - x^2 - weight^2)/(2*(a - 1)) | weight^2*(a + 1)/2
      gradient = sign(w)*(weight | (a*weight - x)/(a - 1) | 0), on x <= weight, x <= a*weight, beyond
      prox, t < a - 1: S(w, t*weight) | ((a - 1)*x - t*a*weight)/(a - 1 - t) | x, on x <= (1 + t)*weight, x <= a*weight
      prox, t >= a - 1: the better of min(max(x - t*weight, 0), weight) and max(x, a*weight)
      """,
    source: "Fan, Li, 2001",
    parameters: [.weight(1e-4, .above(0)), .number("a", 3.7, .above(2), "how far the concave part reaches")])

  let weight, a: Double
  init(_ h: Hyper) { (weight, a) = (h.weight, h.a) }

  @inline(__always) func value<L: Lane>(_ w: L) -> L {
    let x = w.magnitude, end = L(weight * weight * (a + 1) / 2)
    let bent = (2 * a * weight * x - x * x - weight * weight) / (2 * (a - 1))
    return L.select(L.less(L(weight), x), L.select(L.less(L(a * weight), x), end, bent), weight * x)
  }
  @inline(__always) func gradient<L: Lane>(_ w: L) -> L {
    let x = w.magnitude
    return w.sign * L.select(L.less(L(weight), x), L.max(a * weight - x, 0) / (a - 1), L(weight))
  }
  @inline(__always) func prox<L: Lane>(_ w: L, _ t: Double) -> L {
    guard t > 0, t < a - 1 else { return t > 0 ? prox(w, steps: L(t)) : w }
    let x = w.magnitude, k = weight * t
    let bent = ((a - 1) * x - a * k) * (1 / ((a - 1) - t))
    let near = L.select(L.less(L((1 + t) * weight), x), w.sign * bent, w.shrunk(by: k))
    return L.select(L.less(L(a * weight), x), w, near)
  }
  @inline(__always) func prox<L: Lane>(_ w: L, steps t: L) -> L {
    let x = w.magnitude, far = a * weight, k = weight * t
    let bent = L.select(
      L.less((1 + t) * weight, x), w.sign * ((a - 1) * x - a * k) / ((a - 1) - t), w.shrunk(by: k))
    let near = L.min(L.max(x - k, 0), weight), beyond = L.max(x, far)
    @inline(__always) func cost(_ u: L) -> L { 0.5 * ((u - x) * (u - x)) + t * value(u) }
    let better = w.sign * L.select(L.less(cost(beyond), cost(near)), beyond, near)
    let moved = L.select(L.less(t, L(a - 1)), L.select(L.less(L(far), x), w, bent), better)
    // nothing is nearer to an infinite number, and a step of 0 changes no bit
    return L.select(L.less(L(0), t), L.select(L.equal(x - x, L(0)), moved, w), w)
  }
}

/// |w|^p with 0 < p ≤ 1, one p for all entries or one for each column of the matrix view.
///
///     value = λ·Σ|w|^p     gradient = λp|w|^(p−1)·sign(w), 0 at 0
///     prox: k = tλ, β = (2k(1 − p))^(1/(2−p)), τ = β + kp·β^(p−1);  0 for |w| ≤ τ, else the root of
///           u − |w| + kp·u^(p−1) in [β, |w|]
///
/// The root is found by Newton's method from |w|, where every step stays above it. p = 1 is the soft threshold.
/// Errors   TW_ERROR_SHAPE where p does not have one number for each column.
/// Differs  nothing; `floor` is the smallest |w| that the gradient counts with, for it has no bound near 0.
/// Source   Marjanovic and Solo, 2012.
struct Lp: WholeRegularizer {
  static let method = Method(
    "lp", .regularizer, "|w|^p with 0 < p <= 1, sparser than the lasso.",
    rule: """
      value = weight*sum |w|^p;  gradient = weight*p*|w|^(p-1)*sign(w), 0 at 0
      prox: k = t*weight, beta = (2*k*(1-p))^(1/(2-p)), tau = beta + k*p*beta^(p-1)
      prox = 0 where |w| <= tau, else the root of u - |w| + k*p*u^(p-1) = 0 in [beta, |w|]
      """,
    source: "Marjanovic, Solo, 2012",
    parameters: [
      .weight(),
      .number("p", 0.5, .between(0, 1, lowOpen: true, highOpen: false), "exponent; or one for each column").orList(),
      .number("floor", 0, .atLeast(0), "smallest |w| that the gradient counts with"),
    ],
    validate: { (h) throws(Failure) in
      if h.hasLists, h.list("p").isEmpty { throw Failure(Status.range, "lp: `p` is an empty list") }
    })
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    let given = h.list("p").count
    guard given <= 1 || given == shape.columns else {
      throw Failure(
        Status.shape,
        "lp: `p` has \(given) numbers, the matrix view of shape \(shape.dimensions) has \(shape.columns) columns")
    }
  }

  let weight, floor: Double, p: [Double]
  init(_ h: Hyper) {
    (weight, floor) = (h.weight, h.floor)
    p = h.list("p").isEmpty ? [h.p] : h.list("p")
  }

  private func exponent(_ i: Int) -> Double { p[p.count == 1 ? 0 : i % p.count] }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let x = w.v
    return weight * Rows.sum(w.count, work: 16) { pow(abs(Double(x[$0])), exponent($0)) }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    if p.count == 1 { return change(w, Slope(factor: scale * weight * p[0], p: p[0], floor: floor)) }
    let x = w.w, g = w.v
    _ = Rows.sum(w.count, work: 16) { i in
      let p = exponent(i), a = Double(x[i])
      if a != 0 { g[i] += T(scale * weight * p * pow(max(abs(a), floor), p - 1) * signOf(a)) }
      return 0
    }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    let x = w.v, k = t * weight
    if k == 0 { return }
    // (numbers that floats hold, and their squares)
    if p.count == 1, p[0] < 1, T.isDouble || k > 1e-18 && k < 1e18 { return change(w, Root(k: k, p: p[0])) }
    _ = Rows.sum(w.count, work: 64) { i in
      x[i] = T(Lp.root(Double(x[i]), k, exponent(i)))
      return 0
    }
  }
  static var isSeparable: Bool { true }
  func prox<T: Real>(stepped w: Whole<T>) throws(Failure) {
    let x = w.v, steps = w.w
    _ = Rows.sum(w.count, work: 64) { i in
      let k = weight * Double(steps[i])
      if k > 0 { x[i] = T(Lp.root(Double(x[i]), k, exponent(i))) }
      return 0
    }
  }

  private func change<T: Real>(_ w: Whole<T>, _ operation: some ElementOperation) {
    Parts(w.count, of: 1).forEach { _, at in
      Flat.change(operation, w.v + at.lowerBound, w.w + at.lowerBound, at.count, writesG: false)
    }
  }

  private static func root(_ x: Double, _ k: Double, _ p: Double) -> Double {
    let m = abs(x)
    guard p < 1, m.isFinite else { return shrunk(x, by: k) }
    let (beta, least) = edges(k, p)
    if m <= least { return 0 }
    var u = m
    for _ in 0..<100 {
      let slope = k * p * pow(u, p - 1)
      let next = max(beta, u - (u - m + slope) / (1 + slope * (p - 1) / u))
      if abs(next - u) <= 2e-16 * u { break }
      u = next
    }
    return x < 0 ? -u : u
  }
  /// β and τ.
  private static func edges(_ k: Double, _ p: Double) -> (beta: Double, least: Double) {
    let beta = pow(2 * k * (1 - p), 1 / (2 - p))
    return (beta, beta + k * p * pow(beta, p - 1))
  }

  /// g + factor·|w|^(p−1)·sign(w).
  private struct Slope: ElementOperation {
    let factor, p, floor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ g: inout L, _ w: inout L, _ s: Slots<L>) {
      let a = L.max(w.magnitude, floor), zero = L(0)
      let power = p == 0.5 ? factor / a.squareRoot() : L.pow(a, p - 1, times: factor)
      g = g + L.select(L.less(w, zero), -power, L.select(L.equal(w, zero), zero, power))
    }
  }
  /// The prox for p < 1; a vector goes on while one of its numbers is under way, and one that has arrived stays.
  private struct Root: ElementOperation {
    let k, p, beta, least: Double
    init(k: Double, p: Double) {
      (self.k, self.p) = (k, p)
      (beta, least) = Lp.edges(k, p)
    }
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ w: inout L, _ s: Slots<L>) {
      let m = x.magnitude, tolerance = 4 * Double(L.Element.ulpOfOne), low = L(beta), zero = L(0)
      let inside = L.less(L(least), m)
      var u = m, way = L.select(inside, L(1), zero)
      for _ in 0..<100 {
        if !L.any(L.less(zero, way)) { break }
        let slope = (k * p) * (p == 0.5 ? 1 / u.squareRoot() : L.pow(u, p - 1))
        let next = L.max(u - (u - m + slope) / (1 + slope * (p - 1) / u), low)
        let far = L.less(tolerance * u, (next - u).magnitude)
        u = L.select(L.less(zero, way), next, u)
        way = L.select(far, way, zero)
      }
      let moved = L.select(inside, L.select(L.less(x, zero), -u, u), zero)
      // infinite numbers move by the smallest of slopes, 0; NaN stays
      x = L.select(L.equal(x - x, zero), moved, x)
    }
  }
}
