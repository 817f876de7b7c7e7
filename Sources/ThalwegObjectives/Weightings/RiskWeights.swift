import Glibc
import ThalwegCore

/// Weights of samples that make a risk of their losses, with the losses' gradients: `value` = Σ q_i·L_i − a cost of q,
/// whose derivative by the losses is q.
enum Risk {
  static let losses = Input.variable("losses", "n", "losses of the samples")
  static let weights = Input.result("weights", "n", "weights of the samples, in all 1")

  /// The losses, in double.
  static func read<T: Real>(_ x: Inputs<T>) throws(Failure) -> [Double] {
    let p = try x["losses"], n = x.sizes["n"]
    try refuseNonFinite(p, n, "losses")
    return try doubles(p, n)
  }
  /// Leaves the weights, which are the gradient of the losses too.
  static func leave<T: Real>(_ q: [Double], _ cache: Cache?, _: T.Type) throws(Failure) {
    try cache?.keep("weights", numbers: q, T.self)
    try cache?.keep("losses", numbers: q, T.self)
  }
  /// Positions in ascending order, equal ones as they stand.
  static func order(_ x: [Double]) -> [Int] {
    x.indices.sorted { x[$0] < x[$1] || (x[$0] == x[$1] && $0 < $1) }
  }
}

/// The mean of the largest losses, a share alpha of all, exactly.
///
///     k = alpha·n;  η = the ⌈k⌉-th largest loss;  w_i = 1/k where L_i > η;  those equal to η share what is left
///     value = Σ w_i·L_i
///     lr_t: a threshold t that is learnt, 0 at first:  w_i = 1/k where L_i > t;  value = t + Σ w_i·(L_i − t);
///           t ← t − lr_t·(1 − Σ w_i)
///
/// State    with lr_t the threshold.
/// Errors   TW_ERROR_RANGE: a loss that is not finite.
/// Differs  nothing from the superquantile of Rockafellar and Uryasev; ⌈k − 10⁻¹²⌉ allows for the rounding of alpha·n.
/// Source   Rockafellar and Uryasev, 2000.
struct CVaRWeights: Objective {
  static let method = Method(
    "cvar_weights", .weighting, "The mean of the largest losses, a share of all: conditional value at risk.",
    rule: """
      k = alpha*n;  eta = the ceil(k)-th largest loss;  w = 1/k where L > eta, those equal to eta share the rest
      value = sum w_i*L_i
      lr_t: w = 1/k where L > t;  value = t + sum w_i*(L_i - t);  t <- t - lr_t*(1 - sum w_i)
      """,
    source: "Rockafellar, Uryasev, 2000",
    parameters: [
      .number("alpha", 0.1, .between(0, 1, lowOpen: true, highOpen: false), "share of the samples in the tail"),
      .maybe("lr_t", .above(0), "step of a threshold that is learnt; none: the exact one of the batch"),
    ],
    inputs: [
      Risk.losses, Risk.weights, .result("threshold", "", "the smallest loss in the tail, or t before its step"),
    ])
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("threshold", "")] }
  let alpha: Double, lr: Double?
  init(_ h: Hyper) { (alpha, lr) = (h.alpha, h.has("lr_t") ? h.lr_t : nil) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try Risk.read(x), n = L.count, k = alpha * Double(n)
    if let lr {
      let memory = try x.memory["threshold"], t = memory[0], w = L.map { $0 > t ? 1 / k : 0 }
      memory[0] = t - lr * (1 - w.reduce(0, +))
      try Risk.leave(w, cache, T.self)
      try cache?.keep("threshold", numbers: [t], T.self)
      return zip(w, L).reduce(t) { $0 + $1.0 * ($1.1 - t) }
    }
    let sorted = L.sorted(by: >), place = max(1, min(n, Int((k - 1e-12).rounded(.up))))
    let eta = sorted[place - 1]
    let above = L.count { $0 > eta }, equal = L.count { $0 == eta }
    let rest = max(0, 1 - Double(above) / k) / Double(max(1, equal))
    let w = L.map { $0 > eta ? 1 / k : $0 == eta ? rest : 0 }
    try Risk.leave(w, cache, T.self)
    try cache?.keep("threshold", numbers: [eta], T.self)
    return zip(w, L).reduce(0) { $0 + $1.0 * $1.1 }
  }
}

