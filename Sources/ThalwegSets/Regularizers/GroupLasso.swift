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
    g.add(w.w, times: try g.norms(w.w).map { $0 > 0 ? c / $0 : 0 }, into: w.v)
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    let g = choice.slices(w.shape), k = t * coefficient(g)
    if k == 0 { return }
    g.scale(w.v, by: try g.norms(w.v).map { $0 > k ? 1 - k / $0 : 0 })
  }
}
