import Glibc
import ThalwegCore

/// How much every weight is worth, and which ones a share leaves: the scores of pruning, over up to eight tensors.
///
///     magnitude |w|     taylor |g·w|     fisher (g·w)²/2     wanda |w_ij|·x_j     row_norm |w_i|
///     masks: the round(sparsity·size) lowest scores, half to even, are 0: over all tensors (scope=global), in each
///       (local), or of wanda in every row; then the best of a tensor stay, up to min_keep
///
/// w1 … w8 are matrices (a vector is a row), g their gradients, x the norms of the activations of each column. Of equal
/// scores the lower index stays, in the order of the tensors. A NaN is larger than every number.
/// Errors   TW_ERROR_NEEDS: a score without its g or x.
/// Differs  half of the weights go where the share is not given; its card wants it.
/// Source   Han et al., 2015, arXiv:1506.02626; Molchanov et al., 2016, arXiv:1611.06440; Sun et al., 2023,
///          arXiv:2306.11695.
struct PruningScore: Objective {
  private static let most = 8
  static let method = Method(
    "pruning_score", .diagnostic, "Scores of pruning, and the masks that a sparsity leaves, over up to eight tensors.",
    rule: """
      magnitude |w|;  taylor |g*w|;  fisher (g*w)^2/2;  wanda |w_ij|*x_j;  row_norm |w_i|
      mask: 0 for the round(sparsity*size) lowest scores, of all tensors, of each, or (wanda) of every row
      at least min_keep of a tensor stay, the best of it
      """,
    source:
      "Han et al., 2015, arXiv:1506.02626; Molchanov et al., 2016, arXiv:1611.06440; "
      + "Sun et al., 2023, arXiv:2306.11695",
    parameters: [
      .number("sparsity", 0.5, .rate, "share that is removed"),
      .choice("score", ["magnitude", "taylor", "fisher", "wanda", "row_norm"], "what a weight is worth"),
      .choice("scope", ["global", "local"], "over what the share is taken"),
      .integer("min_keep", 1, .atLeast(0), "entries of a tensor that stay at least"),
    ],
    inputs: (1...most).flatMap { k -> [Input] in
      [
        .constant("w\(k)", "r\(k), c\(k)", "weights \(k)", optional: k > 1),
        .constant("g\(k)", "r\(k), c\(k)", "their gradient", optional: true),
        .constant("x\(k)", "c\(k)", "norms of the activations of their columns", optional: true),
        .result("score\(k)", "r\(k), c\(k)", "scores of weights \(k)"),
        .result("mask\(k)", "r\(k), c\(k)", "1 where weights \(k) stay"),
      ]
    })

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let local = h.is("scope", "local"), wanda = h.is("score", "wanda"), least = h.integer("min_keep")
    let share: Double = h.sparsity
    // a tensor, or a row of wanda; groups of them compete
    var all: [(tensor: Int, first: Int, scores: [Double])] = []
    for k in 1...PruningScore.most {
      guard let w = x.optional("w\(k)") else { continue }
      let s = try scores(w, k, x), columns = x.sizes["c\(k)"]
      if let cache {
        let out = try cache.keep("score\(k)", s.count, T.self)
        for i in s.indices { out[i] = T(s[i]) }
      }
      let keys = s.map { $0.isNaN ? Double.infinity : $0 }
      if wanda {
        for r in 0..<x.sizes["r\(k)"] { all.append((k, r * columns, Array(keys[(r * columns)..<((r + 1) * columns)]))) }
      } else {
        all.append((k, 0, keys))
      }
    }
    var kept = 0, count = 0
    var masks: [Int: UnsafeMutablePointer<T>] = [:]
    if let cache {
      for k in Set(all.map(\.tensor)) {
        masks[k] = try cache.keep("mask\(k)", x.sizes["r\(k)"] * x.sizes["c\(k)"], T.self)
      }
    }
    let groups = local || wanda ? Set(all.map(\.tensor)).sorted().map { k in all.filter { $0.tensor == k } } : [all]
    for group in groups {
      let size = group.reduce(0) { $0 + $1.scores.count }
      try Memory.ask(48 &* size)
      var places: [(part: Int, at: Int)] = []
      for (p, part) in group.enumerated() { places += part.scores.indices.map { (p, $0) } }
      places.sort { a, b in
        let s = group[a.part].scores[a.at], t = group[b.part].scores[b.at]
        return s == t ? (a.part, a.at) < (b.part, b.at) : s > t
      }
      func left(_ count: Int) -> Int { count - Int((share * Double(count)).rounded(.toNearestOrEven)) }
      // the best of every part first, then the best of all
      var owed = group.map { wanda ? left($0.scores.count) : min(least, $0.scores.count) }
      let stay = wanda ? max(owed.reduce(0, +), min(least, size)) : left(size)
      var taken = [Bool](repeating: false, count: size), chosen = 0
      for (i, place) in places.enumerated() where owed[place.part] > 0 {
        owed[place.part] -= 1
        taken[i] = true
        chosen += 1
      }
      for i in places.indices where !taken[i] && chosen < stay {
        taken[i] = true
        chosen += 1
      }
      for (i, place) in places.enumerated() where taken[i] {
        let part = group[place.part]
        masks[part.tensor]?[part.first + place.at] = 1
      }
      (kept, count) = (kept + chosen, count + size)
    }
    return Double(kept) / Double(max(1, count))
  }

  private func scores<T: Real>(_ w: UnsafePointer<T>, _ k: Int, _ x: Inputs<T>) throws(Failure) -> [Double] {
    let rows = x.sizes["r\(k)"], columns = x.sizes["c\(k)"], count = rows * columns
    try Memory.ask(32 &* count)
    func needed(_ name: String) throws(Failure) -> UnsafePointer<T> {
      guard let p = x.optional("\(name)\(k)") else {
        throw Failure(Status.needs, "pruning_score: this score needs `\(name)\(k)`")
      }
      return p
    }
    if h.is("score", "magnitude") { return (0..<count).map { abs(Double(w[$0])) } }
    if h.is("score", "wanda") {
      let norms = try needed("x")
      return (0..<count).map { abs(Double(w[$0])) * Double(norms[$0 % columns]) }
    }
    if h.is("score", "row_norm") {
      let norms = (0..<rows).map { Flat.norm(w + $0 * columns, columns) }
      return (0..<count).map { norms[$0 / columns] }
    }
    let g = try needed("g"), squared = h.is("score", "fisher")
    return (0..<count).map { i in
      let product = Double(g[i]) * Double(w[i])
      return squared ? product * product / 2 : abs(product)
    }
  }
}

