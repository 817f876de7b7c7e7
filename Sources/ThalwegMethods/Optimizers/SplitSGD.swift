import ThalwegCore

/// SGD with momentum whose largest gradients of each tensor take signed steps of a fixed size instead.
///
///     k = ⌊fraction·n⌋;   hot: the k largest |g| of the tensor, of equal ones the first
///     b ← μ·b + (1 − τ)·g everywhere;   hot: θ ← θ − sign_lr·sign(g),   others: θ ← θ − lr·b
///
/// State    b, from 0: the first step is dampened too.
/// Differs  selection, buffers and defaults are UNVERIFIED in the paper, whose case study this is. The signed step does
///          not depend on lr, so that nothing that scales a step size can follow (`schedule_free`, `ghost_step`). A NaN
///          is not hot: it shows through b.
/// Source   Rosenfeld and Risteski, 2023, arXiv:2311.04163.
struct SplitSGD: WholeRule {
  static let method = Method(
    "split_sgd", .optimizer,
    "SGD with momentum whose largest gradients of each tensor take signed steps of a fixed size.",
    rule: """
      b <- momentum*b + (1 - dampening)*g
      the floor(fraction*n) largest |g| of a tensor: theta <- theta - sign_lr*sign(g);  others: theta <- theta - lr*b
      """,
    source: "Rosenfeld, Risteski, 2023, arXiv:2311.04163",
    parameters: [
      .lr(1e-2), .rate("momentum", 0.9, "share of the buffer that is kept"),
      .number("dampening", 0.9, .within(0, 1), "the gradient enters the buffer times 1 - dampening"),
      .number("sign_lr", 1e-3, .atLeast(0), "step of the largest gradients"),
      .rate("fraction", 0.1, "their share of each tensor"),
    ],
    slots: [.moment("momentum_buffer", "the momentum b")], requests: "own-step")

  let momentum, take, fraction, signed, lr: Double

  init(_ h: Hyper, _ c: StepContext) {
    (momentum, take, fraction) = (h.momentum, 1 - h.dampening, h.fraction)
    (signed, lr) = (h.sign_lr, c.lr)
  }

  /// Room for the selection.
  private static func room(_ n: Int) -> Int { n / 4 }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { room(shape.count) &* size }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count
    guard n > 0 else { return }
    let k = min(Int(fraction * Double(n)), n), room = t.workspace.assumingMemoryBound(to: T.self)
    let bound = k > 0 ? Flat.largest(t.v, n, k - 1, room: room, SplitSGD.room(n)) : .infinity
    let counts = t.sums(Counts(bound: bound)), ties = k - Int(counts[0])
    // up to here an element of the bound is hot
    var end = ties > 0 ? n : 0
    if ties > 0, counts[1] > Double(ties) {
      var found = 0
      end = 0
      while found < ties, end < n {
        found += Double(t.v[end].magnitude) == bound ? 1 : 0
        end += 1
      }
    }
    t.change(Step(rule: self, bound: bound, reaches: true), slots: 0..<1, in: 0..<end)
    t.change(Step(rule: self, bound: bound, reaches: false), slots: 0..<1, in: end..<n)
  }

  /// How many magnitudes are above the bound, and how many are at it; at a bound of 0 also what fills up a vector.
  struct Counts: ElementSum {
    let bound: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      let size = x.magnitude, edge = L(bound), zero = L(0), one = L(1)
      sums.add(0, L.select(L.less(edge, size), one, zero))
      sums.add(1, L.select(L.equal(size, edge), one, zero))
    }
  }
  struct Step: ElementOperation {
    let rule: SplitSGD, bound: Double
    /// A magnitude at the bound is hot.
    let reaches: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let b = rule.momentum * s[0] + rule.take * x, size = x.magnitude, edge = L(bound)
      s[0] = b
      let cold = rule.lr * b, hot = rule.signed * x.sign
      x = L.select(L.less(edge, size), hot, reaches ? L.select(L.equal(size, edge), hot, cold) : cold)
    }
  }
}
