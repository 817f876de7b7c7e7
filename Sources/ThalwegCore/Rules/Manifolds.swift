/// A manifold in the space of a tensor. Vectors are given in the coordinates of that space.
public protocol Manifold: WholeConstraint {
  /// So many leading axes number the parts of the tensor that are points of their own, with an inner product each.
  static func pointAxes(_ shape: Shape) -> Int
  /// w.v (a Euclidean gradient) ← the Riemannian gradient at w.w.
  func tangent<T: Real>(_ w: Whole<T>) throws(Failure)
  /// w.v (a tangent step) ← the point it leads to from w.w.
  func retract<T: Real>(_ w: Whole<T>) throws(Failure)
  /// w.v (any vector) ← its tangent part at w.w.
  func orthogonal<T: Real>(_ w: Whole<T>) throws(Failure)
  /// w.v (tangent at w.w) ← the vector it becomes at the point w.slots[0].
  func transport<T: Real>(_ w: Whole<T>) throws(Failure)
  /// w.slots[0] ← ⟨w.v, w.v⟩ in the metric at w.w, one number a factor.
  func squares<T: Real>(_ w: Whole<T>) throws(Failure)
  /// ⟨w.v, w.slots[0]⟩ in the metric at w.w, one number a point.
  func inner<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double]
  /// w.v (tangent at w.w) ← the point that its geodesic reaches.
  func exponential<T: Real>(_ w: Whole<T>) throws(Failure)
  /// w.v (a point) ← the tangent at w.w whose exponential it is.
  func logarithm<T: Real>(_ w: Whole<T>) throws(Failure)
  /// The lengths of the shortest geodesics from w.w to w.v, one a point.
  func distances<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double]
}

extension Manifold {
  @inlinable public static var registered: Registered { entry(Self.self) }
  public static func pointAxes(_ shape: Shape) -> Int { 0 }
  public static func factors(_ shape: Shape) -> Slices { .points(pointAxes(shape), shape) }
  public func exponential<T: Real>(_ w: Whole<T>) throws(Failure) { throw Self.noClosedForm("exponential map") }
  public func logarithm<T: Real>(_ w: Whole<T>) throws(Failure) { throw Self.noClosedForm("logarithm") }
  public func distances<T: Real>(_ w: Whole<T>) throws(Failure) -> [Double] { throw Self.noClosedForm("distance") }
  private static func noClosedForm(_ what: String) -> Failure {
    Failure(Status.unsupported, "\(method.name) has no \(what): there is no closed form of it")
  }
  @inlinable public func orthogonal<T: Real>(_ w: Whole<T>) throws(Failure) { try tangent(w) }
  @inlinable public func transport<T: Real>(_ w: Whole<T>) throws(Failure) {
    var at = w
    at.w = w.slots[0]
    try orthogonal(at)
  }
}

/// A manifold with its types erased.
public struct ManifoldKernels: Sendable {
  public let pointAxes: @Sendable (Shape) -> Int
  /// After a step: the tangent part of the move, retracted from the point before it.
  public let move: WholeKernels
  public let tangent: WholeKernels
  public let retract: WholeKernels
  public let orthogonal: WholeKernels
  public let transport: WholeKernels
  public let squares: WholeKernels
  public let exponential: WholeKernels
  public let logarithm: WholeKernels
  /// One number a point.
  public struct Numbers: Sendable {
    public typealias Call<T: Real> = @Sendable (Hyper, Whole<T>) throws(Failure) -> [Double]
    public let f32: Call<Float>
    public let f64: Call<Double>
    @usableFromInline init(f32: @escaping Call<Float>, f64: @escaping Call<Double>) {
      (self.f32, self.f64) = (f32, f64)
    }
  }
  public let inner: Numbers
  public let distances: Numbers
  @inlinable init<C: Manifold>(_: C.Type) {
    pointAxes = { C.pointAxes($0) }
    move = kernels(ManifoldMove<C>.self)
    tangent = kernels(ManifoldRule<C, ManifoldOperation.Tangent>.self)
    retract = kernels(ManifoldRule<C, ManifoldOperation.Retract>.self)
    orthogonal = kernels(ManifoldRule<C, ManifoldOperation.Orthogonal>.self)
    transport = kernels(ManifoldRule<C, ManifoldOperation.Transport>.self)
    squares = kernels(ManifoldRule<C, ManifoldOperation.Squares>.self)
    exponential = kernels(ManifoldRule<C, ManifoldOperation.Exponential>.self)
    logarithm = kernels(ManifoldRule<C, ManifoldOperation.Logarithm>.self)
    inner = Numbers(
      f32: { (h, w) throws(Failure) in try C(h).inner(w) }, f64: { (h, w) throws(Failure) in try C(h).inner(w) })
    distances = Numbers(
      f32: { (h, w) throws(Failure) in try C(h).distances(w) },
      f64: { (h, w) throws(Failure) in try C(h).distances(w) })
  }
}

@inlinable public func entry<C: Manifold>(_: C.Type) -> Registered {
  Registered(method: C.method, component: .constraint(constraintKernels(C.self, ManifoldKernels(C.self))))
}

public enum ManifoldOperation {
  public struct Tangent: Sendable {}
  public struct Retract: Sendable {}
  public struct Orthogonal: Sendable {}
  public struct Transport: Sendable {}
  public struct Squares: Sendable {}
  public struct Exponential: Sendable {}
  public struct Logarithm: Sendable {}
}

public struct ManifoldRule<C: Manifold, Operation: Sendable>: WholeRule {
  @inlinable public static var method: Method { C.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  @inlinable public static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try C.accepts(h, shape) }
  @inlinable public static var mayFail: Bool { C.mayFail || C.needsFinite }
  public let set: C
  @inlinable public init(_ h: Hyper, _ c: StepContext) { set = C(h) }
  @inlinable public func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    if Operation.self == ManifoldOperation.Tangent.self { return try set.tangent(t) }
    if Operation.self == ManifoldOperation.Retract.self { return try set.retract(t) }
    if Operation.self == ManifoldOperation.Orthogonal.self { return try set.orthogonal(t) }
    if Operation.self == ManifoldOperation.Transport.self { return try set.transport(t) }
    if Operation.self == ManifoldOperation.Exponential.self { return try set.exponential(t) }
    if Operation.self == ManifoldOperation.Logarithm.self { return try set.logarithm(t) }
    try set.squares(t)
  }
}

/// `manifold(...)`: the move that a rule made, along the manifold.
public struct ManifoldMove<C: Manifold>: WholeRule {
  @inlinable public static var method: Method { C.method }
  public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    [Slot.temporary("point", "the parameters before the step")]
  }
  @inlinable public static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try C.accepts(h, shape) }
  @inlinable public static var mayFail: Bool { C.mayFail || C.needsFinite }
  @inlinable public static var keepsPoint: Bool { true }
  public let set: C
  @inlinable public init(_ h: Hyper, _ c: StepContext) { set = C(h) }
  @inlinable public func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    var move = t
    move.w = t.slots[0]
    for i in 0..<t.count { move.v[i] -= move.w[i] }
    try set.tangent(move)
    try set.retract(move)
  }
}
