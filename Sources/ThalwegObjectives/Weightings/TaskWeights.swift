import Glibc
import ThalwegCore

/// GradNorm: weights of tasks that make their gradients equally long, up to their rates of training.
///
///     G_i = w_i·n_i     x_i = (L_i/L0_i)/mean of these     target_i = mean G·x_i^alpha
///     w_i ← max(w_i − lr·sign(G_i − target_i)·n_i, floor), then w ← w·m/Σ w
///
/// losses (m,) are those of this step, norms (m,) the norms n of their unweighted gradients on the last shared layer.
/// The weights that come back are those of this step, ones at first; the change is for the next. The value is Σ w·L,
/// its gradient for the losses the weights.
/// State    the weights and the losses of the first step.
/// Errors   TW_ERROR_RANGE: numbers that are not finite, or rates of training that have no power alpha.
/// Differs  LibMTL takes softmax weights and the losses of an epoch; a loss of 0 at first counts as 10⁻¹².
/// Source   Chen, Badrinarayanan, Lee, Rabinovich, 2018, arXiv:1711.02257.
struct GradNorm: Objective {
  static let method = Method(
    "gradnorm", .weighting, "Weights of tasks that balance the lengths of their gradients.",
    rule: """
      G_i = w_i n_i;  x_i = (L_i/L0_i)/mean(L/L0);  target_i = mean G x_i^alpha
      w_i <- max(w_i - lr sign(G_i - target_i) n_i, floor);  w <- w m/sum w
      """,
    source: "Chen, Badrinarayanan, Lee, Rabinovich, 2018, arXiv:1711.02257",
    parameters: [
      .number("alpha", 1.5, .any, "asymmetry"), .lr(0.025, .above(0)),
      .number("floor", 1e-8, .above(0), "lower bound of a weight"),
    ],
    inputs: [
      .variable("losses", "m", "losses of the tasks"), .constant("norms", "m", "norms of their gradients"),
      .result("weights", "m", "weights of this step"),
    ])
  static func state(_ h: Hyper) -> [Recollection] {
    [Recollection("weights", "m", start: 1), Recollection("first", "m")]
  }
  let alpha: Double, lr: Double, floor: Double
  init(_ h: Hyper) { (alpha, lr, floor) = (h.alpha, h.lr, h.floor) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let losses = try x["losses"], norms = try x["norms"], m = x.sizes["m"]
    let w = try x.memory["weights"], first = try x.memory["first"]
    try refuseNonFinite(losses, m, "losses")
    try refuseNonFinite(norms, m, "norms")
    if x.memory.passes == 0 { for i in 0..<m { first[i] = Double(losses[i]) } }
    let now = (0..<m).map { w[$0] }
    let value = (0..<m).reduce(0) { $0 + now[$1] * Double(losses[$1]) }
    let rates = (0..<m).map { Double(losses[$0]) / max(first[$0], 1e-12) }
    let lengths = (0..<m).map { now[$0] * Double(norms[$0]) }
    let mean = rates.reduce(0, +) / Double(m), length = lengths.reduce(0, +) / Double(m)
    for i in 0..<m {
      let target = length * pow(rates[i] / mean, alpha)
      guard target.isFinite else {
        throw Failure(
          Status.range, "`losses` must fall or rise with one sign; the rate of task \(i) has no power alpha")
      }
      w[i] = max(now[i] - lr * sign(lengths[i] - target) * Double(norms[i]), floor)
    }
    let sum = (0..<m).reduce(0) { $0 + w[$1] }
    for i in 0..<m { w[i] *= Double(m) / sum }
    try cache?.keep("weights", numbers: now, T.self)
    try cache?.keep("losses", numbers: now, T.self)
    return value
  }
}

