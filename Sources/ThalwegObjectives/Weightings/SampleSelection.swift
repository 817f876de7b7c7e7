import Glibc
import ThalwegCore

/// An order of samples that is drawn anew each epoch: by the normal draws of (seed, 0, epoch, 0), smallest first.
private func shuffled(_ samples: [Int], seed: Int, epoch: Int) -> [Int] {
  let key = Random.key(seed: UInt64(bitPattern: Int64(seed)), stream: 0, step: UInt64(epoch), tensor: 0)
  return samples.map { (Random.normal(key, $0), $0) }.sorted { $0 < $1 }.map(\.1)
}

/// The epochs of a training with dynamic pruning: each pass takes the last losses of the samples and gives the weights
/// of the next epoch, which is its number, from 1. Those that were left out keep the scores that they had.
private struct Epochs {
  static let parameters: [Parameter] = [
    .integer("num_epochs", nil, .atLeast(1), "epochs of the training"),
    .number("delta", 0.875, .between(0, 1, lowOpen: true, highOpen: false), "share of the epochs with pruning"),
    .integer("seed", 0, .atLeast(0), "of the draws"),
  ]
  static let inputs: [Input] = [
    .constant("losses", "n", "last losses of the samples; before the first epoch one number for all, as 3"),
    .result("weights", "n", "weights of the samples in the next epoch; 0 is left out"),
  ]
  static let state = [Recollection("scores", "n"), Recollection("kept", "n", start: 1)]

  let epoch: Int, late: Bool, scores: [Double]

  /// Takes up what was seen.
  init<T: Real>(_ x: Inputs<T>, _ h: Hyper) throws(Failure) {
    let losses = try x["losses"], n = x.sizes["n"], scores = try x.memory["scores"], kept = try x.memory["kept"]
    for i in 0..<n where kept[i] != 0 {
      guard losses[i].isFinite else {
        throw Failure(Status.range, "`losses` must be finite, got \(text(Double(losses[i]))) at element \(i)")
      }
      scores[i] = Double(losses[i])
    }
    epoch = x.memory.passes + 1
    late = Double(epoch) > h.delta * h.num_epochs
    self.scores = (0..<n).map { scores[$0] }
  }
  /// The weights; the value is that of the weighted scores.
  func finish<T: Real>(_ x: Inputs<T>, _ weights: [Double], _ cache: Cache?) throws(Failure) -> Double {
    let kept = try x.memory["kept"]
    for (i, w) in weights.enumerated() { kept[i] = w == 0 ? 0 : 1 }
    try cache?.keep("weights", numbers: weights, T.self)
    return zip(weights, scores).reduce(0) { $0 + $1.0 * $1.1 }
  }
}

/// InfoBatch: of the samples that are learned well a random share is left out, and the rest of them weighs more.
///
///     candidates: score < mean score     of them ⌊keep·count⌋ stay, with the weight 1/keep, keep = 1 − prune_ratio
///     all others weigh 1; after delta·num_epochs epochs all do
///
/// losses is (n,), see `Epochs`; what a sample that was left out holds does not count. The loss of a batch is the mean
/// of weight·loss. The value is Σ weights·scores.
/// State    score and last choice of each sample.
/// Errors   TW_ERROR_RANGE: a loss that is not finite, of a sample that was not left out.
/// Source   Qin et al., 2024, arXiv:2303.04947.
struct InfoBatch: Objective {
  static let method = Method(
    "infobatch", .weighting, "Leaves out some of the samples that are learned well, and makes up for them.",
    rule: """
      candidates: score < mean score;  floor(keep*count) of them stay with the weight 1/keep, keep = 1 - prune_ratio
      all others weigh 1;  after delta*num_epochs epochs all do
      """,
    source: "Qin, Wang, Zheng, Gu, Peng, Xu, Zhou, Shang, Sun, Xie, You, 2024, arXiv:2303.04947",
    parameters: [.number("prune_ratio", 0.5, .within(0, 0.9), "share of the candidates that is left out")]
      + Epochs.parameters,
    inputs: Epochs.inputs)
  static func state(_ h: Hyper) -> [Recollection] { Epochs.state }
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let epochs = try Epochs(x, h), n = x.sizes["n"], mean = epochs.scores.reduce(0, +) / Double(n)
    var weights = [Double](repeating: 1, count: n)
    if !epochs.late {
      let keep = min(max(1 - h.prune_ratio, 0.1), 1), low = (0..<n).filter { epochs.scores[$0] < mean }
      for i in low { weights[i] = 0 }
      let stay = shuffled(low, seed: h.integer("seed"), epoch: epochs.epoch).prefix(Int(keep * Double(low.count)))
      for i in stay { weights[i] = 1 / keep }
    }
    return try epochs.finish(x, weights, cache)
  }
}

