import Glibc
import ThalwegCore

/// Feasible learning: every sample's loss is a constraint, its multiplier the weight.
///
///     e_i = L_i − eps,  resilient: e_i − λ_i/alpha;   λ_i ← max(0, λ_i + lr·(e_i + kp·(e_i − e_i before)))
///     weights = λ of the batch, after the step;   value = Σ λ_i·L_i      e_i before = e_i at the first visit
///
/// losses (B,), indices (B,): which of the `samples` they are of; one that comes twice is visited twice.
/// State    λ of every sample; with kp the last e, and whether there was one.
/// Errors   TW_ERROR_RANGE: a loss that is not finite, an index that is no sample.
/// Differs  the slack of the resilient form is its closed form λ/alpha at every step; the authors' code has none. The
///          host divides by B for a mean; weights of 0 throughout mean that no step is needed.
/// Source   Ramirez, Hounie, Elenter, Gallego-Posada, Hashemizadeh, Ribeiro and Lacoste-Julien, 2025, arXiv:2501.14912.
struct FeasibleLearning: Objective {
  static let method = Method(
    "feasible_learning", .weighting, "Every sample's loss is a constraint, its multiplier the weight.",
    rule: """
      e_i = L_i - eps, resilient: less lambda_i/alpha
      lambda_i <- max(0, lambda_i + lr*(e_i + kp*(e_i - e_i before)));  weights = lambda;  value = sum lambda_i*L_i
      """,
    source: "Ramirez, Hounie, Elenter, Gallego-Posada, Hashemizadeh, Ribeiro, Lacoste-Julien, 2025, arXiv:2501.14912",
    parameters: [
      .integer("samples", nil, .within(1, 0x1p32), "how many samples there are", live: false),
      .number("eps", 0, .atLeast(0), "bound of the losses"), .number("lr", 1e-2, .above(0), "step of the multipliers"),
      .maybe("resilient", .above(0), "alpha of the price alpha/2*u^2 of a slack; none: the bound is hard"),
      .number("kp", 0, .atLeast(0), "gain of the change of a violation"),
    ],
    inputs: [
      .variable("losses", "B", "losses of the batch"), .integer("indices", "B", "which samples they are of, from 0"),
      .result("weights", "B", "multipliers of these samples"),
    ])
  static func state(_ h: Hyper) -> [Recollection] {
    let n = String(h.integer("samples"))
    return [Recollection("multipliers", n)]
      + (h.kp > 0 ? [Recollection("violations", n), Recollection("visited", n)] : [])
  }
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try x["losses"], indices = try x.integers("indices"), n = x.sizes["B"], samples = h.integer("samples")
    try refuseNonFinite(L, n, "losses")
    let lambda = try x.memory["multipliers"], kp: Double = h.kp
    let before = kp > 0 ? try x.memory["violations"] : nil, visited = kp > 0 ? try x.memory["visited"] : nil
    var weights = [Double](repeating: 0, count: n), value = 0.0
    for b in 0..<n {
      let i = indices[b]
      guard i >= 0, i < samples else {
        throw Failure(Status.range, "`indices` must hold numbers from 0 to \(samples - 1), got \(i) at element \(b)")
      }
      var e = Double(L[b]) - h.eps
      if h.has("resilient") { e -= lambda[i] / h.resilient }
      var step = e
      if let before, let visited {
        step += kp * (visited[i] == 1 ? e - before[i] : 0)
        (before[i], visited[i]) = (e, 1)
      }
      lambda[i] = max(0, lambda[i] + h.lr * step)
      weights[b] = lambda[i]
      value += lambda[i] * Double(L[b])
    }
    try cache?.keep("weights", numbers: weights, T.self)
    try cache?.keep("losses", numbers: weights, T.self)
    return value
  }
}

