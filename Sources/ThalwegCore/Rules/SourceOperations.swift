import Glibc

/// Keeps the gradient of the step in the first slot while the host answers with something else.
public struct SaveGradient: ElementOperation {
  public init() {}
  @inlinable @inline(__always) public func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    s[0] = g
  }
}
/// Saves the parameters into the first slot.
public struct SaveParameters: ElementOperation {
  public init() {}
  @inlinable @inline(__always) public func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    s[0] = x
  }
}
/// Saves the parameters into the first slot and goes to the point in the second.
public struct StepBack: ElementOperation {
  public init() {}
  @inlinable @inline(__always) public func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    s[0] = x
    x = s[1]
  }
}
/// Σ g²; 0 where the tensor does not count.
public struct SquaredNorm: ElementSum {
  public let counts: Bool
  public init(of counts: Bool = true) { self.counts = counts }
  @inlinable @inline(__always) public func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    if counts { sums.add(0, g, times: g) }
  }
}
/// Σ x².
public struct SquaredValues: ElementSum {
  public init() {}
  @inlinable @inline(__always) public func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, x, times: x)
  }
}
/// The maximum: that of |x|.
public struct LargestValue: ElementSum {
  public init() {}
  @inlinable @inline(__always) public func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.raise(x.magnitude)
  }
}
/// Σ of the first slot.
public struct SlotTotal: ElementSum {
  public init() {}
  @inlinable @inline(__always) public func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, s[0])
  }
}

extension Random {
  /// A number in (0, 1) of one step of a stage, the same for all tensors unless one is named: the normal distribution
  /// function at a normal draw, which tests can ask for.
  public static func fraction(seed: UInt64, stream: UInt32, step: Int, tensor: UInt32 = 0) -> Double {
    let draw = normal(key(seed: seed, stream: stream, step: UInt64(max(0, step)), tensor: tensor), 0)
    return 0.5 * erfc(-draw * 0.5.squareRoot())
  }
}
