import Glibc
import ThalwegCore

/// Steps of one length in a norm: the momentum's minimiser over a ball around the shrunken parameters.
///
///     m ← g at first, then (1 − α)·m + α·g;   θ ← (1 − decay)·θ − radius·T(m),  ⟨m, T⟩ = ‖m‖*,  ‖T‖ = 1
///     T as in `norm_direction`;   auto: spectral for matrices, else l2
///     extrapolate:  the gradient is taken at θ + ((1 − α)/α)·(θ − θ of the step before), and θ steps from θ
///
/// State    m; with extrapolate θ of the step before, and θ while the parameters are ahead.
/// Differs  the exact polar factor by default; `ortho=newton_schulz` is Muon's. A zero has the direction 0. The weight
///          of the extrapolation is UNVERIFIED. Composite terms other than the ball of `decay` are not carried.
/// Source   Kovalev, 2025, arXiv:2503.12645.
struct NormTrustRegion: WholeRule {
  static let method = Method(
    "norm_trust_region", .optimizer, "Steps of one length in a norm, along the momentum.",
    rule: """
      m <- g at first, then (1 - alpha)*m + alpha*g
      theta <- (1 - decay)*theta - radius*T(m), T(m) of norm 1 with the largest inner product with m
      extrapolate: the gradient is taken at theta + ((1 - alpha)/alpha)*(theta - theta of the step before)
      """,
    source: "Kovalev, 2025, arXiv:2503.12645",
    parameters: [
      .number("radius", 0.01, .above(0), "length of every step in the norm"),
      .number("alpha", 0.1, .between(0, 1, lowOpen: true, highOpen: false), "weight of the new gradient"),
      .rate("decay", 0, "share of the parameters that goes at every step"),
      .choice("norm", NormDirection.norms, "the norm of a step; auto goes by the rank", live: false),
      .choice("ortho", ["svd", "newton_schulz"], "how U V' is computed"),
      .integer("ns_steps", 5, .within(1, 99), "Newton-Schulz iterations"),
      .list("ns_coefficients", NewtonSchulz.simple, "a, b, c of the polynomial, or three numbers for each iteration"),
      .eps(1e-7, "added to the norm that divides in Newton-Schulz iterations", .above(0)),
      .flag("extrapolate", false, "the gradient is taken at a point ahead of the parameters", live: false),
    ],
    slots: [.moment("momentum_buffer", "the momentum m")], requests: "gradient", needsFinite: true,
    validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "norm_trust_region") })

  private static func ofMatrices(_ h: Hyper) -> Bool {
    !["auto", "l2", "frobenius", "rms", "linf", "sign_scaled"].contains { h.is("norm", $0) }
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
  let norm: String
  init(_ h: Hyper, _ c: StepContext) {
    self.h = h
    take = c.t == 1 ? 1 : h.alpha
    keep = 1 - take
    let word = NormDirection.norms.first { h.is("norm", $0) } ?? "auto"
    norm = word != "auto" ? word : c.ndim >= 2 ? "spectral" : "l2"
  }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let n = w.count, m = w.slots[0], (old, new) = (T(keep), T(take))
    for i in 0..<n {
      m[i] = old * m[i] + new * w.v[i]
      w.v[i] = m[i]
    }
    try NormBall.farthest(w, norm, h.is("ortho", "svd") ? nil : NewtonSchulz(h), 0)
    let radius = T(h.radius as Double), decay = T(h.decay as Double)
    for i in 0..<n { w.v[i] = radius * w.v[i] + decay * w.w[i] }
  }

  static let registered = entry(
    NormTrustRegion.self, source: { (h) throws(Failure) in h.extrapolate ? Extrapolation(h) : nil })

  /// The gradient is taken at θ + ((1 − α)/α)·(θ − θ of the step before).
  struct Extrapolation: Source {
    static var method: Method { NormTrustRegion.method }
    init(_ h: Hyper) {}
    /// Behind the momentum.
    private let last = 1, point = 2
    var slots: [Slot] {
      [
        Slot("last", "the parameters of the step before", start: .iterate()),
        .home("point", "the parameters while they are at the point of the gradient"),
      ]
    }
    var opens: Bool { true }

    private struct Ahead: ElementOperation {
      let size: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = x
        if size != 0 { x = x + size * (x - s[1]) }
      }
    }
    private struct Back: ElementOperation {
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        x = s[0]
        s[1] = s[0]
      }
    }
    func opening(_ io: SourceIO) -> Ask? {
      io.change(slots: [point, last], parameters: true) { Ahead(size: (1 - $0.alpha) / $0.alpha) }
      return nil
    }
    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      io.saveHome()  // of tensors that did not go ahead
      io.change(Back(), slots: [point, last], parameters: true)
      return .update(nil)
    }
  }
}
