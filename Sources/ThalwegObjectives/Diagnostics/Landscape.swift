import Glibc
import ThalwegCore

/// A random direction scaled like the weights, to draw a loss along it.
///
///     filter: d_i ← d_i·|w_i|/(|d_i| + eps) for every slice of the first axis     layer: the same of the whole tensor
///     weight: d ← d ⊙ w     dfilter: d_i ← d_i/(|d_i| + eps)     dlayer: the same of the whole tensor
///     a tensor of one axis or none: d ← 0 (biasbn), or d ← w (keep)
///
/// w and d are (...), one tensor of the model; d is drawn from N(0, 1) by the host. A point of a plane is
/// w + a·d₁ + b·d₂, written each time from a copy of w. The value is the length of the direction.
/// Source   Li, Xu, Taylor, Studer, Goldstein, 2018, arXiv:1712.09913.
struct LandscapeDirection: Objective {
  static let method = Method(
    "landscape_direction", .diagnostic, "A random direction with the lengths of the filters of the weights.",
    rule: """
      filter: d_i <- d_i |w_i|/(|d_i| + eps) for each slice of the first axis;  layer: of the tensor;  weight: d <- d*w
      dfilter, dlayer: d_i/(|d_i| + eps);  a tensor of one axis: d <- 0 (biasbn), or w (keep)
      """,
    source: "Li, Xu, Taylor, Studer, Goldstein, 2018, arXiv:1712.09913",
    parameters: [
      .choice("norm", ["filter", "layer", "weight", "dfilter", "dlayer"], "what is scaled"),
      .choice("ignore", ["biasbn", "keep"], "tensors of one axis: no direction, or the weights themselves"),
      .eps(1e-10, "added to the length of a direction", .above(0)),
    ],
    inputs: [
      .constant("w", "...", "weights"), .constant("d", "...", "a random direction"),
      .result("direction", "...", "the direction, scaled"),
    ])
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], d = try x["d"], count = x.sizes.samples
    let shape = x.sizes.shape(LandscapeDirection.method.inputs[0]) ?? []
    let out = try cache?.keep("direction", count, T.self)
    if shape.count < 2 {
      if h.is("ignore", "keep") { out?.update(from: w, count: count) }
      return h.is("ignore", "keep") ? Flat.norm(w, count) : 0
    }
    let rows = h.is("norm", "filter") || h.is("norm", "dfilter") ? shape[0] : 1, length = count / rows
    let scaled = h.is("norm", "filter") || h.is("norm", "layer"), eps: Double = h.eps
    return Rows.sum(rows, work: 4 * length) { i in
      let own = w + i * length, random = d + i * length, at = i * length
      let factor = (scaled ? Flat.norm(own, length) : 1) / (Flat.norm(random, length) + eps)
      var sum = 0.0
      for c in 0..<length {
        let v = h.is("norm", "weight") ? Double(random[c]) * Double(own[c]) : factor * Double(random[c])
        out?[at + c] = T(v)
        sum += v * v
      }
      return sum
    }.squareRoot()
  }
}

/// A point of a line or plane through weights, written from a copy of them.
///
///     point = w + a·d1 + b·d2
///
/// w, d1 and d2 are (...), a and b numbers; without d2 it is a line. Each element is rounded once, so that the order of
/// the points of a grid does not count. The value is the distance from w.
/// Errors   TW_ERROR_NEEDS: one of b and d2 without the other.
/// Source   Li, Xu, Taylor, Studer, Goldstein, 2018, arXiv:1712.09913.
struct LandscapePoint: Objective {
  static let method = Method(
    "landscape_point", .diagnostic, "A point of a line or plane through weights.", rule: "point = w + a d1 + b d2",
    source: "Li, Xu, Taylor, Studer, Goldstein, 2018, arXiv:1712.09913",
    inputs: [
      .constant("w", "...", "weights"), .constant("d1", "...", "a direction"), .constant("a", "", "how far along it"),
      .constant("d2", "...", "another direction", optional: true),
      .constant("b", "", "how far along that", optional: true), .result("point", "...", "the point"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], d1 = try x["d1"], a = Double(try x["a"].pointee), count = x.sizes.samples
    let d2 = x.optional("d2"), b = x.optional("b")
    guard (d2 == nil) == (b == nil) else { throw Failure(Status.needs, "`d2` and `b` are needed together") }
    let point = try cache?.keep("point", count, T.self), far = b.map { Double($0.pointee) } ?? 0
    return Rows.sum(count, work: 4) { i in
      let move = a * Double(d1[i]) + (d2.map { far * Double($0[i]) } ?? 0)
      point?[i] = T(Double(w[i]) + move)
      return move * move
    }.squareRoot()
  }
}

/// The plane of a trajectory: the two directions along which weights moved most on their way to the last ones.
///
///     rows w_t − w_last, not centred; directions: their two leading right singular vectors
///     coordinates = rows·directions     explained = s_k²/Σ s²
///
/// trajectory is (t, d), the last row is where it ends; at least three rows. Directions that the trajectory does not
/// have are 0. In every direction the entry of the largest coordinate is positive. The value is what both explain.
/// Errors   TW_ERROR_SHAPE: fewer than three rows.
/// Source   Li, Xu, Taylor, Studer, Goldstein, 2018, arXiv:1712.09913.
struct LandscapePCA: Objective {
  static let method = Method(
    "landscape_pca", .diagnostic, "The two directions along which a trajectory of weights moved most.",
    rule:
      """
      rows w_t - w_last = U S V';  directions: the first two rows of V';  coordinates = rows V
      explained = s^2/sum s^2
      """,
    source: "Li, Xu, Taylor, Studer, Goldstein, 2018, arXiv:1712.09913",
    inputs: [
      .constant("trajectory", "t, d", "weights, one row a moment"), .result("directions", "2, d", "unit vectors"),
      .result("coordinates", "t, 2", "of the rows"), .result("explained", "2", "shares of the squared lengths"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = try x["trajectory"], t = x.sizes["t"], d = x.sizes["d"], space = Workspace()
    defer { space.close() }
    guard t > 2 else { throw Failure(Status.shape, "a plane needs at least 3 rows, got \(t)") }
    try refuseNonFinite(rows, t * d, "trajectory")
    let moved = try space.room(area(t, d), Double.self)
    for i in 0..<(t * d) { moved[i] = Double(rows[i]) - Double(rows[(t - 1) * d + i % d]) }
    try Memory.ask(area(8, t, t))
    var gram = [Double](repeating: 0, count: t * t)
    try LinearAlgebra.gram(moved, into: &gram, t, d)
    let eigen = try LinearAlgebra.Eigen(gram, t), all = (0..<t).reduce(0) { $0 + gram[$1 * t + $1] }
    let directions = try space.room(cache, "directions", 2 * d, T.self)
    let coordinates = try space.room(cache, "coordinates", 2 * t, T.self)
    var explained = [0.0, 0.0]
    for k in 0..<2 where eigen.values[k] > 1e-14 * all {
      let s = eigen.values[k].squareRoot()
      explained[k] = eigen.values[k] / all
      for c in 0..<d {
        var sum = 0.0
        for i in 0..<t { sum += eigen.vectors[i * t + k] * moved[i * d + c] }
        directions[k * d + c] = T(sum / s)
      }
      for i in 0..<t { coordinates[2 * i + k] = T(eigen.vectors[i * t + k] * s) }
    }
    try cache?.keep("explained", numbers: explained, T.self)
    return explained[0] + explained[1]
  }
}