/// The densities of layers for sparse training: the Erdős–Rényi-kernel rule, or one for all.
///
///     erk: density_l = ε·Σ shape_l/Π shape_l, ε such that all together have `density`; layers that would reach 1 are
///     dense, and ε is found anew
///
/// shapes (layers, axes): one row a layer, filled up with zeros. The value is ε (uniform: density).
/// Errors   TW_ERROR_RANGE: a side that is negative or not whole, or a layer without one.
/// Source   Evci et al., 2020, arXiv:1911.11134; Mocanu et al., 2018, arXiv:1707.04780.
struct ERKDensity: Objective {
  static let method = Method(
    "erk_density", .diagnostic, "Densities of layers for sparse training, by the sums and products of their sides.",
    rule: """
      erk: density_l = eps*sum(shape_l)/prod(shape_l), eps such that all together have `density`
      layers that would reach 1 are dense, and eps is found anew;  uniform: density
      """,
    source: "Evci, Gale, Menick, Castro, Elsen, 2020, arXiv:1911.11134; Mocanu et al., 2018, arXiv:1707.04780",
    parameters: [
      .number("density", 0.1, .between(0, 1, lowOpen: true, highOpen: false), "density of all layers together"),
      .choice("distribution", ["erk", "uniform"], "the rule"),
    ],
    inputs: [
      .constant("shapes", "layers, axes", "the sides of every layer, filled up with zeros"),
      .result("densities", "layers", "density of every layer"),
    ])
  let density: Double, uniform: Bool
  init(_ h: Hyper) { (density, uniform) = (h.density, h.is("distribution", "uniform")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let shapes = try x["shapes"], layers = x.sizes["layers"], axes = x.sizes["axes"]
    try Memory.ask(40 &* layers)
    var sums: [Double] = [], sizes: [Double] = []
    for l in 0..<layers {
      let sides = (0..<axes).map { Double(shapes[l * axes + $0]) }.filter { $0 != 0 }
      guard let least = sides.min(), least > 0, sides.allSatisfy({ $0 == $0.rounded() && $0 < 0x1p53 }) else {
        throw Failure(Status.range, "`shapes` must hold positive whole sides, then zeros, got others in row \(l)")
      }
      sums.append(sides.reduce(0, +))
      sizes.append(sides.reduce(1, *))
    }
    let out = try cache?.keep("densities", layers, T.self), wanted = density * sizes.reduce(0, +)
    var dense = [Bool](repeating: false, count: layers), eps = density
    while !uniform {
      let free = (0..<layers).filter { !dense[$0] }
      let fixed = (0..<layers).reduce(0.0) { dense[$1] ? $0 + sizes[$1] : $0 }
      guard !free.isEmpty else { break }
      eps = max(0, wanted - fixed) / free.reduce(0.0) { $0 + sums[$1] }
      let full = free.filter { eps * sums[$0] >= sizes[$0] }
      if full.isEmpty { break }
      for l in full { dense[l] = true }
    }
    for l in 0..<layers { out?[l] = T(uniform ? density : dense[l] ? 1 : eps * sums[l] / sizes[l]) }
    return uniform ? density : eps
  }
}

/// Movement pruning: what moves away from zero stays.
///
///     S ← S − lr_score·(g⊙w + penalty·∂(mean sigmoid(S))/∂S, in threshold mode);   gradient = g⊙mask
///     topk: the round((1 − sparsity)·n) largest S stay;   threshold: those with sigmoid(S) > tau
///
/// g is the gradient by the masked weights, w the dense ones. `gradient` is behind the mask of the scores as they came,
/// `mask` is that of the new ones. Of equal scores the lower index stays. The value is penalty·mean sigmoid(S).
/// Differs  half of the weights go where the share is not given. The number that goes is rounded half to even. Any
///          optimizer may own S: with lr_score=0 it stays.
/// Source   Sanh, Wolf, Rush, 2020, arXiv:2005.07683.
struct MovementPruning: Objective {
  static let method = Method(
    "movement_pruning", .diagnostic, "Movement pruning: scores that say which weights move away from zero.",
    rule: """
      S <- S - lr_score*(g*w + penalty*d(mean sigmoid(S))/dS in threshold mode);  gradient = g*mask(S before)
      topk: the n - round(sparsity*n) largest S stay;  threshold: those with sigmoid(S) > tau
      """,
    source: "Sanh, Wolf, Rush, 2020, arXiv:2005.07683",
    parameters: [
      .number("sparsity", 0.5, .rate, "share that is removed, in topk mode"),
      .choice("mode", ["topk", "threshold"], "how the scores decide"),
      .number("lr_score", 1, .atLeast(0), "step size of the scores"),
      .number("tau", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "threshold of sigmoid(S)"),
      .number("penalty", 0, .atLeast(0), "coefficient of mean sigmoid(S), in threshold mode"),
    ],
    inputs: [
      .constant("w", "n", "the dense weights"), .constant("g", "n", "gradient by the masked weights"),
      .constant("scores", "n", "S"), .result("updated", "n", "the new S"), .result("mask", "n", "mask of the new S"),
      .result("gradient", "n", "gradient by the dense weights"),
    ])
  let sparsity, rate, tau, penalty: Double, topk: Bool
  init(_ h: Hyper) {
    (sparsity, rate, tau, penalty) = (h.sparsity, h.lr_score, h.tau, h.is("mode", "topk") ? 0 : h.penalty)
    topk = h.is("mode", "topk")
  }

