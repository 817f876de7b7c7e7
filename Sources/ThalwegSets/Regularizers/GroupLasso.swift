import ThalwegCore

/// The group lasso: whole rows, columns or tensors become zero together.
///
///     c = λ·√size (or λ)     value = c·Σ‖w_g‖     gradient_g = c·w_g/‖w_g‖, 0 for a zero group
///     prox_g = w_g·max(1 − tc/‖w_g‖, 0), exactly 0 when ‖w_g‖ ≤ tc
///
/// Differs  jaxopt has one group and no factor √size. A vector is one group, whatever the axis. Norms of tiny groups do
///          not underflow.
/// Source   Yuan and Lin, 2006.
struct GroupLasso: WholeRegularizer {
  static let method = Method(
    "group_lasso", .regularizer, "The group lasso: whole rows, columns or tensors become zero together.",
    rule: """
      c = weight*sqrt(group size), or weight;  value = c*sum_g |w_g|
      gradient_g = c*w_g/|w_g|, 0 for a zero group;  prox_g = w_g*max(1 - t*c/|w_g|, 0)
      """,
    source: "Yuan, Lin, 2006",
    parameters: [
      .weight(), Groups.parameter,
      .flag("scale_by_size", true, "every group counts times the root of its size"),
    ])
  static var needsFinite: Bool { true }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { Groups.grain(h, shape) }

  let weight: Double, scaled: Bool, choice: Groups
  init(_ h: Hyper) { self.init(weight: h.weight, scaled: h.scale_by_size, Groups(h)) }
  init(weight: Double, scaled: Bool, _ choice: Groups) {
    (self.weight, self.scaled, self.choice) = (weight, scaled, choice)
  }

  private func coefficient(_ g: Slices) -> Double { scaled ? weight * Double(g.length).squareRoot() : weight }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let g = choice.slices(w.shape)
    return coefficient(g) * (try g.norms(w.v)).reduce(0, +)
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let g = choice.slices(w.shape), c = scale * coefficient(g)
    g.add(w.w, over: try g.norms(w.w), times: [Double](repeating: c, count: g.count), into: w.v)
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    let g = choice.slices(w.shape), k = t * coefficient(g)
    if k == 0 { return }
    g.scale(w.v, by: try g.norms(w.v).map { $0 > k ? 1 - k / $0 : 0 })
  }
}

extension Slices {
  /// y ← y + factor·x/length, slice by slice; nothing where a length is 0.
  func add<T: Real>(
    _ x: UnsafePointer<T>, over lengths: [Double], times factors: [Double], into y: UnsafeMutablePointer<T>
  ) {
    // 1/length of numbers as small as 1e-39 has no place in a Float
    func isPlain(_ s: Int) -> Bool { abs(factors[s]) < 1e30 * lengths[s] }
    add(x, times: lengths.indices.map { isPlain($0) ? factors[$0] / lengths[$0] : 0 }, into: y)
    for s in 0..<count where lengths[s] > 0 && !isPlain(s) {
      for k in 0..<length {
        let i = start(s) &+ k &* inner
        y[i] += T(factors[s] * (Double(x[i]) / lengths[s]))
      }
    }
  }
}
