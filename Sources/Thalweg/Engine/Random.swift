import Glibc

/// Counter-based random numbers: the same (seed, stream, step, tensor, element) gives the same number on every machine, in any order and
/// on any number of threads. Nothing is kept between draws.
package enum Random {
  /// A 64-bit mixer (the finaliser of SplitMix64; Steele, Lea, Flood, 2014), keyed.
  @inline(__always) package static func mix(_ key: UInt64, _ counter: UInt64) -> UInt64 {
    var z = key &+ counter &* 0x9E37_79B9_7F4A_7C15
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }

  /// The key of one tensor's draws in one step of one stage.
  package static func key(seed: UInt64, stream: UInt32, step: UInt64, tensor: UInt32) -> UInt64 {
    mix(mix(mix(seed ^ 0x7468_616C_7765_6721, UInt64(stream) &+ 1), step &+ 1), UInt64(tensor) &+ 1)
  }

  /// A uniform number in (0, 1), from 53 bits.
  @inline(__always) package static func uniform(_ key: UInt64, _ counter: UInt64) -> Double {
    (Double(mix(key, counter) >> 11) + 0.5) * 0x1p-53
  }

  /// A standard normal number: elements 2k and 2k+1 are the two halves of one Box–Muller pair.
  package static func normal(_ key: UInt64, _ index: Int) -> Double {
    let pair = UInt64(truncatingIfNeeded: index >> 1)
    let bits = mix(key, pair)
    // 32 bits for the radius, 32 for the angle
    let u = (Double(bits >> 32) + 0.5) * 0x1p-32
    let a = Double(bits & 0xffff_ffff) * 0x1p-32
    let r = (-2 * log(u)).squareRoot(), phase = 2 * Double.pi * a
    return index & 1 == 0 ? r * cos(phase) : r * sin(phase)
  }
}

extension Slots {
  /// Standard normal numbers of this vector's elements.
  @inline(never) package func normal(_ key: UInt64) -> L {
    withUnsafeTemporaryAllocation(of: L.Element.self, capacity: L.width) { p in
      let q = p.baseAddress.unsafelyUnwrapped
      for k in 0..<L.width { q[k] = L.Element(Random.normal(key, index + k)) }
      return L.load(q)
    }
  }
}
