import Glibc
import ThalwegCore

/// What the units below have in common: pre-activations a, derivatives dh of the host's loss by the outputs h, which
/// the pull-back gives as a result (take it with a factor of 1). The value is Σ dh·h, and the gradient of a what the
/// estimator says it is; without dh both are 0.
private enum Unit {
  static func inputs(_ more: Input...) -> [Input] {
    [.variable("a", "...", "pre-activations")] + more + [
      .constant("dh", "...", "derivatives by h; none: 0", optional: true), .result("h", "...", "outputs"),
    ]
  }
  /// `body`: the output of an element, and its derivative.
  static func pass<T: Real>(_ x: Inputs<T>, _ cache: Cache?, _ body: (Int) -> (h: Double, slope: Double))
    throws(Failure)
    -> Double
  {
    let count = x.sizes.samples, dh = x.optional("dh")
    let h = try cache?.keep("h", count, T.self), g = try cache?.keep("a", count, T.self)
    return Rows.sum(count, work: 32) { i in
      let (output, slope) = body(i), upstream = dh.map { Double($0[i]) } ?? 0
      h?[i] = T(output)
      g?[i] = T(upstream * slope)
      return upstream * output
    }
  }
}

/// Binary units with a straight-through gradient.
///
///     p = σ(slope·a), h = 1 where p > u, else 0;   u: a uniform draw, or the threshold
///     ∂a = ∂h (identity), ∂h·slope·p·(1 − p) (sigmoid), or ∂h where |a| ≤ 1 (hardtanh)
///
/// a, u and dh are (...). p = u gives 0. The gradient is biased by design.
/// Differs  units of BNN and XNOR are −1 and 1.
/// Source   Bengio, Léonard, Courville, 2013, arXiv:1308.3432.
struct StraightThrough: Objective {
  static let method = Method(
    "straight_through", .objective, "Binary units whose gradient goes straight through: a layer.",
    rule: """
      p = sigma(slope*a), h = [p > u];  value = sum dh*h
      gradient for a: dh (identity), dh*slope*p*(1 - p) (sigmoid), dh*[|a| <= 1] (hardtanh)
      """,
    source: "Bengio, Leonard, Courville, 2013, arXiv:1308.3432",
    parameters: [
      .choice("backward", ["identity", "sigmoid", "hardtanh"], "derivative that is put in place of the step"),
      .number("slope", 1, .above(0), "of the sigmoid"),
      .number(
        "threshold", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "in place of the draws, where there are none"),
    ], inputs: Unit.inputs(.constant("u", "...", "uniform draws; none: the threshold", optional: true)))
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["a"], u = x.optional("u"), slope: Double = h.slope, threshold: Double = h.threshold
    let identity = h.is("backward", "identity"), smooth = h.is("backward", "sigmoid")
    return try Unit.pass(x, cache) { i in
      let z = Double(a[i]), p = sigmoid(slope * z), bound = u.map { Double($0[i]) } ?? threshold
      let derivative = identity ? 1 : smooth ? slope * p * sigmoid(-slope * z) : abs(z) <= 1 ? 1.0 : 0
      return (p.isNaN || bound.isNaN ? .nan : p > bound ? 1 : 0, derivative)
    }
  }
}

/// Stochastic times smooth units: a binary draw times a smooth factor, with the sigmoid for its mean.
///
///     p = σ(a), b = 1 where √p > u, else 0;   h = b·√p     ∂a = ∂h·b·√p·(1 − p)/2
///
/// a, u and dh are (...).
/// Source   Bengio, Léonard, Courville, 2013, arXiv:1308.3432.
struct StochasticTimesSmooth: Objective {
  static let method = Method(
    "stochastic_times_smooth", .objective, "Binary draws times a smooth factor: a layer.",
    rule: "p = sigma(a), b = [sqrt(p) > u], h = b*sqrt(p);  value = sum dh*h;  gradient for a: dh*b*sqrt(p)*(1 - p)/2",
    source: "Bengio, Leonard, Courville, 2013, arXiv:1308.3432",
    inputs: Unit.inputs(.constant("u", "...", "uniform draws")))
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["a"], u = try x["u"]
    return try Unit.pass(x, cache) { i in
      let root = sigmoid(Double(a[i])).squareRoot(), b = root > Double(u[i])
      return root.isNaN || u[i].isNaN ? (.nan, .nan) : b ? (root, root * sigmoid(-Double(a[i])) / 2) : (0, 0)
    }
  }
}

