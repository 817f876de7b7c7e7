import CThalweg

/// A vector of numbers that a rule computes with: sixteen floats or eight doubles, one cache line.
///
/// Rules are written once over `Lane` and read like the paper; the driver owns loads, stores and tails. All operations
/// act on every element alone, so a result does not depend on where a tensor was cut. Scalars are doubles and are
/// rounded once, to the lane's type, as they meet it.
///
/// The library's logic of masks (`.&`, `.|`, `.!`) is a loop over single elements: nest selections instead.
public protocol Lane: Sendable {
  associatedtype Element: Real where Element.Vector == Self
  associatedtype Mask: Sendable

  static var width: Int { get }
  init(_ value: Double)
  static func load(_ p: UnsafePointer<Element>) -> Self
  func store(_ p: UnsafeMutablePointer<Element>)

  static func + (a: Self, b: Self) -> Self
  static func - (a: Self, b: Self) -> Self
  static func * (a: Self, b: Self) -> Self
  static func / (a: Self, b: Self) -> Self
  static prefix func - (a: Self) -> Self
  func squareRoot() -> Self
  /// |x|, by clearing the sign bit.
  var magnitude: Self { get }
  /// 1, 0 or −1; NaN stays NaN.
  var sign: Self { get }
  static func less(_ a: Self, _ b: Self) -> Mask
  static func equal(_ a: Self, _ b: Self) -> Mask
  /// `a` where the mask holds, else `b`.
  static func select(_ mask: Mask, _ a: Self, _ b: Self) -> Self
  /// How many elements the mask holds for, in eight parts.
  static func count(_ mask: Mask) -> SIMD8<Double>
  /// eˣ to about one unit in the last place over the whole range.
  static func exp(_ x: Self) -> Self
  /// eˣ − 1 for x ≤ 0, with all its digits where x is small.
  static func expm1(_ x: Self) -> Self
  /// Standard normal numbers of the elements from `index` (even) on.
  static func normal(_ key: UInt64, _ index: Int) -> Self
  /// Their signs alone: 1, or -1 below 0.
  static func randomSign(_ key: UInt64, _ index: Int) -> Self
  /// Σ of the elements, in double, in a fixed order; `low` and `high` are its two halves.
  var wide: (low: SIMD8<Double>, high: SIMD8<Double>) { get }
  /// The way back, rounded.
  init(wide low: SIMD8<Double>, _ high: SIMD8<Double>)
}

/// A compute type: Float or Double.
public protocol Real: BinaryFloatingPoint, SIMDScalar, Codable, Sendable {
  associatedtype Vector: Lane where Vector.Element == Self
  static var isDouble: Bool { get }
}

extension Real {
  /// Whether a move over this step size is a number: below, as with a step size of 0, nothing moves.
  @inlinable @inline(__always) public static func isStep(_ lr: Double) -> Bool {
    lr.magnitude >= (isDouble ? 0x1p-998 : 0x1p-102)
  }
}
extension Float: Real {
  public typealias Vector = SIMD16<Float>
  public static var isDouble: Bool { false }
}
extension Double: Real {
  public typealias Vector = SIMD8<Double>
  public static var isDouble: Bool { true }
}

extension Lane {
  @inlinable @inline(__always) public static func + (a: Double, b: Self) -> Self { Self(a) + b }
  @inlinable @inline(__always) public static func + (a: Self, b: Double) -> Self { a + Self(b) }
  @inlinable @inline(__always) public static func - (a: Double, b: Self) -> Self { Self(a) - b }
  @inlinable @inline(__always) public static func - (a: Self, b: Double) -> Self { a - Self(b) }
  @inlinable @inline(__always) public static func * (a: Double, b: Self) -> Self { Self(a) * b }
  @inlinable @inline(__always) public static func * (a: Self, b: Double) -> Self { a * Self(b) }
  @inlinable @inline(__always) public static func / (a: Double, b: Self) -> Self { Self(a) / b }
  @inlinable @inline(__always) public static func / (a: Self, b: Double) -> Self { a / Self(b) }

