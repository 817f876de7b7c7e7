import CThalweg

/// Counter-based random numbers: the same (seed, stream, step, tensor, element) gives the same number on every machine,
/// in any order and on any number of threads. Nothing is kept between draws.
public enum Random {
  /// A 64-bit mixer (the finaliser of SplitMix64; Steele, Lea, Flood, 2014), keyed.
  @inlinable @inline(__always) public static func mix(_ key: UInt64, _ counter: UInt64) -> UInt64 {
    var z = key &+ counter &* 0x9E37_79B9_7F4A_7C15
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }

  @inlinable @inline(__always) static func mix(_ key: UInt64, _ counter: SIMD8<UInt64>) -> SIMD8<UInt64> {
    typealias U = SIMD8<UInt64>
    var z = U(repeating: key) &+ counter &* U(repeating: 0x9E37_79B9_7F4A_7C15)
    z = (z ^ (z &>> U(repeating: 30))) &* U(repeating: 0xBF58_476D_1CE4_E5B9)
    z = (z ^ (z &>> U(repeating: 27))) &* U(repeating: 0x94D0_49BB_1331_11EB)
    return z ^ (z &>> U(repeating: 31))
  }

  /// The key of one tensor's draws in one step of one stage.
  public static func key(seed: UInt64, stream: UInt32, step: UInt64, tensor: UInt32) -> UInt64 {
    mix(mix(mix(seed ^ 0x7468_616C_7765_6721, UInt64(stream) &+ 1), step &+ 1), UInt64(tensor) &+ 1)
  }

  /// A uniform number in (0, 1), from 53 bits.
  @inlinable @inline(__always) public static func uniform(_ key: UInt64, _ counter: UInt64) -> Double {
    (Double(mix(key, counter) >> 11) + 0.5) * 0x1p-53
  }

  /// A standard normal number: elements 2k and 2k+1 are the two halves of one Box–Muller pair.
  public static func normal(_ key: UInt64, _ index: Int) -> Double {
    let pair = normals(key, SIMD8<UInt64>(repeating: UInt64(truncatingIfNeeded: index >> 1)))
    return index & 1 == 0 ? pair.even[0] : pair.odd[0]
  }

  /// The two halves of eight pairs: r·cos φ and r·sin φ with r = √(−2 ln u), φ = 2π·a; the upper 32 bits of the draw
  /// give u, the lower a.
  ///
  /// Logarithm, cosine and sine are fdlibm's polynomials, good to about one unit in the last place. No operation looks
  /// across the vector and none depends on the instruction set, so a number is the same wherever it stands and on every
  /// machine.
  ///
  /// Not inlined: with the lanes' counters in sight the optimiser takes the vectors apart into scalars.
  @inline(never) public static func normals(_ key: UInt64, _ pair: SIMD8<UInt64>) -> (
    even: SIMD8<Double>, odd: SIMD8<Double>
  ) {
    typealias D = SIMD8<Double>
    typealias U = SIMD8<UInt64>
    let z = mix(key, pair)

    let u = (number(z &>> U(repeating: 32)) + D(repeating: 0.5)) * D(repeating: 0x1p-32)
    let minusLog = D.minusLogarithm(u)
    let r = (minusLog + minusLog).squareRoot()

    // φ = (q + t)·π/2 with q whole and |t| ≤ ½, both exact
    let turned = (z & U(repeating: 0xFFFF_FFFF)) &+ U(repeating: 1 << 29)
    let t = number(turned & U(repeating: (1 << 30) - 1)) - D(repeating: 0x1p29)
    let a = t * D(repeating: 0.5 * Double.pi * 0x1p-30), y = a * a
    var c = D(repeating: -1.13596475577881948265e-11)
    c = c * y + D(repeating: 2.08757232129817482790e-09)
    c = c * y + D(repeating: -2.75573143513906633035e-07)
    c = c * y + D(repeating: 2.48015872894767294178e-05)
    c = c * y + D(repeating: -1.38888888888741095749e-03)
    c = c * y + D(repeating: 4.16666666666666019037e-02)
    let h = D(repeating: 0.5) * y, e = D(repeating: 1) - h
    let cosine = e + (((D(repeating: 1) - e) - h) + y * y * c)
    var d = D(repeating: 1.58969099521155010221e-10)
    d = d * y + D(repeating: -2.50507602534068634195e-08)
    d = d * y + D(repeating: 2.75573137070700676789e-06)
    d = d * y + D(repeating: -1.98412698298579493134e-04)
    d = d * y + D(repeating: 8.33333333332248946124e-03)
    d = d * y + D(repeating: -1.66666666666666324348e-01)
    let sine = a + a * (y * d)

    // quarter turns: q odd exchanges the two; the cosine is negative for q = 1, 2, the sine for q = 2, 3
    let odd = (turned & U(repeating: 1 << 30)) .!= U(repeating: 0)
    let one = U(repeating: 1 << 31)
    let signOfCosine = ((turned &+ U(repeating: 1 << 30)) & one) &<< U(repeating: 32),
      signOfSine = (turned & one) &<< U(repeating: 32)
    let x = unsafeBitCast(cosine.replacing(with: sine, where: odd), to: U.self) ^ signOfCosine
    let v = unsafeBitCast(sine.replacing(with: cosine, where: odd), to: U.self) ^ signOfSine
    return (r * unsafeBitCast(x, to: D.self), r * unsafeBitCast(v, to: D.self))
  }

