import ThalwegCore

/// The sorted L1 penalty: the larger the rank of a magnitude, the larger its weight.
///
///     value = λ·Σ seq_i·|w|₍ᵢ₎, |w| sorted downwards     gradient: λ·seq_i·sign at the entry of rank i
///     prox: the sorted |w| less tλ·seq, projected on the non-increasing sequences, clipped at 0, in the old order
///
/// seq has one number an entry, non-increasing; none stands for 1, 1 − 1/n, …, 1/n. Equal magnitudes keep their order.
/// Errors   TW_ERROR_SHAPE where seq does not have as many numbers as the tensor.
/// Differs  nothing from skglm's prox_SLOPE.
/// Source   Bogdan, van den Berg, Sabatti, Su and Candès, 2015, arXiv:1407.3824.
struct Slope: WholeRegularizer {
  static let method = Method(
    "slope", .regularizer, "The sorted L1 penalty: the larger the rank of a magnitude, the larger its weight.",
    rule: """
      value = weight*sum_i seq_i*|w|_(i), |w| sorted downwards;  gradient: weight*seq_i*sign at the entry of rank i
      prox: sorted |w| - t*weight*seq, projected on the non-increasing sequences, clipped at 0, put back
      """,
    source: "Bogdan, van den Berg, Sabatti, Su, Candes, 2015, arXiv:1407.3824",
    parameters: [
      .weight(),
      .list("seq", nil, "non-increasing multipliers, one an entry; none: from 1 down to 1/n, linearly", optional: true),
    ],
    validate: { (h) throws(Failure) in
      let seq = h.list("seq")
      guard seq.allSatisfy({ $0.isFinite && $0 >= 0 }), zip(seq, seq.dropFirst()).allSatisfy({ $0 >= $1 }) else {
        throw Failure(Status.range, "slope: `seq` must be finite, not negative and non-increasing")
      }
      guard seq.count > 0 || !h.hasLists else { throw Failure(Status.range, "slope: `seq` is an empty list") }
    })
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    let seq = h.list("seq")
    guard seq.isEmpty || seq.count == shape.count else {
      throw Failure(
        Status.shape,
        "slope: `seq` has \(seq.count) numbers, a tensor of shape \(shape.dimensions) has \(shape.count)")
    }
  }

  let weight: Double, seq: [Double]
  init(_ h: Hyper) { (weight, seq) = (h.weight, h.list("seq")) }

  private func multiplier(_ i: Int, _ n: Int) -> Double { seq.isEmpty ? Double(n - i) / Double(n) : seq[i] }
  private func order(_ x: [Double]) -> [Int] {
    x.indices.sorted { abs(x[$0]) != abs(x[$1]) ? abs(x[$0]) > abs(x[$1]) : $0 < $1 }
  }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let x = try doubles(w.v, w.count, "slope")
    return weight * order(x).enumerated().reduce(0) { $0 + multiplier($1.offset, x.count) * abs(x[$1.element]) }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let x = try doubles(w.w, w.count, "slope")
    for (i, k) in order(x).enumerated() { w.v[k] += T(scale * weight * multiplier(i, x.count) * signOf(x[k])) }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    let x = try doubles(w.v, w.count, "slope"), k = t * weight
    if k == 0 { return }
    let order = order(x)
    // non-increasing is non-decreasing with the other sign
    var fitted = order.enumerated().map { k * multiplier($0.offset, x.count) - abs(x[$0.element]) }
    try poolViolators(&fitted, fitted.count, Flat.squaredNorm(fitted, fitted.count))
    for (i, k) in order.enumerated() { w.v[k] = T(signOf(x[k]) * max(-fitted[i], 0)) }
  }
}
