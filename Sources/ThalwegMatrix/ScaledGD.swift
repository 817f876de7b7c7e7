import ThalwegCore

/// Scaled gradient descent for a factor Z of a low-rank matrix Z·Zᵀ: the gradient over the Gram matrix of the factor.
///
///     θ ← θ − lr·g·(θᵀ·θ + lam·I)⁻¹,   θ as (n, r)
///
/// State    none.
/// Differs  the symmetric form alone; that of a pair (L, R) needs the other factor. A singular Gram matrix without
///          damping has its pseudo-inverse.
/// Source   Tong, Ma, Chi, 2020, arXiv:2005.08898; Xu, Shen, Chi, Ma, 2023, arXiv:2302.01186.
struct ScaledGD: WholeRule {
  static let method = Method(
    "scaled_gd", .optimizer, "Scaled gradient descent for a factor Z of a low-rank matrix Z Z'.",
    rule: "theta <- theta - lr*g (theta' theta + lam*I)^-1, theta as (n, r)",
    source: "Tong, Ma, Chi, 2020, arXiv:2005.08898; Xu, Shen, Chi, Ma, 2023, arXiv:2302.01186",
    parameters: [.lr(0.5), .number("lam", 0, .atLeast(0), "damping; above 0 where the rank is over-estimated")],
    needsFinite: true)

  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "scaled_gd") }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    aligned(shape.columns &* shape.columns &* size) &+ shape.count &* size
  }

  let lam: Double
  init(_ h: Hyper, _ c: StepContext) { lam = h.lam }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let (n, r) = (w.rows, w.columns)
    let gram = w.workspace.assumingMemoryBound(to: T.self)
    let g = (w.workspace + aligned(r &* r &* MemoryLayout<T>.stride)).assumingMemoryBound(to: T.self)
    try LinearAlgebra.gram(w.w, transposed: true, into: gram, r, n)
    let eigen = try LinearAlgebra.Eigen(gram, r)
    let floor = (eigen.values.first ?? 0) * Double(max(n, r)) * Double(T.ulpOfOne)
    try eigen.compose(gram) { value in
      let x = max(value, 0) + lam
      return x > (lam > 0 ? 0 : floor) ? 1 / x : 0
    }
    g.update(from: w.v, count: w.count)
    try LinearAlgebra.multiply(g, gram, into: w.v, n, r, r)
  }
}
