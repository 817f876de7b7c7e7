import Glibc
import ThalwegCore

/// Model-aware contrastive loss: the temperature follows the alignment that the model has reached, and rows are
/// reweighted so that each pulls its positive with the same force.
///
///     A = mean similarity of positives, held constant     τ = τ₀·(1 + α·(A − A₀))
///     P_i = e^{s⁺/τ}/(e^{s⁺/τ} + Σ e^{s⁻/τ}), V_i = 1/(1 − P_i), held constant     value = −mean V_i·log P_i
///     ∂s⁺ = −V·(1 − P)/(n·τ)     ∂s⁻ = V·P⁻/(n·τ)
///
/// x and y are (n, d), two views; all 2n rows are anchors, the positive of each is its other view. 1 − P is the sum of
/// the other probabilities, never a difference.
/// Errors   TW_ERROR_RANGE: a temperature that is not above 0. A single pair has no negatives: the value is 0.
/// Source   Huang et al., 2023, arXiv:2207.07874.
struct MACL: Objective {
  static let method = Method(
    "macl", .objective, "Contrastive loss with a temperature that follows the alignment reached so far.",
    rule: """
      A = mean s_pos, tau = temperature*(1 + alpha*(A - a0));  P = softmax over positive and negatives of s/tau
      value = -mean V*log P_pos, V = 1/(1 - P_pos) with reweight; A and V held constant
      """,
    source: "Huang et al., 2023, arXiv:2207.07874", parameters: modelAware, inputs: viewInputs)

  private let rule: ModelAware
  init(_ h: Hyper) { rule = ModelAware(h) }

  private struct Pairs: PairLoss {
    let rule: ModelAware, temperature: Double

    func exponent(_ s: Double, positive: Bool, of i: Int) -> (value: Double, slope: Double) {
      (s / temperature, 1 / temperature)
    }
    func outer(_ anchors: UnsafePointer<Anchor>, _ n: Int, _ slopes: UnsafeMutablePointer<AnchorSlope>) -> Double {
      var value = 0.0
      for i in 0..<n where anchors[i].negatives > 0 {
        let (loss, slope) = rule.row(slopes[i].positive, slopes[i].negative)
        value += loss / Double(n)
        (slopes[i].byPositive, slopes[i].byNegative) = (-slope / Double(n), slope / Double(n))
      }
      return value
    }
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let both = try Embedding([x["x"], x["y"]], n, d, normalize: true, cache, space), u = both.u
    let aligned = Rows.sum(n, work: 2 * d) { Flat.dot(u + $0 * d, u + (n + $0) * d, d) } / Double(n)
    let temperature = try rule.temperature(aligned)
    try cache?.keep("temperature", 1, Double.self).pointee = temperature
    return try Pairs(rule: rule, temperature: temperature)
      .value(u, 2 * n, d, space.room(cache, "slopes", 2 * n, AnchorSlope.self), otherView(n))
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], both = try Embedding<T>(cache, cache.sizes["d"]), first = name == "x" ? 0 : n
    try Pairs(rule: rule, temperature: cache.kept("temperature", Double.self).pointee)
      .pull(g, both.u, 2 * n, both.d, rows: first, n, cache.kept("slopes", AnchorSlope.self), otherView(n))
    both.pull(g, rows: first, n, normalize: true)
  }
}

private let modelAware: [Parameter] = [
  .number("temperature", 0.1, .above(0), "tau_0"),
  .number("alpha", 0.5, .within(0, 1), "how strongly the temperature follows the alignment"),
  .number("a0", 0, .within(-1, 1), "alignment at which the temperature is tau_0"),
  .flag("reweight", true, "divide by 1 - P"),
]

private struct ModelAware: Sendable {
  let base: Double, alpha: Double, reference: Double, reweight: Bool
  init(_ h: Hyper) { (base, alpha, reference, reweight) = (h.temperature, h.alpha, h.a0, h.reweight) }

  func temperature(_ aligned: Double) throws(Failure) -> Double {
    let tau = base * (1 + alpha * (aligned - reference))
    guard !(tau <= 0) else {
      throw Failure(
        Status.range, "the temperature must be above 0; an alignment of \(text(aligned)) makes it \(text(tau))")
    }
    return tau
  }
  /// −V·log P, and V·(1 − P).
  func row(_ positive: Double, _ negative: Double) -> (value: Double, slope: Double) {
    let loss = softplus(negative - positive), rest = sigmoid(negative - positive)
    // (their quotient goes to 1 where both are too small for a number)
    return reweight ? (rest == 0 ? 1 : loss / rest, 1) : (loss, rest)
  }
}

