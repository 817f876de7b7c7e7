import Glibc
import ThalwegCore

/// Lossy forms of a tensor that are short to send. Entries that are NaN or infinite count as 0 in all of them, and
/// arrive as 0.
struct Compressor {
  enum Form { case topk, randk, sign, onebit, qsgd }
  static let words = ["topk", "randk", "sign", "onebit", "qsgd"]
  static let share = Parameter.number(
    "ratio", 0.01, .between(0, 1, lowOpen: true, highOpen: false), "share of the entries that are kept, at least one")
  static let count = Parameter.maybeInteger("k", .atLeast(1), "how many are kept, in place of the share")
  static let unbiased = Parameter.flag("unbiased", true, "entries kept at random are multiplied by n/k")
  static let scaled = Parameter.flag("scaled", true, "signs are multiplied by the mean magnitude")
  static let levels = Parameter.integer("levels", 4, .within(1, 0x1p30), "levels above 0")

  let form: Form
  private let ratio, levels: Double, k: Int?, unbiased, scaled: Bool
  private let key: UInt64

  init(_ form: Form, _ h: Hyper, _ c: StepContext) {
    (self.form, ratio, levels) = (form, h.ratio, h.levels)
    (k, unbiased, scaled) = (h.has("k") ? h.integer("k") : nil, h.unbiased, h.scaled)
    key = Random.key(
      seed: c.seed, stream: c.stream, step: UInt64(max(0, c.t - 1)), tensor: UInt32(truncatingIfNeeded: c.tensor))
  }

  /// Bytes that `apply` needs: the draws that choose the entries.
  static func space(_ form: Form, _ shape: Shape, _ size: Int) -> Int {
    form == .randk ? aligned(shape.count &* size) : 0
  }

  /// x becomes what would arrive.
  func apply<T: Real>(_ x: UnsafeMutablePointer<T>, _ shape: Shape, _ space: UnsafeMutableRawPointer) {
    let n = shape.count
    guard n > 0 else { return }
    if form != .sign, form != .onebit { for i in 0..<n where !x[i].isFinite { x[i] = 0 } }
    switch form {
    case .topk: keep(kept(n), of: UnsafePointer(x), x, n, times: 1)
    case .randk:
      let draws = space.assumingMemoryBound(to: T.self)
      for i in 0..<n { draws[i] = T(Random.normal(key, i)) }
      keep(kept(n), of: UnsafePointer(draws), x, n, times: unbiased ? Double(n) / Double(kept(n)) : 1)
    case .sign:
      var sum = 0.0
      for i in 0..<n where x[i].isFinite { sum += Double(x[i].magnitude) }
      let size = T(sum == 0 ? 0 : scaled ? sum / Double(n) : 1)
      for i in 0..<n { x[i] = !x[i].isFinite ? 0 : x[i] < 0 ? -size : size }
    case .onebit: halves(x, shape)
    case .qsgd:
      let norm = Flat.norm(x, n)
      guard norm > 0 else { return }
      for i in 0..<n {
        let r = levels * (Double(x[i].magnitude) / norm), low = r.rounded(.down)
        let u = 0.5 * erfc(-Random.normal(key, i) * 0.5.squareRoot())  // uniform, from the draws that tests can ask for
        let size = norm * (low + (u < r - low ? 1 : 0)) / levels
        x[i] = T(x[i] < 0 ? -size : size)
      }
    }
  }

  private func kept(_ n: Int) -> Int { min(n, max(1, k ?? Int((ratio * Double(n)).rounded(.toNearestOrEven)))) }

  /// Keeps the entries whose score is among the k largest magnitudes; equal ones from the front.
  private func keep<T: Real>(
    _ k: Int, of scores: UnsafePointer<T>, _ x: UnsafeMutablePointer<T>, _ n: Int, times factor: Double
  ) {
    let least = T(Flat.largest(scores, n, k - 1))
    var equal = k
    for i in 0..<n where scores[i].magnitude > least { equal -= 1 }
    for i in 0..<n {
      // the score may be the entry itself: looked at before it changes
      let size = scores[i].magnitude, stays = size > least || (size == least && equal > 0)
      if stays, size == least { equal -= 1 }
      x[i] = stays ? x[i] * T(factor) : 0
    }
  }

