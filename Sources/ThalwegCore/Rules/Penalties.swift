/// A regularizer whose value, gradient and prox act on every element by itself.
public protocol ElementRegularizer: Listed, BitwiseCopyable, Sendable {
  static var method: Method { get }
  /// Whether it may be added to a gradient.
  static var hasGradient: Bool { get }
  init(_ h: Hyper)
  /// The terms of the penalty.
  func value<L: Lane>(_ w: L) -> L
  func gradient<L: Lane>(_ w: L) -> L
  /// argmin_u ½(u − w)² + t·value(u).
  func prox<L: Lane>(_ w: L, _ t: Double) -> L
  /// The same with a step for each element.
  func prox<L: Lane>(_ w: L, steps t: L) -> L
  /// v + gradient(w), and prox(v, t), said in numbers; nil: they cannot be.
  var coupledFolds: Folds? { get }
  func proxFolds(_ t: Double) -> Folds?
}

extension ElementRegularizer {
  @inlinable public static var hasGradient: Bool { true }
  @inlinable public var coupledFolds: Folds? { nil }
  @inlinable public func proxFolds(_ t: Double) -> Folds? { nil }
  @inlinable public static var registered: Registered { entry(Self.self) }
}

/// A regularizer of a whole tensor: groups, singular values, neighbours.
public protocol WholeRegularizer: Listed, Sendable {
  static var method: Method { get }
  static var hasProx: Bool { get }
  static var mayFail: Bool { get }
  /// As of a `WholeRule`.
  static var needsFinite: Bool { get }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int?
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure)
  /// What a stage keeps from step to step for `addGradient`, which has none of it where it is called alone.
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot]
  init(_ h: Hyper)
  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double
  /// w.v ← w.v + scale · gradient at w.w.
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) throws(Failure)
  /// w.v ← prox(w.v, t).
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure)
  /// Its terms are those of single elements: it has a prox with a step for each.
  static var isSeparable: Bool { get }
  /// w.v ← prox(w.v, w.w), element by element.
  func prox<T: Real>(stepped w: Whole<T>) throws(Failure)
}

extension WholeRegularizer {
  @inlinable public static var isSeparable: Bool { false }
  public func prox<T: Real>(stepped w: Whole<T>) throws(Failure) {
    throw Failure(Status.unsupported, "\(Self.method.name) has no prox with a step for each element")
  }
  @inlinable public static var registered: Registered { entry(Self.self) }
  @inlinable public static var hasProx: Bool { true }
  @inlinable public static var mayFail: Bool { false }
  @inlinable public static var needsFinite: Bool { false }
  public static func grain(_ h: Hyper, _ shape: Shape) -> Int? { nil }
  public static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {}
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
}

/// A regularizer with its types erased, in its three uses: coupled gradient, prox after the step, decoupled step.
public struct RegularizerKernels: Sendable {
  public typealias Stages = @Sendable (Hyper) -> (ElementKernels?, WholeKernels?)
  public let hasProx: Bool
  public let penalty: Stages
  public let proximal: Stages
  /// The prox with a step for each element, which is its companion; nil where elements depend on one another.
  public let stepped: Stages?
  public let decoupled: Stages
  public let value32: @Sendable (Hyper, Whole<Float>) throws(Failure) -> Double
  public let value64: @Sendable (Hyper, Whole<Double>) throws(Failure) -> Double
  @usableFromInline init(
    hasProx: Bool, penalty: @escaping Stages, proximal: @escaping Stages, stepped: Stages?,
    decoupled: @escaping Stages,
    value32: @escaping @Sendable (Hyper, Whole<Float>) throws(Failure) -> Double,
    value64: @escaping @Sendable (Hyper, Whole<Double>) throws(Failure) -> Double
  ) {
    (self.hasProx, self.penalty, self.proximal) = (hasProx, penalty, proximal)
    (self.stepped, self.decoupled) = (stepped, decoupled)
    (self.value32, self.value64) = (value32, value64)
  }
}

/// What stands for a regularizer of several inputs in a pipeline, which gives it its weights alone; nil: nothing can.
public struct RegularizerStages: Sendable {
  public let penalty, proximal, decoupled: RegularizerKernels.Stages?
  public init(
    penalty: RegularizerKernels.Stages? = nil, proximal: RegularizerKernels.Stages? = nil,
    decoupled: RegularizerKernels.Stages? = nil
  ) { (self.penalty, self.proximal, self.decoupled) = (penalty, proximal, decoupled) }
}

