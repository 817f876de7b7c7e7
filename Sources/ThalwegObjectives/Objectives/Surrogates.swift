import Glibc
import ThalwegCore

/// A surrogate of the loss in the space of the model's outputs: its linearisation, and a squared distance.
///
///     value = ⟨g, z − z₀⟩ + ‖z − z₀‖²/(2·eta);   ∂/∂z = g + (z − z₀)/eta;   the minimiser is z₀ − eta·g
///
/// z (B, ...): outputs now; z0, grad: outputs and gradient of the loss at the outer point. mean divides by B.
/// Differs  nothing from the authors' code but for eta, which there is 2·eta.
/// Source   Lavington, Vaswani, Babanezhad, Schmidt and Le Roux, 2023, arXiv:2302.02607.
struct SSOSurrogate: Objective {
  static let method = Method(
    "sso_surrogate", .objective, "A surrogate of the loss in the space of the model's outputs.",
    rule: "value = <g, z - z0> + |z - z0|^2/(2 eta)",
    source: "Lavington, Vaswani, Babanezhad, Schmidt, Le Roux, 2023, arXiv:2302.02607",
    parameters: [
      .number("eta", 1, .above(0), "step size in the outputs"),
      .choice("reduction", ["sum", "mean"], "over the batch"),
    ],
    inputs: [
      .variable("z", "B, ...", "outputs"), .constant("z0", "B, ...", "outputs at the outer point"),
      .constant("grad", "B, ...", "gradient of the loss there"),
    ])
  let eta: Double, mean: Bool
  init(_ h: Hyper) { (eta, mean) = (h.eta, h.is("reduction", "mean")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], z0 = try x["z0"], grad = try x["grad"], n = x.sizes["B"] * x.sizes.samples
    let g = try cache?.keep("z", n, T.self), weight = mean ? 1 / Double(x.sizes["B"]) : 1
    return weight
      * Rows.sum(n, work: 6) { i in
        let d = Double(z[i]) - Double(z0[i]), a = Double(grad[i])
        g?[i] = T(weight * (a + d / eta))
        return a * d + d * d / (2 * eta)
      }
  }
}

/// The likelihood of an unnormalised model, its normaliser estimated from noise and remembered.
///
///     g = mean_j exp(a_j), a_j = log p̃(z_j) − log q(z_j);   u ← g at first, then (1−β)·u + β·g
///     vr: u ← max((1−β)·(u − g_prev) + g, 1e-300), g_prev from the same samples at the previous parameters
///     value = −mean_i log p̃(x_i) + log u;   ∂/∂a_j = exp(a_j − log u)/m
///
/// data (n,): log p̃ of the data; noise (m,): a; noise_before (m,): a at the previous parameters, with vr.
/// State    log u. All exponentials are relative to the largest.
/// Differs  which form the paper uses with which momentum is not certain: both are here.
/// Source   Jiang, Qin, Wu, Chen, Yang and Zhang, 2023, arXiv:2306.07485.
struct MECO: Objective {
  static let method = Method(
    "meco", .objective, "The likelihood of an unnormalised model, its normaliser estimated from noise.",
    rule: """
      g = mean exp(a);  u <- (1 - beta)*u + beta*g, vr: (1 - beta)*(u - g_prev) + g;  u = g at first
      value = -mean log p(x) + log u;  d/da_j = exp(a_j - log u)/m
      """,
    source: "Jiang, Qin, Wu, Chen, Yang, Zhang, 2023, arXiv:2306.07485",
    parameters: [
      .number("beta", 0.5, .between(0, 1, lowOpen: true, highOpen: false), "rate of the estimate"),
      .flag("vr", false, "the estimate follows the change on the same samples"),
    ],
    inputs: [
      .variable("data", "n", "log p of the data, not normalised"),
      .variable("noise", "m", "log p - log q of noise samples from q"),
      .constant("noise_before", "m", "the same at the previous parameters", optional: true),
      .result("log_normaliser", "", "log u"),
    ])
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("log_u")] }
  let beta: Double, vr: Bool
  init(_ h: Hyper) { (beta, vr) = (h.beta, h.vr) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let data = try x["data"], a = try x["noise"], n = x.sizes["n"], m = x.sizes["m"], u = try x.memory["log_u"]
    let g = Softmax.logSum(a, m) - log(Double(m))
    if x.memory.passes == 0 {
      u[0] = g
    } else if vr {
      guard let before = x.optional("noise_before") else {
        throw Failure(Status.needs, "meco: vr needs `noise_before`, the noise samples at the previous parameters")
      }
      let last = Softmax.logSum(before, m) - log(Double(m)), top = max(u[0], g, last)
      let sum = (1 - beta) * (exp(u[0] - top) - exp(last - top)) + exp(g - top)
      u[0] = max(sum > 0 ? top + log(sum) : -.infinity, log(1e-300))
    } else {
      u[0] = logAdd(log(1 - beta) + u[0], log(beta) + g)
    }
    if let cache {
      try cache.keep("data", numbers: [Double](repeating: -1 / Double(n), count: n), T.self)
      try cache.keep("noise", numbers: (0..<m).map { exp(Double(a[$0]) - u[0]) / Double(m) }, T.self)
      try cache.keep("log_normaliser", numbers: [u[0]], T.self)
    }
    return u[0] - (0..<n).reduce(0) { $0 + Double(data[$1]) } / Double(n)
  }
}