  private func stays(_ scores: [Double]) -> [Bool] {
    if !topk { return scores.map { sigmoid($0) > tau } }
    let n = scores.count, keep = n - Int((sparsity * Double(n)).rounded(.toNearestOrEven))
    return ranked(scores).map { $0 < keep }
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], g = try x["g"], n = x.sizes["n"], given = try x["scores"]
    try Memory.ask(64 &* n)
    let before = (0..<n).map { Double(given[$0]) }
    let after = (0..<n).map { i -> Double in
      let p = sigmoid(before[i]), pull = penalty * p * (1 - p) / Double(n)
      return before[i] - rate * (Double(g[i]) * Double(w[i]) + pull)
    }
    if let cache {
      let updated = try cache.keep("updated", n, T.self), mask = try cache.keep("mask", n, T.self)
      let gradient = try cache.keep("gradient", n, T.self), seen = stays(before), next = stays(after)
      for i in 0..<n {
        updated[i] = T(after[i])
        mask[i] = next[i] ? 1 : 0
        gradient[i] = seen[i] ? g[i] : 0
      }
    }
    return penalty * before.reduce(0) { $0 + sigmoid($1) } / Double(n)
  }
}

/// The place of every number in the order from the largest down; the lower index first in a tie, NaN before all.
func ranked(_ x: [Double]) -> [Int] {
  let keys = x.map { $0.isNaN ? Double.infinity : $0 }
  var rank = [Int](repeating: 0, count: x.count)
  let order = x.indices.sorted { (a: Int, b: Int) -> Bool in keys[a] == keys[b] ? a < b : keys[a] > keys[b] }
  for (place, i) in order.enumerated() { rank[i] = place }
  return rank
}

