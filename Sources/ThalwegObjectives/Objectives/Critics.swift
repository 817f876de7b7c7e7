import ThalwegCore

/// The losses of a Wasserstein critic and of its generator.
///
///     critic      mean D(fake) − mean D(real)     gradients 1/M and −1/N
///     generator   −mean D(fake)
///
/// real (N,) and fake (M,) are what the critic says. The critic must be Lipschitz: `gradient_penalty`, or its weights
/// in `weight_clip`.
/// Errors   TW_ERROR_NEEDS: a critic without `real`.
/// Source   Arjovsky, Chintala, Bottou, 2017, arXiv:1701.07875.
struct WGANLoss: Objective {
  static let method = Method(
    "wgan_loss", .objective, "The losses of a Wasserstein critic and of its generator.",
    rule: "critic: mean D(fake) - mean D(real);  generator: -mean D(fake)",
    source: "Arjovsky, Chintala, Bottou, 2017, arXiv:1701.07875",
    parameters: [.choice("player", ["critic", "generator"], "who minimises")],
    inputs: [
      .variable("fake", "M", "outputs of the critic on generated samples"),
      .variable("real", "N", "outputs of the critic on true samples", optional: true),
    ])
  let generates: Bool
  init(_ h: Hyper) { generates = h.is("player", "generator") }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let fake = try x["fake"], m = x.sizes["M"], n = x.sizes["N"], sign = generates ? -1.0 : 1
    guard let real = x.optional("real") ?? (generates ? fake : nil) else {
      throw Failure(Status.needs, "wgan_loss: the critic needs `real`")
    }
    try cache?.keep("fake", m, T.self).update(repeating: T(sign / Double(m)), count: m)
    if x.optional("real") != nil {
      try cache?.keep("real", n, T.self).update(repeating: generates ? 0 : T(-1 / Double(n)), count: n)
    }
    let mean = Rows.sum(m, work: 1) { Double(fake[$0]) } / Double(m)
    return generates ? -mean : mean - Rows.sum(n, work: 1) { Double(real[$0]) } / Double(n)
  }
}

/// The gradient penalty of a critic: its slope is 1, or at most 1, or small at true samples.
///
///     n_i = |G_i| over all axes but the first;   two_sided: λ·mean (n_i − target)²;
///       one_sided: λ·mean max(n_i − target, 0)²
///     r1: λ/2·mean n_i²
///
/// G (B, ...) are the gradients of the critic by its inputs, at ε·real + (1 − ε)·fake, or at real for r1. The gradient
/// by G is the host's to pull back once more. A G_i of zeros has gradient 0.
/// Source   Gulrajani et al., 2017, arXiv:1704.00028; r1: Mescheder, Geiger, Nowozin, 2018, arXiv:1801.04406.
struct GradientPenalty: Objective {
  static let method = Method(
    "gradient_penalty", .objective, "The gradient penalty of a critic: slopes of length `target`.",
    rule: """
      two_sided: weight*mean (|G_i| - target)^2;  one_sided: weight*mean max(|G_i| - target, 0)^2
      r1: weight/2*mean |G_i|^2
      """,
    source: "Gulrajani et al., 2017, arXiv:1704.00028; Mescheder, Geiger, Nowozin, 2018, arXiv:1801.04406",
    parameters: [
      .number("weight", 10, .atLeast(0), "coefficient (r1: gamma)"),
      .number("target", 1, .atLeast(0), "length that is aimed at"),
      .choice("mode", ["two_sided", "one_sided", "r1"], "what is penalised"),
    ],
    inputs: [.variable("gradients", "B, ...", "gradients of the critic by its inputs")])
  let weight, target: Double, oneSided: Bool, r1: Bool
  init(_ h: Hyper) {
    (weight, target, oneSided, r1) = (h.weight, h.target, h.is("mode", "one_sided"), h.is("mode", "r1"))
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let gradients = try x["gradients"], b = x.sizes["B"], n = x.sizes.samples
    let out = try cache?.keep("gradients", b * n, T.self), share = weight / Double(b)
    return share
      * Rows.sum(b, work: 3 * n) { i in
        let g = gradients + i * n, length = Flat.norm(g, n)
        let excess = oneSided && length < target ? 0 : length - target
        if let out {
          Flat.scale(g, by: r1 ? share : length == 0 ? 0 : 2 * share * excess / length, into: out + i * n, n)
        }
        return r1 ? length * length / 2 : excess * excess
      }
  }
}

/// The nuclear norm of a Jacobian without a Jacobian: for f = g∘h the two halves are kept smooth by denoising.
///
///     value = λ/(2σ²·B)·(Σ|h(x + e) − h(x)|² + Σ|g(z + e') − g(z)|²),   z = h(x), e and e' ~ N(0, σ²·I)
///
/// It estimates λ/2·E(|J_h|² + |J_g|²), whose least value over all factorisations is λ·|J_f|_*.
/// Differs  the default of σ is UNVERIFIED.
/// Source   Scarvelis, Solomon, 2024, arXiv:2405.14544.
struct JacobianNuclear: Objective {
  static let method = Method(
    "jacobian_nuclear", .objective, "The nuclear norm of a Jacobian, by denoising of the two halves of a net.",
    rule: "value = weight/(2*sigma^2*B)*(sum |h_noisy - h|^2 + sum |g_noisy - g|^2)",
    source: "Scarvelis, Solomon, 2024, arXiv:2405.14544",
    parameters: [
      .number("weight", 1, .atLeast(0), "coefficient"), .number("sigma", 0.1, .above(0), "scale of the noise"),
    ],
    inputs: [
      .variable("h", "B, k", "first half at the inputs"), .variable("h_noisy", "B, k", "first half at noisy inputs"),
      .variable("g", "B, m", "second half at z = h"), .variable("g_noisy", "B, m", "second half at noisy z"),
    ])
  let scale: Double
  init(_ h: Hyper) { scale = h.weight / (h.sigma * h.sigma) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = x.sizes["B"], factor = scale / Double(rows)
    var value = 0.0
    for (clean, noisy, axis) in [("h", "h_noisy", "k"), ("g", "g_noisy", "m")] {
      let a = try x[clean], b = try x[noisy], n = rows * x.sizes[axis]
      let down = try cache?.keep(clean, n, T.self), up = try cache?.keep(noisy, n, T.self)
      value += Rows.sum(n, work: 2) { i in
        let d = Double(b[i]) - Double(a[i])
        down?[i] = T(-factor * d)
        up?[i] = T(factor * d)
        return d * d
      }
    }
    return factor / 2 * value
  }
}