/// A global contrastive loss: batches with a remembered normaliser of every sample, above a reference model.
///
///     one side, anchors in rows:  D_ij = ((s_ij − s_ii) − (r_ij − r_ii))/τ;  log g_i = log(eps + Σ_{j ≠ i} e^D_ij/B)
///     log u_i ← log((1 − γ)·u_i + γ·g_i);  log g_i at the first visit
///     W_ij = exp(D_ij − log u_i)/(B − 1), held constant;   value = τ·mean_i Σ_j W_ij·D_ij, of both sides
///     `temperature` = τ·(rho + ½·(mean log u of the rows + of the columns)), its derivative by τ `dtau`
///
/// s, reference (B, B): similarities of image i and text j; reference 0 when left out. indices (B,): which of the
/// `samples` they are.
/// State    log u of every sample and side.
/// Errors   TW_ERROR_RANGE: an index that is no sample.
/// Differs  nothing from DRRho-CLIP: sums over B − 1, but log g over B. γ is 1 at first and falls by a schedule, τ may
///          be learned: both are the host's, who gives them with the batch.
/// Source   Wei, Lin, et al., 2025, arXiv:2505.06699; Yuan et al., 2022 (SogCLR).
struct DRRhoContrastive: Objective {
  static let method = Method(
    "drrho_contrastive", .objective, "A global contrastive loss with a remembered normaliser of every sample.",
    rule: """
      D_ij = ((s_ij - s_ii) - (r_ij - r_ii))/tau;  g_i = eps + sum_{j != i} exp(D_ij)/B
      u_i <- (1 - gamma)*u_i + gamma*g_i;  W_ij = exp(D_ij)/u_i/(B - 1)
      value = tau*mean_i sum_j W_ij*D_ij of rows and columns, W held constant
      """,
    source: "Wei, Lin, et al., 2025, arXiv:2505.06699; Yuan et al., 2022",
    parameters: [
      .integer("samples", nil, .within(1, 0x1p32), "how many samples there are", live: false),
      .number("tau", 0.01, .above(0), "temperature"),
      .number("gamma", 0.9, .between(0, 1, lowOpen: true, highOpen: false), "rate of the normalisers"),
      .eps(1e-14, "floor of g", .above(0)), .number("rho", 8, .atLeast(0), "margin of the temperature's term"),
    ],
    inputs: [
      .variable("s", "B, B", "similarities of the batch"),
      .constant("reference", "B, B", "those of the reference model; 0 when left out", optional: true),
      .integer("indices", "B", "which samples they are, from 0"),
      .constant("rate", "", "gamma of this batch, in place of the hyper-parameter", optional: true),
      .constant("scale", "", "tau of this batch, in place of the hyper-parameter", optional: true),
      .result("temperature", "", "the temperature's term"), .result("dtau", "", "its derivative by tau"),
    ])
  static func state(_ h: Hyper) -> [Recollection] {
    let n = String(h.integer("samples"))
    return [Recollection("rows", n, start: -.infinity), Recollection("columns", n, start: -.infinity)]
  }
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let s = try x["s"], r = x.optional("reference"), indices = try x.integers("indices"), n = x.sizes["B"]
    try Labels.check(indices, n, h.integer("samples"), name: "indices")
    try Memory.ask(area(16, n, n))
    let tau = x.optional("scale").map { Double($0[0]) } ?? h.tau, size = Double(n)
    let gamma = x.optional("rate").map { Double($0[0]) } ?? h.gamma
    guard tau > 0, tau.isFinite else {
      throw Failure(Status.range, "drrho_contrastive: `scale` must be above 0, got \(text(tau))")
    }
    guard gamma > 0, gamma <= 1 else {
      throw Failure(Status.range, "drrho_contrastive: `rate` must be in (0, 1], got \(text(gamma))")
    }
    var g = [Double](repeating: 0, count: n * n), value = 0.0, levels = 0.0
    for (name, columns) in [("rows", false), ("columns", true)] {
      let memory = try x.memory[name]
      func at(_ i: Int, _ j: Int) -> Int { columns ? j * n + i : i * n + j }
      func above(_ i: Int, _ j: Int) -> Double {
        let there = Double(s[at(i, j)]) - Double(s[at(i, i)])
        return (there - (r.map { Double($0[at(i, j)]) - Double($0[at(i, i)]) } ?? 0)) / tau
      }
      for i in 0..<n {
        var sum = LogSum()
        for j in 0..<n where j != i { sum.add(above(i, j)) }
        let level = logAdd(log(h.eps), sum.value - log(size)), old = memory[indices[i]]
        let u = !old.isFinite || gamma == 1 ? level : logAdd(log(1 - gamma) + old, log(gamma) + level)
        memory[indices[i]] = u
        levels += u / size
        for j in 0..<n where j != i {
          let d = above(i, j), w = exp(d - u) / (size - 1)
          value += tau * w * d / size
          g[at(i, j)] += w / size
          g[at(i, i)] -= w / size
        }
      }
    }
    let slope = h.rho + levels / 2
    try cache?.keep("s", numbers: g, T.self)
    try cache?.keep("temperature", numbers: [tau * slope], T.self)
    try cache?.keep("dtau", numbers: [slope], T.self)
    return value
  }
}

