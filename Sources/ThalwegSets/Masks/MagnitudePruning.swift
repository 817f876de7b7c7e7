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
}

extension MagnitudePruning {
  static func gathers(_ h: Hyper) -> Bool { h.is("scope", "global") }

  /// How many entries of each tensor stay where all compete: they are its largest. The border between what stays and
  /// what goes is found digit by digit of the bits of the magnitudes.
  static func gather(_ everything: AllTensors) throws(Failure) {
    for k in everything.indices where everything.hyper(k).sparsity == 0 {
      everything.numbers(k)[0] = Double(everything.shape(k).count)
    }
    let all = everything.only { $0.sparsity > 0 }
    if let k = all.indices.first, all.indices.count == 1, !all.hasRanks {
      let h = all.hyper(k), n = all.shape(k).count
      all.numbers(k)[0] = Double(n - removed(h.sparsity, of: n, h.integer("min_keep")))
      return
    }
    var border = Border(), shares: [Double: Double] = [:]
    var own = [Int](repeating: 0, count: everything.indices.count), kept = own, ties = own
    var sums = [Double](repeating: 0, count: 5)
    for k in all.indices {
      let h = all.hyper(k), found = try all.look(k, border.rank(h))
      shares[h.sparsity, default: 0] += Double(found.size)
      own[k] = min(h.integer("min_keep"), found.equal)
      let counts = [found.size, found.equal, own[k], found.isDouble ? 1 : 0]
      for (j, x) in counts.enumerated() { sums[j] += Double(x) }
    }
    for (share, size) in shares.sorted(by: { $0.key < $1.key }) { sums[4] += share * size }
    all.add(&sums)
    let stay = max(sums[0] - sums[4].rounded(.toNearestOrEven), sums[2])
    if stay >= sums[1] {  // all that stand
      for k in all.indices { all.numbers(k)[0] = Double(try all.look(k, border.rank(all.hyper(k))).equal) }
      return
    }

    for shift: UInt64 in sums[3] > 0 ? [53, 42, 31, 20, 9, 0] : [53, 42, 31, 20] {
      // how many stay at least, and how many more for each digit of the border
      let width: Int = shift == 0 ? 511 : 2047
      var more = [Double](repeating: 0, count: width + 2), digits = [Int](repeating: 0, count: width + 1)
      for k in all.indices {
        var sum = try digits.withUnsafeMutableBufferPointer { (list) throws(Failure) in
          try all.look(k, border.rank(all.hyper(k), (shift, width, list.baseAddress))).above
        }
        more[width + 1] += Double(max(own[k], sum))
        for d in stride(from: width, through: 0, by: -1) where digits[d] > 0 {
          more[d] += Double(max(own[k], sum + digits[d]) - max(own[k], sum))
          sum += digits[d]
          digits[d] = 0
        }
      }
      all.add(&more)
      var digit = width, count = more[width + 1] + more[width]
      while digit > 0, count < stay {
        digit -= 1
        count += more[digit]
      }
      border.narrow(to: UInt64(digit), UInt64(width), shift)
    }

    for k in all.indices {
      let found = try all.look(k, border.rank(all.hyper(k)))
      kept[k] = max(own[k], found.above)
      ties[k] = max(0, found.above + found.equal - kept[k])
    }
    let mine = Double(ties.reduce(0, +))
    var both = [Double(kept.reduce(0, +)), mine]
    all.add(&both)
    var room = mine == both[1] ? counted(stay - both[0], most: 1 << 52) : .max
    for k in all.indices {
      let some = min(room, ties[k])
      all.numbers(k)[0] = Double(kept[k] + some)
      room -= some
    }
  }

  /// The leading bits of a magnitude.
  private struct Border {
    private var found: UInt64 = 0, mask: UInt64 = 0
    mutating func narrow(to digit: UInt64, _ width: UInt64, _ shift: UInt64) {
      found |= digit << shift
      mask |= width << shift
    }
    func rank(_ h: Hyper, _ next: Rank.Next = (0, 0, nil)) -> Rank {
      Rank(found: found, mask: mask, next: next, regrow: h.regrow)
    }
  }

  /// Of the entries that stand, how many are above a border and how many at it; these are counted by their next digit.
  private struct Rank: SlotWork {
    typealias Next = (shift: UInt64, width: Int, digits: UnsafeMutablePointer<Int>?)
    let found, mask: UInt64, next: Next, regrow: Bool
    func callAsFunction<T: Real>(
      _ slots: [UnsafeMutablePointer<T>], _ shape: Shape
    ) -> (size: Int, above: Int, equal: Int, isDouble: Bool) {
      let v = slots[0], pruned = slots[1], n = shape.count
      var above = 0, equal = 0
      for i in 0..<n {
        // no branch but the one that is hardly ever taken: a guess would often fail
        let stands = regrow || pruned[i] != 1 ? 1 : 0
        let bits = v[i].isNaN ? UInt64.max >> 1 : Double(v[i]).magnitude.bitPattern, top = bits & mask
        above &+= top > found ? stands : 0
        if top == found {
          equal &+= stands
          next.digits?[Int(truncatingIfNeeded: bits &>> next.shift) & next.width] &+= stands
        }
      }
      return (n, above, equal, T.isDouble)
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
