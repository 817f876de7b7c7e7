import CThalweg
import XCTest

@testable import ThalwegRunner
@testable import ThalwegCore
@testable import ThalwegMatrix
@testable import ThalwegMethods
@testable import ThalwegObjectives
@testable import ThalwegSets
@testable import ThalwegSolvers

/// Σ over samples of weight·Σ_c (a − b)²/samples, for any leading axes: every kind of input, and a gradient for two of
/// them.
private struct Squares: Objective {
  static let method = Method(
    "squares", .objective, "A weighted mean square.", rule: "sum", source: "none",
    inputs: [
      .variable("a", "..., C", "one side"), .variable("b", "..., C", "the other", optional: true),
      .integer("weight", "...", "of a sample", optional: true),
      .constant("pair", "2, C", "scales", optional: true),
      .result("total", "...", "the weighted square of every sample"),
    ])
  init(_ h: Hyper) {}
  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["a"], b = x.optional("b"), weight = x.optionalIntegers("weight"), c = x.sizes["C"],
      samples = x.sizes.samples
    let da = try cache?.keep("a", samples * c, T.self), db = try cache?.keep("b", samples * c, T.self)
    let total = try cache?.keep("total", samples, T.self)
    return Rows.sum(samples, work: c) { i in
      var sum = 0.0
      for k in (i * c)..<((i + 1) * c) {
        let d = Double(a[k]) - (b.map { Double($0[k]) } ?? 0), w = Double(weight?[i] ?? 1)
        sum += w * d * d
        da?[k] = T(2 * w * d / Double(samples))
        db?[k] = T(-2 * w * d / Double(samples))
      }
      total?[i] = T(sum)
      return sum / Double(samples)
    }
  }
}

final class ObjectiveTests: XCTestCase {
  private var squares: Evaluation {
    guard case .objective(let k) = entry(Squares.self).component else { fatalError("no objective") }
    return Evaluation(Squares.method, Hyper([], []), k)
  }
  private func status(_ body: () throws -> Void) -> tw_status {
    do { try body() } catch { return (error as? Failure)?.status ?? 1 }
    return 0
  }
  /// Calls `body` with operands for tensors; nil stays nil.
  private func with<R>(_ tensors: [Tensor?], _ body: ([Operand?]) throws -> R) throws -> R {
    func next(_ i: Int, _ list: [Operand?]) throws -> R {
      guard i < tensors.count else { return try body(list) }
      guard var t = tensors[i] else { return try next(i + 1, list + [nil]) }
      return try t.withView { try next(i + 1, list + [Operand($0)]) }
    }
    return try next(0, [])
  }

  func testSizes() throws {
    let a = Input.variable("a", "..., C", ""), y = Input.integer("y", "...", ""), pair = Input.constant("p", "2, C", "")
    XCTAssertEqual([a.shape, y.shape, pair.shape], ["(..., C)", "(...,)", "(2, C)"])
    var s = Sizes()
    XCTAssertNil(s.shape(a))
    try s.match(a, [4, 5, 3])
    XCTAssertEqual(s["C"], 3)
    XCTAssertEqual(s.samples, 20)
    XCTAssertEqual(s.shape(y), [4, 5])
    XCTAssertEqual(s.shape(pair), [2, 3])
    try s.match(y, [4, 5])
    try s.match(pair, [2, 3])
    for (input, shape) in [
      (y, [5, 4]), (y, [4, 5, 3]), (y, []), (pair, [3, 3]), (pair, [2, 4]), (pair, [2]), (a, [4, 5, 2]), (a, [3]),
      (a, []), (pair, [2, 0]),
    ] {
      var copy = s
      XCTAssertEqual(status { try copy.match(input, shape) }, Int32(TW_ERROR_SHAPE), "\(input.name) \(shape)")
    }
    var none = Sizes()  // no leading axis is a leading axis too
    try none.match(a, [3])
    try none.match(y, [])
    XCTAssertEqual(none.samples, 1)
  }

  func testEveryKindOfInput() throws {
    let a = Tensor(random: 1, [2, 3, 4]), b = Tensor(random: 2, [2, 3, 4]), w = Tensor([0, 1, 2, 3, 4, 5], [2, 3])
    let e = squares
    let (value, cache) = try with([a, b, w]) { try e.forward($0, keeps: true) }
    var want = 0.0
    for i in 0..<24 { want += w.values[i / 4] * (a.values[i] - b.values[i]) * (a.values[i] - b.values[i]) / 6 }
    XCTAssertEqual(value, want, accuracy: 1e-14)
    let c = try XCTUnwrap(cache)
    var g = Tensor([Double](repeating: 1, count: 24), [2, 3, 4]), t = Tensor([Double](repeating: 0, count: 6), [2, 3])
    try g.withView { gv in try t.withView { tv in try e.pullback(c, -2, [nil, gv, nil, nil, tv]) } }
    for i in 0..<24 {
      XCTAssertEqual(g.values[i], 1 + 4 * w.values[i / 4] * (a.values[i] - b.values[i]) / 6, accuracy: 1e-13)
    }
    XCTAssertEqual(t.values.reduce(0, +), -2 * 6 * want, accuracy: 1e-12)
    // what was left out has no gradient, and what is constant never has
    let alone = try XCTUnwrap(try with([a]) { try e.forward($0, keeps: true) }.cache)
    XCTAssertEqual(status { try g.withView { try e.pullback(alone, 1, [nil, $0]) } }, Int32(TW_ERROR_NEEDS))
    XCTAssertEqual(status { try t.withView { try e.pullback(c, 1, [nil, nil, $0]) } }, Int32(TW_ERROR_ARGUMENT))
    XCTAssertEqual(
      status { _ = try with([a, b, w, Tensor([1, 2], [2, 1])]) { try e.forward($0, keeps: false) } },
      Int32(TW_ERROR_SHAPE))
    XCTAssertEqual(status { _ = try with([nil, b]) { try e.forward($0, keeps: false) } }, Int32(TW_ERROR_NEEDS))
    XCTAssertEqual(try with([a]) { try e.forward($0, keeps: false) }.value, a.dot(a) / 6, accuracy: 1e-13)
  }

  func testRowsAddUpInOrder() {
    for (rows, work) in [(0, 1), (1, 1), (1000, 100), (8192, 1), (8193, 1), (3, 100_000)] {
      XCTAssertEqual(Rows.sum(rows, work: work) { Double($0) }, Double(rows * (rows - 1) / 2))
    }
  }
}
