import ThalwegCore

/// Adam with an arctangent in place of the division: no ε, and no effect of the scale of the gradients.
///
///     m, v as Adam;   u = a·atan2(m/c₁, b·√(v/c₂));   θ ← θ·(1 − lr·wd) − lr·u
///     regenerate:  θ ← θ + lr·regenerate·(θ₀ − θ) − lr·u
///
/// State    m, v; θ₀ with `regenerate`.
/// Differs  nothing from adam-atan2-pytorch. atan2(0, 0) is 0; where v has underflowed the direction is ±a·π/2;
///          infinite m and v give a·π/4. θ₀ is taken anew where the host writes the parameters.
/// Source   Everett et al., 2024, arXiv:2407.05872.
struct AdamAtan2: ElementRule {
  static let method = Method(
    "adam_atan2", .optimizer, "Adam with an arctangent in place of the division, so that the scale drops out.",
    rule: """
      m, v as adam;  u = a*atan2(m/c1, b*sqrt(v/c2));  theta <- theta*(1 - lr*weight_decay) - lr*u
      regenerate: theta <- theta + lr*regenerate*(theta_0 - theta) - lr*u
      """,
    source: "Everett et al., 2024, arXiv:2407.05872",
    parameters: [
      .lr(1e-4), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.99, "rate of the second moment"),
      .number("a", 1.27, .above(0), "factor of the arctangent; 4/pi makes a ratio of 1 a step of lr"),
      .number("b", 1, .above(0), "factor of the denominator"),
      .weightDecay(0, "decoupled weight decay"),
      .number("regenerate", 0, .atLeast(0), "pull towards the first parameters, in place of a decay").fixed,
    ],
    slots: Adam.moments + [DoG.origin],
    validate: { (h) throws(Failure) in
      let decay: Double = h.weight_decay, pull: Double = h.regenerate
      if decay != 0, pull != 0 {
        throw Failure(
          Status.range,
          "adam_atan2: `weight_decay` and `regenerate` exclude each other, got \(text(decay)) and \(text(pull))")
      }
    })

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let pull: Double = h.regenerate
    return pull > 0 ? method.slots : Adam.moments
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2, r1, r2, a, b, pull: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, a, b, pull) = (h.beta1, h.beta2, h.a, h.b, h.regenerate)
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    let v = beta2 * s[1] + (1 - beta2) * (g * g)
    s[0] = m
    s[1] = v
    let u = a * L.arctangent(m * r1, over: b * (v * r2).squareRoot())
    return pull > 0 ? u - pull * (s[2] - x) : u
  }
}

extension Lane {
  /// The angle of (x, y) for x ≥ 0, to some two units in the last place; 0 for (0, 0), ±π/4 for infinite x and y.
  @inline(__always) static func arctangent(_ y: Self, over x: Self) -> Self {
    let zero = Self(0), one = Self(1), h = y.magnitude
    // the smaller over the larger, in [0, 1]; where that is high atan r = π/4 + atan((r − 1)/(r + 1))
    let small = min(h, x), large = max(h, x), high = less((width == 16 ? 0.41421356 : 0.66) * large, small)
    let quarter = Self(Double.pi / 4), none = equal(large, zero), same = equal(small, large)
    let above = select(same, zero, select(high, small - large, small))
    let r = above / select(high, small + large, select(none, one, large))
    let turn = select(same, select(none, zero, quarter), select(high, quarter, zero))  // infinite ones are the same
    let angle = arctangent(r) + turn
    return select(less(x, h), Self(Double.pi / 2) - angle, angle) * y.sign
  }
  /// atan r by functions of Cephes: a polynomial for floats of |r| ≤ √2 − 1, a rational function for doubles of
  /// |r| ≤ 0.66.
  @inline(__always) private static func arctangent(_ r: Self) -> Self {
    let z = r * r
    if width == 16 {
      var p = Self(8.05374449538e-2)
      p = p * z - 1.38776856032e-1
      p = p * z + 1.99777106478e-1
      p = p * z - 3.33329491539e-1
      return r + r * (z * p)
    }
    var p = Self(-8.750608600031904122785e-1)
    p = p * z - 1.615753718733365076637e1
    p = p * z - 7.500855792314704667340e1
    p = p * z - 1.228866684490136173410e2
    p = p * z - 6.485021904942025371773e1
    var q = z + 2.485846490142306297962e1
    q = q * z + 1.650270098316988542046e2
    q = q * z + 4.328810604912902668951e2
    q = q * z + 4.853903996359136964868e2
    q = q * z + 1.945506571482613964425e2
    return r + r * (z * p / q)
  }
}