/// FAMO: weights of tasks under which all losses fall at the same rate.
///
///     z = softmax(ξ)     D = L − min + eps     w = (z/D)/Σ(z/D)
///     after the step: δ = log D − log D_after, g = z ⊙ (δ − ⟨z, δ⟩) + weight_decay·ξ, ξ by Adam(lr; 0.9, 0.999, 10⁻⁸)
///
/// losses (m,) are those of this step before it is taken; after (m,) those of the batch before, after its step, with
/// which ξ changes first. Without `after` ξ stays. The value is Σ w·L, its gradient for the losses the weights.
/// State    ξ, both moments, their count, and the losses before.
/// Errors   TW_ERROR_RANGE: numbers that are not finite, or a loss at its lower bound less eps.
/// Differs  nothing from torchjd.FAMO, whose update comes before the next step here.
/// Source   Liu, Feng, Stone, Liu, 2023, arXiv:2306.03792.
struct FAMO: Objective {
  static let method = Method(
    "famo", .weighting, "Weights of tasks under which all losses fall at the same rate.",
    rule: """
      z = softmax(xi);  D = L - min + eps;  w = (z/D)/sum(z/D)
      delta = log D - log D_after;  g = z (delta - <z, delta>) + weight_decay xi;  xi by Adam
      """,
    source: "Liu, Feng, Stone, Liu, 2023, arXiv:2306.03792",
    parameters: [
      .lr(0.025), .weightDecay(1e-3, "decay of the logits, in their gradient"), .eps(1e-8, "in D", .above(0)),
    ],
    inputs: [
      .variable("losses", "m", "losses of the tasks"),
      .constant("after", "m", "losses of the batch before, after its step", optional: true),
      .constant("min_losses", "m", "lower bounds of the losses; 0 when left out", optional: true),
      .result("weights", "m", "weights of this step"),
    ])
  static func state(_ h: Hyper) -> [Recollection] {
    [
      Recollection("xi", "m"), Recollection("exp_avg", "m"), Recollection("exp_avg_sq", "m"), Recollection("logs", "m"),
      Recollection("updates"),
    ]
  }
  let lr: Double, decay: Double, eps: Double
  init(_ h: Hyper) { (lr, decay, eps) = (h.lr, h.weight_decay, h.eps) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let losses = try x["losses"], m = x.sizes["m"], least = x.optional("min_losses"), logs = try x.memory["logs"]
    func excess(_ losses: UnsafePointer<T>, _ name: String) throws(Failure) -> [Double] {
      try refuseNonFinite(losses, m, name)
      var out: [Double] = []
      for i in 0..<m {
        let d = Double(losses[i]) - (least.map { Double($0[i]) } ?? 0) + eps
        guard d > 0 else {
          throw Failure(
            Status.range, "`\(name)` must be above its lower bound less eps, got \(text(d)) at element \(i)")
        }
        out.append(d)
      }
      return out
    }
    if let least { try refuseNonFinite(least, m, "min_losses") }
    let now = try excess(losses, "losses")
    if let after = x.optional("after") {
      let next = try excess(after, "after")
      if x.memory.passes > 0 { try update(x, (0..<m).map { logs[$0] - log(next[$0]) }) }
    }
    let z = shares(try x.memory["xi"], m), parts = zip(z, now).map { $0 / $1 }, sum = parts.reduce(0, +)
    let weights = parts.map { $0 / sum }
    for i in 0..<m { logs[i] = log(now[i]) }
    try cache?.keep("weights", numbers: weights, T.self)
    try cache?.keep("losses", numbers: weights, T.self)
    return (0..<m).reduce(0) { $0 + weights[$1] * Double(losses[$1]) }
  }

  private func shares(_ xi: UnsafePointer<Double>, _ m: Int) -> [Double] {
    let log = Softmax.logSum(xi, m)
    return (0..<m).map { exp(xi[$0] - log) }
  }
  /// Adam's step on ξ.
  private func update<T: Real>(_ x: Inputs<T>, _ fall: [Double]) throws(Failure) {
    let xi = try x.memory["xi"], mean = try x.memory["exp_avg"], square = try x.memory["exp_avg_sq"]
    let updates = try x.memory["updates"], z = shares(xi, fall.count)
    let average = zip(z, fall).reduce(0) { $0 + $1.0 * $1.1 }
    updates[0] += 1
    for i in fall.indices {
      let g = z[i] * (fall[i] - average) + decay * xi[i]
      mean[i] = 0.9 * mean[i] + 0.1 * g
      square[i] = 0.999 * square[i] + 0.001 * g * g
      let m = mean[i] / (1 - pow(0.9, updates[0])), v = square[i] / (1 - pow(0.999, updates[0]))
      xi[i] -= lr * m / (v.squareRoot() + 1e-8)
    }
  }
}