/// Terms of a variational f-divergence for one step of a Wasserstein gradient flow.
///
///     kl:  A = mean h(T), B = log mean e^h(z)  (mean_exp: mean e^h(z))
///     js:  act(x) = 2·sigmoid(−x):  A = mean log(2 − act(h(T))),  B = −mean log act(h(z))
///     gen_entropy:  A = q^(m−1)·m/(m−1)·mean e^((m−1)·h(T)),  B = q^(m−1)·mean e^(m·h(z))
///     value = A − B, which the critic ascends;  the map descends mean‖x − T(x)‖²/(2a) + A
///
/// moved, reference (n,), (m,): the critic's values at moved and at reference samples.
/// Differs  nothing from the card: log-ratio parametrisation. The displacement's term is the host's.
/// Source   Fan, Zhang, Taghvaei and Chen, 2021, arXiv:2112.02424.
struct VWGFObjective: Objective {
  static let method = Method(
    "vwgf_objective", .objective, "Terms of a variational f-divergence for a step of a Wasserstein gradient flow.",
    rule: """
      kl: A = mean h(T), B = log mean exp(h(z));  js: A = mean log(2 - act), B = -mean log act, act = 2 sigmoid(-h)
      gen_entropy: A = q^(m-1)*m/(m-1)*mean exp((m-1)*h(T)), B = q^(m-1)*mean exp(m*h(z));  value = A - B
      """,
    source: "Fan, Zhang, Taghvaei, Chen, 2021, arXiv:2112.02424",
    parameters: [
      .choice("kind", ["kl", "js", "gen_entropy"], "the divergence"),
      .flag("mean_exp", false, "kl without the logarithm"),
      .number("power", 2, .above(1), "m of gen_entropy"),
      .number("q", 1, .above(0), "reference density of gen_entropy"),
    ],
    inputs: [
      .variable("moved", "n", "critic at the moved samples"), .variable("reference", "m", "critic at the reference's"),
      .result("a", "", "A, what the map descends beside the distance"), .result("b", "", "B"),
    ])
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let moved = try x["moved"], other = try x["reference"], n = x.sizes["n"], m = x.sizes["m"]
    let up = try cache?.keep("moved", n, T.self), down = try cache?.keep("reference", m, T.self)
    let columns = Double(m)
    func mean(
      _ p: UnsafePointer<T>, _ count: Int, _ g: UnsafeMutablePointer<T>?, sign: Double,
      _ body: (Double) -> (Double, Double)
    ) -> Double {
      Rows.sum(count, work: 12) { i in
        let (value, slope) = body(Double(p[i]))
        g?[i] = T(sign * slope / Double(count))
        return value / Double(count)
      }
    }
    var a = 0.0, b = 0.0
    if h.is("kind", "js") {
      // log(2 − 2·sigmoid(−x)) = log 2 − softplus(−x);  −log(2·sigmoid(−x)) = softplus(x) − log 2
      a = mean(moved, n, up, sign: 1) { (log(2) - softplus(-$0), sigmoid(-$0)) }
      b = mean(other, m, down, sign: -1) { (softplus($0) - log(2), sigmoid($0)) }
    } else if h.is("kind", "gen_entropy") {
      let k: Double = h.power, factor = pow(h.q, k - 1)
      a = mean(moved, n, up, sign: 1) {
        let e = factor * exp((k - 1) * $0)
        return (k / (k - 1) * e, k * e)
      }
      b = mean(other, m, down, sign: -1) {
        let e = factor * exp(k * $0)
        return (e, k * e)
      }
    } else {
      a = mean(moved, n, up, sign: 1) { ($0, 1) }
      if h.mean_exp {
        b = mean(other, m, down, sign: -1) { (exp($0), exp($0)) }
      } else {
        let level = Softmax.logSum(other, m)
        b = level - log(columns)
        if let down { for i in 0..<m { down[i] = T(-exp(Double(other[i]) - level)) } }
      }
    }
    try cache?.keep("a", numbers: [a], T.self)
    try cache?.keep("b", numbers: [b], T.self)
    return a - b
  }
}