/// SeTa: random pruning, and a window that slides from easy to hard groups of samples.
///
///     ⌊n·(1 − prune_ratio)⌋ random samples; after delta·num_epochs epochs that is all
///     k-means of their scores into num_groups (centres start at the (k + ½)/G quantiles), groups by centre ascending
///     size = max(1, round(G·window_scale)); the first window is everything,
///     window c ≥ 1 the groups from c mod (G − size + 1) on
///
/// losses is (n,), see `Epochs`; what a sample that was left out holds does not count. Equal scores are cut evenly, in
/// the order of the samples. Where nothing is left, one sample is. The value is Σ weights·scores.
/// State    score and last choice of each sample, and the number of windows so far.
/// Errors   TW_ERROR_RANGE: a loss that is not finite, of a sample that was not left out.
/// Differs  the authors' code takes k-means++ of scikit-learn. Halves are rounded to even.
/// Source   Zhou et al., 2025, arXiv:2503.13385.
struct SeTa: Objective {
  static let method = Method(
    "seta", .weighting, "Random pruning, and a window that slides from easy to hard samples.",
    rule: """
      floor(n (1 - prune_ratio)) random samples;  k-means of their scores into num_groups, by centre ascending
      window c >= 1: size = max(1, round(G*window_scale)) groups from c mod (G - size + 1) on;  window 0: all
      """,
    source: "Zhou et al., 2025, arXiv:2503.13385",
    parameters: [
      .number("prune_ratio", 0.1, .within(0, 0.9), "share that is left out at random"),
      .integer("num_groups", 10, .atLeast(1), "groups of difficulty"),
      .number(
        "window_scale", 0.5, .between(0, 1, lowOpen: true, highOpen: false), "window, as a share of the groups"),
    ] + Epochs.parameters, inputs: Epochs.inputs)
  static func state(_ h: Hyper) -> [Recollection] { Epochs.state + [Recollection("windows")] }
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let epochs = try Epochs(x, h), n = x.sizes["n"], windows = try x.memory["windows"]
    let order = shuffled(Array(0..<n), seed: h.integer("seed"), epoch: epochs.epoch)
    let subset = order.prefix(Int(Double(n) * (1 - h.prune_ratio))).sorted()
    var chosen = subset
    if !epochs.late, !subset.isEmpty {
      let groups = min(h.integer("num_groups"), subset.count)
      let size = min(groups, max(1, Int((Double(groups) * h.window_scale).rounded(.toNearestOrEven))))
      if windows[0] > 0 {
        // what was saved may hold anything
        let start = Int(min(windows[0], 0x1p53).truncatingRemainder(dividingBy: Double(groups - size + 1)))
        let group = grouped(subset.map { epochs.scores[$0] }, groups)
        chosen = zip(subset, group).filter { $0.1 >= start && $0.1 < start + size }.map(\.0)
      }
      windows[0] += 1
    }
    if chosen.isEmpty { chosen = [subset.first ?? order[0]] }
    var weights = [Double](repeating: 0, count: n)
    for i in chosen { weights[i] = 1 }
    return try epochs.finish(x, weights, cache)
  }

  /// The group of each score, easy first.
  private func grouped(_ scores: [Double], _ count: Int) -> [Int] {
    let sorted = scores.sorted(), n = scores.count
    guard sorted[0] < sorted[n - 1] else {  // groups as equal as can be, the first ones larger
      let least = n / count, larger = n % count
      return (0..<n).map { $0 < larger * (least + 1) ? $0 / (least + 1) : larger + ($0 - larger * (least + 1)) / least }
    }
    var centres = (0..<count).map { k -> Double in
      let at = (Double(k) + 0.5) / Double(count) * Double(n - 1), low = Int(at)
      return sorted[low] + (at - Double(low)) * (sorted[min(low + 1, n - 1)] - sorted[low])
    }
    var group = [Int](repeating: -1, count: n)
    for _ in 0..<100 {
      var moved = false, sums = [Double](repeating: 0, count: count), counts = sums
      for i in 0..<n {
        var best = 0
        for k in 1..<max(1, count) where abs(scores[i] - centres[k]) < abs(scores[i] - centres[best]) { best = k }
        if group[i] != best { (group[i], moved) = (best, true) }
        sums[best] += scores[i]
        counts[best] += 1
      }
      if !moved { break }
      for k in 0..<count where counts[k] > 0 { centres[k] = sums[k] / counts[k] }
    }
    var rank = [Int](repeating: 0, count: count)
    for (place, k) in (0..<count).sorted(by: { (centres[$0], $0) < (centres[$1], $1) }).enumerated() { rank[k] = place }
    return group.map { rank[$0] }
  }
}

