import Glibc
import ThalwegCore

/// M-FAC: the gradient over the empirical Fisher matrix of the last gradients, without that matrix.
///
///     g ← g + wd·θ;   the oldest of the m kept gradients makes room for g
///     F = damp·I + (1/m)·Σ gᵢ·gᵢᵀ over all m places (unused ones are 0);   u = F⁻¹·g
///     v ← μ·v + (1 − μ)·u;   θ ← θ − lr·v
///
/// State    the gradients, one a row; their inner products; v; which place is next.
/// Differs  u by the Woodbury formula, with a Cholesky factorisation of m·damp·I + G·Gᵀ (the original eliminates
///          without pivoting: the same numbers). Every tensor has a matrix of its own, the original's is that of the
///              model (the
///          same for one tensor). 32 gradients, the original's 1024 are for accelerators.
/// Source   Frantar, Kurtic, Alistarh, 2021, arXiv:2107.03356.
struct MFAC: WholeRule {
  static let method = Method(
    "mfac", .optimizer, "M-FAC: the gradient over the empirical Fisher matrix of the last gradients.",
    rule: """
      g <- g + weight_decay*theta;  g takes the place of the oldest of ngrads gradients
      F = damp*I + (1/ngrads)*sum of g_i g_i';  u = F^-1 g
      v <- momentum*v + (1 - momentum)*u;  theta <- theta - lr*v
      """,
    source: "Frantar, Kurtic, Alistarh, 2021, arXiv:2107.03356",
    parameters: [
      .lr(1e-3), .integer("ngrads", 32, .within(1, 4096), "gradients kept", live: false),
      .number("damp", 1e-5, .above(0), "multiple of the identity in F"),
      .rate("momentum", 0.9, "rate of the average of the update"), .weightDecay(0, "coupled weight decay"),
    ],
    slots: [
      Slot("gradients", "the kept gradients, one a row"), Slot("products", "their inner products"),
      .moment("momentum_buffer", "average v of the update"),
    ], needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = method.slots
    let m = h.integer("ngrads")
    (list[0].count, list[1].count) = (m &* shape.count, m &* m)
    return list
  }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("next")] }
  static func decay(_ h: Hyper) -> Decay { .coupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    guard !shape.count.multipliedReportingOverflow(by: h.integer("ngrads")).overflow else {
      throw Failure(Status.shape, "mfac: `ngrads` gradients of \(shape.count) elements are too many")
    }
    try LinearAlgebra.require()
  }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { 8 &* shape.count }

  let h: Hyper
  let c: StepContext
  init(_ h: Hyper, _ c: StepContext) { (self.h, self.c) = (h, c) }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let n = w.count, m = h.integer("ngrads"), (G, dots, v) = (w.slots[0], w.slots[1], w.slots[2])
    let next = c.counter(0, most: m - 1)
    c.scalars[0] = Double((next + 1) % m)
    let row = G + next &* n
    row.update(from: w.v, count: n)
    let own = (0..<m).map { Flat.dot(G + $0 &* n, w.v, n) }
    for i in 0..<m { (dots[next &* m &+ i], dots[i &* m &+ next]) = (T(own[i]), T(own[i])) }

    let damp: Double = h.damp
    var K = (0..<(m * m)).map { Double(dots[$0]) }
    for i in 0..<m {
      (K[next * m + i], K[i * m + next]) = (own[i], own[i])
      K[i * m + i] += Double(m) * damp
    }
    let y = try LinearAlgebra.solvePositive(K, own, m, 1)
    let u = w.workspace.assumingMemoryBound(to: Double.self)
    for i in 0..<n { u[i] = Double(w.v[i]) }
    for k in 0..<m where y[k] != 0 {
      let g = G + k &* n, factor = y[k]
      for i in 0..<n { u[i] -= factor * Double(g[i]) }
    }
    let mu: Double = h.momentum
    for i in 0..<n {
      v[i] = T(mu * Double(v[i]) + (1 - mu) * (u[i] / damp))
      w.v[i] = v[i]
    }
  }
}