/// A spectrum: non-negative, ascending weights of the sorted losses that add up to 1; and what it makes of losses,
/// smoothed by a cost of leaving the uniform weights.
struct Spectrum {
  static let parameters: [Parameter] = [
    .choice("kind", ["cvar", "erm", "extremile", "esrm"], "of the spectrum", live: false),
    Parameter.maybe("param", .above(0), "tail share of cvar (1/2), r of extremile (2), rho of esrm (1)").fixed,
    .list("sigma", nil, "the spectrum itself, one number a sample, ascending", optional: true),
    .number("shift_cost", 1, .atLeast(0), "cost nu of weights that are not uniform"),
    .choice("penalty", ["l2", "kl"], "the cost: nu*n/2*|q - 1/n|^2, or nu*KL(q, 1/n)", live: false),
  ]
  static func check(_ h: Hyper, _ name: String) throws(Failure) {
    let sigma = h.list("sigma")
    if h.given("sigma") {
      let sorted = zip(sigma, sigma.dropFirst()).allSatisfy { $0 <= $1 }
      guard let first = sigma.first, first >= 0, sorted, abs(sigma.reduce(0, +) - 1) < 1e-9 else {
        throw Failure(Status.range, "\(name): `sigma` must be at least 0, ascend and add up to 1")
      }
    }
    if h.has("param") {
      if h.is("kind", "cvar"), h.param > 1 {
        throw Failure(Status.range, "\(name): `param` of cvar must be in (0, 1], got \(text(h.param))")
      }
      if h.is("kind", "extremile"), h.param < 1 {
        throw Failure(Status.range, "\(name): `param` of extremile must be at least 1, got \(text(h.param))")
      }
    }
  }

  let h: Hyper
  private let cost: Double, kl: Bool
  init(_ h: Hyper) { (self.h, cost, kl) = (h, h.shift_cost, h.is("penalty", "kl")) }

  func sigma(_ n: Int, _ name: String) throws(Failure) -> [Double] {
    if h.given("sigma") {
      let list = h.list("sigma")
      guard list.count == n else {
        throw Failure(Status.shape, "\(name): `sigma` has \(list.count) numbers, there are \(n) losses")
      }
      return list
    }
    func part(_ u: Double) -> Double {
      if h.is("kind", "erm") { return u }
      if h.is("kind", "extremile") { return pow(u, h.has("param") ? h.param : 2) }
      if h.is("kind", "esrm") {
        let rho: Double = h.has("param") ? h.param : 1
        // (less its value at u = 0, as it stands: the difference would lose a small rho)
        return exp(-rho * (1 - u)) * (expm1(-rho * u) / expm1(-rho))
      }
      let p: Double = h.has("param") ? h.param : 0.5
      return max(u, 1 - p) / p
    }
    return (0..<n).map { part(Double($0 + 1) / Double(n)) - part(Double($0) / Double(n)) }
  }

  /// The weights of the losses.
  func weights(_ losses: [Double], _ name: String) throws(Failure) -> [Double] {
    let n = losses.count, sigma = try sigma(n, name), order = Risk.order(losses)
    var q = [Double](repeating: 0, count: n)
    for (k, i) in order.enumerated() { q[i] = sigma[k] }
    guard cost > 0, n > 0 else { return q }
    let share = 1 / Double(n), c = kl ? cost : Double(n) * cost
    // blocks of equal value: where each begins, and what its value is made of; kl: a without the largest loss of the
    // block, which is its last, so that a small cost leaves the digits of the differences
    var starts: [Int] = [], a: [Double] = [], b: [Double] = [], top: [Double] = []
    func value(_ k: Int) -> Double { kl ? top[k] / c + (a[k] - b[k]) : a[k] / b[k] }
    for k in 0..<n {
      let loss = losses[order[k]], z = loss / c
      starts.append(k)
      top.append(loss)
      if kl {
        a.append(0)
        b.append(log(sigma[k]))
      } else {
        a.append(z + share - sigma[k])
        b.append(1)
      }
      while starts.count > 1, value(starts.count - 2) >= value(starts.count - 1) {
        let (x, y, largest, last) = (a.removeLast(), b.removeLast(), top.removeLast(), a.count - 1)
        a[last] = kl ? logAdd(a[last] + (top[last] - largest) / c, x) : a[last] + x
        b[last] = kl ? logAdd(b[last], y) : b[last] + y
        top[last] = largest
        starts.removeLast()
      }
    }
    for block in starts.indices {
      for k in starts[block]..<(block + 1 < starts.count ? starts[block + 1] : n) {
        let loss = losses[order[k]]
        q[order[k]] = kl ? exp((loss - top[block]) / c - (a[block] - b[block])) : loss / c + share - value(block)
      }
    }
    return q
  }

