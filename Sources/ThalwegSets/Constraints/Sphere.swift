import Glibc
import ThalwegCore

/// Tensors of one norm.
///
///     tangent: u − x·⟨x, u⟩/r²     project: r·w/‖w‖, the first basis vector for w = 0
///     retract: exp      cos(‖u‖/r)·x + r·sin(‖u‖/r)·u/‖u‖, brought back to the norm r;  u = 0 leaves x bit for bit
///              project  r·(x + u)/‖x + u‖
///     transport: u − ⟨y, u⟩/(r² + ⟨x, y⟩)·(x + y), the tangent part at y for y = −x
///     argmin⟨g, y⟩ = −r·g/‖g‖
///     log: the part of y − x tangent at x, of length θ·r;  distance: θ·r, θ = 2·atan2(‖x − y‖, ‖x + y‖)
///
/// Differs  nothing from geoopt's SphereExact with r = 1.
/// Source   textbook; Absil, Mahony and Sepulchre, 2008.
struct Sphere: Manifold {
  static let method = Method(
    "sphere", .constraint, "Tensors of one norm.",
    rule: """
      tangent: u - x*<x, u>/r^2;  project: r*w/|w|;  argmin <g, y> = -r*g/|g|
      retract: cos(|u|/r)*x + r*sin(|u|/r)*u/|u| (exp), or r*(x + u)/|x + u| (project)
      """,
    source: "Absil, Mahony, Sepulchre, 2008",
    parameters: [
      .number("radius", 1, .above(0), "the norm r of the whole tensor"),
      .choice("retraction", ["exp", "project"], "how a tangent step becomes a point"),
    ])
  static var needsFinite: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {}

  let round: Round
  init(_ h: Hyper) { round = Round(radius: h.radius, geodesic: h.is("retraction", "exp"), method: "sphere") }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) { try round.project(w.v, .whole(w.shape)) }
  static var minimises: Bool { true }
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) { try round.minimise(w.v, .whole(w.shape)) }
  func tangent<T: Real>(_ w: Whole<T>) throws(Failure) { try round.tangent(w, .whole(w.shape)) }
  func retract<T: Real>(_ w: Whole<T>) throws(Failure) { try round.retract(w, .whole(w.shape)) }
  func transport<T: Real>(_ w: Whole<T>) throws(Failure) { try round.transport(w, .whole(w.shape)) }
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) { try squaredLengths(w, .whole(w.shape)) }
  func inner<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] { products(w, .whole(w.shape)) }
  func exponential<T: Real>(_ w: Whole<T>) throws(Failure) { try round.exponential.retract(w, .whole(w.shape)) }
  func logarithm<T: Real>(_ w: Whole<T>) throws(Failure) { try round.logarithm(w, .whole(w.shape)) }
  func distances<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] { round.distances(w, .whole(w.shape)) }
}

/// Matrices whose rows have norm one; a vector is one row.
///
///     tangent, project, retract and the minimiser are those of `sphere` with r = 1, row by row
///     transport: the tangent part at the new point
///
/// Differs  pymanopt's Oblique has columns of norm one. As a constraint it is the hard form of `norm_loss`.
/// Source   textbook; Absil and Gallivan, 2006.
struct Oblique: Manifold {
  static let method = Method(
    "oblique", .constraint, "Matrices whose rows have norm one; a vector is one row.",
    rule: """
      tangent: u_r - x_r*<x_r, u_r>;  project: w_r/|w_r|;  argmin <g, y> = -g_r/|g_r|
      retract: cos|u_r|*x_r + sin|u_r|*u_r/|u_r| (exp), or (x_r + u_r)/|x_r + u_r| (project)
      """,
    source: "Absil, Gallivan, 2006",
    parameters: [.choice("retraction", ["exp", "project"], "how a tangent step becomes a point")])
  static var needsFinite: Bool { true }

