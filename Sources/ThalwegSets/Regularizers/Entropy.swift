import Glibc
import ThalwegCore

/// The negative entropy of entries that are not negative.
///
///     value = λ·Σ w·log w, 0·log 0 = 0     gradient = λ(log w + 1)
///     prox: the u > 0 with u + k·log u = w − k,  k = tλ
///
/// With y = log u the equation is e^y + ky = c, c = w − k, whose left side is convex: Newton's method from the right.
/// Outside of its domain the value is infinite. At 0 the gradient is −∞: use the prox.
/// Source   textbook; the root is k·W(exp(w/k − 1)/k), W the function of Lambert.
struct NegEntropy: WholeRegularizer {
  static let method = Method(
    "neg_entropy", .regularizer, "The negative entropy of entries that are not negative.",
    rule: """
      value = weight*sum w*log w, 0*log 0 = 0;  gradient = weight*(log w + 1)
      prox: the u > 0 with u + k*log u = w - k, k = t*weight
      """,
    source: "textbook", parameters: [.weight(1)])

  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    Rows.sum(w.count, work: 16) { i in
      let x = Double(w.v[i])
      return x > 0 ? weight * x * log(x) : x < 0 ? .infinity : x
    }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    _ = Rows.sum(w.count, work: 16) { i in
      w.v[i] += T(scale * (weight == 0 ? 0 : weight * (log(Double(w.w[i])) + 1)))
      return 0
    }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) { each(w) { x, _ in prox(x, t) } }
  static var isSeparable: Bool { true }
  func prox<T: Real>(stepped w: Whole<T>) throws(Failure) { each(w, prox) }

  private func each<T: Real>(_ w: Whole<T>, _ body: (_ x: Double, _ companion: Double) -> Double) {
    _ = Rows.sum(w.count, work: 16) { i in
      w.v[i] = T(body(Double(w.v[i]), Double(w.w[i])))
      return 0
    }
  }
  private func prox(_ x: Double, _ t: Double) -> Double {
    let k = t * weight
    guard k > 0, x.isFinite else { return x }
    let c = x - k
    var y = c > 1 ? log(c) : min(c / k, 0)
    for _ in 0..<200 {
      let e = exp(y), next = y - (e + k * y - c) / (e + k)
      if !(abs(next - y) > 2e-16 * max(1, abs(y))) { break }
      y = next
    }
    return exp(y)
  }
}

/// The entropy of the softmax of logits, every line of the last axis by itself: minimising it drives each line towards
/// one entry.
///
///     p = softmax(z)     value = λ·Σ H,  H = −Σ p·log p     gradient = −λ·p(log p + H)
///
/// Source   as used for architecture weights: Shvetsov et al., 2022, arXiv:2208.14839.
struct SoftmaxEntropy: WholeRegularizer {
  static let method = Method(
    "softmax_entropy", .regularizer, "The entropy of the softmax of every line of the last axis.",
    rule: """
      p = softmax(w) along the last axis, H = -sum p*log p
      value = weight*sum H;  gradient = -weight*p*(log p + H)
      """,
    source: "Shvetsov et al., 2022, arXiv:2208.14839", parameters: [.weight(1)])
  static var hasProx: Bool { false }
  static var needsFinite: Bool { true }

  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { shape.ndim < 2 ? nil : 1 }

  /// log p of one line into `out`; returns H.
  private func line<T: Real>(_ z: UnsafePointer<T>, _ out: inout [Double]) -> Double {
    let top = out.indices.reduce(-Double.infinity) { max($0, Double(z[$1])) }
    let log = Glibc.log(out.indices.reduce(0.0) { $0 + exp(Double(z[$1]) - top) })
    var entropy = 0.0
    for k in out.indices {
      out[k] = (Double(z[k]) - top) - log  // (in this order: `top` may be large)
      entropy -= exp(out[k]) * out[k]
    }
    return entropy
  }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    try finite(w.v, w.count, "softmax_entropy")
    let lines = Slices.along(-1, w.shape), z = UnsafePointer(w.v)
    var p = [Double](repeating: 0, count: lines.length), sum = 0.0
    for s in 0..<lines.count { sum += line(z + lines.start(s), &p) }
    return weight * sum
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    try finite(w.w, w.count, "softmax_entropy")
    let lines = Slices.along(-1, w.shape), z = UnsafePointer(w.w)
    var p = [Double](repeating: 0, count: lines.length)
    for s in 0..<lines.count {
      let entropy = line(z + lines.start(s), &p)
      for k in p.indices { w.v[lines.start(s) + k] -= T(scale * weight * exp(p[k]) * (p[k] + entropy)) }
    }
  }
}