/// Pruning by a score: a window of the order of the samples.
///
///     ascending order, stable; round(keep·n) samples that end round(offset·n) below the top: weight 1; others 0
///
/// scores is (n,). keep + offset above 1: the window is cut at the low end. The value is how many stay.
/// Errors   TW_ERROR_RANGE: a score that is not finite.
/// Differs  halves are rounded to even.
/// Source   Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075.
struct KeepByScore: Objective {
  static let method = Method(
    "keep_by_score", .weighting, "Keeps a window of the samples in the order of their scores.",
    rule: "of the ascending order round(keep*n) samples that end round(offset*n) below the top: weight 1, others 0",
    source: "Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075",
    parameters: [
      .number("keep", nil, .between(0, 1, lowOpen: true, highOpen: false), "share that stays"),
      .number("offset", 0, .within(0, 1), "share of the highest scores that is left out"),
    ],
    inputs: [.constant("scores", "n", "scores of the samples"), .result("weights", "n", "1 where a sample stays")])
  let keep: Double, offset: Double
  init(_ h: Hyper) { (keep, offset) = (h.keep, h.offset) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let scores = try x["scores"], n = x.sizes["n"]
    try refuseNonFinite(scores, n, "scores")
    func share(_ s: Double) -> Int { Int((s * Double(n)).rounded(.toNearestOrEven)) }
    let order = (0..<n).sorted { (scores[$0], $0) < (scores[$1], $1) }
    let end = n - share(offset), start = max(0, end - share(keep))
    var weights = [Double](repeating: 0, count: n)
    for i in order[start..<end] { weights[i] = 1 }
    try cache?.keep("weights", numbers: weights, T.self)
    return Double(end - start)
  }
}

