/// A tensor cut into runs of elements that belong together: slice (o, i) has the elements o·length·inner + k·inner + i,
/// k < length.
public struct Slices: Sendable {
  public var outer: Int, length: Int, inner: Int
  public var count: Int { outer &* inner }

  public static func whole(_ shape: Shape) -> Slices { Slices(outer: 1, length: shape.count, inner: 1) }
  /// The rows of the matrix view; a vector is one row.
  public static func rows(_ shape: Shape) -> Slices { Slices(outer: shape.rows, length: shape.columns, inner: 1) }
  /// Every element by itself.
  public static func elements(_ shape: Shape) -> Slices { Slices(outer: shape.count, length: 1, inner: 1) }
  public static func columns(_ shape: Shape) -> Slices { Slices(outer: 1, length: shape.rows, inner: shape.columns) }
  /// Every line along one axis, counted from the end when negative.
  public static func along(_ axis: Int, _ shape: Shape) -> Slices {
    let k = axis < 0 ? axis + shape.ndim : axis
    guard k >= 0, k < shape.ndim else { return whole(shape) }
    let d = shape.dimensions
    return Slices(outer: d[..<k].reduce(1, &*), length: d[k], inner: d[(k + 1)...].reduce(1, &*))
  }

  /// The parts that the first `axes` axes number.
  public static func points(_ axes: Int, _ shape: Shape) -> Slices {
    let d = shape.dimensions
    return Slices(outer: d.prefix(axes).reduce(1, &*), length: d.dropFirst(axes).reduce(1, &*), inner: 1)
  }

  /// Where slice s begins; its elements are `inner` apart.
  @inlinable @inline(__always) public func start(_ s: Int) -> Int { s / inner &* length &* inner &+ s % inner }

  /// The Euclidean norm of every slice; throws when one is not finite.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func norms<T: Real>(_ x: UnsafePointer<T>) throws(Failure) -> [Double] {
    var out = [Double](repeating: 0, count: count)
    if inner == 1 {
      for o in 0..<outer { out[o] = Flat.norm(x + o &* length, length) }
    } else {
      for o in 0..<outer {
        out.withUnsafeMutableBufferPointer { row in
          for k in 0..<length {
            let line = x + (o &* length &+ k) &* inner
            for i in 0..<inner { row[o &* inner &+ i] += Double(line[i]) * Double(line[i]) }
          }
        }
      }
      for s in 0..<count {
        let sum = out[s]
        out[s] = sum > 1e-280 && sum < 1e280 ? sum.squareRoot() : Flat.norm(x + start(s), length, stride: inner)
      }
    }
    guard out.allSatisfy(\.isFinite) else { throw Flat.noNorm }
    return out
  }

  /// x ← factor·x, slice by slice. A factor of 1 leaves the bits alone, a factor of 0 writes zeros.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func scale<T: Real>(_ x: UnsafeMutablePointer<T>, by factors: [Double]) {
    if inner == 1 {
      for o in 0..<outer where factors[o] != 1 {
        if factors[o] == 0 {
          (x + o &* length).update(repeating: 0, count: length)
        } else {
          Flat.scale(UnsafePointer(x) + o &* length, by: factors[o], into: x + o &* length, length)
        }
      }
      return
    }
    guard factors.allSatisfy(T.holds) else {
      let both = factors.map { Factor($0) }
      scale(x, by: both.map(\.first))
      return scale(x, by: both.map(\.second))
    }
    let narrow = factors.map { T($0) }
    for o in 0..<outer {
      for k in 0..<length {
        let line = x + (o &* length &+ k) &* inner
        for i in 0..<inner {
          let f = narrow[o &* inner &+ i]
          line[i] = f == 0 ? 0 : line[i] * f
        }
      }
    }
  }

  /// y ← y + factor·x, slice by slice.
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  public func add<T: Real>(_ x: UnsafePointer<T>, times factors: [Double], into y: UnsafeMutablePointer<T>) {
    if inner == 1 {
      for o in 0..<outer { Flat.add(x + o &* length, times: factors[o], into: y + o &* length, length) }
      return
    }
    let narrow = factors.map { T($0) }, wide = !factors.allSatisfy(T.holds)
    for o in 0..<outer {
      for k in 0..<length {
        let at = (o &* length &+ k) &* inner
        if wide {
          for i in 0..<inner { y[at &+ i] = T(Double(y[at &+ i]) + factors[o &* inner &+ i] * Double(x[at &+ i])) }
          continue
        }
        for i in 0..<inner { y[at &+ i] += narrow[o &* inner &+ i] * x[at &+ i] }
      }
    }
  }
}
