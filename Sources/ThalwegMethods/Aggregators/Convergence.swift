import ThalwegCore

/// How well a rule that iterates converged. Hosts read both as numbers of the stage: `cagrad.residual`.
struct Convergence {
  /// By how much the conditions of an exact answer are missed, from 0 to 1, in units of what is compared: rounding
  /// leaves some 1e-16 times the tasks.
  var residual = 0.0
  var iterations = 0

  static let scalars = [Scalar("residual", tells: true), Scalar("iterations", tells: true)]
  init() {}
  init(_ residual: Double, _ iterations: Int) {
    (self.residual, self.iterations) = (residual.isNaN ? 1 : min(max(residual, 0), 1), iterations)
  }

  /// A minimum over the simplex at w, whose slopes there are Gc: all that have a weight are equal, and no other is
  /// smaller. In units of what the inner products would be if nothing cancelled.
  init(simplex G: Gramian, _ w: [Double], _ c: [Double], _ iterations: Int) {
    let norms = G.norms, slopes = G.times(c), mean = dot(w, slopes)
    let length = dot(norms, w.map(\.magnitude)), size = dot(norms, c.map(\.magnitude))
    let worst = G.indices.reduce(0.0) { worst, i in
      let miss = w[i] > 0 ? (slopes[i] - mean).magnitude : max(0, mean - slopes[i]), unit = (norms[i] + length) * size
      return max(worst, unit > 0 ? miss / unit : 0)
    }
    self.init(worst, iterations)
  }

  /// argmin vᵀGv subject to v ≥ u: the slope Gv is 0 where v > u and not negative elsewhere, by cosines.
  init(cone G: Gramian, _ v: [Double], atLeast u: [Double], _ iterations: Int) {
    let norms = G.norms, size = dot(norms, v.map(\.magnitude)), slopes = G.times(v)
    let worst = G.indices.reduce(0.0) { worst, k in
      let unit = norms[k] * size
      if unit == 0 { return worst }
      return max(worst, (v[k] > u[k] ? slopes[k].magnitude : max(0, -slopes[k])) / unit)
    }
    self.init(worst, iterations)
  }

  /// Into the scalars of a source.
  func put(_ io: SourceIO, from k: Int) {
    io.setScalar(k, residual)
    io.setScalar(k + 1, Double(iterations))
  }

  /// The worse of both, and all iterations.
  mutating func add(_ other: Convergence) {
    residual = max(residual, other.residual)
    iterations += other.iterations
  }
}

/// The lower triangular factor of a symmetric matrix that grows by a row and a column: k² operations each.
struct GrowingFactor {
  private var rows: [[Double]] = []
  var count: Int { rows.count }

  /// Takes what the new one has in common with those that are there, and with itself; false: it depends on them.
  mutating func append(_ row: [Double], _ own: Double) -> Bool {
    var l = [Double](repeating: 0, count: rows.count + 1), d = own
    for c in rows.indices {
      let other = rows[c]
      var x = row[c]
      for k in 0..<c { x -= l[k] * other[k] }
      x /= other[c]
      l[c] = x
      d -= x * x
    }
    guard d > 1e-15 * own else { return false }
    l[rows.count] = d.squareRoot()
    rows.append(l)
    return true
  }
  /// x with Ax = b.
  func solve(_ b: [Double]) -> [Double] {
    var x = b
    for r in rows.indices {
      let l = rows[r]
      for k in 0..<r { x[r] -= l[k] * x[k] }
      x[r] /= l[r]
    }
    for r in rows.indices.reversed() {
      let l = rows[r]
      x[r] /= l[r]
      for k in 0..<r { x[k] -= l[k] * x[r] }
    }
    return x
  }
}