/// g + gradient(w): the coupled use.
public struct Coupled<R: ElementRegularizer>: ElementRule {
  @inlinable public static var method: Method { R.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  public let r: R
  @inlinable public init(_ h: Hyper, _ c: StepContext) { r = R(h) }
  @inlinable @inline(__always) public func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v + r.gradient(w) }
  @inlinable public var folds: Folds? { r.coupledFolds }
}

/// prox(w, lr).
public struct Proximal<R: ElementRegularizer>: ElementRule {
  @inlinable public static var method: Method { R.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  public let r: R, t: Double
  @inlinable public init(_ h: Hyper, _ c: StepContext) { (r, t) = (R(h), c.lr) }
  @inlinable @inline(__always) public func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { r.prox(v, t) }
  @inlinable public var folds: Folds? { r.proxFolds(t) }
}

/// prox(w, steps).
public struct SteppedProximal<R: ElementRegularizer>: ElementRule {
  @inlinable public static var method: Method { R.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  public let r: R
  @inlinable public init(_ h: Hyper, _ c: StepContext) { r = R(h) }
  @inlinable @inline(__always) public func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L {
    r.prox(v, steps: w)
  }
}

/// w − lr·gradient(w).
public struct Decoupled<R: ElementRegularizer>: ElementRule {
  @inlinable public static var method: Method { R.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  public let r: R, t: Double
  @inlinable public init(_ h: Hyper, _ c: StepContext) { (r, t) = (R(h), c.lr) }
  @inlinable @inline(__always) public func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L {
    v - t * r.gradient(v)
  }
}

public struct ValueSum<R: ElementRegularizer>: ElementSum {
  public let r: R
  @inlinable public init(r: R) { self.r = r }
  @inlinable @inline(__always) public func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, r.value(x))
  }
}

/// The sum of all terms. They are taken in double: the square of a Float may be out of its range.
@inlinable @inline(never)
func total<R: ElementRegularizer, T: Real>(_ r: R, _ w: Whole<T>) -> Double {
  let kernel = plainMeasure(ValueSum(r: r), Double.Vector.self)
  var out = [Double](repeating: 0, count: Sums.count), sum = 0.0, block = Sums()
  var i = 0
  let pad = UnsafeMutableRawPointer.allocate(byteCount: Operands.padBytes, alignment: 64)
  let wide = UnsafeMutablePointer<Double>.allocate(capacity: T.isDouble ? 1 : Walker.block)
  defer {
    pad.deallocate()
    wide.deallocate()
  }
  while i < w.count {
    let n = min(Walker.block, w.count - i)
    if !T.isDouble { for k in 0..<n { wide[k] = Double(w.v[i + k]) } }
    let q = T.isDouble ? UnsafeMutableRawPointer(w.v + i) : UnsafeMutableRawPointer(wide)
    kernel(Operands(x: q, g: q, slots: SlotPointers(repeating: q), used: 0, count: n, index: i, pad: pad), &block)
    block.write(&out, Double.Vector.self)
    sum += out[0]
    block = Sums()
    i += n
  }
  return sum
}

/// In the place of what uses the gradient of one that has none.
public struct NoGradient<R: ElementRegularizer>: WholeRule {
  @inlinable public static var method: Method { R.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  @inlinable public static var mayFail: Bool { true }
  @inlinable public init(_ h: Hyper, _ c: StepContext) {}
  public func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    throw Failure(Status.unsupported, "\(R.method.name) has no gradient; use its prox")
  }
}

@inlinable public func entry<R: ElementRegularizer>(_: R.Type) -> Registered {
  let refused: RegularizerKernels.Stages = { (nil, kernels(NoGradient<R>.self).binding($0)) }
  let penalty: RegularizerKernels.Stages = { (kernels(Coupled<R>.self).binding($0), nil) }
  let decoupled: RegularizerKernels.Stages = { (kernels(Decoupled<R>.self).binding($0), nil) }
  return Registered(
    method: R.method,
    component: .regularizer(
      RegularizerKernels(
        hasProx: true, penalty: R.hasGradient ? penalty : refused,
        proximal: { (kernels(Proximal<R>.self).binding($0), nil) },
        stepped: { (kernels(SteppedProximal<R>.self).binding($0), nil) },
        decoupled: R.hasGradient ? decoupled : refused,
        value32: { (h, w) throws(Failure) in total(R(h), w) }, value64: { (h, w) throws(Failure) in total(R(h), w) })))
}

public struct WholeCoupled<R: WholeRegularizer>: WholeRule {
  @inlinable public static var method: Method { R.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { R.slots(h, shape) }
  @inlinable public static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try R.accepts(h, shape) }
  @inlinable public static var mayFail: Bool { R.mayFail }
  @inlinable public static var needsFinite: Bool { R.needsFinite }
  @inlinable public static func grain(_ h: Hyper, _ shape: Shape) -> Int? { R.grain(h, shape) }
  public let r: R
  @inlinable public init(_ h: Hyper, _ c: StepContext) { r = R(h) }
  @inlinable public func apply<T: Real>(_ t: Whole<T>) throws(Failure) { try r.addGradient(t, 1) }
}

public struct WholeProximal<R: WholeRegularizer>: WholeRule {
  @inlinable public static var method: Method { R.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  @inlinable public static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try R.accepts(h, shape) }
  @inlinable public static var mayFail: Bool { R.mayFail }
  @inlinable public static var needsFinite: Bool { R.needsFinite }
  @inlinable public static func grain(_ h: Hyper, _ shape: Shape) -> Int? { R.grain(h, shape) }
  public let r: R, t: Double
  @inlinable public init(_ h: Hyper, _ c: StepContext) { (r, t) = (R(h), c.lr) }
  @inlinable public func apply<T: Real>(_ w: Whole<T>) throws(Failure) { try r.prox(w, t) }
}

public struct WholeStepped<R: WholeRegularizer>: WholeRule {
  @inlinable public static var method: Method { R.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  @inlinable public static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try R.accepts(h, shape) }
  @inlinable public static var mayFail: Bool { R.mayFail }
  @inlinable public static var needsFinite: Bool { R.needsFinite }
  @inlinable public static func grain(_ h: Hyper, _ shape: Shape) -> Int? { R.grain(h, shape) }
  public let r: R
  @inlinable public init(_ h: Hyper, _ c: StepContext) { r = R(h) }
  @inlinable public func apply<T: Real>(_ w: Whole<T>) throws(Failure) { try r.prox(stepped: w) }
}

public struct WholeDecoupled<R: WholeRegularizer>: WholeRule {
  @inlinable public static var method: Method { R.method }
  @inlinable public static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { shape.count &* size }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { R.slots(h, shape) }
  @inlinable public static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try R.accepts(h, shape) }
  @inlinable public static var mayFail: Bool { R.mayFail }
  @inlinable public static var needsFinite: Bool { R.needsFinite }
  @inlinable public static func grain(_ h: Hyper, _ shape: Shape) -> Int? { R.grain(h, shape) }
  public let r: R, t: Double
  @inlinable public init(_ h: Hyper, _ c: StepContext) { (r, t) = (R(h), c.lr) }
  @inlinable public func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let point = w.workspace.bindMemory(to: T.self, capacity: w.count)
    point.initialize(from: w.v, count: w.count)
    var at = w
    at.w = point
    try r.addGradient(at, -t)
  }
}

