import CThalweg

/// The rounding of state that is stored in fewer bits: up or down with the probability that makes the mean right.
///
/// To nearest, a number that a step changes by less than half the distance to its neighbour never moves: an average
/// whose rate is 0.999 stands still in bfloat16. The noise of an element comes from the seed, the step, the tensor, the
/// buffer and the element alone, and so do the bits of the state, however a tensor is cut and whoever walks it.
public enum Rounding {
  /// The random bits for the group of elements that holds `element`.
  @inlinable @inline(__always) public static func draw(_ key: UInt64, _ element: Int) -> UInt64 {
    Random.mix(key, UInt64(truncatingIfNeeded: element) / UInt64(TWI_GROUP))  // unsigned: a shift
  }
  /// The same; without a key numbers are rounded to nearest.
  @inlinable @inline(__always) public static func draw(_ key: UInt64?, _ element: Int) -> UInt64 {
    guard let key else { return UInt64(TWI_NEAREST) }
    return draw(key, element)
  }
}

/// The elements that are decoded and encoded at a time: four vectors, whose instructions overlap. Groups begin at
/// multiples of their size.
public enum Group {
  public static let size = Int(TWI_GROUP)

  @inlinable @inline(__always)
  public static func each(_ count: Int, _ body: (_ start: Int, _ n: Int) -> Void) {
    var i = 0
    while i < count {
      body(i, min(size, count &- i))
      i &+= size
    }
  }
  /// Memory of a whole group, padded with zeros where only n elements are there.
  @inlinable @inline(__always)
  public static func whole<T>(
    _ p: UnsafeMutablePointer<T>, _ n: Int, writes: Bool, _ body: (UnsafeMutablePointer<T>) -> Void
  ) {
    guard n < size else { return body(p) }
    let bytes = n &* MemoryLayout<T>.stride
    var room = SIMD64<UInt32>.zero  // whose size the compiler knows: nothing is allocated
    withUnsafeMutableBytes(of: &room) { room in
      guard let q = room.baseAddress else { return }
      q.copyMemory(from: p, byteCount: bytes)
      body(q.assumingMemoryBound(to: T.self))
      if writes { UnsafeMutableRawPointer(p).copyMemory(from: q, byteCount: bytes) }
    }
  }
}

/// Storage in bfloat16.
public enum SixteenBit {
  public static func decode(
    _ base: UnsafeMutableRawPointer, _ start: Int, _ count: Int, _ out: UnsafeMutablePointer<Float>
  ) {
    let codes = base.assumingMemoryBound(to: UInt16.self) + start
    for i in 0..<count { out[i] = floatFromBF16(codes[i]) }
  }
  /// Elements start..<start+count, start a multiple of the group.
  public static func encode(
    _ base: UnsafeMutableRawPointer, _ start: Int, _ count: Int, _ values: UnsafeMutablePointer<Float>, _ key: UInt64?
  ) {
    let codes = base.assumingMemoryBound(to: UInt16.self) + start
    Group.each(count) { i, n in
      let draw = Rounding.draw(key, start &+ i)
      Group.whole(values + i, n, writes: false) { values in
        Group.whole(codes + i, n, writes: true) { twi_narrow_bf16(values, draw, $0) }
      }
    }
  }
}

/// Block-wise 8-bit storage of moments: 256 numbers share the largest magnitude of the block as their scale, and each
/// keeps one byte.
///
/// The byte is the logarithm of |x|/scale + c, read off the bits of the float: near zero the map is linear with step
/// about c/16, above c it keeps a constant relative precision. A plain affine map loses small second moments, whose
/// square roots divide; this one keeps everything above about 2⁻¹⁹ of the block's largest, and never rounds a positive
/// number to zero. Encoding and decoding are integer operations that vectorise, where the usual dynamic map needs a
/// table search.
public enum EightBit {
  public static let block = 256
  /// Tensors smaller than this keep 32 bits: they weigh nothing and often matter most.
  public static let smallest = 4096

  public static func bytes(_ count: Int) -> Int { aligned(count) + aligned((count + block - 1) / block * 4) }
  @inlinable @inline(__always) public static func scales(_ base: UnsafeMutableRawPointer, _ total: Int)
    -> UnsafeMutablePointer<Float>
  {
    (base + aligned(total)).assumingMemoryBound(to: Float.self)
  }

  /// Elements start..<start+count (start a multiple of the block) of a slot of `total` elements, widened.
  public static func decode(
    _ base: UnsafeMutableRawPointer, _ total: Int, _ start: Int, _ count: Int, _ out: UnsafeMutablePointer<Float>,
    signed: Bool
  ) {
    let codes = base.assumingMemoryBound(to: UInt8.self) + start, scale = scales(base, total) + start / block
    Group.each(count) { i, n in
      Group.whole(codes + i, n, writes: false) { codes in
        let scale = scale[i / block]
        Group.whole(out + i, n, writes: true) {
          if signed { twi_decode_signed(codes, scale, $0) } else { twi_decode_positive(codes, scale, $0) }
        }
      }
    }
  }
  public static func encode(
    _ base: UnsafeMutableRawPointer, _ total: Int, _ start: Int, _ count: Int, _ values: UnsafeMutablePointer<Float>,
    signed: Bool, _ key: UInt64?
  ) {
    let codes = base.assumingMemoryBound(to: UInt8.self) + start, scale = scales(base, total) + start / block
    // All scales first: the blocks of the second loop do not wait for their own.
    var i = 0
    while i < count {
      // Magnitudes order like their bits, and a NaN is larger than everything: it poisons its block, visibly.
      var top: UInt32 = 0
      for k in i..<min(i &+ block, count) { top = max(top, values[k].bitPattern & 0x7fff_ffff) }
      scale[i / block] = Float(bitPattern: top)
      i &+= block
    }
    Group.each(count) { i, n in
      let inverse = inverse(scale[i / block]), draw = Rounding.draw(key, start &+ i)
      Group.whole(values + i, n, writes: false) { values in
        Group.whole(codes + i, n, writes: true) {
          if signed {
            twi_encode_signed(values, inverse, draw, $0)
          } else {
            twi_encode_positive(values, inverse, draw, $0)
          }
        }
      }
    }
  }