  /// The larger; a NaN in either argument stays.
  @inlinable @inline(__always) public static func max(_ a: Self, _ b: Self) -> Self {
    select(less(a, b), b, select(equal(b, b), a, b))
  }
  /// The smaller; a NaN in either argument stays.
  @inlinable @inline(__always) public static func min(_ a: Self, _ b: Self) -> Self {
    select(less(b, a), b, select(equal(b, b), a, b))
  }
  @inlinable @inline(__always) public static func max(_ a: Self, _ b: Double) -> Self { max(a, Self(b)) }
  @inlinable @inline(__always) public static func min(_ a: Self, _ b: Double) -> Self { min(a, Self(b)) }
  /// min(max(x, low), high) for low ≤ high; NaN stays. Written so that each of the two is one instruction.
  @inlinable @inline(__always) public func clamped(_ low: Self, _ high: Self) -> Self {
    let below = Self.select(Self.less(high, self), high, self)
    return Self.select(Self.less(below, low), low, below)
  }
  /// x clipped to [−c, c]; NaN stays.
  @inlinable @inline(__always) public func clipped(to c: Double) -> Self { clamped(Self(-c), Self(c)) }
  /// numerator / self, and 0 for 0/0 (the rule of the adaptive methods); x/0 is infinite, as in torch.
  @inlinable @inline(__always) public func divide(_ numerator: Self) -> Self {
    let zero = Self(0), quotient = numerator / self
    return Self.select(Self.equal(self, zero), Self.select(Self.equal(numerator, zero), zero, quotient), quotient)
  }
  /// The direction of a move that a rule makes itself, for stages that look at it: the move over the step size, none
  /// where that is 0, or so small that it would be infinite.
  @inlinable @inline(__always) public func direction(_ lr: Double) -> Self {
    Element.isStep(lr) ? self / Self(lr) : Self(0)
  }
  /// Soft threshold for k ≥ 0: sign(x)·max(|x| − k, 0), as x less what of it is within [−k, k].
  @inlinable @inline(__always) public func shrunk(by k: Double) -> Self { shrunk(by: Self(k)) }
  @inlinable @inline(__always) public func shrunk(by threshold: Self) -> Self { self - clamped(-threshold, threshold) }
  /// tanh x = −s/(2 + s)·sign(x), s = e^(−2|x|) − 1.
  @inlinable @inline(__always) public static func tanh(_ x: Self) -> Self {
    let s = expm1(x.magnitude * -2)
    return select(less(x, Self(0)), s, -s) / (2 + s)
  }
  /// factor·xᵖ for x ≥ 0, in double: the power alone may be beyond the largest float.
  @inlinable @inline(__always) public static func pow(_ x: Self, _ p: Double, times factor: Double = 1) -> Self {
    let w = x.wide
    let low = factor * SIMD8<Double>.exp(p * SIMD8<Double>.log(w.low))
    return Self(wide: low, width == 16 ? factor * SIMD8<Double>.exp(p * SIMD8<Double>.log(w.high)) : low)
  }
  /// Whether the mask holds anywhere.
  @inlinable @inline(__always) public static func any(_ mask: Mask) -> Bool {
    let found = select(mask, Self(1), Self(0)).wide
    return (found.low + found.high).sum() > 0
  }
  /// A function of every element, in double.
  @inlinable @inline(__always) public func mapped(_ function: (Double) -> Double) -> Self {
    var (low, high) = wide
    for i in 0..<8 { low[i] = function(low[i]) }
    if Self.width == 16 { for i in 0..<8 { high[i] = function(high[i]) } }
    return Self(wide: low, high)
  }
}

