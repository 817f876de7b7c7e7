import Glibc
import ThalwegCore

/// Prodigy inside Schedule-Free: no schedule, and a step size that is an estimate of the distance to the solution.
///
///     D = d·lr;   W' = W + D²,  c = D²/W', schedulefree_c: min(1, c·(1 − β₁)·schedulefree_c);   xy = 1 − β₁·(1 − c)
///     v ← β₂·v + (1 − β₂)·d²·g²;   u = d·g/(√v + d·ε), stable: over √max(1, rms(u))
///     while the statistics last, w = d²/√d₀, every slice-th element:  num = w·⟨g, θ₀ − z⟩;  s ← β₃·s + w·g;  den =
///     ‖s‖₁ u ← u + wd·y (else z and y lose wd·y);   y ← y + c·(z − y);   z ← z − D·u;   y ← y − D·xy·u
///     N ← β₃·N + (num if d > d₀ or num > 0);   den > 0: d̂ = N/den, at most d·2^¼;   d ← max(d, d̂·d_coef)
///
/// The parameters hold y; the evaluation weights are y + (1 − 1/β₁)·(z − y). Tensors of rank 2 or more with an axis of
/// 32 or more keep the means of v along their two longest axes: √v = √(r/mean(r)·q).
///
/// State    z; v or its means; θ₀ and s on the slice; num and den of the last step; d, N, W, k, one for all groups.
/// Differs  d is made at the beginning of the next step from what each tensor left: a tensor that is absent then counts
///          when it returns. The numbers are one for all groups (split_groups is not carried), nor are adopt, cautious,
///          grams, orthograd, focus, speed and bias correction. How wd is taken without weight_decay_by_lr is
///          UNVERIFIED.
/// Source   prodigy-plus-schedule-free 2.0.1; Mishchenko, Defazio, 2023, arXiv:2306.06101; Defazio et al., 2024,
///          arXiv:2405.15682.
struct ProdigyScheduleFree: WholeRule {
  static let method = Method(
    "prodigy_schedule_free", .optimizer, "Prodigy inside Schedule-Free: an estimated step size, and no schedule.",
    rule: """
      D = d*lr;  W <- W + D^2, c = D^2/W;  xy = 1 - beta1*(1 - c)
      v <- beta2*v + (1 - beta2)*d^2*g^2;  u = d*g/(sqrt(v) + d*eps)
      w = d^2/sqrt(d0):  num = w*<g, theta_0 - z>;  s <- beta3*s + w*g;  den = |s|_1  (every slice-th element)
      y <- y + c*(z - y);  z <- z - D*u;  y <- y - D*xy*u;  N <- beta3*N + num;  d <- max(d, d_coef*N/den)
      evaluation weights: y + (1 - 1/beta1)*(z - y)
      """,
    source: "prodigy-plus-schedule-free 2.0.1; Mishchenko, Defazio, 2023; Defazio et al., 2024",
    parameters: [
      .lr(1).equalInAll, .rate("beta1", 0.9, "interpolation").forAll, .rate("beta2", 0.99, "rate of the second moment"),
      Parameter.maybe("beta3", .rate, "rate of the statistics; none: the root of beta2").forAll,
      .number("eps", 1e-8, .above(0), "added to the denominator, times d"), .weightDecay(0, "decay at y"),
      .flag("weight_decay_by_lr", true, "decay in the update, else plain"),
      .number("d0", 1e-6, .above(0), "first estimate of the distance").forAll,
      .number("d_coef", 1, .above(0), "factor of the estimate").forAll,
      .flag("d_limiter", true, "d grows by at most 2^(1/4) a step").forAll,
      .integer("prodigy_steps", 0, .atLeast(0), "d is fixed from this step on; 0: never").forAll,
      .number("schedulefree_c", 0, .atLeast(0), "averaging window; 0: plain").forAll,
      .flag("factored", true, "means of the second moment for large matrices", live: false),
      .flag("stable", true, "divide u by the root of its RMS where that is above 1"),
      .integer("slice", 11, .atLeast(1), "every so-manieth element counts in the statistics", live: false),
    ],
    slots: [
      Slot("z", "the fast iterate z", start: .iterate()),
      Slot("exp_avg_sq", "second moment, or its means along one axis"),
      Slot("columns", "its means along the other"), Slot("origin", "theta_0 on the slice"),
      Slot("s", "statistic s on the slice"),
      Slot("sums", "num and den of the last step, each with its rounding; whether there is an origin"),
    ], requests: "own-step")

