import Glibc
import ThalwegCore

/// What makes one loss of those of several tasks or groups: the gradients for the losses are the weights with which
/// their own gradients add up. All of it is in double.
private func numbers<T: Real>(_ x: Inputs<T>, _ name: String) throws(Failure) -> [Double] {
  let p = try x[name]
  return (0..<x.sizes["m"]).map { Double(p[$0]) }
}
private let losses = Input.variable("losses", "m", "one loss for each task or group")

/// Logarithms that are learned with the losses: the host's, or kept here, where each pass that keeps its gradients ends
/// with a step of gradient descent on them.
private enum Learned {
  static func parameters(_ what: String) -> [Parameter] {
    [
      .number("init", 0, .any, "the \(what) at first, where they are kept here"),
      .number("lr", 0.01, .atLeast(0), "step size of those that are kept here"),
    ]
  }
  static func input(_ what: String) -> Input {
    .variable("s", "m", "\(what), from 0 on; kept here when left out", optional: true)
  }
  static func state(_ h: Hyper) -> [Recollection] {
    let start: Double = h[dynamicMember: "init"]
    return [Recollection("s", "m", start: start, isInput: true)]
  }
  static func read<T: Real>(_ x: Inputs<T>) throws(Failure) -> [Double] {
    if x.optional("s") != nil { return try numbers(x, "s") }
    let s = try x.memory["s"]
    return (0..<x.sizes["m"]).map { s[$0] }
  }
  static func learn<T: Real>(_ x: Inputs<T>, _ slopes: [Double], _ lr: Double) throws(Failure) {
    if x.optional("s") != nil { return }
    let s = try x.memory["s"]
    for (i, slope) in slopes.enumerated() { s[i] -= lr * slope }
  }
}

/// Uncertainty weighting: every loss is divided by a variance that is learned with it.
///
///     F = Σ (e^(−s_i)·L_i/2 + s_i/2);   ∂F/∂L = e^(−s)/2,   ∂F/∂s = ½ − e^(−s)·L/2
///
/// s, the logarithms of the variances, are parameters of the host, or, when left out, kept here: they start at `init`
/// and s ← s − lr·∂F/∂s after every pass that keeps its gradients. At best they are log L.
/// State    s, where it is left out.
/// Differs  nothing from torchjd.UW. Negative losses have no lower bound.
/// Source   Kendall, Gal and Cipolla, 2017, arXiv:1705.07115.
struct UncertaintyWeighting: Objective {
  static let method = Method(
    "uncertainty_weighting", .objective, "Losses of tasks over variances that are learned with them.",
    rule: "F = sum_i (exp(-s_i)*L_i/2 + s_i/2)", source: "Kendall, Gal, Cipolla, 2017, arXiv:1705.07115",
    parameters: Learned.parameters("logarithms of the variances"),
    inputs: [losses, Learned.input("logarithms of the variances")])
  static func state(_ h: Hyper) -> [Recollection] { Learned.state(h) }
  let lr: Double
  init(_ h: Hyper) { lr = h.lr }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try numbers(x, "losses"), s = try Learned.read(x), w = s.map { exp(-$0) / 2 }
    if let cache {
      try cache.keep("losses", numbers: w, T.self)
      let slopes = zip(w, L).map { 0.5 - $0 * $1 }
      try cache.keep("s", numbers: slopes, T.self)
      try Learned.learn(x, slopes, lr)
    }
    return L.indices.reduce(0) { $0 + w[$1] * L[$1] + s[$1] / 2 }
  }
}