/// Responsibilities of the components of a mixture: the weights of an EM step.
///
///     J_ik = negative_elbo_ik − log a_k, a normalised     weights = softmax_k(max(−J − max_k(−J), floor))
///     value = mean_i Σ_k weights·J, the weights held constant     gradient for negative_elbo: weights/n
///
/// negative_elbo is (n, K), log_weights, the logarithms of a, is (K,): equal ones when left out. Weights are made once
/// an epoch for all data and held during it.
/// Errors   TW_ERROR_RANGE: numbers that are not finite.
/// Differs  the last phase with overlapping charts is not here.
/// Source   Alberti, Hertrich, Santacesaria, Sciutto, 2023, arXiv:2303.15244.
struct MixtureResponsibilities: Objective {
  static let method = Method(
    "mixture_responsibilities", .weighting, "Responsibilities of the components of a mixture.",
    rule: "J = negative_elbo - log a;  weights = softmax(max(-J - max(-J), floor));  value = mean_i sum_k weights J",
    source: "Alberti, Hertrich, Santacesaria, Sciutto, 2023, arXiv:2303.15244",
    parameters: [
      .number(
        "floor", -25, .between(-.infinity, 0, lowOpen: false, highOpen: true), "least logarithm, relative to the best")
    ],
    inputs: [
      .variable("negative_elbo", "n, K", "losses of the components"),
      .constant("log_weights", "K", "logarithms of their shares, up to a constant", optional: true),
      .result("weights", "n, K", "responsibilities"),
    ])
  let floor: Double
  init(_ h: Hyper) { floor = h.floor }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let losses = try x["negative_elbo"], n = x.sizes["n"], k = x.sizes["K"], shares = x.optional("log_weights")
    try refuseNonFinite(losses, n * k, "negative_elbo")
    if let shares { try refuseNonFinite(shares, k, "log_weights") }
    let total = shares.map { Softmax.logSum($0, k) } ?? log(Double(k))
    let weights = try cache?.keep("weights", n * k, T.self), g = try cache?.keep("negative_elbo", n * k, T.self)
    return Rows.sum(n, work: 32 * k) { i in
      let j = (0..<k).map { c -> Double in
        let share: Double = shares.map { Double($0[c]) } ?? 0
        return Double(losses[i * k + c]) - share + total
      }
      let best = j.min() ?? 0, parts = j.map { exp(max(best - $0, floor)) }, sum = parts.reduce(0, +)
      var value = 0.0
      for c in 0..<k {
        let w = parts[c] / sum
        weights?[i * k + c] = T(w)
        g?[i * k + c] = T(w / Double(n))
        value += w * j[c]
      }
      return value / Double(n)
    }
  }
}

/// Hybrid post-training: a prompt that is not solved is learned from its demonstration, any other from its rollouts.
///
///     solved = how many rewards ≥ success     solved ≤ gate: weights 0, demonstration sft_coef     else: 1, and 0
///
/// rewards is (..., r), the rollouts of each prompt; weights are those of the rollouts, demonstration (...) that of the
/// mean negative log-likelihood of the demonstration. The value is the number of prompts learned from demonstrations.
/// Errors   TW_ERROR_RANGE: a reward that is not finite, or a gate above the number of rollouts.
/// Differs  nothing. Prompts without rollouts, rewards of shape (..., 0), are solved 0 times.
/// Source   Lv et al., 2025, arXiv:2509.04419.
struct HybridPostTraining: Objective {
  static let method = Method(
    "hybrid_post_training", .weighting, "Demonstrations for prompts that are not solved, rollouts for the others.",
    rule: "solved <= gate: rollouts 0, demonstration sft_coef;  else rollouts 1, demonstration 0",
    source: "Lv et al., 2025, arXiv:2509.04419",
    parameters: [
      .integer("gate", 0, .atLeast(0), "most solved rollouts of a prompt that needs its demonstration"),
      .number("success", 1, .any, "least reward of a solved rollout"),
      .number("sft_coef", 1, .atLeast(0), "weight of a demonstration"),
    ],
    inputs: [
      .constant("rewards", "..., r", "rewards of the rollouts of each prompt").orEmpty,
      .result("weights", "..., r", "weights of the rollouts").orEmpty,
      .result("demonstration", "...", "weights of the demonstrations"),
    ])
  let gate: Int, success: Double, coefficient: Double
  init(_ h: Hyper) { (gate, success, coefficient) = (h.integer("gate"), h.success, h.sft_coef) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rewards = try x["rewards"], n = x.sizes.samples, r = x.sizes["r"]
    try refuseNonFinite(rewards, n * r, "rewards")
    guard gate <= r else { throw Failure(Status.range, "`gate` must be at most the \(r) rollouts, got \(gate)") }
    let weights = try cache?.keep("weights", n * r, T.self), own = try cache?.keep("demonstration", n, T.self)
    var learned = 0
    for i in 0..<n {
      let solved = (0..<r).count { Double(rewards[i * r + $0]) >= success }
      learned += solved <= gate ? 1 : 0
      for k in 0..<r { weights?[i * r + k] = solved <= gate ? 0 : 1 }
      own?[i] = T(solved <= gate ? coefficient : 0)
    }
    return Double(learned)
  }
}