extension Lane {
  /// The first n numbers at p, at most a vector of them, and zeros behind them: the end of a run.
  @inlinable @inline(__always) public static func load(_ p: UnsafePointer<Element>, first n: Int) -> Self {
    if n >= width { return load(p) }
    return withUnsafeTemporaryAllocation(of: Element.self, capacity: width) { room in
      guard let whole = room.baseAddress else { return Self(0) }
      whole.initialize(repeating: 0, count: width)
      whole.update(from: p, count: n)
      return load(whole)
    }
  }
  /// The largest lane; a NaN stays.
  @inlinable public var largest: Double {
    let w = wide, x = Self.width == 16 ? SIMD8<Double>.max(w.low, w.high) : w.low
    var top = x[0]
    for i in 1..<8 { top = x[i] > top || x[i] != x[i] ? x[i] : top }
    return top
  }
  /// Stores the first n of the numbers.
  @inlinable @inline(__always) public func store(_ p: UnsafeMutablePointer<Element>, first n: Int) {
    if n >= Self.width { return store(p) }
    withUnsafeTemporaryAllocation(of: Element.self, capacity: Self.width) { room in
      guard let whole = room.baseAddress else { return }
      store(whole)
      p.update(from: whole, count: n)
    }
  }
}

/// A long function that is not inlined, for a call costs less than the registers that its constants take from a rule;
/// and through memory, for as arguments wide vectors are cut in pieces, which it would compute with.
@inlinable @inline(__always) func changed<V>(_ x: V, _ function: (inout V) -> Void) -> V {
  var y = x
  function(&y)
  return y
}

extension SIMD16<Float>: Lane {
  public typealias Element = Float
  public typealias Mask = SIMDMask<SIMD16<Int32>>
  /// (The library's own is a call for every element in large kernels.)
  @inlinable @inline(__always) public func squareRoot() -> Self { twi_root16(self) }
  @inlinable @inline(__always) public static var width: Int { 16 }
  @inlinable @inline(__always) public init(_ value: Double) { self.init(repeating: Float(value)) }
  @inlinable @inline(__always) public static func load(_ p: UnsafePointer<Float>) -> Self {
    UnsafeRawPointer(p).loadUnaligned(as: Self.self)
  }
  @inlinable @inline(__always) public func store(_ p: UnsafeMutablePointer<Float>) {
    UnsafeMutableRawPointer(p).storeBytes(of: self, as: Self.self)
  }
  @inlinable @inline(__always) public var magnitude: Self {
    unsafeBitCast(unsafeBitCast(self, to: SIMD16<UInt32>.self) & SIMD16<UInt32>(repeating: 0x7fff_ffff), to: Self.self)
  }
  @inlinable @inline(__always) public var sign: Self {
    // the sign bit of x on a one, and x itself where it is zero or NaN
    let bits = unsafeBitCast(self, to: SIMD16<UInt32>.self)
    let one = (bits & SIMD16<UInt32>(repeating: 0x8000_0000)) | SIMD16<UInt32>(repeating: (1 as Float).bitPattern)
    let unit = unsafeBitCast(one, to: Self.self)
    return replacing(with: unit, where: self .< 0).replacing(with: unit, where: self .> 0)
  }
  @inlinable @inline(__always) public static func less(_ a: Self, _ b: Self) -> Mask { a .< b }
  @inlinable @inline(__always) public static func equal(_ a: Self, _ b: Self) -> Mask { a .== b }
  @inlinable @inline(__always) public static func select(_ mask: Mask, _ a: Self, _ b: Self) -> Self {
    b.replacing(with: a, where: mask)
  }
  /// x = n·ln 2 + r, |r| ≤ ½ ln 2; eʳ − 1 by a polynomial of degree 6; 2ⁿ through the exponent, in two halves so that
  /// neither overflows. NaN is a number here: the caller puts it back.
  @inline(__always) private static func exponential(_ x: Self) -> (less: Self, a: Self, b: Self) {
    let low = Self(repeating: -104), high = Self(repeating: 89)
    var y = x.replacing(with: low, where: x .< low)
    y = y.replacing(with: high, where: y .> high)
    let magic = Self(repeating: 12_582_912)
    let shifted = y * Self(repeating: 1.442_695_04) + magic
    let n = shifted - magic
    let r = (y - n * Self(repeating: 0.693_359_375)) - n * Self(repeating: -2.121_944_4e-4)
    var p = Self(repeating: 1.388_889e-3)
    p = p * r + Self(repeating: 8.333_334e-3)
    p = p * r + Self(repeating: 4.166_667e-2)
    p = p * r + Self(repeating: 1.666_666_7e-1)
    p = p * r + Self(repeating: 0.5)
    p = (p * r) * r + r
    let k = unsafeBitCast(shifted, to: SIMD16<Int32>.self) &- SIMD16<Int32>(repeating: 0x4B40_0000)
    let half = k &>> SIMD16<Int32>(repeating: 1)
    let bias = SIMD16<Int32>(repeating: 127), shift = SIMD16<Int32>(repeating: 23)
    let a = unsafeBitCast((half &+ bias) &<< shift, to: Self.self)
    let b = unsafeBitCast(((k &- half) &+ bias) &<< shift, to: Self.self)
    return (p, a, b)
  }
  @inlinable @inline(__always) public static func exp(_ x: Self) -> Self { changed(x, exponentiate) }
  @inlinable @inline(__always) public static func expm1(_ x: Self) -> Self { changed(x, exponentiateLessOne) }
  @usableFromInline @inline(never) static func exponentiate(_ x: inout Self) {
    let (p, a, b) = exponential(x)
    x = x.replacing(with: ((p + Self(repeating: 1)) * a) * b, where: x .== x)
  }
  @usableFromInline @inline(never) static func exponentiateLessOne(_ x: inout Self) {
    let (p, a, b) = exponential(x), power = a * b
    x = x.replacing(with: p * power + (power - Self(repeating: 1)), where: x .== x)
  }
  @inlinable @inline(__always) public var wide: (low: SIMD8<Double>, high: SIMD8<Double>) {
    (twi_widen(lowHalf), twi_widen(highHalf))
  }
  @inlinable @inline(__always) public static func count(_ mask: Mask) -> SIMD8<Double> {
    let ones = select(mask, Self(repeating: 1), Self(repeating: 0))
    return twi_widen(ones.lowHalf + ones.highHalf)  // half the work of sums of their own
  }
  @inlinable @inline(__always) public init(wide low: SIMD8<Double>, _ high: SIMD8<Double>) {
    self.init(lowHalf: twi_narrow(low), highHalf: twi_narrow(high))
  }
}

