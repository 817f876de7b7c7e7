import XCTest

@testable import ThalwegRunner
@testable import ThalwegCore
@testable import ThalwegMatrix
@testable import ThalwegMethods
@testable import ThalwegObjectives
@testable import ThalwegSets
@testable import ThalwegSolvers

/// What every penalty must satisfy, whatever its formula.
final class RegularizerTests: XCTestCase {
  let all = [
    "l1(0.3)", "l2(0.3)", "elastic_net(0.3, 0.7)", "group_lasso(0.3)",
    "group_lasso(0.3, axis=col, scale_by_size=false)",
    "group_lasso(0.3, axis=all)", "norm_loss(0.3)", "norm_loss(0.3, eps=0)", "nuclear_norm(0.3)",
  ]
  let shapes = [[5, 3], [3, 7], [4, 2, 3]]

  func testGradientIsTheSlopeOfTheValue() throws {
    for text in all {
      let r = try RegularizerObject(text)
      for (k, shape) in shapes.enumerated() {
        let w = Tensor(random: UInt64(k) + 1, shape), d = Tensor(random: UInt64(k) + 77, shape), h = 1e-6
        let slope = (try r.value(w.moved(h, along: d)) - r.value(w.moved(-h, along: d))) / (2 * h)
        XCTAssertEqual(try r.gradient(w).dot(d), slope, accuracy: 1e-7 * max(1, abs(slope)), "\(text) \(shape)")
      }
    }
  }

  func testProxMinimises() throws {
    for text in all where text != "norm_loss(0.3)" {  // whose prox takes eps as 0
      let r = try RegularizerObject(text)
      for (k, shape) in shapes.enumerated() {
        let w = Tensor(random: UInt64(k) + 5, shape), t = 0.7
        let u = try r.prox(w, t)
        func cost(_ x: Tensor) throws -> Double { try 0.5 * (x - w).dot(x - w) + t * r.value(x) }
        let best = try cost(u)
        for trial in 0..<20 {
          for step in [1e-3, 1e-1, 1] {
            let near = u.moved(step, along: Tensor(random: UInt64(1000 + trial), shape))
            XCTAssertLessThanOrEqual(best, try cost(near) + 1e-12, "\(text) \(shape)")
          }
        }
        XCTAssertLessThanOrEqual(best, try cost(w) + 1e-12)
      }
    }
  }

  func testConvexProxesAreFirmlyNonexpansive() throws {
    for text in all where !text.hasPrefix("norm_loss") {
      let r = try RegularizerObject(text)
      for k in 0..<10 {
        let a = Tensor(random: UInt64(k), [6, 4]), b = Tensor(random: UInt64(k) + 50, [6, 4])
        let d = try r.prox(a, 1.3) - r.prox(b, 1.3)
        XCTAssertLessThanOrEqual(d.dot(d), d.dot(a - b) + 1e-12, text)
      }
    }
  }

  func testProxOfNothingChangesNoBit() throws {
    let w = Tensor([-0.0, 0, 1.5, -2, 5e-324, 1e300], [2, 3])
    for text in all { XCTAssertEqual(try RegularizerObject(text).prox(w, 0).bits, w.bits, text) }
    for text in ["l1(0)", "l2(0)", "elastic_net(0)", "group_lasso(0)", "norm_loss(0)", "nuclear_norm(0)"] {
      XCTAssertEqual(try RegularizerObject(text).prox(w, 1).bits, w.bits, text)
    }
  }

  func testSmallThingsBecomeExactlyZero() throws {
    XCTAssertEqual(try RegularizerObject("l1(1)").prox(Tensor([0.5, -1, 1.5, -0.2], [4]), 1).values, [0, 0, 0.5, 0])
    let rows = Tensor([3, 4, 0.1, -0.1], [2, 2])
    let shrunk = try RegularizerObject("group_lasso(1, scale_by_size=false)").prox(rows, 1)
    XCTAssertEqual(Array(shrunk.values[2...]), [0, 0])
    XCTAssertEqual(shrunk.values[0], 3 * 0.8, accuracy: 1e-15)
    // norms of tiny and huge groups neither vanish nor overflow
    let extreme = try RegularizerObject("group_lasso(1, scale_by_size=false)").value(
      Tensor([3e-200, 4e-200, 3e200, 4e200], [2, 2]))
    XCTAssertEqual(extreme, 5e200, accuracy: 1e186)
    XCTAssertEqual(
      try RegularizerObject("group_lasso(1, scale_by_size=false)").value(Tensor([3e-200, 4e-200], [1, 2])), 5e-200,
      accuracy: 1e-214)
    // a rank-2 matrix with one small singular value becomes one of rank 1
    let low = try RegularizerObject("nuclear_norm(1)").prox(Tensor([3, 0, 0, 0.5], [2, 2]), 1)
    XCTAssertEqual(low.values[0], 2, accuracy: 1e-14)
    XCTAssertEqual(low.values[3], 0, accuracy: 1e-15)
  }

  func testZeroHasTheZeroSubgradient() throws {
    let zero = Tensor([Double](repeating: 0, count: 6), [2, 3])
    for text in all { XCTAssertEqual(try RegularizerObject(text).gradient(zero).values.map(abs), zero.values, text) }
  }

  func testNaNAndInfinityAreRefusedUntouched() throws {
    for text in all where text.hasPrefix("group") || text.hasPrefix("n") {
      for bad in [Double.nan, .infinity, -.infinity] {
        var w = Tensor(random: 3, [4, 3])
        w.values[5] = bad
        var changed = w
        XCTAssertThrowsError(try changed.withView { try RegularizerObject(text).prox($0, 1) }) {
          XCTAssertEqual(Int(($0 as? Failure)?.status ?? 0), Status.nonfinite)
        }
        XCTAssertEqual(changed.bits, w.bits, text)
        XCTAssertThrowsError(try RegularizerObject(text).value(w))
        XCTAssertThrowsError(try RegularizerObject(text).gradient(w))
      }
    }
  }
}