/// Focal weights: samples that are classified well count less.
///
///     p = softmax(z)_y;   w = alpha_y·(1 − p)^gamma;   value = −mean w·log p
///     ∂value/∂z = k/B·(onehot − p),  k = −w + alpha_y·gamma·(1 − p)^(gamma−1)·p·log p, or −w with `detach`
///
/// z: logits (B, C), y (B,). The factor of gamma is 0 where p = 1. Weights are those of −log p/B.
/// Errors   TW_ERROR_RANGE: a logit that is not finite, a label that is no class.
/// Differs  torchvision's sigmoid_focal_loss is of one class; this is the softmax form.
/// Source   Lin, Goyal, Girshick, He and Dollar, 2017, arXiv:1708.02002.
struct FocalWeight: Objective {
  static let method = Method(
    "focal_weight", .weighting, "Focal weights: samples that are classified well count less.",
    rule: "p = softmax(z)_y;  w = alpha_y*(1 - p)^gamma;  value = -mean w*log p",
    source: "Lin, Goyal, Girshick, He, Dollar, 2017, arXiv:1708.02002",
    parameters: [
      .number("gamma", 2, .atLeast(0), "power of 1 - p"), .flag("detach", false, "the weights are held constant"),
    ],
    inputs: [
      .variable("z", "B, C", "logits"), .integer("y", "B", "labels"),
      .constant("alpha", "C", "factor of each class, 1 when left out", optional: true),
      .result("weights", "B", "weights of the samples"),
    ])
  let gamma: Double, detach: Bool
  init(_ h: Hyper) { (gamma, detach) = (h.gamma, h.detach) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], y = try x.integers("y"), n = x.sizes["B"], classes = x.sizes["C"]
    let alpha = x.optional("alpha")
    try refuseNonFinite(z, n * classes, "z")
    if let alpha { try refuseNonFinite(alpha, classes, "alpha") }
    try Labels.check(y, n, classes)
    let weights = try cache?.keep("weights", n, T.self), g = try cache?.keep("z", n * classes, T.self)
    return Rows.sum(n, work: 8 * classes) { b in
      let row = z + b * classes, level = Softmax.logSum(row, classes), a = alpha.map { Double($0[y[b]]) } ?? 1
      // log p from the others where p is close to 1, so that 1 − p keeps its digits
      var others = 0.0
      for c in 0..<classes where c != y[b] { others += exp(Double(row[c]) - level) }
      let logP = Double(row[y[b]]) - level, p = exp(logP), miss = min(others, 1)
      let w = a * pow(miss, gamma)
      let bend = detach || miss == 0 || gamma == 0 ? 0 : a * gamma * pow(miss, gamma - 1) * p * logP
      weights?[b] = T(w)
      if let g {
        for c in 0..<classes {
          let share = c == y[b] ? miss : -exp(Double(row[c]) - level)
          g[b * classes + c] = T((bend - w) / Double(n) * share)
        }
      }
      return -w * logP / Double(n)
    }
  }
}

/// Disparate impact: the accuracy of no group may fall behind by more than that of all, against a dense baseline.
///
///     strict_k = (A_k − a_k) − (A − a) − tol,  accuracies A of the baseline and a of the batch, or of the last
///                `memory` samples of each group (all its places filled; a is then the mean of the groups' then)
///     surrogate_k = l_k − l of the batch's mean losses, less a constant of the baseline
///     λ_k ← max(0, λ_k + lr·strict_k);   weights_i = Σ_k λ_k·(1[group_i = k]/n_k − 1/n);   value = Σ weights_i·loss_i
///
/// A group that is not in the batch has no surrogate; one whose memory is not full, no dual step. The weights are added
/// to those of the task's loss.
/// State    λ; the last answers of each group, and how many there were.
/// Errors   TW_ERROR_RANGE: a loss that is not finite, a group that there is not.
/// Differs  the multipliers take plain projected steps here; `detach_model`: the term −1/n is left out.
/// Source   Hashemizadeh, Ramirez, Sukumaran, Farnadi, Lacoste-Julien and Gallego-Posada, 2023, arXiv:2310.20673.
struct DisparateImpact: Objective {
  static let method = Method(
    "disparate_impact", .weighting, "No group's accuracy may fall behind by more than that of all.",
    rule: """
      strict_k = (A_k - a_k) - (A - a) - tol, A of the baseline;  lambda_k <- max(0, lambda_k + lr*strict_k)
      weights_i = sum_k lambda_k*(1[group_i = k]/n_k - 1/n);  value = sum weights_i*loss_i
      """,
    source: "Hashemizadeh, Ramirez, Sukumaran, Farnadi, Lacoste-Julien, Gallego-Posada, 2023, arXiv:2310.20673",
    parameters: [
      .number("baseline_all", nil, .within(0, 1), "accuracy of the baseline on all"),
      .number("tol", 0.01, .atLeast(0), "gap that is allowed"),
      .number("lr", 1e-2, .above(0), "step of the multipliers"),
      .integer("memory", 0, .within(0, 0x1p20), "answers of a group that are remembered; 0: the batch", live: false),
      .flag("detach_model", false, "the mean loss of all is held constant"),
    ],
    inputs: [
      .variable("losses", "B", "losses of the batch"), .constant("correct", "B", "1 where the model is right, else 0"),
      .integer("groups", "B", "groups of the samples, from 0"),
      .constant("baseline", "K", "accuracy of the baseline on each group"),
      .result("weights", "B", "what is added to the weights"),
      .result("violations", "K", "the strict violations; NaN of groups without one"),
      .result("multipliers", "K", "the multipliers"),
    ])
  static func state(_ h: Hyper) -> [Recollection] {
    let memory = h.integer("memory")
    return [Recollection("multipliers", "K")]
      + (memory > 0 ? [Recollection("answers", "K, \(memory)"), Recollection("seen", "K")] : [])
  }
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try x["losses"], right = try x["correct"], groups = try x.integers("groups"), base = try x["baseline"]
    let n = x.sizes["B"], K = x.sizes["K"], memory = h.integer("memory"), all: Double = h.baseline_all
    try refuseNonFinite(L, n, "losses")
    try refuseNonFinite(right, n, "correct")
    try refuseNonFinite(base, K, "baseline")
    try Labels.check(groups, n, K, name: "groups")
    let lambda = try x.memory["multipliers"]
    let answers = memory > 0 ? try x.memory["answers"] : nil, seen = memory > 0 ? try x.memory["seen"] : nil
    var hits = [Double](repeating: 0, count: K), counts = hits
    for b in 0..<n {
      let k = groups[b]
      hits[k] += Double(right[b])
      counts[k] += 1
      if let answers, let seen {
        let place = counted(seen[k], most: 1 << 52)
        answers[k * memory + place % memory] = Double(right[b])
        seen[k] = Double(place + 1)
      }
    }
    var accuracy = (0..<K).map { counts[$0] > 0 ? hits[$0] / counts[$0] : .nan }
    var mean = hits.reduce(0, +) / Double(n)
    if let answers, let seen {
      accuracy = (0..<K).map { k in
        seen[k] < Double(memory)
          ? .nan : (0..<memory).reduce(0) { $0 + answers[k * memory + $1] } / Double(memory)
      }
      let full = accuracy.filter { !$0.isNaN }
      mean = full.reduce(0, +) / Double(full.count)
    }
    let strict = (0..<K).map { (Double(base[$0]) - accuracy[$0]) - (all - mean) - h.tol }
    for k in 0..<K where !strict[k].isNaN { lambda[k] = max(0, lambda[k] + h.lr * strict[k]) }
    let total = h.detach_model ? 0 : (0..<K).reduce(0.0) { $0 + (counts[$1] > 0 ? lambda[$1] : 0) } / Double(n)
    let weights = (0..<n).map { lambda[groups[$0]] / counts[groups[$0]] - total }
    try cache?.keep("weights", numbers: weights, T.self)
    try cache?.keep("losses", numbers: weights, T.self)
    try cache?.keep("violations", numbers: strict, T.self)
    try cache?.keep("multipliers", numbers: (0..<K).map { lambda[$0] }, T.self)
    return (0..<n).reduce(0) { $0 + weights[$1] * Double(L[$1]) }
  }
}

