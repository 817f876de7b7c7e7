import Glibc
import ThalwegCore

/// What makes one loss of those of several tasks or groups: the gradients for the losses are the weights with which
/// their own gradients add up. All of it is in double.
private func numbers<T: Real>(_ x: Inputs<T>, _ name: String) throws(Failure) -> [Double] {
  let p = try x[name]
  return (0..<x.sizes["m"]).map { Double(p[$0]) }
}
private let losses = Input.variable("losses", "m", "one loss for each task or group")

/// Uncertainty weighting: every loss is divided by a variance that is learned with it.
///
///     F = Σ (e^(−s_i)·L_i/2 + s_i/2);   ∂F/∂L = e^(−s)/2,   ∂F/∂s = ½ − e^(−s)·L/2
///
/// s, the logarithms of the variances, are parameters of the host; they start at 0 and are at best log L.
/// Differs  nothing from torchjd.UW. Negative losses have no lower bound.
/// Source   Kendall, Gal and Cipolla, 2017, arXiv:1705.07115.
struct UncertaintyWeighting: Objective {
  static let method = Method(
    "uncertainty_weighting", .objective, "Losses of tasks over variances that are learned with them.",
    rule: "F = sum_i (exp(-s_i)*L_i/2 + s_i/2)", source: "Kendall, Gal, Cipolla, 2017, arXiv:1705.07115",
    inputs: [losses, .variable("s", "m", "logarithms of the variances, from 0 on")])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try numbers(x, "losses"), s = try numbers(x, "s"), w = s.map { exp(-$0) / 2 }
    if let cache {
      try cache.keep("losses", numbers: w, T.self)
      try cache.keep("s", numbers: zip(w, L).map { 0.5 - $0 * $1 }, T.self)
    }
    return L.indices.reduce(0) { $0 + w[$1] * L[$1] + s[$1] / 2 }
  }
}

/// IMTL-L: losses are scaled until they are equal.
///
///     F = Σ (e^(s_i)·L_i − s_i);   ∂F/∂L = e^s,   ∂F/∂s = e^s·L − 1
///
/// s, the logarithms of the scales, are parameters of the host; they start at 0. Losses must be positive to have a
/// minimum.
/// Differs  nothing from torchjd.IMTLL. It is twice uncertainty_weighting at −s.
/// Source   Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, 2021, ICLR.
struct IMTLL: Objective {
  static let method = Method(
    "imtl_l", .objective, "Losses of tasks, scaled by factors that are learned with them.",
    rule: "F = sum_i (exp(s_i)*L_i - s_i)", source: "Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang, 2021, ICLR",
    inputs: [losses, .variable("s", "m", "logarithms of the scales, from 0 on")])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try numbers(x, "losses"), s = try numbers(x, "s"), w = s.map { exp($0) }
    if let cache {
      try cache.keep("losses", numbers: w, T.self)
      try cache.keep("s", numbers: zip(w, L).map { $0 * $1 - 1 }, T.self)
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

/// Variance risk extrapolation: the mean of the domains' losses and their variance.
///
///     F = mean L + lam·mean (L − mean L)²;   ∂F/∂L_i = (1 + 2·lam·(L_i − mean L))/m
///
/// A weight may be negative. The host anneals lam: 1 for the first 500 steps or so.
/// Differs  nothing from DomainBed's VREx.
/// Source   Krueger et al., 2020, arXiv:2003.00688.
struct VREx: Objective {
  static let method = Method(
    "vrex", .objective, "The mean of the losses of domains and their variance.",
    rule: "F = mean(L) + lam*mean((L - mean(L))^2)",
    source: "Krueger, Caballero, Jacobsen, Zhang, Binas, Zhang, Le Priol, Courville, 2020, arXiv:2003.00688",
    parameters: [.number("lam", 10, .atLeast(0), "weight of the variance")], inputs: [losses])
  let lam: Double
  init(_ h: Hyper) { lam = h.lam }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try numbers(x, "losses"), m = Double(L.count), mean = L.reduce(0, +) / m
    if let cache { try cache.keep("losses", numbers: L.map { (1 + 2 * lam * ($0 - mean)) / m }, T.self) }
    return mean + lam * L.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / m
  }
}

/// Group distributionally robust optimisation: groups weigh more the worse they did.
///
///     q_i ← q_i·exp(eta·(L_i + C_i))/Σ q_j·exp(eta·(L_j + C_j));   C is `adjust`, 0 when left out
///     F = log(Σ q_i·exp(eta·(L_i + C_i)))/eta, whose gradient for L is the new q
///
/// The host hands the gradient in as `q` with the next losses; without `q` all groups weigh the same. A loss that is
/// NaN is that of a group which is not in the batch: its q changes by the normalisation alone.
/// Differs  nothing from DomainBed's GroupDRO in the weights; its value is Σ q_i·L_i with the new q. A group with q = 0
///          keeps it. A sample of group g weighs q_g over the samples of that group in the batch.
/// Source   Sagawa, Koh, Hashimoto and Liang, 2019, arXiv:1911.08731.
struct GroupDRO: Objective {
  static let method = Method(
    "group_dro", .objective, "The losses of groups with weights that grow with them.",
    rule: "F = log(sum_i q_i*exp(eta*(L_i + adjust_i))/sum(q))/eta;  its gradient is the next q",
    source: "Sagawa, Koh, Hashimoto, Liang, 2019, arXiv:1911.08731",
    parameters: [.number("eta", 0.01, .above(0), "step of the weights")],
    inputs: [
      losses, .constant("q", "m", "weights so far: the last gradient; equal when left out", optional: true),
      .constant("adjust", "m", "added to the losses, as K/sqrt(size of the group); 0 when left out", optional: true),
    ])
  let eta: Double
  init(_ h: Hyper) { eta = h.eta }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let adjust = x.optional("adjust")
    let L = try numbers(x, "losses").enumerated().map { i, l in
      l.isNaN ? 0 : l + (adjust.map { Double($0[i]) } ?? 0)
    }
    let q = L.indices.map { i in x.optional("q").map { Double($0[i]) } ?? 1 }
    guard q.allSatisfy({ $0 >= 0 }), q.contains(where: { $0 > 0 }) else {
      throw Failure(Status.range, "`q` must not be negative, and not 0 throughout")
    }
    let sum = q.reduce(0, +)
    let (value, share) = smoothMaximum(L, 1 / eta, from: q.map { log($0 / sum) })
    if let cache { try cache.keep("losses", numbers: share, T.self) }
    return value
  }
}
