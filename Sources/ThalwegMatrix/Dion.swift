import Glibc
import ThalwegCore

/// Dion: orthonormal updates of low rank, from a power iteration on the momentum that begins where the last one ended.
///
///     M ← M + g (the longer side first);   P = qr(M·Q).Q;   R = Mᵀ·P, `power_iters` times with Q ← R
///     M ← M − (1 − μ)·P·Rᵀ;   Q = the columns of R over (their norm + ε)
///     θ ← θ·(1 − lr·wd) − lr·√(out/in)·P·Qᵀ
///
/// State    M, Q; Q begins with normal numbers.
/// Differs  M = 0 moves nothing and leaves Q. Householder's QR (the authors' code takes a randomised Cholesky QR).
///          Tensors of rank above 2 count as (out, rest).
///          Directions in which M is rounding alone (columns of R below 4·ulp·‖M‖) take no part in the step.
/// Source   Ahn, Xu, Abreu, Langford, 2025, arXiv:2504.05295.
struct Dion: WholeRule {
  static let method = Method(
    "dion", .optimizer, "Dion: orthonormal updates of low rank, from a power iteration on the momentum.",
    rule: """
      M <- M + g, the longer side first;  P = qr(M Q).Q;  R = M'P, power_iters times with Q <- R
      M <- M - (1 - mu)*P R';  Q = the columns of R over (their norm + eps)
      theta <- theta*(1 - lr*weight_decay) - lr*sqrt(out/in)*P Q'
      """,
    source: "Ahn, Xu, Abreu, Langford, 2025, arXiv:2504.05295",
    parameters: [
      .lr(0.01), .rate("mu", 0.95, "share of what was applied that stays in the momentum"),
      Parameter.number(
        "rank_fraction", 1, .between(0, 1, lowOpen: true, highOpen: false), "rank over the smaller side, rounded up"
      ).fixed,
      .weightDecay(0.01, "decoupled weight decay"), .eps(1e-8, "added to the norms of columns"),
      .integer("power_iters", 1, .atLeast(1), "power iterations a step"),
    ],
    slots: [.moment("momentum_buffer", "the momentum M"), .half("basis", "the start Q of the power iteration")],
    needsFinite: true)

  private static func rank(_ h: Hyper, _ side: Int) -> Int {
    min(max(1, Int((h.rank_fraction * Double(side)).rounded(.up))), side)
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = method.slots
    let side = min(shape.rows, shape.columns)
    list[1].count = side &* rank(h, side)
    return list
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "dion") }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    let side = min(shape.rows, shape.columns)
    return aligned(rank(h, side) &* max(shape.rows, shape.columns) &* size) &+ aligned(rank(h, side) &* side &* size)
  }

  let h: Hyper
  let first: Bool
  let mu, factor: Double
  let key: UInt64
  init(_ h: Hyper, _ c: StepContext) {
    (self.h, first, mu) = (h, c.t == 1, h.mu)
    factor = (Double(c.rows) / Double(c.columns)).squareRoot()
    key = Random.key(seed: c.seed, stream: c.stream, step: UInt64(c.step), tensor: UInt32(truncatingIfNeeded: c.tensor))
  }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let (rows, columns) = (w.rows, w.columns), tall = rows >= columns
    let (long, side) = (max(rows, columns), min(rows, columns)), r = Dion.rank(h, side)
    let (M, Q) = (w.slots[0], w.slots[1])
    if first { for i in 0..<(side &* r) { Q[i] = T(Random.normal(key, i)) } }
    Flat.add(w.v, times: 1, into: M, w.count)
    let size = Flat.norm(M, w.count)
    guard size > 0 else { return w.v.update(repeating: 0, count: w.count) }
    let P = w.workspace.assumingMemoryBound(to: T.self)
    let R = (w.workspace + aligned(r &* long &* MemoryLayout<T>.stride)).assumingMemoryBound(to: T.self)
    for k in 0..<max(1, h.integer("power_iters")) {
      // M as it lies is (rows, columns): its transpose where that is wide
      try LinearAlgebra.multiply(M, transposed: !tall, k == 0 ? Q : R, into: P, long, r, side)
      let q = try LinearAlgebra.orthonormal((0..<(long &* r)).map { Double(P[$0]) }, long, r)
      for i in q.indices { P[i] = T(q[i]) }
      try LinearAlgebra.multiply(M, transposed: tall, P, into: R, side, r, long)
    }
    let (left, right) = tall ? (P, R) : (R, P)
    try LinearAlgebra.multiply(
      left, transposed: false, right, transposed: true, into: M, rows, columns, r, alpha: mu - 1, beta: 1)
    // a column that is rounding beside M starts the next iteration and takes no part in this step
    let least = Flat.rounding(T.self) * size
    for k in 0..<r {
      let length = Flat.norm(R + k, side, stride: r), norm = length + h.eps
      for i in 0..<side {
        let x = norm > 0 ? R[i &* r &+ k] / T(norm) : 0
        (Q[i &* r &+ k], R[i &* r &+ k]) = (x, length > least ? x : 0)
      }
    }
    try LinearAlgebra.multiply(
      tall ? P : R, transposed: false, tall ? R : P, transposed: true, into: w.v, rows, columns, r, alpha: factor)
  }
}
