/// θ with Σ max(x − θ, 0) = r, for numbers of which the largest is 0 (others below −r left out or not): the mean excess
/// over r of those that stay.
public func simplexThresholdBelow(_ active: inout [Double], _ radius: Double) -> Double {
  for _ in 0..<32 {
    let theta = (active.reduce(0, +) - radius) / Double(active.count)
    let before = active.count
    active.removeAll { $0 <= theta }
    if active.count == before || active.isEmpty { return theta }
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
  return (top, active.isEmpty ? 0 : simplexThresholdBelow(&active, radius))
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
