import Glibc
import ThalwegCore

/// Steps of one length in a norm: the momentum's minimiser over a ball around the shrunken parameters.
///
///     m ← g at first, then (1 − α)·m + α·g;   θ ← (1 − decay)·θ − radius·T(m),  ⟨m, T⟩ = ‖m‖*,  ‖T‖ = 1
///     T: m/‖m‖ (l2), m/RMS(m) (rms), sign m (linf), U·Vᵀ (spectral), √(out/in)·U·Vᵀ (rms_to_rms), u₁·v₁ᵀ (nuclear),
///        columns (l1_to_l2) or rows (l2_to_linf) over their norms;   auto: spectral for matrices, else l2
///
/// State    m.
/// Differs  the exact polar factor by default; `ortho=newton_schulz` is Muon's. A zero has the direction 0. The
///          gradient at an extrapolated point, and composite terms other than the ball of `decay`, are not carried.
/// Source   Kovalev, 2025, arXiv:2503.12645.
struct NormTrustRegion: WholeRule {
  static let method = Method(
    "norm_trust_region", .optimizer, "Steps of one length in a norm, along the momentum.",
    rule: """
      m <- g at first, then (1 - alpha)*m + alpha*g
      theta <- (1 - decay)*theta - radius*T(m), T(m) of norm 1 with the largest inner product with m
      """,
    source: "Kovalev, 2025, arXiv:2503.12645",
    parameters: [
      .number("radius", 0.01, .above(0), "length of every step in the norm"),
      .number("alpha", 0.1, .between(0, 1, lowOpen: true, highOpen: false), "weight of the new gradient"),
      .rate("decay", 0, "share of the parameters that goes at every step"),
      .choice(
        "norm", ["auto", "l2", "rms", "linf", "spectral", "rms_to_rms", "nuclear", "l1_to_l2", "l2_to_linf"],
        "the norm of a step", live: false),
      .choice("ortho", ["svd", "newton_schulz"], "how U V' is computed"),
      .integer("ns_steps", 5, .within(1, 99), "Newton-Schulz iterations"),
      .list("ns_coefficients", NewtonSchulz.simple, "a, b, c of the polynomial, or three numbers for each iteration"),
      .eps(1e-7, "floor of the norm that divides in Newton-Schulz iterations", .above(0)),
    ],
    slots: [.moment("momentum_buffer", "the momentum m")], needsFinite: true,
    validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "norm_trust_region") })

  private static func ofMatrices(_ h: Hyper) -> Bool {
    !["auto", "l2", "rms", "linf"].contains { h.is("norm", $0) }
  }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    if ofMatrices(h) { try matrix(shape, "norm_trust_region") } else { try LinearAlgebra.require() }
  }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    NewtonSchulz.space(h, shape.rows, shape.columns, size)
  }

  let h: Hyper
  let keep, take: Double
  let shape: (rows: Int, columns: Int)
  let isMatrix: Bool
  init(_ h: Hyper, _ c: StepContext) {
    self.h = h
    take = c.t == 1 ? 1 : h.alpha
    keep = 1 - take
    (shape, isMatrix) = ((c.rows, c.columns), c.ndim >= 2)
  }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let n = w.count, m = w.slots[0], (old, new) = (T(keep), T(take))
    for i in 0..<n {
      m[i] = old * m[i] + new * w.v[i]
      w.v[i] = m[i]
    }
    try direction(w)
    let radius = T(h.radius as Double), decay = T(h.decay as Double)
    for i in 0..<n { w.v[i] = radius * w.v[i] + decay * w.w[i] }
  }

  private func direction<T: Real>(_ w: Whole<T>) throws(Failure) {
    let n = w.count, (rows, columns) = shape
    let spectral = h.is("norm", "spectral") || h.is("norm", "rms_to_rms") || (h.is("norm", "auto") && isMatrix)
    if spectral {
      let scale = h.is("norm", "rms_to_rms") ? (Double(rows) / Double(columns)).squareRoot() : 1
      if h.is("ortho", "newton_schulz") {
        return try NewtonSchulz(h).apply(w.v, rows, columns, scale: scale, w.workspace)
      }
      let svd = try LinearAlgebra.SVD(w.v, rows, columns)
      let floor = (svd.s.first ?? 0) * Double(max(rows, columns)) * Double(T.ulpOfOne)
      return try svd.compose(w.v) { $0 > floor ? scale : 0 }
    }
    if h.is("norm", "linf") {
      for i in 0..<n { w.v[i] = w.v[i] > 0 ? 1 : w.v[i] < 0 ? -1 : 0 }
    } else if h.is("norm", "nuclear") {
      let svd = try LinearAlgebra.SVD(w.v, rows, columns)
      let top = svd.s.first ?? 0
      for i in 0..<rows {
        for j in 0..<columns { w.v[i &* columns &+ j] = top > 0 ? T(svd.u[i * svd.r] * svd.vt[j]) : 0 }
      }
    } else if h.is("norm", "l1_to_l2") || h.is("norm", "l2_to_linf") {
      let lines = h.is("norm", "l1_to_l2") ? Slices.columns(w.shape) : Slices.rows(w.shape)
      lines.scale(w.v, by: try lines.norms(w.v).map { $0 > 0 ? 1 / $0 : 0 })
    } else {
      let norm = Flat.norm(w.v, n), unit = h.is("norm", "rms") ? Double(n).squareRoot() : 1
      Flat.scale(w.v, by: norm > 0 ? unit / norm : 0, into: w.v, n)
    }
  }
}