/// USEFUL: samples that a model learns slowly are repeated.
///
///     per class: 2-means of the outputs, from the row farthest from their mean and the row farthest from that one
///     the cluster of the higher mean loss weighs `times`, the other 1
///
/// outputs is (n, C), losses and y are (n,), all of an early epoch; equal numbers in y are one class. Training begins
/// anew with the weights, or with as many repetitions. A class of one sample, or of equal outputs, keeps 1. Of equal
/// means the first cluster is repeated. The value is the sum of the weights.
/// Errors   TW_ERROR_RANGE: numbers that are not finite.
/// Source   Nguyen, Haddad, Gan, Mirzasoleiman, 2024, arXiv:2404.17768.
struct USEFULUpsample: Objective {
  static let method = Method(
    "useful_upsample", .weighting, "Repeats the samples that a model learns slowly.",
    rule: "per class: 2-means of the outputs;  the cluster of the higher mean loss weighs times, the other 1",
    source: "Nguyen, Haddad, Gan, Mirzasoleiman, 2024, arXiv:2404.17768",
    parameters: [.number("times", 2, .atLeast(1), "weight of slow samples")],
    inputs: [
      .constant("outputs", "n, C", "outputs of the model"), .constant("losses", "n", "losses of the samples"),
      .integer("y", "n", "labels"), .result("weights", "n", "weights of the samples"),
    ])
  let times: Double
  init(_ h: Hyper) { times = h.times }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let outputs = try x["outputs"], losses = try x["losses"], y = try x.integers("y")
    let n = x.sizes["n"], classes = x.sizes["C"]
    try refuseNonFinite(outputs, n * classes, "outputs")
    try refuseNonFinite(losses, n, "losses")
    var weights = [Double](repeating: 1, count: n)
    for members in groups(y, n) {
      guard let second = clusters(outputs, classes, members) else { continue }
      var sums = [0.0, 0.0], counts = [0.0, 0.0]
      for (i, k) in zip(members, second) {
        sums[k] += Double(losses[i])
        counts[k] += 1
      }
      let slow = sums[1] / counts[1] > sums[0] / counts[0] ? 1 : 0
      for (i, k) in zip(members, second) where k == slow { weights[i] = times }
    }
    try cache?.keep("weights", numbers: weights, T.self)
    return weights.reduce(0, +)
  }

  /// 0 or 1 for each member; nil where there is one cluster.
  private func clusters<T: Real>(_ x: UnsafePointer<T>, _ d: Int, _ members: [Int]) -> [Int]? {
    func distance(_ i: Int, _ c: [Double]) -> Double {
      (0..<d).reduce(0) { $0 + (Double(x[i * d + $1]) - c[$1]) * (Double(x[i * d + $1]) - c[$1]) }
    }
    func row(_ i: Int) -> [Double] { (0..<d).map { Double(x[i * d + $0]) } }
    func mean(_ rows: [Int]) -> [Double] {
      var sum = [Double](repeating: 0, count: d)
      for i in rows { for c in 0..<d { sum[c] += Double(x[i * d + c]) } }
      return sum.map { $0 / Double(rows.count) }
    }
    func farthest(_ c: [Double]) -> Int {
      var best = members[0], most = distance(best, c)
      for i in members.dropFirst() where distance(i, c) > most { (best, most) = (i, distance(i, c)) }
      return best
    }
    let first = row(farthest(mean(members))), other = farthest(first)
    if distance(other, first) == 0 { return nil }
    var centres = [first, row(other)], group: [Int] = []
    for _ in 0..<100 {
      let next = members.map { distance($0, centres[1]) < distance($0, centres[0]) ? 1 : 0 }
      if next == group { break }
      group = next
      for k in 0..<2 {
        let rows = zip(members, group).filter { $0.1 == k }.map(\.0)
        if !rows.isEmpty { centres[k] = mean(rows) }
      }
    }
    return group.contains(0) && group.contains(1) ? group : nil
  }
}

/// The members of each group of equal numbers, in their order.
func groups(_ y: UnsafePointer<Int>, _ n: Int) -> [[Int]] {
  let order = (0..<n).sorted { (y[$0], $0) < (y[$1], $1) }
  var out: [[Int]] = []
  for i in order {
    if let last = out.last?.first, y[last] == y[i] { out[out.count - 1].append(i) } else { out.append([i]) }
  }
  return out
}

