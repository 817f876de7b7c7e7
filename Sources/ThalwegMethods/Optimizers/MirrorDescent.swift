import Glibc
import ThalwegCore

/// Mirror descent: the gradient step is taken in the mirror of the parameters, whose map fits the set they live in.
///
///     simplex   θ ∝ θ·exp(−lr·g) along an axis, with sum `radius`, in logarithms
///     orthant   θ ← θ·exp(−lr·g)
///     pnorm     z = ∇(½|θ|_p²) = sign(θ)|θ|^(p−1)/|θ|_p^(p−2);   z ← z − lr·g;   θ = the same of z, with q = p/(p − 1)
///     l2        θ ← θ − lr·g
///
/// Exact zeros stay zero on the simplex and in the orthant.
///
/// State    none.
/// Differs  on the simplex and in the orthant an entry below zero counts as zero, and a slice of the simplex without a
///          positive entry becomes uniform; the norm of pnorm is that of the whole tensor. A step with lr = 0 leaves
///          all as it is.
/// Source   Nemirovski, Yudin, 1983; Beck, Teboulle, 2003; Bubeck, 2015, arXiv:1405.4980.
struct MirrorDescent: WholeRule {
  static let method = Method(
    "mirror_descent", .optimizer, "Mirror descent on the simplex, the orthant, in a p-norm, or as it is.",
    rule: """
      simplex: theta ~ theta*exp(-lr*g) along the axis, with sum radius;  orthant: theta <- theta*exp(-lr*g)
      pnorm: z = sign(theta)*|theta|^(p-1)/|theta|_p^(p-2), z <- z - lr*g, back with q = p/(p-1);  l2: theta - lr*g
      """,
    source: "Nemirovski, Yudin, 1983; Beck, Teboulle, 2003; Bubeck, 2015, arXiv:1405.4980",
    parameters: [
      .lr(0.1), .choice("geometry", ["simplex", "orthant", "pnorm", "l2"], "the mirror map"),
      .number("p", 1.5, .between(1, 2, lowOpen: true, highOpen: false), "exponent of pnorm"),
      .number("radius", 1, .above(0), "sum of a slice of the simplex"),
      .integer("axis", -1, .within(-64, 63), "the axis of the slices", live: false),
    ],
    requests: "own-step")

  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    if shape.ndim > 0, h.is("geometry", "simplex") { try axisExists(h, shape, "mirror_descent") }
  }

  let lr, p, radius: Double, axis: Int, h: Hyper
  init(_ h: Hyper, _ c: StepContext) {
    (lr, p, radius, axis, self.h) = (c.lr, h.p, h.radius, h.integer("axis"), h)
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    if lr == 0 { return t.v.update(repeating: 0, count: t.count) }
    if h.is("geometry", "l2") { return Flat.scale(UnsafePointer(t.v), by: lr, into: t.v, t.count) }
    if h.is("geometry", "simplex") { return simplex(t) }
    if h.is("geometry", "pnorm") { return try pnorm(t) }
    for i in 0..<t.count {
      let x = Double(t.w[i])
      t.v[i] = t.w[i] - T(x <= 0 ? 0 : x * exp(-lr * Double(t.v[i])))
    }
  }

  private func simplex<T: Real>(_ t: Whole<T>) {
    let lines = t.shape.ndim == 0 ? Slices.whole(t.shape) : .along(axis, t.shape), step = lines.inner
    for s in 0..<lines.count {
      let g = t.v + lines.start(s), x = t.w + lines.start(s)
      // log θ − lr·g, and the logarithm of the sum
      func exponent(_ k: Int) -> Double {
        let w = Double(x[k &* step])
        return w <= 0 ? -.infinity : log(w) - lr * Double(g[k &* step])
      }
      var top = -Double.infinity, sum = 0.0
      for k in 0..<lines.length { top = larger(top, exponent(k)) }
      for k in 0..<lines.length where top > -.infinity { sum += exp(exponent(k) - top) }
      for k in 0..<lines.length {
        let new =
          top > -.infinity || top.isNaN ? radius * (exp(exponent(k) - top) / sum) : radius / Double(lines.length)
        g[k &* step] = x[k &* step] - T(new)
      }
    }
  }

  private func pnorm<T: Real>(_ t: Whole<T>) throws(Failure) {
    try Memory.ask(8 &* t.count)
    var z = (0..<t.count).map { Double(t.w[$0]) }
    mirror(&z, p)
    for i in 0..<t.count { z[i] -= lr * Double(t.v[i]) }
    mirror(&z, p / (p - 1))
    for i in 0..<t.count { t.v[i] = t.w[i] - T(z[i]) }
  }
}