  /// The signs of such pairs, 0 counted as +1, as two floats, 1 or -1, side by side: r is positive, so that the angle
  /// decides. A number below 0 has its highest bit set: no comparison is needed.
  @inline(never) public static func signs(_ key: UInt64, _ pair: SIMD8<UInt64>) -> SIMD8<UInt64> {
    typealias U = SIMD8<UInt64>
    let low = U(repeating: 0xFFFF_FFFF), top = U(repeating: 1 << 63), a = mix(key, pair) & low
    let left = (((a &- U(repeating: 1 << 30 + 1)) & low) &- U(repeating: 1 << 31 - 1)) & top
    let below = (U(repeating: 1 << 31) &- a) & top
    return U(repeating: 0x3F80_0000_3F80_0000) | below | (left &>> U(repeating: 32))
  }

  /// The number of a whole number below 2⁵², exactly, through the mantissa.
  @inlinable @inline(__always) static func number(_ x: SIMD8<UInt64>) -> SIMD8<Double> {
    unsafeBitCast(x | SIMD8<UInt64>(repeating: 0x4330_0000_0000_0000), to: SIMD8<Double>.self)
      - SIMD8<Double>(repeating: 0x1p52)
  }
}

extension Slots {
  /// Standard normal numbers of this vector's elements. Vectors begin at an even element.
  @inlinable @inline(__always) public func normal(_ key: UInt64) -> L { L.normal(key, index) }
  /// 1 where `normal` would be at least 0, -1 where it would be below.
  @inlinable @inline(__always) public func sign(_ key: UInt64) -> L { L.randomSign(key, index) }
}

extension SIMD16<Float> {
  @inlinable @inline(__always) public static func normal(_ key: UInt64, _ index: Int) -> Self {
    joined(Random.normals(key, pairs(index)))
  }
  @inlinable @inline(__always) public static func randomSign(_ key: UInt64, _ index: Int) -> Self {
    unsafeBitCast(Random.signs(key, pairs(index)), to: Self.self)
  }

  @inlinable @inline(__always) static func pairs(_ index: Int) -> SIMD8<UInt64> {
    SIMD8<UInt64>(repeating: UInt64(truncatingIfNeeded: index >> 1)) &+ SIMD8<UInt64>(0, 1, 2, 3, 4, 5, 6, 7)
  }
  @inlinable @inline(__always) static func joined(_ n: (even: SIMD8<Double>, odd: SIMD8<Double>)) -> Self {
    var v = Self()
    v.evenHalf = twi_narrow(n.even)
    v.oddHalf = twi_narrow(n.odd)
    return v
  }
}

extension SIMD8<Double> {
  @inlinable @inline(__always) public static func normal(_ key: UInt64, _ index: Int) -> Self {
    chosen(Random.normals(key, pairs(index)))
  }
  @inlinable @inline(__always) public static func randomSign(_ key: UInt64, _ index: Int) -> Self {
    // the sign of every lane's own half
    let signs = Random.signs(key, pairs(index)) &<< SIMD8<UInt64>(32, 0, 32, 0, 32, 0, 32, 0)
    let one = SIMD8<UInt64>(repeating: (1 as Double).bitPattern)
    return unsafeBitCast((signs & SIMD8<UInt64>(repeating: 1 << 63)) | one, to: Self.self)
  }

  @inlinable @inline(__always) static func pairs(_ index: Int) -> SIMD8<UInt64> {
    SIMD8<UInt64>(repeating: UInt64(truncatingIfNeeded: index >> 1)) &+ SIMD8<UInt64>(0, 0, 1, 1, 2, 2, 3, 3)
  }
  @inlinable @inline(__always) static func chosen(_ n: (even: SIMD8<Double>, odd: SIMD8<Double>)) -> Self {
    n.odd.replacing(with: n.even, where: SIMDMask<SIMD8<Int64>>(SIMD8<Int64>(-1, 0, -1, 0, -1, 0, -1, 0)))
  }
}