/// Rectifiers with noise on their inputs.
///
///     h = max(0, a + noise)     ∂a = ∂h where a + noise > 0
///
/// a, noise and dh are (...). The host draws the noise, with the spread that makes units as sparse as wanted.
/// Source   Bengio, Léonard, Courville, 2013, arXiv:1308.3432.
struct NoisyRectifier: Objective {
  static let method = Method(
    "noisy_rectifier", .objective, "Rectifiers with noise on their inputs: a layer.",
    rule: "h = max(0, a + noise);  value = sum dh*h;  gradient for a: dh*[a + noise > 0]",
    source: "Bengio, Leonard, Courville, 2013, arXiv:1308.3432",
    inputs: Unit.inputs(.constant("noise", "...", "noise of the inputs")))
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["a"], noise = try x["noise"]
    return try Unit.pass(x, cache) { i in
      let z = Double(a[i]) + Double(noise[i])
      return (larger(0, z), z > 0 ? 1 : 0)
    }
  }
}

/// The unbiased gradient of binary units from losses alone, with the baseline of least variance.
///
///     p = σ(a)     ∂a_ij = (h_ij − p_ij)·(L_i − b_j),  b_j = E[(h − p)²·L]/E[(h − p)²] of earlier batches, first 0
///     afterwards both averages: m ← decay·m + (1 − decay)·batch mean; the first batch sets them
///
/// a and h, the units' samples, are (n, d), losses (n,). It is the gradient of Σ_i E[L_i]; the value is the sum
/// of the losses. A baseline without a denominator is 0.
/// State    both averages for each unit.
/// Source   Bengio, Léonard, Courville, 2013, arXiv:1308.3432.
struct StochasticNeuronREINFORCE: Objective {
  static let method = Method(
    "stochastic_neuron_reinforce", .objective, "The unbiased gradient of binary units from losses alone.",
    rule: """
      p = sigma(a);  gradient for a: (h - p)*(L - b), b = E[(h - p)^2 L]/E[(h - p)^2] of earlier batches, first 0
      both averages with decay; the first batch sets them
      """,
    source: "Bengio, Leonard, Courville, 2013, arXiv:1308.3432",
    parameters: [.rate("decay", 0.9, "rate of both averages"), .flag("baseline", true, "subtract b")],
    inputs: [
      .variable("a", "n, d", "pre-activations"), .constant("h", "n, d", "outputs that were drawn, 0 or 1"),
      .constant("losses", "n", "loss of each sample"), .result("baselines", "d", "b of each unit in this pass"),
    ])
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("weighted", "d"), Recollection("squares", "d")] }
  let decay: Double, uses: Bool
  init(_ h: Hyper) { (decay, uses) = (h.decay, h.baseline) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["a"], h = try x["h"], losses = try x["losses"], n = x.sizes["n"], d = x.sizes["d"]
    let weighted = try x.memory["weighted"], squares = try x.memory["squares"], space = Workspace()
    defer { space.close() }
    let b = try space.room(d, Double.self), means = try space.room(2 * d, Double.self)
    for j in 0..<d where uses && squares[j] != 0 { b[j] = weighted[j] / squares[j] }
    let g = try cache?.keep("a", n * d, T.self), share = 1 / Double(n)
    _ = Rows.sum(d, work: 32 * n) { j in
      for i in 0..<n {
        let at = i * d + j, apart = Double(h[at]) - sigmoid(Double(a[at])), loss = Double(losses[i])
        g?[at] = T(apart * (loss - b[j]))
        means[j] += apart * apart * loss * share
        means[d + j] += apart * apart * share
      }
      return 0
    }
    let old = x.memory.passes == 0 ? 0 : decay
    for j in 0..<d {
      weighted[j] = old * weighted[j] + (1 - old) * means[j]
      squares[j] = old * squares[j] + (1 - old) * means[d + j]
    }
    try cache?.keep("baselines", numbers: (0..<d).map { b[$0] }, T.self)
    return Rows.sum(n, work: 1) { Double(losses[$0]) }
  }
}

