import Glibc
import ThalwegCore

/// The cross-entropy of logits with fixed targets, whose prox is a step of training by projections.
///
///     value = λ·Σ (lse(x) − ⟨y, x⟩) over the lines of the last axis     gradient = λ(softmax(x) − y)
///     prox: argmin ½‖u − x‖² + k(lse(u) − ⟨y, u⟩), k = tλ, by Newton's method with H = I + k(diag(s) − s sᵀ)
///
/// `target` has one number for each entry of a line, or of the tensor. Where a step of Newton does not lower the
/// objective it is halved.
/// Errors   TW_ERROR_SHAPE where target fits neither.
/// Differs  the card calls it a constraint; it is a function with a prox, and stands here among those.
/// Source   Bergmeister, Lal, Jegelka and Sra, 2025.
struct ProxCrossEntropy: WholeRegularizer {
  static let method = Method(
    "prox_cross_entropy", .regularizer, "The cross-entropy of logits with fixed targets, and its prox.",
    rule: """
      value = lam*sum (lse(w) - <target, w>), one line of the last axis each;  gradient = lam*(softmax(w) - target)
      prox: Newton's method, H = I + k*(diag(s) - s*s'), k = t*lam
      """,
    source: "Bergmeister, Lal, Jegelka, Sra, 2025",
    parameters: [
      .list("target", nil, "one number for each entry of a line, or of the tensor"),
      .number("lam", 1, .above(0), "strength"), .integer("steps", 10, .within(1, 1e6), "Newton steps of the prox"),
    ],
    validate: { (h) throws(Failure) in
      guard h.list("target").allSatisfy(\.isFinite) else {
        throw Failure(Status.range, "prox_cross_entropy: `target` must be finite")
      }
    })
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    let n = h.list("target").count
    guard shape.count == 0 || n == shape.count || n == shape.dimensions.last ?? 1 else {
      throw Failure(
        Status.shape, "prox_cross_entropy: `target` has \(n) numbers, which fit no tensor of shape \(shape.dimensions)")
    }
  }

  let target: [Double], lam: Double, steps: Int
  init(_ h: Hyper) { (target, lam, steps) = (h.list("target"), h.lam, h.integer("steps")) }

  /// lse(x), in two parts, and the softmax into s.
  private func softmax(_ x: [Double], _ s: inout [Double]) -> (top: Double, rest: Double) {
    let top = x.reduce(-Double.infinity) { max($0, $1) }
    var sum = 0.0
    for i in x.indices {
      s[i] = exp(x[i] - top)
      sum += s[i]
    }
    for i in s.indices { s[i] /= sum }
    return (top, log(sum))
  }
  private func lines<T: Real>(
    _ x: UnsafePointer<T>, _ w: Whole<T>, _ body: (_ at: Int, _ x: [Double], _ y: ArraySlice<Double>) -> Void
  ) throws(Failure) {
    let x = try doubles(x, w.count, "prox_cross_entropy"), n = w.shape.dimensions.last ?? 1
    if x.isEmpty { return }
    for at in stride(from: 0, to: x.count, by: n) {
      body(at, Array(x[at..<(at + n)]), target.count == n ? target[...] : target[at..<(at + n)])
    }
  }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    var sum = 0.0
    try lines(w.v, w) { _, x, y in
      var s = x
      let (top, rest) = softmax(x, &s), mass = y.reduce(0, +)
      // Σ y = 1 leaves nothing of `top`, which may be large
      sum += rest + (1 - mass) * top - zip(y, x).reduce(0) { $0 + $1.0 * ($1.1 - top) }
    }
    return lam * sum
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    try lines(w.w, w) { at, x, y in
      var s = x
      _ = softmax(x, &s)
      for (i, target) in y.enumerated() { w.v[at + i] += T(scale * lam * (s[i] - target)) }
    }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    let k = t * lam
    if k == 0 { return }
    try lines(w.v, w) { at, z, y in
      let y = Array(y)
      var x = z, s = z
      func cost(_ x: [Double]) -> Double {
        var unused = x
        let (top, rest) = softmax(x, &unused)
        return x.indices.reduce(k * (top + rest)) { $0 + (x[$1] - z[$1]) * (x[$1] - z[$1]) / 2 - k * y[$1] * x[$1] }
      }
      for _ in 0..<steps {
        _ = softmax(x, &s)
        // (D − k·s sᵀ)·d = g by the formula of Sherman and Morrison, D = 1 + k·s
        let g = x.indices.map { x[$0] - z[$0] + k * (s[$0] - y[$0]) }
        let sg = x.indices.reduce(0.0) { $0 + s[$1] * g[$1] / (1 + k * s[$1]) }
        // 1 − k·sᵀD⁻¹s = Σ s/(1 + ks), for Σ s = 1
        let rest = s.reduce(0) { $0 + $1 / (1 + k * $1) }
        let d = x.indices.map { (g[$0] + k * s[$0] * sg / rest) / (1 + k * s[$0]) }
        // so near the root, rounding decides what is lower, and one step more is exact
        if zip(x, d).allSatisfy({ abs($1) <= 1e-6 * max(1, abs($0)) }) {
          x = zip(x, d).map { $0 - $1 }
          break
        }
        var size = 1.0
        let now = cost(x)
        while size > 1e-6, cost(zip(x, d).map { $0 - size * $1 }) > now { size /= 2 }
        if size <= 1e-6 { break }
        x = zip(x, d).map { $0 - size * $1 }
      }
      for i in x.indices { w.v[at + i] = T(x[i]) }
    }
  }
}