  let round: Round
  init(_ h: Hyper) { round = Round(radius: 1, geodesic: h.is("retraction", "exp"), method: "oblique") }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) { try round.project(w.v, .rows(w.shape)) }
  static var minimises: Bool { true }
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) { try round.minimise(w.v, .rows(w.shape)) }
  func tangent<T: Real>(_ w: Whole<T>) throws(Failure) { try round.tangent(w, .rows(w.shape)) }
  func retract<T: Real>(_ w: Whole<T>) throws(Failure) { try round.retract(w, .rows(w.shape)) }
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) { try squaredLengths(w, .rows(w.shape)) }
  func inner<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] { products(w, .rows(w.shape)) }
  func exponential<T: Real>(_ w: Whole<T>) throws(Failure) { try round.exponential.retract(w, .rows(w.shape)) }
  func logarithm<T: Real>(_ w: Whole<T>) throws(Failure) { try round.logarithm(w, .rows(w.shape)) }
  func distances<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] { round.distances(w, .rows(w.shape)) }
  static func pointAxes(_ shape: Shape) -> Int { shape.ndim >= 2 ? 1 : 0 }
}

/// Spheres of one radius, one for each slice of neighbouring elements.
struct Round: Sendable {
  let radius: Double, geodesic: Bool, method: String
  /// The same with the exponential map as its retraction.
  var exponential: Round { Round(radius: radius, geodesic: true, method: method) }

  func project<T: Real>(_ x: UnsafeMutablePointer<T>, _ s: Slices) throws(Failure) {
    let near = 4 * Double(T.ulpOfOne) * radius
    let norms = try s.setNorms(x) { abs($0 - radius) <= near ? nil : radius }
    for k in 0..<s.count where norms[k] == 0 && s.length > 0 { x[s.start(k)] = T(radius) }
  }
  func minimise<T: Real>(_ g: UnsafeMutablePointer<T>, _ s: Slices) throws(Failure) {
    let norms = try s.setNorms(g) { _ in -radius }
    for k in 0..<s.count where norms[k] == 0 && s.length > 0 { g[s.start(k)] = T(radius) }
  }
  func tangent<T: Real>(_ w: Whole<T>, _ s: Slices) throws(Failure) {
    try finite(w.v, w.count, method)
    try finite(w.w, w.count, method)
    for k in 0..<s.count {
      let u = w.v + s.start(k), x = w.w + s.start(k)
      let along = Flat.dot(x, u, s.length) / (radius * radius)
      Flat.blend(1, u, -along, x, into: u, s.length)
    }
  }
  func transport<T: Real>(_ w: Whole<T>, _ s: Slices) throws(Failure) {
    for k in 0..<s.count {
      let u = w.v + s.start(k), x = w.w + s.start(k), y = w.slots[0] + s.start(k), square = radius * radius
      let products = Flat.products(x, y, u, s.length), below = square + products.xy, along = products.yu
      if below > 4 * Double(T.ulpOfOne) * square {
        Flat.blend(1, u, -along / below, x, -along / below, y, into: u, s.length)
      } else {
        Flat.blend(1, u, -along / square, y, into: u, s.length)
      }
    }
  }
  func retract<T: Real>(_ w: Whole<T>, _ s: Slices) throws(Failure) {
    for k in 0..<s.count {
      let u = w.v + s.start(k), x = w.w + s.start(k), products = Flat.products(x, u, s.length)
      _ = try Flat.norm(products.xx, of: x, s.length)
      let angle = try Flat.norm(products.yy, of: u, s.length) / radius
      if angle == 0 {
        u.update(from: x, count: s.length)
        continue
      }
      let (a, b) = geodesic ? (cos(angle), sin(angle) / angle) : (1, 1)
      // ‖a·x + b·u‖²: from the products, and where they nearly cancel from the sums
      let size = a * a * products.xx + b * b * products.yy, square = size + 2 * a * b * products.xy
      let ordinary = size > 1e-280 && size < 1e280
      let norm =
        ordinary && square > 0.5 * size
        ? square.squareRoot() : Flat.norm(a, x, b, u, s.length, unit: ordinary ? 1 : radius * max(1, angle))
      if norm == 0 {  // a step that ends in the centre: the projection of 0
        u.update(repeating: 0, count: s.length)
        u[0] = T(radius)
      } else {
        Flat.blend(a * (radius / norm), x, b * (radius / norm), u, into: u, s.length)
      }
    }
  }
}

