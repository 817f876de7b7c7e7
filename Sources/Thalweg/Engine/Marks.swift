/// A fingerprint of a block of parameters as a step left them, which tells at the next step where the host has written since.
///
/// A mark of a block is 128 numbers: number k is a hash of the elements k, k + 128, k + 256, ... of the block, so that a single element that was
/// written is known within its 32 neighbours of that stride. One pass of a few instructions a vector, over memory that the step reads anyway.
enum Marks {
  static let lanes = 128
  typealias Row = SIMD16<UInt32>
  private static let rows = lanes / 16

  /// The mark of elements start..<start+count of a tensor into `out`, `lanes` numbers.
  static func take(_ x: Layout, _ start: Int, _ count: Int, _ out: UnsafeMutablePointer<UInt32>) {
    var h = (Row(repeating: 0), Row(repeating: 1), Row(repeating: 2), Row(repeating: 3), Row(repeating: 4), Row(repeating: 5), Row(repeating: 6), Row(repeating: 7))
    let whole = count / lanes &* lanes
    if x.dense {
      switch x.dtype.size {
      case 4: walk(x.data + start &* 4, whole, UInt32.self, &h) { $0 }
      case 2: walk(x.data + start &* 2, whole, UInt16.self, &h) { Row(truncatingIfNeeded: $0) }
      default: walk(x.data + start &* 8, whole, UInt64.self, &h) { fold($0) }
      }
    }
    let from = x.dense ? whole : 0
    withUnsafeTemporaryAllocation(of: UInt64.self, capacity: lanes) { room in
      guard let row = room.baseAddress else { return }
      var done = from
      while done < count {
        let n = min(lanes, count &- done)
        row.update(repeating: 0, count: lanes)
        gather(x, start &+ done, n, row)
        walk(UnsafeMutableRawPointer(row), lanes, UInt64.self, &h) { fold($0) }
        done &+= n
      }
    }
    let p = UnsafeMutableRawPointer(out)
    p.storeBytes(of: h.0, as: Row.self); p.storeBytes(of: h.1, toByteOffset: 64, as: Row.self)
    p.storeBytes(of: h.2, toByteOffset: 128, as: Row.self); p.storeBytes(of: h.3, toByteOffset: 192, as: Row.self)
    p.storeBytes(of: h.4, toByteOffset: 256, as: Row.self); p.storeBytes(of: h.5, toByteOffset: 320, as: Row.self)
    p.storeBytes(of: h.6, toByteOffset: 384, as: Row.self); p.storeBytes(of: h.7, toByteOffset: 448, as: Row.self)
  }

  /// Low and high halves that both count; equal numbers of 16 and 32 bits fold to themselves.
  @inline(__always) private static func fold(_ w: SIMD16<UInt64>) -> Row {
    Row(truncatingIfNeeded: w) ^ (Row(truncatingIfNeeded: w &>> 32) &* 0x85eb_ca6b)
  }
  /// A lane of a block has 32 rows, and 7 and 32 have no common divisor: every row adds at another place of the number, so that equal changes
  /// of many elements (a sign, a constant) do not cancel. Two shifts and an addition: a multiplication costs three times as much.
  @inline(__always) private static func stir(_ h: inout Row, _ w: Row) { h = ((h &<< 7) | (h &>> 25)) &+ w }
  @inline(__always)
  private static func walk<W: FixedWidthInteger & SIMDScalar>(
    _ p: UnsafeMutableRawPointer, _ count: Int, _: W.Type, _ h: inout (Row, Row, Row, Row, Row, Row, Row, Row), _ word: (SIMD16<W>) -> Row
  ) {
    let size = MemoryLayout<W>.size &* 16
    var q = p
    let end = p + count &* MemoryLayout<W>.size
    func next(_ k: Int) -> Row { word(q.loadUnaligned(fromByteOffset: k &* size, as: SIMD16<W>.self)) }
    while q < end {
      stir(&h.0, next(0)); stir(&h.1, next(1)); stir(&h.2, next(2)); stir(&h.3, next(3))
      stir(&h.4, next(4)); stir(&h.5, next(5)); stir(&h.6, next(6)); stir(&h.7, next(7))
      q += 8 &* size
    }
  }
  private static func gather(_ x: Layout, _ start: Int, _ n: Int, _ row: UnsafeMutablePointer<UInt64>) {
    x.forEachRun(start, n) { offset, stride, first, m in
      for i in 0..<m {
        let at = x.data + (offset &+ i &* stride) &* x.dtype.size
        switch x.dtype.size {
        case 4: row[first &+ i] = UInt64(at.load(as: UInt32.self))
        case 2: row[first &+ i] = UInt64(at.load(as: UInt16.self))
        default: row[first &+ i] = at.load(as: UInt64.self)
        }
      }
    }
  }
}

extension Layout {
  /// Elements of a master copy whose rounded value is not what the tensor holds take over what it holds: the host has written there.
  func adopt(_ start: Int, _ count: Int, _ master: UnsafeMutablePointer<Float>) {
    if dense {
      let p = data.assumingMemoryBound(to: UInt16.self) + start
      if dtype == .bf16 {
        for i in 0..<count { master[i] = bf16FromFloat(master[i]) == p[i] ? master[i] : floatFromBF16(p[i]) }
      } else {
        for i in 0..<count { master[i] = Float16(master[i]).bitPattern == p[i] ? master[i] : Float(Float16(bitPattern: p[i])) }
      }
      return
    }
    forEachRun(start, count) { offset, stride, first, n in
      let p = data.assumingMemoryBound(to: UInt16.self) + offset
      for i in 0..<n {
        let h = p[i * stride], m = master[first + i]
        if dtype == .bf16 {
          if bf16FromFloat(m) != h { master[first + i] = floatFromBF16(h) }
        } else if Float16(m).bitPattern != h { master[first + i] = Float(Float16(bitPattern: h)) }
      }
    }
  }
}
