import Glibc
import ThalwegCore

/// Points of hyperbolic space in the ball of Poincaré, one along every line of the last axis.
///
///     λ = 2/(1 − c‖x‖²)     tangent: g/λ²
///     retract: exp      x ⊕ tanh(√c·λ‖u‖/2)·u/(√c·‖u‖)
///              project  x + u
///     project: points with ‖x‖ > (1 − ε)/√c are pulled to that norm; so is the result of a retraction
///     transport: gyr[y, −x]u·λ(x)/λ(y)     inner: λ²⟨u, v⟩
///     distance: d = (2/√c)·asinh(√c·‖x − y‖/√((1 − c‖x‖²)(1 − c‖y‖²)))
///     log: the direction of (1 − c‖x‖²)(y − x) − c‖x − y‖²·x, which is that of −x ⊕ y, of length d/λ
///     x ⊕ y = ((1 + 2c⟨x,y⟩ + c‖y‖²)x + (1 − c‖x‖²)y)/(1 + 2c⟨x,y⟩ + c²‖x‖²‖y‖²)
///
/// A step u = 0 leaves x bit for bit. In float32 ε counts as at least 4e-3.
/// Differs  geoopt's PoincareBall has retraction=project, its PoincareBallExact has exp.
/// Source   Nickel and Kiela, 2017, arXiv:1705.08039; Bécigneul and Ganea, 2019, arXiv:1810.00760.
struct PoincareBall: Manifold {
  static let method = Method(
    "poincare_ball", .constraint, "Points of hyperbolic space in the ball of Poincare, one a line of the last axis.",
    rule: """
      lambda = 2/(1 - c*|x|^2);  tangent: g/lambda^2;  project: norms above (1 - eps)/sqrt(c) are cut to it
      retract: x (+) tanh(sqrt(c)*lambda*|u|/2)*u/(sqrt(c)*|u|) (exp), or x + u (project), then project
      """,
    source: "Nickel, Kiela, 2017, arXiv:1705.08039; Becigneul, Ganea, 2019, arXiv:1810.00760",
    parameters: [
      .number("c", 1, .above(0), "minus the curvature"),
      .number("eps", 1e-5, .between(0, 1, lowOpen: true, highOpen: true), "margin at the boundary"),
      .choice("retraction", ["exp", "project"], "how a tangent step becomes a point"),
    ])
  static var mayFail: Bool { true }

  let c, eps: Double, geodesic: Bool
  init(_ h: Hyper) { (c, eps, geodesic) = (h.c, h.eps, h.is("retraction", "exp")) }