/// Weighted subsets that stand for the gradients of all samples, to be augmented.
///
///     g_i = p_i − onehot(y_i), or its outer product with features_i     per class: s_ij = max distance − |g_i − g_j|
///     k times the sample with the largest gain of Σ_i max_{j chosen} s_ij; of equal gains the first
///     weights: of how many samples a chosen one is the nearest, 1 at least; scaled to the mean 1; others 0
///
/// p is (n, C), y is (n,), features is (n, d). The value is how many samples are chosen. The subsets are made anew
/// every few epochs, and trained on with their weights.
/// Errors   TW_ERROR_RANGE: numbers that are not finite, or a label that is no class.
/// Differs  the similarity is the card's (that of CRAIG); the authors' code has another decreasing map.
/// Source   Liu, Mirzasoleiman, 2022, arXiv:2210.08363.
struct CoresetAugmentation: Objective {
  static let method = Method(
    "coreset_augmentation", .weighting, "Weighted subsets that stand for the gradients of all samples.",
    rule: """
      g_i = p_i - onehot(y_i), times features_i;  per class greedily max sum_i max_{j in A} (max d - |g_i - g_j|)
      weights: samples that a chosen one is nearest to, 1 at least, scaled to the mean 1;  others 0
      """,
    source: "Liu, Mirzasoleiman, 2022, arXiv:2210.08363",
    parameters: [.integer("k_per_class", nil, .atLeast(1), "samples of each class")],
    inputs: [
      .constant("p", "n, C", "probabilities of the classes"), .integer("y", "n", "labels"),
      .constant("features", "n, d", "inputs of the last layer", optional: true),
      .result("weights", "n", "weights of the samples"),
    ])
  let k: Int
  init(_ h: Hyper) { k = h.integer("k_per_class") }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let p = try x["p"], y = try x.integers("y"), n = x.sizes["n"], classes = x.sizes["C"], d = x.sizes["d"]
    let features = x.optional("features")
    try refuseNonFinite(p, n * classes, "p")
    if let features { try refuseNonFinite(features, n * d, "features") }
    try Labels.check(y, n, classes)
    func errors(_ i: Int, _ j: Int) -> Double {
      (0..<classes).reduce(0) { sum, c in
        sum + (Double(p[i * classes + c]) - (c == y[i] ? 1 : 0)) * (Double(p[j * classes + c]) - (c == y[j] ? 1 : 0))
      }
    }
    // the inner product of outer products is the product of the inner ones
    func product(_ i: Int, _ j: Int) -> Double {
      errors(i, j) * (features.map { Flat.dot($0 + i * d, $0 + j * d, d) } ?? 1)
    }
    var weights = [Double](repeating: 0, count: n), chosen = 0
    for members in groups(y, n) {
      let count = members.count, space = Workspace()
      defer { space.close() }
      let s = try space.room(area(count, count), Double.self), own = members.map { product($0, $0) }
      _ = Rows.sum(count, work: count * (classes + d)) { a in
        for b in a..<count {
          let squared = a == b ? 0 : own[a] + own[b] - 2 * product(members[a], members[b])
          (s[a * count + b], s[b * count + a]) = (max(0, squared).squareRoot(), max(0, squared).squareRoot())
        }
        return 0
      }
      var top = 0.0
      for i in 0..<(count * count) { top = max(top, s[i]) }
      for i in 0..<(count * count) { s[i] = top - s[i] }
      var best = [Double](repeating: 0, count: count), nearest = [Int](repeating: -1, count: count), taken: [Int] = []
      for _ in 0..<min(k, count) {
        var pick = -1, most = -Double.infinity
        for j in 0..<count where !taken.contains(j) {
          let gain = (0..<count).reduce(0) { $0 + max(0, s[$1 * count + j] - best[$1]) }
          if gain > most { (pick, most) = (j, gain) }
        }
        taken.append(pick)
        for i in 0..<count where nearest[i] < 0 || s[i * count + pick] > best[i] {
          (best[i], nearest[i]) = (s[i * count + pick], pick)
        }
      }
      for j in taken { weights[members[j]] = Double(max(1, nearest.count { $0 == j })) }
      chosen += taken.count
    }
    let sum = weights.reduce(0, +)
    for i in 0..<n { weights[i] *= Double(chosen) / sum }
    try cache?.keep("weights", numbers: weights, T.self)
    return Double(chosen)
  }
}
