import CThalweg

/// A fingerprint of a chunk of parameters as a step left them, which tells at the next step where the host has written
/// since.
///
/// A mark of a chunk of 512 elements is 16 numbers: number k is a hash of the elements in the eight bytes at 8k, 8(k +
/// 16), 8(k + 32), ... of the chunk, so that a single element that was written is known within its 31 neighbours. A few
/// instructions a vector, over memory that the step has at hand anyway.
enum Marks {
  static let lanes = Int(TWI_MARK_LANES)

  /// Numbers for the marks of a tensor.
  static func count(_ elements: Int) -> Int {
    (elements / Program.chunk + (elements % Program.chunk > 0 ? 1 : 0)) * lanes
  }
  /// The number that an element of a chunk counts in.
  static func lane(_ element: Int, size: Int) -> Int { element * size / 8 % lanes }

  /// The mark of the chunk that begins at `start` into `out`, `lanes` numbers.
  static func take(_ x: Layout, _ start: Int, _ count: Int, _ out: UnsafeMutablePointer<UInt32>) {
    let size = x.dtype.size
    if x.dense { return twi_mark(x.data + start &* size, Int64(count &* size), out) }
    withUnsafeTemporaryAllocation(byteCount: count &* size, alignment: 64) { room in
      guard let row = room.baseAddress else { return }
      x.gather(start, count, row)
      twi_mark(row, Int64(count &* size), out)
    }
  }
}

extension Layout {
  /// The bits of elements start..<start+count, densely.
  func gather(_ start: Int, _ count: Int, _ out: UnsafeMutableRawPointer) {
    let size = dtype.size
    forEachRun(start, count) { offset, stride, first, n in
      let from = data + offset &* size, to = out + first &* size
      if stride == 1 { return to.copyMemory(from: from, byteCount: n &* size) }
      for k in 0..<n { (to + k &* size).copyMemory(from: from + k &* stride &* size, byteCount: size) }
    }
  }
}

extension Layout {
  /// Elements of a master copy whose rounded value is not what the tensor holds take over what it holds: the host has
  /// written there.
  func adopt(_ start: Int, _ count: Int, _ master: UnsafeMutablePointer<Float>) {
    if dense {
      let p = data.assumingMemoryBound(to: UInt16.self) + start, n = Int64(count)
      if dtype == .bf16 ? twi_rounds_to_bf16(master, p, n) : twi_rounds_to_f16(master, p, n) { return }
      if dtype == .bf16 {
        for i in 0..<count { master[i] = bf16FromFloat(master[i]) == p[i] ? master[i] : floatFromBF16(p[i]) }
      } else {
        for i in 0..<count {
          master[i] = Float16(master[i]).bitPattern == p[i] ? master[i] : Float(Float16(bitPattern: p[i]))
        }
      }
      return
    }
    forEachRun(start, count) { offset, stride, first, n in
      let p = data.assumingMemoryBound(to: UInt16.self) + offset
      for i in 0..<n {
        let h = p[i * stride], m = master[first + i]
        if dtype == .bf16 {
          if bf16FromFloat(m) != h { master[first + i] = floatFromBF16(h) }
        } else if Float16(m).bitPattern != h {
          master[first + i] = Float(Float16(bitPattern: h))
        }
      }
    }
  }
}