extension Round {
  /// ‖x − y‖ and ‖x + y‖.
  private func chords<T: Real>(_ x: UnsafePointer<T>, _ y: UnsafePointer<T>, _ n: Int) -> (apart: Double, along: Double)
  {
    (Flat.norm(1, x, -1, y, n, unit: radius), Flat.norm(1, x, 1, y, n, unit: radius))
  }
  /// Exact to rounding for neighbours and for opposites, unlike the arc cosine.
  func distances<T: Real>(_ w: Whole<T>, _ s: Slices) -> [Double] {
    (0..<s.count).map { k in
      let c = chords(w.w + s.start(k), w.v + s.start(k), s.length)
      return 2 * radius * atan2(c.apart, c.along)
    }
  }
  func logarithm<T: Real>(_ w: Whole<T>, _ s: Slices) throws(Failure) {
    try finite(w.v, w.count, method)
    try finite(w.w, w.count, method)
    for k in 0..<s.count {
      let y = w.v + s.start(k), x = UnsafePointer(w.w + s.start(k)), n = s.length
      let c = chords(x, UnsafePointer(y), n), length = 2 * radius * atan2(c.apart, c.along)
      Flat.blend(1, UnsafePointer(y), -1, x, into: y, n)
      let along = Flat.dot(x, UnsafePointer(y), n) / (radius * radius)
      Flat.blend(1, UnsafePointer(y), -along, x, into: y, n)
      let size = Flat.norm(UnsafePointer(y), n)
      // between opposites the part that is left is rounding
      guard c.along > 4 * Double(T.ulpOfOne) * radius || n == 0 else {
        throw Failure(Status.numeric, "\(method): a point has no logarithm at its opposite, many geodesics lead there")
      }
      if size > 0 { Flat.scale(UnsafePointer(y), by: length / size, into: y, n) }
    }
  }
}

extension Slices {
  /// Gives every slice a norm, of the other sign for a turn; nil leaves it, and 0 stays. Returns the norms before.
  func setNorms<T: Real>(_ x: UnsafeMutablePointer<T>, _ new: (Double) -> Double?) throws(Failure) -> [Double] {
    let before = try norms(x)
    // of one that is too short for their quotient first a multiple is taken
    let lift = T.isDouble ? 0x1p600 : 0x1p100
    func factor(_ target: Double?, _ norm: Double) -> Double { norm == 0 ? 1 : target.map { $0 / norm } ?? 1 }
    func isShort(_ k: Int) -> Bool { !T(factor(new(before[k]), before[k])).isFinite }
    let short = before.indices.filter(isShort)
    var factors = before.map { factor(new($0), $0) }
    for k in short { factors[k] = lift }
    scale(x, by: factors)
    guard !short.isEmpty else { return before }
    let longer = try norms(x)
    factors = [Double](repeating: 1, count: before.count)
    for k in short { factors[k] = factor(new(before[k]), longer[k]) }
    scale(x, by: factors)
    return before
  }
}

extension Flat {
  /// ‖a·x + b·y‖, in double, by squares of multiples of a unit.
  static func norm<T: Real>(
    _ a: Double, _ x: UnsafePointer<T>, _ b: Double, _ y: UnsafePointer<T>, _ n: Int, unit: Double
  ) -> Double {
    unit * squaredNorm(a / unit, x, b / unit, y, n).squareRoot()
  }
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private static func squaredNorm<T: Real>(
    _ a: Double, _ x: UnsafePointer<T>, _ b: Double, _ y: UnsafePointer<T>, _ n: Int
  ) -> Double {
    typealias L = T.Vector
    var sum = SIMD8<Double>(repeating: 0), i = 0, rest = 0.0
    while i &+ L.width <= n {
      let (u, v) = (L.load(x + i).wide, L.load(y + i).wide)
      let (low, high) = (a * u.low + b * v.low, a * u.high + b * v.high)
      sum += low * low + high * high
      i &+= L.width
    }
    while i < n {
      let z = a * Double(x[i]) + b * Double(y[i])
      rest += z * z
      i &+= 1
    }
    return sum.sum() + rest
  }
}
