import CThalweg
import Foundation
import XCTest

@testable import ThalwegRunner
@testable import ThalwegCore
@testable import ThalwegMatrix
@testable import ThalwegMethods
@testable import ThalwegObjectives
@testable import ThalwegSets
@testable import ThalwegSolvers

/// The engine on small buffers: storage, reductions, random numbers, lanes.
final class EngineTests: XCTestCase {
  func testEightBitKeepsSmallSecondMomentsAlive() {
    let n = 1024
    var x = (0..<n).map { i in Float(pow(10.0, -Double(i % 16))) }
    let slot = UnsafeMutableRawPointer.allocate(byteCount: EightBit.bytes(n), alignment: 64)
    defer { slot.deallocate() }
    EightBit.encode(slot, n, 0, n, &x, signed: false, nil)
    var y = [Float](repeating: -1, count: n)
    EightBit.decode(slot, n, 0, n, &y, signed: false)
    for i in 0..<n {
      XCTAssertGreaterThan(y[i], 0, "a positive number became zero")
      // above 2^-15 of the block's largest: 1/32 relative (half a step of 1/16), twice that where the octave turns
      if x[i] > 0x1p-13 { XCTAssertEqual(y[i] / x[i], 1, accuracy: 0.07) }
    }
    x = (0..<n).map { Float(sin(Double($0))) * 3 }
    EightBit.encode(slot, n, 0, n, &x, signed: true, nil)
    EightBit.decode(slot, n, 0, n, &y, signed: true)
    for i in 0..<n { XCTAssertEqual(y[i], x[i], accuracy: 0.04 * abs(x[i]) + 0.002) }
    // encoding what was decoded changes nothing
    var z = y
    EightBit.encode(slot, n, 0, n, &y, signed: true, nil)
    EightBit.decode(slot, n, 0, n, &z, signed: true)
    for i in 0..<n { XCTAssertEqual(z[i], y[i], accuracy: 1e-6 * abs(y[i])) }
  }

