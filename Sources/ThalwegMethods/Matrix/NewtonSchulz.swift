import ThalwegCore

/// The polar factor of a matrix, by an odd polynomial of it: products only, in the working precision or (f32 alone) in
/// bfloat16, as the original has it: the factor is then right to two or three digits.
///
///     X ← X / (‖X‖ + ε)  or  X / max(‖X‖, ε),  ‖·‖ the Frobenius norm
///     A = XXᵀ (or XᵀX, the smaller one),  X ← (aI + bA + cA²)·X,  once for every triple; the last one repeats
///
/// Source   Björck and Bowie, 1971; Jordan et al., 2024; Polar Express: Amsel et al., 2025, arXiv:2505.16932.
struct NewtonSchulz: Sendable {
  static let quintic = [3.4445, -4.7750, 2.0315]
  static let polarExpress = [
    8.156554524902461, -22.48329292557795, 15.878769915207462, 4.042929935166739, -2.808917465908714,
    0.5000178451051316,
    3.8916678022926607, -2.772484153217685, 0.5060648178503393, 3.285753657755655, -2.3681294933425376,
    0.46449024233003106,
    2.3465413258596377, -1.7097828382687081, 0.42323551169305323,
  ]
  static let presets: [(name: String, values: [Double])] = [
    ("quintic", quintic), ("cubic", [1.5, -0.5, 0]),
    (
      "dion",
      [
        4.0848, -6.8946, 2.9270, 3.9505, -6.3029, 2.6377, 3.7418, -5.5913, 2.3037, 2.8769, -3.1427, 1.2046, 2.8366,
        -3.0525, 1.2012,
      ]
    ),
    ("polar_express", polarExpress),
  ]

  /// Three numbers a step.
  let coefficients: [Double]
  let steps: Int, eps: Double, clamp: Bool, safety: Double, narrow: Bool

  static let precision = Parameter.choice(
    "ns_precision", ["working", "bf16"], "precision of the products: the parameters', or bfloat16 (f32 only)",
    live: false)

  init(_ h: Hyper) {
    (coefficients, steps, eps, clamp) = (
      h.list("ns_coefficients"), h.integer("ns_steps"), h.eps, h.is("eps_mode", "clamp")
    )
    narrow = h.is("ns_precision", "bf16")
    safety =
      h.has("safety") ? h.safety : h.index("safety") != nil && coefficients == NewtonSchulz.polarExpress ? 1.02 : 1
  }

  /// Checks `ns_coefficients`: 3 numbers, or 3 for each of several steps.
  static func check(_ h: Hyper, _ method: String) throws(Failure) {
    let c = h.list("ns_coefficients")
    guard c.count >= 3, c.count % 3 == 0, c.allSatisfy(\.isFinite) else {
      throw Failure(
        Status.range, "\(method): `ns_coefficients` must be three numbers, or three for each step, got \(c.count)")
    }
  }

  /// Bytes of work space for a matrix of elements of `size` bytes.
  static func space(_ h: Hyper, _ rows: Int, _ columns: Int, _ size: Int) -> Int {
    let own = matrices(rows, columns, size)
    return h.is("ns_precision", "bf16") && size == 4
      ? own + BF16Products.space(lines: rows &+ columns, inner: max(rows, columns)) : own
  }
  private static func matrices(_ rows: Int, _ columns: Int, _ size: Int) -> Int {
    let side = min(rows, columns)
    return 2 * aligned(side &* side &* size) + aligned(rows &* columns &* size)
  }

  /// x ← scale·(polar factor of x), in place; x is (rows, columns).
  func apply<T: Real>(
    _ x: UnsafeMutablePointer<T>, _ rows: Int, _ columns: Int, scale: Double, _ space: UnsafeMutableRawPointer
  ) throws(Failure) {
    let side = min(rows, columns), long = max(rows, columns), count = rows &* columns
    let a = space.assumingMemoryBound(to: T.self)
    let p = (space + aligned(side &* side &* MemoryLayout<T>.stride)).assumingMemoryBound(to: T.self)
    let other = (space + 2 * aligned(side &* side &* MemoryLayout<T>.stride)).assumingMemoryBound(to: T.self)
    // The matrix goes back and forth between x and `other`, and begins where it must to end in x.
    var (from, to) = steps % 2 == 0 ? (x, other) : (other, x)
    let norm = Flat.norm(x, count) * safety
    Flat.scale(x, by: 1 / (clamp ? max(norm, eps) : norm + eps), into: from, count)
    let products = Products<T>(narrow, space + NewtonSchulz.matrices(rows, columns, MemoryLayout<T>.stride))
    for k in 0..<steps {
      let c = min(3 * k, coefficients.count - 3)
      try products.gram(from, transposed: rows > columns, into: a, side, long)
      p.update(from: a, count: side &* side)
      try products.gram(a, into: p, side, side, alpha: coefficients[c + 2], beta: coefficients[c + 1])
      for i in 0..<side { p[i &* (side &+ 1)] += T(coefficients[c]) }
      let alpha = k == steps - 1 ? scale : 1
      if rows <= columns {
        try products.multiply(p, from, into: to, rows, columns, rows, alpha: alpha)
      } else {
        try products.multiply(from, p, into: to, rows, columns, columns, alpha: alpha)
      }
      swap(&from, &to)
    }
  }

  /// Products in the precision that was asked for.
  private struct Products<T: Real> {
    let narrow: BF16Products?
    init(_ narrow: Bool, _ space: UnsafeMutableRawPointer) {
      self.narrow = narrow && !T.isDouble ? BF16Products(space) : nil
    }

    func gram(
      _ a: UnsafeMutablePointer<T>, transposed: Bool = false, into c: UnsafeMutablePointer<T>, _ n: Int, _ k: Int,
      alpha: Double = 1, beta: Double = 0
    ) throws(Failure) {
      if let narrow {
        try narrow.gram(float(a), transposed: transposed, into: float(c), n, k, alpha: alpha, beta: beta)
      } else {
        try LinearAlgebra.gram(a, transposed: transposed, into: c, n, k, alpha: alpha, beta: beta)
      }
    }
    func multiply(
      _ a: UnsafeMutablePointer<T>, _ b: UnsafeMutablePointer<T>, into c: UnsafeMutablePointer<T>, _ m: Int, _ n: Int,
      _ k: Int, alpha: Double
    ) throws(Failure) {
      if let narrow {
        try narrow.multiply(float(a), float(b), into: float(c), m, n, k, alpha: alpha)
      } else {
        try LinearAlgebra.multiply(a, b, into: c, m, n, k, alpha: alpha)
      }
    }
    private func float(_ p: UnsafeMutablePointer<T>) -> UnsafeMutablePointer<Float> {
      UnsafeMutableRawPointer(p).assumingMemoryBound(to: Float.self)
    }
  }
}