extension SIMD8<Double>: Lane {
  public typealias Element = Double
  public typealias Scalar = Double
  public typealias Mask = SIMDMask<SIMD8<Int64>>
  @inlinable @inline(__always) public func squareRoot() -> Self { twi_root8(self) }
  @inlinable @inline(__always) public static var width: Int { 8 }
  @inlinable @inline(__always) public init(_ value: Double) { self.init(repeating: value) }
  @inlinable @inline(__always) public static func load(_ p: UnsafePointer<Double>) -> Self {
    UnsafeRawPointer(p).loadUnaligned(as: Self.self)
  }
  @inlinable @inline(__always) public func store(_ p: UnsafeMutablePointer<Double>) {
    UnsafeMutableRawPointer(p).storeBytes(of: self, as: Self.self)
  }
  @inlinable @inline(__always) public var magnitude: Self {
    unsafeBitCast(
      unsafeBitCast(self, to: SIMD8<UInt64>.self) & SIMD8<UInt64>(repeating: 0x7fff_ffff_ffff_ffff), to: Self.self)
  }
  @inlinable @inline(__always) public var sign: Self {
    let bits = unsafeBitCast(self, to: SIMD8<UInt64>.self)
    let one = (bits & SIMD8<UInt64>(repeating: 1 << 63)) | SIMD8<UInt64>(repeating: (1 as Double).bitPattern)
    let unit = unsafeBitCast(one, to: Self.self)
    return replacing(with: unit, where: self .< 0).replacing(with: unit, where: self .> 0)
  }
  @inlinable @inline(__always) public static func less(_ a: Self, _ b: Self) -> Mask { a .< b }
  @inlinable @inline(__always) public static func equal(_ a: Self, _ b: Self) -> Mask { a .== b }
  @inlinable @inline(__always) public static func select(_ mask: Mask, _ a: Self, _ b: Self) -> Self {
    b.replacing(with: a, where: mask)
  }
  /// x = n·ln 2 + r, |r| ≤ ½ ln 2; eʳ − 1 = r + r·c/(2 − c), c = r − r²·P(r²) as in fdlibm, and it with a one; 2ⁿ
  /// through the exponent, in two halves. NaN is a number here: the caller puts it back.
  @inline(__always) private static func exponential(_ x: Self) -> (less: Self, whole: Self, a: Self, b: Self) {
    let lowest = Self(repeating: -746), highest = Self(repeating: 710)
    var y = x.replacing(with: lowest, where: x .< lowest)
    y = y.replacing(with: highest, where: y .> highest)
    let magic = Self(repeating: 6_755_399_441_055_744)
    let shifted = y * Self(repeating: 1.44269504088896338700) + magic
    let n = shifted - magic
    let high = y - n * Self(repeating: 6.93147180369123816490e-01)
    let low = n * Self(repeating: 1.90821492927058770002e-10)
    let r = high - low, t = r * r
    var p = Self(repeating: 4.13813679705723846039e-08)
    p = p * t + Self(repeating: -1.65339022054652515390e-06)
    p = p * t + Self(repeating: 6.61375632143793436117e-05)
    p = p * t + Self(repeating: -2.77777777770155933842e-03)
    p = p * t + Self(repeating: 1.66666666666666019037e-01)
    let c = r - t * p
    let less = (low - (r * c) / (Self(repeating: 2) - c)) - high
    let k = unsafeBitCast(shifted, to: SIMD8<Int64>.self) &- SIMD8<Int64>(repeating: 0x4338_0000_0000_0000)
    // the halves of an even split of k; k + 2048 is positive, so that a logical shift halves it
    let positive = unsafeBitCast(k &+ SIMD8<Int64>(repeating: 2048), to: SIMD8<UInt64>.self)
    let half =
      unsafeBitCast(positive &>> SIMD8<UInt64>(repeating: 1), to: SIMD8<Int64>.self) &- SIMD8<Int64>(repeating: 1024)
    let bias = SIMD8<Int64>(repeating: 1023), shift = SIMD8<Int64>(repeating: 52)
    let a = unsafeBitCast((half &+ bias) &<< shift, to: Self.self)
    let b = unsafeBitCast(((k &- half) &+ bias) &<< shift, to: Self.self)
    return (-less, Self(repeating: 1) - less, a, b)
  }
  @inlinable @inline(__always) public static func exp(_ x: Self) -> Self { changed(x, exponentiate) }
  @inlinable @inline(__always) public static func expm1(_ x: Self) -> Self { changed(x, exponentiateLessOne) }
  @usableFromInline @inline(never) static func exponentiate(_ x: inout Self) {
    let (_, e, a, b) = exponential(x)
    x = x.replacing(with: (e * a) * b, where: x .== x)
  }
  @usableFromInline @inline(never) static func exponentiateLessOne(_ x: inout Self) {
    let (p, _, a, b) = exponential(x), power = a * b
    x = x.replacing(with: p * power + (power - Self(repeating: 1)), where: x .== x)
  }
  /// −log x for normal x > 0: x = 2ⁿ·(1 + f) with 1 + f in [√½, √2), so that f is exact and the digits near 1 stay;
  /// log(1 + f) = 2s + s·R(s²), s = f/(2 + f), as in fdlibm.
  @inline(__always) static func minusLogarithm(_ x: Self) -> Self {
    typealias U = SIMD8<UInt64>
    let bits = unsafeBitCast(x, to: U.self) &+ U(repeating: 0x3FF0_0000_0000_0000 &- 0x3FE6_A09E_667F_3BCD)
    let n = Random.number(bits &>> U(repeating: 52)) - Self(repeating: 1023)
    let m = (bits & U(repeating: 0x000F_FFFF_FFFF_FFFF)) &+ U(repeating: 0x3FE6_A09E_667F_3BCD)
    let f = unsafeBitCast(m, to: Self.self) - Self(repeating: 1)
    let s = f / (Self(repeating: 2) + f), w = s * s
    var p = Self(repeating: 1.479819860511658591e-01)
    p = p * w + Self(repeating: 1.531383769920937332e-01)
    p = p * w + Self(repeating: 1.818357216161805012e-01)
    p = p * w + Self(repeating: 2.222219843214978396e-01)
    p = p * w + Self(repeating: 2.857142874366239149e-01)
    p = p * w + Self(repeating: 3.999999999940941908e-01)
    p = p * w + Self(repeating: 6.666666666666735130e-01)
    let half = Self(repeating: 0.5) * f * f
    let low = s * (half + p * w) + n * Self(repeating: 1.90821492927058770002e-10)
    return (half - low) - f - n * Self(repeating: 6.93147180369123816490e-01)
  }
  /// ∛x for x ≥ 0, to about one unit in the last place: a third of the exponent and a polynomial give 23 bits, Newton's
  /// step the others, as in FreeBSD's libm.
  @inlinable @inline(__always) public func cubeRoot() -> Self {
    typealias U = SIMD8<UInt64>
    let zero = Self(repeating: 0)
    // numbers below the normal ones are brought up first
    let few = self .< Self(repeating: 0x1p-1022)
    let x = replacing(with: self * Self(repeating: 0x1p54), where: few)
    let third = Random.number(unsafeBitCast(x, to: U.self) &>> U(repeating: 32)) * Self(repeating: 1.0 / 3)
    let start = third + Self(repeating: 715_094_163 + 0x1p52)
    var t = unsafeBitCast(unsafeBitCast(start, to: U.self) &<< U(repeating: 32), to: Self.self)
    let r = (t * t) * (t / x)
    let low = Self(repeating: 1.621429720105354466140) * r + Self(repeating: -1.88497979543377169875)
    let high = Self(repeating: 0.145996192886612446982) * r + Self(repeating: -0.758397934778766047437)
    t = t * ((low * r + Self(repeating: 1.87595182427177009643)) + ((r * r) * r) * high)
    let q = x / (t * t)
    t = t + t * ((q - t) / ((t + t) + q))
    t = t.replacing(with: t * Self(repeating: 0x1p-18), where: few)
    t = t.replacing(with: self, where: self .== Self(repeating: .infinity))
    return t.replacing(with: zero, where: self .== zero)
  }
  /// log x; −∞ for 0, NaN below.
  @inlinable @inline(__always) public static func log(_ x: Self) -> Self { changed(x, takeLogarithm) }
  @usableFromInline @inline(never) static func takeLogarithm(_ x: inout Self) {
    // numbers below the normal ones are brought up first
    let few = x .< Self(repeating: 0x1p-1022)
    var found = -minusLogarithm(x.replacing(with: x * Self(repeating: 0x1p54), where: few))
    found = found.replacing(with: found - Self(repeating: 54 * 0.693147180559945309417), where: few)
    let zero = Self(repeating: 0), top = Self(repeating: .infinity)
    var out = found.replacing(with: -top, where: x .== zero)
    out = out.replacing(with: Self(repeating: .nan), where: x .< zero)
    x = out.replacing(with: x, where: (x .== top)).replacing(with: x, where: x .!= x)
  }
  @inlinable @inline(__always) public var wide: (low: SIMD8<Double>, high: SIMD8<Double>) {
    (self, SIMD8<Double>(repeating: 0))
  }
  @inlinable @inline(__always) public static func count(_ mask: Mask) -> SIMD8<Double> {
    select(mask, Self(repeating: 1), Self(repeating: 0))
  }
  @inlinable @inline(__always) public init(wide low: SIMD8<Double>, _ high: SIMD8<Double>) { self = low }
}
