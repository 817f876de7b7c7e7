import Glibc
import ThalwegCore

/// IRM: how far the classifier of a domain is from one whose scale is optimal there.
///
///     d = mean_b (Σ_c p_c·z_c − z_y),  the derivative of the cross entropy by a scale of the logits at 1;   value = d²
///     split: d₁·d₂ of the even and the odd samples, without a bias;  0 where one of them is empty
///
/// z: logits (B, C) of one domain, y (B,).
/// Differs  nothing from DomainBed's IRM with `split`. The weight, and its start after some steps, are the host's.
/// Source   Arjovsky, Bottou, Gulrajani and Lopez-Paz, 2019, arXiv:1907.02893.
struct IRMPenalty: Objective {
  static let method = Method(
    "irm_penalty", .objective, "How far the classifier of a domain is from one whose scale is optimal there.",
    rule: "d = mean_b (sum_c p_c z_c - z_y), p = softmax(z);  value = d^2, or d1*d2 of two halves (split)",
    source: "Arjovsky, Bottou, Gulrajani, Lopez-Paz, 2019, arXiv:1907.02893",
    parameters: [.flag("split", false, "the product of even and odd samples, without a bias")],
    inputs: [.variable("z", "B, C", "logits of one domain"), .integer("y", "B", "labels")])
  let split: Bool
  init(_ h: Hyper) { split = h.split }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], y = try x.integers("y"), n = x.sizes["B"], classes = x.sizes["C"]
    try Labels.check(y, n, classes)
    func mean(_ row: UnsafePointer<T>) -> (level: Double, mean: Double) {
      let level = Softmax.logSum(row, classes)
      return (level, (0..<classes).reduce(0) { $0 + exp(Double(row[$1]) - level) * Double(row[$1]) })
    }
    var d = [0.0, 0.0]
    let sizes = split ? [Double((n + 1) / 2), Double(n / 2)] : [Double(n), Double(n)]
    for b in 0..<n { d[split ? b % 2 : 0] += (mean(z + b * classes).mean - Double(z[b * classes + y[b]])) }
    d[0] /= sizes[0]
    d[1] = split ? (sizes[1] > 0 ? d[1] / sizes[1] : 0) : d[0]
    if let g = try cache?.keep("z", n * classes, T.self) {
      for b in 0..<n {
        let part = split ? b % 2 : 0, row = z + b * classes, (level, mean) = mean(row)
        let factor = (split ? d[1 - part] : 2 * d[0]) / sizes[part]
        for c in 0..<classes {
          let v = Double(row[c])
          g[b * classes + c] = T(factor * (exp(v - level) * (1 + v - mean) - (c == y[b] ? 1 : 0)))
        }
      }
    }
    return d[0] * d[1]
  }
}

