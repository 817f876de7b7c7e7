import XCTest

@testable import ThalwegRunner
@testable import ThalwegCore
@testable import ThalwegMatrix
@testable import ThalwegMethods
@testable import ThalwegObjectives
@testable import ThalwegSets
@testable import ThalwegSolvers

final class ConstraintTests: XCTestCase {
  let sets = [
    "box(-0.3, 0.8)", "box(0, inf)", "simplex", "simplex(2.5, axis=0)", "simplex(0.5, axis=-1)", "l2_ball(0.7)",
    "l2_ball(0.3, axis=1)",
    "l2_ball(0)",
  ]
  let shape = [4, 3, 5]

  /// No point of the set is nearer than the projection: the angle to every other point is obtuse.
  func testProjectionIsTheNearestPoint() throws {
    for text in sets {
      let c = try ConstraintObject(text)
      for k in 0..<6 {
        let w = Tensor(random: UInt64(k), shape, scale: [0.01, 1, 30][k % 3]), p = try c.project(w)
        for other in 0..<10 {
          let q = try c.project(Tensor(random: UInt64(100 + other), shape, scale: 2))
          XCTAssertLessThanOrEqual((w - p).dot(q - p), 1e-10 * max(1, w.norm), text)
        }
        XCTAssertEqual(try c.project(p).bits, p.bits, "\(text): a projected point moved")
      }
    }
  }

  func testPointsInsideKeepTheirBits() throws {
    let inside: [(String, [Double])] = [
      ("box(-1, 1)", [-0.0, 1, -1, 0.3]), ("simplex", [0.25, 0.5, 0.25, -0.0]), ("l2_ball(5)", [3, -4, -0.0, 0]),
      ("stiefel", [0, 1, -1, -0.0]),
    ]
    for (text, values) in inside {
      let w = Tensor(values, [2, 2])
      XCTAssertEqual(try ConstraintObject(text).project(w).bits, w.bits, text)
    }
  }

  func testMinimiserIsInTheSetAndBest() throws {
    for text in sets where text != "box(0, inf)" {
      let c = try ConstraintObject(text)
      let g = Tensor(random: 9, shape), s = try c.minimise(g)
      let inside = try c.project(s)
      for (a, b) in zip(inside.values, s.values) { XCTAssertEqual(a, b, accuracy: 1e-13, text) }
      for k in 0..<20 {
        XCTAssertLessThanOrEqual(
          g.dot(s), g.dot(try c.project(Tensor(random: UInt64(k), shape, scale: 3))) + 1e-12, text)
      }
    }
    XCTAssertThrowsError(
      try ConstraintObject("box(0, inf)").minimise(Tensor([-1], [1])), "an unbounded direction has no minimiser")
    XCTAssertEqual(
      try ConstraintObject("simplex").minimise(Tensor([2, 1, 1], [3])).values, [0, 1, 0], "the lowest index of a tie")
  }

  func testSimplexAgreesWithTheSortedFormula() throws {
    func sorted(_ w: [Double], _ r: Double) -> [Double] {
      let u = w.sorted(by: >)
      var sum = 0.0, theta = 0.0
      for (k, x) in u.enumerated() {
        sum += x
        if x > (sum - r) / Double(k + 1) { theta = (sum - r) / Double(k + 1) }
      }
      return w.map { max($0 - theta, 0) }
    }
    // the last is slow for pivoting: every pass removes only a few
    let cases = [
      Tensor(random: 4, [1000]).values, [Double](repeating: 1, count: 100),
      (0..<3000).map { pow(0.999, Double($0)) * 1000 },
    ]
    for w in cases {
      for r in [1e-3, 1, 50] {
        let p = try ConstraintObject("simplex(\(r))").project(Tensor(w, [w.count]))
        for (a, b) in zip(p.values, sorted(w, r)) { XCTAssertEqual(a, b, accuracy: 1e-11 * max(1, r)) }
        XCTAssertEqual(p.values.reduce(0, +), r, accuracy: 1e-12 * max(1, r))
      }
    }
  }

