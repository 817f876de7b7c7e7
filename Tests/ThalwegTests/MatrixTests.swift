import XCTest

@testable import ThalwegRunner
@testable import ThalwegCore
@testable import ThalwegMatrix
@testable import ThalwegMethods
@testable import ThalwegObjectives
@testable import ThalwegSets
@testable import ThalwegSolvers

final class MatrixTests: XCTestCase {
  private func random(_ key: UInt64, _ n: Int) -> [Double] { (0..<n).map { Random.normal(key, $0) } }
  private func naive(_ a: [Double], _ b: [Double], _ m: Int, _ n: Int, _ k: Int) -> [Double] {
    (0..<(m * n)).map { e in (0..<k).reduce(0) { $0 + a[e / n * k + $1] * b[$1 * n + e % n] } }
  }
  private func assertEqual(_ a: [Double], _ b: [Double], _ accuracy: Double, _ what: String = "") {
    XCTAssertEqual(a.count, b.count)
    for (x, y) in zip(a, b) { XCTAssertEqual(x, y, accuracy: accuracy, what) }
  }

  func testProductsOfAllOrientations() throws {
    for (m, n, k) in [(3, 5, 4), (1, 7, 2), (6, 1, 3), (40, 33, 50)] {
      let a = random(1, m * k), b = random(2, k * n), expected = naive(a, b, m, n, k)
      let at = LinearAlgebra.transposed(a, m, k), bt = LinearAlgebra.transposed(b, k, n)
      for ta in [false, true] {
        for tb in [false, true] {
          var c = [Double](repeating: 1, count: m * n)
          try LinearAlgebra.multiply(
            ta ? at : a, transposed: ta, tb ? bt : b, transposed: tb, into: &c, m, n, k, alpha: 2, beta: -1)
          assertEqual(c, expected.map { 2 * $0 - 1 }, 1e-12)
          var f = [Float](repeating: 0, count: m * n)
          try LinearAlgebra.multiply(
            (ta ? at : a).map(Float.init), transposed: ta, (tb ? bt : b).map(Float.init), transposed: tb, into: &f, m,
            n, k)
          assertEqual(f.map(Double.init), expected, 1e-4)
        }
      }
      var g = [Double](repeating: 0, count: m * m)
      try LinearAlgebra.gram(a, into: &g, m, k)
      assertEqual(g, naive(a, at, m, m, k), 1e-12)
      try LinearAlgebra.gram(at, transposed: true, into: &g, m, k, alpha: 2, beta: 1)
      assertEqual(g, naive(a, at, m, m, k).map { 3 * $0 }, 1e-12)
    }
  }

  func testDecompositions() throws {
    for (m, n) in [(5, 3), (3, 5), (4, 4), (1, 6), (30, 41)] {
      let a = random(3, m * n)
      let svd = try LinearAlgebra.SVD(a, m, n)
      var back = a
      try svd.compose(&back) { $0 }
      assertEqual(back, a, 1e-12)
      XCTAssertEqual(svd.s, svd.s.sorted(by: >))
      let r = svd.r
      assertEqual(
        naive(LinearAlgebra.transposed(svd.u, m, r), svd.u, r, r, m), (0..<(r * r)).map { $0 / r == $0 % r ? 1 : 0 },
        1e-13)
      if m >= n {
        let q = try LinearAlgebra.orthonormal(a, m, n)
        let upper = naive(LinearAlgebra.transposed(q, m, n), a, n, n, m)
        assertEqual(naive(q, upper, m, n, n), a, 1e-12)
        for i in 0..<n { XCTAssertGreaterThan(upper[i * n + i], 0) }
      }
    }
    let n = 7, a = random(5, n * n), b = random(6, n * 2)
    assertEqual(naive(a, try LinearAlgebra.solve(a, b, n, 2), n, 2, n), b, 1e-11)
    var g = [Double](repeating: 0, count: n * n)
    try LinearAlgebra.gram(a, into: &g, n, n)
    assertEqual(naive(g, try LinearAlgebra.solvePositive(g, b, n, 2), n, 2, n), b, 1e-8)
    XCTAssertThrowsError(try LinearAlgebra.SVD([1, .nan, 3, 4], 2, 2))
    XCTAssertThrowsError(try LinearAlgebra.solve([0, 0, 0, 0], [1, 1], 2, 1))
    XCTAssertThrowsError(try LinearAlgebra.solvePositive([-1], [1], 1, 1))
  }

