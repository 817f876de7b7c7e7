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
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { 8 &* shape.count }

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
    let (z, origin, s, sums) = (t.slots[0], t.slots[3], t.slots[4], t.slots[5]), n = t.count
    let u = t.workspace.assumingMemoryBound(to: Double.self), step = max(1, h.integer("slice"))
    // the statistics see z as it was
    if sums[4] == 0 {
      for (k, i) in stride(from: 0, to: n, by: step).enumerated() { origin[k] = t.w[i] }
      sums[4] = 1
    }
    var num = 0.0, den = 0.0
    if counts {
      let w = d * d / (h.d0 as Double).squareRoot()
      for (k, i) in stride(from: 0, to: n, by: step).enumerated() {
        let g = Double(t.v[i])
        num += g * (Double(origin[k]) - Double(z[i]))
        s[k] = T(beta3 * Double(s[k]) + w * g)
        den += abs(Double(s[k]))
      }
      num *= w
    }
    for (k, x) in [num, den].enumerated() {
      sums[2 * k] = T(x)
      sums[2 * k + 1] = T(x - Double(sums[2 * k]))
    }
    moment(t, u)
    var scale = 1.0
    if h.stable, n > 0 {
      let rms = Flat.norm(UnsafePointer(u), n) / Double(n).squareRoot()
      scale = 1 / max(1, rms).squareRoot()
    }
    let rate = d * lr, xy = 1 - beta1 * (1 - share), inside = h.weight_decay_by_lr ? decay : 0
    let plain = h.weight_decay_by_lr ? 0 : decay
    for i in 0..<n {
      let y = Double(t.w[i]), old = Double(z[i]) - plain * y, move = scale * u[i] + inside * y
      let from = y - plain * y
      let next = from + share * (old - from) - rate * xy * move
      z[i] = T(old - rate * move)
      t.v[i] = T(y - next)  // a rule that moves by itself leaves the whole move
    }
  }

  /// u ← d·g/(√v + d·ε), v moved.
  private func moment<T: Real>(_ t: Whole<T>, _ u: UnsafeMutablePointer<Double>) {
    let n = t.count, fresh = (1 - beta2) * d * d
    func divided(_ g: Double, _ v: Double) -> Double {
      let below = v.squareRoot() + d * eps
      return g == 0 ? 0 : d * g / below
    }
    guard let (a, b) = ProdigyScheduleFree.axes(h, t.shape) else {
      let v = t.slots[1]
      for i in 0..<n {
        let g = Double(t.v[i])
        v[i] = T(beta2 * Double(v[i]) + fresh * (g * g))
        u[i] = divided(g, Double(v[i]))
      }
      return
    }
    // r: means along the longest axis b, q: along a; mean(r) runs along a
    let along = Slices.along(b, t.shape), across = Slices.along(a, t.shape), r = t.slots[1], q = t.slots[2]
    func means(_ lines: Slices, _ into: UnsafeMutablePointer<T>) {
      for l in 0..<lines.count {
        let first = lines.start(l)
        let sum = (0..<lines.length).reduce(0.0) {
          let g = Double(t.v[first + $1 * lines.inner])
          return $0 + g * g
        }
        into[l] = T(beta2 * Double(into[l]) + fresh * (sum / Double(max(1, lines.length))))
      }
    }
    means(along, r)
    means(across, q)
    var rest = t.shape.dimensions
    rest.remove(at: b)
    let inner = Slices.along(a < b ? a : a - 1, Shape(dimensions: rest))
    var factors = [Double](repeating: 0, count: along.count)
    for l in 0..<inner.count {
      let first = inner.start(l), places = (0..<inner.length).map { first + $0 * inner.inner }
      let mean = places.reduce(0.0) { $0 + Double(r[$1]) } / Double(max(1, places.count))
      for p in places { factors[p] = mean == 0 ? 0 : Double(r[p]) / mean }
    }
    for l in 0..<along.count {
      let first = along.start(l)
      for k in 0..<along.length { u[first + k * along.inner] = factors[l] }
    }
    for l in 0..<across.count {
      let first = across.start(l)
      for k in 0..<across.length {
        let i = first + k * across.inner
        u[i] = divided(Double(t.v[i]), u[i] * Double(q[l]))
      }
    }
  }

  /// Both means of a weight of 0 say nothing: y stays where β₁ is 0.
  func evaluate<T: Real>(_ t: Whole<T>) {
    let z = t.slots[0], f = beta1 == 0 ? 0 : 1 - 1 / beta1
    for i in 0..<t.count { t.v[i] = T(Double(t.v[i]) + f * (Double(z[i]) - Double(t.v[i]))) }
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