  /// The two longest axes, the longest last; nil where v is kept in full.
  static func axes(_ h: Hyper, _ shape: Shape) -> (Int, Int)? {
    guard h.factored, shape.ndim >= 2, (shape.dimensions.max() ?? 0) >= 32 else { return nil }
    let order = shape.dimensions.indices.sorted { (shape.dimensions[$0], $0) < (shape.dimensions[$1], $1) }
    return (order[order.count - 2], order[order.count - 1])
  }
  private static func sliced(_ h: Hyper, _ n: Int) -> Int {
    let step = max(1, h.integer("slice"))
    return n / step + (n % step > 0 ? 1 : 0)
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = method.slots
    let n = shape.count
    if let (row, column) = axes(h, shape) {
      list[1].count = n / max(1, shape.dimensions[column])
      list[2].count = n / max(1, shape.dimensions[row])
    } else {
      list[2].count = 0
    }
    (list[3].count, list[4].count, list[5].count) = (sliced(h, n), sliced(h, n), 5)
    return list
  }
  static func scalars(_ h: Hyper) -> [Scalar] {
    ["d", "numerator", "weight_sum", "k", "share", "statistics"].map { Scalar($0) }
  }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static var evaluates: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    guard let (a, b) = axes(h, shape) else { return 0 }
    return Means(shape, a, b).bytes(size)
  }

  let h: Hyper
  let beta1, beta2, beta3, eps, lr, d, share, decay: Double
  let counts: Bool
  init(_ h: Hyper, _ c: StepContext) {
    self.h = h
    (beta1, beta2, eps, lr, decay) = (h.beta1, h.beta2, h.eps, c.lr, c.weightDecay)
    beta3 = ProdigyScheduleFree.rate(h)
    (d, share, counts) = (c.scalars[0], c.scalars[4], c.scalars[5] != 0)
  }
  static func rate(_ h: Hyper) -> Double {
    let beta2: Double = h.beta2
    return h.has("beta3") ? h.beta3 : beta2.squareRoot()
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count
    statistics(t)
    if let (a, b) = ProdigyScheduleFree.axes(h, t.shape) {
      factored(t, Means(t.shape, a, b), rowsAlong: b > a)
    } else {
      t.change(Moment(keep: beta2, root: (1 - beta2).squareRoot() * d, d: d, eps: d * eps), slots: 1..<2)
    }
    var scale = 1.0
    if h.stable, n > 0 {
      let rms = Flat.norm(UnsafePointer(t.v), n) / Double(n).squareRoot()
      scale = 1 / max(1, rms).squareRoot()
    }
    let by: Bool = h.weight_decay_by_lr
    t.change(
      Step(
        scale: scale, inside: by ? decay : 0, plain: by ? 0 : decay, share: share, rate: d * lr,
        xy: 1 - beta1 * (1 - share)),
      slots: 0..<1)
  }

  /// The statistics see z as it was.
  private func statistics<T: Real>(_ t: Whole<T>) {
    let (z, origin, s, sums) = (t.slots[0], t.slots[3], t.slots[4], t.slots[5]), step = max(1, h.integer("slice"))
    if sums[4] == 0 {
      for (k, i) in stride(from: 0, to: t.count, by: step).enumerated() { origin[k] = t.w[i] }
      sums[4] = 1
    }
    var num = 0.0, den = 0.0
    if counts {
      let w = d * d / (h.d0 as Double).squareRoot()
      var k = 0, i = 0
      while i < t.count {
        let g = Double(t.v[i]), new = T(beta3 * Double(s[k]) + w * g)
        num += g * (Double(origin[k]) - Double(z[i]))
        s[k] = new
        den += abs(Double(new))
        k &+= 1
        i &+= step
      }
      num *= w
    }
    for (k, x) in [num, den].enumerated() {
      sums[2 * k] = T(x)
      sums[2 * k + 1] = T(x - Double(sums[2 * k]))
    }
  }

  /// g ← u, v moved; the root of what is new in v is taken before the square, which may be beyond the largest float.
  struct Moment: ElementOperation {
    let keep, root, d, eps: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let new = root * x, v = keep * s[0] + new * new
      s[0] = v
      x = divided(d * x, v.squareRoot() + eps)
    }
  }
  /// The step along u; in double, for the new y is near the old one.
  struct Step: ElementOperation {
    let scale, inside, plain, share, rate, xy: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let (u, y, z) = (x.wide, g.wide, s[0].wide)
      let low = moved(u.low, y.low, z.low), high = L.width == 16 ? moved(u.high, y.high, z.high) : low
      s[0] = L(wide: low.z, high.z)
      x = L(wide: low.step, high.step)
    }
    @inline(__always) private func moved(_ u: SIMD8<Double>, _ y: SIMD8<Double>, _ z: SIMD8<Double>)
      -> (z: SIMD8<Double>, step: SIMD8<Double>)
    {
      let old = z - plain * y, move = scale * u + inside * y, from = y - plain * y
      let next = from + share * (old - from) - rate * xy * move
      return (old - rate * move, y - next)  // a rule that moves by itself leaves the whole move
    }
  }

  /// A tensor whose v is kept as means along two axes, as lines of its memory.
  ///
  /// `lines` of the places before the second axis; behind it lies a run along it, or one of what follows it for each of
  /// its places. Means along the second axis are numbers of a line, those along the first are shared by `first` lines.
  private struct Means {
    let outer, first, middle, second, inner: Int
    let parts: Parts
    var lines: Int { outer * first * middle }
    /// Numbers of the means along the second and the first axis.
    var along: Int { lines * inner }
    var across: Int { outer * middle * second * inner }

    init(_ shape: Shape, _ a: Int, _ b: Int) {
      let d = shape.dimensions, (low, high) = (min(a, b), max(a, b))
      (outer, first, second) = (d[..<low].reduce(1, *), d[low], d[high])
      (middle, inner) = (d[(low + 1)..<high].reduce(1, *), d[(high + 1)...].reduce(1, *))
      // sums of a matrix are taken in parts
      let lines = outer * first * middle
      parts = outer * middle * inner == 1 ? Parts(lines, of: second) : Parts(whole: lines)
    }
    /// Where the means along the first axis of a line begin.
    func shared(_ line: Int) -> Int { (line / (first * middle) * middle + line % middle) * second * inner }
    /// Sums of squares in double, then the roots of the factors of v.
    func bytes(_ size: Int) -> Int { 8 * (along + parts.count * across) + size * (along + across) }
  }

  /// g ← u with √v = √(r/mean(r))·√q, r and q moved.
  private func factored<T: Real>(_ t: Whole<T>, _ m: Means, rowsAlong: Bool) {
    let sums = t.workspace.assumingMemoryBound(to: Double.self), more = sums + m.along
    let roots = UnsafeMutableRawPointer(more + m.parts.count * m.across).assumingMemoryBound(to: T.self)
    let along = rowsAlong ? t.slots[1] : t.slots[2], across = rowsAlong ? t.slots[2] : t.slots[1]
    sums.initialize(repeating: 0, count: m.along + m.parts.count * m.across)
    m.parts.forEach { part, lines in
      for l in lines {
        let g = t.v + l * m.second * m.inner, shared = more + (part * m.across + m.shared(l))
        if m.inner == 1 {
          sums[l] = Flat.addSquares(g, m.second, to: shared)
        } else {
          for j in 0..<m.second {
            _ = Flat.addSquares(g + j * m.inner, m.inner, to: sums + l * m.inner)
            _ = Flat.addSquares(g + j * m.inner, m.inner, to: shared + j * m.inner)
          }
        }
      }
    }
    for part in 1..<m.parts.count {
      for j in 0..<m.across { more[j] += more[part * m.across + j] }
    }
    let fresh = (1 - beta2) * d * d
    func move(_ means: UnsafeMutablePointer<T>, _ sums: UnsafeMutablePointer<Double>, _ n: Int, of length: Int) {
      for i in 0..<n { means[i] = T(beta2 * Double(means[i]) + fresh * (sums[i] / Double(max(1, length)))) }
    }
    move(along, sums, m.along, of: m.second)
    move(across, more, m.across, of: m.first)

    // r over its mean along the other axis
    let (r, q) = rowsAlong ? (along, across) : (across, along)
    let (factors, others) = rowsAlong ? (roots, roots + m.along) : (roots + m.along, roots)
    let shape =
      rowsAlong ? [m.outer, m.first, m.middle * m.inner] : [m.outer * m.middle, m.second, m.inner]
    let axis = Slices.along(1, Shape(dimensions: shape))
    for l in 0..<axis.count {
      let start = axis.start(l)
      var sum = 0.0
      for k in 0..<axis.length { sum += Double(r[start + k * axis.inner]) }
      let mean = sum / Double(max(1, axis.length))
      for k in 0..<axis.length {
        let i = start + k * axis.inner
        factors[i] = mean == 0 ? 0 : T((Double(r[i]) / mean).squareRoot())
      }
    }
    for i in 0..<(rowsAlong ? m.across : m.along) { others[i] = q[i].squareRoot() }
    m.parts.forEach { _, lines in
      for l in lines {
        let g = t.v + l * m.second * m.inner, shared = roots + (m.along + m.shared(l))
        if m.inner == 1 {
          divide(g, m.second, shared, roots + l, same: true)
        } else {
          for j in 0..<m.second {
            divide(g + j * m.inner, m.inner, shared + j * m.inner, roots + l * m.inner, same: false)
          }
        }
      }
    }
  }
  /// A run of u = d·g/(√v + d·ε), √v the product of two roots, of which the second may be the same in all of it.
  private func divide<T: Real>(
    _ g: UnsafeMutablePointer<T>, _ n: Int, _ root: UnsafeMutablePointer<T>, _ other: UnsafeMutablePointer<T>,
    same: Bool
  ) {
    typealias L = T.Vector
    var i = 0
    while i < n {
      let left = n &- i, x = L.load(g + i, first: left)
      let second = same ? L(Double(other[0])) : L.load(other + i, first: left)
      divided(d * x, second * L.load(root + i, first: left) + d * eps).store(g + i, first: left)
      i &+= L.width
    }
  }

  /// Both means of a weight of 0 say nothing: y stays where β₁ is 0.
  func evaluate<T: Real>(_ t: Whole<T>) {
    t.change(Evaluation(share: beta1 == 0 ? 0 : 1 - 1 / beta1), slots: 0..<1)
  }
  struct Evaluation: ElementOperation {
    let share: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let y = x.wide, z = s[0].wide
      x = L(wide: y.low + share * (z.low - y.low), y.high + share * (z.high - y.high))
    }
  }

  static let registered = entry(ProdigyScheduleFree.self, source: { (h) throws(Failure) in Distance(h) })

  /// Makes d and c of the step from what the tensors left in the step before.
  struct Distance: Source {
    static var method: Method { ProdigyScheduleFree.method }
    init(_ h: Hyper) {}
    private let sums = 5
    var single: Bool { true }
    var global: Bool { true }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let h = io.hyper, d0: Double = h.d0, k = io.counter(3) + 1, limit = h.integer("prodigy_steps")
      var d = io.scalar(0)
      if d == 0 {
        d = d0
      } else if io.scalar(5) != 0 {
        var gains: [Double] = [], sizes: [Double] = []
        for i in io.tensors(where: { _ in true }) {
          let x = io.read(sums, of: i)
          guard x.count == 5 else { continue }
          gains.append(x[0] + x[1])
          sizes.append(x[2] + x[3])
          io.fill(sums, of: i, [0, 0, 0, 0, x[4]])
        }
        // in the order of their size: that of binding does not matter
        let num = gains.sorted().reduce(0, +), den = sizes.sorted().reduce(0, +)
        let numerator = ProdigyScheduleFree.rate(h) * io.scalar(1) + (d > d0 || num > 0 ? num : 0)
        io.setScalar(1, numerator)
        if den > 0 {
          let found = h.d_limiter ? min(numerator / den, d * pow(2, 0.25)) : numerator / den
          d = max(d, found * h.d_coef)
        }
      }
      io.setScalar(0, d)
      let weight = d * h.lr * (d * h.lr), sum = io.scalar(2) + weight
      var share = sum == 0 ? 0 : weight / sum
      let window: Double = h.schedulefree_c, beta1: Double = h.beta1
      if window > 0 { share = min(1, share * (1 - beta1) * window) }
      for (at, x) in [(2, sum), (3, Double(k)), (4, share), (5, limit == 0 || k < limit ? 1 : 0)] {
        io.setScalar(at, x)
      }
      return .update(nil)
    }
  }
}

/// x over what is below it; 0 stays.
@inline(__always) private func divided<L: Lane>(_ x: L, _ below: L) -> L {
  let zero = L(0)
  return L.select(L.equal(x, zero), zero, x / below)
}