  /// The factor that pulls a point of this norm into the ball; 1 inside.
  private func pull<T: Real>(_ norm: Double, _: T.Type) -> Double {
    let edge = (1 - (T.isDouble ? eps : max(eps, 4e-3))) / c.squareRoot()
    return norm > edge * (1 + 4 * Double(T.ulpOfOne)) ? edge / norm : 1
  }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let points = Slices.along(-1, w.shape)
    points.scale(w.v, by: try points.norms(w.v).map { pull($0, T.self) })
  }
  func tangent<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, "poincare_ball")
    let points = Slices.along(-1, w.shape)
    points.scale(
      w.v,
      by: try points.norms(w.w).map {
        let x = $0 * pull($0, T.self), half = (1 - c * x * x) / 2
        return half * half
      })
  }
  func retract<T: Real>(_ w: Whole<T>) throws(Failure) { try retract(w, geodesic) }
  func exponential<T: Real>(_ w: Whole<T>) throws(Failure) { try retract(w, true) }
  private func retract<T: Real>(_ w: Whole<T>, _ geodesic: Bool) throws(Failure) {
    let points = Slices.along(-1, w.shape), n = points.length, root = c.squareRoot()
    for s in 0..<points.count {
      let u = w.v + points.start(s), x = UnsafePointer(w.w + points.start(s))
      let products = Flat.products(x, u, n)
      let size = try Flat.norm(products.xx, of: x, n), step = try Flat.norm(products.yy, of: u, n)
      if step == 0 {
        u.update(from: x, count: n)
        continue
      }
      // the point is ofX·x + ofU·u
      var ofX = pull(size, T.self), ofU = 1.0
      if geodesic {
        let square = ofX * ofX * size * size, lambda = 2 / (1 - c * square)
        let factor = tanh(root * lambda * step / 2) / (root * step)
        let along = factor * ofX * products.xy, length = factor * step
        let below = 1 + 2 * c * along + c * c * square * length * length
        (ofX, ofU) = ((1 + 2 * c * along + c * length * length) / below * ofX, (1 - c * square) / below * factor)
      }
      Flat.blend(ofX, x, ofU, UnsafePointer(u), into: u, n)
      let inside = pull(Flat.norm(UnsafePointer(u), n), T.self)
      if inside != 1 { Flat.blend(inside, UnsafePointer(u), 0, UnsafePointer(u), into: u, n) }
    }
  }
  static func pointAxes(_ shape: Shape) -> Int { max(0, shape.ndim - 1) }
  func orthogonal<T: Real>(_ w: Whole<T>) throws(Failure) {}
  func inner<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] {
    let flat = products(w, .along(-1, w.shape)), norms = try Slices.along(-1, w.shape).norms(w.w)
    return zip(flat, norms).map { product, norm in
      let half = (1 - c * square(norm * pull(norm, T.self))) / 2
      return product / (half * half)
    }
  }
  private func square(_ x: Double) -> Double { x * x }
  /// The distance of two points, with what their logarithm needs: their factors, ‖x − y‖² and 1 − c‖x‖².
  private func apart<T: Real>(_ x: UnsafePointer<T>, _ y: UnsafePointer<T>, _ n: Int) throws(Failure) -> (
    distance: Double, ofX: Double, ofY: Double, gap: Double, room: Double
  ) {
    let root = c.squareRoot(), products = Flat.products(x, y, n)
    let xs = try Flat.norm(products.xx, of: x, n), ys = try Flat.norm(products.yy, of: y, n)
    let (a, b) = (pull(xs, T.self), pull(ys, T.self)), (p, q) = (root * a * xs, root * b * ys)
    let room = (1 - p) * (1 + p), gap = Flat.norm(a, x, -b, y, n, unit: max(a * xs, b * ys, 1e-300))
    return (2 / root * asinh(root * gap / (room * (1 - q) * (1 + q)).squareRoot()), a, b, gap * gap, room)
  }
  func distances<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] {
    let points = Slices.along(-1, w.shape)
    var out = [Double](repeating: 0, count: points.count)
    for s in out.indices where points.length > 0 {
      out[s] = try apart(w.w + points.start(s), w.v + points.start(s), points.length).distance
    }
    return out
  }
  func logarithm<T: Real>(_ w: Whole<T>) throws(Failure) {
    let points = Slices.along(-1, w.shape), n = points.length
    if n == 0 { return }
    for s in 0..<points.count {
      let y = w.v + points.start(s), x = UnsafePointer(w.w + points.start(s))
      let from = try apart(x, UnsafePointer(y), n)
      Flat.blend(from.ofY, UnsafePointer(y), -from.ofX, x, into: y, n)
      Flat.blend(from.room, UnsafePointer(y), -c * from.gap * from.ofX, x, into: y, n)
      let size = Flat.norm(UnsafePointer(y), n)
      if size > 0 { Flat.scale(UnsafePointer(y), by: from.distance * from.room / 2 / size, into: y, n) }
    }
  }
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) {
    let points = Slices.along(-1, w.shape), n = points.length
    for s in 0..<points.count {
      let x = UnsafePointer(w.w + points.start(s)), u = UnsafePointer(w.v + points.start(s))
      let products = Flat.products(x, u, n), size = try Flat.norm(products.xx, of: x, n)
      let inside = size * pull(size, T.self)
      let length = 2 / (1 - c * inside * inside) * (try Flat.norm(products.yy, of: u, n))
      w.slots[0][s] = T(length * length)
    }
  }
  /// The gyration gyr[y, −x], times λ(x)/λ(y).
  func transport<T: Real>(_ w: Whole<T>) throws(Failure) {
    let points = Slices.along(-1, w.shape), n = points.length
    for s in 0..<points.count {
      let u = w.v + points.start(s)
      let x = UnsafePointer(w.w + points.start(s)), y = UnsafePointer(w.slots[0] + points.start(s))
      let products = Flat.products(x, y, u, n)
      let size = try Flat.norm(products.xx, of: x, n), end = try Flat.norm(products.yy, of: y, n)
      // a is the end, b minus the start
      let (to, from) = (pull(end, T.self), -pull(size, T.self))
      let (aa, bb) = (to * to * end * end, from * from * size * size)
      let ab = to * from * products.xy, av = to * products.yu, bv = from * products.xu
      let below = 1 + 2 * c * ab + c * c * aa * bb
      let p = 2 * c * (bv * (1 + 2 * c * ab) - c * av * bb) / below, q = -2 * c * (c * bv * aa + av) / below
      let factor = (1 - c * aa) / (1 - c * bb)
      Flat.blend(factor, UnsafePointer(u), factor * p * to, y, factor * q * from, x, into: u, n)
    }
  }
}

