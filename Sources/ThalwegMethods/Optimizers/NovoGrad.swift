import ThalwegCore

/// NovoGrad: one second moment a tensor, and momentum of the normalised gradient.
///
///     v ← ‖g‖² at first, then β₂·v + (1 − β₂)·‖g‖²;   u = g/(√v + ε) + wd·θ
///     m ← β₁·m + u,  or β₁·m + (1 − β₁)·u with grad_averaging;   θ ← θ − lr·m
///
/// State    m; v (and the largest v with amsgrad), a number for each tensor.
/// Differs  `init=first` takes ‖g‖² at step 1, as optax; `init=zero` whenever v is 0, as NVIDIA's. No bias correction.
/// Source   Ginsburg et al., 2019, arXiv:1905.11286.
struct NovoGrad: ElementRule {
  static let method = Method(
    "novograd", .optimizer, "One second moment a tensor, and momentum of the normalised gradient.",
    rule: """
      v <- |g|^2 at first, then beta2*v + (1 - beta2)*|g|^2, per tensor;  amsgrad: the largest v so far divides
      u = g/(sqrt(v) + eps) + weight_decay*theta (decoupled: without the decay)
      m <- beta1*m + u, or beta1*m + (1 - beta1)*u with grad_averaging;  theta <- theta - lr*m
      """,
    source: "Ginsburg et al., 2019, arXiv:1905.11286",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.95, "rate of the first moment"), .rate("beta2", 0.98, "rate of the second moment"),
      .eps(1e-8), .weightDecay(0, "decay, in the normalised gradient"),
      .flag("decoupled", false, "decay is decoupled", live: false),
      .flag("grad_averaging", false, "the gradient enters m times 1 - beta1"),
      .flag("amsgrad", false, "divide by the largest second moment so far", live: false),
      .choice("init", ["first", "zero"], "v is the first square at step 1, or whenever v is 0"),
    ],
    slots: [.moment("exp_avg", "momentum m")])

  static func decay(_ h: Hyper) -> Decay { h.decoupled ? .decoupled : .rule }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("exp_avg_sq")] + (h.amsgrad ? [Scalar("max_exp_avg_sq")] : [])
  }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let n = Squares(totals, 0), beta2: Double = h.beta2
    let first = h.is("init", "first") ? c.t == 1 : s[0] == 0
    var v = n
    if !first {
      v = Squares(0)
      v.add(Squares(s[0]), times: beta2.squareRoot())
      v.add(n, times: (1 - beta2).squareRoot())
    }
    s[0] = v.number
    if h.amsgrad, Squares(s[1]) < v { s[1] = v.number }
  }

  let beta1, take, root, decay: Double

  init(_ h: Hyper, _ c: StepContext) {
    beta1 = h.beta1
    take = h.grad_averaging ? 1 - beta1 : 1
    root = Squares(c.scalars[h.amsgrad ? 1 : 0]).root + h.eps
    decay = h.decoupled ? 0 : c.weightDecay
  }

  @inline(__always) func squares(_ phase: Int) -> Bool { true }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    var u = root == 0 ? g : g / root
    if decay != 0 { u = u + decay * x }
    let m = beta1 * s[0] + take * u
    s[0] = m
    return m
  }
}
