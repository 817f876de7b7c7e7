import ThalwegCore

/// Adam on the rows that have a gradient: the others keep their moments and do not move.
///
///     t counts the steps of the tensor;  on rows whose gradient is not all 0:
///     m, v as Adam;   θ ← θ − lr·√c₂/c₁·m/(√v + ε)
///
/// Rows lie along the first axis; every element of a vector is a row.
///
/// State    m, v.
/// Differs  nothing from torch.optim.SparseAdam, but that gradients are dense: a row that was touched with a gradient
///          of zeros alone is not seen. ε is added to the uncorrected root.
/// Source   Kingma and Ba, 2014, arXiv:1412.6980; PyTorch.
struct SparseAdam: WholeRule {
  static let method = Method(
    "sparse_adam", .optimizer, "Adam on the rows that have a gradient; the others keep their moments and do not move.",
    rule: """
      rows (first axis) with a gradient that is not all 0: m, v as adam
      theta <- theta - lr*sqrt(c2)/c1*m/(sqrt(v) + eps);  other rows: nothing;  t counts the steps of the tensor
      """,
    source: "Kingma, Ba, 2014, arXiv:1412.6980; PyTorch",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8),
    ],
    slots: Adam.moments)

  let beta1, beta2, eps, rate: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    rate = (1 - power(beta2, c.t)).squareRoot() / (1 - power(beta1, c.t))
  }

  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { 1 }

  /// Every element is a row of its own where not all are `touched`.
  struct Move: ElementOperation {
    let rule: SparseAdam, touched: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let zero = L(0), absent = L.equal(x, zero)
      let m = rule.beta1 * s[0] + (1 - rule.beta1) * x, v = rule.beta2 * s[1] + (1 - rule.beta2) * (x * x)
      let d = (v.squareRoot() + rule.eps).divide(rule.rate * m)
      s[0] = touched ? m : L.select(absent, s[0], m)
      s[1] = touched ? v : L.select(absent, s[1], v)
      x = touched ? d : L.select(absent, zero, d)
    }
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let rows = max(1, t.shape.dimensions.first ?? 1), length = t.count / rows
    if length == 1 { return t.change(Move(rule: self, touched: false), slots: 0..<2) }
    if length > Walker.parallelFrom {
      for r in 0..<rows where SparseAdam.isTouched(t.v + r * length, length) {
        t.change(Move(rule: self, touched: true), slots: 0..<2, in: (r * length)..<((r + 1) * length))
      }
      return
    }
    Parts(rows, of: length).forEach { _, part in
      for at in part.lazy.map({ $0 * length }) where SparseAdam.isTouched(t.v + at, length) {
        move(t.v + at, t.slots[0] + at, t.slots[1] + at, length)
      }
    }
  }

  /// Whether a row has an element that is not 0.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private static func isTouched<T: Real>(_ x: UnsafePointer<T>, _ n: Int) -> Bool {
    guard n > 0, x[0] == 0 else { return n > 0 }
    var sum = T.Vector(0), rest: T = 0, i = 0
    while i &+ T.Vector.width <= n {
      sum = sum + T.Vector.load(x + i).magnitude
      i &+= T.Vector.width
    }
    while i < n {
      rest += abs(x[i])
      i &+= 1
    }
    return sum.wide.low.sum() + sum.wide.high.sum() + Double(rest) != 0
  }

  /// A row, which may be short: without the work around an operation.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private func move<T: Real>(
    _ x: UnsafeMutablePointer<T>, _ m: UnsafeMutablePointer<T>, _ v: UnsafeMutablePointer<T>, _ n: Int
  ) {
    typealias L = T.Vector
    var i = 0
    while i &+ L.width <= n {
      let g = L.load(x + i)
      let first = beta1 * L.load(m + i) + (1 - beta1) * g, second = beta2 * L.load(v + i) + (1 - beta2) * (g * g)
      first.store(m + i)
      second.store(v + i)
      (second.squareRoot() + eps).divide(rate * first).store(x + i)
      i &+= L.width
    }
    let (b1, b2, n1, n2, eps, rate) = (T(beta1), T(beta2), T(1 - beta1), T(1 - beta2), T(eps), T(rate))
    while i < n {
      let g = x[i]
      m[i] = b1 * m[i] + n1 * g
      v[i] = b2 * v[i] + n2 * (g * g)
      let top = rate * m[i], root = v[i].squareRoot() + eps
      x[i] = top == 0 && root == 0 ? 0 : top / root
      i &+= 1
    }
  }
}