/// Fishr: the variances of the samples' gradients are to be the same in all domains.
///
///     v_e = mean_i (G_ei − mean)²;   a_e ← ema·a_e + (1 − ema)·v_e,  u_e = a_e/(1 − ema);   ū = mean_e u_e
///     value = mean_e mean_j (u_e − ū)_j²;   ∂/∂G_ei = 2(G_ei − mean)/n_e·2(u_e − ū)/(S·d)
///
/// gradients (N, d) of samples, of the classifier's weights; domains (N,): which they are of, from 0 to S − 1. A domain
/// that is not in the batch does not count.
/// State    a of every domain; with ema = 0 none.
/// Errors   TW_ERROR_RANGE: a domain that there is not.
/// Differs  nothing from DomainBed, whose average starts at 0 and is divided by 1 − ema throughout. Its weight is the
///          host's (1000).
/// Source   Rame, Dancette and Cord, 2021, arXiv:2109.02934.
struct FishrPenalty: Objective {
  static let method = Method(
    "fishr_penalty", .objective, "The variances of the samples' gradients are to be the same in all domains.",
    rule: """
      v_e = mean_i (G_ei - mean)^2;  a_e <- ema*a_e + (1 - ema)*v_e, u_e = a_e/(1 - ema)
      value = mean_e mean_j (u_e - mean u)_j^2
      """,
    source: "Rame, Dancette, Cord, 2021, arXiv:2109.02934",
    parameters: [
      .integer("domains", nil, .within(1, 0x1p20), "how many domains there are", live: false),
      Parameter.rate("ema", 0.95, "rate of the average of the variances").fixed,
    ],
    inputs: [
      .variable("gradients", "N, d", "gradients of the samples"), .integer("domain", "N", "domain of each, from 0"),
    ])
  static func state(_ h: Hyper) -> [Recollection] {
    h.ema > 0 ? [Recollection("average", "\(h.integer("domains")), d")] : []
  }
  let ema: Double, S: Int
  init(_ h: Hyper) { (ema, S) = (h.ema, h.integer("domains")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let G = try x["gradients"], domain = try x.integers("domain"), n = x.sizes["N"], d = x.sizes["d"]
    try Labels.check(domain, n, S, name: "domain")
    try Memory.ask(area(16, S, d))
    var counts = [Double](repeating: 0, count: S), mean = [Double](repeating: 0, count: S * d), u = mean
    for i in 0..<n { counts[domain[i]] += 1 }
    for i in 0..<n { for j in 0..<d { mean[domain[i] * d + j] += Double(G[i * d + j]) / counts[domain[i]] } }
    for i in 0..<n {
      for j in 0..<d {
        let c = Double(G[i * d + j]) - mean[domain[i] * d + j]
        u[domain[i] * d + j] += c * c / counts[domain[i]]
      }
    }
    let there = (0..<S).filter { counts[$0] > 0 }, size = Double(there.count)
    if ema > 0 {
      let average = try x.memory["average"]
      for e in there {
        for j in 0..<d {
          average[e * d + j] = ema * average[e * d + j] + (1 - ema) * u[e * d + j]
          u[e * d + j] = average[e * d + j] / (1 - ema)
        }
      }
    }
    var value = 0.0
    for j in 0..<d {
      let middle = there.reduce(0) { $0 + u[$1 * d + j] } / size
      for e in there {
        u[e * d + j] -= middle
        value += u[e * d + j] * u[e * d + j] / (size * Double(d))
      }
    }
    if let g = try cache?.keep("gradients", n * d, T.self) {
      for i in 0..<n {
        let e = domain[i]
        for j in 0..<d {
          let c = Double(G[i * d + j]) - mean[e * d + j]
          g[i * d + j] = T(4 * c / counts[e] * u[e * d + j] / (size * Double(d)))
        }
      }
    }
    return value
  }
}

/// Inter-domain gradient matching: the inner products of the domains' gradients are to be large.
///
///     value = −γ/(S(S−1))·(‖Σ_i J_i‖² − Σ_i ‖J_i‖²);   ∂/∂J_i = −2γ/(S(S−1))·Σ_{j ≠ i} J_j;   0 of one domain
///
/// J: (S, n). The host chains the gradient: one Hessian product with each row. It is added to the mean risk.
/// Differs  nothing from the paper.
/// Source   Shi, Seely, Torr, Siddharth, Hannun, Usunier and Synnaeve, 2021, arXiv:2104.09937.
struct IDGM: Objective {
  static let method = Method(
    "idgm", .objective, "The inner products of the domains' gradients are to be large.",
    rule: "value = -gamma/(S(S-1))*(|sum_i J_i|^2 - sum_i |J_i|^2)",
    source: "Shi, Seely, Torr, Siddharth, Hannun, Usunier, Synnaeve, 2021, arXiv:2104.09937",
    parameters: [.number("gamma", 1, .atLeast(0), "weight")],
    inputs: [.variable("jacobian", "S, n", "gradients of the domains")])
  let gamma: Double
  init(_ h: Hyper) { gamma = h.gamma }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let J = try x["jacobian"], S = x.sizes["S"], n = x.sizes["n"]
    let factor = S > 1 ? -gamma / (Double(S) * Double(S - 1)) : 0
    let g = try cache?.keep("jacobian", S * n, T.self)
    return factor
      * Rows.sum(n, work: 2 * S) { j in
        var sum = 0.0, squares = 0.0
        for i in 0..<S {
          let v = Double(J[i * n + j])
          sum += v
          squares += v * v
        }
        if let g { for i in 0..<S { g[i * n + j] = T(2 * factor * (sum - Double(J[i * n + j]))) } }
        return sum * sum - squares
      }
  }
}

