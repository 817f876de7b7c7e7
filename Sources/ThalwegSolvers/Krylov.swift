import ThalwegCore

extension RequestKind {
  /// An operator times a vector.
  static let product = RequestKind(
    "product", "the operator times the vector", given: [.given("vector", "...", "what it is applied to")],
    wanted: [.wanted("product", "...", "the operator times the vector")])
}

/// What the solvers of A·x = b share: their inputs and results, their tolerance and their limit.
struct KrylovStop {
  static func parameters(rtol: Double, factor: String = "ten") -> [Parameter] {
    [
      .number("rtol", rtol, .atLeast(0), "residual that ends it, relative to the norm of b"),
      .number("atol", 0, .atLeast(0), "residual that ends it"),
      .maybeInteger("max_iter", .atLeast(0), "most iterations; none: \(factor) times the number of unknowns"),
    ]
  }
  static let inputs: [Input] = [
    .constant("b", "...", "the right side"), .constant("x0", "...", "where it starts; 0 when left out", optional: true),
  ]
  static let results: [Input] = [
    .result("x", "...", "the solution"), .result("iterations", "", "iterations"),
    .result("residual", "", "norm of the residual"),
  ]
  /// Residual, direction and product; the tolerance, and the square of the residual.
  static let kept: [Input] = [
    .kept("r", "...", "residual"), .kept("p", "...", "direction"), .kept("q", "...", "product"),
    .kept("tolerance", "", "residual that ends it"), .kept("rz", "", "the residual times itself, preconditioned"),
  ]

  let rtol: Double, atol: Double, limit: Int?
  init(_ h: Hyper) { (rtol, atol, limit) = (h.rtol, h.atol, h.has("max_iter") ? h.integer("max_iter") : nil) }

  /// x ← x0 or 0, r ← b, and the tolerance; false when b = 0, whose solution is 0.
  func begin<T: Real>(_ io: DriverIO<T>) throws(Failure) -> Bool {
    let b = try io["b"], size = b.norm
    io.tolerance = max(rtol * size, atol)
    guard size != 0 else { return false }
    if let x0 = io.optional("x0") { try io["x"].copy(x0) }
    if let r = io.optional("r") { r.copy(b) }
    return true
  }
  /// Whether it is at its end, by the residual or by the limit.
  func check<T: Real>(_ io: DriverIO<T>, factor: Int = 10) -> Ending? {
    if io.residual <= io.tolerance { return .converged }
    if !io.residual.isFinite { return .nonfinite }
    return io.iterations >= Double(limit ?? factor &* io.sizes.samples) ? .maxIter : nil
  }
}
