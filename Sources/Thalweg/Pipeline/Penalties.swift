/// A regularizer whose value, gradient and prox act on every element by itself.
package protocol ElementRegularizer: BitwiseCopyable, Sendable {
  static var method: Method { get }
  init(_ h: Hyper)
  /// The terms of the penalty.
  func value<L: Lane>(_ w: L) -> L
  func gradient<L: Lane>(_ w: L) -> L
  /// argmin_u ½(u − w)² + t·value(u).
  func prox<L: Lane>(_ w: L, _ t: Double) -> L
}

/// A regularizer of a whole tensor: groups, singular values, neighbours.
package protocol WholeRegularizer: Sendable {
  static var method: Method { get }
  static var hasProx: Bool { get }
  static var mayFail: Bool { get }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure)
  init(_ h: Hyper)
  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double
  /// w.v ← w.v + scale · gradient at w.w.
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure)
  /// w.v ← prox(w.v, t).
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure)
}

extension WholeRegularizer {
  package static var hasProx: Bool { true }
  package static var mayFail: Bool { false }
  package static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {}
}

/// A regularizer with its types erased, in its three uses: coupled gradient, prox after the step, decoupled step.
package struct RegularizerKernels: Sendable {
  package typealias Stages = @Sendable (Hyper) -> (ElementKernels?, WholeKernels?)
  let hasProx: Bool
  let penalty: Stages
  let proximal: Stages
  let decoupled: Stages
  let value32: @Sendable (Hyper, Whole<Float>) throws(Failure) -> Double
  let value64: @Sendable (Hyper, Whole<Double>) throws(Failure) -> Double
}

/// g + gradient(w): the coupled use.
private struct Coupled<R: ElementRegularizer>: ElementRule {
  static var method: Method { R.method }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  let r: R
  init(_ h: Hyper, _ c: StepContext) { r = R(h) }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v + r.gradient(w) }
}

/// prox(w, lr).
private struct Proximal<R: ElementRegularizer>: ElementRule {
  static var method: Method { R.method }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  let r: R, t: Double
  init(_ h: Hyper, _ c: StepContext) { (r, t) = (R(h), c.lr) }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { r.prox(v, t) }
}

/// w − lr·gradient(w).
private struct Decoupled<R: ElementRegularizer>: ElementRule {
  static var method: Method { R.method }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  let r: R, t: Double
  init(_ h: Hyper, _ c: StepContext) { (r, t) = (R(h), c.lr) }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v - t * r.gradient(v) }
}

private struct ValueSum<R: ElementRegularizer>: ElementSum {
  let r: R
  @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, r.value(x))
  }
}

@inline(never)
private func total<R: ElementRegularizer, T: Real>(_ r: R, _ w: Whole<T>) -> Double {
  let kernel = plainMeasure(ValueSum(r: r), T.Vector.self)
  var out = [Double](repeating: 0, count: Sums.count), sum = 0.0, block = Sums()
  var i = 0
  let pad = UnsafeMutableRawPointer.allocate(byteCount: Operands.padBytes, alignment: 64)
  defer { pad.deallocate() }
  let p = UnsafeMutableRawPointer(w.v)
  while i < w.count {
    let n = min(Walker.block, w.count - i)
    let q = p + i * MemoryLayout<T>.stride
    kernel(Operands(x: q, g: q, slots: SlotPointers(repeating: q), used: 0, count: n, index: i, pad: pad), &block)
    block.write(&out, T.Vector.self)
    sum += out[0]
    block = Sums()
    i += n
  }
  return sum
}

package func entry<R: ElementRegularizer>(_: R.Type) -> Registered {
  Registered(
    method: R.method,
    component: .regularizer(
      RegularizerKernels(
        hasProx: true, penalty: { (kernels(Coupled<R>.self).binding($0), nil) },
        proximal: { (kernels(Proximal<R>.self).binding($0), nil) },
        decoupled: { (kernels(Decoupled<R>.self).binding($0), nil) },
        value32: { (h, w) throws(Failure) in total(R(h), w) }, value64: { (h, w) throws(Failure) in total(R(h), w) })))
}

