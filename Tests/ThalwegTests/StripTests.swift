import CThalweg
import XCTest

@testable import ThalwegCore
@testable import ThalwegRunner

/// Which passes go through strips of a tensor, and how long those are.
final class StripTests: XCTestCase {
  private func plan(_ sentence: String, _ shape: [Int]) throws -> (segments: Swift.Range<Int>, length: Int) {
    let count = shape.reduce(1, *), optimizer = try Optimizer(sentence, Options(), .current)
    let memory = UnsafeMutablePointer<Float>.allocate(capacity: 2 * count)
    memory.initialize(repeating: 0, count: 2 * count)
    defer { memory.deallocate() }
    let dimensions = shape.map { Int64($0) }
    try dimensions.withUnsafeBufferPointer { d in
      var t = tw_tensor()
      (t.data, t.dtype) = (UnsafeMutableRawPointer(memory), DType.f32.rawValue)
      (t.ndim, t.shape) = (Int32(d.count), d.baseAddress)
      try optimizer.addParameters([try View(t, "parameter")], nil, nil)
      t.data = UnsafeMutableRawPointer(memory + count)
      try optimizer.bindGradients([try View(t, "gradient")])
    }
    XCTAssertEqual(try optimizer.stepOnce(), Status.ok)
    return (optimizer.records[0].stripped, optimizer.records[0].strip)
  }

  func testLinesGoInStrips() throws {
    let rows = "adamw | prox(group_lasso(0.1, axis=row))"
    XCTAssert(try plan(rows, [1000, 256]) == (0..<2, 16_384))
    XCTAssert(try plan(rows, [1000, 768]) == (0..<2, 15_360))  // 768 and chunks of 512: multiples of 1,536
    XCTAssert(try plan(rows, [1000, 1000]) == (0..<2, 64_000))
    XCTAssert(try plan("adamw | nm_sparsity(2, 4)", [1 << 18]) == (0..<4, 16_384))
    XCTAssert(try plan("clip_global_norm(1) | adamw | prox(l21(0.1))", [1000, 256]) == (1..<3, 16_384))
  }
  func testSmallTensorsAreOneStrip() throws {
    XCTAssert(try plan("adamw | prox(l21(0.1))", [127, 513]) == (0..<2, 127 * 513))
    XCTAssert(try plan("adamw | prox(l21(0.1))", [4, 5]) == (0..<2, 20))
  }
  func testOthersDoNot() throws {
    for (sentence, shape) in [
      ("adamw", [1000, 256]), ("muon", [64, 32]), ("adamw | prox(group_lasso(0.1, axis=col))", [1000, 256]),
      ("adamw | project(l2_ball)", [1000, 256]),  // one line
      ("adamw | prox(l21(0.1))", [1000, 513]),  // no common multiple of lines and chunks fits into a cache
      ("adamw | prox(l21(0.1))", [0, 5]),
    ] {
      XCTAssertEqual(try plan(sentence, shape).length, 0, sentence)
    }
  }
}