  private func schulz(_ text: String) throws -> Hyper {
    try Registry.component(try Parser.sentence(text)[0], .update).1
  }
  private func orthogonalize<T: Real>(_ h: Hyper, _ a: [T], _ m: Int, _ n: Int) throws -> [T] {
    var x = a
    let space = UnsafeMutableRawPointer.allocate(
      byteCount: NewtonSchulz.space(h, m, n, MemoryLayout<T>.stride), alignment: 64)
    defer { space.deallocate() }
    try x.withUnsafeMutableBufferPointer { try NewtonSchulz(h).apply($0.baseAddress!, m, n, scale: 1, space) }
    return x
  }

  func testCubicIterationConvergesToThePolarFactor() throws {
    let s = try schulz("orthogonalize(ns_steps=60, ns_coefficients=cubic)")
    for (m, n) in [(6, 4), (4, 6), (5, 5), (1, 8), (8, 1)] {
      let a = random(7, m * n)
      var exact = a
      try LinearAlgebra.SVD(a, m, n).compose(&exact) { _ in 1 }
      assertEqual(try orthogonalize(s, a, m, n), exact, 1e-8, "\(m) x \(n)")
    }
  }

  func testQuinticIterationKeepsSingularValuesNearOne() throws {
    let s = try schulz("orthogonalize")
    let m = 24, n = 40, a = random(8, m * n)
    let x = try orthogonalize(s, a, m, n)
    for value in try LinearAlgebra.SVD(x, m, n).s { XCTAssertTrue((0.6...1.25).contains(value), "\(value)") }
    // the transposed matrix gives the transposed factor, and zero stays zero
    let t = try orthogonalize(s, LinearAlgebra.transposed(a, m, n), n, m)
    assertEqual(LinearAlgebra.transposed(t, n, m), x, 1e-12)
    XCTAssertEqual(try orthogonalize(s, [Double](repeating: 0, count: 12), 3, 4), [Double](repeating: 0, count: 12))
    let f = try orthogonalize(s, a.map(Float.init), m, n)
    assertEqual(f.map(Double.init), x, 1e-4)
  }

  func testManyMatricesAtOnceGiveTheSameBits() throws {
    let s = try schulz("orthogonalize"), n = 96
    let inputs = (0..<12).map { k in random(UInt64(k) + 20, n * n).map(Float.init) }
    let alone = try inputs.map { try orthogonalize(s, $0, n, n) }
    var together = inputs
    let before = Threads.count
    Threads.setCount(4)
    defer { Threads.setCount(before) }
    together.withUnsafeMutableBufferPointer { b in
      nonisolated(unsafe) let b = b
      Threads.run(b.count, parallel: true) { k in
        if let x = try? self.orthogonalize(s, b[k], n, n) { b[k] = x }
      }
    }
    XCTAssertEqual(together, alone)
  }

  func testVectorHelpers() {
    for n in [0, 1, 7, 8, 15, 16, 17, 33, 100] {
      let x = random(11, n), y = random(12, n)
      XCTAssertEqual(Flat.dot(x, y, n), zip(x, y).reduce(0) { $0 + $1.0 * $1.1 }, accuracy: 1e-12)
      XCTAssertEqual(Flat.norm(x, n), x.reduce(0) { $0 + $1 * $1 }.squareRoot(), accuracy: 1e-12)
      XCTAssertTrue(Flat.isFinite(x, n))
      for bad in [Double.nan, .infinity, -.infinity] where n > 0 {
        for at in [0, n / 2, n - 1] {
          var z = x
          z[at] = bad
          XCTAssertFalse(Flat.isFinite(z, n))
          XCTAssertFalse(Flat.norm(z, n).isFinite)
        }
      }
    }
    XCTAssertEqual(Flat.norm([3e-320, 4e-320], 2), 5e-320, accuracy: 1e-322)
    XCTAssertEqual(Flat.norm([3e300, 4e300], 2), 5e300, accuracy: 1e286)
  }
}
