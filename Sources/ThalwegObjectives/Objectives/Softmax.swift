import Glibc
import ThalwegCore

/// Softmax of one row.
enum Softmax {
  /// log Σ exp(z/T).
  static func logSum<T: Real>(_ z: UnsafePointer<T>, _ count: Int, temperature: Double = 1) -> Double {
    var sum = LogSum()
    for c in 0..<count { sum.add(Double(z[c]) / temperature) }
    return sum.value
  }
}

/// The logarithm of a sum of exponentials, one after the other.
struct LogSum {
  private(set) var top = -Double.infinity
  private(set) var sum = 0.0
  private var moment = 0.0

  mutating func add(_ x: Double) {
    if x > top {
      let old = exp(top - x)
      (sum, moment) = (sum * old + 1, moment * old + x)
      top = x
    } else if x != -.infinity {
      let e = exp(x - top)
      (sum, moment) = (sum + e, moment + e * x)
    }
  }
  /// −∞ of nothing.
  var value: Double { sum == 0 ? -.infinity : top + log(sum) }
  /// The mean exponent under the weights of the sum.
  var mean: Double { sum == 0 ? 0 : moment / sum }
}

/// log(eᵃ + eᵇ).
func logAdd(_ a: Double, _ b: Double) -> Double {
  let high = larger(a, b)
  return high == -.infinity ? high : high + log1p(exp(smaller(a, b) - high))
}
