import ThalwegCore

/// AdamW: Adam with decoupled weight decay.
///
///     θ ← θ·(1 − lr·wd), then Adam's step; with `amsgrad` the largest v so far divides (taken before the bias
///     correction).
///
/// State    m, v; v_max with amsgrad.
/// Differs  nothing from torch.optim.AdamW. A step from g = 0, v = 0 with ε = 0 is 0.
/// Source   Loshchilov and Hutter, 2017, arXiv:1711.05101.
struct AdamW: ElementRule {
  static let method = Method(
    "adamw", .optimizer, "AdamW: Adam with decoupled weight decay.",
    rule: """
      theta <- theta*(1 - lr*weight_decay)
      m <- beta1*m + (1 - beta1)*g;  v <- beta2*v + (1 - beta2)*g^2
      amsgrad: v_max <- max(v_max, v), used in place of v
      theta <- theta - lr * (m/c1) / (sqrt(v/c2) + eps)
      """,
    source: "Loshchilov, Hutter, 2017, arXiv:1711.05101",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8),
      .weightDecay(1e-2, "decoupled weight decay"),
      .flag("amsgrad", false, "divide by the largest second moment so far", live: false),
    ],
    slots: Adam.moments)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { Adam.moments + (h.amsgrad ? [AMSGrad.largest] : []) }
  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2, eps, r1, r2: Double
  let amsgrad: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, amsgrad) = (h.beta1, h.beta2, h.eps, h.amsgrad)
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    var v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = m
    s[1] = v
    if amsgrad {
      v = L.max(s[2], v)
      s[2] = v
    }
    return ((v * r2).squareRoot() + eps).divide(m * r1)
  }
}

/// AMSGrad: Adam whose second moment never decreases.
///
///     v_max ← max(v_max, v);  θ ← θ − lr · (m/c₁) / (√(v_max/c₂) + ε)
///
/// State    m, v, v_max.
/// Differs  nothing from torch.optim.Adam(amsgrad=True); optax takes the maximum after the bias correction. A NaN in v
///          stays.
/// Source   Reddi, Kale and Kumar, 2018.
struct AMSGrad: ElementRule {
  static let largest = Slot.square("max_exp_avg_sq", "largest second moment so far")
  static let method = Method(
    "amsgrad", .optimizer, "AMSGrad: Adam whose second moment never decreases.",
    rule: """
      m, v as adam;  v_max <- max(v_max, v)
      theta <- theta - lr * (m/c1) / (sqrt(v_max/c2) + eps)
      """,
    source: "Reddi, Kale, Kumar, 2018, arXiv:1904.09237", parameters: Adam.parameters, slots: Adam.moments + [largest])

  static func decay(_ h: Hyper) -> Decay { .coupled }

  let beta1, beta2, eps, r1, r2: Double
  let epsInside: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let adam = Adam(h, c)
    (beta1, beta2, eps, r1, r2, epsInside) = (adam.beta1, adam.beta2, adam.eps, adam.r1, adam.r2, adam.epsInside)
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    let top = L.max(s[2], v)
    s[0] = m
    s[1] = v
    s[2] = top
    let root = epsInside ? (top * r2 + eps).squareRoot() : (top * r2).squareRoot() + eps
    return root.divide(m * r1)
  }
}