@inlinable public func entry<R: WholeRegularizer>(_: R.Type) -> Registered {
  let stepped: RegularizerKernels.Stages = { (nil, kernels(WholeStepped<R>.self).binding($0)) }
  return Registered(
    method: R.method,
    component: .regularizer(
      RegularizerKernels(
        hasProx: R.hasProx, penalty: { (nil, kernels(WholeCoupled<R>.self).binding($0)) },
        proximal: { (nil, kernels(WholeProximal<R>.self).binding($0)) },
        stepped: R.isSeparable ? stepped : nil,
        decoupled: { (nil, kernels(WholeDecoupled<R>.self).binding($0)) },
        value32: { (h, w) throws(Failure) in try R(h).value(w) },
        value64: { (h, w) throws(Failure) in try R(h).value(w) })))
}

// MARK: constraints

/// A set whose projection acts on every element by itself.
public protocol ElementConstraint: Listed, BitwiseCopyable, Sendable {
  static var method: Method { get }
  init(_ h: Hyper)
  func project<L: Lane>(_ w: L) -> L
  /// The entry of a minimiser of ⟨g, s⟩ over the set.
  func minimise<L: Lane>(_ g: L) -> L
  /// `project` said in numbers; nil: it cannot be.
  var folds: Folds? { get }
}

/// A set of whole tensors.
public protocol WholeConstraint: Listed, Sendable {
  static var method: Method { get }
  static var mayFail: Bool { get }
  /// As of a `WholeRule`.
  static var needsFinite: Bool { get }
  /// Whether it has `minimise`.
  static var minimises: Bool { get }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int?
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure)
  init(_ h: Hyper)
  /// w.v ← the nearest point of the set.
  func project<T: Real>(_ w: Whole<T>) throws(Failure)
  /// w.v ← a minimiser of ⟨w.v, s⟩ over the set.
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure)
}