  /// In every column the entries from 0 on become their mean, the negative ones theirs. A vector is one column.
  private func halves<T: Real>(_ x: UnsafeMutablePointer<T>, _ shape: Shape) {
    let columns = shape.ndim < 2 ? 1 : shape.columns, rows = shape.ndim < 2 ? shape.count : shape.rows
    for j in 0..<columns {
      var sums = (0.0, 0.0), counts = (0.0, 0.0)
      for i in 0..<rows {
        let entry = Double(x[i &* columns &+ j]), v = entry.isFinite ? entry : 0
        if v < 0 {
          (sums.1, counts.1) = (sums.1 + v, counts.1 + 1)
        } else {
          (sums.0, counts.0) = (sums.0 + v, counts.0 + 1)
        }
      }
      let above = T(counts.0 > 0 ? sums.0 / counts.0 : 0), below = T(counts.1 > 0 ? sums.1 / counts.1 : 0)
      for i in 0..<rows {
        let v = x[i &* columns &+ j]
        x[i &* columns &+ j] = !v.isFinite ? 0 : v < 0 ? below : above
      }
    }
  }
}

/// A transform that is one compressor.
protocol Compression: WholeRule {
  static var form: Compressor.Form { get }
  var compressor: Compressor { get }
}
extension Compression {
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { Compressor.space(form, shape, size) }
  func apply<T: Real>(_ t: Whole<T>) { compressor.apply(t.v, t.shape, t.workspace) }
}

/// The k entries of largest magnitude of every tensor; the others become 0.
///
///     k = max(1, ratio·n rounded half to even);  equal magnitudes: the lower index first
///
/// State    none. Entries that are not finite become 0.
/// Differs  nothing from GRACE's topk but for the order of equal magnitudes.
/// Source   Aji and Heafield, 2017, arXiv:1704.05021.
struct TopKCompress: Compression {
  static let method = Method(
    "topk_compress", .transform, "The entries of largest magnitude of every tensor; the others become 0.",
    rule: "g <- the k = max(1, round(ratio*n)) entries of largest magnitude, 0 elsewhere",
    source: "Aji, Heafield, 2017, arXiv:1704.05021", parameters: [Compressor.share, Compressor.count])
  static let form = Compressor.Form.topk
  let compressor: Compressor
  init(_ h: Hyper, _ c: StepContext) { compressor = Compressor(.topk, h, c) }
}

/// k entries of every tensor, drawn at random; the others become 0.
///
///     g ← (n/k)·g on the k entries with the largest of n random magnitudes, 0 elsewhere;   biased: g itself there
///
/// State    none: the draws are a function of seed, step, tensor and element. Entries that are not finite become 0.
/// Differs  the indices are drawn here, not given.
/// Source   Stich, Cordonnier and Jaggi, 2018, arXiv:1809.07599.
struct RandKCompress: Compression {
  static let method = Method(
    "randk_compress", .transform, "Entries of every tensor drawn at random; the others become 0.",
    rule: "g <- (n/k)*g (unbiased) or g on k = max(1, round(ratio*n)) random entries, 0 elsewhere",
    source: "Stich, Cordonnier, Jaggi, 2018, arXiv:1809.07599",
    parameters: [Compressor.share, Compressor.count, Compressor.unbiased])
  static let form = Compressor.Form.randk
  let compressor: Compressor
  init(_ h: Hyper, _ c: StepContext) { compressor = Compressor(.randk, h, c) }
}

/// The signs of a tensor times its mean magnitude.
///
///     g ← s·mean|g|,  s = 1 where g ≥ 0 else −1;   a tensor of zeros stays
///
/// State    none. Entries that are not finite count as 0.
/// Differs  nothing from EF-SignSGD's scale of every tensor.
/// Source   Karimireddy, Rebjock, Stich and Jaggi, 2019, arXiv:1901.09847.
struct SignCompress: Compression {
  static let method = Method(
    "sign_compress", .transform, "The signs of a tensor times its mean magnitude.",
    rule: "g <- s*mean|g| (scaled) or s,  s = 1 where g >= 0 else -1;  a tensor of zeros stays",
    source: "Karimireddy, Rebjock, Stich, Jaggi, 2019, arXiv:1901.09847", parameters: [Compressor.scaled])
  static let form = Compressor.Form.sign
  let compressor: Compressor
  init(_ h: Hyper, _ c: StepContext) { compressor = Compressor(.sign, h, c) }
}

