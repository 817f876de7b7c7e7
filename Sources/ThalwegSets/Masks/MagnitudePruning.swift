import ThalwegCore

/// Magnitude pruning: a share of the entries of every tensor is zero, and it is the smallest ones.
///
///     after every step:  k = round(sparsity·size), half to even;  the k entries of least |θ| become 0
///     what is pruned stays pruned, unless `regrow` lets it compete again with what the step made of it
///
/// Of equal magnitudes the lower index stays. A sparsity that grows (`sparsity=cubic_sparsity(...)`) prunes more; one
/// that falls brings nothing back without `regrow`.
///
/// State    1 where an entry is pruned.
/// Differs  the share is that of each tensor: a threshold over all tensors is what `pruning_score` gives. The moments
///          of pruned entries go on, which counts with `regrow` alone. A NaN is larger than every number.
/// Source   Han, Pool, Tran, Dally, 2015, arXiv:1506.02626; Zhu, Gupta, 2017, arXiv:1710.01878.
struct MagnitudePruning: WholeRule {
  static let method = Method(
    "magnitude_pruning", .average, "Magnitude pruning: the smallest entries of every tensor are zero after each step.",
    rule: """
      k = round(sparsity*size), half to even;  the k entries of least |theta| become 0, ties: the lower index stays
      what is pruned stays pruned, unless regrow
      """,
    source: "Han, Pool, Tran, Dally, 2015, arXiv:1506.02626; Zhu, Gupta, 2017, arXiv:1710.01878",
    parameters: [
      .number("sparsity", nil, .rate, "share of the entries that is removed"),
      .flag("regrow", false, "what is pruned competes again"),
      .integer("min_keep", 1, .atLeast(0), "entries of a tensor that stay at least"),
    ],
    slots: [Slot("pruned", "1 where an entry is pruned")])

  let sparsity: Double, regrow: Bool, least: Int
  init(_ h: Hyper, _ c: StepContext) { (sparsity, regrow, least) = (h.sparsity, h.regrow, h.integer("min_keep")) }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count, v = t.v, pruned = t.slots[0], k = removed(sparsity, of: n, least)
    if regrow { pruned.update(repeating: 0, count: n) }
    var stays = 0
    for i in 0..<n {
      if pruned[i] == 1 { v[i] = 0 } else { stays += 1 }
    }
    if stays <= n - k { return }
    let kept = n - k
    // pruned entries count as 0 here; those of magnitude 0 that are not pruned come before them
    let border = kept == 0 ? .infinity : Flat.largest(v, n, kept - 1)
    func above(_ x: T) -> Bool { x.isNaN ? !border.isNaN : Double(abs(x)) > border }
    var room = kept
    if kept > 0 { for i in 0..<n where above(v[i]) { room -= 1 } }
    for i in 0..<n where pruned[i] != 1 {
      if kept > 0, above(v[i]) { continue }
      if kept > 0, room > 0, v[i].isNaN || Double(abs(v[i])) == border {
        room -= 1
      } else {
        (v[i], pruned[i]) = (0, 1)
      }
    }
  }
}

/// How many of n a share removes: rounded half to even, but `least` stay.
func removed(_ share: Double, of n: Int, _ least: Int) -> Int {
  max(0, min(Int((share * Double(n)).rounded(.toNearestOrEven)), n - min(least, n)))
}

/// Structured pruning: whole slices along an axis, filters say, are zero.
///
///     after every step:  round(sparsity·n) of the n slices, half to even, become 0, those of least Euclidean norm
///     what is pruned stays pruned, unless `regrow`; one slice stays at least
///
/// Of equal norms the lower index stays.
///
/// State    1 for every slice that is pruned.
/// Errors   TW_ERROR_SHAPE where the axis does not exist.
/// Differs  as of `magnitude_pruning`.
/// Source   Li, Kadav, Durdanovic, Samet, Graf, 2016, arXiv:1608.08710.
struct StructuredPruning: WholeRule {
  static let method = Method(
    "structured_pruning", .average, "Structured pruning: the slices of least norm along an axis are zero.",
    rule: """
      round(sparsity*n) of the n slices along the axis, half to even, become 0: those of least norm
      what is pruned stays pruned, unless regrow
      """,
    source: "Li, Kadav, Durdanovic, Samet, Graf, 2016, arXiv:1608.08710",
    parameters: [
      .number("sparsity", nil, .rate, "share of the slices that is removed"),
      .integer("axis", 0, .within(-64, 63), "the axis; 0 are the filters", live: false),
      .flag("regrow", false, "what is pruned competes again"),
    ],
    slots: [Slot("pruned", "1 for every slice that is pruned")])

  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try axisExists(h, shape, "structured_pruning") }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var slot = method.slots[0]
    slot.count = Slices.along(h.integer("axis"), shape).length
    return [slot]
  }

  let sparsity: Double, regrow: Bool, axis: Int
  init(_ h: Hyper, _ c: StepContext) { (sparsity, regrow, axis) = (h.sparsity, h.regrow, h.integer("axis")) }

  func apply<T: Real>(_ t: Whole<T>) {
    let lines = Slices.along(axis, t.shape), n = lines.length, pruned = t.slots[0]
    func forEachRun(_ k: Int, _ body: (UnsafeMutablePointer<T>) -> Void) {
      for o in 0..<lines.outer { body(t.v + (o &* n &+ k) &* lines.inner) }
    }
    if regrow { pruned.update(repeating: 0, count: n) }
    let score = (0..<n).map { k -> Double in
      if pruned[k] == 1 { return -1 }
      var norm = 0.0
      forEachRun(k) { norm = hypotenuse(norm, Flat.norm(UnsafePointer($0), lines.inner)) }
      return norm
    }
    // a stable order, NaN first
    let keys = score.map { $0.isNaN ? Double.infinity : $0 }
    let order = (0..<n).sorted { (a: Int, b: Int) -> Bool in keys[a] == keys[b] ? a < b : keys[a] > keys[b] }
    for k in order[(n - removed(sparsity, of: n, 1))...] { pruned[k] = 1 }
    for k in 0..<n where pruned[k] == 1 { forEachRun(k) { $0.update(repeating: 0, count: lines.inner) } }
  }
}

/// √(a² + b²) without overflow.
private func hypotenuse(_ a: Double, _ b: Double) -> Double {
  let top = max(a, b)
  return top == 0 || !top.isFinite ? a + b : top * ((a / top) * (a / top) + (b / top) * (b / top)).squareRoot()
}