/// Points of hyperbolic space on the hyperboloid, one along every line of the last axis.
///
///     ⟨u, v⟩ = −u₀v₀ + Σ uᵢvᵢ;  points have ⟨x, x⟩ = −1/c and x₀ > 0
///     tangent: flip the sign of g₀, then u + c⟨x, u⟩·x     project: x₀ anew from the rest
///     retract: cosh(n)·x + sinh(n)/n·u, n = √(c⟨u, u⟩), then x₀ anew;  u = 0 leaves x bit for bit
///     transport: u + c⟨y, u⟩/(1 − c⟨x, y⟩)·(x + y)     inner: ⟨u, v⟩
///     distance: (2/√c)·asinh(a), a = ½√(c⟨x − y, x − y⟩)
///     log: asinh(a)/(a√(1 + a²))·(y − x − 2a²·x), u₀ anew from the rest
///
/// Differs  geoopt's Lorentz has k = 1/c.
/// Source   Nickel and Kiela, 2018, arXiv:1806.03417.
struct Lorentz: Manifold {
  static let method = Method(
    "lorentz", .constraint, "Points of hyperbolic space on the hyperboloid, one a line of the last axis.",
    rule: """
      <u, v> = -u_0*v_0 + sum u_i*v_i, <x, x> = -1/c, x_0 > 0;  tangent: flip the sign of g_0, then u + c*<x, u>*x
      retract: cosh(n)*x + sinh(n)/n*u, n = sqrt(c*<u, u>);  project and retract: x_0 anew from the rest
      """,
    source: "Nickel, Kiela, 2018, arXiv:1806.03417",
    parameters: [.number("c", 1, .above(0), "minus the curvature")])
  static var mayFail: Bool { true }

  let c: Double
  init(_ h: Hyper) { c = h.c }

