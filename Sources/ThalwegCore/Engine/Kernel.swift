import CThalweg
import Glibc

/// Where a kernel works: one run of elements of one tensor, all operands dense and in the compute type.
///
/// `slots` are the state buffers of the stage, `used` of them. `index` is the position of the first element within its
/// tensor. `pad` is room for one vector of each operand, `padBytes` long.
public struct Operands {
  public var x: UnsafeMutableRawPointer
  public var g: UnsafeMutableRawPointer
  public var slots: SlotPointers
  /// Memory that what follows this kernel will walk through: asked for line by line on the way.
  public var ahead: UnsafeMutableRawPointer
  /// Where a map writes what it makes of x: there, or somewhere else, which a copy before it need not fill then.
  public var out: UnsafeMutableRawPointer
  public var used: Int
  public var count: Int
  public var index: Int
  public var pad: UnsafeMutableRawPointer
  /// State that a packed kernel decodes and encodes itself.
  public var codecs: UnsafeMutablePointer<Codec>?
  public var codecCount = 0
  /// What the kernel of a rule does beside it: the first `before` to the gradient, the others to the parameter.
  public var folds = Operands.noFolds
  public var before = 0, foldCount = 0
  /// Slot `Fold.slot` is in use too.
  public var averages = false
  public nonisolated(unsafe) static let noFolds = UnsafeMutablePointer<Fold>.allocate(capacity: 1)
  public static let padBytes = 64 * (SlotPointers.capacity + 2)
  public init(
    x: UnsafeMutableRawPointer, g: UnsafeMutableRawPointer, slots: SlotPointers, used: Int, count: Int, index: Int,
    pad: UnsafeMutableRawPointer
  ) {
    (self.x, self.g, self.slots, self.used, self.count, self.index, self.pad) = (x, g, slots, used, count, index, pad)
    (ahead, out) = (x, x)
  }
}

/// Up to sixteen state buffers. A struct of fields, not an array: a constant subscript costs nothing.
public struct SlotPointers {
  public static let capacity = 16
  @usableFromInline var a: UnsafeMutableRawPointer, b: UnsafeMutableRawPointer, c: UnsafeMutableRawPointer,
    d: UnsafeMutableRawPointer
  @usableFromInline var e: UnsafeMutableRawPointer, f: UnsafeMutableRawPointer, h: UnsafeMutableRawPointer,
    i: UnsafeMutableRawPointer
  @usableFromInline var j: UnsafeMutableRawPointer, k: UnsafeMutableRawPointer, l: UnsafeMutableRawPointer,
    m: UnsafeMutableRawPointer
  @usableFromInline var n: UnsafeMutableRawPointer, o: UnsafeMutableRawPointer, q: UnsafeMutableRawPointer,
    r: UnsafeMutableRawPointer

  public init(repeating p: UnsafeMutableRawPointer) {
    (a, b, c, d, e, f, h, i) = (p, p, p, p, p, p, p, p)
    (j, k, l, m, n, o, q, r) = (p, p, p, p, p, p, p, p)
  }

  public subscript(index: Int) -> UnsafeMutableRawPointer {
    @inlinable @inline(__always) get {
      switch index {
      case 0: a
      case 1: b
      case 2: c
      case 3: d
      case 4: e
      case 5: f
      case 6: h
      case 7: i
      case 8: j
      case 9: k
      case 10: l
      case 11: m
      case 12: n
      case 13: o
      case 14: q
      default: r
      }
    }
    @inlinable @inline(__always) set {
      switch index {
      case 0: a = newValue
      case 1: b = newValue
      case 2: c = newValue
      case 3: d = newValue
      case 4: e = newValue
      case 5: f = newValue
      case 6: h = newValue
      case 7: i = newValue
      case 8: j = newValue
      case 9: k = newValue
      case 10: l = newValue
      case 11: m = newValue
      case 12: n = newValue
      case 13: o = newValue
      case 14: q = newValue
      default: r = newValue
      }
    }
  }
}

/// The state of the current element: `s[0]` reads and writes the first slot.
public struct Slots<L: Lane> {
  public let p: SlotPointers
  public var i: Int
  /// The position of the first element of this vector within its tensor.
  public var index: Int
  @inlinable @inline(__always) public init(_ p: SlotPointers, _ index: Int) {
    (self.p, self.i, self.index) = (p, 0, index)
  }

  public subscript(k: Int) -> L {
    @inlinable @inline(__always) get { L.load(UnsafePointer(p[k].assumingMemoryBound(to: L.Element.self) + i)) }
    @inlinable @inline(__always) nonmutating set { newValue.store(p[k].assumingMemoryBound(to: L.Element.self) + i) }
  }
}

