import ThalwegCore

/// The groups that `axis` names: rows or columns of the matrix view, or the whole tensor. A vector is one group.
struct Groups: Sendable {
  static let parameter = Parameter.choice(
    "axis", ["row", "col", "all"], "the groups: rows or columns of the matrix view, or the whole tensor")
  let columns: Bool, all: Bool
  init(_ h: Hyper) { (columns, all) = (h.is("axis", "col"), h.is("axis", "all")) }

  func slices(_ shape: Shape) -> Slices {
    all || shape.ndim < 2 ? .whole(shape) : columns ? .columns(shape) : .rows(shape)
  }
  /// Rows stand by themselves.
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { h.is("axis", "row") && shape.ndim >= 2 ? 1 : nil }
}

/// The L2,1 norm: the sum of the norms of the groups.
///
///     value = λ·Σ‖w_g‖     gradient_g = λ·w_g/‖w_g‖, 0 for a zero group     prox_g = w_g·max(1 − tλ/‖w_g‖, 0)
///
/// It is `group_lasso` without the factor √size; as a robust loss, w is a residual whose rows are channels.
/// Differs  pyproximal sums the norms of columns: axis=col.
/// Source   Nie, Huang, Cai and Ding, 2010.
struct L21: WholeRegularizer {
  static let method = Method(
    "l21", .regularizer, "The L2,1 norm: the sum of the norms of rows or columns.",
    rule: """
      value = weight*sum_g |w_g|;  gradient_g = weight*w_g/|w_g|, 0 for a zero group
      prox_g = w_g*max(1 - t*weight/|w_g|, 0)
      """,
    source: "Nie, Huang, Cai, Ding, 2010", parameters: [.weight(), Groups.parameter])
  static var needsFinite: Bool { true }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { Groups.grain(h, shape) }

  let groups: GroupLasso
  init(_ h: Hyper) { groups = GroupLasso(weight: h.weight, scaled: false, Groups(h)) }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double { try groups.value(w) }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) { try groups.addGradient(w, scale) }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) { try groups.prox(w, t) }
}

/// The sparse group lasso: whole groups become zero, and single entries inside the groups that stay.
///
///     value = λ(r·Σ|w| + (1 − r)·Σ c_g‖w_g‖), c_g = √size or 1     prox = the prox of the groups after that of L1
///
/// The two proxes in this order are exact.
/// Source   Simon, Friedman, Hastie and Tibshirani, 2013.
struct SparseGroupLasso: WholeRegularizer {
  static let method = Method(
    "sparse_group_lasso", .regularizer, "The sparse group lasso: zero groups, and zeros inside the groups that stay.",
    rule: """
      value = weight*(l1_ratio*sum|w| + (1 - l1_ratio)*sum_g c*|w_g|), c = sqrt(group size), or 1
      prox = the group prox of S(w, t*weight*l1_ratio)
      """,
    source: "Simon, Friedman, Hastie, Tibshirani, 2013",
    parameters: [
      .weight(), .number("l1_ratio", 0.5, .within(0, 1), "share of the L1 part"), Groups.parameter,
      .flag("scale_by_size", true, "every group counts times the root of its size"),
    ])
  static var needsFinite: Bool { true }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { Groups.grain(h, shape) }

  let sparse: Double, groups: GroupLasso
  init(_ h: Hyper) {
    let weight: Double = h.weight, ratio: Double = h.l1_ratio
    sparse = weight * ratio
    groups = GroupLasso(weight: weight * (1 - ratio), scaled: h.scale_by_size, Groups(h))
  }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let x = w.v
    return sparse * Rows.sum(w.count, work: 1) { abs(Double(x[$0])) } + (try groups.value(w))
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    try groups.addGradient(w, scale)
    for i in 0..<w.count { w.v[i] += T(scale * sparse * signOf(Double(w.w[i]))) }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    // before anything is written: norms that are numbers now are so when the entries have shrunk
    _ = try groups.choice.slices(w.shape).norms(w.v)
    if t * sparse > 0 { for i in 0..<w.count { w.v[i] = T(shrunk(Double(w.v[i]), by: t * sparse)) } }
    try groups.prox(w, t)
  }
}

/// The sum of the largest magnitudes of the groups.
///
///     value = λ·Σ max|w_g|     prox_g = w_g − P(w_g), P the projection on the L1 ball of radius tλ
///
/// w − P(w) cuts the magnitudes at the threshold of P. The subgradient is λ·sign at the first largest entry of every
/// group.
/// Source   Quattoni, Carreras, Collins and Darrell, 2009.
struct L1Inf: WholeRegularizer {
  static let method = Method(
    "l1_inf", .regularizer, "The sum of the largest magnitudes of rows or columns: whole groups become zero together.",
    rule: """
      value = weight*sum_g max|w_g|;  gradient_g = weight*sign at the first largest entry
      prox_g = w_g - P(w_g), P the projection on the L1 ball of radius t*weight
      """,
    source: "Quattoni, Carreras, Collins, Darrell, 2009", parameters: [.weight(), Groups.parameter])
  static var needsFinite: Bool { true }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { Groups.grain(h, shape) }

  let weight: Double, groups: Groups
  init(_ h: Hyper) { (weight, groups) = (h.weight, Groups(h)) }

  private func top<T: Real>(_ x: UnsafePointer<T>, _ s: Slices) -> Int {
    var best = 0
    for k in 0..<s.length where x[k &* s.inner].magnitude > x[best &* s.inner].magnitude { best = k }
    return best &* s.inner
  }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    try finite(w.v, w.count, "l1_inf")
    let s = groups.slices(w.shape)
    if s.length == 0 { return 0 }
    return weight
      * (0..<s.count).reduce(0.0) { sum, g in
        let x = UnsafePointer(w.v) + s.start(g)
        return sum + abs(Double(x[top(x, s)]))
      }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    try finite(w.w, w.count, "l1_inf")
    let s = groups.slices(w.shape)
    if s.length == 0 { return }
    for g in 0..<s.count {
      let x = UnsafePointer(w.w) + s.start(g), i = top(x, s)
      w.v[s.start(g) + i] += T(scale * weight * signOf(Double(x[i])))
    }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    try finite(w.v, w.count, "l1_inf")
    let s = groups.slices(w.shape), k = t * weight
    if k == 0 || s.length == 0 { return }
    var line = [Double](repeating: 0, count: s.length)
    for g in 0..<s.count {
      let x = w.v + s.start(g)
      for i in line.indices { line[i] = abs(Double(x[i &* s.inner])) }
      let cut = line.reduce(0, +) <= k ? 0 : simplexThreshold(line, k)
      for i in line.indices {
        let a = Double(x[i &* s.inner])
        x[i &* s.inner] = abs(a) > cut ? T(a < 0 ? -cut : cut) : x[i &* s.inner]
      }
    }
  }
}
