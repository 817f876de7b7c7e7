import ThalwegCore

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
