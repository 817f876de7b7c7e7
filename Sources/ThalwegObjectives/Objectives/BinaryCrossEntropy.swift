import Glibc
import ThalwegCore

/// Binary cross-entropy on logits.
///
///     c = 1 + (w⁺ − 1)·t     value = mean w·[(1 − t)·z + c·softplus(−z)]     ∂z = w·[(1 − t) − c·σ(−z)]/N
///
/// z and t have any shape, t in [0, 1]; label smoothing replaces t by t·(1 − ε) + ε/2. No logarithm of a rounded
/// probability is taken, so that large |z| are exact.
/// Errors   TW_ERROR_SHAPE: a list of positive weights that does not have a number for each entry of the last axis.
/// Differs  nothing from torch's binary_cross_entropy_with_logits.
struct BCEWithLogits: Objective {
  static let method = Method(
    "bce_with_logits", .objective, "Binary cross-entropy on logits.",
    rule: """
      c = 1 + (pos_weight - 1)*t;  value = mean weight*((1 - t)*z + c*softplus(-z))
      gradient for z: weight*((1 - t) - c*sigma(-z))/N
      """,
    source: "folklore",
    parameters: [
      .number("pos_weight", 1, .above(0), "weight of the positive term, or one for each entry of the last axis")
        .orList(),
      .number("label_smoothing", 0, .within(0, 1), "eps in t*(1 - eps) + eps/2"), Reduction.parameter,
    ],
    inputs: [
      .variable("z", "...", "logits"), .constant("t", "...", "targets in [0, 1]"),
      .constant("weight", "...", "weights of the elements, which may be spread over axes", optional: true).broadcast,
    ])

  let positive: [Double], smoothing: Double, reduction: Reduction
  init(_ h: Hyper) {
    positive = h.has("pos_weight") ? [h.pos_weight] : h.list("pos_weight")
    (smoothing, reduction) = (h.label_smoothing, Reduction(h))
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], t = try x["t"], weight = x.optional("weight")
    let columns = x.sizes.leadingAxes.last ?? 1, count = x.sizes.samples
    guard positive.count == 1 || positive.count == columns else {
      throw Failure(Status.shape, "`pos_weight` has \(positive.count) numbers for a last axis of \(columns)")
    }
    return reduction.elements(count, into: try cache?.keep("z", count, T.self)) { i in
      let w = weight.map { Double($0[i]) } ?? 1, u = Double(z[i])
      let target = Double(t[i]) * (1 - smoothing) + smoothing / 2
      let c = 1 + (positive[positive.count == 1 ? 0 : i % columns] - 1) * target
      return (w * ((1 - target) * u + c * softplus(-u)), w * ((1 - target) - c * sigmoid(-u)))
    }
  }
}