/// IMTL-L: losses are scaled until they are equal.
///
///     F = Σ (e^(s_i)·L_i − s_i);   ∂F/∂L = e^s,   ∂F/∂s = e^s·L − 1
///
/// s, the logarithms of the scales, are parameters of the host, or, when left out, kept here: they start at `init` and
/// s ← s − lr·∂F/∂s after every pass that keeps its gradients. Losses must be positive to have a minimum.
/// State    s, where it is left out.
/// Differs  nothing from torchjd.IMTLL. It is twice uncertainty_weighting at −s.
/// Source   Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, 2021, ICLR.
struct IMTLL: Objective {
  static let method = Method(
    "imtl_l", .objective, "Losses of tasks, scaled by factors that are learned with them.",
    rule: "F = sum_i (exp(s_i)*L_i - s_i)", source: "Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang, 2021, ICLR",
    parameters: Learned.parameters("logarithms of the scales"),
    inputs: [losses, Learned.input("logarithms of the scales")])
  static func state(_ h: Hyper) -> [Recollection] { Learned.state(h) }
  let lr: Double
  init(_ h: Hyper) { lr = h.lr }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try numbers(x, "losses"), s = try Learned.read(x), w = s.map { exp($0) }
    if let cache {
      try cache.keep("losses", numbers: w, T.self)
      let slopes = zip(w, L).map { $0 * $1 - 1 }
      try cache.keep("s", numbers: slopes, T.self)
      try Learned.learn(x, slopes, lr)
    }
    return L.indices.reduce(0) { $0 + w[$1] * L[$1] - s[$1] }
  }
}

/// Smooth Tchebycheff scalarisation: a smooth maximum of the losses above an ideal point.
///
///     y = weights·(L − reference);   F = μ·log Σ exp(y_i/μ);   ∂F/∂L = weights·softmax(y/μ)
///
/// weights are 1/m each unless given, the reference 0. The largest y is taken out of the sum.
/// Differs  nothing from torchjd.STCH.
/// Source   Lin, Zhang, Yang, Liu, Wang and Zhang, 2024, arXiv:2402.19078.
struct STCH: Objective {
  static let method = Method(
    "stch", .objective, "A smooth maximum of the losses of tasks above an ideal point.",
    rule: "y = weights*(L - reference);  F = mu*log sum_i exp(y_i/mu)",
    source: "Lin, Zhang, Yang, Liu, Wang, Zhang, 2024, arXiv:2402.19078",
    parameters: [.number("mu", 0.1, .above(0), "smoothing; small is the maximum")],
    inputs: [
      losses, .constant("weights", "m", "preference of each task, 1/m when left out", optional: true),
      .constant("reference", "m", "the ideal point, 0 when left out", optional: true),
    ])
  let mu: Double
  init(_ h: Hyper) { mu = h.mu }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try numbers(x, "losses"), m = L.count
    let weights = L.indices.map { i in x.optional("weights").map { Double($0[i]) } ?? 1 / Double(m) }
    let y = L.indices.map { i in weights[i] * (L[i] - (x.optional("reference").map { Double($0[i]) } ?? 0)) }
    let (value, share) = smoothMaximum(y, mu, from: y.map { _ in 0 })
    if let cache { try cache.keep("losses", numbers: zip(weights, share).map { $0 * $1 }, T.self) }
    return value
  }
}

/// μ·log Σ exp(y_i/μ + b_i), and the shares of the terms.
private func smoothMaximum(_ y: [Double], _ mu: Double, from b: [Double]) -> (Double, [Double]) {
  let z = zip(y, b).map { $0 / mu + $1 }
  let top = z.reduce(-Double.infinity) { larger($0, $1) }
  guard top.isFinite else { return (top * mu, z.map { _ in .nan }) }
  let e = z.map { exp($0 - top) }, sum = e.reduce(0, +)
  return (mu * (top + log(sum)), e.map { $0 / sum })
}

private let taskWeights = Input.result("weights", "m", "weights of the losses")