/// A gradient from directional derivatives along guesses.
///
///     s_b = ⟨gradient, u_b⟩ from a forward-mode pass;   plain: s·u,  projection: s·u/(‖u‖² + eps),  sign: sign(s)·u
///     gradient = Σ_b of these;   value = Σ_b factor_b·s_b, its inner product with the true gradients
///     span: all guesses U are of one gradient, which is projected onto their span: factors (U·Uᵀ)⁺·s
///
/// guesses (B, n): one a sample, or one row for a batch; slopes (B,). u = 0 gives 0. One call for each tensor.
/// Differs  nothing from the authors' code (projection). Singular values of U below 1e-12 of the largest count as 0.
/// Source   Fournier, Rivaud, Belilovsky, Eickenberg and Oyallon, 2023, arXiv:2306.06968; Baydin et al., 2022.
struct ForwardGradient: Objective {
  static let method = Method(
    "forward_gradient", .objective, "A gradient from directional derivatives along guesses.",
    rule: """
      s_b = <gradient, u_b>;  plain: s*u, projection: s*u/(|u|^2 + eps), sign: sign(s)*u;  gradient = sum over b
      span: gradient = U'(U U')^+ s, the projection onto the span of the guesses
      """,
    source: "Fournier, Rivaud, Belilovsky, Eickenberg, Oyallon, 2023, arXiv:2306.06968; Baydin et al., 2022",
    parameters: [
      .choice("estimator", ["projection", "plain", "sign", "span"], "what is made of a slope, or of all"),
      .eps(1e-16, "added to the squared norm", .above(0)),
    ],
    inputs: [
      .constant("guesses", "B, n", "directions"), .constant("slopes", "B", "derivatives along them"),
      .result("gradient", "n", "the estimate, summed over the guesses"),
    ])
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let u = try x["guesses"], s = try x["slopes"], n = x.sizes["n"], eps: Double = h.eps
    var sum = [Double](repeating: 0, count: cache == nil ? 0 : n), value = 0.0
    let spanned = h.is("estimator", "span") ? try span(u, s, x.sizes["B"], n) : []
    for b in 0..<x.sizes["B"] {
      let row = u + b * n, slope = Double(s[b])
      let factor =
        h.is("estimator", "plain")
        ? slope
        : h.is("estimator", "sign")
          ? sign(slope)
          : h.is("estimator", "span") ? spanned[b] : slope / (Flat.squaredNorm(row, n) + eps)
      value += factor * slope
      if !sum.isEmpty { for i in 0..<n { sum[i] += factor * Double(row[i]) } }
    }
    try cache?.keep("gradient", numbers: sum, T.self)
    return value
  }

  /// (U·Uᵀ)⁺·s.
  private func span<T: Real>(_ u: UnsafePointer<T>, _ s: UnsafePointer<T>, _ rows: Int, _ n: Int) throws(Failure)
    -> [Double]
  {
    try refuseNonFinite(u, rows * n, "guesses")
    let svd = try LinearAlgebra.SVD(try doubles(u, rows * n), rows, n), top = svd.s.first ?? 0
    var out = [Double](repeating: 0, count: rows)
    for k in 0..<svd.r where svd.s[k] > top * 1e-12 {
      let along = (0..<rows).reduce(0.0) { $0 + svd.u[$1 * svd.r + k] * Double(s[$1]) } / (svd.s[k] * svd.s[k])
      for i in 0..<rows { out[i] += svd.u[i * svd.r + k] * along }
    }
    return out
  }
}