/// The loss of a classifier that tells two domains apart; each domain counts one half.
///
///     value = ½·mean over the source of softplus(−z) + ½·mean over the target of softplus(z)
///     ∂z = (σ(z) − flag)/(2·size of its domain)
///
/// z and flag are (B,), flag is 1 for the source and 0 for the target. A domain that is absent adds nothing.
/// Source   Ganin et al., 2015, arXiv:1505.07818.
struct DomainBCE: Objective {
  static let method = Method(
    "domain_bce", .objective, "The loss of a classifier that tells a source from a target domain.",
    rule: "value = (mean over the source of softplus(-z) + mean over the target of softplus(z))/2",
    source: "Ganin et al., 2015, arXiv:1505.07818",
    inputs: [
      .variable("z", "B", "logits of the source domain"), .integer("flag", "B", "1 for the source, 0 for the target"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], flag = try x.integers("flag"), rows = x.sizes["B"]
    try Labels.check(flag, rows, either: 0, or: 1, name: "flag")
    var source = 0
    for i in 0..<rows { source += flag[i] }
    let g = try cache?.keep("z", rows, T.self), size = [Double(rows - source), Double(source)]
    return Rows.sum(rows, work: 8) { i in
      let u = Double(z[i]), weight = 0.5 / size[flag[i]]
      g?[i] = T(weight * (flag[i] == 1 ? -sigmoid(-u) : sigmoid(u)))
      return weight * softplus(flag[i] == 1 ? -u : u)
    }
  }
}

/// Focal loss: cross-entropy that counts what is already classified well for less.
///
///     softmax  l = log p_y, value = −α_y·(1 − p_y)^γ·l
///              ∂z_j = α_y·[γ·p_y·(1 − p_y)^(γ−1)·l − (1 − p_y)^γ]·([j = y] − p_j)
///     sigmoid  the same of p_t = σ(±z) with α_t = α·t + (1 − α)·(1 − t), for every element
///
/// z is (..., C), with the labels y (softmax) or the targets t, 0 or 1 (sigmoid). The mean divides by the number of
/// rows or elements. α is a number, or a list with one for every class (softmax). 1 − p is taken without cancellation.
/// Errors   TW_ERROR_RANGE: a label outside [0, C); TW_ERROR_SHAPE: a list α of another length.
/// Differs  torchvision's sigmoid_focal_loss is the sigmoid mode with α = 0.25; softmax variants that divide by the sum
///          of the weights α_y are others.
/// Source   Lin et al., 2017, arXiv:1708.02002.
struct FocalLoss: Objective {
  static let method = Method(
    "focal_loss", .objective, "Cross-entropy that counts well-classified rows for less.",
    rule: """
      softmax: value = -mean alpha_y*(1 - p_y)^gamma*log p_y, p = softmax(z)
      sigmoid: value = -mean alpha_t*(1 - p_t)^gamma*log p_t, p_t = sigma(z) for t = 1 and sigma(-z) for t = 0
      """,
    source: "Lin et al., 2017, arXiv:1708.02002",
    parameters: [
      .number("gamma", 2, .atLeast(0), "focusing exponent"),
      .maybe(
        "alpha", .within(0, 1), "weight of the positive class (sigmoid), or of every class, or one a class (softmax)"
      ).orList(),
      .choice("mode", ["softmax", "sigmoid"], "one class of several, or yes and no for every element"),
      Reduction.parameter,
    ],
    inputs: [
      .variable("z", "..., C", "logits"), .integer("y", "...", "labels, from 0 to C - 1, for softmax", optional: true),
      .constant("t", "..., C", "targets, 0 or 1, for sigmoid", optional: true),
    ])

  let gamma: Double, alpha: [Double], softmax: Bool, reduction: Reduction
  init(_ h: Hyper) {
    alpha = h.has("alpha") ? [h.alpha] : h.list("alpha")
    (gamma, softmax, reduction) = (h.gamma, h.is("mode", "softmax"), Reduction(h))
  }

  /// −om^γ·l with om = 1 − eˡ, and the derivative by l over om: that by a logit is this times 1 − p.
  private func focus(_ l: Double, _ om: Double) -> (value: Double, slope: Double) {
    if om == 0 { return (0, 0) }
    let weight = pow(om, gamma)
    return (-weight * l, gamma * exp(l) * weight / om * l - weight)
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], rows = x.sizes.samples, classes = x.sizes["C"]
    guard alpha.count <= 1 || (softmax && alpha.count == classes) else {
      throw Failure(Status.shape, "`alpha` has \(alpha.count) numbers; \(softmax ? "\(classes) or 1" : "1") are wanted")
    }
    let g = try cache?.keep("z", rows * classes, T.self)
    guard softmax else {
      guard let t = x.optional("t") else { throw Failure(Status.needs, "the mode sigmoid needs the targets `t`") }
      return reduction.elements(rows * classes, into: g) { i in
        let target = Double(t[i]), s = 2 * target - 1, u = s * Double(z[i])
        let a = alpha.first.map { $0 * target + (1 - $0) * (1 - target) } ?? 1, om = sigmoid(-u)
        let (value, slope) = focus(-softplus(-u), om)
        return (a * value, a * s * om * slope)
      }
    }
    guard let y = x.optionalIntegers("y") else { throw Failure(Status.needs, "the mode softmax needs the labels `y`") }
    try Labels.check(y, rows, classes)
    let weight = reduction.weight(rows)
    return weight
      * Rows.sum(rows, work: 16 * classes) { i in
        let row = z + i * classes, log = Softmax.logSum(row, classes), l = Double(row[y[i]]) - log
        let a = alpha.isEmpty ? 1 : alpha[alpha.count == 1 ? 0 : y[i]]
        let (value, slope) = focus(l, -expm1(l))
        if let g {
          for j in 0..<classes {
            let p = exp(Double(row[j]) - log)
            g[i * classes + j] = T(weight * a * slope * (j == y[i] ? -expm1(l) : -p))
          }
        }
        return a * value
      }
  }
}
