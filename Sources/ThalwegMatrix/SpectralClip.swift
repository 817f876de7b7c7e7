import ThalwegCore

/// Brings the singular values of a gradient or an update into an interval.
///
///     X = U·Σ·Vᵀ  ←  U·clip(Σ, sigma_min, sigma_max)·Vᵀ
///     ns:  O = msign(X),  S(b) = msign(b·I − O·Xᵀ)·(b·O − X);   X ← ½·((low + high)·O + S(low) − S(high))
///
/// msign is the polar factor, by Newton-Schulz. Kernels are matrices (out, rest).
///
/// State    none.
/// Differs  singular values below the largest times max(out, in)·ulp have no direction and stay 0, in either form. ns
///          leaves alone what is short beside sigma_max, 2⁻⁷ of it; floats that are long beside it are computed in
///          double, and doubles as by svd.
/// Source   Cesista, 2025; NVIDIA Emerging-Optimizers, 2025.
struct SpectralClip: WholeRule, SpectralForm {
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
    if exact || isLong(t) {
      let svd = try LinearAlgebra.SVD(t.v, t.rows, t.columns)
      let floor = (svd.s.first ?? 0) * Double(max(t.rows, t.columns)) * Double(T.ulpOfOne)
      return try svd.compose(t.v) { $0 > floor ? min(max($0, low), high) : 0 }
    }
    try bySchulz(t)
  }
  fileprivate var cap: Double { high }
  fileprivate var lifts: Bool { low > 0 }
  fileprivate func form<T: Real>(_ t: Whole<T>, unit: Double) throws(Failure) {
    let sign = MatrixSign<T>(t, h), m = sign.m, n = sign.n, x = sign.x, o = sign.o
    let (gram, step) = (sign.square(0), sign.square(1)), moved = sign.long, (low, high) = (low / unit, high / unit)
    sign.read(t, times: 1 / unit)
    try sign.polar(x, into: o, m, n, isFirst: true)
    Flat.scale(o, by: 0.5 * (low + high), into: sign.sum, m * n)
    for (b, weight) in [(low, 0.5), (high, -0.5)] {
      try LinearAlgebra.multiply(o, transposed: false, x, transposed: true, into: gram, m, m, n, alpha: -1)
      for i in 0..<m { gram[i * m + i] += T(b) }
      try sign.polar(gram, into: step, m, m)
      for i in 0..<(m * n) { moved[i] = T(b) * o[i] - x[i] }
      try LinearAlgebra.multiply(step, moved, into: sign.sum, m, n, m, alpha: weight, beta: 1)
    }
    sign.write(t, times: unit)
  }
}

/// Caps the singular values of a gradient or an update.
///
///     X = U·Σ·Vᵀ  ←  U·min(Σ, beta)·Vᵀ
///     ns:  O = msign(X),  A = beta·O − X;   X ← ½·(beta·O + X − A·msign(A)ᵀ·O)
///
/// State    none.
/// Differs  the decay that is made of it, θ ← (1 − c)·θ + c·cap(θ), is not carried. ns as in spectral_clip.
/// Source   Cesista, 2025; NVIDIA Emerging-Optimizers, 2025.
struct SpectralHardcap: WholeRule, SpectralForm {
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
    if exact || isLong(t) { return try LinearAlgebra.SVD(t.v, t.rows, t.columns).compose(t.v) { min($0, beta) } }
    try bySchulz(t)
  }
  fileprivate var cap: Double { beta }
  fileprivate var lifts: Bool { false }
  fileprivate func form<T: Real>(_ t: Whole<T>, unit: Double) throws(Failure) {
    let sign = MatrixSign<T>(t, h), m = sign.m, n = sign.n, x = sign.x, o = sign.o, a = sign.sum, turned = sign.long
    let product = sign.square(0), beta = beta / unit
    sign.read(t, times: 1 / unit)
    try sign.polar(x, into: o, m, n, isFirst: true)
    for i in 0..<(m * n) { a[i] = T(beta) * o[i] - x[i] }
    try sign.polar(a, into: turned, m, n)
    try LinearAlgebra.multiply(a, transposed: false, turned, transposed: true, into: product, m, m, n)
    for i in 0..<(m * n) { a[i] = T(0.5) * (T(beta) * o[i] + x[i]) }
    try LinearAlgebra.multiply(product, o, into: a, m, n, m, alpha: -0.5, beta: 1)
    sign.write(t, times: unit)
  }
}