private struct WholeCoupled<R: WholeRegularizer>: WholeRule {
  static var method: Method { R.method }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try R.accepts(h, shape) }
  static var mayFail: Bool { R.mayFail }
  let r: R
  init(_ h: Hyper, _ c: StepContext) { r = R(h) }
  func apply<T: Real>(_ t: Whole<T>) throws(Failure) { try r.addGradient(t, 1) }
}

private struct WholeProximal<R: WholeRegularizer>: WholeRule {
  static var method: Method { R.method }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try R.accepts(h, shape) }
  static var mayFail: Bool { R.mayFail }
  let r: R, t: Double
  init(_ h: Hyper, _ c: StepContext) { (r, t) = (R(h), c.lr) }
  func apply<T: Real>(_ w: Whole<T>) throws(Failure) { try r.prox(w, t) }
}

private struct WholeDecoupled<R: WholeRegularizer>: WholeRule {
  static var method: Method { R.method }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { shape.count &* size }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try R.accepts(h, shape) }
  static var mayFail: Bool { R.mayFail }
  let r: R, t: Double
  init(_ h: Hyper, _ c: StepContext) { (r, t) = (R(h), c.lr) }
  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let point = w.workspace.bindMemory(to: T.self, capacity: w.count)
    point.initialize(from: w.v, count: w.count)
    var at = w
    at.w = point
    try r.addGradient(at, -t)
  }
}

package func entry<R: WholeRegularizer>(_: R.Type) -> Registered {
  Registered(
    method: R.method,
    component: .regularizer(
      RegularizerKernels(
        hasProx: R.hasProx, penalty: { (nil, kernels(WholeCoupled<R>.self).binding($0)) },
        proximal: { (nil, kernels(WholeProximal<R>.self).binding($0)) },
        decoupled: { (nil, kernels(WholeDecoupled<R>.self).binding($0)) },
        value32: { (h, w) throws(Failure) in try R(h).value(w) },
        value64: { (h, w) throws(Failure) in try R(h).value(w) })))
}

// MARK: constraints

/// A set whose projection acts on every element by itself.
package protocol ElementConstraint: BitwiseCopyable, Sendable {
  static var method: Method { get }
  init(_ h: Hyper)
  func project<L: Lane>(_ w: L) -> L
  /// The entry of a minimiser of ⟨g, s⟩ over the set.
  func minimise<L: Lane>(_ g: L) -> L
}

/// A set of whole tensors. `project` is required; manifolds have the rest too.
package protocol WholeConstraint: Sendable {
  static var method: Method { get }
  static var isManifold: Bool { get }
  static var mayFail: Bool { get }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure)
  init(_ h: Hyper)
  /// w.v ← the nearest point of the set.
  func project<T: Real>(_ w: Whole<T>) throws(Failure)
  /// w.v ← a minimiser of ⟨w.v, s⟩ over the set.
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure)
  /// w.v (a Euclidean gradient, or a step) ← its tangent part at w.w.
  func tangent<T: Real>(_ w: Whole<T>) throws(Failure)
  /// w.v (a tangent step) ← the point it leads to from w.w.
  func retract<T: Real>(_ w: Whole<T>) throws(Failure)
}

extension WholeConstraint {
  package static var isManifold: Bool { false }
  package static var mayFail: Bool { false }
  package static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {}
  package func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    throw Failure(Status.unsupported, "\(Self.method.name) has no linear minimisation oracle")
  }
  package func tangent<T: Real>(_ w: Whole<T>) throws(Failure) {
    throw Failure(Status.unsupported, "\(Self.method.name) is not a manifold")
  }
  package func retract<T: Real>(_ w: Whole<T>) throws(Failure) {
    throw Failure(Status.unsupported, "\(Self.method.name) is not a manifold")
  }
}