/// Variance risk extrapolation: the mean of the domains' losses and their variance.
///
///     value = mean L + lam·mean (L − mean L)²;   weights_i = (1 + 2·lam·(L_i − mean L))/m, the gradient for the losses
///     lam is 1 in the first anneal_iters passes
///
/// A weight may be negative. State    the number of passes.
/// Differs  nothing from DomainBed's VREx, which also starts its optimizer anew where the annealing ends.
/// Source   Krueger et al., 2020, arXiv:2003.00688.
struct VREx: Objective {
  static let method = Method(
    "vrex", .weighting, "The mean of the losses of domains and their variance.",
    rule:
      "value = mean(L) + lam*mean((L - mean(L))^2);  weights = (1 + 2*lam*(L - mean(L)))/m;  lam = 1 while annealed",
    source: "Krueger, Caballero, Jacobsen, Zhang, Binas, Zhang, Le Priol, Courville, 2020, arXiv:2003.00688",
    parameters: [
      .number("lam", 10, .atLeast(0), "weight of the variance"),
      .integer("anneal_iters", 500, .atLeast(0), "first passes, with the weight 1"),
    ], inputs: [losses, taskWeights])
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("passed")] }
  let lam: Double, annealed: Double
  init(_ h: Hyper) { (lam, annealed) = (h.lam, h.anneal_iters) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    try refuseNonFinite(x["losses"], x.sizes["m"], "losses")
    let L = try numbers(x, "losses"), m = Double(L.count), mean = L.reduce(0, +) / m, passed = try x.memory["passed"]
    let weight = passed[0] < annealed ? 1 : lam
    passed[0] += 1
    let weights = L.map { (1 + 2 * weight * ($0 - mean)) / m }
    try cache?.keep("weights", numbers: weights, T.self)
    try cache?.keep("losses", numbers: weights, T.self)
    return mean + weight * L.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / m
  }
}

/// Group distributionally robust optimisation: groups weigh more the worse they did.
///
///     q_i ← q_i·exp(eta·(L_i + C_i))/Σ q_j·exp(eta·(L_j + C_j)), equal at first;   C is `adjust`, 0 when left out
///     value = Σ q_i·L_i, its gradient for the losses q
///
/// A loss that is NaN is that of a group which is not in the batch: its q changes by the normalisation alone.
///
/// State    log q.
/// Differs  nothing from DomainBed's GroupDRO. q is kept as its logarithm: no group is lost by rounding. A sample of
///          group g weighs q_g over the samples of that group in the batch.
/// Source   Sagawa, Koh, Hashimoto and Liang, 2019, arXiv:1911.08731.
struct GroupDRO: Objective {
  static let method = Method(
    "group_dro", .weighting, "The losses of groups with weights that grow with them.",
    rule: """
      q_i <- q_i*exp(eta*(L_i + adjust_i))/sum_j q_j*exp(eta*(L_j + adjust_j));  value = sum_i q_i*L_i;  weights = q
      """,
    source: "Sagawa, Koh, Hashimoto, Liang, 2019, arXiv:1911.08731",
    parameters: [.number("eta", 0.01, .above(0), "step of the weights")],
    inputs: [
      losses, taskWeights,
      .constant("adjust", "m", "added to the losses, as K/sqrt(size of the group); 0 when left out", optional: true),
    ])
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("log_q", "m")] }
  let eta: Double
  init(_ h: Hyper) { eta = h.eta }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try numbers(x, "losses"), log = try x.memory["log_q"], adjust = x.optional("adjust")
    guard L.allSatisfy({ !$0.isInfinite }) else {
      throw Failure(Status.nonfinite, "`losses` are infinite (NaN is a group that is not in the batch)")
    }
    for i in L.indices where !L[i].isNaN { log[i] += eta * (L[i] + (adjust.map { Double($0[i]) } ?? 0)) }
    let (total, q) = smoothMaximum(L.indices.map { log[$0] }, 1, from: L.map { _ in 0 })
    guard total.isFinite else { throw Failure(Status.range, "`losses` times eta overflow") }
    for i in L.indices { log[i] -= total }
    let there = L.map { $0.isNaN ? 0.0 : 1.0 }
    try cache?.keep("weights", numbers: q, T.self)
    try cache?.keep("losses", numbers: zip(q, there).map { $0 * $1 }, T.self)
    return L.indices.reduce(0) { there[$1] == 0 ? $0 : $0 + q[$1] * L[$1] }
  }
}
