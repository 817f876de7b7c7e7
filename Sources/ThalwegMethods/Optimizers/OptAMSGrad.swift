import ThalwegCore

/// OPT-AMSGrad: AMSGrad with a second half step along a guess of the next gradient, extrapolated from the last ones.
///
///     m, v, v_max as amsgrad without bias correction;   w ← w − lr·m/(√v_max + ε)
///     uᵢ = gᵢ₊₁ − gᵢ of the stored gradients;   (UᵀU + reg·tr(UᵀU)·I)·z = 1;   c = z/Σz;   ĝ = Σ cᵢ·gᵢ
///     θ ← w − lr·(β₁·m_base + (1 − β₁)·ĝ)/(√v_max + ε)
///
/// State    m, v, v_max, w, the last history + 1 gradients; UᵀU (over all tensors). The parameters hold the query
///          point.
/// Differs  UNVERIFIED and decided here: the base of the half step (`h_base`), that c weighs the oldest gradients, that
///          the ridge is relative to the trace. With fewer than two gradients, or all alike, ĝ = g. A step takes
///          `history` new products, not history²; it is at most 11.
/// Source   Wang, Li, Karimi and Li, 2019, arXiv:1903.01435.
struct OptAMSGrad: ElementRule, @unchecked Sendable {
  private static let most = 11
  private static let base = 4
  static let method = Method(
    "opt_amsgrad", .optimizer,
    "OPT-AMSGrad: AMSGrad with a half step along the next gradient, extrapolated from the last ones.",
    rule: """
      m, v, v_max as amsgrad, uncorrected;  w <- w - lr*m/(sqrt(v_max) + eps)
      u_i = g_{i+1} - g_i;  (U'U + reg*tr(U'U)*I)*z = 1;  c = z/sum(z);  g^ = sum c_i*g_i
      theta <- w - lr*(beta1*m_base + (1 - beta1)*g^)/(sqrt(v_max) + eps)
      """,
    source: "Wang, Li, Karimi, Li, 2019, arXiv:1903.01435",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8),
      .integer(
        "history", 5, .within(1, Double(most)), "differences of gradients that the guess is made from", live: false),
      .number("reg", 1e-3, .above(0), "ridge, relative to the trace").forAll,
      .choice("h_base", ["previous", "current"], "the momentum of the half step: before or after this gradient"),
    ],
    slots: Adam.moments + [
      AMSGrad.largest, Slot("w", "the iterate", start: .iterate()),
      Slot("gradients", "the last gradients, one buffer each"),
    ],
    requests: "own-step")

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    method.slots.dropLast() + (0...h.integer("history")).map { Slot("gradient_\($0)", "one of the last gradients") }
  }
  static func phases(_ h: Hyper) -> Int { (h.integer("history") + 3) / 4 }
  /// The weights c by age, the new products, and UᵀU by age.
  static func scalars(_ h: Hyper) -> [Scalar] {
    let r = h.integer("history")
    return (0..<r).map { Scalar("weight_\($0)") } + (0..<r).map { Scalar("product_\($0)") }
      + (0..<(r * r)).map { Scalar("gram_\($0)") }
  }

  let beta1, beta2, eps, lr: Double
  let ring, newest, stored: Int
  let current, plain: Bool
  let weights: UnsafeMutablePointer<Double>

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, lr, current) = (h.beta1, h.beta2, h.eps, c.lr, h.is("h_base", "current"))
    ring = h.integer("history") + 1
    newest = (c.t - 1) % ring
    stored = min(c.t - 1, ring - 1)
    let weights = c.scalars
    self.weights = weights
    // a tensor with a shorter history than others has weights of its own nowhere: a part of theirs may add up to
    // nothing
    let kept = min(c.t - 1, h.integer("history"))
    plain = weights[0] == 0 || (kept..<h.integer("history")).contains { weights[$0] != 0 }
  }

  /// The gradient of so many steps ago, from 1.
  @inline(__always) func past<L: Lane>(_ age: Int, _ s: Slots<L>) -> L {
    let k = newest &- age
    return s[OptAMSGrad.base &+ (k < 0 ? k &+ ring : k)]
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    if stored == 0 { return }
    let new = g - past(1, s)
    for k in 0..<4 {
      let age = phase &* 4 &+ k
      if age >= stored { break }
      sums.add(k, new, times: age == 0 ? new : past(age, s) - past(age &+ 1, s))
    }
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let r = h.integer("history"), new = s + r, gram = s + 2 * r
    for k in 0..<min(4, r - 4 * phase) { new[4 * phase + k] = totals[k] }
    guard phase == phases(h) - 1 else { return }
    for i in stride(from: r - 1, to: 0, by: -1) {
      for j in stride(from: r - 1, to: 0, by: -1) { gram[i * r + j] = gram[(i - 1) * r + j - 1] }
    }
    for i in 0..<r { (gram[i], gram[i * r]) = (new[i], new[i]) }
    let n = min(c.t - 1, r)
    let z = extrapolation((0..<n).map { i in (0..<n).map { gram[i * r + $0] } }, h.reg)
    for i in 0..<r { s[i] = i < n ? z[i] : 0 }
  }

  /// The solution of (A + reg·tr(A)·I)·z = 1, scaled to sum 1; zeros when A is 0.
  private static func extrapolation(_ matrix: [[Double]], _ reg: Double) -> [Double] {
    var a = matrix
    let n = a.count, trace = (0..<n).reduce(0) { $0 + a[$1][$1] }
    var z = [Double](repeating: trace > 0 ? 1 : 0, count: n)
    guard trace > 0 else { return z }
    for i in 0..<n { a[i][i] += reg * trace }
    for k in 0..<n {
      for i in (k + 1)..<max(n, k + 1) {
        let f = a[i][k] / a[k][k]
        for j in k..<n { a[i][j] -= f * a[k][j] }
        z[i] -= f * z[k]
      }
    }
    for k in stride(from: n - 1, through: 0, by: -1) {
      for j in (k + 1)..<max(n, k + 1) { z[k] -= a[k][j] * z[j] }
      z[k] /= a[k][k]
    }
    let sum = z.reduce(0, +)
    return z.map { $0 / sum }
  }

  @inline(__always) func query<L: Lane>(_ g: L, _ s: Slots<L>) -> L {
    let old = s[0], m = beta1 * old + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    let top = L.max(s[2], v)
    let root = top.squareRoot() + eps
    let w = s[3] - lr * root.divide(m)
    var guess = g
    if !plain {
      guess = weights[0] * past(1, s)
      var age = 1
      while age < stored {
        guess = guess + weights[age] * past(age &+ 1, s)
        age &+= 1
      }
    }
    s[0] = m
    s[1] = v
    s[2] = top
    s[3] = w
    s[OptAMSGrad.base &+ newest] = g
    return w - lr * root.divide(beta1 * (current ? m : old) + (1 - beta1) * guess)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { (x - query(g, s)).direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { query(g, s) }
}