package struct ConstraintKernels: Sendable {
  let projection: @Sendable (Hyper) -> (ElementKernels?, WholeKernels?)
  /// After a step: the tangent part of the move, retracted from the point before it.
  let manifold: (@Sendable (Hyper) -> WholeKernels)?
  let minimise: @Sendable (Hyper) -> (ElementKernels?, WholeKernels?)
  let tangent: (@Sendable (Hyper) -> WholeKernels)?
  let retract: (@Sendable (Hyper) -> WholeKernels)?
  /// For masks: what the host sees of the stored tensor, and what is added to its gradient.
  var view: @Sendable (Hyper) -> WholeKernels? = { _ in nil }
  var pull: (@Sendable (Hyper) -> WholeKernels?)?
}

private struct Projection<C: ElementConstraint>: ElementRule {
  static var method: Method { C.method }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  let set: C
  init(_ h: Hyper, _ c: StepContext) { set = C(h) }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { set.project(v) }
}

private struct Minimiser<C: ElementConstraint>: ElementRule {
  static var method: Method { C.method }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  let set: C
  init(_ h: Hyper, _ c: StepContext) { set = C(h) }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { set.minimise(v) }
}

/// A set of entries; `lists` is its form where a hyper-parameter is a list of numbers.
package func constraintKernels<C: ElementConstraint>(
  _: C.Type, withLists lists: ConstraintKernels
) -> ConstraintKernels {
  ConstraintKernels(
    projection: { $0.hasLists ? lists.projection($0) : (kernels(Projection<C>.self).binding($0), nil) }, manifold: nil,
    minimise: { $0.hasLists ? lists.minimise($0) : (kernels(Minimiser<C>.self).binding($0), nil) }, tangent: nil,
    retract: nil)
}

private enum SetOperation {
  struct Project: Sendable {}
  struct Minimise: Sendable {}
  struct Tangent: Sendable {}
  struct Retract: Sendable {}
  struct Move: Sendable {}
}

private struct SetRule<C: WholeConstraint, Operation: Sendable>: WholeRule {
  static var method: Method { C.method }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    keepsPoint ? [Slot.temporary("point", "the parameters before the step")] : []
  }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try C.accepts(h, shape) }
  static var mayFail: Bool { C.mayFail }
  static var keepsPoint: Bool { Operation.self == SetOperation.Move.self }
  let set: C
  init(_ h: Hyper, _ c: StepContext) { set = C(h) }
  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    if Operation.self == SetOperation.Project.self { return try set.project(t) }
    if Operation.self == SetOperation.Minimise.self { return try set.minimise(t) }
    if Operation.self == SetOperation.Tangent.self { return try set.tangent(t) }
    if Operation.self == SetOperation.Retract.self { return try set.retract(t) }
    var move = t
    move.w = t.slots[0]
    for i in 0..<t.count { move.v[i] -= move.w[i] }
    try set.tangent(move)
    try set.retract(move)
  }
}

package func entry<C: WholeConstraint>(_: C.Type) -> Registered {
  Registered(method: C.method, component: .constraint(constraintKernels(C.self)))
}

package func constraintKernels<C: WholeConstraint>(_: C.Type) -> ConstraintKernels {
  let project: @Sendable (Hyper) -> (ElementKernels?, WholeKernels?) = {
    (nil, kernels(SetRule<C, SetOperation.Project>.self).binding($0))
  }
  let minimise: @Sendable (Hyper) -> (ElementKernels?, WholeKernels?) = {
    (nil, kernels(SetRule<C, SetOperation.Minimise>.self).binding($0))
  }
  guard C.isManifold else {
    return ConstraintKernels(projection: project, manifold: nil, minimise: minimise, tangent: nil, retract: nil)
  }
  let move: @Sendable (Hyper) -> WholeKernels = { kernels(SetRule<C, SetOperation.Move>.self).binding($0) }
  let tangent: @Sendable (Hyper) -> WholeKernels = { kernels(SetRule<C, SetOperation.Tangent>.self).binding($0) }
  let retract: @Sendable (Hyper) -> WholeKernels = { kernels(SetRule<C, SetOperation.Retract>.self).binding($0) }
  return ConstraintKernels(projection: project, manifold: move, minimise: minimise, tangent: tangent, retract: retract)
}
