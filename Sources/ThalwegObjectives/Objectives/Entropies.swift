import Glibc
import ThalwegCore

/// Probabilities of all rows, their logarithms, entropies and mean.
private struct Predictions {
  let p: UnsafeMutablePointer<Double>, logs: UnsafeMutablePointer<Double>, entropy: UnsafeMutablePointer<Double>,
    mean: UnsafeMutablePointer<Double>
  let rows: Int, classes: Int

  init<T: Real>(_ z: UnsafePointer<T>, _ rows: Int, _ classes: Int, _ temperature: Double, _ space: Workspace)
    throws(Failure)
  {
    let count = try area(rows, classes)
    let p = try space.room(count, Double.self), logs = try space.room(count, Double.self)
    let entropy = try space.room(rows, Double.self), mean = try space.room(classes, Double.self)
    _ = Rows.sum(rows, work: 32 * classes) { i in
      let row = z + i * classes, log = Softmax.logSum(row, classes, temperature: temperature)
      for c in (i * classes)..<((i + 1) * classes) {
        logs[c] = Double(z[c]) / temperature - log
        p[c] = exp(logs[c])
        if p[c] == 0 { logs[c] = 0 }  // 0·log 0 = 0
        entropy[i] -= p[c] * logs[c]
      }
      return 0
    }
    _ = Rows.sum(classes, work: rows) { c in
      for i in 0..<rows { mean[c] += p[i * classes + c] / Double(rows) }
      return 0
    }
    (self.p, self.logs, self.entropy, self.mean, self.rows, self.classes) = (p, logs, entropy, mean, rows, classes)
  }

  var meanEntropy: Double { Rows.sum(rows, work: 1) { entropy[$0] } / Double(rows) }

  /// g ← the gradient of Σ_i f(i)·H(p_i) + Σ_i Σ_c p_ic·e_c by the logits.
  func pull<T: Real>(_ g: UnsafeMutablePointer<T>, _ temperature: Double, _ e: [Double], _ f: (Int) -> Double) {
    _ = Rows.sum(rows, work: 4 * classes) { i in
      let at = i * classes, weight = f(i)
      var mean = 0.0
      for c in 0..<classes { mean += p[at + c] * e[c] }
      for c in 0..<classes {
        g[at + c] = T(p[at + c] * ((e[c] - mean) - weight * (logs[at + c] + entropy[i])) / temperature)
      }
      return 0
    }
  }
}

/// Output entropy, for adaptation at test time and learning without labels.
///
///     value = w·mean_i H(p_i) − d·H(mean_i p_i), p = softmax(z/T)
///     ∂z = p·[g − Σ p·g − w/n·(log p + H)]/T, g = d·(log p̄ + 1)/n
///
/// z is (..., C); every leading axis counts samples. A one-hot row has no gradient.
/// Source   Wang et al., 2019, arXiv:1908.03182; Liang et al., 2020, arXiv:2002.08546 (diversity).
struct EntropyMinimization: Objective {
  static let method = Method(
    "entropy_minimization", .objective, "The entropy of predictions, less that of their mean.",
    rule: """
      p = softmax(z/T);  value = weight*mean_i H(p_i) - diversity*H(mean_i p_i)
      gradient for z: p*(g - sum p*g - weight/n*(log p + H))/T, g = diversity*(log mean p + 1)/n
      """,
    source: "Wang et al., 2019, arXiv:1908.03182; Liang et al., 2020, arXiv:2002.08546",
    parameters: [
      .number("weight", 1, .atLeast(0), "coefficient of the mean entropy"),
      .number("diversity", 0, .atLeast(0), "coefficient of the entropy of the mean prediction"),
      .number("temperature", 1, .above(0), "the logits are divided by it"),
    ], inputs: [.variable("z", "..., C", "logits")])
  let weight: Double, diversity: Double, temperature: Double
  init(_ h: Hyper) { (weight, diversity, temperature) = (h.weight, h.diversity, h.temperature) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = x.sizes.samples, classes = x.sizes["C"], space = Workspace()
    defer { space.close() }
    let all = try Predictions(x["z"], rows, classes, temperature, space)
    var spread = 0.0, slopes = [Double](repeating: 0, count: classes)
    for c in 0..<classes where all.mean[c] != 0 {
      spread -= all.mean[c] * log(all.mean[c])
      slopes[c] = diversity * (log(all.mean[c]) + 1) / Double(rows)
    }
    if let g = try cache?.keep("z", rows * classes, T.self) {
      all.pull(g, temperature, slopes) { _ in weight / Double(rows) }
    }
    return weight * all.meanEntropy - diversity * spread
  }
}