/// The model-aware contrastive loss from similarities: pos (n,) and neg (n, K). The rule is that of `macl`.
///
/// Source   Huang et al., 2023, arXiv:2207.07874.
struct MACLFromSimilarities: Objective {
  static let method = Method(
    "macl_from_similarities", .objective, "The model-aware contrastive loss from similarities.",
    rule: MACL.method.rule, source: "Huang et al., 2023, arXiv:2207.07874", parameters: modelAware,
    inputs: [
      .variable("pos", "n", "similarities to the positives"), .variable("neg", "n, K", "similarities to negatives"),
    ])
  private let rule: ModelAware
  init(_ h: Hyper) { rule = ModelAware(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let pos = try x["pos"], neg = try x["neg"], n = x.sizes["n"], count = x.sizes["K"]
    let tau = try rule.temperature(Rows.sum(n, work: 1) { Double(pos[$0]) } / Double(n)), weight = 1 / Double(n)
    let dp = try cache?.keep("pos", n, T.self), dn = try cache?.keep("neg", n * count, T.self)
    return Rows.sum(n, work: 16 * count) { i in
      var sum = LogSum()
      for k in (i * count)..<((i + 1) * count) { sum.add(Double(neg[k]) / tau) }
      let (value, slope) = rule.row(Double(pos[i]) / tau, sum.value)
      dp?[i] = T(-weight * slope / tau)
      if let dn {
        for k in (i * count)..<((i + 1) * count) {
          dn[k] = T(weight * slope / tau * exp(Double(neg[k]) / tau - sum.value))
        }
      }
      return weight * value
    }
  }
}

/// Contrastive learning with a temperature for every sample, which distributionally robust optimisation adapts.
///
///     E_ij = exp(u_i·u_j/τ_i) over the rows of other samples, g_i = mean E_ij     s = (1 − γ)·s_old + γ·g
///     W_ij = E_ij/(k·s_i), held constant     value = 1/n·Σ_i (Σ_j W_ij·S_ij − S_i,pos) over all 2n anchors
///     dτ_i = log s_i + ρ − Σ_j W_ij·S_ij/τ_i, the mean of both views, clipped     u ← (1 − β)·u + β·dτ
///     τ ← clip(τ − lr·u, τ_min, τ_max)
///
/// x and y are (n, d), two views. s, tau and u are what the host remembers of these samples; without s it is their
/// first visit, without tau they start at tau_init, without u at 0. The pull-back gives s_next, tau_next and u_next,
/// to be stored for the samples (take them with a factor of 1). `index` tells samples that stand in the batch twice:
/// they are no negatives of each other, and the host stores the later row.
/// Errors   TW_ERROR_RANGE: a tau that is not above 0, tau_min above tau_max.
/// Source   Qiu et al., 2023, arXiv:2305.11965.
struct IsoGCLR: Objective {
  static let method = Method(
    "isogclr", .objective, "Contrastive learning with a temperature for every sample.",
    rule: """
      E_ij = exp(u_i.u_j/tau_i), g_i = mean over other samples;  s = (1 - gamma)*s + gamma*g;  W_ij = E_ij/(k*s_i)
      value = 1/n*sum_i (sum_j W_ij*S_ij - S_i,pos), W held constant
      dtau = log s + rho - sum_j W_ij*S_ij/tau;  u <- (1 - beta_u)*u + beta_u*dtau;  tau <- clip(tau - tau_lr*u)
      """,
    source: "Qiu et al., 2023, arXiv:2305.11965",
    parameters: [
      .number("gamma", 0.8, .between(0, 1, lowOpen: true, highOpen: false), "moving average of the normaliser"),
      .number("tau_init", 0.07, .above(0), "first temperature"), .number("tau_min", 0.05, .above(0), "smallest one"),
      .number("tau_max", 1, .above(0), "largest one"), .number("rho", 6, .above(0), "radius of the divergence"),
      .number("tau_lr", 1e-3, .atLeast(0), "step size of the temperatures"),
      .number("beta_u", 0.9, .between(0, 1, lowOpen: true, highOpen: false), "weight of a new gradient of tau"),
      .number("grad_clip", 3, .above(0), "largest gradient of tau"),
    ],
    inputs: viewInputs + [
      .constant("s", "n", "normalisers of these samples; none: their first visit", optional: true),
      .constant("tau", "n", "their temperatures; none: tau_init", optional: true),
      .constant("u", "n", "their averaged gradients of tau; none: 0", optional: true),
      .integer("index", "n", "which samples they are; none: all different", optional: true),
      .result("s_next", "n", "the normalisers to store"), .result("tau_next", "n", "the temperatures to store"),
      .result("u_next", "n", "the averages to store"),
    ],
    validate: { (h) throws(Failure) in
      guard h.tau_min <= h.tau_max as Double else {
        throw Failure(Status.range, "isogclr: `tau_min` must be at most `tau_max`, got \(text(h.tau_min))")
      }
    })

