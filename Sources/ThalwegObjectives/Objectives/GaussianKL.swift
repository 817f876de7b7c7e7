import Glibc
import ThalwegCore

/// The divergence of diagonal Gaussians from a prior, over rows.
private struct Divergence {
  let n: Int, d: Int

  /// KL of one element, and its derivatives by mean and logarithm of variance.
  func element(_ m: Double, _ lv: Double, _ pm: Double, _ plv: Double) -> (value: Double, m: Double, lv: Double) {
    let ratio = exp(lv - plv), apart = (m - pm) * exp(-plv)
    return ((ratio + (m - pm) * apart - 1 - lv + plv) / 2, apart, (ratio - 1) / 2)
  }

  /// The mean over rows, times `weight`; the gradients are added to gm and gl.
  func standard<T: Real>(
    _ m: UnsafePointer<T>, _ lv: UnsafePointer<T>, _ weight: Double, _ gm: UnsafeMutablePointer<T>?,
    _ gl: UnsafeMutablePointer<T>?
  ) -> Double {
    let scale = weight / Double(n)
    return scale
      * Rows.sum(n, work: 16 * d) { i in
        var sum = 0.0
        for k in (i * d)..<((i + 1) * d) {
          let e = element(Double(m[k]), Double(lv[k]), 0, 0)
          sum += e.value
          gm?[k] += T(scale * e.m)
          gl?[k] += T(scale * e.lv)
        }
        return sum
      }
  }
}