/// One bit an entry: in every column the entries from 0 on become their mean, the negative ones theirs.
///
/// Shapes   columns are those of (out, in, ...); a vector is one column.
/// State    none. Entries that are not finite count as 0.
/// Differs  nothing from the card.
/// Source   Seide, Fu, Droppo, Li and Yu, 2014.
struct OneBitCompress: Compression {
  static let method = Method(
    "onebit_compress", .transform, "One bit an entry: the mean of its side of 0 in its column.",
    rule: "in every column: g <- mean of the entries >= 0 where g >= 0, mean of the negative ones elsewhere",
    source: "Seide, Fu, Droppo, Li, Yu, 2014")
  static let form = Compressor.Form.onebit
  let compressor: Compressor
  init(_ h: Hyper, _ c: StepContext) { compressor = Compressor(.onebit, h, c) }
}

/// Stochastic quantisation to a few levels of a tensor's norm, without a bias.
///
///     r = levels·|g|/‖g‖;  l = ⌊r⌋ + (u < r − ⌊r⌋),  u uniform;   g ← ‖g‖·sign(g)·l/levels
///
/// State    none: the draws are a function of seed, step, tensor and element. Entries that are not finite count as 0.
/// Differs  u is the normal distribution function at the normal draw of the element.
/// Source   Alistarh, Grubic, Li, Tomioka and Vojnovic, 2016, arXiv:1610.02132.
struct QSGDCompress: Compression {
  static let method = Method(
    "qsgd_compress", .transform, "Stochastic quantisation to a few levels of a tensor's norm.",
    rule: "r = levels*|g|/|g|_2;  l = floor(r) + (u < r - floor(r));  g <- |g|_2*sign(g)*l/levels",
    source: "Alistarh, Grubic, Li, Tomioka, Vojnovic, 2016, arXiv:1610.02132", parameters: [Compressor.levels])
  static let form = Compressor.Form.qsgd
  let compressor: Compressor
  init(_ h: Hyper, _ c: StepContext) { compressor = Compressor(.qsgd, h, c) }
}

/// A compressed gradient whose error is added to the next one.
///
///     p = g + decay·e;   d = C(p);   e ← p − d;   g ← d,   C one of the compressors
///
/// State    e. Entries of g that are not finite count as 0, so that e stays finite.
/// Differs  nothing from the card; the hyper-parameters of all compressors are here, those of the chosen one count.
/// Source   Seide, Fu, Droppo, Li and Yu, 2014; Karimireddy, Rebjock, Stich and Jaggi, 2019, arXiv:1901.09847.
struct ErrorFeedback: WholeRule {
  static let method = Method(
    "error_feedback", .transform, "A compressed gradient whose error is added to the next one.",
    rule: "p = g + decay*e;  d = C(p);  e <- p - d;  g <- d",
    source: "Seide, Fu, Droppo, Li, Yu, 2014; Karimireddy, Rebjock, Stich, Jaggi, 2019, arXiv:1901.09847",
    parameters: [
      .choice("compressor", Compressor.words, "C, as topk_compress and the others", live: false),
      .number("decay", 1, .within(0, 1), "share of the error that is kept"), Compressor.share, Compressor.count,
      Compressor.unbiased, Compressor.scaled, Compressor.levels,
    ],
    slots: [Slot("error", "what the compressor left out so far")])

  private static func form(_ h: Hyper) -> Compressor.Form {
    let forms: [Compressor.Form] = [.topk, .randk, .sign, .onebit, .qsgd]
    return forms[Compressor.words.firstIndex { h.is("compressor", $0) } ?? 0]
  }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { Compressor.space(form(h), shape, size) }

  private let compressor: Compressor, decay: Double
  init(_ h: Hyper, _ c: StepContext) {
    (compressor, decay) = (Compressor(ErrorFeedback.form(h), h, c), h.decay)
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let e = t.slots[0], n = t.count
    for i in 0..<n where !t.v[i].isFinite { t.v[i] = 0 }
    Flat.add(e, times: decay, into: t.v, n)
    e.update(from: t.v, count: n)
    compressor.apply(t.v, t.shape, t.workspace)
    Flat.add(t.v, times: -1, into: e, n)
  }
}