  let gamma: Double, first: Double, range: (low: Double, high: Double), rho: Double, lr: Double, beta: Double,
    clip: Double
  init(_ h: Hyper) {
    (gamma, first, rho, lr, beta, clip) = (h.gamma, h.tau_init, h.rho, h.tau_lr, h.beta_u, h.grad_clip)
    range = (h.tau_min, h.tau_max)
  }

  private struct Pairs: PairLoss {
    /// Of every sample: its temperature, and its normaliser before (below 0: none yet).
    let tau: UnsafePointer<Double>, old: UnsafePointer<Double>, samples: Int, gamma: Double
    /// Of every anchor: its new normaliser, and Σ W·S.
    let normaliser: UnsafeMutablePointer<Double>, weighted: UnsafeMutablePointer<Double>

    func exponent(_ s: Double, positive: Bool, of i: Int) -> (value: Double, slope: Double) {
      positive ? (0, 0) : (s / tau[i % samples], 1)
    }
    func outer(_ anchors: UnsafePointer<Anchor>, _ n: Int, _ slopes: UnsafeMutablePointer<AnchorSlope>) -> Double {
      var value = 0.0
      for i in 0..<n where anchors[i].negatives > 0 {
        let sample = i % samples, k = Double(anchors[i].negatives), mass = exp(slopes[i].negative)
        let g = mass / k, s = old[sample] < 0 ? g : (1 - gamma) * old[sample] + gamma * g
        normaliser[i] = s
        weighted[i] = mass / (k * s) * anchors[i].negative.mean * tau[sample]
        value += (weighted[i] - anchors[i].similarity) / Double(samples)
        slopes[i].byNegative = mass / (k * s) / Double(samples)
        slopes[i].bySimilarity = -1 / Double(samples)
      }
      return value
    }
  }
  private func relation(_ n: Int, _ index: UnsafePointer<Int>?) -> Relation {
    { i, j in
      let a = i % n, b = j % n
      if a == b { return i == j ? 0 : 1 }
      return index.map { $0[a] == $0[b] } ?? false ? 0 : -1
    }
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let given = x.optional("tau"), before = x.optional("s"), moving = x.optional("u")
    let tau = try space.room(cache, "tau", n, Double.self), old = try space.room(n, Double.self)
    for i in 0..<n {
      tau[i] = given.map { Double($0[i]) } ?? first
      old[i] = before.map { Double($0[i]) } ?? -1
      guard tau[i] > 0, before == nil || old[i] >= 0 else {
        throw Failure(
          Status.range,
          "`tau` must be above 0 and `s` at least 0, got \(text(tau[i])) and \(text(old[i])) at element \(i)")
      }
    }
    let both = try Embedding([x["x"], x["y"]], n, d, normalize: true, cache, space)
    let normaliser = try space.room(2 * n, Double.self), weighted = try space.room(2 * n, Double.self)
    let pairs = Pairs(tau: tau, old: old, samples: n, gamma: gamma, normaliser: normaliser, weighted: weighted)
    let index = x.optionalIntegers("index")
    let value = try pairs.value(
      both.u, 2 * n, d, space.room(cache, "slopes", 2 * n, AnchorSlope.self), relation(n, index))
    guard let cache else { return value }
    if let index { try cache.keep("index", n, of: index) }
    let s = try cache.keep("s_next", n, T.self), t = try cache.keep("tau_next", n, T.self)
    let u = try cache.keep("u_next", n, T.self)
    for i in 0..<n {
      let a = normaliser[i], b = normaliser[n + i], was = moving.map { Double($0[i]) } ?? 0
      if a == 0 {  // no negatives: nothing to learn
        (s[i], t[i], u[i]) = (T(max(old[i], 0)), T(tau[i]), T(was))
        continue
      }
      let slope = (log(a) + log(b)) / 2 + rho - (weighted[i] + weighted[n + i]) / (2 * tau[i])
      let average = (1 - beta) * was + beta * larger(-clip, smaller(clip, slope))
      s[i] = T((a + b) / 2)
      u[i] = T(average)
      t[i] = T(larger(range.low, smaller(range.high, tau[i] - lr * average)))
    }
    return value
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"]
    guard name == "x" || name == "y" else {
      g.update(from: try cache.kept(name, T.self), count: n)
      return
    }
    let both = try Embedding<T>(cache, cache.sizes["d"]), first = name == "x" ? 0 : n, space = Workspace()
    defer { space.close() }
    let none = try space.room(1, Double.self)
    let pairs = try Pairs(
      tau: cache.kept("tau", Double.self), old: none, samples: n, gamma: gamma, normaliser: none, weighted: none)
    try pairs.pull(
      g, both.u, 2 * n, both.d, rows: first, n, cache.kept("slopes", AnchorSlope.self),
      relation(n, cache.count("index") > 0 ? cache.kept("index", Int.self) : nil))
    both.pull(g, rows: first, n, normalize: true)
  }
}
