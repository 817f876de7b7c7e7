import ThalwegCore

/// AdaMuon: Muon with Adam's second moment on the orthogonalised direction.
///
///     M ← μ·M + (1 − μ)·g;   U = (1 − μ)·g + μ·M (nesterov), or M;   O = NewtonSchulz(sign(U)), or of U
///     v ← β₂·v + (1 − β₂)·O²;   W = O/(√(v/c₂) + ε) (c₂ = 1 without bias correction)
///     θ ← θ·(1 − lr·wd) − lr·W·rms·√n/(‖W‖ + ε),   n elements
///
/// State    M, v.
/// Differs  sign and β₂ = μ are the later version of the paper; `sign=false, beta2=0.999` the first code. The bias
///          correction changes the weight of ε alone. 0/0 is 0.
/// Source   Si, Zhang and Shen, 2025, arXiv:2507.11005.
struct AdaMuon: InBlocks {
  static let method = Method(
    "adamuon", .optimizer, "Muon with Adam's second moment on the orthogonalised direction.",
    rule: """
      M <- momentum*M + (1 - momentum)*g;  U = (1 - momentum)*g + momentum*M with nesterov, else M
      O = newton_schulz(sign(U)), or of U;  v <- beta2*v + (1 - beta2)*O^2;  W = O/(sqrt(v/c2) + eps)
      theta <- theta*(1 - lr*weight_decay) - lr*W*rms*sqrt(n)/(|W| + eps), n elements
      """,
    source: "Si, Zhang, Shen, 2025, arXiv:2507.11005",
    parameters: [
      .lr(0.02), .rate("momentum", 0.95, "rate of the momentum"), .rate("beta2", 0.95, "rate of the second moment"),
      .flag("nesterov", true, "look ahead along the momentum"), .flag("sign", true, "orthogonalise the signs"),
      .weightDecay(0.01, "decoupled weight decay"), .eps(1e-8, "in both denominators"),
      .flag("bias_correction", false, "divide the second moment by 1 - beta2^t"),
      .number("rms", 0.2, .above(0), "root mean square of the step, over lr"),
    ] + NewtonSchulz.parameters() + [
      .number("ns_eps", 1e-7, .above(0), "floor of the norm that divides in the iteration"), NewtonSchulz.precision,
    ] + Parameter.blocks,
    slots: [.moment("momentum_buffer", "the momentum M"), .square("exp_avg_sq", "second moment v of the direction")],
    needsFinite: true, validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "adamuon") })

  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "adamuon") }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    NewtonSchulz.space(h, shape.rows, shape.columns, size)
  }

  let schulz: NewtonSchulz
  let momentum: Muon.Momentum
  let second: Second
  let rms, eps: Double
  let signs: Bool

  init(_ h: Hyper, _ c: StepContext) {
    schulz = NewtonSchulz(h, eps: h.ns_eps, clamp: true)
    let mu: Double = h.momentum, beta2: Double = h.beta2
    momentum = Muon.Momentum(mu: mu, new: 1 - mu, nesterov: h.nesterov)
    second = Second(beta2: beta2, r2: h.bias_correction ? 1 / (1 - power(beta2, c.t)) : 1, eps: h.eps)
    (rms, eps, signs) = (h.rms, h.eps, h.sign)
  }

  /// x: O, then W; g: v.
  struct Second: ElementOperation {
    let beta2, r2, eps: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      g = beta2 * g + (1 - beta2) * (x * x)
      x = ((g * r2).squareRoot() + eps).divide(x)
    }
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    Flat.change(momentum, t.v, t.slots[0], t.count)
    if signs { for i in 0..<t.count { t.v[i] = t.v[i] > 0 ? 1 : t.v[i] < 0 ? -1 : 0 } }
    try schulz.apply(t.v, t.rows, t.columns, scale: 1, t.workspace)
    Flat.change(second, t.v, t.slots[1], t.count)
    let size = Flat.norm(t.v, t.count) + eps
    Flat.scale(t.v, by: size == 0 ? 0 : rms * Double(t.count).squareRoot() / size, into: t.v, t.count)
  }
}
