import Glibc
import ThalwegCore

/// Points of hyperbolic space in the ball of Poincaré, one along every line of the last axis.
///
///     λ = 2/(1 − c‖x‖²)     tangent: g/λ²
///     retract: exp      x ⊕ tanh(√c·λ‖u‖/2)·u/(√c·‖u‖)
///              project  x + u
///     project: points with ‖x‖ > (1 − ε)/√c are pulled to that norm; so is the result of a retraction
///     transport: gyr[y, −x]u·λ(x)/λ(y)     inner: λ²⟨u, v⟩
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

  let c, eps: Double, exponential: Bool
  init(_ h: Hyper) { (c, eps, exponential) = (h.c, h.eps, h.is("retraction", "exp")) }

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
  func retract<T: Real>(_ w: Whole<T>) throws(Failure) {
    let points = Slices.along(-1, w.shape), sizes = try points.norms(w.w), steps = try points.norms(w.v)
    for s in 0..<points.count {
      let u = w.v + points.start(s), x = w.w + points.start(s)
      if steps[s] == 0 {
        u.update(from: x, count: points.length)
        continue
      }
      let inside = pull(sizes[s], T.self)
      let p = (0..<points.length).map { inside * Double(x[$0]) }, step = (0..<points.length).map { Double(u[$0]) }
      var y = zip(p, step).map { $0 + $1 }
      if exponential {
        let root = c.squareRoot(), lambda = 2 / (1 - c * dot(p, p))
        let factor = tanh(root * lambda * steps[s] / 2) / (root * steps[s])
        y = add(p, step.map { factor * $0 })
      }
      let factor = pull(dot(y, y).squareRoot(), T.self)
      for i in y.indices { u[i] = T(factor * y[i]) }
    }
  }
  static func factors(_ h: Hyper, _ shape: Shape) -> Slices { .along(-1, shape) }
  func orthogonal<T: Real>(_ w: Whole<T>) throws(Failure) {}
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) {
    let points = Slices.along(-1, w.shape), sizes = try points.norms(w.w), lengths = try points.norms(w.v)
    for s in 0..<points.count {
      let x = sizes[s] * pull(sizes[s], T.self), length = 2 / (1 - c * x * x) * lengths[s]
      w.slots[0][s] = T(length * length)
    }
  }
  /// The gyration gyr[y, −x], times λ(x)/λ(y).
  func transport<T: Real>(_ w: Whole<T>) throws(Failure) {
    let points = Slices.along(-1, w.shape), sizes = try points.norms(w.w), ends = try points.norms(w.slots[0])
    for s in 0..<points.count {
      let first = points.start(s), u = w.v + first
      let (from, to) = (pull(sizes[s], T.self), pull(ends[s], T.self))
      let a = (0..<points.length).map { to * Double(w.slots[0][first + $0]) }
      let b = (0..<points.length).map { -from * Double(w.w[first + $0]) }
      let v = (0..<points.length).map { Double(u[$0]) }
      let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b)), (av, bv) = (dot(a, v), dot(b, v))
      let below = 1 + 2 * c * ab + c * c * aa * bb
      let p = 2 * c * (bv * (1 + 2 * c * ab) - c * av * bb) / below, q = -2 * c * (c * bv * aa + av) / below
      let factor = (1 - c * aa) / (1 - c * bb)
      for i in v.indices { u[i] = T(factor * (v[i] + p * a[i] + q * b[i])) }
    }
  }
  private func dot(_ a: [Double], _ b: [Double]) -> Double { zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } }
  private func add(_ x: [Double], _ y: [Double]) -> [Double] {
    let xy = dot(x, y), xx = dot(x, x), yy = dot(y, y)
    let (a, b) = (1 + 2 * c * xy + c * yy, 1 - c * xx), below = 1 + 2 * c * xy + c * c * xx * yy
    return zip(x, y).map { (a * $0 + b * $1) / below }
  }
}