  /// Σ q·L less the cost of q.
  func value(_ q: [Double], _ losses: [Double]) -> Double {
    let n = Double(q.count)
    let cost = q.reduce(0.0) { $0 + (kl ? ($1 > 0 ? $1 * log($1 * n) : 0) : n / 2 * ($1 - 1 / n) * ($1 - 1 / n)) }
    return zip(q, losses).reduce(0) { $0 + $1.0 * $1.1 } - (self.cost > 0 ? self.cost * cost : 0)
  }
}

/// Spectral risks, smoothed: large losses weigh more, by a spectrum of their order.
///
///     cvar:       σ_i = (max(i/n, 1−p) − max((i−1)/n, 1−p))/p        extremile:  (i/n)^r − ((i−1)/n)^r
///     esrm:       (e^(−ρ(1−i/n)) − e^(−ρ(1−(i−1)/n)))/(1 − e^(−ρ))    erm: 1/n      or `sigma` as it is given
///     q = argmax Σ q·L − ν·D(q) over what σ majorises;  D = n/2·‖q − 1/n‖² or KL(q, 1/n);  ν = 0: σ by the order of L
///     value = Σ q·L − ν·D(q), its derivative by the losses q
///
/// The maximum is an isotonic regression of the sorted losses, by pooling neighbours.
/// Errors   TW_ERROR_RANGE: a loss that is not finite; TW_ERROR_SHAPE: `sigma` is not as long as the losses.
/// Differs  nothing from ronakdm/prospect but for the factor n of the l2 cost, which is folded into its shift cost.
/// Source   Mehta, Roulet, Pillutla and Harchaoui, 2023, arXiv:2310.13863.
struct SpectralRisk: Objective {
  static let method = Method(
    "spectral_risk", .weighting, "Spectral risks, smoothed: large losses weigh more, by a spectrum of their order.",
    rule: """
      sigma by kind: cvar (tail share), extremile (r), esrm (rho), erm
      q = argmax sum q*L - nu*D(q) over what sigma majorises;  D = n/2*|q - 1/n|^2 or KL(q, 1/n)
      value = sum q*L - nu*D(q)
      """,
    source: "Mehta, Roulet, Pillutla, Harchaoui, 2023, arXiv:2310.13863", parameters: Spectrum.parameters,
    inputs: [Risk.losses, Risk.weights],
    validate: { (h) throws(Failure) in try Spectrum.check(h, "spectral_risk") })
  private let spectrum: Spectrum
  init(_ h: Hyper) { spectrum = Spectrum(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try Risk.read(x), q = try spectrum.weights(L, "spectral_risk")
    try Risk.leave(q, cache, T.self)
    return spectrum.value(q, L)
  }
}

/// Kullback-Leibler DRO: weights within a divergence of the uniform ones, or at a price for it.
///
///     d = L − reference (0 when left out);   penalised (tau): q = softmax(d/τ),  value = τ·log mean exp(d/τ)
///     ball (rho): τ minimises τ·log mean exp(d/τ) + τ·ρ, by bisection in log τ;  value there
private enum KLDRO {
  static let floor = Parameter.number("tau_min", 1e-3, .above(0), "smallest temperature of the ball")
  static let ceiling = Parameter.number("tau_max", 1e3, .above(0), "largest")

