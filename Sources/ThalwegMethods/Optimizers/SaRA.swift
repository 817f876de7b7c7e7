import Glibc
import ThalwegCore

/// SaRA: fine-tuning of those entries alone that are small to begin with, and that hardly matter.
///
///     M = (|θ| < threshold) at the first step;   lambda_rank > 0: one matrix W, drawn at each step, has
///     lambda_rank·U·Vᵀ of W⊙M = U·Σ·Vᵀ added to its gradient;   AdamW on the entries of M
///     at step progressive_step + 1:  M ← M ∧ (|θ| < threshold), moments and count from zero
///     lr is 10⁻³·exp(−350·threshold) where it is not given
///
/// Entries outside M keep their bits.
///
/// State    M, m, v; with lambda_rank a buffer that marks the matrix.
/// Errors   TW_ERROR_NONFINITE: a gradient that is not finite, which would not show where nothing is trained.
/// Differs  mask and moments are buffers of the whole tensor, not of the trained share: what is trained is found at the
///          first step, and state is laid out when tensors are bound (`state_dtype` makes the moments narrow). The
///          authors' first write-back takes absolute values, and their step of the new selection moves nothing; neither
///          is followed. Singular values below 10⁻¹² (10⁻⁶ in float32) of the largest have no vectors.
/// Source   Hu et al., 2024, arXiv:2409.06633.
struct SaRA: WholeRule {
  static let method = Method(
    "sara", .optimizer, "SaRA: AdamW on those entries alone that are small to begin with.",
    rule: """
      M = (|theta| < threshold) at the first step;  AdamW on the entries of M
      lambda_rank: one drawn matrix has lambda_rank*U*V' of theta*M = U*S*V' added to its gradient
      at step progressive_step + 1: M <- M and (|theta| < threshold), moments and count from zero
      """,
    source: "Hu et al., 2024, arXiv:2409.06633",
    parameters: [
      .lr(1e-3 * exp(-0.7)).following { 1e-3 * exp(-350 * $0.threshold) },
      .number("threshold", 2e-3, .above(0), "entries of smaller magnitude are trained"),
      .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8, "added to the root", .above(0)),
      .weightDecay(0.01, "decoupled, of the trained entries"),
      .number("lambda_rank", 0, .atLeast(0), "coefficient of the nuclear norm").fixed,
      .integer("min_rank_dim", 64, .atLeast(1), "matrices whose smaller side is not above it have no nuclear norm"),
      .integer("progressive_step", -1, .atLeast(-1), "steps before the new selection; -1 for none", live: false),
    ],
    slots: [
      Slot("mask", "1 where an entry is trained"), .moment("exp_avg", "average of gradients"),
      .square("exp_avg_sq", "average of squares"),
    ], needsFinite: true)
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func mayFail(_ h: Hyper) -> Bool { h.lambda_rank != 0 }

  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { h.lambda_rank == 0 ? 1 : nil }

  let h: Hyper, c: StepContext, t: Int, selects: Bool
  init(_ h: Hyper, _ c: StepContext) {
    let first = h.integer("progressive_step"), again = first >= 0 && c.t > first
    (self.h, self.c, t, selects) = (h, c, again ? c.t - first : c.t, again && c.t == first + 1)
  }

  func apply<T: Real>(_ x: Whole<T>) throws(Failure) {
    if c.t == 1 || selects {
      // the least number of the type that is not below the threshold
      let threshold: Double = h.threshold, near = T(threshold)
      let edge = Double(Double(near) < threshold ? near.nextUp : near)
      x.change(Selection(edge: edge, first: c.t == 1), slots: 0..<3)
    }
    if x.slots.count > 3, x.count > 0, x.slots[3][0] == 1 { try addDirections(x) }
    let beta1: Double = h.beta1, beta2: Double = h.beta2
    x.change(
      Step(
        beta1: beta1, beta2: beta2, r1: 1 / (1 - pow(beta1, Double(t))), r2: 1 / (1 - pow(beta2, Double(t))),
        eps: h.eps, decay: c.weightDecay), slots: 0..<3)
  }

  /// The mask; moments start again.
  struct Selection: ElementOperation {
    let edge: Double, first: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let zero = L(0), one = L(1), before = first ? one : L.select(L.equal(s[0], one), one, zero)
      s[0] = L.select(L.less(g.magnitude, L(edge)), before, zero)
      s[1] = zero
      s[2] = zero
    }
  }
  /// AdamW where the mask is 1, else nothing.
  struct Step: ElementOperation {
    let beta1, beta2, r1, r2, eps, decay: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let trained = L.equal(s[0], L(1))
      let m = beta1 * s[1] + (1 - beta1) * x, v = beta2 * s[2] + (1 - beta2) * (x * x)
      let move = decay * g + r1 * m / ((r2 * v).squareRoot() + eps)
      s[1] = L.select(trained, m, s[1])
      s[2] = L.select(trained, v, s[2])
      x = L.select(trained, move, L(0))
    }
  }

  /// g ← g + λ·U·Vᵀ of θ⊙M.
  private func addDirections<T: Real>(_ x: Whole<T>) throws(Failure) {
    try Memory.ask(16 &* x.count)
    let trained = (0..<x.count).map { Double(x.w[$0]) * Double(x.slots[0][$0]) }
    let svd = try LinearAlgebra.SVD(trained, x.rows, x.columns),
      least = (svd.s.first ?? 0) * (T.isDouble ? 1e-12 : 1e-6)
    var out = trained
    try svd.compose(&out) { $0 > least ? 1 : 0 }
    let lambda: Double = h.lambda_rank
    for i in 0..<x.count { x.v[i] = T(Double(x.v[i]) + lambda * out[i]) }
  }

  static let registered = entry(
    SaRA.self,
    source: { (h) throws(Failure) in
      let lambda: Double = h.lambda_rank
      return lambda == 0 ? nil : try Choice(h)
    })

  /// Draws the matrix of the step, and marks it.
  struct Choice: Source {
    static var method: Method { SaRA.method }
    private let mark = 3
    init(_ h: Hyper) throws(Failure) {}
    var slots: [Slot] { [.temporary("chosen", "1 in the matrix of the step")] }
    var single: Bool { true }
    struct Clear: ElementOperation {
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = L(0) }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let least = io.hyper.integer("min_rank_dim")
      let matrices = io.tensors { $0.ndim >= 2 && min($0.rows, $0.columns) > least }
      io.change(Clear(), slots: [mark], parameters: false)
      guard !matrices.isEmpty else { return .update(nil) }
      let draw = Random.fraction(seed: io.seed, stream: io.stream, step: io.step)
      let chosen = matrices[min(Int(draw * Double(matrices.count)), matrices.count - 1)]
      let count = io.shape(of: chosen).count
      try Memory.ask(8 &* count)
      io.fill(mark, of: chosen, [Double](repeating: 1, count: count))
      return .update(nil)
    }
  }
}
