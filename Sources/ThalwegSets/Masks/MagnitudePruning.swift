import ThalwegCore

/// Magnitude pruning: a share of the entries is zero, and it is the smallest ones.
///
///     after every step:  k = round(sparsity·size), half to even;  the k entries of least |θ| become 0
///     size: of all tensors together (scope=global), or of each (local)
///     what is pruned stays pruned, unless `regrow` lets it compete again with what the step made of it
///
/// Of equal magnitudes the lower index stays, in the order of the tensors. The best of each tensor stay, up to
/// `min_keep`. A sparsity that grows (`sparsity=cubic_sparsity(...)`) prunes more; one that falls brings nothing back
/// without `regrow`. `global` are the tensors that the step moves, of all pipelines that the stage stands behind;
/// groups that differ in `sparsity` bring k together, but for those where it is 0: they keep what they have. On several
/// ranks (each with tensors of its own) equal magnitudes at the border stay where more than one rank has some.
///
/// State    1 where an entry is pruned; how many entries of a tensor stay.
/// Differs  what the card calls `freeze_state` is not there: pruned entries do not move, and their gradients and
///          moments count with `regrow`, or in norms over the tensor, alone. A NaN is larger than every number.
/// Source   Han, Pool, Tran, Dally, 2015, arXiv:1506.02626; Zhu, Gupta, 2017, arXiv:1710.01878.
struct MagnitudePruning: WholeRule {
  static let method = Method(
    "magnitude_pruning", .average, "Magnitude pruning: the smallest entries are zero after each step.",
    rule: """
      k = round(sparsity*size), half to even;  the k entries of least |theta| become 0, ties: the lower index stays
      size: of all tensors together (scope=global), or of each (local); min_keep of a tensor stay at least
      what is pruned stays pruned, unless regrow
      """,
    source: "Han, Pool, Tran, Dally, 2015, arXiv:1506.02626; Zhu, Gupta, 2017, arXiv:1710.01878",
    parameters: [
      .number("sparsity", nil, .rate, "share of the entries that is removed"),
      .flag("regrow", false, "what is pruned competes again"),
      .integer("min_keep", 1, .atLeast(0), "entries of a tensor that stay at least"),
      .choice("scope", ["global", "local"], "the share is taken of all tensors together, or of each", live: false),
    ],
    slots: [Slot("pruned", "1 where an entry is pruned")])

  static func scalars(_ h: Hyper) -> [Scalar] { gathers(h) ? [Scalar("stay")] : [] }

