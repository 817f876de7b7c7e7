import ThalwegCore

/// Brings the singular values of a gradient or an update into an interval.
///
///     X = U·Σ·Vᵀ  ←  U·clip(Σ, sigma_min, sigma_max)·Vᵀ
///     ns:  O = msign(X),  S(b) = msign(b·I − O·Xᵀ)·(b·O − X);   X ← ½·((low + high)·O + S(low) − S(high))
///
/// msign is the polar factor, by Newton-Schulz. Kernels are matrices (out, rest).
///
/// State    none.
/// Differs  singular values below the largest times max(out, in)·ulp have no direction and stay 0, in either form.
/// Source   Cesista, 2025; NVIDIA Emerging-Optimizers, 2025.
struct SpectralClip: WholeRule {
  static let method = Method(
    "spectral_clip", .transform, "Brings the singular values of a gradient or an update into an interval.",
    rule: """
      X = U S V'  <-  U clip(S, sigma_min, sigma_max) V'
      ns: O = msign(X), P(b) = msign(b*I - O X') (b*O - X);  X <- ((low + high)*O + P(low) - P(high))/2
      """,
    source: "Cesista, 2025; NVIDIA Emerging-Optimizers, 2025",
    parameters: [
      .number("sigma_min", -1, .any, "least singular value; at most 0 only caps"),
      .number("sigma_max", 1, .any, "largest singular value"), spectralForm,
    ] + NewtonSchulz.parameters("polar_express_8", steps: 8),
    needsFinite: true,
    validate: { (h) throws(Failure) in
      let low: Double = h.sigma_min, high: Double = h.sigma_max
      guard !(low > high) else {
        throw Failure(
          Status.range, "spectral_clip: `sigma_min` must be at most `sigma_max`, got \(text(low)) and \(text(high))")
      }
      try NewtonSchulz.check(h, "spectral_clip")
    })

  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "spectral_clip") }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { spectralSpace(h, shape, size) }

  let low, high: Double
  let exact: Bool
  let h: Hyper
  init(_ h: Hyper, _ c: StepContext) {
    (low, high, exact, self.h) = (h.sigma_min, h.sigma_max, h.is("method", "svd"), h)
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    if exact {
      let svd = try LinearAlgebra.SVD(t.v, t.rows, t.columns)
      let floor = (svd.s.first ?? 0) * Double(max(t.rows, t.columns)) * Double(T.ulpOfOne)
      return try svd.compose(t.v) { $0 > floor ? min(max($0, low), high) : 0 }
    }
    let sign = MatrixSign<T>(t, h), m = sign.m, n = sign.n, x = sign.x, o = sign.o
    let (gram, step) = (sign.square(0), sign.square(1)), moved = sign.long
    sign.read(t)
    try sign.polar(x, into: o, m, n)
    Flat.scale(o, by: 0.5 * (low + high), into: sign.sum, m * n)
    for (b, weight) in [(low, 0.5), (high, -0.5)] {
      try LinearAlgebra.multiply(o, transposed: false, x, transposed: true, into: gram, m, m, n, alpha: -1)
      for i in 0..<m { gram[i * m + i] += T(b) }
      try sign.polar(gram, into: step, m, m)
      for i in 0..<(m * n) { moved[i] = T(b) * o[i] - x[i] }
      try LinearAlgebra.multiply(step, moved, into: sign.sum, m, n, m, alpha: weight, beta: 1)
    }
    sign.write(t)
  }
}