/// Gumbel-softmax: a softmax of noisy logits in place of a draw from a category.
///
///     s = softmax((z + noise)/T);   y = s, or (hard) one at its largest entry, with the gradient of s
///     ∂z = s·(∂y − Σ ∂y·s)/T
///
/// z, noise and dy are (..., C); noise is −log(−log u) of uniform draws of the host. Of equal entries the first is one.
/// The value is Σ dy·y; without dy it is 0.
/// Differs  nothing from torch, given the same noise.
/// Source   Jang, Gu, Poole, 2017, arXiv:1611.01144; Maddison, Mnih, Teh, 2017, arXiv:1611.00712.
struct GumbelSoftmax: Objective {
  static let method = Method(
    "gumbel_softmax", .objective, "A softmax of noisy logits in place of a draw: a layer.",
    rule: """
      s = softmax((z + noise)/temperature);  y = s, or one-hot at its largest entry (hard);  value = sum dy*y
      gradient for z: s*(dy - sum dy*s)/temperature
      """,
    source: "Jang, Gu, Poole, 2017, arXiv:1611.01144; Maddison, Mnih, Teh, 2017, arXiv:1611.00712",
    parameters: [
      .number("temperature", 1, .above(0), "of the softmax"), .flag("hard", false, "one-hot outputs, soft gradients"),
    ],
    inputs: [
      .variable("z", "..., C", "logits"), .constant("noise", "..., C", "Gumbel noise"),
      .constant("dy", "..., C", "derivatives by y; none: 0", optional: true), .result("y", "..., C", "outputs"),
    ])
  let temperature: Double, hard: Bool
  init(_ h: Hyper) { (temperature, hard) = (h.temperature, h.hard) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], noise = try x["noise"], dy = x.optional("dy"), n = x.sizes.samples, classes = x.sizes["C"]
    let y = try cache?.keep("y", n * classes, T.self), g = try cache?.keep("z", n * classes, T.self)
    return Rows.sum(n, work: 64 * classes) { i in
      let row = i * classes
      func logit(_ c: Int) -> Double { (Double(z[row + c]) + Double(noise[row + c])) / temperature }
      func upstream(_ c: Int) -> Double { dy.map { Double($0[row + c]) } ?? 0 }
      var sum = LogSum(), top = 0
      for c in 0..<classes {
        sum.add(logit(c))
        if logit(c) > logit(top) { top = c }
      }
      let log = sum.value
      var mean = 0.0
      for c in 0..<classes { mean += upstream(c) * exp(logit(c) - log) }
      for c in 0..<classes {
        let s = exp(logit(c) - log)
        y?[row + c] = T(hard && !s.isNaN ? (c == top ? 1 : 0) : s)
        g?[row + c] = T(s * (upstream(c) - mean) / temperature)
      }
      return hard && !mean.isNaN ? upstream(top) : mean
    }
  }
}

