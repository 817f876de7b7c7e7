import ThalwegCore

/// The whole space, as a manifold: what a rule on manifolds has where a tensor has none. Every element is a point of
/// its own, so that such a rule is the plain one.
///
///     tangent: g     retract: x + u (x bit for bit for u = 0)     transport: u
///     inner: u·v, element by element     project: w
///
/// Source   textbook.
struct Euclidean: Manifold {
  static let method = Method(
    "euclidean", .constraint, "The whole space, a manifold for tensors that have none.",
    rule: "tangent: g;  retract: x + u;  transport: u;  inner: u*v, element by element;  project: w", source: "textbook"
  )
  static func factors(_ h: Hyper, _ shape: Shape) -> Slices { .elements(shape) }

  init(_ h: Hyper) {}
  func project<T: Real>(_ w: Whole<T>) throws(Failure) {}
  func tangent<T: Real>(_ w: Whole<T>) throws(Failure) {}
  func transport<T: Real>(_ w: Whole<T>) throws(Failure) {}
  func retract<T: Real>(_ w: Whole<T>) throws(Failure) {
    for i in 0..<w.count { w.v[i] = w.v[i] == 0 ? w.w[i] : w.w[i] + w.v[i] }
  }
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) { for i in 0..<w.count { w.slots[0][i] = w.v[i] * w.v[i] } }
}

/// w.slots[0] ← the squared Euclidean length of every slice of w.v.
func squaredLengths<T: Real>(_ w: Whole<T>, _ s: Slices) throws(Failure) {
  for (k, norm) in try s.norms(w.v).enumerated() { w.slots[0][k] = T(norm * norm) }
}
