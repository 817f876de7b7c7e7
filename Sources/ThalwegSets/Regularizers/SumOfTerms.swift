import Glibc
import ThalwegCore

/// A penalty whose terms need logarithms, powers or branches: one element after the other, in double.
protocol TermRegularizer: WholeRegularizer {
  func value(_ x: Double) -> Double
  func gradient(_ x: Double) -> Double
  /// argmin_u ½(u − x)² + t·value(u) for t > 0.
  func prox(_ x: Double, _ t: Double) -> Double
}

extension TermRegularizer {
  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let x = w.v
    return Rows.sum(w.count, work: 16) { value(Double(x[$0])) }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure) {
    let x = w.w, g = w.v
    _ = Rows.sum(w.count, work: 16) { i in
      g[i] += T(scale * gradient(Double(x[i])))
      return 0
    }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    if t > 0 { each(w) { x, _ in prox(x, t) } }
  }
  static var isSeparable: Bool { hasProx }
  func prox<T: Real>(stepped w: Whole<T>) throws(Failure) { each(w) { x, t in t > 0 ? prox(x, t) : x } }

  @inline(__always) private func each<T: Real>(_ w: Whole<T>, _ body: (_ x: Double, _ companion: Double) -> Double) {
    let x = w.v
    _ = Rows.sum(w.count, work: 16) { i in
      x[i] = T(body(Double(x[i]), Double(w.w[i])))
      return 0
    }
  }
}

extension WholeRegularizer {
  /// For those that say `hasProx` false.
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    throw Failure(Status.unsupported, "\(Self.method.name) has no prox")
  }
}

extension Parameter {
  static func weight(_ standard: Double = 1e-4, _ range: Range = .atLeast(0)) -> Parameter {
    .number("weight", standard, range, "coefficient")
  }
}

/// Soft threshold of one number; NaN stays.
func shrunk(_ x: Double, by k: Double) -> Double { x > k ? x - k : x < -k ? x + k : x.isNaN ? x : 0 }

/// Methods that sort, sum or factorise do not take numbers that are NaN or infinite.
func finite<T: Real>(_ x: UnsafePointer<T>, _ count: Int, _ method: String) throws(Failure) {
  guard Flat.isFinite(x, count) else {
    throw Failure(Status.nonfinite, "\(method): elements are NaN or infinite; nothing was changed")
  }
}

/// A copy in double, all finite.
func doubles<T: Real>(_ x: UnsafePointer<T>, _ count: Int, _ method: String) throws(Failure) -> [Double] {
  try finite(x, count, method)
  try Memory.ask(8 &* count)
  return (0..<count).map { Double(x[$0]) }
}
