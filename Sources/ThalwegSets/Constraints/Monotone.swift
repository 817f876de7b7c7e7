import ThalwegCore

/// Numbers that do not fall along the flattened tensor.
///
///     project: pool adjacent violators
///
/// Errors   unbounded: no linear minimisation.
/// Differs  nothing from scipy and scikit-learn's isotonic regression without weights.
/// Source   Ayer, Brunk, Ewing, Reid and Silverman, 1955.
struct Monotone: WholeConstraint {
  static let method = Method(
    "monotone", .constraint, "Numbers that do not fall along the flattened tensor.",
    rule: "project: pool adjacent violators, in O(n)", source: "Ayer, Brunk, Ewing, Reid, Silverman, 1955")
  static var mayFail: Bool { true }
  init(_ h: Hyper) {}

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let square = Flat.squaredNorm(UnsafePointer(w.v), w.count)
    if !square.isFinite { try finite(w.v, w.count, "monotone") }
    try poolViolators(w.v, w.count, square)
  }
}

/// x ← the nearest non-decreasing sequence: blocks of equal numbers, each the mean of its entries. x is finite;
/// `square` is the sum of its squares, which may have overflowed.
///
/// The order in which violators are merged does not matter. Most merges therefore happen in scans without branches
/// that depend on the numbers, over chunks that stay in cache; the usual stack takes the few blocks they leave.
@_specialize(where T == Float)
@_specialize(where T == Double)
func poolViolators<T: Real>(_ x: UnsafeMutablePointer<T>, _ n: Int, _ square: Double) throws(Failure) {
  guard n > 0 else { return }
  // Only as much of it is touched as there are blocks at a time, and a chunk.
  let room = try Memory(n &* MemoryLayout<Block>.stride, .current, zeroed: false)
  defer { withExtendedLifetime(room) {} }
  let blocks = room.base.bindMemory(to: Block.self, capacity: n)
  // Means are compared as products, which must not leave the range of numbers.
  let scale = square < .infinity ? 1 : 0x1p-100
  var used = 0, at = 0
  while at < n {
    let size = min(8192, n &- at), fresh = blocks + used, quarter = size / 4
    var parts = (
      Pool(fresh), Pool(fresh + quarter), Pool(fresh + 2 &* quarter), Pool(fresh + 3 &* quarter)
    )
    // from the numbers to blocks
    if quarter > 0 {
      let y = UnsafePointer(x) + at, y1 = y + quarter, y2 = y1 + quarter, y3 = y2 + quarter
      parts.0.open(Block(sum: scale * Double(y[0]), count: 1))
      parts.1.open(Block(sum: scale * Double(y1[0]), count: 1))
      parts.2.open(Block(sum: scale * Double(y2[0]), count: 1))
      parts.3.open(Block(sum: scale * Double(y3[0]), count: 1))
      for i in 1..<quarter {
        parts.0.take(scale * Double(y[i]))
        parts.1.take(scale * Double(y1[i]))
        parts.2.take(scale * Double(y2[i]))
        parts.3.take(scale * Double(y3[i]))
      }
      parts.0.close()
      parts.1.close()
      parts.2.close()
      parts.3.close()
      // from blocks to fewer blocks, while it pays
      var before = 4 &* quarter, left = parts.0.size &+ parts.1.size &+ parts.2.size &+ parts.3.size
      while left &* 4 < before &* 3, left > 64 {
        let b = parts
        let both = min(b.0.size, b.1.size, b.2.size, b.3.size)
        parts.0.open(b.0.base[0])
        parts.1.open(b.1.base[0])
        parts.2.open(b.2.base[0])
        parts.3.open(b.3.base[0])
        for i in 1..<both {
          parts.0.take(b.0.base[i])
          parts.1.take(b.1.base[i])
          parts.2.take(b.2.base[i])
          parts.3.take(b.3.base[i])
        }
        parts.0.finish(both, b.0.size)
        parts.1.finish(both, b.1.size)
        parts.2.finish(both, b.2.size)
        parts.3.finish(both, b.3.size)
        before = left
        left = parts.0.size &+ parts.1.size &+ parts.2.size &+ parts.3.size
      }
      used = stack(parts.0, blocks, used)
      used = stack(parts.1, blocks, used)
      used = stack(parts.2, blocks, used)
      used = stack(parts.3, blocks, used)
    }
    for i in 4 &* quarter..<size {
      let b = merged(Block(sum: scale * Double(x[at &+ i]), count: 1), blocks, &used)
      blocks[used] = b
      used &+= 1
    }
    at &+= size
  }
  at = 0
  var level = -T.infinity
  for k in 0..<used {
    // an entry that is its block stays bit for bit; rounding lets no block fall below the one before it
    let b = blocks[k], count = Int(b.count), mean = count > 1 ? T(b.sum / b.count / scale) : x[at]
    if count > 1 || mean < level { (x + at).update(repeating: max(mean, level), count: count) }
    level = max(mean, level)
    at &+= count
  }
}

/// Entries next to each other that get their mean.
private struct Block {
  var sum, count: Double
}

/// A stretch of blocks. In a scan, a block joins the one before it when its mean is below, else it stands by itself.
private struct Pool {
  let base: UnsafeMutablePointer<Block>
  var end: UnsafeMutablePointer<Block>, sum = 0.0, count = 0.0
  var size: Int { end - base }
  @inline(__always) init(_ base: UnsafeMutablePointer<Block>) { (self.base, end) = (base, base) }

  @inline(__always) mutating func open(_ b: Block) { (end, sum, count) = (base, b.sum, b.count) }
  /// Always stores, at a place which only moves on for a finished block: no branch for the processor to guess.
  @inline(__always) mutating func take(_ b: Block) {
    let joins = b.sum * count < sum * b.count
    end.pointee = Block(sum: sum, count: count)
    end += joins ? 0 : 1
    let keep: UInt64 = joins ? .max : 0
    sum = b.sum + Double(bitPattern: sum.bitPattern & keep)
    count = b.count + Double(bitPattern: count.bitPattern & keep)
  }
  @inline(__always) mutating func take(_ y: Double) { take(Block(sum: y, count: 1)) }
  @inline(__always) mutating func close() {
    end.pointee = Block(sum: sum, count: count)
    end += 1
  }
  @inline(__always) mutating func finish(_ from: Int, _ to: Int) {
    for i in from..<to { take(base[i]) }
    close()
  }
}

/// Puts blocks on top of a stack of blocks whose means do not fall, merged as they must be. The stack ends below the
/// place of the new blocks or at it, so both may share memory.
@inline(__always)
private func stack(_ part: Pool, _ blocks: UnsafeMutablePointer<Block>, _ used: Int) -> Int {
  var used = used, top = merged(part.base[0], blocks, &used)
  for i in 1..<part.size {
    let b = part.base[i]
    if b.sum * top.count >= top.sum * b.count {
      blocks[used] = top
      used &+= 1
      top = b
    } else {
      top = merged(Block(sum: top.sum + b.sum, count: top.count + b.count), blocks, &used)
    }
  }
  blocks[used] = top
  return used &+ 1
}
@inline(__always)
private func merged(_ block: Block, _ blocks: UnsafeMutablePointer<Block>, _ used: inout Int) -> Block {
  var b = block
  while used > 0, blocks[used &- 1].sum * b.count > b.sum * blocks[used &- 1].count {
    used &-= 1
    b.sum += blocks[used].sum
    b.count += blocks[used].count
  }
  return b
}