/// Four running sums and a running maximum, in double.
///
/// Products of doubles may leave the range where their root does not. Lanes of doubles therefore take every sum a
/// second time, of its large terms alone and times 2⁻¹²⁰⁰: what is left out could not be seen beside a sum that
/// overflows. Floats cannot overflow a double.
public struct Sums {
  /// Written are the sums, the same scaled, and the maximum.
  public static let count = 9, scaled = 4, top = 8
  /// Floats: the second half of the lanes; doubles: the scaled sums.
  public var low: (SIMD8<Double>, SIMD8<Double>, SIMD8<Double>, SIMD8<Double>)
  public var high: (SIMD8<Double>, SIMD8<Double>, SIMD8<Double>, SIMD8<Double>)
  public var top: SIMD8<Double>
  @inlinable @inline(__always) public init() {
    let z = SIMD8<Double>(repeating: 0)
    (low, high, top) = ((z, z, z, z), (z, z, z, z), z)
  }

  /// Adds the elements of `x` to sum `k` (0 to 3).
  @inlinable @inline(__always) public mutating func add<L: Lane>(_ k: Int, _ x: L) {
    let w = x.wide
    gather(k, w.low, L.width == 16 ? w.high : Sums.large(w.low, beyond: 0x1p900) * Sums.unit * Sums.unit)
  }
  /// Adds 1 to sum `k` for every element where the mask holds.
  @inlinable @inline(__always) public mutating func count<L: Lane>(_ k: Int, _: L.Type, where mask: L.Mask) {
    let ones = L.count(mask)
    switch k {
    case 0: low.0 += ones
    case 1: low.1 += ones
    case 2: low.2 += ones
    default: low.3 += ones
    }
  }
  /// Adds p·q, multiplied in double: no rounding of the product of floats.
  @inlinable @inline(__always) public mutating func add<L: Lane>(_ k: Int, _ p: L, times q: L) {
    let u = p.wide, v = q.wide
    if L.width == 16 { return gather(k, u.low * v.low, u.high * v.high) }
    let zero = SIMD8<Double>(repeating: 0), edge = SIMD8<Double>(repeating: 0x1p400)
    let a = u.low.magnitude, b = v.low.magnitude, larger = a.replacing(with: b, where: b .> a)
    let x = u.low.replacing(with: zero, where: larger .<= edge)
    gather(k, u.low * v.low, (x * Sums.unit) * (v.low * Sums.unit))
  }
  /// 2⁻⁶⁰⁰: the product of two doubles that are this much smaller leaves room for 2¹⁷⁶ of them.
  @inlinable @inline(__always) static var unit: SIMD8<Double> { SIMD8(repeating: 0x1p-600) }
  @inlinable @inline(__always) static func large(_ x: SIMD8<Double>, beyond edge: Double) -> SIMD8<Double> {
    x.replacing(with: SIMD8<Double>(repeating: 0), where: x.magnitude .<= SIMD8<Double>(repeating: edge))
  }
  @inlinable @inline(__always) mutating func gather(_ k: Int, _ a: SIMD8<Double>, _ b: SIMD8<Double>) {
    switch k {
    case 0: (low.0, high.0) = (low.0 + a, high.0 + b)
    case 1: (low.1, high.1) = (low.1 + a, high.1 + b)
    case 2: (low.2, high.2) = (low.2 + a, high.2 + b)
    default: (low.3, high.3) = (low.3 + a, high.3 + b)
    }
  }
  /// Raises the maximum; a NaN stays.
  @inlinable @inline(__always) public mutating func raise<L: Lane>(_ x: L) {
    let w = x.wide
    top = SIMD8<Double>.max(top, w.low)
    if L.width == 16 { top = SIMD8<Double>.max(top, w.high) }
  }
  /// Adds the sums of another part.
  @inlinable public mutating func add(_ part: Sums) {
    low = (low.0 + part.low.0, low.1 + part.low.1, low.2 + part.low.2, low.3 + part.low.3)
    high = (high.0 + part.high.0, high.1 + part.high.1, high.2 + part.high.2, high.3 + part.high.3)
    top = SIMD8<Double>.max(top, part.top)
  }
  /// Sum 0 of floats or doubles: a scaled sum is too small to be seen beside its own.
  @inlinable @inline(__always) public var first: Double { (low.0 + high.0).sum() }
  /// Sum k in the same way.
  @inlinable public subscript(k: Int) -> Double {
    switch k {
    case 0: first
    case 1: (low.1 + high.1).sum()
    case 2: (low.2 + high.2).sum()
    default: (low.3 + high.3).sum()
    }
  }
  /// Writes the sums and the maximum of lanes of this type.
  @inlinable @inline(__always) public func write<L: Lane>(_ out: UnsafeMutablePointer<Double>, _: L.Type) {
    let floats = L.width == 16
    (out[0], out[4]) = floats ? ((low.0 + high.0).sum(), 0) : (low.0.sum(), high.0.sum())
    (out[1], out[5]) = floats ? ((low.1 + high.1).sum(), 0) : (low.1.sum(), high.1.sum())
    (out[2], out[6]) = floats ? ((low.2 + high.2).sum(), 0) : (low.2.sum(), high.2.sum())
    (out[3], out[7]) = floats ? ((low.3 + high.3).sum(), 0) : (low.3.sum(), high.3.sum())
    var m = top[0]
    for i in 1..<8 { m = (top[i] > m || top[i] != top[i]) ? top[i] : m }
    out[Sums.top] = m
  }
}

