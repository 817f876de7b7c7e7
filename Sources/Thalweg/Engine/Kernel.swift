/// Where a kernel works: one run of elements of one tensor, all operands dense and in the compute type.
///
/// `slots` are the state buffers of the stage, `used` of them. `index` is the position of the first element within its tensor.
package struct Operands {
  package var x: UnsafeMutableRawPointer
  package var g: UnsafeMutableRawPointer
  package var slots: SlotPointers
  package var used: Int
  package var count: Int
  package var index: Int
  package init(x: UnsafeMutableRawPointer, g: UnsafeMutableRawPointer, slots: SlotPointers, used: Int, count: Int, index: Int) {
    (self.x, self.g, self.slots, self.used, self.count, self.index) = (x, g, slots, used, count, index)
  }
}

/// Up to sixteen state buffers. A struct of fields, not an array: a constant subscript costs nothing.
package struct SlotPointers {
  package static let capacity = 16
  private var a: UnsafeMutableRawPointer, b: UnsafeMutableRawPointer, c: UnsafeMutableRawPointer, d: UnsafeMutableRawPointer
  private var e: UnsafeMutableRawPointer, f: UnsafeMutableRawPointer, h: UnsafeMutableRawPointer, i: UnsafeMutableRawPointer
  private var j: UnsafeMutableRawPointer, k: UnsafeMutableRawPointer, l: UnsafeMutableRawPointer, m: UnsafeMutableRawPointer
  private var n: UnsafeMutableRawPointer, o: UnsafeMutableRawPointer, q: UnsafeMutableRawPointer, r: UnsafeMutableRawPointer

  package init(repeating p: UnsafeMutableRawPointer) {
    (a, b, c, d, e, f, h, i) = (p, p, p, p, p, p, p, p)
    (j, k, l, m, n, o, q, r) = (p, p, p, p, p, p, p, p)
  }

  package subscript(index: Int) -> UnsafeMutableRawPointer {
    @inline(__always) get {
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
    @inline(__always) set {
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
package struct Slots<L: Lane> {
  let p: SlotPointers
  var i: Int
  /// The position of the first element of this vector within its tensor.
  package var index: Int
  @inline(__always) init(_ p: SlotPointers, _ index: Int) { (self.p, self.i, self.index) = (p, 0, index) }

  package subscript(k: Int) -> L {
    @inline(__always) get { L.load(UnsafePointer(p[k].assumingMemoryBound(to: L.Element.self) + i)) }
    @inline(__always) nonmutating set { newValue.store(p[k].assumingMemoryBound(to: L.Element.self) + i) }
  }
}

/// Four running sums and a running maximum, in double.
package struct Sums {
  package static let count = 5
  var low: (SIMD8<Double>, SIMD8<Double>, SIMD8<Double>, SIMD8<Double>)
  var high: (SIMD8<Double>, SIMD8<Double>, SIMD8<Double>, SIMD8<Double>)
  var top: SIMD8<Double>
  @inline(__always) init() {
    let z = SIMD8<Double>(repeating: 0)
    (low, high, top) = ((z, z, z, z), (z, z, z, z), z)
  }

  /// Adds the elements of `x` to sum `k` (0 to 3).
  @inline(__always) package mutating func add<L: Lane>(_ k: Int, _ x: L) {
    let w = x.wide
    switch k {
    case 0: low.0 += w.low; if L.width == 16 { high.0 += w.high }
    case 1: low.1 += w.low; if L.width == 16 { high.1 += w.high }
    case 2: low.2 += w.low; if L.width == 16 { high.2 += w.high }
    default: low.3 += w.low; if L.width == 16 { high.3 += w.high }
    }
  }
  /// Adds a·b, multiplied in double: no overflow, no rounding of the product.
  @inline(__always) package mutating func add<L: Lane>(_ k: Int, _ a: L, times b: L) {
    let u = a.wide, v = b.wide
    switch k {
    case 0: low.0 += u.low * v.low; if L.width == 16 { high.0 += u.high * v.high }
    case 1: low.1 += u.low * v.low; if L.width == 16 { high.1 += u.high * v.high }
    case 2: low.2 += u.low * v.low; if L.width == 16 { high.2 += u.high * v.high }
    default: low.3 += u.low * v.low; if L.width == 16 { high.3 += u.high * v.high }
    }
  }
  /// Raises the maximum; a NaN stays.
  @inline(__always) package mutating func raise<L: Lane>(_ x: L) {
    let w = x.wide
    top = SIMD8<Double>.max(top, w.low)
    if L.width == 16 { top = SIMD8<Double>.max(top, w.high) }
  }
  /// Writes the four sums and the maximum.
  @inline(__always) func write(_ out: UnsafeMutablePointer<Double>) {
    out[0] = (low.0 + high.0).sum()
    out[1] = (low.1 + high.1).sum()
    out[2] = (low.2 + high.2).sum()
    out[3] = (low.3 + high.3).sum()
    var m = top[0]
    for i in 1..<8 { m = (top[i] > m || top[i] != top[i]) ? top[i] : m }
    out[4] = m
  }
}

/// Walks a run in whole vectors and one padded tail: `body` sees every element once, whatever the cut.
///
/// The tail is copied to a padded vector, computed, and copied back where the kernel writes (a gradient may lie in read-only memory), so that
/// the same instructions touch every element. `body` is named
/// once, in one loop over two segments: named twice it would not be inlined.
@inline(__always)
func forEachVector<L: Lane>(
  _ o: Operands, _: L.Type, writesX: Bool = true, writesG: Bool = false,
  _ body: (_ x: UnsafeMutablePointer<L.Element>, _ g: UnsafeMutablePointer<L.Element>, _ s: Slots<L>, _ valid: Int) -> Void
) {
  let size = MemoryLayout<L.Element>.stride
  let row = L.width &* size
  let whole = o.count / L.width &* L.width
  let rest = o.count &- whole
  let offset = whole &* size, bytes = rest &* size
  var pad = Pad()
  withUnsafeMutableBytes(of: &pad) { raw in
    let base = raw.baseAddress.unsafelyUnwrapped
    var x = o.x, g = o.g
    var s = Slots<L>(o.slots, o.index)
    var count = whole, valid = L.width, start = o.index
    var last = rest == 0
    while true {
      var i = 0
      while i < count {
        s.i = i
        s.index = start &+ i
        body(x.assumingMemoryBound(to: L.Element.self) + i, g.assumingMemoryBound(to: L.Element.self) + i, s, valid)
        i &+= L.width
      }
      if last { break }
      last = true
      (x, g) = (base, base + row)
      x.copyMemory(from: o.x + offset, byteCount: bytes)
      g.copyMemory(from: o.g + offset, byteCount: bytes)
      var p = SlotPointers(repeating: base)
      for k in 0..<o.used {
        p[k] = base + row &* (k &+ 2)
        p[k].copyMemory(from: o.slots[k] + offset, byteCount: bytes)
      }
      s = Slots<L>(p, o.index &+ whole)
      start = s.index
      (count, valid) = (L.width, rest)
    }
    if rest != 0 {
      if writesX { (o.x + offset).copyMemory(from: x, byteCount: bytes) }
      if writesG { (o.g + offset).copyMemory(from: g, byteCount: bytes) }
      for k in 0..<o.used { (o.slots[k] + offset).copyMemory(from: s.p[k], byteCount: bytes) }
    }
  }
}

/// One vector for x, one for g, and one a slot.
private struct Pad {
  typealias Row = SIMD16<UInt32>
  var operands: (Row, Row)
  var slots: (Row, Row, Row, Row, Row, Row, Row, Row, Row, Row, Row, Row, Row, Row, Row, Row)
  init() {
    let z = Row(repeating: 0)
    operands = (z, z)
    slots = (z, z, z, z, z, z, z, z, z, z, z, z, z, z, z, z)
  }
}
