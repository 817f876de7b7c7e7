import Glibc
import ThalwegCore

/// The triplet margin loss.
///
///     d(a, b) = ‖a − b + ε‖_p     value = mean max(0, m + d(a, p) − d(a, n))
///
/// a, p and n are (n, d): anchors, positives, negatives. swap takes the smaller of d(a, n) and d(p, n); squared takes
/// squared Euclidean distances without ε. A distance of 0 has no gradient.
/// Differs  torch's triplet_margin_loss is the same, ε inside the norm.
/// Source   Schroff et al., 2015, arXiv:1503.03832; Balntas et al., 2016 (swap).
struct Triplet: Objective {
  static let method = Method(
    "triplet", .objective, "Anchors should be nearer to positives than to negatives, by a margin.",
    rule: "d(x, y) = |x - y + eps|_p;  value = mean max(0, margin + d(a, p) - d(a, n))",
    source: "Schroff et al., 2015, arXiv:1503.03832",
    parameters: [
      .number("margin", 1, .atLeast(0), "margin"), .number("p", 2, .atLeast(1), "order of the norm"),
      .eps(1e-6, "added to the difference inside the norm"),
      .flag("swap", false, "take the smaller of d(a, n) and d(p, n)"),
      .flag("squared", false, "squared Euclidean distances, without eps"), Reduction.parameter,
    ],
    inputs: [
      .variable("a", "n, d", "anchors"), .variable("p", "n, d", "positives"), .variable("n", "n, d", "negatives"),
    ])
  let margin: Double, order: Double, eps: Double, swap: Bool, squared: Bool, reduction: Reduction
  init(_ h: Hyper) {
    (margin, order, eps, swap, squared) = (h.margin, h.p, h.eps, h.swap, h.squared)
    reduction = Reduction(h)
  }

  private func distance<T: Real>(_ x: UnsafePointer<T>, _ y: UnsafePointer<T>, _ d: Int) -> Double {
    var sum = 0.0, top = 0.0
    for k in 0..<d {
      let u = Double(x[k]) - Double(y[k])
      if squared { sum += u * u } else { top = larger(top, abs(u + eps)) }
    }
    if squared || top == 0 { return sum }
    for k in 0..<d { sum += pow(abs(Double(x[k]) - Double(y[k]) + eps) / top, order) }
    return top * pow(sum, 1 / order)
  }
  /// gx ← gx + weight·∂d/∂x, gy ← gy + weight·∂d/∂y.
  private func add<T: Real>(
    _ x: UnsafePointer<T>, _ y: UnsafePointer<T>, _ d: Int, _ r: Double, _ weight: Double,
    _ gx: UnsafeMutablePointer<T>, _ gy: UnsafeMutablePointer<T>
  ) {
    if r == 0 { return }
    for k in 0..<d {
      let u = Double(x[k]) - Double(y[k]), v = u + eps
      let slope = weight * (squared ? 2 * u : sign(v) * pow(abs(v) / r, order - 1))
      gx[k] += T(slope)
      gy[k] -= T(slope)
    }
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["a"], p = try x["p"], n = try x["n"], rows = x.sizes["n"], d = x.sizes["d"], size = rows * d
    let ga = try cache?.keep("a", size, T.self), gp = try cache?.keep("p", size, T.self)
    let gn = try cache?.keep("n", size, T.self), weight = reduction.weight(rows)
    return Rows.sum(rows, work: 32 * d) { i in
      let at = i * d, near = distance(a + at, p + at, d), direct = distance(a + at, n + at, d)
      let other = swap ? distance(p + at, n + at, d) : .infinity, far = smaller(direct, other)
      let u = margin + near - far
      if u <= 0 { return 0 }
      if let ga, let gp, let gn {
        add(a + at, p + at, d, near, weight, ga + at, gp + at)
        if other < direct {
          add(p + at, n + at, d, far, -weight, gp + at, gn + at)
        } else {
          add(a + at, n + at, d, far, -weight, ga + at, gn + at)
        }
      }
      return weight * u
    }
  }
}