/// RigL: sparse training that now and then drops its smallest weights and grows where the dense gradient is largest.
///
///     on steps divisible by `every`, not 0, below end_step:  k = ⌊alpha/2·(1 + cos(π·t/end_step))·nnz⌋
///     drop the k smallest |w| of the active; grow the k largest |g| of all that are not kept
///
/// g is the dense gradient. What is grown without having been active starts at 0, and is marked in `grown`, where the
/// host zeroes its moments. On other steps nothing changes. The value is k. Of equal sizes the lower index stays.
/// Errors   TW_ERROR_RANGE: a mask that is not 0 or 1.
/// Differs  the optimizer takes no step then; that is the host's. Densities are those of `erk_density`.
/// Source   Evci et al., 2020, arXiv:1911.11134.
struct RigL: Objective {
  static let method = Method(
    "rigl", .diagnostic, "RigL: drops the smallest active weights and grows where the dense gradient is largest.",
    rule: """
      on steps divisible by every, not 0, below end_step: k = floor(alpha/2*(1 + cos(pi*t/end_step))*nnz)
      drop the k smallest |w| of the active;  grow the k largest |g| of all that are not kept; new ones start at 0
      """,
    source: "Evci, Gale, Menick, Castro, Elsen, 2020, arXiv:1911.11134",
    parameters: [
      .integer("every", 100, .atLeast(1), "steps between updates"),
      .integer("end_step", nil, .atLeast(1), "the last update is before it"),
      .number("alpha", 0.3, .between(0, 1, lowOpen: true, highOpen: false), "share that is dropped at first"),
    ],
    inputs: [
      .constant("w", "n", "the weights"), .constant("g", "n", "the dense gradient"),
      .integer("mask", "n", "1 where a weight is active"), .integer("step", "", "the step t"),
      .result("weights", "n", "the new weights"), .result("active", "n", "the new mask"),
      .result("grown", "n", "1 where a weight became active"),
    ])
  let every, end: Int, alpha: Double
  init(_ h: Hyper) { (every, end, alpha) = (h.integer("every"), h.integer("end_step"), h.alpha) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], g = try x["g"], mask = try x.integers("mask"), t = try x.integers("step")[0], n = x.sizes["n"]
    try Labels.check(mask, n, either: 0, or: 1, name: "mask")
    try Memory.ask(64 &* n)
    let nnz = (0..<n).reduce(0) { $0 + mask[$1] }
    var k = 0
    if t > 0, t % every == 0, t < end {
      k = Int(alpha / 2 * (1 + cos(Double.pi * Double(t) / Double(end))) * Double(nnz))
    }
    let sizes = ranked((0..<n).map { mask[$0] == 1 ? abs(Double(w[$0])) : -1 })
    let kept = (0..<n).map { mask[$0] == 1 && sizes[$0] < nnz - k }
    let slopes = ranked((0..<n).map { kept[$0] ? -1 : abs(Double(g[$0])) })
    guard let cache else { return Double(k) }
    let weights = try cache.keep("weights", n, T.self), active = try cache.keep("active", n, T.self)
    let grown = try cache.keep("grown", n, T.self)
    for i in 0..<n {
      let grows = !kept[i] && slopes[i] < k, stays = kept[i] || grows
      weights[i] = stays && mask[i] == 1 ? w[i] : 0
      active[i] = stays ? 1 : 0
      grown[i] = grows && mask[i] == 0 ? 1 : 0
    }
    return Double(k)
  }
}
