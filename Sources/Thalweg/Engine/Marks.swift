import CThalweg

/// A fingerprint of a block of parameters as a step left them, which tells at the next step where the host has written since.
///
/// A mark of a block is 128 numbers: number k is a hash of the elements k, k + 128, k + 256, ... of the block, so that a single element that was
/// written is known within its 32 neighbours of that stride. A few instructions a vector, over memory that the step reads anyway.
enum Marks {
  static let lanes = Int(TWI_MARK_LANES)

  /// The mark of elements start..<start+count of a tensor into `out`, `lanes` numbers.
  static func take(_ x: Layout, _ start: Int, _ count: Int, _ out: UnsafeMutablePointer<UInt32>) {
    out.update(repeating: 0, count: lanes)
    var done = 0
    if x.dense {
      let rows = count / lanes, p = x.data + start &* x.dtype.size
      switch x.dtype.size {
      case 2: twi_mark_16(p.assumingMemoryBound(to: UInt16.self), Int64(rows), out)
      case 4: twi_mark_32(p.assumingMemoryBound(to: UInt32.self), Int64(rows), out)
      default: twi_mark_64(p.assumingMemoryBound(to: UInt64.self), Int64(rows), out)
      }
      done = rows &* lanes
    }
    withUnsafeTemporaryAllocation(of: UInt64.self, capacity: lanes) { room in
      guard let row = room.baseAddress else { return }
      while done < count {
        let n = min(lanes, count &- done)
        row.update(repeating: 0, count: lanes)
        gather(x, start &+ done, n, row)
        twi_mark_64(row, 1, out)
        done &+= n
      }
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
