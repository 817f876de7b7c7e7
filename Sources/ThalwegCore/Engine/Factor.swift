/// A number in double that multiplies a vector of a narrower type: as two that the type holds. Beyond the largest float
/// it is infinite by itself, and the product may be ordinary.
///
/// One of the two is a power of two, or 1: where the product is a normal number it is rounded once, as without them.
public struct Factor: Sendable, BitwiseCopyable {
  public let first, second: Double

  @inlinable public init(_ value: Double) {
    let size = value.magnitude
    if (size > 0x1p127 && size < .infinity) || (size < 0x1p-126 && size > 0) {
      // half of the exponent each: up to 2²⁵³ both are floats
      first = Double(sign: .plus, exponent: value.exponent / 2, significand: 1)
      second = value / first
    } else {
      (first, second) = (value, 1)
    }
  }
  /// The number itself is in the range of float.
  @inlinable public var isPlain: Bool { second == 1 }

  @inlinable @inline(__always) public static func * <L: Lane>(f: Factor, x: L) -> L {
    L(f.second) * (L(f.first) * x)
  }
}

extension Real {
  /// Whether a vector of this type may be multiplied by the number itself.
  @inlinable @inline(__always) static func holds(_ factor: Double) -> Bool { isDouble || Factor(factor).isPlain }
  /// A finite number as one of this type, at most the largest.
  @inlinable @inline(__always) static func within(_ x: Double) -> Self {
    let n = Self(x)
    return n.isInfinite && x.isFinite ? (x < 0 ? -1 : 1) * greatestFiniteMagnitude : n
  }
}