/// Shaping for demonstrations whose reference policy is taken to be certain.
///
///     π = exp(logp), f = π/(π + γ)     value = −mean A·f     ∂logp = −A·γ·π/(π + γ)²/N
///
/// logp and advantages are (...); advantages count 1 unless given. f is a result. π = 0 gives f = 0 without a gradient.
/// Source   Yan et al., 2025 (LUFFY), arXiv:2504.14945; Lv et al., 2025, arXiv:2509.04419.
struct OffPolicyShaping: Objective {
  static let method = Method(
    "off_policy_shaping", .objective, "The shaped probability of demonstrated tokens, times their advantage.",
    rule: "pi = exp(logp), f = pi/(pi + gamma);  value = -mean A*f;  gradient for logp: -A*gamma*pi/(pi + gamma)^2/N",
    source: "Yan et al., 2025, arXiv:2504.14945; Lv et al., 2025, arXiv:2509.04419",
    parameters: [.number("gamma", 0.1, .above(0), "where the shape is half of its height"), Reduction.parameter],
    inputs: [
      .variable("logp", "...", "log-probabilities of demonstrated tokens"),
      .constant("advantages", "...", "their advantages; 1 when left out", optional: true),
      .result("f", "...", "shaped probabilities"),
    ])
  let gamma: Double, reduction: Reduction
  init(_ h: Hyper) { (gamma, reduction) = (h.gamma, Reduction(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let logp = try x["logp"], advantages = x.optional("advantages"), count = x.sizes.samples
    let f = try cache?.keep("f", count, T.self), g = try cache?.keep("logp", count, T.self)
    return reduction.elements(count, into: g) { i in
      // π/(π + γ) = σ(log π − log γ), whatever their sizes
      let u = Double(logp[i]) - log(gamma), share = sigmoid(u), a = advantages.map { Double($0[i]) } ?? 1
      f?[i] = T(share)
      return (-a * share, -a * share * sigmoid(-u))
    }
  }
}

/// The mean of what lies behind a noisy observation, from the score of the observations: Tweedie's formula.
///
///     gaussian:  x = y + sigma²·score
///     poisson:   x = (y + zeta/2)·exp(score), y = zeta·Poisson(x/zeta), the score in y/zeta
///     gamma:     x = beta·y/((alpha − 1) − y·score), of shape alpha and rate beta/x
///
/// y, score and dx are (...). The value is Σ dx·x, the gradient of the score that of the value; without dx they are 0.
/// Errors   TW_ERROR_RANGE: a denominator of gamma that is not above 0: the score does not fit.
/// Differs  only gaussian is E[x | y]; gamma is 1/E[1/x | y] and poisson about exp E[log x | y]: the formula gives the
///          mean of the natural parameter.
/// Source   Kim, Ye, 2021, arXiv:2106.07009.
struct Tweedie: Objective {
  static let method = Method(
    "tweedie", .objective, "The posterior mean of noisy observations from their score: a layer.",
    rule: """
      gaussian: x = y + sigma^2*score;  poisson: x = (y + zeta/2)*exp(score);  gamma: x = beta*y/((alpha - 1) - y*score)
      value = sum dx*x
      """,
    source: "Kim, Ye, 2021, arXiv:2106.07009",
    parameters: [
      .choice("noise", ["gaussian", "poisson", "gamma"], "the law of the observations"),
      .number("sigma", 1, .above(0), "of gaussian noise"), .number("zeta", 1, .above(0), "scale of poisson noise"),
      .number("alpha", 2, .above(1), "shape of gamma noise"),
      .number("beta", 2, .above(0), "rate of gamma noise, times x"),
    ],
    inputs: [
      .constant("y", "...", "observations"), .variable("score", "...", "derivative of their log-density"),
      .constant("dx", "...", "derivatives by x; none: 0", optional: true), .result("x", "...", "posterior means"),
    ])
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let y = try x["y"], score = try x["score"], dx = x.optional("dx"), count = x.sizes.samples
    let sigma: Double = h.sigma, zeta: Double = h.zeta, alpha: Double = h.alpha, beta: Double = h.beta
    let gaussian = h.is("noise", "gaussian"), poisson = h.is("noise", "poisson")
    if !gaussian, !poisson {
      for i in 0..<count where (alpha - 1) - Double(y[i]) * Double(score[i]) <= 0 {
        throw Failure(
          Status.range, "`score` does not fit gamma noise: alpha - 1 - y*score is not above 0 at element \(i)")
      }
    }
    let out = try cache?.keep("x", count, T.self), g = try cache?.keep("score", count, T.self)
    return Rows.sum(count, work: 32) { i in
      let y = Double(y[i]), s = Double(score[i]), upstream = dx.map { Double($0[i]) } ?? 0
      var mean = y + sigma * sigma * s, slope = sigma * sigma
      if poisson {
        mean = (y + zeta / 2) * exp(s)
        slope = mean
      } else if !gaussian {
        let rest = (alpha - 1) - y * s
        (mean, slope) = (beta * y / rest, beta * (y / rest) * (y / rest))
      }
      out?[i] = T(mean)
      g?[i] = T(upstream * slope)
      return upstream * mean
    }
  }
}