/// Points of hyperbolic space on the hyperboloid, one along every line of the last axis.
///
///     ⟨u, v⟩ = −u₀v₀ + Σ uᵢvᵢ;  points have ⟨x, x⟩ = −1/c and x₀ > 0
///     tangent: flip the sign of g₀, then u + c⟨x, u⟩·x     project: x₀ anew from the rest
///     retract: cosh(n)·x + sinh(n)/n·u, n = √(c⟨u, u⟩), then x₀ anew;  u = 0 leaves x bit for bit
///     transport: u + c⟨y, u⟩/(1 − c⟨x, y⟩)·(x + y)
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
  private func height(_ x: [Double]) -> Double { (1 / c + x.dropFirst().reduce(0) { $0 + $1 * $1 }).squareRoot() }
  private func product(_ a: [Double], _ b: [Double]) -> Double {
    zip(a, b).reduce(-2 * a[0] * b[0]) { $0 + $1.0 * $1.1 }
  }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, "lorentz")
    let points = points(w.shape)
    if points.length == 0 { return }
    for s in 0..<points.count {
      let x = w.v + points.start(s)
      x[0] = T(height((0..<points.length).map { Double(x[$0]) }))
    }
  }
  func tangent<T: Real>(_ w: Whole<T>) throws(Failure) {
    let points = points(w.shape)
    if points.length > 0 { for s in 0..<points.count { w.v[points.start(s)] = -w.v[points.start(s)] } }
    try orthogonal(w)
  }
  func orthogonal<T: Real>(_ w: Whole<T>) throws(Failure) {
    try forEach(w) { u, x, _ in
      let along = c * product(x, u)
      for i in u.indices { u[i] += along * x[i] }
    }
  }
  func transport<T: Real>(_ w: Whole<T>) throws(Failure) {
    try forEach(w) { u, x, s in
      let y = x.indices.map { Double(w.slots[0][s + $0]) }, factor = c * product(y, u) / (1 - c * product(x, y))
      for i in u.indices { u[i] += factor * (x[i] + y[i]) }
    }
  }
  static func factors(_ h: Hyper, _ shape: Shape) -> Slices { .along(-1, shape) }
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) {
    var k = 0
    try forEach(w) { u, _, _ in
      w.slots[0][k] = T(max(0, product(u, u)))
      k += 1
    }
  }
  /// Changes the vector at every point; its first element is the number `s` of the tensor.
  private func forEach<T: Real>(_ w: Whole<T>, _ body: (_ u: inout [Double], _ x: [Double], _ s: Int) -> Void)
    throws(Failure)
  {
    try finite(w.v, w.count, "lorentz")
    try finite(w.w, w.count, "lorentz")
    let points = points(w.shape)
    if points.length == 0 { return }
    for s in 0..<points.count {
      let first = points.start(s), x = (0..<points.length).map { Double(w.w[first + $0]) }
      var u = (0..<points.length).map { Double(w.v[first + $0]) }
      body(&u, x, first)
      for i in u.indices { w.v[first + i] = T(u[i]) }
    }
  }
  func retract<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, "lorentz")
    try finite(w.w, w.count, "lorentz")
    let points = points(w.shape)
    if points.length == 0 { return }
    for s in 0..<points.count {
      let out = w.v + points.start(s), from = w.w + points.start(s)
      let u = (0..<points.length).map { Double(out[$0]) }, x = (0..<points.length).map { Double(from[$0]) }
      if u.allSatisfy({ $0 == 0 }) {
        out.update(from: from, count: points.length)
        continue
      }
      let n = max(0, c * product(u, u)).squareRoot(), rate = n == 0 ? 1 : sinh(n) / n
      var y = x.indices.map { cosh(n) * x[$0] + rate * u[$0] }
      y[0] = height(y)
      guard y.allSatisfy(\.isFinite) else {
        throw Failure(Status.numeric, "lorentz: a step of length \(text(n)) leaves the range of numbers")
      }
      for i in y.indices { out[i] = T(y[i]) }
    }
  }
}
