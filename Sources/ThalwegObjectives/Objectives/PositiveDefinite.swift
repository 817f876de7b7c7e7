import COpenBLAS
import Glibc
import ThalwegCore

/// The logarithm of the determinant and the inverse of a symmetric positive definite matrix.
struct PositiveDefinite {
  let logDeterminant: Double
  let inverse: [Double]

  /// Throws TW_ERROR_NUMERIC when it is not positive definite.
  init(_ a: [Double], _ n: Int, _ name: String) throws(Failure) {
    try LinearAlgebra.require()
    try Memory.ask(8 * a.count * 2)
    var identity = [Double](repeating: 0, count: a.count), factor = a
    for i in 0..<n { identity[i * n + i] = 1 }
    guard n <= 1 << 15 else { throw Failure(Status.shape, "`\(name)` is too large for the installed LAPACK") }
    guard a.allSatisfy(\.isFinite), twb_dpotrf(Int32(n), &factor, Int32(n)) == 0 else {
      throw Failure(Status.numeric, "`\(name)` is not positive definite")
    }
    logDeterminant = (0..<n).reduce(0) { $0 + 2 * log(factor[$1 * n + $1]) }
    inverse = try LinearAlgebra.solvePositive(a, identity, n, n)
  }
}

/// The symmetric part of a square matrix, in double.
func symmetric<T: Real>(_ a: UnsafePointer<T>, _ n: Int) throws(Failure) -> [Double] {
  try Memory.ask(8 * n * n)
  var out = [Double](repeating: 0, count: n * n)
  for i in 0..<n { for j in 0..<n { out[i * n + j] = (Double(a[i * n + j]) + Double(a[j * n + i])) / 2 } }
  return out
}
