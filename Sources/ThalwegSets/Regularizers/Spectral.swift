import CThalweg
import Glibc
import ThalwegCore

private typealias Triplet = (sigma: Double, u: [Double], v: [Double])

/// The leading singular triplet.
private func leading(_ w: Matrix64) throws(Failure) -> Triplet {
  let svd = try LinearAlgebra.SVD(w.a, w.m, w.n)
  guard let top = svd.s.first else { return (0, [], []) }
  return (top, (0..<w.m).map { svd.u[$0 * svd.r] }, Array(svd.vt[..<w.n]))
}
/// The same, or where `kept`, the left vector of the step before, is given, what so many power iterations make of it.
private func leading<T: Real>(
  _ w: Matrix64, _ steps: Int, _ kept: UnsafeMutablePointer<T>?
) throws(Failure) -> Triplet {
  guard let kept else { return try leading(w) }
  let before = (0..<w.m).map { Double(kept[$0]) }
  var u = Matrix64(before.contains { $0 != 0 } ? before : startVector(w.m), w.m, 1)
  var v = Matrix64([Double](repeating: 0, count: w.n), w.n, 1)
  for _ in 0..<steps {
    v = try w.times(u, transposed: true)
    let nv = v.squaredNorm.squareRoot()
    if nv == 0 { return (0, u.a, v.a) }
    v = (1 / nv) * v
    u = try w.times(v)
    let nu = u.squaredNorm.squareRoot()
    if nu == 0 { return (0, u.a, v.a) }
    u = (1 / nu) * u
  }
  for i in u.a.indices { kept[i] = T(u.a[i]) }
  return (zip(u.a, try w.times(v).a).reduce(0) { $0 + $1.0 * $1.1 }, u.a, v.a)
}
/// g ← g + factor·u vᵀ.
private func addOuter<T: Real>(_ u: [Double], _ v: [Double], _ factor: Double, _ g: UnsafeMutablePointer<T>) {
  for i in u.indices { for j in v.indices { g[i * v.count + j] += T(factor * u[i] * v[j]) } }
}
private let powerSteps = Parameter.integer(
  "n_iter", 1, .within(0, 1e6), "power iterations of a step; 0 for the exact singular value", live: false)
private func vectors(_ h: Hyper, _ shape: Shape) -> [Slot] {
  h.integer("n_iter") == 0 || shape.ndim < 2 ? [] : [Slot("u", "the leading left singular vector", count: shape.rows)]
}

/// The spectral norm as a penalty.
///
///     power 2: value = λ/2·σ₁², gradient = λσ₁·u₁v₁ᵀ     prox: σ ← min(σ, c), c = Σ_{i≤m} σ_i/(m + tλ) for the
///              smallest m with c ≥ σ_{m+1}
///     power 1: value = λσ₁, gradient = λ·u₁v₁ᵀ           prox: σ ← σ − P(σ), P the projection on the L1 ball of tλ
///
/// Stages of a pipeline take `n_iter` power iterations a step, with vectors that are held constant in the gradient:
/// v ← Wᵀu/‖Wᵀu‖, u ← Wv/‖Wv‖, σ₁ = uᵀWv, from the u of the step before, at first from one fixed vector.
/// State    u, unless n_iter is 0.
/// Differs  called on its own it keeps nothing, and is exact; so is the prox.
/// Source   Yoshida and Miyato, 2017, arXiv:1705.10941.
struct SpectralPenalty: WholeRegularizer {
  static let method = Method(
    "spectral_penalty", .regularizer, "The spectral norm as a penalty, squared or not.",
    rule: """
      power 2: value = weight/2*sigma_1^2, gradient = weight*sigma_1*u_1*v_1'
      prox: sigma <- min(sigma, c), c = (sum of the m largest)/(m + t*weight), least m with c >= sigma_(m+1)
      power 1: value = weight*sigma_1, gradient = weight*u_1*v_1'
      prox: sigma <- sigma - P(sigma), P the projection on the L1 ball of radius t*weight
      """,
    source: "Yoshida, Miyato, 2017, arXiv:1705.10941",
    parameters: [.weight(), .integer("power", 2, .within(1, 2), "exponent of the norm"), powerSteps])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "spectral_penalty") }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { vectors(h, shape) }

  let weight: Double, squared: Bool, steps: Int
  init(_ h: Hyper) { (weight, squared, steps) = (h.weight, h.integer("power") == 2, h.integer("n_iter")) }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let sigma = try leading(Matrix64(w.v, w.rows, w.columns, "spectral_penalty")).sigma
    return squared ? weight / 2 * sigma * sigma : weight * sigma
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let (sigma, u, v) = try leading(Matrix64(w.w, w.rows, w.columns, "spectral_penalty"), steps, w.slots.first)
    if sigma != 0 { addOuter(u, v, scale * weight * (squared ? sigma : 1), w.v) }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    let k = t * weight
    if k == 0 { return }
    let svd = try LinearAlgebra.SVD(w.v, w.rows, w.columns)
    var cut = 0.0, sum = 0.0
    if squared {
      for (m, sigma) in svd.s.enumerated() {
        sum += sigma
        cut = sum / (Double(m + 1) + k)
        if m + 1 == svd.r || cut >= svd.s[m + 1] { break }
      }
    } else if svd.s.reduce(0, +) > k {
      cut = simplexThreshold(svd.s, k)
    }
    try svd.compose(w.v) { min($0, cut) }
  }
}

