/// A manifold in the space of a tensor. Vectors are given in the coordinates of that space.
public protocol Manifold: WholeConstraint {
  /// The parts of the tensor that are points of their own, with an inner product each: neighbouring elements.
  static func factors(_ h: Hyper, _ shape: Shape) -> Slices
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
}

extension Manifold {
  @inlinable public static var registered: Registered { entry(Self.self) }
  public static func factors(_ h: Hyper, _ shape: Shape) -> Slices { .whole(shape) }
  @inlinable public func orthogonal<T: Real>(_ w: Whole<T>) throws(Failure) { try tangent(w) }
  @inlinable public func transport<T: Real>(_ w: Whole<T>) throws(Failure) {
    var at = w
    at.w = w.slots[0]
    try orthogonal(at)
  }
}

/// A manifold with its types erased.
public struct ManifoldKernels: Sendable {
  public let factors: @Sendable (Hyper, Shape) -> Slices
  /// After a step: the tangent part of the move, retracted from the point before it.
  public let move: WholeKernels
  public let tangent: WholeKernels
  public let retract: WholeKernels
  public let orthogonal: WholeKernels
  public let transport: WholeKernels
  public let squares: WholeKernels
  @usableFromInline init(
    factors: @escaping @Sendable (Hyper, Shape) -> Slices, move: WholeKernels, tangent: WholeKernels,
    retract: WholeKernels, orthogonal: WholeKernels, transport: WholeKernels, squares: WholeKernels
  ) {
    (self.factors, self.move, self.tangent) = (factors, move, tangent)
    (self.retract, self.orthogonal) = (retract, orthogonal)
    (self.transport, self.squares) = (transport, squares)
  }
}

@inlinable public func entry<C: Manifold>(_: C.Type) -> Registered {
  let manifold = ManifoldKernels(
    factors: { C.factors($0, $1) }, move: kernels(ManifoldMove<C>.self),
    tangent: kernels(ManifoldRule<C, ManifoldOperation.Tangent>.self),
    retract: kernels(ManifoldRule<C, ManifoldOperation.Retract>.self),
    orthogonal: kernels(ManifoldRule<C, ManifoldOperation.Orthogonal>.self),
    transport: kernels(ManifoldRule<C, ManifoldOperation.Transport>.self),
    squares: kernels(ManifoldRule<C, ManifoldOperation.Squares>.self))
  return Registered(method: C.method, component: .constraint(constraintKernels(C.self, manifold)))
}

public enum ManifoldOperation {
  public struct Tangent: Sendable {}
  public struct Retract: Sendable {}
  public struct Orthogonal: Sendable {}
  public struct Transport: Sendable {}
  public struct Squares: Sendable {}
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
