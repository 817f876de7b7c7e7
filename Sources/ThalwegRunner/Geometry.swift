import ThalwegCore

/// The geometry of a manifold, for hosts. A tensor may hold several points, numbered by its first axes.
extension ConstraintObject {
  private var manifold: ManifoldKernels {
    get throws(Failure) {
      guard let m = kernels.manifold else { throw Failure(Status.unsupported, "this set is not a manifold") }
      return m
    }
  }

  /// g ← the Riemannian gradient of the Euclidean gradient g at w.
  package func tangent(_ w: View, _ g: View) throws(Failure) {
    try same(w, g, "w and g")
    try change((nil, manifold.tangent), hyper, g, from: g, w)
  }
  /// u ← its tangent part at w.
  package func projectTangent(_ w: View, _ u: View) throws(Failure) {
    try same(w, u, "w and u")
    try change((nil, manifold.orthogonal), hyper, u, from: u, w)
  }
  /// w ← the point that the tangent u leads to, by the retraction of the sentence.
  package func retract(_ w: View, _ u: View) throws(Failure) {
    try same(w, u, "w and u")
    try change((nil, manifold.retract), hyper, w, from: u, w)
  }
  /// w ← the point that the geodesic along u leads to.
  package func exponential(_ w: View, _ u: View) throws(Failure) {
    try same(w, u, "w and u")
    try change((nil, manifold.exponential), hyper, w, from: u, w)
  }
  /// u ← the tangent at w whose exponential is y.
  package func logarithm(_ w: View, _ y: View, _ u: View) throws(Failure) {
    try same(w, y, "w and y")
    try same(w, u, "w and u")
    try change((nil, manifold.logarithm), hyper, u, from: y, w)
  }
  /// u, a tangent at w ← what it becomes at y.
  package func transport(_ w: View, _ y: View, _ u: View) throws(Failure) {
    try same(w, y, "w and y")
    try same(w, u, "w and u")
    let kernels = try manifold.transport
    func run<T: Real>(_: T.Type) throws(Failure) {
      let v = try Dense<T>(u)
      try apply(kernels, v, at: try Dense<T>(w), try Dense<T>(y), shape(w))
      v.write(to: u)
    }
    if u.dtype == .f64 { try run(Double.self) } else { try run(Float.self) }
  }

  /// How many of the first axes of w number its points.
  package func pointAxes(_ w: View) throws(Failure) -> Int {
    let kernels = try manifold
    try kernels.tangent.accepts(hyper, shape(w))
    return kernels.pointAxes(shape(w))
  }
  /// ⟨u, v⟩ in the metric at w, one number a point.
  package func inner(_ w: View, _ u: View, _ v: View) throws(Failure) -> [Double] {
    try same(w, u, "w and u")
    try same(w, v, "w and v")
    return try numbers(manifold.inner, u, at: w, v)
  }
  /// The distances of the points of w and y.
  package func distances(_ w: View, _ y: View) throws(Failure) -> [Double] {
    try same(w, y, "w and y")
    return try numbers(manifold.distances, y, at: w, nil)
  }
  /// How far each point of w is from where `project` puts it: 0 for points of the manifold.
  package func pointErrors(_ w: View) throws(Failure) -> [Double] {
    let project = kernels.projection(hyper)
    return try moved(w, at: w, by: project)
  }
  /// How long the part of u is that is not tangent at w, point by point.
  package func tangentErrors(_ w: View, _ u: View) throws(Failure) -> [Double] {
    try same(w, u, "w and u")
    return try moved(u, at: w, by: (nil, manifold.orthogonal))
  }

  private func shape(_ w: View) -> Shape { Shape(dimensions: w.shape, role: w.role) }
  private func apply<T: Real>(
    _ kernels: WholeKernels, _ v: Dense<T>, at w: Dense<T>, _ slot: Dense<T>?, _ shape: Shape
  ) throws(Failure) {
    guard v.count > 0 else { return }
    try kernels.accepts(hyper, shape)
    defer { withExtendedLifetime((v, w, slot)) {} }
    func call<U: Real>(_: U.Type, _ f: WholeKernels.Call<U>) throws(Failure) {
      try f(hyper, StepContext(), whole(v, w, slot, shape))
    }
    if T.isDouble { try call(Double.self, kernels.f64) } else { try call(Float.self, kernels.f32) }
  }
  /// The caller keeps the memory alive.
  private func whole<T: Real, U: Real>(_ v: Dense<T>, _ w: Dense<T>, _ slot: Dense<T>?, _ shape: Shape) -> Whole<U> {
    func pointer(_ x: Dense<T>) -> UnsafeMutablePointer<U> {
      UnsafeMutableRawPointer(x.p).assumingMemoryBound(to: U.self)
    }
    return Whole(
      v: pointer(v), w: pointer(w), slots: slot.map { [pointer($0)] } ?? [], shape: shape,
      workspace: UnsafeMutableRawPointer(v.p))
  }
  private func numbers(_ calls: ManifoldKernels.Numbers, _ v: View, at w: View, _ slot: View?) throws(Failure)
    -> [Double]
  {
    let shape = shape(w), axes = try pointAxes(w)
    try Memory.ask(2 * 8 * Slices.points(axes, shape).count)
    func run<T: Real, U: Real>(_: T.Type, _ call: ManifoldKernels.Numbers.Call<U>) throws(Failure) -> [Double] {
      let v = try Dense<T>(v), w = try Dense<T>(w), slot = try slot.map { (s) throws(Failure) in try Dense<T>(s) }
      defer { withExtendedLifetime((v, w, slot)) {} }
      for x in [v, w] + (slot.map { [$0] } ?? []) where !Flat.isFinite(x.p, x.count) {
        throw Failure(Status.nonfinite, "an element is NaN or infinite")
      }
      return try call(hyper, whole(v, w, slot, shape))
    }
    let wide = w.dtype == .f64 || v.dtype == .f64 || slot?.dtype == .f64
    return wide ? try run(Double.self, calls.f64) : try run(Float.self, calls.f32)
  }
  /// How far a change takes each point of v.
  private func moved(_ v: View, at w: View, by pair: (ElementKernels?, WholeKernels?)) throws(Failure) -> [Double] {
    let shape = shape(w), points = Slices.points(try pointAxes(w), shape)
    try Memory.ask(8 * points.count)
    func run<T: Real>(_: T.Type) throws(Failure) -> [Double] {
      let before = try Dense<T>(v), after = try Dense<T>(v), w = try Dense<T>(w)
      defer { withExtendedLifetime((before, after, w)) {} }
      if v.count > 0 { try runOnce(pair, hyper, after.p, w.p, shape, t: 0) }
      let change = try Dense<Double>(zeros: v.count)
      for i in 0..<v.count { change.p[i] = Double(before.p[i]) - Double(after.p[i]) }
      defer { withExtendedLifetime(change) {} }
      return try points.norms(change.p)
    }
    return w.dtype == .f64 || v.dtype == .f64 ? try run(Double.self) : try run(Float.self)
  }
}