/// The divergence of a normal posterior from a normal prior with the best variance, data-emphasised.
///
///     τ = (‖w − m‖² + Σ σ_i²)/D, the best variance of the prior;   KL = (D·log τ − Σ log σ_i²)/2;   value = KL/(κ·N)
///     ∂/∂w = (w − m)/(τκN);   ∂/∂σ_i = (σ_i/τ − 1/σ_i)/(κN),  of one σ for all: times D
///
/// w, mean (D,); sigma (D,) or (1,), at least 1e-8. κ is D/N unless given; 1 is the plain ELBo. The likelihood at
/// w + σ·noise is the host's. τ comes back: 1/(τκN) is the weight decay that was found.
/// Differs  nothing from the authors' isotropic prior. Blocks with a prior each are calls each.
/// Source   Harvey, Petrov and Hughes, 2025, arXiv:2502.01861.
struct DEELBO: Objective {
  static let method = Method(
    "de_elbo", .objective, "The divergence of a normal posterior from a prior with the best variance, data-emphasised.",
    rule: """
      tau = (|w - m|^2 + sum sigma^2)/D;  KL = (D log tau - sum log sigma^2)/2;  value = KL/(kappa*N)
      """,
    source: "Harvey, Petrov, Hughes, 2025, arXiv:2502.01861",
    parameters: [
      .number("num_data", nil, .atLeast(1), "N, how many data there are"),
      .maybe("kappa", .above(0), "weight of the likelihood; none: D/N"),
    ],
    inputs: [
      .variable("w", "D", "mean of the posterior"), .variable("sigma", "k", "its standard deviations, or one for all"),
      .constant("mean", "D", "mean of the prior, 0 when left out", optional: true),
      .result("tau", "", "the best variance of the prior"),
    ])
  let N: Double, kappa: Double?
  init(_ h: Hyper) { (N, kappa) = (h.num_data, h.has("kappa") ? h.kappa : nil) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], sigma = try x["sigma"], mean = x.optional("mean"), D = x.sizes["D"], k = x.sizes["k"]
    guard k == 1 || k == D else {
      throw Failure(Status.shape, "`sigma` must have 1 or \(D) elements, got \(k)")
    }
    let size = Double(D), each = k == 1 ? size : 1, scale = 1 / ((kappa ?? size / N) * N)
    let away = Rows.sum(D, work: 3) { i in
      let d = Double(w[i]) - (mean.map { Double($0[i]) } ?? 0)
      return d * d
    }
    var squares = 0.0, logs = 0.0
    for i in 0..<k {
      let s = max(Double(sigma[i]), 1e-8)
      squares += each * s * s
      logs += each * 2 * log(s)
    }
    let tau = (away + squares) / size
    if let cache {
      let g = try cache.keep("w", D, T.self), gs = try cache.keep("sigma", k, T.self)
      for i in 0..<D { g[i] = T(scale * (Double(w[i]) - (mean.map { Double($0[i]) } ?? 0)) / tau) }
      for i in 0..<k {
        let s = Double(sigma[i])
        gs[i] = s < 1e-8 ? 0 : T(scale * each * (s / tau - 1 / s))
      }
      try cache.keep("tau", numbers: [tau], T.self)
    }
    return scale * (size * log(tau) - logs) / 2
  }
}
