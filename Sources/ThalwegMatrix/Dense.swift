import ThalwegCore

/// A matrix in double, row-major, for what is small beside a tensor or happens rarely.
struct Dense {
  var values: [Double]
  let rows: Int, columns: Int

  init(_ values: [Double], _ rows: Int, _ columns: Int) {
    (self.values, self.rows, self.columns) = (values, rows, columns)
  }
  /// One column.
  init(_ values: [Double]) { self.init(values, values.count, 1) }
  init<T: Real>(_ x: UnsafePointer<T>, _ rows: Int, _ columns: Int = 1) {
    self.init((0..<(rows * columns)).map { Double(x[$0]) }, rows, columns)
  }
  init<T: Real>(_ x: UnsafeMutablePointer<T>, _ rows: Int, _ columns: Int = 1) {
    self.init(UnsafePointer(x), rows, columns)
  }

  var transposed: Dense { Dense(LinearAlgebra.transposed(values, rows, columns), columns, rows) }

  /// self·other, with one or both transposed.
  func times(_ other: Dense, leftTransposed: Bool = false, transposed: Bool = false) throws(Failure) -> Dense {
    let m = leftTransposed ? columns : rows, k = leftTransposed ? rows : columns
    let n = transposed ? other.rows : other.columns
    guard k == (transposed ? other.columns : other.rows) else {
      throw Failure(Status.internal, "a product of (\(m), \(k)) and (\(other.rows), \(other.columns))")
    }
    try Memory.ask(8 * m * n)
    var c = [Double](repeating: 0, count: m * n)
    try LinearAlgebra.multiply(
      values, transposed: leftTransposed, other.values, transposed: transposed, into: &c, m, n, k)
    return Dense(c, m, n)
  }
  func minus(_ other: Dense) -> Dense { Dense(zip(values, other.values).map { $0 - $1 }, rows, columns) }
}

extension Dense {
  var isFinite: Bool { values.allSatisfy(\.isFinite) }
}