extension WholeConstraint {
  @inlinable public static var registered: Registered { entry(Self.self) }
  @inlinable public static var mayFail: Bool { false }
  @inlinable public static var needsFinite: Bool { false }
  @inlinable public static var minimises: Bool { false }
  public static func grain(_ h: Hyper, _ shape: Shape) -> Int? { nil }
  public static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {}
  public func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    throw Failure(Status.unsupported, "\(Self.method.name) has no linear minimisation oracle")
  }
}

/// A set with its types erased.
public struct ConstraintKernels: Sendable {
  public typealias Stages = @Sendable (Hyper) -> (ElementKernels?, WholeKernels?)
  public let projection: Stages
  public let minimise: Stages
  public let manifold: ManifoldKernels?
  /// Whether there is a linear minimisation.
  public var minimises = true
  /// For masks: what the host sees of the stored tensor, and what is added to its gradient.
  public var view: @Sendable (Hyper) -> WholeKernels? = { _ in nil }
  public var pull: (@Sendable (Hyper) -> WholeKernels?)?
  public init(
    projection: @escaping Stages, minimise: @escaping Stages, manifold: ManifoldKernels? = nil,
    view: @escaping @Sendable (Hyper) -> WholeKernels? = { _ in nil }, pull: (@Sendable (Hyper) -> WholeKernels?)? = nil
  ) {
    (self.projection, self.minimise, self.manifold) = (projection, minimise, manifold)
    (self.view, self.pull) = (view, pull)
  }
}

public struct Projection<C: ElementConstraint>: ElementRule {
  @inlinable public static var method: Method { C.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  public let set: C
  @inlinable public init(_ h: Hyper, _ c: StepContext) { set = C(h) }
  @inlinable @inline(__always) public func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { set.project(v) }
  @inlinable public var folds: Folds? { self.set.folds }
}

public struct Minimiser<C: ElementConstraint>: ElementRule {
  @inlinable public static var method: Method { C.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  public let set: C
  @inlinable public init(_ h: Hyper, _ c: StepContext) { set = C(h) }
  @inlinable @inline(__always) public func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { set.minimise(v) }
}

extension ElementConstraint {
  @inlinable public var folds: Folds? { nil }
  @inlinable public static var registered: Registered {
    Registered(method: method, component: .constraint(constraintKernels(Self.self)))
  }
}

/// A set of entries; `lists` is its form where a hyper-parameter is a list of numbers.
@inlinable
public func constraintKernels<C: ElementConstraint>(_: C.Type, withLists lists: ConstraintKernels? = nil)
  -> ConstraintKernels
{
  let project: ConstraintKernels.Stages = { (kernels(Projection<C>.self).binding($0), nil) }
  let minimise: ConstraintKernels.Stages = { (kernels(Minimiser<C>.self).binding($0), nil) }
  guard let lists else { return ConstraintKernels(projection: project, minimise: minimise) }
  return ConstraintKernels(
    projection: { $0.hasLists ? lists.projection($0) : project($0) },
    minimise: { $0.hasLists ? lists.minimise($0) : minimise($0) })
}

public enum SetOperation {
  public struct Project: Sendable {}
  public struct Minimise: Sendable {}
}

public struct SetRule<C: WholeConstraint, Operation: Sendable>: WholeRule {
  @inlinable public static var method: Method { C.method }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  @inlinable public static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try C.accepts(h, shape) }
  @inlinable public static var mayFail: Bool { C.mayFail }
  @inlinable public static var needsFinite: Bool { C.needsFinite }
  @inlinable public static func grain(_ h: Hyper, _ shape: Shape) -> Int? { C.grain(h, shape) }
  public let set: C
  @inlinable public init(_ h: Hyper, _ c: StepContext) { set = C(h) }
  @inlinable public func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    if Operation.self == SetOperation.Project.self { try set.project(t) } else { try set.minimise(t) }
  }
}

@inlinable public func entry<C: WholeConstraint>(_: C.Type) -> Registered {
  Registered(method: C.method, component: .constraint(constraintKernels(C.self)))
}

@inlinable public func constraintKernels<C: WholeConstraint>(_: C.Type, _ manifold: ManifoldKernels? = nil)
  -> ConstraintKernels
{
  var set = ConstraintKernels(
    projection: { (nil, kernels(SetRule<C, SetOperation.Project>.self).binding($0)) },
    minimise: { (nil, kernels(SetRule<C, SetOperation.Minimise>.self).binding($0)) }, manifold: manifold)
  set.minimises = C.minimises
  return set
}