  let sparsity: Double, regrow: Bool, least: Int, stay: Int?
  init(_ h: Hyper, _ c: StepContext) {
    (sparsity, regrow, least) = (h.sparsity, h.regrow, h.integer("min_keep"))
    stay = MagnitudePruning.gathers(h) ? counted(c.scalars[0], most: 1 << 52) : nil
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count, v = t.v, pruned = t.slots[0]
    if regrow { pruned.update(repeating: 0, count: n) }
    var stays = 0
    for i in 0..<n {
      if pruned[i] == 1 { v[i] = 0 } else { stays += 1 }
    }
    let kept = stay ?? n - removed(sparsity, of: n, least)
    if stays <= kept { return }
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

  static func gathers(_ h: Hyper) -> Bool { h.is("scope", "global") }
  static func gather(_ everything: AllTensors) throws(Failure) {
    try Competition.decide(everything, { everything.shape($0).count }) { (k, rank) throws(Failure) in
      try everything.look(k, rank)
    }
  }
}

/// Structured pruning: whole slices along an axis, filters say, are zero.
///
///     after every step:  round(sparsity·n) of the n slices, half to even, become 0, those of least Euclidean norm
///     n: of each tensor (scope=local), or of all together (global)
///     what is pruned stays pruned, unless `regrow`; the best `min_keep` slices of each tensor stay
///
/// Of equal norms the lower index stays, in the order of the tensors. For `global` holds what `magnitude_pruning` says
/// of it, with slices for entries; tensors may have slices of other lengths, whose norms are compared as they are.
///
/// State    1 for every slice that is pruned; how many slices of a tensor stay.
/// Errors   TW_ERROR_SHAPE where the axis does not exist.
/// Differs  as of `magnitude_pruning`. local is the default, as in torch's ln_structured; the card has one table for
///          both kinds of pruning, with global and min_keep in entries.
/// Source   Li, Kadav, Durdanovic, Samet, Graf, 2016, arXiv:1608.08710.
struct StructuredPruning: WholeRule {
  static let method = Method(
    "structured_pruning", .average, "Structured pruning: the slices of least norm along an axis are zero.",
    rule: """
      round(sparsity*n) of the n slices along the axis, half to even, become 0: those of least norm
      n: the slices of each tensor (scope=local), or of all together (global); min_keep of a tensor stay at least
      what is pruned stays pruned, unless regrow
      """,
    source: "Li, Kadav, Durdanovic, Samet, Graf, 2016, arXiv:1608.08710",
    parameters: [
      .number("sparsity", nil, .rate, "share of the slices that is removed"),
      .integer("axis", 0, .within(-64, 63), "the axis; 0 are the filters", live: false),
      .flag("regrow", false, "what is pruned competes again"),
      .integer("min_keep", 1, .atLeast(0), "slices of a tensor that stay at least"),
      .choice("scope", ["local", "global"], "the share is taken of each tensor, or of all together", live: false),
    ],
    slots: [Slot("pruned", "1 for every slice that is pruned")])

  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try axisExists(h, shape, "structured_pruning") }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var slot = method.slots[0]
    slot.count = Slices.along(h.integer("axis"), shape).length
    return [slot]
  }

  static func scalars(_ h: Hyper) -> [Scalar] { gathers(h) ? [Scalar("stay")] : [] }

  let sparsity: Double, regrow: Bool, least, axis: Int, stay: Int?
  init(_ h: Hyper, _ c: StepContext) {
    (sparsity, regrow, least, axis) = (h.sparsity, h.regrow, h.integer("min_keep"), h.integer("axis"))
    stay = StructuredPruning.gathers(h) ? counted(c.scalars[0], most: 1 << 52) : nil
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let lines = Slices.along(axis, t.shape), n = lines.length, pruned = t.slots[0]
    if regrow { pruned.update(repeating: 0, count: n) }
    // a stable order, NaN first, what is pruned last
    let norms = StructuredPruning.norms(t.v, lines)
    let keys = (0..<n).map { pruned[$0] == 1 ? -1 : norms[$0].isNaN ? .infinity : norms[$0] }
    let order = (0..<n).sorted { (a: Int, b: Int) -> Bool in keys[a] == keys[b] ? a < b : keys[a] > keys[b] }
    for k in order[min(n, stay ?? n - removed(sparsity, of: n, least))...] { pruned[k] = 1 }
    for k in 0..<n where pruned[k] == 1 {
      lines.forEachRun(k) { (t.v + $0).update(repeating: 0, count: lines.inner) }
    }
  }

  static func gathers(_ h: Hyper) -> Bool { h.is("scope", "global") }
  static func gather(_ everything: AllTensors) throws(Failure) {
    func lines(_ k: Int) -> Slices { Slices.along(everything.hyper(k).integer("axis"), everything.shape(k)) }
    var slices = [Norms.Result](repeating: ([], []), count: everything.indices.count)
    for k in everything.indices { slices[k] = try everything.look(k, Norms(lines: lines(k))) }
    try Competition.decide(everything, { lines($0).length }) { (k, rank) throws(Failure) in
      rank.count(slices[k].norms, slices[k].pruned, slices[k].norms.count)
    }
  }

  /// The norm of each slice.
  private static func norms<T: Real>(_ v: UnsafeMutablePointer<T>, _ lines: Slices) -> [Double] {
    (0..<lines.length).map { k in
      var norm = 0.0
      lines.forEachRun(k) { norm = hypotenuse(norm, Flat.norm(UnsafePointer(v + $0), lines.inner)) }
      return norm
    }
  }
  private struct Norms: SlotWork {
    let lines: Slices
    func callAsFunction<T: Real>(
      _ slots: [UnsafeMutablePointer<T>], _ shape: Shape
    ) -> (norms: [Double], pruned: [Double]) {
      (StructuredPruning.norms(slots[0], lines), (0..<lines.length).map { Double(slots[1][$0]) })
    }
  }
}

extension Slices {
  /// Where the runs of slice k begin; each has `inner` elements.
  fileprivate func forEachRun(_ k: Int, _ body: (Int) -> Void) {
    for o in 0..<outer { body((o &* length &+ k) &* inner) }
  }
}

/// √(a² + b²) without overflow.
private func hypotenuse(_ a: Double, _ b: Double) -> Double {
  let top = max(a, b)
  return top == 0 || !top.isFinite ? a + b : top * ((a / top) * (a / top) + (b / top) * (b / top)).squareRoot()
}
