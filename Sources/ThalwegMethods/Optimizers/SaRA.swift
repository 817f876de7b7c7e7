import Glibc
import ThalwegCore

/// SaRA: fine-tuning of those entries alone that are small to begin with, and that hardly matter.
///
///     M = (|θ| < threshold) at the first step;   lambda_rank > 0: one matrix W, drawn at each step, has
///     lambda_rank·U·Vᵀ of W⊙M = U·Σ·Vᵀ added to its gradient;   AdamW on the entries of M
///     at step progressive_step + 1:  M ← M ∧ (|θ| < threshold), moments and count from zero
///
/// Entries outside M keep their bits.
///
/// State    M, m, v; with lambda_rank a buffer that marks the matrix.
/// Errors   TW_ERROR_NONFINITE: a gradient that is not finite, which would not show where nothing is trained.
/// Differs  the moments are buffers of the whole tensor. lr has the default of the default threshold,
///          10⁻³·exp(−350·threshold). The authors' first write-back takes absolute values, and their step of the new
///          selection moves nothing; neither is followed. Singular values below 10⁻¹² (10⁻⁶ in float32) of the largest
///          have no vectors.
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
      .lr(0.000496585), .number("threshold", 2e-3, .above(0), "entries of smaller magnitude are trained"),
      .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"), .eps(1e-8),
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

  let h: Hyper, c: StepContext, t: Int, selects: Bool
  init(_ h: Hyper, _ c: StepContext) {
    let first = h.integer("progressive_step"), again = first >= 0 && c.t > first
    (self.h, self.c, t, selects) = (h, c, again ? c.t - first : c.t, again && c.t == first + 1)
  }

  func apply<T: Real>(_ x: Whole<T>) throws(Failure) {
    let mask = x.slots[0], m = x.slots[1], v = x.slots[2], n = x.count, threshold: Double = h.threshold
    if c.t == 1 || selects {
      for i in 0..<n {
        mask[i] = (c.t == 1 || mask[i] == 1) && Double(abs(x.w[i])) < threshold ? 1 : 0
        (m[i], v[i]) = (0, 0)
      }
    }
    if x.slots.count > 3, n > 0, x.slots[3][0] == 1 { try addDirections(x) }
    let beta1: Double = h.beta1, beta2: Double = h.beta2, eps: Double = h.eps, decay = c.weightDecay
    let r1 = 1 / (1 - pow(beta1, Double(t))), r2 = 1 / (1 - pow(beta2, Double(t)))
    for i in 0..<n {
      guard mask[i] == 1 else {
        x.v[i] = 0
        continue
      }
      let g = Double(x.v[i])
      m[i] = T(beta1 * Double(m[i]) + (1 - beta1) * g)
      v[i] = T(beta2 * Double(v[i]) + (1 - beta2) * g * g)
      x.v[i] = T(decay * Double(x.w[i]) + r1 * Double(m[i]) / ((r2 * Double(v[i])).squareRoot() + eps))
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
