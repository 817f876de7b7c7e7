import Glibc
import ThalwegCore

/// Squared error.
///
///     value = mean (p − t)²     ∂p = 2·(p − t)/N
///
/// Differs  torch's mse_loss is the same; optax.l2_loss has a factor of one half.
struct MSE: Objective {
  static let method = Method(
    "mse", .objective, "Squared error.", rule: "value = mean (p - t)^2;  gradient for p: 2*(p - t)/N",
    source: "Legendre, 1805", parameters: [Reduction.parameter], inputs: residualInputs)
  let reduction: Reduction
  init(_ h: Hyper) { reduction = Reduction(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let p = try x["p"], t = try x["t"], n = x.sizes.samples
    return reduction.elements(n, into: try cache?.keep("p", n, T.self)) { i in
      let d = Double(p[i]) - Double(t[i])
      return (d * d, 2 * d)
    }
  }
}

private let residualInputs: [Input] = [.variable("p", "...", "predictions"), .constant("t", "...", "targets")]

/// Huber loss: squared error near the target, absolute error far from it.
///
///     d = p − t     value = mean d²/2 where |d| ≤ δ, else δ·(|d| − δ/2)     ∂p = clip(d, −δ, δ)/N
///
/// Differs  torch's huber_loss is the same; its smooth_l1_loss(beta) is huber(beta)/beta.
/// Source   Huber, 1964.
struct Huber: Objective {
  static let method = Method(
    "huber", .objective, "Squared error near the target, absolute error far from it.",
    rule: """
      d = p - t;  value = mean d^2/2 where |d| <= delta, else delta*(|d| - delta/2)
      gradient for p: clip(d, -delta, delta)/N
      """,
    source: "Huber, 1964",
    parameters: [
      .number("delta", 1, .above(0), "half-width of the quadratic zone").orInfinite(), Reduction.parameter,
    ], inputs: residualInputs)
  let delta: Double, reduction: Reduction
  init(_ h: Hyper) { (delta, reduction) = (h.delta, Reduction(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let p = try x["p"], t = try x["t"], n = x.sizes.samples
    return reduction.elements(n, into: try cache?.keep("p", n, T.self)) { i in
      huber(Double(p[i]) - Double(t[i]), delta)
    }
  }
}

/// The Huber function and its derivative.
private func huber(_ d: Double, _ delta: Double) -> (value: Double, slope: Double) {
  abs(d) > delta ? (delta * (abs(d) - delta / 2), d > 0 ? delta : -delta) : (d * d / 2, d)
}

/// The pinball loss of a quantile, also with Huber's rounding at zero.
///
///     u = t − p, w = τ where u ≥ 0, else 1 − τ     value = mean w·|u|, or w·H_κ(u)/κ     ∂p = −w·sign(u)/N
///
/// Differs  scikit-learn's mean_pinball_loss is κ = 0; quantile regression of returns uses κ = 1.
/// Source   Koenker and Bassett, 1978; Dabney et al., 2017, arXiv:1710.10044.
struct Quantile: Objective {
  static let method = Method(
    "quantile", .objective, "The pinball loss of a quantile, also rounded at zero.",
    rule: """
      u = t - p, w = tau where u >= 0, else 1 - tau;  value = mean w*|u|, or w*huber(u, kappa)/kappa
      gradient for p: -w*sign(u)/N, or -w*clip(u, -kappa, kappa)/(kappa*N)
      """,
    source: "Koenker, Bassett, 1978; Dabney et al., 2017, arXiv:1710.10044",
    parameters: [
      .number("tau", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "quantile"),
      .number("kappa", 0, .atLeast(0), "half-width of the quadratic zone; 0: none"), Reduction.parameter,
    ], inputs: residualInputs)
  let tau: Double, kappa: Double, reduction: Reduction
  init(_ h: Hyper) { (tau, kappa, reduction) = (h.tau, h.kappa, Reduction(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let p = try x["p"], t = try x["t"], n = x.sizes.samples
    return reduction.elements(n, into: try cache?.keep("p", n, T.self)) { i in
      let u = Double(t[i]) - Double(p[i]), w = u >= 0 ? tau : 1 - tau
      if kappa == 0 { return (w * abs(u), -w * sign(u)) }
      let (value, slope) = huber(u, kappa)
      return (w * value / kappa, -w * slope / kappa)
    }
  }
}

/// The likelihood of a Gaussian whose variance is predicted too.
///
///     v = max(variance, ε)     value = mean ½·(log v + (m − t)²/v), with `full` + ½·log 2π
///     ∂m = (m − t)/(v·N)     ∂variance = ½·(1/v − (m − t)²/v²)/N
///
/// The derivative passes through the floor unchanged.
/// Errors   TW_ERROR_RANGE: a variance below 0.
/// Differs  torch's gaussian_nll_loss is the same.
/// Source   Nix and Weigend, 1994.
struct GaussianNLL: Objective {
  static let method = Method(
    "gaussian_nll", .objective, "The likelihood of a Gaussian whose variance is predicted too.",
    rule: """
      v = max(var, eps);  value = mean (log v + (m - t)^2/v)/2, with full + log(2 pi)/2
      gradients for m: (m - t)/(v*N);  for var: (1/v - (m - t)^2/v^2)/(2*N)
      """,
    source: "Nix, Weigend, 1994",
    parameters: [
      .number("eps", 1e-6, .above(0), "smallest variance"), .flag("full", false, "add the constant log(2 pi)/2"),
      Reduction.parameter,
    ],
    inputs: [
      .variable("m", "...", "predicted means"), .variable("var", "...", "predicted variances"),
      .constant("t", "...", "targets"),
    ])
  let eps: Double, constant: Double, reduction: Reduction
  init(_ h: Hyper) {
    let full: Bool = h.full
    (eps, constant, reduction) = (h.eps, full ? log(2 * Double.pi) / 2 : 0, Reduction(h))
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let m = try x["m"], variance = try x["var"], t = try x["t"], n = x.sizes.samples
    for i in 0..<n where variance[i] < 0 {
      throw Failure(Status.range, "`var` must be at least 0, got \(text(Double(variance[i]))) at element \(i)")
    }
    let dm = try cache?.keep("m", n, T.self), weight = reduction.weight(n)
    return reduction.elements(n, into: try cache?.keep("var", n, T.self)) { i in
      let v = larger(Double(variance[i]), eps), d = Double(m[i]) - Double(t[i])
      dm?[i] = T(weight * d / v)
      return ((log(v) + d * d / v) / 2 + constant, (1 - d * d / v) / v / 2)
    }
  }
}

/// The likelihood of counts under predicted logarithms of rates.
///
///     value = mean (eᶻ − t·z)     ∂z = (eᶻ − t)/N
///
/// Differs  torch's poisson_nll_loss with log_input and without `full` is the same.
struct PoissonNLL: Objective {
  static let method = Method(
    "poisson_nll", .objective, "The likelihood of counts under predicted logarithms of rates.",
    rule: "value = mean (exp(z) - t*z);  gradient for z: (exp(z) - t)/N", source: "folklore",
    parameters: [Reduction.parameter],
    inputs: [.variable("z", "...", "logarithms of the rates"), .constant("t", "...", "counts")])
  let reduction: Reduction
  init(_ h: Hyper) { reduction = Reduction(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], t = try x["t"], n = x.sizes.samples
    return reduction.elements(n, into: try cache?.keep("z", n, T.self)) { i in
      let rate = exp(Double(z[i]))
      return (rate - Double(t[i]) * Double(z[i]), rate - Double(t[i]))
    }
  }
}

/// A flooded loss: below the level b it is driven up again.
///
///     value = |L − b| + b     ∂L = sign(L − b), sign(0) = 0
///
/// `loss` is the loss of a minibatch, or those of its samples: L is their mean, or each of them (`per_sample`).
/// Source   Ishida et al., 2020, arXiv:2002.08709.
struct Flooding: Objective {
  static let method = Method(
    "flooding", .objective, "A loss that is driven up again below a level.",
    rule: "value = |L - b| + b;  gradient for L: sign(L - b)", source: "Ishida et al., 2020, arXiv:2002.08709",
    parameters: [
      .number("b", 0, .atLeast(0), "flood level"), .flag("per_sample", false, "flood every sample, not their mean"),
    ], inputs: [.variable("loss", "...", "loss of a minibatch, or losses of its samples")])
  let b: Double, each: Bool
  init(_ h: Hyper) { (b, each) = (h.b, h.per_sample) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let loss = try x["loss"], n = x.sizes.samples, weight = 1 / Double(n)
    let mean = weight * Rows.sum(n, work: 1) { Double(loss[$0]) }
    let g = try cache?.keep("loss", n, T.self)
    let value = Rows.sum(n, work: 1) { i in
      let d = (each ? Double(loss[i]) : mean) - b
      g?[i] = T(weight * sign(d))
      return weight * abs(d)
    }
    return value + b
  }
}