  /// 1/scale, or 0 where that is out of range: the codes of a block that is not finite, or all zero, do not matter. Of
  /// a block whose largest number is subnormal (below 1.2e-38) signed numbers become 0, positive ones the least code.
  @inlinable @inline(__always) public static func inverse(_ s: Float) -> Float {
    s >= .leastNormalMagnitude && s < .infinity ? 1 / s : 0
  }
}

/// A narrow state buffer under a packed kernel, which decodes and encodes it vector by vector between the rule's own
/// instructions.
///
/// The codes of an 8-bit block follow one block behind: only then its scale is known. `values` holds the two blocks in
/// flight.
public struct Codec {
  public let format: SlotStore.Format
  public let slot: Int
  /// The stored state and its scales, from the kernel's first element on.
  @usableFromInline var codes: UnsafeMutableRawPointer
  @usableFromInline var scales: UnsafeMutablePointer<Float>
  @usableFromInline let values: UnsafeMutablePointer<Float>
  /// Sixteen largest magnitudes of the block so far.
  @usableFromInline let top: UnsafeMutablePointer<UInt32>
  @usableFromInline var inverse: Float = 0
  @usableFromInline let key: UInt64
  /// The position within the tensor of the kernel's first element.
  @usableFromInline var first: Int
  public static let valueBytes = 2 * EightBit.block * 4

  /// `offset`: the first element, a multiple of the block, of the `total` elements of the store.
  public init(_ store: SlotStore, slot: Int, total: Int, offset: Int, values: UnsafeMutablePointer<Float>, key: UInt64)
  {
    (format, self.slot, self.values) = (store.format, slot, values)
    (self.key, first) = (key, offset)
    top = UnsafeMutableRawPointer(values + 2 * EightBit.block).assumingMemoryBound(to: UInt32.self)
    top.initialize(repeating: 0, count: 16)
    codes = store.base + offset &* (store.format == .bf16 ? 2 : 1)
    scales = EightBit.scales(store.base, total) + offset / EightBit.block
  }
  public mutating func advance(_ n: Int) {
    codes += n &* (format == .bf16 ? 2 : 1)
    scales += n / EightBit.block
    first &+= n
  }

  /// Where the values of the block at `i` lie, as if element 0 were there too.
  @inlinable @inline(__always) public func base(_ i: Int) -> UnsafeMutableRawPointer {
    UnsafeMutableRawPointer(values + (i & EightBit.block) - i)
  }
  @inlinable @inline(__always) func vector(_ i: Int) -> UnsafeMutablePointer<Float> {
    values + (i & (2 &* EightBit.block &- 1))
  }

  /// How many elements ahead memory is asked for: between the blocks the arithmetic is too long for the processor to
  /// see that far.
  public static let ahead = 512

  @inlinable @inline(__always) public func decode(_ i: Int) {
    let out = vector(i)
    let next = i &+ Codec.ahead
    twi_prefetch(codes + next &* (format == .bf16 ? 2 : 1))
    switch format {
    case .bf16:
      twi_prefetch(codes + next &* 2 + 64)
      twi_widen_bf16((codes + i &* 2).assumingMemoryBound(to: UInt16.self), out)
    case .signed8: twi_decode_signed((codes + i).assumingMemoryBound(to: UInt8.self), scales[i &>> 8], out)
    default: twi_decode_positive((codes + i).assumingMemoryBound(to: UInt8.self), scales[i &>> 8], out)
    }
  }
  @inlinable @inline(__always) public func encode(_ i: Int) {
    if format == .bf16 {
      twi_narrow_bf16(vector(i), Rounding.draw(key, first &+ i), (codes + i &* 2).assumingMemoryBound(to: UInt16.self))
    } else {
      twi_raise(vector(i), top)
      if i >= EightBit.block { store(i &- EightBit.block) }
    }
  }
  @inlinable @inline(__always) func store(_ i: Int) {
    let out = (codes + i).assumingMemoryBound(to: UInt8.self), draw = Rounding.draw(key, first &+ i)
    if format == .signed8 {
      twi_encode_signed(vector(i), inverse, draw, out)
    } else {
      twi_encode_positive(vector(i), inverse, draw, out)
    }
  }
  /// After the block before `end`.
  @inlinable @inline(__always) public mutating func close(_ end: Int) {
    guard format != .bf16 else { return }
    var t: UInt32 = 0
    for k in 0..<16 {
      t = max(t, top[k])
      top[k] = 0
    }
    let s = Float(bitPattern: t)
    scales[end / EightBit.block &- 1] = s
    inverse = EightBit.inverse(s)
  }
  /// After the last block.
  @inlinable @inline(__always) public func finish(_ end: Int) {
    guard format != .bf16, end > 0 else { return }
    var i = end &- EightBit.block
    while i < end {
      store(i)
      i &+= Group.size
    }
  }
}