  /// A cut at any group gives the same codes, and a key that is missing rounds to nearest.
  func testNarrowStateDoesNotDependOnTheCut() {
    let n = 1000
    var x = (0..<n).map { Float(sin(Double($0))) * 3 }
    for format in [SlotStore.Format.bf16, .signed8] {
      let bytes = SlotStore.bytes(format, n, 4)
      let whole = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 64)
      let parts = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 64)
      defer {
        whole.deallocate()
        parts.deallocate()
      }
      whole.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
      parts.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
      SlotStore(base: whole, format: format).narrow(n, 0, n, &x, 7)
      x.withUnsafeMutableBufferPointer { b in
        guard let p = b.baseAddress else { return XCTFail("no memory") }
        for i in stride(from: 0, to: n, by: 512) {
          SlotStore(base: parts, format: format).narrow(n, i, min(512, n - i), p + i, 7)
        }
      }
      XCTAssertEqual(memcmp(whole, parts, bytes), 0)
      SlotStore(base: parts, format: format).narrow(n, 0, n, &x, nil)
      XCTAssertNotEqual(memcmp(whole, parts, bytes), 0)
      var y = [Float](repeating: 0, count: n)
      SlotStore(base: parts, format: format).widen(n, 0, n, &y)
      // half the distance of neighbours: at most 2^-8 of the number in bfloat16; in 8 bits 1/32 of it plus c
      for i in 0..<n {
        XCTAssertEqual(y[i], x[i], accuracy: format == .bf16 ? 0x1p-8 * abs(x[i]) : 0.04 * abs(x[i]) + 0.002)
      }
    }
  }

  func testBFloat16RoundsToNearestEven() {
    XCTAssertEqual(bf16FromFloat(1), 0x3f80)
    XCTAssertEqual(bf16FromFloat(Float(bitPattern: 0x3f80_8000)), 0x3f80)  // a tie goes to the even neighbour
    XCTAssertEqual(bf16FromFloat(Float(bitPattern: 0x3f81_8000)), 0x3f82)
    XCTAssertTrue(floatFromBF16(bf16FromFloat(.nan)).isNaN)
    XCTAssertEqual(floatFromBF16(bf16FromFloat(.infinity)), .infinity)
  }

  func testStochasticRoundingIsUnbiased() {
    let x: Float = 1 + 0x1p-9  // a quarter between two neighbours
    var sum = 0.0
    for i in 0..<20_000 {
      let noise = UInt32(truncatingIfNeeded: Random.mix(3, UInt64(i)) >> 32)
      sum += Double(floatFromBF16(bf16Stochastic(x, noise)))
    }
    XCTAssertEqual(sum / 20_000, Double(x), accuracy: 2e-4)  // 4 standard errors of 3.4e-3/sqrt(20000)
    XCTAssertEqual(floatFromBF16(bf16Stochastic(1, 0xffff_ffff)), 1)
  }

  func testNormalNumbersHaveTheRightMoments() {
    let n = 200_000
    var m = (0.0, 0.0, 0.0, 0.0)
    for i in 0..<n {
      let z = Random.normal(42, i)
      m = (m.0 + z, m.1 + z * z, m.2 + z * z * z, m.3 + z * z * z * z)
    }
    let k = Double(n)
    XCTAssertEqual(m.0 / k, 0, accuracy: 0.01)
    XCTAssertEqual(m.1 / k, 1, accuracy: 0.015)
    XCTAssertEqual(m.2 / k, 0, accuracy: 0.04)
    XCTAssertEqual(m.3 / k, 3, accuracy: 0.1)
  }

  func testSignsAreThoseOfTheNormalNumbers() {
    for i in stride(from: 0, to: 100_000, by: 16) {
      let (z, s) = (SIMD16<Float>.normal(7, i), SIMD16<Float>.randomSign(7, i))
      let (y, t) = (SIMD8<Double>.normal(7, i), SIMD8<Double>.randomSign(7, i))
      for k in 0..<16 { XCTAssertEqual(s[k], z[k] < 0 ? -1 : 1) }
      for k in 0..<8 { XCTAssertEqual(t[k], y[k] < 0 ? -1 : 1) }
    }
  }

  func testPartsMakeUpAllLines() {
    for (lines, length) in [(0, 5), (1, 1 << 20), (7, 1 << 14), (100, 1 << 12), (1 << 20, 1), (3, 1)] {
      let parts = Parts(lines, of: length)
      XCTAssertLessThanOrEqual(parts.count, max(1, lines))
      let seen = UnsafeMutablePointer<Int32>.allocate(capacity: max(1, lines))
      defer { seen.deallocate() }
      seen.initialize(repeating: 0, count: max(1, lines))
      nonisolated(unsafe) let out = seen
      let sum = parts.sum { _, range in
        for i in range { out[i] += 1 }
        return Double(range.count)
      }
      XCTAssertEqual(sum, Double(lines))
      for i in 0..<lines { XCTAssertEqual(seen[i], 1) }
    }
  }

  func testExponentialOfALane() {
    var worst = 0.0
    for start in stride(from: -100.0, to: 88.0, by: 0.37) {
      let x = SIMD16<Float>((0..<16).map { Float(start + Double($0) * 0.02) })
      let y = SIMD16<Float>.exp(x)
      for i in 0..<16 where x[i] > -87 && x[i] < 88 {
        worst = max(worst, abs(Double(y[i]) / Foundation.exp(Double(x[i])) - 1))
      }
    }
    XCTAssertLessThan(worst, 3e-7)
    XCTAssertTrue(SIMD16<Float>.exp(SIMD16<Float>(repeating: .nan))[3].isNaN)
    XCTAssertEqual(SIMD16<Float>.exp(SIMD16<Float>(repeating: -200))[0], 0)
  }

  /// expm1 for x ≤ 0, tanh and log: the digits that small arguments have, and the ends of the range.
  func testVectorFunctions() {
    func errors<L: Lane>(_ x: [Double], _ vector: (L) -> L, _ exact: (Double) -> Double) -> Double {
      var worst = 0.0
      for a in x {
        let given = Double(L.Element(a)), found = vector(L(given)).wide.low[3], want = exact(given)
        if want != 0 { worst = max(worst, abs(found / want - 1) / Double(L.Element.ulpOfOne)) }
      }
      return worst
    }
    let sizes = (-300...60).map { exp2(Double($0) / 8) }, below = sizes.map { -$0 }.filter { $0 > -80 }
    let both = sizes + sizes.map { -$0 }
    XCTAssertLessThan(errors(below, { SIMD16<Float>.expm1($0) }, { Foundation.expm1($0) }), 3)
    XCTAssertLessThan(errors(below, { SIMD8<Double>.expm1($0) }, { Foundation.expm1($0) }), 3)
    XCTAssertLessThan(errors(both, { SIMD16<Float>.tanh($0) }, { Foundation.tanh($0) }), 5)
    XCTAssertLessThan(errors(both, { SIMD8<Double>.tanh($0) }, { Foundation.tanh($0) }), 5)
    let wide = (-1074...1023).map { 1.3 * exp2(Double($0)) } + (1...400).map { 0.5 + Double($0) / 200 }
    XCTAssertLessThan(errors(wide, { SIMD8<Double>.log($0) }, { Foundation.log($0) }), 2)
    func log(_ x: Double) -> Double { SIMD8<Double>.log(SIMD8(repeating: x))[5] }
    XCTAssertEqual([log(0), log(.infinity), log(1)], [-.infinity, .infinity, 0])
    XCTAssertTrue(log(-1).isNaN && log(.nan).isNaN)
    XCTAssertTrue(SIMD16<Float>.expm1(SIMD16<Float>(repeating: .nan))[3].isNaN)
    XCTAssertEqual(SIMD16<Float>.tanh(SIMD16<Float>(repeating: -.infinity))[0], -1)
    XCTAssertEqual(SIMD8<Double>.pow(SIMD8(repeating: 8), 1.0 / 3)[0], 2, accuracy: 1e-15)
    XCTAssertTrue(SIMD8<Double>.any(SIMD8<Double>.less(SIMD8(0, 0, 0, 0, 0, 0, 1, 0), SIMD8(repeating: 1))))
    XCTAssertFalse(SIMD8<Double>.any(SIMD8<Double>.less(SIMD8(repeating: 1), SIMD8(repeating: 1))))
  }

  func testLaneHelpersAtTheirEdges() {
    let v = SIMD16<Float>([0, -0.0, 1, -2, .nan, .infinity, -.infinity, 3, 0, 0, 0, 0, 0, 0, 0, 0])
    let s = v.sign
    XCTAssertEqual(s[0], 0)
    XCTAssertEqual(s[2], 1)
    XCTAssertEqual(s[3], -1)
    XCTAssertTrue(s[4].isNaN)
    XCTAssertEqual(s[6], -1)
    XCTAssertTrue(SIMD16<Float>.max(v, SIMD16<Float>(0))[4].isNaN)
    XCTAssertTrue(SIMD16<Float>.max(SIMD16<Float>(0), v)[4].isNaN)
    XCTAssertEqual(v.clipped(to: 1.5)[5], 1.5)
    XCTAssertEqual(v.clipped(to: 1.5)[3], -1.5)
    XCTAssertEqual(v.shrunk(by: 0.5)[3], -1.5)
    XCTAssertEqual(v.shrunk(by: 1.0)[2], 0)
    XCTAssertEqual(SIMD16<Float>(0).divide(SIMD16<Float>(0))[0], 0)
  }

  func testStridedRunsVisitEveryElementOnce() {
    var buffer = (0..<120).map(Float.init)
    buffer.withUnsafeMutableBufferPointer { b in
      var shape: [Int64] = [3, 4, 5], strides: [Int64] = [40, 5, 2]
      shape.withUnsafeMutableBufferPointer { s in
        strides.withUnsafeMutableBufferPointer { t in
          var tensor = tw_tensor()
          tensor.data = UnsafeMutableRawPointer(b.baseAddress)
          (tensor.dtype, tensor.ndim, tensor.shape, tensor.strides) = (
            1, 3, UnsafePointer(s.baseAddress), UnsafePointer(t.baseAddress)
          )
          guard let v = try? View(tensor, "t") else { return XCTFail("a good view was refused") }
          let l = Layout(v)
          defer { l.release() }
          var out = [Float](repeating: -1, count: 60)
          // any cut gives the same elements
          for cut in [1, 7, 13, 60] {
            var i = 0
            while i < 60 {
              let n = min(cut, 60 - i)
              out.withUnsafeMutableBufferPointer { l.read(i, n, $0.baseAddress! + i, scale: 1) }
              i += n
            }
            var k = 0
            for a in 0..<3 {
              for c in 0..<4 { for d in 0..<5 { XCTAssertEqual(out[k], Float(a * 40 + c * 5 + d * 2)); k += 1 } }
            }
          }
        }
      }
    }
  }

  func testThreadsRunEveryTaskOnce() {
    for threads in [1, 2, 3, 5] {
      Threads.setCount(threads)
      for count in [0, 1, 2, 100] {
        let hits = UnsafeMutablePointer<Int64>.allocate(capacity: max(1, count))
        hits.initialize(repeating: 0, count: max(1, count))
        defer { hits.deallocate() }
        for _ in 0..<50 { Threads.run(count, parallel: true) { i in twi_fetch_add(hits + i, 1) } }
        for i in 0..<count { XCTAssertEqual(hits[i], 50) }
      }
    }
    Threads.setCount(2)
  }

  /// Every way to multiply bfloat16 that this processor has, beside sums in double of the rounded operands.
  func testProductsOfBFloat16() throws {
    for (m, n, k) in [(1, 1, 1), (5, 7, 3), (33, 50, 70), (64, 31, 129), (40, 3, 2100)] {
      let a = normals(m * k, 1), b = normals(k * n, 2), c = normals(m * n, 3)
      for means in BF16Products.Means.allCases where means.available {
        let room = UnsafeMutableRawPointer.allocate(
          byteCount: 2 * BF16Products.space(lines: 2 * max(m, n), inner: max(m, n, k)), alignment: 64)
        defer { room.deallocate() }
        let products = BF16Products(room, by: means)
        func rounded(_ x: Float) -> Double { Double(floatFromBF16(bf16FromFloat(x))) }
        /// Checks entry (i, j) against Σ x·y, each of `inner` numbers.
        func check(_ value: Float, _ start: Double, _ x: (Int) -> Float, _ y: (Int) -> Float, _ inner: Int) {
          var sum = start, size = abs(start)
          for l in 0..<inner {
            sum += rounded(x(l)) * rounded(y(l))
            size += abs(rounded(x(l)) * rounded(y(l)))
          }
          XCTAssertEqual(Double(value), sum, accuracy: Double(inner + 4) * 0x1p-24 * size, "\(means) \(m) \(n) \(k)")
        }
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
          var out = c
          try products.multiply(a, transposed: ta, b, transposed: tb, into: &out, m, n, k, alpha: 1, beta: 0.5)
          for i in 0..<m {
            for j in 0..<n {
              let start = 0.5 * Double(c[i * n + j])
              check(
                out[i * n + j], start, { ta ? a[$0 * m + i] : a[i * k + $0] }, { tb ? b[j * k + $0] : b[$0 * n + j] }, k
              )
            }
          }
        }
        for transposed in [false, true] {
          var out = [Float](repeating: .nan, count: m * m)
          try products.gram(a, transposed: transposed, into: &out, m, k)
          for i in 0..<m {
            for j in 0..<m {
              let row = { (r: Int) in { (l: Int) in transposed ? a[l * m + r] : a[r * k + l] } }
              check(out[i * m + j], 0, row(i), row(j), k)
              XCTAssertEqual(out[i * m + j], out[j * m + i])
            }
          }
        }
      }
    }
  }

  private func normals(_ n: Int, _ seed: UInt64) -> [Float] {
    (0..<n).map { Float(Random.normal(seed, $0)) }
  }
}