/// Penalties of constraints whose coefficients grow where a constraint does not hold.
///
///     v = max(c, 0) of inequalities, c of equalities;   quadratic: ½·p·v²,  exact: p·|v|;   value = Σ over all
///     then p_i ← growth·p_i where |v_i| > tol;  restart: p_i ← coefficient for an inequality with v_i = 0
///
/// State    p. The value and its gradient take p as it was before the pass.
/// Errors   TW_ERROR_RANGE: a constraint that is not finite.
/// Differs  nothing from cooper's QuadraticPenalty with its multiplicative update.
/// Source   Nocedal and Wright, 2006, chapter 17.
struct PenaltyMethod: Objective {
  static let method = Method(
    "penalty_method", .weighting, "Penalties of constraints whose coefficients grow where one does not hold.",
    rule: """
      v = max(c, 0) of inequalities, c of equalities;  value = sum p*v^2/2 (quadratic) or p*|v| (exact)
      p_i <- growth*p_i where |v_i| > tol;  restart: p_i <- coefficient for an inequality with v_i = 0
      """,
    source: "Nocedal, Wright, 2006",
    parameters: [
      .number("coefficient", 1, .above(0), "of each constraint at first"),
      .choice("kind", ["quadratic", "exact"], "of the penalty"),
      .number("growth", 1.01, .atLeast(1), "factor where a constraint does not hold"),
      .number("tol", 1e-4, .atLeast(0), "violation that counts as none"),
      .flag("restart", true, "an inequality that holds goes back to the first coefficient"),
      .integer("equalities", 0, .atLeast(0), "how many of the constraints, the last ones, are equalities"),
    ],
    inputs: [
      .variable("constraints", "m", "inequalities (at most 0), then equalities (0)"),
      .result("weights", "m", "factors of the constraints' gradients"),
    ])
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("coefficients", "m", start: h.coefficient)] }
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let c = try x["constraints"], m = x.sizes["m"], p = try x.memory["coefficients"]
    try refuseNonFinite(c, m, "constraints")
    let first = m - min(m, h.integer("equalities")), exact = h.is("kind", "exact")
    var value = 0.0, weights = [Double](repeating: 0, count: m)
    for i in 0..<m {
      let v = i < first ? max(Double(c[i]), 0) : Double(c[i])
      value += exact ? p[i] * abs(v) : p[i] * v * v / 2
      weights[i] = exact ? p[i] * signOf(v) : p[i] * v
      if abs(v) > h.tol { p[i] *= h.growth }
      if h.restart, i < first, v == 0 { p[i] = h.coefficient }
    }
    try cache?.keep("weights", numbers: weights, T.self)
    try cache?.keep("constraints", numbers: weights, T.self)
    return value
  }
}