/// The triplet loss with the hardest pairs of a batch.
///
///     value = mean over anchors that have both of max(0, m + d(x, farthest positive) − d(x, nearest negative))
///
/// x is (n, d), y is (n,); plain Euclidean distances. soft takes softplus of the difference, without its margin's kink.
/// Ties go to the smallest index; a distance of 0 has no gradient.
/// Source   Hermans et al., 2017, arXiv:1703.07737.
struct TripletBatchHard: Objective {
  static let method = Method(
    "triplet_batch_hard", .objective, "The triplet loss with the farthest positive and nearest negative of a batch.",
    rule: "value = mean max(0, margin + max_pos |x_i - x_j| - min_neg |x_i - x_j|); soft: softplus",
    source: "Hermans et al., 2017, arXiv:1703.07737",
    parameters: [
      .number("margin", 0.3, .atLeast(0), "margin"), .flag("squared", false, "squared distances"),
      .flag("soft", false, "softplus in place of the hinge"), Reduction.parameter,
    ],
    inputs: [.variable("x", "n, d", "embeddings"), .integer("y", "n", "labels")])
  let margin: Double, squared: Bool, soft: Bool, reduction: Reduction
  init(_ h: Hyper) { (margin, squared, soft, reduction) = (h.margin, h.squared, h.soft, Reduction(h)) }

