import ThalwegCore

/// A positive tensor as the means of its rows and columns over the last two axes; leading axes stand for many matrices.
struct FactoredMoment {
  let matrices, rows, columns: Int

  /// nil: the tensor has no two axes.
  init?(_ shape: Shape) {
    guard shape.ndim >= 2 else { return nil }
    (rows, columns) = (shape.dimensions[shape.ndim - 2], shape.dimensions[shape.ndim - 1])
    matrices = shape.count / max(1, rows &* columns)
  }
  /// Two slots of the right size.
  static func slots(_ r: Slot, _ c: Slot, _ shape: Shape) -> [Slot] {
    guard let f = FactoredMoment(shape) else { return [] }
    var (r, c) = (r, c)
    r.count = f.matrices &* f.rows
    c.count = f.matrices &* f.columns
    return [r, c]
  }

  /// r ← keep·r + (1 − keep)·(means of the rows of `square`), c likewise.
  func take<T: Real>(
    _ r: UnsafeMutablePointer<T>, _ c: UnsafeMutablePointer<T>, keep: Double, _ square: (Int) -> Double
  ) {
    var sums = [Double](repeating: 0, count: columns)
    for b in 0..<matrices {
      for j in 0..<columns { sums[j] = 0 }
      for i in 0..<rows {
        var sum = 0.0
        for j in 0..<columns {
          let x = square((b &* rows &+ i) &* columns &+ j)
          sum += x
          sums[j] += x
        }
        let at = b &* rows &+ i
        r[at] = T(keep * Double(r[at]) + (1 - keep) * sum / Double(columns))
      }
      for j in 0..<columns {
        let at = b &* columns &+ j
        c[at] = T(keep * Double(c[at]) + (1 - keep) * sums[j] / Double(rows))
      }
    }
  }

  /// out ← x/√(r/mean(r))/√c
  func divide<T: Real>(
    _ x: UnsafePointer<T>, _ r: UnsafePointer<T>, _ c: UnsafePointer<T>, into out: UnsafeMutablePointer<T>
  ) {
    for b in 0..<matrices {
      let r = r + b &* rows, c = c + b &* columns
      var mean = 0.0
      for i in 0..<rows { mean += Double(r[i]) }
      mean /= Double(rows)
      for i in 0..<rows {
        let row = (Double(r[i]) / mean).squareRoot()
        for j in 0..<columns {
          let at = (b &* rows &+ i) &* columns &+ j
          out[at] = T(Double(x[at]) / row / Double(c[j]).squareRoot())
        }
      }
    }
  }
}

/// Shortens u where its root mean square is above the threshold.
func clipRMS<T: Real>(_ u: UnsafeMutablePointer<T>, _ n: Int, _ threshold: Double) {
  guard n > 0 else { return }
  let rms = Flat.norm(u, n) / Double(n).squareRoot()
  if !(rms <= threshold) { Flat.scale(u, by: threshold / rms, into: u, n) }
}