  func testStiefel() throws {
    for text in ["stiefel", "stiefel(retraction=polar)", "stiefel(retraction=cayley)", "stiefel(canonical, cayley)"] {
      let c = try ConstraintObject(text)
      for shape in [[6, 2], [5, 4], [3, 3], [2, 7], [3, 2, 4]] {
        let x = try c.project(Tensor(random: 3, shape))
        XCTAssertLessThan(defect(x), 1e-14)
        let u = try c.tangent(x, Tensor(random: 8, shape))
        // tangent: XᵀU + UᵀX = 0, that is, lengths do not change to first order
        XCTAssertLessThan(defect(x.moved(1e-4, along: u)), 1e-6)
        // a retraction leads along U: the error is of second order, and the point stays in the set
        var errors: [Double] = []
        for t in [1e-2, 1e-3] {
          let step = Tensor(u.values.map { t * $0 }, shape), y = try c.retract(x, step)
          XCTAssertLessThan(defect(y), 1e-13, "\(text) \(shape)")
          errors.append((y - x.moved(1, along: step)).norm)
        }
        XCTAssertLessThan(errors[1], errors[0] / 50, "\(text) \(shape)")
      }
      XCTAssertThrowsError(try c.project(Tensor(random: 1, [3])))
    }
    // a matrix of rank 1 has no unique polar factor; an orthonormal one comes back all the same
    XCTAssertLessThan(defect(try ConstraintObject("stiefel").project(Tensor([1, 2, 2, 4, 3, 6], [3, 2]))), 1e-14)
  }

  /// Steepest descent on the Stiefel manifold finds the space of the smallest eigenvectors (Brockett's cost with equal
  /// weights).
  func testStiefelFindsEigenvectors() throws {
    let n = 6
    let c = try ConstraintObject("stiefel")
    var x = try c.project(Tensor(random: 2, [n, 2]))
    for _ in 0..<600 {
      let g = Tensor((0..<(2 * n)).map { Double($0 / 2 + 1) * x.values[$0] }, [n, 2])  // A = diag(1...n)
      let u = try c.tangent(x, g)
      x = try c.retract(x, Tensor(u.values.map { -0.2 * $0 }, [n, 2]))
    }
    var trace = 0.0
    for i in 0..<(2 * n) { trace += Double(i / 2 + 1) * x.values[i] * x.values[i] }
    XCTAssertEqual(trace, 3, accuracy: 1e-10)
  }

  func testNaNIsRefusedUntouched() throws {
    for text in ["simplex", "simplex(axis=0)", "l2_ball", "l2_ball(axis=1)", "stiefel"] {
      var w = Tensor(random: 3, [4, 3])
      w.values[7] = .nan
      var changed = w
      XCTAssertThrowsError(try changed.withView { try ConstraintObject(text).project($0) })
      XCTAssertEqual(changed.bits, w.bits, text)
    }
  }

  func testEveryGroupKeepsItsLargest() throws {
    let c = try ConstraintObject("nm_sparsity(2, 4)")
    XCTAssertEqual(
      try c.project(Tensor([1, -3, 2, 0.5, 1, 1, 1, 1], [2, 4])).values, [0, -3, 2, 0, 1, 1, 0, 0],
      "ties keep the lower index")
    let w = Tensor(random: 6, [8, 12]), p = try c.project(w)
    for g in 0..<24 { XCTAssertEqual(p.values[(g * 4)..<(g * 4 + 4)].filter { $0 != 0 }.count, 2) }
    XCTAssertEqual(try c.project(p).bits, p.bits)
    let columns = try ConstraintObject("nm_sparsity(1, 4, axis=0)").project(w)
    for j in 0..<12 { XCTAssertEqual((0..<4).filter { columns.values[$0 * 12 + j] != 0 }.count, 1) }
    XCTAssertThrowsError(try c.project(Tensor(random: 6, [6])))
  }

  /// max |XᵀX − I| of the tall view.
  private func defect(_ x: Tensor) -> Double {
    let rows = x.shape[0], columns = x.values.count / rows
    let (n, p) = (max(rows, columns), min(rows, columns))
    func at(_ i: Int, _ j: Int) -> Double { rows >= columns ? x.values[i * columns + j] : x.values[j * columns + i] }
    var worst = 0.0
    for a in 0..<p {
      for b in 0..<p {
        var sum: Double = a == b ? -1 : 0
        for i in 0..<n { sum += at(i, a) * at(i, b) }
        worst = max(worst, abs(sum))
      }
    }
    return worst
  }
}
