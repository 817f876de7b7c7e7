import ThalwegCore

/// NorMuon: Muon whose orthogonalised direction is divided by a second moment of every row.
///
///     M ← μ·M + (1 − μ)·g;   U = (1 − μ)·g + μ·M (nesterov), or M;   O = NewtonSchulz(U as (out, rest))
///     v ← β₂·v + (1 − β₂)·mean(O²) of every row;   W = O/(√v + ε), or O/√max(v, ε)
///     preserve_norm:  W ← W·‖O‖/(‖W‖ + ε), s the factor of the shape
///     match_rms:      W ← W·0.2·√(out·in)/(‖W‖ + ε), s = 1
///     θ ← θ·(1 − lr·wd) − lr·s·W
///
/// State    M; v, one number a row (axis=long: a column of a wide matrix).
/// Differs  kernels are matrices (out, rest), where the authors average over the last axis alone. 0/0 is 0. v is not
///          bias corrected, which the rescaling takes out but for ε.
/// Source   Li, Liu, Liang, Chen and Zhao, 2025, arXiv:2510.05491.
struct NorMuon: InBlocks {
  static let method = Method(
    "normuon", .optimizer, "Muon whose orthogonalised direction is divided by a second moment of every row.",
    rule: """
      M <- momentum*M + (1 - momentum)*g;  U = (1 - momentum)*g + momentum*M with nesterov, else M
      O = newton_schulz(U as (out, rest));  v <- beta2*v + (1 - beta2)*mean(O^2) of every row;  W = O/(sqrt(v) + eps)
      preserve_norm: W <- W*|O|/(|W| + eps), s as muon;  match_rms: W <- W*0.2*sqrt(out*in)/(|W| + eps), s = 1
      theta <- theta*(1 - lr*weight_decay) - lr*s*W
      """,
    source: "Li, Liu, Liang, Chen, Zhao, 2025, arXiv:2510.05491",
    parameters: [
      .lr(0.02), .rate("momentum", 0.95, "rate of the momentum"), .rate("beta2", 0.95, "rate of the second moment"),
      .flag("nesterov", true, "look ahead along the momentum"), .weightDecay(0, "decoupled weight decay"),
    ] + NewtonSchulz.parameters() + [
      .number("ns_eps", 1e-7, .above(0), "floor of the norm that divides in the iteration"),
      .eps(1e-10, "in both denominators"),
      .choice("eps_at", ["root", "floor"], "added to the root, or floor of v"),
      .choice("axis", ["row", "long"], "what has a second moment: rows, or the lines of the longer side", live: false),
      .choice("rescale", ["preserve_norm", "match_rms"], "the norm of the step"),
      .choice("adjust_lr", ShapeFactor.words, "the factor of the shape, with preserve_norm"), NewtonSchulz.precision,
    ] + Parameter.blocks,
    slots: [
      .moment("momentum_buffer", "the momentum M"), Slot("second_momentum", "second moment v of the lines"),
    ], needsFinite: true, validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "normuon") })

  private static func byColumn(_ h: Hyper, _ shape: Shape) -> Bool {
    h.is("axis", "long") && shape.rows < shape.columns
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var second = method.slots[1]
    second.count = byColumn(h, shape) ? shape.columns : shape.rows
    return [method.slots[0], second]
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "normuon") }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    NewtonSchulz.space(h, shape.rows, shape.columns, size)
  }

  let schulz: NewtonSchulz
  let momentum: Muon.Momentum
  let beta2, eps, factor: Double
  let floors, preserves: Bool
  let h: Hyper

  init(_ h: Hyper, _ c: StepContext) {
    schulz = NewtonSchulz(h, eps: h.ns_eps, clamp: true)
    let mu: Double = h.momentum
    momentum = Muon.Momentum(mu: mu, new: 1 - mu, nesterov: h.nesterov)
    (beta2, eps, self.h) = (h.beta2, h.eps, h)
    (floors, preserves) = (h.is("eps_at", "floor"), h.is("rescale", "preserve_norm"))
    factor = ShapeFactor.of(h, c.rows, c.columns)
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    Flat.change(momentum, t.v, t.slots[0], t.count)
    try schulz.apply(t.v, t.rows, t.columns, scale: 1, t.workspace)
    let norm = Flat.norm(t.v, t.count)
    let lines = NorMuon.byColumn(h, t.shape) ? Slices.columns(t.shape) : Slices.rows(t.shape)
    var factors = [Double](repeating: 0, count: lines.count)
    for s in 0..<lines.count {
      let first = t.v + lines.start(s)
      var square = 0.0
      for k in 0..<lines.length { square += Double(first[k * lines.inner]) * Double(first[k * lines.inner]) }
      let v = beta2 * Double(t.slots[1][s]) + (1 - beta2) * square / Double(max(1, lines.length))
      t.slots[1][s] = T(v)
      let root = floors ? max(v, eps).squareRoot() : v.squareRoot() + eps
      factors[s] = root == 0 ? 0 : 1 / root
    }
    lines.scale(t.v, by: factors)
    let size = Flat.norm(t.v, t.count) + eps
    let target = preserves ? norm * factor : 0.2 * (Double(t.rows) * Double(t.columns)).squareRoot()
    Flat.scale(t.v, by: size == 0 ? 0 : target / size, into: t.v, t.count)
  }
}

/// The factor of a step that goes with the shape (out, in) of a matrix.
enum ShapeFactor {
  static let words = ["original", "match_rms_adamw", "spectral", "max", "none"]
  static func of(_ h: Hyper, _ rows: Int, _ columns: Int) -> Double {
    let out = Double(rows), fanIn = Double(columns)
    if h.is("adjust_lr", "original") { return max(1, out / fanIn).squareRoot() }
    if h.is("adjust_lr", "match_rms_adamw") { return 0.2 * max(out, fanIn).squareRoot() }
    if h.is("adjust_lr", "spectral") { return (out / fanIn).squareRoot() }
    return h.is("adjust_lr", "max") ? max(out, fanIn).squareRoot() : 1
  }
}
