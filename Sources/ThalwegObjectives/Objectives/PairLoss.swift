import Glibc
import ThalwegCore

/// What an anchor sees: the log-sum-exps over its positives and its negatives, and what is counted along.
struct Anchor {
  var positive = LogSum(), negative = LogSum()
  var positives = 0, negatives = 0
  /// The sum of the similarities to its positives.
  var similarity = 0.0
}

/// The log-sum-exps of an anchor, the derivatives of the loss by them and by each similarity to a positive.
struct AnchorSlope {
  var positive = 0.0, negative = 0.0
  var byPositive = 0.0, byNegative = 0.0, bySimilarity = 0.0
}

/// A loss of the similarities between the rows of one matrix that sees them through two log-sum-exps an anchor, over
/// its positives and over its negatives.
protocol PairLoss {
  /// The exponent of a similarity s of anchor i to a positive or negative, and its derivative.
  func exponent(_ s: Double, positive: Bool, of i: Int) -> (value: Double, slope: Double)
  /// The loss of all anchors; `slopes` holds their log-sum-exps already and takes the derivatives.
  func outer(_ anchors: UnsafePointer<Anchor>, _ n: Int, _ slopes: UnsafeMutablePointer<AnchorSlope>) -> Double
}

/// 1: row j is a positive of anchor i, −1: a negative, 0: neither. It is symmetric, and 0 of a row with itself.
typealias Relation = (_ i: Int, _ j: Int) -> Int

extension PairLoss {
  func value<T: Real>(
    _ u: UnsafePointer<T>, _ n: Int, _ d: Int, _ slopes: UnsafeMutablePointer<AnchorSlope>, _ relation: Relation
  ) throws(Failure) -> Double {
    let space = Workspace()
    defer { space.close() }
    let anchors = try space.room(n, Anchor.self)
    anchors.update(repeating: Anchor(), count: n)
    try Tiles(x: u, n: n, y: u, m: n, d: d).forEachRow { i, j, products, count in
      for k in 0..<count {
        let kind = relation(i, j + k)
        if kind == 0 { continue }
        let s = Double(products[k]), x = exponent(s, positive: kind > 0, of: i).value
        if kind > 0 {
          anchors[i].positive.add(x)
          anchors[i].positives += 1
          anchors[i].similarity += s
        } else {
          anchors[i].negative.add(x)
          anchors[i].negatives += 1
        }
      }
    }
    for i in 0..<n {
      slopes[i] = AnchorSlope(positive: anchors[i].positive.value, negative: anchors[i].negative.value)
    }
    return outer(anchors, n, slopes)
  }

  /// g ← the gradient by rows first..<first + count of u.
  func pull<T: Real>(
    _ g: UnsafeMutablePointer<T>, _ u: UnsafePointer<T>, _ n: Int, _ d: Int, rows first: Int, _ count: Int,
    _ slopes: UnsafePointer<AnchorSlope>, _ relation: Relation
  ) throws(Failure) {
    g.update(repeating: 0, count: count * d)
    try Tiles(x: u + first * d, n: count, y: u, m: n, d: d).pull(into: g) { i, j, products, count in
      for k in 0..<count {
        let s = Double(products[k]), kind = relation(first + i, j + k)
        // as the anchor's own similarity, and as the other's
        products[k] =
          kind == 0
          ? 0
          : T(slope(s, kind > 0, first + i, slopes[first + i]) + slope(s, kind > 0, j + k, slopes[j + k]))
      }
    }
  }

  private func slope(_ s: Double, _ positive: Bool, _ i: Int, _ a: AnchorSlope) -> Double {
    let factor = positive ? a.byPositive : a.byNegative, rest = positive ? a.bySimilarity : 0
    if factor == 0 { return rest }
    let x = exponent(s, positive: positive, of: i)
    return factor * exp(x.value - (positive ? a.positive : a.negative)) * x.slope + rest
  }
}

/// A pair loss of one batch `x` (n, d) with the classes `y` (n,): rows of one class are positives, others negatives.
protocol LabelledPairs: Objective {
  associatedtype Pairs: PairLoss
  var pairs: Pairs { get }
  /// Whether negative entries are cut off first, and whether rows are compared on the unit sphere.
  var relu: Bool { get }
  var normalize: Bool { get }
}

extension LabelledPairs {
  var relu: Bool { false }
  var normalize: Bool { true }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["n"], d = x.sizes["d"], y = try x.integers("y"), space = Workspace()
    defer { space.close() }
    let all = try Embedding([x["x"]], n, d, normalize: normalize, relu: relu, cache, space)
    try cache?.keep("labels", n, of: y)
    return try pairs.value(all.u, n, d, space.room(cache, "slopes", n, AnchorSlope.self), sameLabel(y))
  }

  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    let n = cache.sizes["n"], all = try Embedding<T>(cache, cache.sizes["d"])
    try pairs.pull(
      g, all.u, n, all.d, rows: 0, n, cache.kept("slopes", AnchorSlope.self),
      sameLabel(cache.kept("labels", Int.self)))
    all.pull(g, rows: 0, n, normalize: normalize, relu: relu)
  }
}

/// The rows that a loss of pairs compares, one view of the batch below the other, on the unit sphere on demand.
struct Embedding<T: Real> {
  let u: UnsafePointer<T>, norms: UnsafePointer<Double>, rows: Int, d: Int

  /// `relu` first cuts negative entries off.
  init(
    _ views: [UnsafePointer<T>], _ n: Int, _ d: Int, normalize: Bool, relu: Bool = false, _ cache: Cache?,
    _ space: Workspace
  ) throws(Failure) {
    (rows, self.d) = (views.count * n, d)
    let u = try space.room(cache, "u", area(rows, d), T.self)
    let norms = try space.room(cache, "norms", rows, Double.self)
    for (v, x) in views.enumerated() {
      let out = u + v * n * d
      out.update(from: x, count: n * d)
      if relu { for k in 0..<(n * d) where out[k] < 0 { out[k] = 0 } }
      if normalize { Directions.take(UnsafePointer(out), n, d, into: out, norms: norms + v * n) }
    }
    (self.u, self.norms) = (UnsafePointer(u), UnsafePointer(norms))
  }
  init(_ cache: Cache, _ d: Int) throws(Failure) {
    (u, norms) = (try cache.kept("u", T.self), try cache.kept("norms", Double.self))
    (rows, self.d) = (cache.count("norms"), d)
  }

  /// g ← the gradient by the rows as they were given, from that by the rows of u.
  func pull(_ g: UnsafeMutablePointer<T>, rows first: Int, _ count: Int, normalize: Bool, relu: Bool = false) {
    let own = u + first * d
    if normalize { Directions.pull(g, count, d, own, norms: norms + first) }
    if relu { for k in 0..<(count * d) where !(own[k] > 0) { g[k] = 0 } }
  }
}
