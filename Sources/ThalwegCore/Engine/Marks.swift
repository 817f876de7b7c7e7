import CThalweg
import Glibc

/// What tells at the next step where the host has written parameters since the last: of small tensors their bits as the
/// step left them, of larger ones a hash of every group of 32 elements, so that an element that was written is known
/// within its group. A few instructions a vector, over memory that the step has at hand anyway.
public enum Marks {
  public static let group = 32
  /// Tensors of at most so many elements are kept whole: one chunk.
  public static let whole = Program.chunk

  /// Bytes of the marks of n elements of a tensor of `total`, a chunk or what is left of one.
  public static func bytes(_ n: Int, of total: Int, _ size: Int) -> Int {
    total <= whole ? n * size : (n + group - 1) / group * 4
  }
  /// Where those of a chunk begin.
  public static func offset(_ start: Int) -> Int { start / group * 4 }

  /// The marks of the chunk that begins at `start`.
  public static func take(_ x: Layout, _ start: Int, _ count: Int, of total: Int, _ out: UnsafeMutableRawPointer) {
    let size = x.dtype.size
    if total <= whole { return x.gather(start, count, out) }
    let out = out.assumingMemoryBound(to: UInt32.self), bytes = Int64(count &* size), group = Int64(Marks.group &* size)
    if x.dense { return twi_mark(x.data + start &* size, bytes, group, out) }
    withUnsafeTemporaryAllocation(byteCount: count &* size, alignment: 64) { room in
      guard let row = room.baseAddress else { return }
      x.gather(start, count, row)
      twi_mark(row, bytes, group, out)
    }
  }

  /// Whether the mark of an element of a chunk differs.
  public static func differs(_ e: Int, of total: Int, _ size: Int, _ a: UnsafeRawPointer, _ b: UnsafeRawPointer) -> Bool
  {
    if total <= whole { return memcmp(a + e * size, b + e * size, size) != 0 }
    return memcmp(a + e / group * 4, b + e / group * 4, 4) != 0
  }
}

extension Layout {
  /// The bits of elements start..<start+count, densely.
  public func gather(_ start: Int, _ count: Int, _ out: UnsafeMutableRawPointer) {
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
  public func adopt(_ start: Int, _ count: Int, _ master: UnsafeMutablePointer<Float>) {
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
