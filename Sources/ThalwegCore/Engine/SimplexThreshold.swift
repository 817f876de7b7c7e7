/// 1 where x > bound, else 0, for finite numbers: the sign of the difference. A comparison becomes a branch, which is
/// dear where half of the numbers are above.
@inlinable @inline(__always) public func isAbove(_ x: Double, _ bound: Double) -> Int {
  Int(truncatingIfNeeded: (bound - x).bitPattern &>> 63)
}

/// max(x, 0) for finite numbers, of any size: the bits of x where its sign is plus. No branch either.
@inlinable @inline(__always) public func positivePart(_ x: Double) -> Double {
  Double(bitPattern: x.bitPattern & ~UInt64(bitPattern: Int64(bitPattern: x.bitPattern) &>> 63))
}

/// θ with Σ max(x − θ, 0) = r, for numbers of which the largest is 0 (others below −r left out or not): the mean excess
/// over r of those that stay, which are moved to the front.
public func simplexThresholdBelow(_ x: UnsafeMutableBufferPointer<Double>, _ radius: Double) -> Double {
  var active = x
  for _ in 0..<32 {
    let theta = (active.reduce(0, +) - radius) / Double(active.count)
    var kept = 0
    for i in active.indices {
      let value = active[i]
      active[kept] = value
      kept &+= isAbove(value, theta)
    }
    if kept == active.count || kept == 0 { return theta }
    active = UnsafeMutableBufferPointer(rebasing: active[..<kept])
  }
  active.sort(by: >)
  var sum = 0.0, theta = -radius
  for (k, x) in active.enumerated() {
    sum += x
    let t = (sum - radius) / Double(k + 1)
    if x <= t { break }
    theta = t
  }
  return theta
}

/// θ with Σ max(x − θ, 0) = r for r > 0 and any finite numbers, relative to their largest.
private func relativeThreshold(_ x: [Double], _ radius: Double) -> (top: Double, theta: Double) {
  guard let top = x.max() else { return (0, 0) }
  // differences to the largest are exact where it matters
  var active = x.compactMap { $0 - top > -radius ? $0 - top : nil }
  return (top, active.isEmpty ? 0 : active.withUnsafeMutableBufferPointer { simplexThresholdBelow($0, radius) })
}
/// The same, absolute; 0 for no numbers.
public func simplexThreshold(_ x: [Double], _ radius: Double) -> Double {
  let (top, theta) = relativeThreshold(x, radius)
  return top + theta
}
/// max(x − θ, 0) with the sum r; zeros for r = 0.
public func simplexProjection(_ x: [Double], _ radius: Double) -> [Double] {
  if radius == 0 { return x.map { _ in 0 } }
  let (top, theta) = relativeThreshold(x, radius)
  return x.map { max($0 - top - theta, 0) }
}
