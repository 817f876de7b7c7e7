import Glibc
import ThalwegCore

/// Direct preference optimisation.
///
///     h = β·[(chosen − rejected) − (ref_chosen − ref_rejected)]
///     value = mean (1 − ε)·softplus(−h) + ε·softplus(h)     ∂chosen = β·(σ(h) − (1 − ε))/n = −∂rejected
///
/// All inputs are sums of log-probabilities of answers, (n,).
/// Source   Rafailov et al., 2023, arXiv:2305.18290.
struct DPO: Objective {
  static let method = Method(
    "dpo", .objective, "Direct preference optimisation: chosen answers should gain on rejected ones.",
    rule: """
      h = beta*((chosen - rejected) - (ref_chosen - ref_rejected))
      value = mean (1 - eps)*softplus(-h) + eps*softplus(h)
      gradients for chosen: beta*(sigma(h) - (1 - eps))/n;  for rejected: minus that
      """,
    source: "Rafailov et al., 2023, arXiv:2305.18290",
    parameters: [
      .number("beta", 0.1, .above(0), "weight of the log-ratios"),
      .number("label_smoothing", 0, .within(0, 1), "eps, the share of preferences that are wrong"), Reduction.parameter,
    ],
    inputs: [
      .variable("chosen", "n", "log-probabilities of the chosen answers"),
      .variable("rejected", "n", "log-probabilities of the rejected answers"),
      .constant("ref_chosen", "n", "those of the chosen answers under the reference"),
      .constant("ref_rejected", "n", "those of the rejected answers under the reference"),
    ])
  let beta: Double, smoothing: Double, reduction: Reduction
  init(_ h: Hyper) { (beta, smoothing, reduction) = (h.beta, h.label_smoothing, Reduction(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let chosen = try x["chosen"], rejected = try x["rejected"], a = try x["ref_chosen"], b = try x["ref_rejected"]
    let n = x.sizes["n"], weight = reduction.weight(n)
    let up = try cache?.keep("chosen", n, T.self), down = try cache?.keep("rejected", n, T.self)
    return Rows.sum(n, work: 16) { i in
      let h = beta * ((Double(chosen[i]) - Double(rejected[i])) - (Double(a[i]) - Double(b[i])))
      let slope = weight * beta * (smoothing * sigmoid(h) - (1 - smoothing) * sigmoid(-h))
      up?[i] = T(slope)
      down?[i] = T(-slope)
      return weight * ((1 - smoothing) * softplus(-h) + smoothing * softplus(h))
    }
  }
}

/// One token-level policy gradient, of which supervised fine-tuning, REINFORCE, PPO, GRPO and off-policy demonstrations
/// are instances.
///
///     r = exp(logp − logp_ref)     value = −Σ r·A/N, clipped −Σ min(r·A, clip(r, 1 − ε₋, 1 + ε₊)·A)/N
///     ∂logp = −stable·r·A/N, stable = 0 where clipping holds r: A > 0 and r > 1 + ε₊, or A < 0 and r < 1 − ε₋
///
/// All inputs have the same shape; token_mask is 0 or 1, N the number of its ones or `length`. Without logp_ref the
/// reference is the policy itself, r = 1.
/// Errors   TW_ERROR_RANGE: a token_mask other than 0 and 1.
/// Differs  the paper's trainer has no clip and a fixed divisor; verl and TRL have the clipped form.
/// Source   Lv et al., 2025, arXiv:2509.04419.
struct UnifiedPolicyGradient: Objective {
  static let method = Method(
    "unified_policy_gradient", .objective, "One token-level policy gradient for fine-tuning and reinforcement.",
    rule: """
      r = exp(logp - logp_ref);  value = -sum r*advantage/N, with clip the smaller of that and the clipped one
      gradient for logp: -stable*r*advantage/N;  N: active tokens, or length
      """,
    source: "Lv et al., 2025, arXiv:2509.04419",
    parameters: [
      .choice("mask", ["none", "clip"], "stabilisation"),
      .number("eps_low", 0.2, .atLeast(0), "clip range below 1"),
      .number("eps_high", 0.2, .atLeast(0), "clip range above 1"),
      .choice("reduction", ["token_mean", "fixed_length"], "divide by the active tokens, or by length"),
      .maybe("length", .above(0), "divisor of fixed_length"),
    ],
    inputs: [
      .variable("logp", "...", "log-probabilities of the tokens taken"),
      .constant("advantage", "...", "advantages"),
      .constant("logp_ref", "...", "log-probabilities under the reference; none: the policy itself", optional: true),
      .integer("token_mask", "...", "1 for tokens that count, else 0", optional: true),
    ],
    validate: { (h) throws(Failure) in
      guard h.has("length") == h.is("reduction", "fixed_length") else {
        throw Failure(
          Status.range, "unified_policy_gradient: `length` belongs to reduction=fixed_length, which needs it")
      }
    })
  let clips: Bool, low: Double, high: Double, length: Double?
  init(_ h: Hyper) {
    (clips, low, high) = (h.is("mask", "clip"), 1 - h.eps_low, 1 + h.eps_high)
    length = h.has("length") ? h.length : nil
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let logp = try x["logp"], advantage = try x["advantage"], ref = x.optional("logp_ref"), n = x.sizes.samples
    let mask = x.optionalIntegers("token_mask"), g = try cache?.keep("logp", n, T.self)
    if let mask { try Labels.check(mask, n, either: 0, or: 1, name: "token_mask") }
    var active = n
    if let mask { active = (0..<n).reduce(0) { $0 + mask[$1] } }
    guard active > 0 else { return 0 }
    let weight = 1 / (length ?? Double(active))
    return Rows.sum(n, work: 16) { i in
      if mask?[i] == 0 { return 0 }
      // the policy against itself is 1, or NaN where it is not finite
      let a = Double(advantage[i]), l = Double(logp[i]), r = exp(l - (ref.map { Double($0[i]) } ?? l))
      let held = clips && (a > 0 ? r > high : a < 0 && r < low)
      if !held { g?[i] = T(-weight * r * a) }
      return -weight * a * (held ? (a > 0 ? high : low) : r)
    }
  }
}