/// Weight decay of parameters whose gradients differ from domain to domain.
///
///     c_j = unbiased variance of the gradient of parameter j over the domains;   s ← ema·s + (1 − ema)·c
///     sens = ŝ/(max ŝ + 1e-12), ŝ = s/(1 − ema^t)   (scale: max, mean, or none: ŝ itself)
///     value = lam/2·Σ sens_j·w_j²,  sens held constant
///
/// w (n,), gradients (S, n). One domain: no variance, sens = 0.
/// State    s and how often it was updated.
/// Differs  the paper's own normalisation is not known: this is a variant of a penalty driven by the covariance of the
///          domains' gradients.
/// Source   Han et al., 2026, arXiv:2601.19394.
struct DSPReg: Objective {
  static let method = Method(
    "dsp_reg", .objective, "Weight decay of parameters whose gradients differ from domain to domain.",
    rule: """
      c_j = variance of the gradient of parameter j over the domains;  s <- ema*s + (1 - ema)*c
      sens = s_hat/(max s_hat + 1e-12), s_hat = s/(1 - ema^t);  value = lam/2*sum sens_j*w_j^2
      """,
    source: "Han et al., 2026, arXiv:2601.19394",
    parameters: [
      .number("lam", 1e-3, .atLeast(0), "weight"), .rate("ema", 0.9, "rate of the average of the variances"),
      .choice("scale", ["max", "mean", "none"], "what the sensitivities are divided by"),
    ],
    inputs: [
      .variable("w", "n", "parameters"), .constant("gradients", "S, n", "gradients of the domains"),
      .result("sensitivity", "n", "factor of each parameter's decay"),
    ])
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("s", "n"), Recollection("t")] }
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], G = try x["gradients"], S = x.sizes["S"], n = x.sizes["n"]
    let s = try x.memory["s"], t = try x.memory["t"], ema: Double = h.ema
    t[0] += 1
    var top = 0.0, total = 0.0
    let correct = 1 - pow(ema, t[0])
    for j in 0..<n {
      var mean = 0.0, c = 0.0
      for i in 0..<S { mean += Double(G[i * n + j]) / Double(S) }
      for i in 0..<S { c += (Double(G[i * n + j]) - mean) * (Double(G[i * n + j]) - mean) }
      s[j] = ema * s[j] + (1 - ema) * (S > 1 ? c / Double(S - 1) : 0)
      top = larger(top, s[j] / correct)
      total += s[j] / correct
    }
    let divisor = h.is("scale", "none") ? 1 : (h.is("scale", "mean") ? total / Double(n) : top) + 1e-12
    let sens = try cache?.keep("sensitivity", n, T.self), g = try cache?.keep("w", n, T.self)
    var value = 0.0
    for j in 0..<n {
      let factor = s[j] / correct / divisor, v = Double(w[j])
      sens?[j] = T(factor)
      g?[j] = T(h.lam * factor * v)
      value += h.lam / 2 * factor * v * v
    }
    return value
  }
}

/// The inconsistency of classifier gradients on inputs and on their perturbed copies, for unknown domains.
///
///     μ = mean_i A_i;  v_A = mean_i (A_i − μ)²,  v_C = mean_i (C_i − μ)²
///     value = weight·(mean_j ((v_A − v_C)_j/2)² + mean_i ‖C_i‖²/d)
///
/// A, C: (n, d), gradients of the samples for one tensor of the classifier, clean and perturbed; both variances are
/// about the clean mean. The host chains the gradients, adds up the tensors, and adds the result to a SAM gradient.
/// Differs  nothing from the authors' penalty. The perturbed inputs are those of `udim_perturb_inputs`.
/// Source   Shin, Bae, Na, Kim and Moon, 2024, ICLR.
struct UDIM: Objective {
  static let method = Method(
    "udim", .objective, "The inconsistency of classifier gradients on inputs and on their perturbed copies.",
    rule: """
      mu = mean_i A_i;  v_A = mean_i (A_i - mu)^2, v_C = mean_i (C_i - mu)^2
      value = weight*(mean_j ((v_A - v_C)_j/2)^2 + mean_i |C_i|^2/d)
      """,
    source: "Shin, Bae, Na, Kim, Moon, 2024, ICLR",
    parameters: [.number("weight", 1, .atLeast(0), "factor of the penalty")],
    inputs: [
      .variable("clean", "n, d", "gradients of the samples"),
      .variable("perturbed", "n, d", "gradients of the perturbed samples"),
    ])
  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let A = try x["clean"], C = try x["perturbed"], n = x.sizes["n"], d = x.sizes["d"]
    let gA = try cache?.keep("clean", n * d, T.self), gC = try cache?.keep("perturbed", n * d, T.self)
    let rows = Double(n), columns = Double(d)
    return Rows.sum(d, work: 6 * n) { j in
      var mean = 0.0, other = 0.0
      for i in 0..<n {
        mean += Double(A[i * d + j]) / rows
        other += Double(C[i * d + j]) / rows
      }
      var vA = 0.0, vC = 0.0, squares = 0.0
      for i in 0..<n {
        let a = Double(A[i * d + j]) - mean, c = Double(C[i * d + j]) - mean
        vA += a * a / rows
        vC += c * c / rows
        squares += Double(C[i * d + j]) * Double(C[i * d + j])
      }
      let gap = vA - vC, slope = weight * gap / (columns * rows)
      if let gA, let gC {
        for i in 0..<n {
          let k = i * d + j
          gA[k] = T(slope * (Double(A[k]) - mean + other - mean))
          gC[k] = T(-slope * (Double(C[k]) - mean) + 2 * weight * Double(C[k]) / (rows * columns))
        }
      }
      return weight * (gap * gap / 4 / columns + squares / (rows * columns))
    }
  }
}
