import XCTest

@testable import ThalwegRunner
@testable import ThalwegCore
@testable import ThalwegMatrix
@testable import ThalwegMethods
@testable import ThalwegObjectives
@testable import ThalwegSets
@testable import ThalwegSolvers

final class AggregatorTests: XCTestCase {
  private func jacobian(_ m: Int, _ n: Int, _ key: UInt64) -> [[Double]] {
    (0..<m).map { i in (0..<n).map { Random.normal(key, i * n + $0) + (i % 2 == 0 ? 0.3 : -0.3) } }
  }
  private func gramian(_ J: [[Double]]) -> [[Double]] {
    J.map { a in J.map { b in zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } } }
  }
  private func combine(_ J: [[Double]], _ a: [Double]) -> [Double] {
    J[0].indices.map { c in J.indices.reduce(0) { $0 + a[$1] * J[$1][c] } }
  }
  private func dot(_ a: [Double], _ b: [Double]) -> Double { zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } }

  func testSurgeryOfTwoTasksConflictsWithNeither() {
    let J = [[1.0, 0.2, 0], [-1, 0.5, 0.3]], G = gramian(J)
    XCTAssertLessThan(G[0][1], 0)
    let d = combine(J, PCGrad.weights(G, [[0, 1], [1, 0]], mean: false))
    for g in J { XCTAssertGreaterThan(dot(d, g), 0) }
    // each is projected off the other
    let expected = J[0].indices.map {
      J[0][$0] - G[0][1] / G[1][1] * J[1][$0] + J[1][$0] - G[0][1] / G[0][0] * J[0][$0]
    }
    for (a, b) in zip(d, expected) { XCTAssertEqual(a, b, accuracy: 1e-14) }
    XCTAssertEqual(
      PCGrad.weights(G, [[0, 1], [1, 0]], mean: true).map { 2 * $0 },
      PCGrad.weights(G, [[0, 1], [1, 0]], mean: false))
  }

  func testSurgeryIgnoresZeroGradientsAndAgreement() {
    XCTAssertEqual(
      PCGrad.weights([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]], [[1, 2, 0], [0, 1, 2], [2, 1, 0]], mean: false), [1, 1, 1])
  }

  func testOrdersAreReproduciblePermutations() {
    for task in 0..<5 {
      let order = TaskContext(seed: 7, stream: 0, step: 3).order(task, of: 9)
      XCTAssertEqual(order.sorted(), Array(0..<9))
      XCTAssertEqual(order, TaskContext(seed: 7, stream: 0, step: 3).order(task, of: 9))
    }
    XCTAssertNotEqual(
      TaskContext(seed: 7, stream: 0, step: 3).order(0, of: 9), TaskContext(seed: 7, stream: 0, step: 4).order(0, of: 9)
    )
  }

  /// v ≥ u, Gv ≥ 0, and where v > u, Gv = 0.
  func testEveryDualIsOptimal() throws {
    for m in [1, 2, 3, 8, 20, 64] {
      for key: UInt64 in [0, 1, 2, 3] {
        var G = gramian(jacobian(m, max(3, m / 2), key))  // fewer dimensions than tasks: singular without the diagonal
        let trace = (0..<m).reduce(0) { $0 + G[$1][$1] }
        for i in 0..<m {
          for j in 0..<m { G[i][j] /= trace }
          G[i][i] += 1e-4
        }
        for i in 0..<m {
          let v = try UPGrad.solve(G, atLeast: (0..<m).map { $0 == i ? 1 / Double(m) : 0 }).v
          for k in 0..<m {
            let u = k == i ? 1 / Double(m) : 0, slope = dot(G[k], v)
            XCTAssertGreaterThanOrEqual(v[k], u)
            XCTAssertGreaterThanOrEqual(slope, -1e-13)
            if v[k] > u { XCTAssertEqual(slope, 0, accuracy: 1e-13) }
          }
        }
      }
    }
  }

  /// The rule in full, each task by itself.
  private func upgrad(_ G: [[Double]], _ pref: [Double], normEps: Double, regEps: Double) throws -> [Double] {
    let G = UPGrad.regularised(G, normEps: normEps, regEps: regEps)
    return try pref.indices.reduce([Double](repeating: 0, count: pref.count)) { total, i in
      let (v, _) = try UPGrad.solve(G, atLeast: pref.indices.map { $0 == i ? pref[i] : 0 })
      return zip(total, v).map { $0 + $1 }
    }
  }

  func testNoConflictGivesTheMeanAndConflictIsResolved() throws {
    let agreeing = [[1.0, 0.1], [0.8, 0.2], [0.5, 0.9]]
    let mean = try upgrad(gramian(agreeing), [1, 1, 1].map { $0 / 3 }, normEps: 0, regEps: 0)
    for a in mean { XCTAssertEqual(a, 1 / 3.0, accuracy: 1e-15) }
    for key: UInt64 in [0, 1, 2, 3, 4, 5] {
      let J = jacobian(4, 12, key)
      let d = combine(J, try upgrad(gramian(J), [Double](repeating: 0.25, count: 4), normEps: 0, regEps: 0))
      for g in J { XCTAssertGreaterThanOrEqual(dot(d, g), -1e-12) }
    }
    // dependent rows without a diagonal: the weights are not unique, the direction is; opposite gradients cancel
    let opposite = [[1.0, 0], [-1, 0]]
    let d = combine(opposite, try upgrad(gramian(opposite), [0.5, 0.5], normEps: 0, regEps: 0))
    XCTAssertEqual(d[0], 0, accuracy: 1e-12)
    XCTAssertEqual(try upgrad([[0, 0], [0, 0]], [0.3, 0.7], normEps: 1e-4, regEps: 1e-4), [0.3, 0.7])
  }

  func testTheProgramOnTheSimplex() throws {
    XCTAssertEqual(onSimplex(maximising: [1, 3, 2], [], [])?.x, [0, 1, 0])
    let x = try XCTUnwrap(onSimplex(maximising: [1, 3, 2], [[0, -1, 0], [1, 0, 0]], [-0.25, 0.5])).x
    for (a, b) in zip(x, [0.5, 0.25, 0.25]) { XCTAssertEqual(a, b, accuracy: 1e-14) }
    XCTAssertNil(onSimplex(maximising: [1, 1], [[1, 0], [0, 1]], [0.75, 0.75]))
    XCTAssertNil(onSimplex(maximising: [1, 1], [[-1, -1]], [0]))
  }

  /// The nearest point is not longer along any point of the hull.
  func testTheNearestPointOfAHull() throws {
    for m in [1, 2, 3, 8, 20, 64] {
      for key: UInt64 in [0, 1, 2, 3] {
        let G = gramian(jacobian(m, max(3, m / 2), key)), (w, _) = try nearestPoint(G)
        XCTAssertEqual(w.reduce(0, +), 1, accuracy: 1e-12)
        XCTAssertTrue(w.allSatisfy { $0 >= 0 })
        let length = dot(w, G.times(w))
        for k in 0..<m { XCTAssertGreaterThanOrEqual(dot(G[k], w), length - 1e-12 * G.largest) }
      }
    }
    XCTAssertEqual(try nearestPoint([[0, 0], [0, 0]]).weights.reduce(0, +), 1)
  }
}