/// The mutual information between predictions and samples, negated: predictions that are confident and diverse.
///
///     p = softmax(z), q = mean p     value = −(H(q) − mean H(p)), H(q) = −Σ q·log(q + floor)
///
/// z is (B, C).
/// Source   Lv et al., 2021 (Pareto domain adaptation), arXiv:2112.04137.
struct TCMLoss: Objective {
  static let method = Method(
    "tcm_loss", .objective, "The negated mutual information of predictions and samples: confident and diverse.",
    rule: """
      p = softmax(z), q = mean p;  value = sum q*log(q + floor) + mean H(p)
      gradient for z: p*(e - sum p*e), e = (log(q + floor) + q/(q + floor))/B - (log p + 1)/B
      """,
    source: "Lv et al., 2021, arXiv:2112.04137",
    parameters: [.number("floor", 1e-6, .above(0), "inside the logarithm of the mean prediction")],
    inputs: [.variable("z", "B, C", "logits")])
  let floor: Double
  init(_ h: Hyper) { floor = h.floor }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = x.sizes["B"], classes = x.sizes["C"], space = Workspace()
    defer { space.close() }
    let all = try Predictions(x["z"], rows, classes, 1, space)
    var spread = 0.0, slopes = [Double](repeating: 0, count: classes)
    for c in 0..<classes {
      let q = all.mean[c]
      spread -= q * log(q + floor)
      slopes[c] = (log(q + floor) + q / (q + floor)) / Double(rows)
    }
    if let g = try cache?.keep("z", rows * classes, T.self) { all.pull(g, 1, slopes) { _ in 1 / Double(rows) } }
    return all.meanEntropy - spread
  }
}

/// Penalises predictions that are too sure.
///
///     value = −β·mean H(p), or with a threshold β·mean max(0, threshold − H(p))     ∂H/∂w = −p·(log p + H)
///
/// w, the logits, is (..., C). Inside a pipeline its logits would be missing.
/// Differs  label smoothing is the divergence from the uniform distribution in the other direction.
/// Source   Pereyra et al., 2017, arXiv:1701.06548.
struct ConfidencePenalty: Objective {
  static let method = Method(
    "confidence_penalty", .regularizer, "Penalises predictions that are too sure: their negative entropy.",
    rule: "value = -beta*mean H(softmax(w)), or beta*mean max(0, threshold - H);  dH/dw = -p*(log p + H)",
    source: "Pereyra et al., 2017, arXiv:1701.06548",
    parameters: [
      .number("beta", 0.1, .atLeast(0), "coefficient"),
      .maybe("threshold", .atLeast(0), "entropy that is enough; none: any entropy is rewarded"),
    ], inputs: [.variable("w", "..., C", "logits")])
  let beta: Double, threshold: Double?
  init(_ h: Hyper) { (beta, threshold) = (h.beta, h.has("threshold") ? h.threshold : nil) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = x.sizes.samples, classes = x.sizes["C"], space = Workspace()
    defer { space.close() }
    let all = try Predictions(x["w"], rows, classes, 1, space), weight = beta / Double(rows)
    if let g = try cache?.keep("w", rows * classes, T.self) {
      all.pull(g, 1, [Double](repeating: 0, count: classes)) { i in
        -(threshold.map { all.entropy[i] < $0 } ?? true ? weight : 0)
      }
    }
    return Rows.sum(rows, work: 1) { i in
      weight * (threshold.map { larger(0, $0 - all.entropy[i]) } ?? -all.entropy[i])
    }
  }
}

/// Keeps the normaliser of a softmax near 1.
///
///     L = log Σ_c exp w_c     value = λ·mean L²     ∂w = λ·2L·softmax(w)/n
///
/// w, the logits, is (..., C). Inside a pipeline its logits would be missing.
/// Source   Chowdhery et al., 2022, arXiv:2204.02311.
struct ZLoss: Objective {
  static let method = Method(
    "z_loss", .regularizer, "Keeps the normaliser of a softmax near 1.",
    rule: "L = log sum_c exp w_c;  value = weight*mean L^2;  gradient for w: weight*2*L*softmax(w)/n",
    source: "Chowdhery et al., 2022, arXiv:2204.02311",
    parameters: [.number("weight", 1e-4, .atLeast(0), "coefficient")], inputs: [.variable("w", "..., C", "logits")])
  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["w"], rows = x.sizes.samples, classes = x.sizes["C"], scale = weight / Double(rows)
    let g = try cache?.keep("w", rows * classes, T.self)
    return Rows.sum(rows, work: 16 * classes) { i in
      let log = Softmax.logSum(z + i * classes, classes)
      if let g {
        for c in (i * classes)..<((i + 1) * classes) { g[c] = T(scale * 2 * log * exp(Double(z[c]) - log)) }
      }
      return scale * log * log
    }
  }
}
