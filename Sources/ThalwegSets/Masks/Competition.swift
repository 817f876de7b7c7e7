import ThalwegCore

/// All tensors compete for what a share leaves of them together: entries by their magnitudes, slices by their norms.
/// With ranks each has tensors of its own.
enum Competition {
  typealias Found = (size: Int, above: Int, equal: Int, isDouble: Bool)
  typealias Look = (Int, Rank) throws(Failure) -> Found

  /// Leaves in the first number of each tensor how many of its entries stay: they are its largest. `size` says how many
  /// it has, `look` counts those that stand beside a border. The border between what stays and what goes is found digit
  /// by digit of the bits of the magnitudes.
  static func decide(_ everything: AllTensors, _ size: (Int) -> Int, _ look: Look) throws(Failure) {
    for k in everything.indices where everything.hyper(k).sparsity == 0 {
      everything.numbers(k)[0] = Double(size(k))
    }
    let all = everything.only { $0.sparsity > 0 }
    if let k = all.indices.first, all.indices.count == 1, !all.hasRanks {
      let h = all.hyper(k), n = size(k)
      all.numbers(k)[0] = Double(n - removed(h.sparsity, of: n, h.integer("min_keep")))
      return
    }
    var border = Border(), shares: [Double: Double] = [:]
    var own = [Int](repeating: 0, count: everything.indices.count), kept = own, ties = own
    var sums = [Double](repeating: 0, count: 5)
    for k in all.indices {
      let h = all.hyper(k), found = try look(k, border.rank(h))
      shares[h.sparsity, default: 0] += Double(found.size)
      own[k] = min(h.integer("min_keep"), found.equal)
      let counts = [found.size, found.equal, own[k], found.isDouble ? 1 : 0]
      for (j, x) in counts.enumerated() { sums[j] += Double(x) }
    }
    for (share, size) in shares.sorted(by: { $0.key < $1.key }) { sums[4] += share * size }
    all.add(&sums)
    let stay = max(sums[0] - sums[4].rounded(.toNearestOrEven), sums[2])
    if stay >= sums[1] {  // all that stand
      for k in all.indices { all.numbers(k)[0] = Double(try look(k, border.rank(all.hyper(k))).equal) }
      return
    }

    for shift: UInt64 in sums[3] > 0 ? [53, 42, 31, 20, 9, 0] : [53, 42, 31, 20] {
      // how many stay at least, and how many more for each digit of the border
      let width: Int = shift == 0 ? 511 : 2047
      var more = [Double](repeating: 0, count: width + 2), digits = [Int](repeating: 0, count: width + 1)
      for k in all.indices {
        var sum = try digits.withUnsafeMutableBufferPointer { (list) throws(Failure) in
          try look(k, border.rank(all.hyper(k), (shift, width, list.baseAddress))).above
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
      let found = try look(k, border.rank(all.hyper(k)))
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
  struct Border {
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
  struct Rank: SlotWork {
    typealias Next = (shift: UInt64, width: Int, digits: UnsafeMutablePointer<Int>?)
    let found, mask: UInt64, next: Next, regrow: Bool
    func callAsFunction<T: Real>(_ slots: [UnsafeMutablePointer<T>], _ shape: Shape) -> Found {
      count(slots[0], slots[1], shape.count)
    }
    @inline(__always) func count<T: Real>(
      _ v: UnsafePointer<T>, _ pruned: UnsafePointer<T>, _ n: Int
    ) -> Found {
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
