import CThalweg

@testable import ThalwegRunner
@testable import ThalwegCore
@testable import ThalwegMatrix
@testable import ThalwegMethods
@testable import ThalwegObjectives
@testable import ThalwegSets
@testable import ThalwegSolvers

/// A dense float64 tensor that regularizers and constraints may be tried on.
struct Tensor: Equatable {
  var values: [Double]
  var shape: [Int]

  init(_ values: [Double], _ shape: [Int]) { (self.values, self.shape) = (values, shape) }
  /// Standard normal numbers.
  init(random key: UInt64, _ shape: [Int], scale: Double = 1) {
    (values, self.shape) = ((0..<shape.reduce(1, *)).map { scale * Random.normal(key, $0) }, shape)
  }

  mutating func withView<R>(_ body: (View) throws -> R) throws -> R {
    let sides = shape.map(Int64.init)
    return try values.withUnsafeMutableBufferPointer { v in
      try sides.withUnsafeBufferPointer { s in
        try body(
          View(
            tw_tensor(
              data: v.baseAddress, dtype: DType.f64.rawValue, ndim: Int32(s.count), shape: s.baseAddress, strides: nil,
              flags: 0, role: 0, reserved: (0, 0, 0)), "tensor"))
      }
    }
  }
  var bits: [UInt64] { values.map(\.bitPattern) }
  static func - (a: Tensor, b: Tensor) -> Tensor { Tensor(zip(a.values, b.values).map { $0 - $1 }, a.shape) }
  func dot(_ b: Tensor) -> Double { zip(values, b.values).reduce(0) { $0 + $1.0 * $1.1 } }
  func moved(_ t: Double, along d: Tensor) -> Tensor { Tensor(zip(values, d.values).map { $0 + t * $1 }, shape) }
  var norm: Double { dot(self).squareRoot() }
}

extension RegularizerObject {
  func value(_ w: Tensor) throws -> Double {
    var w = w
    return try w.withView { try value([Operand($0)]) }
  }
  func gradient(_ w: Tensor) throws -> Tensor {
    var w = w, g = Tensor([Double](repeating: 0, count: w.values.count), w.shape)
    try w.withView { wv in try g.withView { try addGradient([Operand(wv)], 1, $0) } }
    return g
  }
  func prox(_ w: Tensor, _ t: Double) throws -> Tensor {
    var w = w
    try w.withView { try prox($0, t) }
    return w
  }
}

extension ConstraintObject {
  func project(_ w: Tensor) throws -> Tensor {
    var w = w
    try w.withView { try project($0) }
    return w
  }
  func minimise(_ g: Tensor) throws -> Tensor {
    var g = g, s = g
    try g.withView { gv in try s.withView { try minimise(gv, $0) } }
    return s
  }
  func tangent(_ x: Tensor, _ g: Tensor) throws -> Tensor {
    var x = x, g = g
    try x.withView { xv in try g.withView { try tangent(xv, $0) } }
    return g
  }
  func retract(_ x: Tensor, _ u: Tensor) throws -> Tensor {
    var x = x, u = u
    try x.withView { xv in try u.withView { try retract(xv, $0) } }
    return x
  }
}