  private func points(_ shape: Shape) -> Slices { .along(-1, shape) }
  /// x₀ of a point with these other coordinates.
  private func height<T: Real>(_ x: UnsafePointer<T>, _ n: Int) -> Double {
    (1 / c + Flat.squaredNorm(x + 1, n - 1)).squareRoot()
  }
  private func product<T: Real>(_ a: UnsafePointer<T>, _ b: UnsafePointer<T>, _ n: Int) -> Double {
    Flat.dot(a + 1, b + 1, n - 1) - Double(a[0]) * Double(b[0])
  }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, "lorentz")
    let points = points(w.shape)
    if points.length == 0 { return }
    for s in 0..<points.count {
      let x = w.v + points.start(s)
      x[0] = T(height(UnsafePointer(x), points.length))
      guard x[0].isFinite else {
        throw Failure(Status.numeric, "lorentz: a point's first coordinate leaves the range of numbers")
      }
    }
  }
  func tangent<T: Real>(_ w: Whole<T>) throws(Failure) {
    let points = points(w.shape)
    if points.length > 0 { for s in 0..<points.count { w.v[points.start(s)] = -w.v[points.start(s)] } }
    try orthogonal(w)
  }
  func orthogonal<T: Real>(_ w: Whole<T>) throws(Failure) {
    try forEach(w) { u, x, _, n in
      let along = product(x, UnsafePointer(u), n)
      Flat.blend(1, UnsafePointer(u), c * along, x, into: u, n)
      return along
    }
  }
  func transport<T: Real>(_ w: Whole<T>) throws(Failure) {
    try forEach(w) { u, x, s, n in
      let y = UnsafePointer(w.slots[0] + s), products = Flat.products(x + 1, y + 1, UnsafePointer(u) + 1, n - 1)
      let along = products.yu - Double(y[0]) * Double(u[0]), between = products.xy - Double(x[0]) * Double(y[0])
      let below = 1 - c * between, factor = c * along / below
      Flat.blend(1, UnsafePointer(u), factor, x, factor, y, into: u, n)
      return below == 0 ? .infinity : along + between  // (of points it is 2 and more)
    }
  }
  static func pointAxes(_ shape: Shape) -> Int { max(0, shape.ndim - 1) }
  func inner<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] {
    let points = points(w.shape), n = points.length
    return (0..<points.count).map {
      n == 0 ? 0 : product(UnsafePointer(w.v + points.start($0)), UnsafePointer(w.slots[0] + points.start($0)), n)
    }
  }
  func exponential<T: Real>(_ w: Whole<T>) throws(Failure) { try retract(w) }
  /// ⟨x − y, x − y⟩ of two points, their first coordinates being what the others say, without the difference of large
  /// numbers: with d and s the difference and the sum of the other coordinates,
  ///
  ///     (‖s‖²·‖d⊥‖² + 4‖d‖²/c)/(2/c + 2(x₀y₀ + ⟨x, y⟩)) where ⟨x, y⟩ ≥ 0, d⊥ the part of d orthogonal to s;
  ///     else 2(x₀y₀ − ⟨x, y⟩ − 1/c), or ‖d‖² − (x₀ − y₀)² near the origin
  private func gap<T: Real>(_ x: UnsafePointer<T>, _ y: UnsafePointer<T>, _ n: Int) -> Double {
    let (p, q) = (height(x, n), height(y, n)), along = Flat.dot(x + 1, y + 1, n - 1)
    var (dd, ss, sd) = (0.0, 0.0, 0.0)
    for i in 1..<n {
      let d = Double(x[i]) - Double(y[i]), s = Double(x[i]) + Double(y[i])
      (dd, ss, sd) = (dd + d * d, ss + s * s, sd + s * d)
    }
    if along < 0 {
      let turned = p * q - along
      return turned > 2 / c ? 2 * (turned - 1 / c) : max(0, dd - sd / (p + q) * (sd / (p + q)))
    }
    var across = 0.0
    let share = ss > 0 ? sd / ss : 0
    for i in 1..<n {
      let d = Double(x[i]) - Double(y[i]) - share * (Double(x[i]) + Double(y[i]))
      across += d * d
    }
    return (ss * across + 4 * dd / c) / (2 / c + 2 * (p * q + along))
  }
  func distances<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] {
    let points = points(w.shape), n = points.length
    return (0..<points.count).map {
      let x = UnsafePointer(w.w + points.start($0)), y = UnsafePointer(w.v + points.start($0))
      return n == 0 ? 0 : 2 / c.squareRoot() * asinh((c * gap(x, y, n)).squareRoot() / 2)
    }
  }
  func logarithm<T: Real>(_ w: Whole<T>) throws(Failure) {
    let points = points(w.shape), n = points.length
    if n == 0 { return }
    // (the first coordinates are not read)
    try finite(w.v, w.count, "lorentz")
    try finite(w.w, w.count, "lorentz")
    for s in 0..<points.count {
      let y = w.v + points.start(s), x = UnsafePointer(w.w + points.start(s))
      let a = (c * gap(x, UnsafePointer(y), n)).squareRoot() / 2
      let factor = a == 0 ? 1 : asinh(a) / (a * (1 + a * a).squareRoot())
      Flat.blend(1, UnsafePointer(y), -1, x, into: y, n)
      Flat.blend(factor, UnsafePointer(y), -2 * a * a * factor, x, into: y, n)
      y[0] = T(Flat.dot(x + 1, UnsafePointer(y) + 1, n - 1) / height(x, n))
    }
  }
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) {
    var k = 0
    try forEach(w) { u, x, _, n in
      let products = Flat.products(x, UnsafePointer(u), n)
      w.slots[0][k] = T(max(0, products.yy - 2 * Double(u[0]) * Double(u[0])))
      k += 1
      return products.xx + products.yy
    }
  }
  /// Calls `body` with the vector at every point, of n numbers; its first is the number `s` of the tensor. What `body`
  /// returns is not finite where one of the numbers is not.
  private func forEach<T: Real>(
    _ w: Whole<T>, _ body: (_ u: UnsafeMutablePointer<T>, _ x: UnsafePointer<T>, _ s: Int, _ n: Int) -> Double
  ) throws(Failure) {
    let points = points(w.shape), n = points.length
    if n == 0 { return }
    for s in 0..<points.count {
      let first = points.start(s)
      if body(w.v + first, UnsafePointer(w.w + first), first, n).isFinite { continue }
      try finite(w.v + first, n, "lorentz")
      try finite(w.w + first, n, "lorentz")
    }
  }
  func retract<T: Real>(_ w: Whole<T>) throws(Failure) {
    let points = points(w.shape), n = points.length
    if n == 0 { return }
    for s in 0..<points.count {
      let u = w.v + points.start(s), x = UnsafePointer(w.w + points.start(s))
      let products = Flat.products(x, UnsafePointer(u), n)
      if !(products.xx + products.yy).isFinite {
        try finite(x, n, "lorentz")
        try finite(u, n, "lorentz")
      }
      if products.yy == 0, (0..<n).allSatisfy({ u[$0] == 0 }) {
        u.update(from: x, count: n)
        continue
      }
      let length = max(0, c * (products.yy - 2 * Double(u[0]) * Double(u[0]))).squareRoot()
      Flat.blend(cosh(length), x, length == 0 ? 1 : sinh(length) / length, UnsafePointer(u), into: u, n)
      // not finite where one of the others is not
      u[0] = T(height(UnsafePointer(u), n))
      guard u[0].isFinite else {
        throw Failure(Status.numeric, "lorentz: a step of length \(text(length)) leaves the range of numbers")
      }
    }
  }
}
