import Glibc
import ThalwegCore

/// Charges of the symmetries of weights, and how exactly a gradient keeps them.
///
///     translation (softmax rows: one vector added to all classes): charge Σ_c w_c, residual Σ_c g_c
///     scale (weights before a normalisation): charge |w|², residual ⟨w, g⟩
///     rescale (a homogeneous unit u between rows of w and columns of w2): charge |w_u|² − |w2_:u|²,
///       residual ⟨w_u, g_u⟩ − ⟨w2_:u, g2_:u⟩
///
/// w and g are (u, d), w2 and g2 (v, u): weights of one layer and the next. A residual is 0 where the symmetry is
/// exact; what needs an input that is left out is NaN. The value is the charge of scale.
/// Source   Tanaka, Kunin, 2021, arXiv:2105.02716; Kunin et al., 2021, arXiv:2012.04728.
struct NoetherCharges: Objective {
  static let method = Method(
    "noether_charges", .diagnostic, "Charges of the symmetries of weights, and what a gradient leaves of them.",
    rule: """
      translation: sum_c w_c, sum_c g_c;  scale: |w|^2, <w, g>
      rescale: |w_u|^2 - |w2_u|^2, <w_u, g_u> - <w2_u, g2_u>, rows of w and columns of w2
      """,
    source: "Tanaka, Kunin, 2021, arXiv:2105.02716; Kunin et al., 2021, arXiv:2012.04728",
    inputs: [
      .constant("w", "u, d", "weights, one row a unit or class"),
      .constant("g", "u, d", "their gradient", optional: true),
      .constant("w2", "v, u", "weights of the next layer", optional: true),
      .constant("g2", "v, u", "their gradient", optional: true), .result("translation", "d", "sums over the rows"),
      .result("scale", "", "squared length"), .result("rescale", "u", "differences of squared lengths"),
      .result("translation_residual", "d", "sums of the gradient"), .result("scale_residual", "", "<w, g>"),
      .result("rescale_residual", "u", "differences of <w, g>"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], u = x.sizes["u"], d = x.sizes["d"], v = x.sizes["v"]
    let g = x.optional("g"), w2 = x.optional("w2"), g2 = x.optional("g2")
    let scale = Flat.squaredNorm(w, u * d)
    guard let cache else { return scale }
    func sums(_ m: UnsafePointer<T>?) -> [Double] {
      (0..<d).map { c in m.map { m in (0..<u).reduce(0) { $0 + Double(m[$1 * d + c]) } } ?? .nan }
    }
    func differences(
      _ a: UnsafePointer<T>, _ b: UnsafePointer<T>?, _ a2: UnsafePointer<T>?, _ b2: UnsafePointer<T>?
    ) -> [Double] {
      guard let b, let a2, let b2 else { return [Double](repeating: .nan, count: u) }
      return (0..<u).map { i in
        (0..<v).reduce(Flat.dot(a + i * d, b + i * d, d)) { $0 - Double(a2[$1 * u + i]) * Double(b2[$1 * u + i]) }
      }
    }
    try cache.keep("translation", numbers: sums(w), T.self)
    try cache.keep("scale", numbers: [scale], T.self)
    try cache.keep("rescale", numbers: differences(w, w, w2, w2), T.self)
    try cache.keep("translation_residual", numbers: sums(g), T.self)
    try cache.keep("scale_residual", numbers: [g.map { Flat.dot(w, $0, u * d) } ?? .nan], T.self)
    try cache.keep("rescale_residual", numbers: differences(w, g, w2, g2), T.self)
    return scale
  }
}

/// How the length of weights before a normalisation changes under SGD with decoupled weight decay.
///
///     next = (1 − lr·wd)²·|w|² + lr²·|g|²     angular_lr = lr/|w|²
///     equilibrium: |w|⁴ = lr²·|ĝ|²/(1 − (1 − lr·wd)²), ĝ = g·|w|
///
/// w and g are (...). The identity is exact where ⟨w, g⟩ = 0. Lengths are squared: `next` and `equilibrium` are |w|².
/// The equilibrium is infinite without weight decay. The value is `next`.
/// Source   Tanaka, Kunin, 2021, arXiv:2105.02716.
struct ScaleNormDynamics: Objective {
  static let method = Method(
    "scale_norm_dynamics", .diagnostic, "How the length of weights before a normalisation changes under SGD.",
    rule: """
      next = (1 - lr wd)^2 |w|^2 + lr^2 |g|^2;  angular_lr = lr/|w|^2
      equilibrium = sqrt(lr^2 |g|^2 |w|^2/(1 - (1 - lr wd)^2))
      """,
    source: "Tanaka, Kunin, 2021, arXiv:2105.02716",
    parameters: [.lr(nil, .above(0)), .weightDecay()],
    inputs: [
      .constant("w", "...", "weights"), .constant("g", "...", "their gradient"),
      .result("next", "", "|w|^2 after a step"), .result("equilibrium", "", "|w|^2 where it stays"),
      .result("angular_lr", "", "step of the direction, times the gradient at length 1"),
    ])
  let lr: Double, decay: Double
  init(_ h: Hyper) { (lr, decay) = (h.lr, h.weight_decay) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes.samples, w = Flat.squaredNorm(try x["w"], n), g = Flat.squaredNorm(try x["g"], n)
    let keep = (1 - lr * decay) * (1 - lr * decay), next = keep * w + lr * lr * g
    // 1 − (1 − lr·wd)² without the difference
    let loss = lr * decay * (2 - lr * decay)
    let equilibrium = decay == 0 ? .infinity : (lr * lr * g * w / loss).squareRoot()
    for (name, value) in [("next", next), ("equilibrium", equilibrium), ("angular_lr", lr / w)] {
      try cache?.keep(name, numbers: [value], T.self)
    }
    return next
  }
}
