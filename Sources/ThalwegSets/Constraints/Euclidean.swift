import ThalwegCore

/// The whole space, as a manifold: what a rule on manifolds has where a tensor has none. Every element is a point of
/// its own, so that such a rule is the plain one.
///
///     tangent: g     retract: x + u (x bit for bit for u = 0)     transport: u
///     inner: u·v, element by element     project: w     log: y − x     distance: |x − y|, element by element
///
/// Source   textbook.
struct Euclidean: Manifold {
  static let method = Method(
    "euclidean", .constraint, "The whole space, a manifold for tensors that have none.",
    rule: "tangent: g;  retract: x + u;  transport: u;  inner: u*v, element by element;  project: w", source: "textbook"
  )
  static func pointAxes(_ shape: Shape) -> Int { shape.ndim }

  init(_ h: Hyper) {}
  func project<T: Real>(_ w: Whole<T>) throws(Failure) {}
  func tangent<T: Real>(_ w: Whole<T>) throws(Failure) {}
  func transport<T: Real>(_ w: Whole<T>) throws(Failure) {}
  func retract<T: Real>(_ w: Whole<T>) throws(Failure) {
    for i in 0..<w.count { w.v[i] = w.v[i] == 0 ? w.w[i] : w.w[i] + w.v[i] }
  }
  func squares<T: Real>(_ w: Whole<T>) throws(Failure) { for i in 0..<w.count { w.slots[0][i] = w.v[i] * w.v[i] } }
  func inner<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] { products(w, .elements(w.shape)) }
  func exponential<T: Real>(_ w: Whole<T>) throws(Failure) { try retract(w) }
  func logarithm<T: Real>(_ w: Whole<T>) throws(Failure) { for i in 0..<w.count { w.v[i] -= w.w[i] } }
  func distances<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] {
    (0..<w.count).map { abs(Double(w.v[$0]) - Double(w.w[$0])) }
  }
}

/// w.slots[0] ← the squared Euclidean length of every slice of w.v.
func squaredLengths<T: Real>(_ w: Whole<T>, _ s: Slices) throws(Failure) {
  for (k, norm) in try s.norms(w.v).enumerated() { w.slots[0][k] = T(norm * norm) }
}

/// ⟨w.v, w.slots[0]⟩ of every slice, the slices of neighbouring elements.
func products<T: Real>(_ w: Whole<T>, _ s: Slices) -> [Double] {
  (0..<s.count).map { Flat.dot(UnsafePointer(w.v + s.start($0)), UnsafePointer(w.slots[0] + s.start($0)), s.length) }
}