/// Caps the singular values of a gradient or an update.
///
///     X = U·Σ·Vᵀ  ←  U·min(Σ, beta)·Vᵀ
///     ns:  O = msign(X),  A = beta·O − X;   X ← ½·(beta·O + X − A·msign(A)ᵀ·O)
///
/// State    none.
/// Differs  the decay that is made of it, θ ← (1 − c)·θ + c·cap(θ), is not carried.
/// Source   Cesista, 2025; NVIDIA Emerging-Optimizers, 2025.
struct SpectralHardcap: WholeRule {
  static let method = Method(
    "spectral_hardcap", .transform, "Caps the singular values of a gradient or an update.",
    rule: """
      X = U S V'  <-  U min(S, beta) V'
      ns: O = msign(X), A = beta*O - X;  X <- (beta*O + X - A msign(A)' O)/2
      """,
    source: "Cesista, 2025; NVIDIA Emerging-Optimizers, 2025",
    parameters: [.number("beta", 1, .above(0), "largest singular value"), spectralForm]
      + NewtonSchulz.parameters("polar_express_8", steps: 8),
    needsFinite: true, validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "spectral_hardcap") })

  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "spectral_hardcap") }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { spectralSpace(h, shape, size) }

  let beta: Double
  let exact: Bool
  let h: Hyper
  init(_ h: Hyper, _ c: StepContext) { (beta, exact, self.h) = (h.beta, h.is("method", "svd"), h) }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    if exact { return try LinearAlgebra.SVD(t.v, t.rows, t.columns).compose(t.v) { min($0, beta) } }
    let sign = MatrixSign<T>(t, h), m = sign.m, n = sign.n, x = sign.x, o = sign.o, a = sign.sum, turned = sign.long
    let product = sign.square(0)
    sign.read(t)
    try sign.polar(x, into: o, m, n)
    for i in 0..<(m * n) { a[i] = T(beta) * o[i] - x[i] }
    try sign.polar(a, into: turned, m, n)
    try LinearAlgebra.multiply(a, transposed: false, turned, transposed: true, into: product, m, m, n)
    for i in 0..<(m * n) { a[i] = T(0.5) * (T(beta) * o[i] + x[i]) }
    try LinearAlgebra.multiply(product, o, into: a, m, n, m, alpha: -0.5, beta: 1)
    sign.write(t)
  }
}

/// Room for polar factors of a matrix with no more rows than columns, transposed where the tensor has more.
private struct MatrixSign<T: Real> {
  let m, n: Int
  private let schulz: NewtonSchulz
  private let space: UnsafeMutableRawPointer
  private let transposed: Bool

  init(_ t: Whole<T>, _ h: Hyper) {
    (m, n, transposed) = (min(t.rows, t.columns), max(t.rows, t.columns), t.rows > t.columns)
    (schulz, space) = (NewtonSchulz(h, eps: 1e-7, clamp: true), t.workspace)
  }
  private var matrix: Int { aligned(m &* n &* MemoryLayout<T>.stride) }
  private func at(_ offset: Int) -> UnsafeMutablePointer<T> { (space + offset).assumingMemoryBound(to: T.self) }
  var x: UnsafeMutablePointer<T> { at(0) }
  var o: UnsafeMutablePointer<T> { at(matrix) }
  var sum: UnsafeMutablePointer<T> { at(2 * matrix) }
  var long: UnsafeMutablePointer<T> { at(3 * matrix) }
  func square(_ k: Int) -> UnsafeMutablePointer<T> { at(4 * matrix + k * aligned(m &* m &* MemoryLayout<T>.stride)) }

  func read(_ t: Whole<T>) {
    for i in 0..<m { for j in 0..<n { x[i * n + j] = transposed ? t.v[j * m + i] : t.v[i * n + j] } }
  }
  func write(_ t: Whole<T>) {
    for i in 0..<m { for j in 0..<n { t.v[transposed ? j * m + i : i * n + j] = sum[i * n + j] } }
  }
  func polar(
    _ a: UnsafeMutablePointer<T>, into out: UnsafeMutablePointer<T>, _ rows: Int, _ columns: Int
  ) throws(Failure) {
    out.update(from: a, count: rows &* columns)
    try schulz.apply(out, rows, columns, scale: 1, UnsafeMutableRawPointer(square(2)))
  }
}

private let spectralForm = Parameter.choice(
  "method", ["svd", "ns"], "the singular value decomposition, or Newton-Schulz")
private func spectralSpace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
  let side = min(shape.rows, shape.columns)
  return 4 * aligned(shape.count &* size) + 2 * aligned(side &* side &* size)
    + NewtonSchulz.space(h, shape.rows, shape.columns, size)
}