  /// log mean exp(d/τ), and softmax(d/τ).
  static func tilt(_ d: [Double], _ tau: Double) -> (Double, [Double]) {
    let top = d.max() ?? 0, e = d.map { exp(($0 - top) / tau) }, sum = e.reduce(0, +)
    return (top / tau + log(sum / Double(d.count)), e.map { $0 / sum })
  }
  /// The derivative of τ·log mean exp(d/τ) by τ: minus the divergence of the weights.
  static func slope(_ d: [Double], _ tau: Double) -> Double {
    let (level, q) = tilt(d, tau)
    return level - zip(q, d).reduce(0) { $0 + $1.0 * $1.1 } / tau
  }
  static func temperature(_ d: [Double], rho: Double, _ low: Double, _ high: Double) -> Double {
    if d.max() == d.min() { return low }  // all temperatures are alike
    var (a, b) = (log(low), log(high))
    for _ in 0..<200 {
      let middle = (a + b) / 2
      if slope(d, exp(middle)) + rho > 0 { b = middle } else { a = middle }
    }
    return min(max(exp((a + b) / 2), low), high)
  }
  static func check(_ h: Hyper, _ name: String) throws(Failure) {
    guard h.tau_min <= h.tau_max else {
      throw Failure(
        Status.range, "\(name): `tau_min` must not be above `tau_max`, got \(text(h.tau_min)) and \(text(h.tau_max))")
    }
  }
  static func forward<T: Real>(_ d: [Double], _ h: Hyper, ball: Bool, _ cache: Cache?, _: T.Type) throws(Failure)
    -> Double
  {
    let tau: Double = ball ? temperature(d, rho: h.rho, h.tau_min, h.tau_max) : h.tau
    let (level, q) = tilt(d, tau)
    try Risk.leave(q, cache, T.self)
    try cache?.keep("tau", numbers: [tau], T.self)
    try cache?.keep("dtau", numbers: [slope(d, tau)], T.self)
    return tau * level + (ball ? tau * h.rho : 0)
  }
  static let temperatures: [Input] = [
    .result("tau", "", "the temperature"),
    .result("dtau", "", "derivative of the value without rho by the temperature"),
  ]
}

/// Tilted losses: the penalised form of Kullback-Leibler DRO.
///
///     q = softmax(L/τ);   value = τ·log mean exp(L/τ);   form=ball: τ minimises value + τ·ρ, within [tau_min, tau_max]
///
/// Errors   TW_ERROR_RANGE: a loss that is not finite.
/// Differs  nothing from the card. The value of the ball holds the term τ·ρ, so that it is Σ q·L where KL(q, 1/n) = ρ.
/// Source   Hu and Hong, 2013; Wei, Lin, et al., 2025, arXiv:2505.06699.
struct KLDROWeights: Objective {
  static let method = Method(
    "kl_dro_weights", .weighting, "Tilted losses: weights within a divergence of the uniform ones, or at a price.",
    rule: """
      penalised: q = softmax(L/tau);  value = tau*log mean exp(L/tau)
      ball: tau minimises tau*log mean exp(L/tau) + tau*rho over [tau_min, tau_max]
      """,
    source: "Hu, Hong, 2013; Wei, Lin, et al., 2025, arXiv:2505.06699",
    parameters: [
      .choice("form", ["penalised", "ball"], "a price tau, or a radius rho"),
      .number("tau", 1, .above(0), "temperature of the penalised form"),
      .number("rho", 1, .atLeast(0), "radius of the ball"), KLDRO.floor, KLDRO.ceiling,
    ],
    inputs: [Risk.losses, Risk.weights] + KLDRO.temperatures,
    validate: { (h) throws(Failure) in try KLDRO.check(h, "kl_dro_weights") })
  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    try KLDRO.forward(try Risk.read(x), h, ball: h.is("form", "ball"), cache, T.self)
  }
}

/// DRRho: Kullback-Leibler DRO of what the losses are above those of a reference model.
///
///     d = L − reference;   q, value and τ as in kl_dro_weights, of d (the CVaR form: cvar_weights of d)
///
/// Errors   TW_ERROR_RANGE: a loss that is not finite.
/// Differs  nothing from the card. A batch's weights are biased: drrho_contrastive remembers the samples.
/// Source   Wei, Lin, et al., 2025, arXiv:2505.06699.
struct DRRhoWeights: Objective {
  static let method = Method(
    "drrho_weights", .weighting, "DRO of what the losses are above those of a reference model.",
    rule: "d = L - reference;  q, value and tau as in kl_dro_weights, of d",
    source: "Wei, Lin, et al., 2025, arXiv:2505.06699", parameters: KLDROWeights.method.parameters,
    inputs: [Risk.losses, .constant("reference", "n", "losses of the reference model"), Risk.weights]
      + KLDRO.temperatures,
    validate: { (h) throws(Failure) in try KLDRO.check(h, "drrho_weights") })
  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let L = try Risk.read(x), r = try x["reference"]
    try refuseNonFinite(r, L.count, "reference")
    let d = L.indices.map { L[$0] - Double(r[$0]) }
    return try KLDRO.forward(d, h, ball: h.is("form", "ball"), cache, T.self)
  }
}
