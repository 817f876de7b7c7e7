import Glibc
import ThalwegCore

/// PolarGrad: the polar factor of the momentum times a power of its nuclear norm.
///
///     M ← μ·M + (1 − μ)·g;   U = M, or (1 − μ)·g + μ·M with nesterov
///     ns: O = NewtonSchulz(U), ν = ⟨O, U⟩;   exact: O the polar factor, ν = ‖U‖_* (the sum of singular values)
///     θ ← θ·(1 − lr·wd) − lr·ν^α·O
///
/// State    M.
/// Differs  singular values below the largest times max(out, in)·ulp count as 0 in the exact form. α = 0 is Muon
///          without a factor of the shape. The ns estimate of ν is off by the error of O.
/// Source   Lau, Long and Su, 2025, arXiv:2505.21799.
struct PolarGrad: InBlocks {
  static let method = Method(
    "polargrad", .optimizer, "The polar factor of the momentum times a power of its nuclear norm.",
    rule: """
      M <- momentum*M + (1 - momentum)*g;  U = M, or (1 - momentum)*g + momentum*M with nesterov
      ns: O = newton_schulz(U), nu = <O, U>;  exact: O = polar factor of U, nu = sum of its singular values
      theta <- theta*(1 - lr*weight_decay) - lr*nu^alpha*O
      """,
    source: "Lau, Long, Su, 2025, arXiv:2505.21799",
    parameters: [
      .lr(3e-4), .rate("momentum", 0.95, "rate of the momentum"),
      .flag("nesterov", false, "look ahead along the momentum"), .weightDecay(0.01, "decoupled weight decay"),
      .choice("form", ["ns", "exact"], "Newton-Schulz, or the singular value decomposition", live: false),
      .number("alpha", 1, .atLeast(0), "power of the nuclear norm"),
    ] + NewtonSchulz.parameters("quintic") + [
      .number("ns_eps", 1e-15, .above(0), "floor of the norm that divides in the iteration"), NewtonSchulz.precision,
    ] + Parameter.blocks,
    slots: [.moment("momentum_buffer", "the momentum M")], needsFinite: true,
    validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "polargrad") })

  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "polargrad") }
  static func mayFail(_ h: Hyper) -> Bool { h.is("form", "exact") }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    aligned(shape.count &* size) + NewtonSchulz.space(h, shape.rows, shape.columns, size)
  }

  let schulz: NewtonSchulz
  let momentum: Muon.Momentum
  let alpha: Double
  let exact: Bool

  init(_ h: Hyper, _ c: StepContext) {
    schulz = NewtonSchulz(h, eps: h.ns_eps, clamp: true)
    let mu: Double = h.momentum
    momentum = Muon.Momentum(mu: mu, new: 1 - mu, nesterov: h.nesterov)
    (alpha, exact) = (h.alpha, h.is("form", "exact"))
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    Flat.change(momentum, t.v, t.slots[0], t.count)
    if exact {
      let svd = try LinearAlgebra.SVD(t.v, t.rows, t.columns)
      let floor = (svd.s.first ?? 0) * Double(max(t.rows, t.columns)) * Double(T.ulpOfOne)
      let scale = pow(svd.s.reduce(0, +), alpha)
      return try svd.compose(t.v) { $0 > floor ? scale : 0 }
    }
    let u = t.workspace.assumingMemoryBound(to: T.self)
    u.update(from: t.v, count: t.count)
    try schulz.apply(
      t.v, t.rows, t.columns, scale: 1, t.workspace + aligned(t.count * MemoryLayout<T>.stride))
    Flat.scale(t.v, by: pow(max(0, Flat.dot(t.v, u, t.count)), alpha), into: t.v, t.count)
  }
}