/// The divergence of Gaussians with diagonal covariances from a prior.
///
///     value = mean over rows of ½·Σ [e^{l − l_p} + (m − m_p)²·e^{−l_p} − 1 − l + l_p]
///
/// mean and log_var are (n, d); without prior_mean and prior_log_var the prior is N(0, 1).
/// Source   Kingma and Welling, 2013, arXiv:1312.6114.
struct GaussianKL: Objective {
  static let method = Method(
    "gaussian_kl", .objective, "The divergence of Gaussians with diagonal covariances from a prior.",
    rule: """
      value = mean over rows of sum (exp(l - lp) + (m - mp)^2*exp(-lp) - 1 - l + lp)/2
      gradients for m: (m - mp)*exp(-lp)/n;  for l: (exp(l - lp) - 1)/(2*n)
      """,
    source: "Kingma, Welling, 2013, arXiv:1312.6114", parameters: [Reduction.parameter],
    inputs: [
      .variable("mean", "n, d", "means"), .variable("log_var", "n, d", "logarithms of the variances"),
      .constant("prior_mean", "n, d", "means of the prior; none: 0", optional: true),
      .constant("prior_log_var", "n, d", "logarithms of its variances; none: 0", optional: true),
    ])
  let reduction: Reduction
  init(_ h: Hyper) { reduction = Reduction(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let m = try x["mean"], lv = try x["log_var"], pm = x.optional("prior_mean"), pl = x.optional("prior_log_var")
    let n = x.sizes["n"], d = x.sizes["d"], rule = Divergence(n: n, d: d), weight = reduction.weight(n)
    let gm = try cache?.keep("mean", n * d, T.self), gl = try cache?.keep("log_var", n * d, T.self)
    return weight
      * Rows.sum(n, work: 16 * d) { i in
        var sum = 0.0
        for k in (i * d)..<((i + 1) * d) {
          let e = rule.element(
            Double(m[k]), Double(lv[k]), pm.map { Double($0[k]) } ?? 0, pl.map { Double($0[k]) } ?? 0)
          sum += e.value
          gm?[k] = T(weight * e.m)
          gl?[k] = T(weight * e.lv)
        }
        return sum
      }
  }
}

/// The divergence of one Gaussian with a full covariance from another.
///
///     value = ½·[tr(S₁⁻¹S₀) + (m₀ − m₁)ᵀS₁⁻¹(m₀ − m₁) − k + log det S₁ − log det S₀]
///     ∂m₀ = S₁⁻¹(m₀ − m₁)     ∂S₀ = ½·(S₁⁻¹ − S₀⁻¹)
///
/// m0 and m1 are (k,), s0 and s1 are (k, k); the symmetric parts of s0 and s1 count.
/// Errors   TW_ERROR_NUMERIC: a covariance that is not positive definite.
/// Source   Kullback and Leibler, 1951.
struct GaussianKLFull: Objective {
  static let method = Method(
    "gaussian_kl_full", .objective, "The divergence of one Gaussian with a full covariance from another.",
    rule: """
      value = (tr(S1^-1 S0) + (m0 - m1)' S1^-1 (m0 - m1) - k + log det S1 - log det S0)/2
      gradients for m0: S1^-1 (m0 - m1);  for s0: (S1^-1 - S0^-1)/2
      """,
    source: "Kullback, Leibler, 1951",
    inputs: [
      .variable("m0", "k", "mean"), .variable("s0", "k, k", "covariance"), .constant("m1", "k", "mean of the prior"),
      .constant("s1", "k, k", "covariance of the prior"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let k = x.sizes["k"], m0 = try x["m0"], m1 = try x["m1"]
    let s0 = try symmetric(x["s0"], k), a = try PositiveDefinite(s0, k, "s0")
    let b = try PositiveDefinite(symmetric(x["s1"], k), k, "s1")
    var slope = [Double](repeating: 0, count: k), value = b.logDeterminant - a.logDeterminant - Double(k)
    for i in 0..<k {
      for j in 0..<k {
        value += b.inverse[i * k + j] * s0[j * k + i]
        slope[i] += b.inverse[i * k + j] * (Double(m0[j]) - Double(m1[j]))
      }
      value += slope[i] * (Double(m0[i]) - Double(m1[i]))
    }
    if let cache {
      let gm = try cache.keep("m0", k, T.self), gs = try cache.keep("s0", k * k, T.self)
      for i in 0..<k { gm[i] = T(slope[i]) }
      for i in 0..<(k * k) { gs[i] = T((b.inverse[i] - a.inverse[i]) / 2) }
    }
    return value / 2
  }
}

/// What a decoder costs, −log p(x|out) over the dimensions of a row.
private enum Likelihood {
  case bernoulli, gaussian(Double), multinomial

  func row<T: Real>(
    _ out: UnsafePointer<T>, _ x: UnsafePointer<T>, _ d: Int, _ weight: Double, _ g: UnsafeMutablePointer<T>?
  )
    -> Double
  {
    var sum = 0.0
    switch self {
    case .bernoulli:
      for k in 0..<d {
        let u = Double(out[k]), t = Double(x[k])
        sum += softplus(u) - t * u
        g?[k] = T(weight * (sigmoid(u) - t))
      }
    case .gaussian(let sigma):
      let scale = 1 / (sigma * sigma)
      for k in 0..<d {
        let apart = Double(out[k]) - Double(x[k])
        sum += scale * apart * apart / 2
        g?[k] = T(weight * scale * apart)
      }
      sum += Double(d) / 2 * log(2 * Double.pi * sigma * sigma)
    case .multinomial:
      let all = Softmax.logSum(out, d)
      var total = 0.0
      for k in 0..<d {
        total += Double(x[k])
        if x[k] != 0 { sum += Double(x[k]) * (all - Double(out[k])) }
      }
      if let g { for k in 0..<d { g[k] = T(weight * (total * exp(Double(out[k]) - all) - Double(x[k]))) } }
    }
    return weight * sum
  }
}

/// The bound of a variational auto-encoder.
///
///     value = mean over rows of −log p(x|out) + β·KL(N(mu, e^{logvar}) ‖ N(0, 1))
///     ∂mu = dz + β·∂KL/∂mu     ∂logvar = dz·ε·e^{logvar/2}/2 + β·∂KL/∂logvar
///
/// The host draws ε ~ N(0, 1), decodes z = mu + e^{logvar/2}·ε into `out`, and evaluates. The gradient of `out` goes
/// back through its decoder, which gives dz. A second evaluation with ε (as `eps`) and dz then has the whole gradients
/// of mu and logvar; without them they are those of β·KL alone.
///
/// mu, logvar, eps and dz are (n, d), out and x are (n, D). likelihood: bernoulli and multinomial take logits, gaussian
/// means with the deviation sigma.
/// Errors   TW_ERROR_NEEDS: only one of eps and dz.
/// Source   Kingma and Welling, 2013, arXiv:1312.6114.
struct VAEELBO: Objective {
  static let method = Method(
    "vae_elbo", .objective, "The bound of a variational auto-encoder.",
    rule: """
      z = mu + exp(logvar/2)*eps, decoded by the host into out;  value = mean -log p(x|out) + beta*KL
      gradients for mu: dz + beta*dKL/dmu;  for logvar: dz*eps*exp(logvar/2)/2 + beta*dKL/dlogvar
      """,
    source: "Kingma, Welling, 2013, arXiv:1312.6114",
    parameters: [
      .number("beta", 1, .atLeast(0), "weight of the divergence"),
      .choice("likelihood", ["bernoulli", "gaussian", "multinomial"], "of the data, given what is decoded"),
      .number("sigma", 1, .above(0), "deviation of the gaussian likelihood"),
    ],
    inputs: [
      .variable("mu", "n, d", "means of the code"), .variable("logvar", "n, d", "logarithms of its variances"),
      .variable("out", "n, D", "what the decoder makes of z"), .constant("x", "n, D", "data"),
      .constant("eps", "n, d", "the noise in z", optional: true),
      .constant("dz", "n, d", "the derivatives by z, back from the decoder", optional: true),
    ])
  let beta: Double
  private let likelihood: Likelihood
  init(_ h: Hyper) {
    beta = h.beta
    likelihood =
      h.is("likelihood", "bernoulli") ? .bernoulli : h.is("likelihood", "gaussian") ? .gaussian(h.sigma) : .multinomial
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let mu = try x["mu"], lv = try x["logvar"], out = try x["out"], data = try x["x"]
    let n = x.sizes["n"], d = x.sizes["d"], width = x.sizes["D"]
    let gm = try cache?.keep("mu", n * d, T.self), gl = try cache?.keep("logvar", n * d, T.self)
    let g = try cache?.keep("out", n * width, T.self)
    switch (x.optional("eps"), x.optional("dz")) {
    case (let eps?, let dz?):
      if let gm, let gl {
        for k in 0..<(n * d) {
          gm[k] = dz[k]
          gl[k] = T(Double(dz[k]) * Double(eps[k]) * exp(Double(lv[k]) / 2) / 2)
        }
      }
    case (nil, nil): break
    default: throw Failure(Status.needs, "`eps` and `dz` belong together")
    }
    let fit = Rows.sum(n, work: 16 * width) { i in
      likelihood.row(out + i * width, data + i * width, width, 1 / Double(n), g.map { $0 + i * width })
    }
    return fit + Divergence(n: n, d: d).standard(mu, lv, beta, gm, gl)
  }
}

/// The multinomial likelihood of a collaborative filter, with a weight of its divergence that grows.
///
///     value = −mean over rows of Σ_i x_i·log softmax(f)_i + β·KL     ∂f = ((Σ x)·softmax(f) − x)/n
///     β = min(anneal_cap, step/total_anneal_steps)
///
/// f and x are (n, I); mu and logvar are (n, d), without them there is no divergence. Without `step` β is at its cap.
/// Its gradients by mu and logvar are those of β·KL; dz from the decoder is the host's to add. So is the dropout on
/// x/‖x‖, the input of the encoder. An empty row costs nothing.
/// Errors   TW_ERROR_NEEDS: only one of mu and logvar; TW_ERROR_RANGE: a step below 0.
/// Source   Liang et al., 2018, arXiv:1802.05814.
struct MultVAE: Objective {
  static let method = Method(
    "mult_vae", .objective, "The multinomial likelihood of a collaborative filter, with an annealed divergence.",
    rule: """
      value = -mean sum_i x_i*log softmax(f)_i + beta*KL, beta = min(anneal_cap, step/total_anneal_steps)
      gradient for f: (sum(x)*softmax(f) - x)/n
      """,
    source: "Liang et al., 2018, arXiv:1802.05814",
    parameters: [
      .number("anneal_cap", 0.2, .within(0, 1), "largest weight of the divergence"),
      .integer("total_anneal_steps", 200_000, .atLeast(0), "steps to weight 1; 0: the cap at once"),
    ],
    inputs: [
      .variable("f", "n, I", "logits of the items"), .constant("x", "n, I", "counts, or 0 and 1"),
      .variable("mu", "n, d", "means of the code", optional: true),
      .variable("logvar", "n, d", "logarithms of its variances", optional: true),
      .integer("step", "", "the running step, from 0 on", optional: true),
    ])
  let cap: Double, total: Double
  init(_ h: Hyper) { (cap, total) = (h.anneal_cap, h.total_anneal_steps) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let f = try x["f"], counts = try x["x"], n = x.sizes["n"], items = x.sizes["I"], d = x.sizes["d"]
    var beta = cap
    if let step = x.optionalIntegers("step")?.pointee {
      guard step >= 0 else { throw Failure(Status.range, "`step` must be at least 0, got \(step)") }
      if total > 0 { beta = min(cap, Double(step) / total) }
    }
    let g = try cache?.keep("f", n * items, T.self)
    let fit = Rows.sum(n, work: 16 * items) { i in
      Likelihood.multinomial.row(f + i * items, counts + i * items, items, 1 / Double(n), g.map { $0 + i * items })
    }
    switch (x.optional("mu"), x.optional("logvar")) {
    case (let mu?, let lv?):
      let gm = try cache?.keep("mu", n * d, T.self), gl = try cache?.keep("logvar", n * d, T.self)
      return fit + Divergence(n: n, d: d).standard(mu, lv, beta, gm, gl)
    case (nil, nil): return fit
    default: throw Failure(Status.needs, "`mu` and `logvar` belong together")
    }
  }
}

/// The multinomial likelihood of counts under logits: `mult_vae` without its divergence.
///
///     value = −mean over rows of Σ_i x_i·log softmax(f)_i     ∂f = (Σ x·softmax(f) − x)/n
///
/// f and x are (n, I). An empty row costs nothing.
/// Source   Liang et al., 2018, arXiv:1802.05814.
struct MultinomialNLL: Objective {
  static let method = Method(
    "multinomial_nll", .objective, "The multinomial likelihood of counts under logits.",
    rule: "value = -mean sum_i x_i*log softmax(f)_i;  gradient for f: (sum(x)*softmax(f) - x)/n",
    source: "Liang et al., 2018, arXiv:1802.05814", parameters: [Reduction.parameter],
    inputs: [.variable("f", "n, I", "logits of the items"), .constant("x", "n, I", "counts, or 0 and 1")])
  let reduction: Reduction
  init(_ h: Hyper) { reduction = Reduction(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let f = try x["f"], counts = try x["x"], n = x.sizes["n"], items = x.sizes["I"], weight = reduction.weight(n)
    let g = try cache?.keep("f", n * items, T.self)
    return Rows.sum(n, work: 16 * items) { i in
      Likelihood.multinomial.row(f + i * items, counts + i * items, items, weight, g.map { $0 + i * items })
    }
  }
}
