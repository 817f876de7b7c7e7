import ThalwegCore

/// A truncated Neumann series for the inverse of a symmetric operator, mostly a Hessian, times a vector.
///
///     v = p = b;  `terms` times: v ← v − α·A·v, p ← p + v;  x = α·p = α·Σ_{j ≤ terms} (I − α·A)ʲ·b
///
/// α·λ_max must be below 2. terms = 0 gives α·b. Every product is of another sample with `fresh`.
/// Ends     converged after `terms` products; diverged when |v| > 1000·|b|.
/// Source   Lorraine, Vicol, Duvenaud, 2019, arXiv:1911.02590; the stochastic form: Ji, Yang, Liang, 2021,
///          arXiv:2010.07962.
struct NeumannIHVP: Driver {
  static let method = Method.solver(
    "neumann_ihvp", "A truncated Neumann series for an inverse Hessian times a vector.",
    rule: "v = p = b;  terms times: v <- v - alpha A v, p <- p + v;  x = alpha p",
    source: "Lorraine, Vicol, Duvenaud, 2019, arXiv:1911.02590",
    parameters: [
      .number("alpha", nil, .above(0), "step; below two over the largest eigenvalue"),
      .integer("terms", 20, .atLeast(0), "products"),
      .flag("fresh", false, "every product is of another sample"),
    ],
    inputs: [
      .constant("b", "...", "the vector"), .result("x", "...", "the inverse times the vector"),
      .result("iterations", "", "products"), .result("residual", "", "norm of the last term, over the first"),
    ], asks: [.product],
    kept: [.kept("v", "...", "the last term"), .kept("q", "...", "product")])

  let alpha: Double, terms: Int, fresh: Bool
  init(_ h: Hyper) { (alpha, terms, fresh) = (h.alpha, h.integer("terms"), h.fresh) }

  enum Phase: Int { case start, product }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let b = try io["b"], x = try io["x"], v = try io["v"], q = try io["q"]
    switch phase {
    case .start:
      x.copy(b)
      v.copy(b)
      io.residual = 1
    case .product:
      v.add(q, times: -alpha)
      x.add(v)
      io.iterations += 1
      let size = b.norm
      io.residual = size == 0 ? 0 : v.norm / size
      if io.residual > 1000 {
        x.set(alpha, x)
        return .done(.diverged)
      }
    }
    if try io.count("iterations") < terms { return .ask("product", [v], [q], fresh: fresh, then: .product) }
    x.set(alpha, x)
    return .done(.converged)
  }
}