  private struct Hardest {
    var far = -1.0, positive = -1
    var near = Double.infinity, negative = -1
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let p = try x["x"], y = try x.integers("y"), n = x.sizes["n"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    let found = try space.room(n, Hardest.self)
    found.update(repeating: Hardest(), count: n)
    try DistanceTiles(p, n, p, n, d, space).forEachRow { i, j, r in
      if i == j { return }
      // what is not a number is found, and stays
      if y[i] == y[j] {
        if r > found[i].far || r.isNaN { (found[i].far, found[i].positive) = (r, j) }
      } else if r < found[i].near || r.isNaN {
        (found[i].near, found[i].negative) = (r, j)
      }
    }
    let kept = (0..<n).filter { found[$0].positive >= 0 && found[$0].negative >= 0 }
    let g = try cache?.keep("x", n * d, T.self), weight = reduction.weight(max(1, kept.count))
    var value = 0.0
    for i in kept {
      // the products found them; the distances themselves are taken without their cancellation
      let pairs = [(found[i].positive, 1.0), (found[i].negative, -1.0)]
      let r = pairs.map { distance(p + i * d, p + $0.0 * d, d) }
      let u = margin + r[0] - r[1], slope = soft ? sigmoid(u) : u > 0 ? 1 : 0
      value += weight * (soft ? softplus(u) : larger(0, u))
      guard let g else { continue }
      for ((j, sign), r) in zip(pairs, r) where r > 0 {
        let factor = sign * weight * slope * (squared ? 2 : 1 / r)
        for k in 0..<d {
          let step = T(factor * (Double(p[i * d + k]) - Double(p[j * d + k])))
          g[i * d + k] += step
          g[j * d + k] -= step
        }
      }
    }
    return value
  }
  private func distance<T: Real>(_ x: UnsafePointer<T>, _ y: UnsafePointer<T>, _ d: Int) -> Double {
    var sum = 0.0
    for k in 0..<d { sum += (Double(x[k]) - Double(y[k])) * (Double(x[k]) - Double(y[k])) }
    return squared ? sum : sum.squareRoot()
  }
}

/// The contrastive loss of pairs.
///
///     r = ‖x − y‖     value = mean ½·[s·r² + (1 − s)·max(0, m − r)²]
///
/// x and y are (n, d), s is (n,): 1 for pairs that belong together, else 0. A different pair at distance 0 has no
/// gradient.
/// Source   Hadsell, Chopra and LeCun, 2006.
struct ContrastivePair: Objective {
  static let method = Method(
    "contrastive_pair", .objective, "Pairs that belong together are drawn near, others pushed beyond a margin.",
    rule: "r = |x - y|;  value = mean (s*r^2 + (1 - s)*max(0, margin - r)^2)/2", source: "Hadsell, Chopra, LeCun, 2006",
    parameters: [.number("margin", 1, .above(0), "distance that is enough"), Reduction.parameter],
    inputs: [
      .variable("x", "n, d", "embeddings"), .variable("y", "n, d", "their partners"),
      .integer("s", "n", "1 where both belong together, else 0"),
    ])
  let margin: Double, reduction: Reduction
  init(_ h: Hyper) { (margin, reduction) = (h.margin, Reduction(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["x"], b = try x["y"], same = try x.integers("s"), n = x.sizes["n"], d = x.sizes["d"]
    try Labels.check(same, n, either: 0, or: 1, name: "s")
    let ga = try cache?.keep("x", n * d, T.self), gb = try cache?.keep("y", n * d, T.self)
    let weight = reduction.weight(n)
    return Rows.sum(n, work: 4 * d) { i in
      var sum = 0.0
      for k in (i * d)..<((i + 1) * d) { sum += (Double(a[k]) - Double(b[k])) * (Double(a[k]) - Double(b[k])) }
      let r = sum.squareRoot(), missing = larger(0, margin - r)
      let factor = same[i] == 1 ? weight : r == 0 ? 0 : -weight * missing / r
      if let ga, let gb {
        for k in (i * d)..<((i + 1) * d) {
          ga[k] = T(factor * (Double(a[k]) - Double(b[k])))
          gb[k] = -ga[k]
        }
      }
      return weight / 2 * (same[i] == 1 ? sum : missing * missing)
    }
  }
}

/// The cosine loss of pairs.
///
///     t = 1: 1 − cos(x, y)     t = −1: max(0, cos(x, y) − m)     value = mean
///
/// x and y are (n, d), t is (n,).
/// Differs  torch's cosine_embedding_loss adds about 10⁻¹² to the norms.
struct CosineEmbedding: Objective {
  static let method = Method(
    "cosine_embedding", .objective, "Pairs should point the same way, or apart.",
    rule: "value = mean of 1 - cos(x, y) where t = 1, max(0, cos(x, y) - margin) where t = -1", source: "folklore",
    parameters: [.number("margin", 0, .within(-1, 1), "cosine that is low enough"), Reduction.parameter],
    inputs: viewInputs + [.integer("t", "n", "1 where both belong together, else -1")])
  let margin: Double, reduction: Reduction
  init(_ h: Hyper) { (margin, reduction) = (h.margin, Reduction(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], t = try x.integers("t"), space = Workspace()
    defer { space.close() }
    try Labels.check(t, n, either: -1, or: 1, name: "t")
    let both = try Embedding([x["x"], x["y"]], n, d, normalize: true, nil, space), u = both.u, v = u + n * d
    let gx = try cache?.keep("x", n * d, T.self), gy = try cache?.keep("y", n * d, T.self)
    let weight = reduction.weight(n)
    let value = Rows.sum(n, work: 4 * d) { i in
      let cosine = Flat.dot(u + i * d, v + i * d, d), over = cosine - margin
      let slope = t[i] == 1 ? -weight : over > 0 ? weight : 0
      if let gx, let gy {
        Flat.scale(v + i * d, by: slope, into: gx + i * d, d)
        Flat.scale(u + i * d, by: slope, into: gy + i * d, d)
      }
      return weight * (t[i] == 1 ? 1 - cosine : larger(0, over))
    }
    if let gx, let gy {
      both.pull(gx, rows: 0, n, normalize: true)
      both.pull(gy, rows: n, n, normalize: true)
    }
    return value
  }
}

/// SimSiam: the negative cosine between a predictor's output and the other branch, which is held constant.
///
///     value = −mean cos(p, z); with q and w, those of the other branch: the mean of both
///
/// All are (n, d). The loss of BYOL is 2 + 2·value.
/// Errors   TW_ERROR_NEEDS: only one of q and w.
/// Source   Chen and He, 2021, arXiv:2011.10566.
struct SimSiam: Objective {
  static let method = Method(
    "simsiam", .objective, "The negative cosine between a prediction and a target that is held constant.",
    rule: "value = -mean cos(p, z), or -(mean cos(p, z) + mean cos(q, w))/2",
    source: "Chen, He, 2021, arXiv:2011.10566", parameters: [Reduction.parameter],
    inputs: [
      .variable("p", "n, d", "outputs of the predictor"), .constant("z", "n, d", "targets"),
      .variable("q", "n, d", "outputs of the predictor for the other view", optional: true),
      .constant("w", "n, d", "their targets", optional: true),
    ])
  let reduction: Reduction
  init(_ h: Hyper) { reduction = Reduction(h) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"]
    var branches = [("p", try x["p"], try x["z"])]
    switch (x.optional("q"), x.optional("w")) {
    case (let q?, let w?): branches.append(("q", q, w))
    case (nil, nil): break
    default: throw Failure(Status.needs, "`q` and `w` belong together")
    }
    let weight = -reduction.weight(n) / Double(branches.count)
    var value = 0.0
    for (name, output, target) in branches {
      let space = Workspace()
      defer { space.close() }
      let both = try Embedding([output, target], n, d, normalize: true, nil, space)
      value += weight * Rows.sum(n, work: 2 * d) { Flat.dot(both.u + $0 * d, both.u + (n + $0) * d, d) }
      guard let g = try cache?.keep(name, n * d, T.self) else { continue }
      Flat.scale(both.u + n * d, by: weight, into: g, n * d)
      both.pull(g, rows: 0, n, normalize: true)
    }
    return value
  }
}

/// Center loss: embeddings near the centre of their class; the centres follow by themselves.
///
///     value = λ/2·mean ‖x − c_y‖²     ∂x = λ·(x − c_y)/n     c ← c − α·Σ_{y=c}(c − x)/(1 + n_c)
///
/// x is (n, d), y is (n,), centers is (C, d). The pull-back gives the centres after the step as centers_next (take them
/// with a factor of 1); those of absent classes stay.
/// Differs  many repositories differentiate the centres and hand them to an optimizer.
/// Source   Wen et al., 2016.
struct CenterLoss: Objective {
  static let method = Method(
    "center_loss", .objective, "Embeddings near the centre of their class; the centres follow by themselves.",
    rule: "value = weight/2*mean |x - c_y|^2;  c <- c - alpha*sum_{y = c} (c - x)/(1 + n_c)",
    source: "Wen et al., 2016",
    parameters: [
      .number("weight", 1, .atLeast(0), "coefficient"),
      .number("alpha", 0.5, .between(0, 1, lowOpen: true, highOpen: false), "step of the centres"),
    ],
    inputs: [
      .variable("x", "n, d", "embeddings"), .integer("y", "n", "labels, from 0 to C - 1"),
      .constant("centers", "C, d", "centres of the classes"),
      .result("centers_next", "C, d", "the centres after the step"),
    ])
  let weight: Double, alpha: Double
  init(_ h: Hyper) { (weight, alpha) = (h.weight, h.alpha) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = try x["x"], y = try x.integers("y"), centers = try x["centers"]
    let n = x.sizes["n"], d = x.sizes["d"], classes = x.sizes["C"], scale = weight / Double(n)
    try Labels.check(y, n, classes)
    let g = try cache?.keep("x", n * d, T.self)
    let value = Rows.sum(n, work: 4 * d) { i in
      var sum = 0.0
      for k in 0..<d {
        let apart = Double(rows[i * d + k]) - Double(centers[y[i] * d + k])
        sum += apart * apart
        g?[i * d + k] = T(scale * apart)
      }
      return scale / 2 * sum
    }
    guard let next = try cache?.keep("centers_next", classes * d, T.self) else { return value }
    let space = Workspace()
    defer { space.close() }
    let sums = try space.room(classes * d, Double.self), counts = try space.room(classes, Double.self)
    for i in 0..<n {
      counts[y[i]] += 1
      for k in 0..<d { sums[y[i] * d + k] += Double(centers[y[i] * d + k]) - Double(rows[i * d + k]) }
    }
    for k in 0..<(classes * d) { next[k] = T(Double(centers[k]) - alpha * sums[k] / (1 + counts[k / d])) }
    return value
  }
}

/// Proxy-anchor loss: every class has a proxy that its samples should be near, and all others far from.
///
///     S = cosines to the proxies
///     value = (1/|C⁺|)·Σ_{c with samples} log(1 + Σ_{y=c} e^{−α(S − m)}) + (1/C)·Σ_c log(1 + Σ_{y≠c} e^{α(S + m)})
///
/// x is (n, d), y is (n,), proxies is (C, d).
/// Source   Kim et al., 2020, arXiv:2003.13911.
struct ProxyAnchor: Objective {
  static let method = Method(
    "proxy_anchor", .objective, "Every class has a proxy that its samples should be near, and all others far from.",
    rule: """
      S = cosines to the proxies
      value = mean over classes with samples of log(1 + sum_{y = c} exp(-alpha*(S - margin)))
      + mean over all classes of log(1 + sum_{y != c} exp(alpha*(S + margin)))
      """,
    source: "Kim et al., 2020, arXiv:2003.13911",
    parameters: [.number("margin", 0.1, .atLeast(0), "m"), .number("alpha", 32, .above(0), "sharpness")],
    inputs: [
      .variable("x", "n, d", "embeddings"), .integer("y", "n", "labels, from 0 to C - 1"),
      .variable("proxies", "C, d", "proxies of the classes"),
    ])
  let margin: Double, alpha: Double
  init(_ h: Hyper) { (margin, alpha) = (h.margin, h.alpha) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let y = try x.integers("y"), n = x.sizes["n"], d = x.sizes["d"], classes = x.sizes["C"], space = Workspace()
    defer { space.close() }
    try Labels.check(y, n, classes)
    let rows = try space.room(cache, "rows", n * d, T.self), norms = try space.room(cache, "norms", n, Double.self)
    let proxies = try space.room(cache, "directions", classes * d, T.self)
    let lengths = try space.room(cache, "lengths", classes, Double.self)
    Directions.take(try x["x"], n, d, into: rows, norms: norms)
    Directions.take(try x["proxies"], classes, d, into: proxies, norms: lengths)
    // of every class: the two log-sum-exps
    let near = try space.room(classes, LogSum.self), far = try space.room(classes, LogSum.self)
    near.update(repeating: LogSum(), count: classes)
    far.update(repeating: LogSum(), count: classes)
    try Tiles(x: proxies, n: classes, y: rows, m: n, d: d).forEachRow { c, j, s, count in
      for k in 0..<count {
        if y[j + k] == c {
          near[c].add(-alpha * (Double(s[k]) - margin))
        } else {
          far[c].add(alpha * (Double(s[k]) + margin))
        }
      }
    }
    var present = 0, value = 0.0
    for c in 0..<classes where near[c].sum != 0 { present += 1 }
    let factors = try space.room(cache, "factors", 2 * classes, Double.self)
    for c in 0..<classes {
      let a = near[c].value, b = far[c].value
      value += softplus(b) / Double(classes)
      // what stands before exp(∓α(S ± m)): weight/(1 + Σ)
      factors[classes + c] = -softplus(b) - log(Double(classes))
      guard present > 0, near[c].sum != 0 else { continue }
      value += softplus(a) / Double(present)
      factors[c] = -softplus(a) - log(Double(present))
    }
    try cache?.keep("labels", n, of: y)
    return value
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], d = cache.sizes["d"], classes = cache.sizes["C"], y = try cache.kept("labels", Int.self)
    let rows = try cache.kept("rows", T.self), proxies = try cache.kept("directions", T.self)
    let factors = try cache.kept("factors", Double.self), samples = name == "x"
    let count = samples ? n : classes, mine = samples ? rows : proxies
    g.update(repeating: 0, count: count * d)
    try Tiles(x: mine, n: count, y: samples ? proxies : rows, m: samples ? classes : n, d: d).pull(into: g) {
      i, j, s, width in
      for k in 0..<width {
        let row = samples ? i : j + k, c = samples ? j + k : i, cosine = Double(s[k])
        s[k] = T(
          y[row] == c
            ? -alpha * exp(factors[c] - alpha * (cosine - margin))
            : alpha * exp(factors[classes + c] + alpha * (cosine + margin)))
      }
    }
    Directions.pull(g, count, d, mine, norms: try cache.kept(samples ? "norms" : "lengths", Double.self))
  }
}
