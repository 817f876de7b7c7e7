import CThalweg

/// A fingerprint of a chunk of parameters as a step left them, which tells at the next step where the host has written since.
///
/// A mark of a chunk of 512 elements is 16 numbers: number k is a hash of the elements k, k + 16, k + 32, ... of the chunk, so that a single
/// element that was written is known within its 31 neighbours of that stride. A few instructions a vector, over memory that the step has at
/// hand anyway.
enum Marks {
  static let lanes = Int(TWI_MARK_LANES)

  /// Numbers for the marks of a tensor.
  static func count(_ elements: Int) -> Int { (elements / Program.chunk + (elements % Program.chunk > 0 ? 1 : 0)) * lanes }

  /// The mark of the chunk that begins at `start` into `out`, `lanes` numbers.
  static func take(_ x: Layout, _ start: Int, _ count: Int, _ out: UnsafeMutablePointer<UInt32>) {
    let n = Int64(count)
    if x.dense {
      let p = x.data + start &* x.dtype.size
      switch x.dtype.size {
      case 2: twi_mark_16(p.assumingMemoryBound(to: UInt16.self), n, out)
      case 4: twi_mark_32(p.assumingMemoryBound(to: UInt32.self), n, out)
      default: twi_mark_64(p.assumingMemoryBound(to: UInt64.self), n, out)
      }
      return
    }
    withUnsafeTemporaryAllocation(of: UInt64.self, capacity: count) { room in
      guard let row = room.baseAddress else { return }
      x.forEachRun(start, count) { offset, stride, first, m in
        for i in 0..<m {
          let at = x.data + (offset &+ i &* stride) &* x.dtype.size
          switch x.dtype.size {
          case 4: row[first &+ i] = UInt64(at.load(as: UInt32.self))
          case 2: row[first &+ i] = UInt64(at.load(as: UInt16.self))
          default: row[first &+ i] = at.load(as: UInt64.self)
          }
        }
      }
      twi_mark_64(row, n, out)
    }
  }
}

extension Layout {
  /// Elements of a master copy whose rounded value is not what the tensor holds take over what it holds: the host has written there.
  func adopt(_ start: Int, _ count: Int, _ master: UnsafeMutablePointer<Float>) {
    if dense {
      let p = data.assumingMemoryBound(to: UInt16.self) + start, n = Int64(count)
      if dtype == .bf16 ? twi_rounds_to_bf16(master, p, n) : twi_rounds_to_f16(master, p, n) { return }
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