/// For walks along one stream of memory: asks for what they will read a page from here.
@inlinable @inline(__always) public func fetchAhead(_ p: UnsafeRawPointer) { twi_fetch_ahead(p) }

/// Walks a run in whole vectors and one padded tail, so that the same instructions touch every element, whatever the
/// cut:
///
///     var v = Vectors<L>(o)
///     repeat { while v.next() { ... L.load(v.x), L.load(v.g), v.s ... .store(v.x) } } while v.turn()
///     v.finish(writesX: true)
///
/// The tail is copied to a padded vector, computed, and copied back where the kernel writes (a gradient may lie in
/// read-only memory). An iterator and not a closure: the closure of a large rule would be called for every vector. Two
/// loops and not one: a call inside would keep sums and constants in memory.
public struct Vectors<L: Lane> {
  @usableFromInline var x: UnsafeMutablePointer<L.Element>
  @usableFromInline var g: UnsafeMutablePointer<L.Element>
  @usableFromInline var out: UnsafeMutablePointer<L.Element>
  @usableFromInline var slots: SlotPointers
  @usableFromInline var i: Int
  @usableFromInline var end: Int
  @usableFromInline var start: Int
  @usableFromInline var whole = true
  @usableFromInline let o: Operands

  @inlinable @inline(__always) public init(_ o: Operands) {
    self.o = o
    x = o.x.assumingMemoryBound(to: L.Element.self) - L.width
    g = o.g.assumingMemoryBound(to: L.Element.self) - L.width
    out = o.out.assumingMemoryBound(to: L.Element.self) - L.width
    slots = o.slots
    (i, start) = (-L.width, o.index)
    end = o.count / L.width &* L.width
  }

  /// The state of this vector.
  public var s: Slots<L> {
    @inlinable @inline(__always) get {
      var s = Slots<L>(slots, start &+ i)
      s.i = i
      return s
    }
  }

  @inlinable @inline(__always) public mutating func next() -> Bool {
    i &+= L.width
    x += L.width
    g += L.width
    out += L.width
    return i < end
  }

  /// At the end of the whole vectors: on to the tail, if there is one.
  @inlinable @inline(__always) public mutating func turn() -> Bool {
    guard whole else { return false }
    whole = false
    let done = o.count / L.width &* L.width
    guard o.count != done else { return false }
    let row = L.width &* MemoryLayout<L.Element>.stride
    copyIn(o, done &* MemoryLayout<L.Element>.stride, (o.count &- done) &* MemoryLayout<L.Element>.stride, row)
    x = o.pad.assumingMemoryBound(to: L.Element.self) - L.width
    g = (o.pad + row).assumingMemoryBound(to: L.Element.self) - L.width
    out = x
    for k in 0..<SlotPointers.capacity { slots[k] = o.pad + row &* (k &+ 2) }
    (i, end, start) = (-L.width, L.width, o.index &+ done)
    return true
  }

  @inlinable @inline(__always) public func finish(writesX: Bool, writesG: Bool = false) {
    let done = o.count / L.width &* L.width
    guard o.count != done else { return }
    let size = MemoryLayout<L.Element>.stride
    copyOut(o, done &* size, (o.count &- done) &* size, L.width &* size, writesX, writesG)
  }
}

@usableFromInline @inline(never) func copyIn(_ o: Operands, _ offset: Int, _ bytes: Int, _ row: Int) {
  o.pad.initializeMemory(as: UInt8.self, repeating: 0, count: row &* (SlotPointers.capacity &+ 2))
  o.pad.copyMemory(from: o.x + offset, byteCount: bytes)
  (o.pad + row).copyMemory(from: o.g + offset, byteCount: bytes)
  // (one that lies at the pad is none of the kernel's: nothing lies behind it)
  for k in 0..<o.used where o.slots[k] != o.pad {
    (o.pad + row &* (k &+ 2)).copyMemory(from: o.slots[k] + offset, byteCount: bytes)
  }
  if o.averages {
    (o.pad + row &* (Fold.slot &+ 2)).copyMemory(from: o.slots[Fold.slot] + offset, byteCount: bytes)
  }
}

@usableFromInline @inline(never) func copyOut(
  _ o: Operands, _ offset: Int, _ bytes: Int, _ row: Int, _ writesX: Bool, _ writesG: Bool
) {
  if writesX { (o.out + offset).copyMemory(from: o.pad, byteCount: bytes) }
  if writesG { (o.g + offset).copyMemory(from: o.pad + row, byteCount: bytes) }
  for k in 0..<o.used where o.slots[k] != o.pad {
    // only what has changed: a slot may stand for memory of the host that is only read
    let to = o.slots[k] + offset, from = o.pad + row &* (k &+ 2)
    if memcmp(to, from, bytes) != 0 { to.copyMemory(from: from, byteCount: bytes) }
  }
  if o.averages {
    (o.slots[Fold.slot] + offset).copyMemory(from: o.pad + row &* (Fold.slot &+ 2), byteCount: bytes)
  }
}
