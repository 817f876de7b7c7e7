import ThalwegCore

/// Muon: momentum, orthogonalised by Newton-Schulz iterations, so that every direction of a matrix moves equally far.
///
///     B ← μ·B + g (sum),  or  μ·B + (1 − μ)·g (ema)
///     U = g + μ·B  (nesterov; (1 − μ)·g + μ·B with ema),  or  B
///     O = NewtonSchulz(U as (out, rest))
///     θ ← θ·(1 − lr·wd) − lr·s·O,   s = √max(1, out/in) original, 0.2·√max(out, in) match_rms_adamw, √(out/in)
///     spectral, 1 none
///
/// With `batch_dims`, `split`, `heads` a tensor is several matrices, each with its own O and s.
///
/// State    B.
/// Differs  torch.optim.Muon computes O in bfloat16 (here `ns_precision=bf16`; the default keeps the working precision)
///          and refuses tensors of rank above 2; `out` and `in` are those of the matrix view (the original takes the
///          last two axes of a kernel). The decay uses the unadjusted lr.
/// Source   Jordan et al., 2024; Liu et al., 2025, arXiv:2502.16982; analysis: Kovalev, 2025, arXiv:2503.12645.
struct Muon: InBlocks {
  static let method = Method(
    "muon", .optimizer, "Muon: momentum, orthogonalised by Newton-Schulz iterations.",
    rule: """
      B <- momentum*B + g (sum), or momentum*B + (1 - momentum)*g (ema)
      U = g + momentum*B with nesterov ((1 - momentum)*g in ema), else B;  O = newton_schulz(U as (out, rest))
      theta <- theta*(1 - lr*weight_decay) - lr*s*O
      s = sqrt(max(1, out/in)) original, 0.2*sqrt(max(out, in)) match_rms_adamw, sqrt(out/in) spectral, 1 none
      """,
    source:
      "Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, 2024; Liu et al., 2025, arXiv:2502.16982; Kovalev, "
      + "2025, arXiv:2503.12645",
    parameters: [
      .lr(1e-3), .rate("momentum", 0.95, "rate of the momentum"),
      .flag("nesterov", true, "look ahead along the momentum"),
      .weightDecay(0.1, "decoupled weight decay"),
    ] + NewtonSchulz.parameters() + [
      .eps(1e-7, "floor of the norm that divides", .above(0)),
      .choice("eps_mode", ["clamp", "add"], "divide by max(norm, eps), or by norm + eps"),
      .choice("adjust_lr", ["original", "match_rms_adamw", "spectral", "none"], "the factor s of the shape"),
      .choice("momentum_form", ["sum", "ema"], "the gradient enters the momentum whole, or times 1 - momentum"),
      NewtonSchulz.precision,
    ] + Parameter.blocks,
    slots: [.moment("momentum_buffer", "the momentum B")], needsFinite: true,
    validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "muon") })

  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "muon") }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    NewtonSchulz.space(h, shape.rows, shape.columns, size)
  }

  let schulz: NewtonSchulz
  let momentum: Momentum
  let factor: Double

  init(_ h: Hyper, _ c: StepContext) {
    schulz = NewtonSchulz(h)
    let mu: Double = h.momentum
    momentum = Momentum(mu: mu, new: h.is("momentum_form", "ema") ? 1 - mu : 1, nesterov: h.nesterov)
    let out = Double(c.rows), fanIn = Double(c.columns)
    factor =
      h.is("adjust_lr", "original")
      ? max(1, out / fanIn).squareRoot()
      : h.is("adjust_lr", "match_rms_adamw")
        ? 0.2 * max(out, fanIn).squareRoot()
        : h.is("adjust_lr", "spectral") ? (out / fanIn).squareRoot() : 1
  }

  /// x: the gradient, then U; g: the momentum.
  struct Momentum: ElementOperation {
    let mu, new: Double, nesterov: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      g = mu * g + new * x
      x = nesterov ? new * x + mu * g : g
    }
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    Flat.change(momentum, t.v, t.slots[0], t.count)
    try schulz.apply(t.v, t.rows, t.columns, scale: factor, t.workspace)
  }
}