/// Spectral regularisation: keeps the spectral norm of every matrix near one, and biases near zero, so that a net
/// stays trainable on task after task.
///
///     matrices: value = λ(σ₁ᵏ − 1)², gradient = 2λ(σ₁ᵏ − 1)·kσ₁^(k−1)·u₁v₁ᵀ
///     vectors:  value = λ(‖b‖²)ᵏ, gradient = 2λk(‖b‖²)^(k−1)·b, with b − 1 for b where the role is `norm`
///
/// Power iterations as in `spectral_penalty`.
/// State    u of matrices, unless n_iter is 0.
/// Differs  default k and weight are not verified, nor that scales are pulled to one. A port detaches its whole power
///          iteration, so that no gradient is left: not followed. Called on its own it keeps nothing, and is exact.
/// Source   Lewandowski et al., 2024, arXiv:2406.06811.
struct SpectralReg: WholeRegularizer {
  static let method = Method(
    "spectral_reg", .regularizer, "Keeps the spectral norm of every matrix near one, and biases near zero.",
    rule: """
      matrices: value = weight*(sigma_1^k - 1)^2, gradient = 2*weight*(sigma_1^k - 1)*k*sigma_1^(k-1)*u_1*v_1'
      vectors: value = weight*|b|^(2k), gradient = 2*weight*k*|b|^(2k-2)*b; b - 1 for b where the role is norm
      """,
    source: "Lewandowski et al., 2024, arXiv:2406.06811",
    parameters: [
      .weight(), .integer("k", 2, .within(1, 1000), "exponent"), powerSteps,
      .flag("include_bias", true, "act on vectors too"),
    ])
  static var hasProx: Bool { false }
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    if shape.ndim >= 2 { try matrix(shape, "spectral_reg") }
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { vectors(h, shape) }

  let weight, k: Double, steps: Int, biases: Bool
  init(_ h: Hyper) { (weight, k, steps, biases) = (h.weight, h.k, h.integer("n_iter"), h.include_bias) }

  /// What vectors are pulled to.
  private func rest(_ shape: Shape) -> Double { shape.role == Int(TW_ROLE_NORM) ? 1 : 0 }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    if w.shape.ndim >= 2 {
      let sigma = try leading(Matrix64(w.v, w.rows, w.columns, "spectral_reg")).sigma
      return weight * pow(pow(sigma, k) - 1, 2)
    }
    if !biases { return 0 }
    let b = try doubles(w.v, w.count, "spectral_reg"), one = rest(w.shape)
    return weight * pow(b.reduce(0) { $0 + ($1 - one) * ($1 - one) }, k)
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    if w.shape.ndim >= 2 {
      let (sigma, u, v) = try leading(Matrix64(w.w, w.rows, w.columns, "spectral_reg"), steps, w.slots.first)
      return addOuter(u, v, 2 * scale * weight * (pow(sigma, k) - 1) * k * pow(sigma, k - 1), w.v)
    }
    if !biases { return }
    let b = try doubles(w.w, w.count, "spectral_reg"), one = rest(w.shape)
    let factor = 2 * scale * weight * k * pow(b.reduce(0) { $0 + ($1 - one) * ($1 - one) }, k - 1)
    for i in b.indices { w.v[i] += T(factor * (b[i] - one)) }
  }
}