/// What both do by Newton-Schulz iterations.
private protocol SpectralForm {
  var h: Hyper { get }
  /// The largest singular value, and whether small ones are to be longer.
  var cap: Double { get }
  var lifts: Bool { get }
  /// The formula, on t over a power of two.
  func form<T: Real>(_ t: Whole<T>, unit: Double) throws(Failure)
}

extension SpectralForm {
  /// b·O − X of doubles would have lost what the cap leaves of them.
  fileprivate func isLong<T: Real>(_ t: Whole<T>) -> Bool {
    T.isDouble && cap > 0 && Flat.norm(t.v, t.count) > 0x1p20 * cap
  }
  /// The formula subtracts b·O and X from each other: where one is nothing beside the other no digits would be left.
  fileprivate func bySchulz<T: Real>(_ t: Whole<T>) throws(Failure) {
    let size = Flat.norm(t.v, t.count), n = t.count, isFar = cap > 0x1p10 || (cap < 0x1p-10 && cap > 0)
    if !lifts, size <= 0x1p-7 * cap { return }
    let unit = isFar ? Double(sign: .plus, exponent: cap.exponent, significand: 1) : 1
    guard !T.isDouble, cap > 0, size > 0x1p10 * cap, !h.is("ns_precision", "bf16") else {
      return try form(t, unit: unit)
    }
    let values = aligned(8 &* n), room = try Memory(values + spectralSpace(h, t.shape, 8), .current, zeroed: false)
    defer { withExtendedLifetime(room) {} }
    let x = room.base.assumingMemoryBound(to: Double.self)
    for i in 0..<n { x[i] = Double(t.v[i]) }
    let wide = Whole(v: x, w: x, slots: [], shape: t.shape, workspace: room.base + values)
    if size <= 0x1p24 * cap {
      try form(wide, unit: unit)
    } else {
      // a singular value of floats that is not longer than the cap is rounding
      let sign = MatrixSign<Double>(wide, h)
      sign.read(wide, times: 1)
      try sign.polar(sign.x, into: sign.sum, sign.m, sign.n)
      sign.write(wide, times: cap)
    }
    for i in 0..<n { t.v[i] = T(x[i]) }
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

  func read(_ t: Whole<T>, times factor: Double) {
    for i in 0..<m { for j in 0..<n { x[i * n + j] = transposed ? t.v[j * m + i] : t.v[i * n + j] } }
    if factor != 1 { Flat.scale(x, by: factor, into: x, m &* n) }
  }
  func write(_ t: Whole<T>, times factor: Double) {
    if factor != 1 { Flat.scale(sum, by: factor, into: sum, m &* n) }
    for i in 0..<m { for j in 0..<n { t.v[transposed ? j * m + i : i * n + j] = sum[i * n + j] } }
  }
  /// `isFirst`: however short the matrix is; the norm of others that are short is a remainder.
  func polar(
    _ a: UnsafeMutablePointer<T>, into out: UnsafeMutablePointer<T>, _ rows: Int, _ columns: Int, isFirst: Bool = false
  ) throws(Failure) {
    out.update(from: a, count: rows &* columns)
    let size = isFirst ? Flat.norm(a, rows &* columns) : 1
    if size < 0x1p-10, size > 0 {
      Flat.scale(out, by: 1 / Double(sign: .plus, exponent: size.exponent, significand: 1), into: out, rows &* columns)
    }
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
