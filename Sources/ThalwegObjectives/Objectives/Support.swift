import Glibc
import ThalwegCore

/// Memory for the time of one call: what was asked for stays until `close`.
final class Workspace {
  private var parts: [Memory] = []

  /// Zeros.
  func room<E: BitwiseCopyable>(_ count: Int, _: E.Type) throws(Failure) -> UnsafeMutablePointer<E> {
    let memory = try Memory(area(count, MemoryLayout<E>.stride), .current)
    parts.append(memory)
    return memory.base.bindMemory(to: E.self, capacity: count)
  }
  /// The same, in the cache of a forward pass where there is one.
  func room<E: BitwiseCopyable>(_ cache: Cache?, _ name: String, _ count: Int, _: E.Type) throws(Failure)
    -> UnsafeMutablePointer<E>
  {
    if let cache { return try cache.keep(name, count, E.self) }
    return try room(count, E.self)
  }
  func close() { parts = [] }
}

/// The product of sides, as far as memory reaches at all.
func area(_ sides: Int...) throws(Failure) -> Int {
  var product = 1
  for side in sides {
    let (next, overflow) = product.multipliedReportingOverflow(by: side)
    guard !overflow, next <= 1 << 48 else {
      throw Failure(Status.memory, "cannot allocate \(sides.map { String($0) }.joined(separator: " x ")) numbers")
    }
    product = next
  }
  return product
}

/// The mean or the sum of what single elements or rows cost.
struct Reduction: Sendable {
  static let parameter = Parameter.choice("reduction", ["mean", "sum"], "mean or sum")
  let sums: Bool
  init(_ h: Hyper) { sums = h.is("reduction", "sum") }

  /// What every one of `count` terms counts.
  func weight(_ count: Int) -> Double { sums ? 1 : 1 / Double(count) }

  /// Losses of single elements: `body` gives the value and the derivative of one; g, where there is one, takes the
  /// gradient.
  func elements<T: Real>(
    _ count: Int, into g: UnsafeMutablePointer<T>?, _ body: (Int) -> (value: Double, slope: Double)
  ) -> Double {
    let weight = weight(count)
    return weight
      * Rows.sum(count, work: 8) { i in
        let (value, slope) = body(i)
        g?[i] = T(weight * slope)
        return value
      }
  }
}

enum Labels {
  /// Throws unless all labels are classes, from 0 on.
  static func check(
    _ y: UnsafePointer<Int>, _ count: Int, _ classes: Int, ignoring ignored: Int? = nil, name: String = "y"
  ) throws(Failure) {
    for i in 0..<count where !(y[i] >= 0 && y[i] < classes) && y[i] != ignored {
      throw Failure(Status.range, "`\(name)` must hold labels from 0 to \(classes - 1), got \(y[i]) at element \(i)")
    }
  }
  /// Throws unless all are one of two numbers.
  static func check(_ y: UnsafePointer<Int>, _ count: Int, either a: Int, or b: Int, name: String = "y") throws(Failure)
  {
    for i in 0..<count where y[i] != a && y[i] != b {
      throw Failure(Status.range, "`\(name)` must be \(a) or \(b), got \(y[i]) at element \(i)")
    }
  }
}

/// log(1 + eᵘ).
func softplus(_ u: Double) -> Double { u.isNaN ? u : max(u, 0) + log1p(exp(-abs(u))) }
/// 1/(1 + e⁻ᵘ), without a large exponential.
func sigmoid(_ u: Double) -> Double {
  let e = exp(-abs(u))
  return (u < 0 ? e : 1) / (1 + e)
}
/// −1, 0 or 1; NaN stays.
func sign(_ u: Double) -> Double { u > 0 ? 1 : u < 0 ? -1 : u }

/// A copy in double.
func widened<T: Real>(_ x: UnsafePointer<T>, _ count: Int, _ space: Workspace) throws(Failure)
  -> UnsafeMutablePointer<Double>
{
  let out = try space.room(count, Double.self)
  for k in 0..<count { out[k] = Double(x[k]) }
  return out
}

/// The same as an array.
func doubles<T: Real>(_ x: UnsafePointer<T>, _ count: Int) throws(Failure) -> [Double] {
  try Memory.ask(area(8, count))
  return (0..<count).map { Double(x[$0]) }
}

extension Cache {
  /// Numbers under a name, in the compute type.
  func keep<T: Real>(_ name: String, numbers: [Double], _: T.Type) throws(Failure) {
    let p = try keep(name, numbers.count, T.self)
    for (i, v) in numbers.enumerated() { p[i] = T(v) }
  }
}

/// Refuses NaN and infinities in an input.
func refuseNonFinite<T: Real>(_ x: UnsafePointer<T>, _ n: Int, _ name: String) throws(Failure) {
  for i in 0..<n where !x[i].isFinite {
    throw Failure(Status.range, "`\(name)` must be finite, got \(text(Double(x[i]))) at element \(i)")
  }
}
