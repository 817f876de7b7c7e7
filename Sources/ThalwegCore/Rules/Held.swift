// The methods that a rule or a source holds, as the values of hyper-parameters: `h.held("domain")`.

/// A set, each tensor by itself.
public struct HeldSet: Sendable {
  public let hyper: Hyper
  public let kernels: ConstraintKernels
  public init(_ held: Held) throws(Failure) {
    guard case .constraint(let k) = held.component else {
      throw Failure(Status.internal, "\(held.method.name) is no constraint")
    }
    (hyper, kernels) = (held.hyper, k)
  }
  public func project<T: Real>(_ v: UnsafeMutablePointer<T>, _ shape: Shape) throws(Failure) {
    try runOnce(kernels.projection(hyper), hyper, v, v, shape, t: 0)
  }
}

/// A manifold: the operations of `Manifold` on dense memory.
public struct HeldManifold: Sendable {
  private let hyper: Hyper
  private let set: HeldSet
  private let kernels: ManifoldKernels

  public init(_ held: Held, of method: String, _ parameter: String) throws(Failure) {
    let set = try HeldSet(held)
    guard let m = set.kernels.manifold else {
      throw Failure(
        Status.unsupported, "\(method): `\(parameter)` must be a manifold, got \(held.method.name), which is none")
    }
    (hyper, self.set, kernels) = (held.hyper, set, m)
  }

  public func factors(_ shape: Shape) -> Slices { .points(kernels.pointAxes(shape), shape) }
  public func accepts(_ shape: Shape) throws(Failure) { try kernels.tangent.accepts(hyper, shape) }
  public var mayFail: Bool { kernels.tangent.mayFail(hyper) || kernels.tangent.traits.needsFinite }

  public func project<T: Real>(_ x: UnsafeMutablePointer<T>, _ shape: Shape) throws(Failure) {
    try set.project(x, shape)
  }
  /// g ← the Riemannian gradient at x.
  public func tangent<T: Real>(_ g: UnsafeMutablePointer<T>, at x: UnsafeMutablePointer<T>, _ shape: Shape)
    throws(Failure)
  {
    try run(kernels.tangent, g, x, nil, shape)
  }
  /// u ← the point that it leads to from x.
  public func retract<T: Real>(_ u: UnsafeMutablePointer<T>, from x: UnsafeMutablePointer<T>, _ shape: Shape)
    throws(Failure)
  {
    try run(kernels.retract, u, x, nil, shape)
  }
  /// u ← what it becomes on the way from x to y.
  public func transport<T: Real>(
    _ u: UnsafeMutablePointer<T>, from x: UnsafeMutablePointer<T>, to y: UnsafeMutablePointer<T>, _ shape: Shape
  ) throws(Failure) {
    try run(kernels.transport, u, x, y, shape)
  }
  /// out ← ⟨u, u⟩ at x, one number a factor.
  public func squares<T: Real>(
    _ u: UnsafeMutablePointer<T>, at x: UnsafeMutablePointer<T>, into out: UnsafeMutablePointer<T>, _ shape: Shape
  ) throws(Failure) {
    try run(kernels.squares, u, x, out, shape)
  }

  private func run<T: Real>(
    _ whole: WholeKernels, _ v: UnsafeMutablePointer<T>, _ w: UnsafeMutablePointer<T>,
    _ slot: UnsafeMutablePointer<T>?, _ shape: Shape
  ) throws(Failure) {
    let v = UnsafeMutableRawPointer(v), w = UnsafeMutableRawPointer(w)
    func tensor<U: Real>(_: U.Type) -> Whole<U> {
      Whole(
        v: v.assumingMemoryBound(to: U.self), w: w.assumingMemoryBound(to: U.self),
        slots: slot.map { [UnsafeMutableRawPointer($0).assumingMemoryBound(to: U.self)] } ?? [], shape: shape,
        workspace: v)
    }
    if T.isDouble {
      try whole.f64(hyper, StepContext(), tensor(Double.self))
    } else {
      try whole.f32(hyper, StepContext(), tensor(Float.self))
    }
  }
}

/// The prox of a regularizer.
public struct HeldProx: Sendable {
  private let kernels: RegularizerKernels, hyper: Hyper

  public static func parameter(_ name: String, _ meaning: String) -> Parameter {
    .object(name, .regularizer, standard: nil, meaning)
  }
  /// nil where there is none.
  public init?(_ h: Hyper, _ name: String) throws(Failure) {
    guard let held = h.held(name) else { return nil }
    guard case .regularizer(let k) = held.component, k.hasProx else {
      throw Failure(Status.unsupported, "`\(name)`: \(held.method.name) has no prox")
    }
    (kernels, hyper) = (k, held.hyper)
  }
  /// Its prox acts on every element by itself, and takes a step for each.
  public var isSeparable: Bool { kernels.stepped != nil }
  public var mayFail: Bool {
    kernels.proximal(hyper).1.map { $0.mayFail(hyper) || $0.traits.needsFinite } ?? false
  }
  public func accepts(_ shape: Shape) throws(Failure) { try kernels.proximal(hyper).1?.accepts(hyper, shape) }

  public func apply<T: Real>(_ v: Vector<T>, _ step: Double) throws(Failure) {
    try apply(v.p, Shape(dimensions: v.shape), step)
  }
  public func apply<T: Real>(_ v: UnsafeMutablePointer<T>, _ shape: Shape, _ step: Double) throws(Failure) {
    try runOnce(kernels.proximal(hyper), hyper, v, v, shape, t: step)
  }
  /// The penalty at v.
  public func value<T: Real>(_ v: UnsafeMutablePointer<T>, _ shape: Shape) throws(Failure) -> Double {
    let raw = UnsafeMutableRawPointer(v)
    func tensor<U: Real>(_: U.Type) -> Whole<U> {
      let p = raw.assumingMemoryBound(to: U.self)
      return Whole(v: p, w: p, slots: [], shape: shape, workspace: raw)
    }
    return T.isDouble
      ? try kernels.value64(hyper, tensor(Double.self)) : try kernels.value32(hyper, tensor(Float.self))
  }
  /// v ← the prox, with one step for each element.
  public func apply<T: Real>(
    _ v: UnsafeMutablePointer<T>, _ shape: Shape, steps: UnsafeMutablePointer<T>
  ) throws(Failure) {
    guard let stepped = kernels.stepped else { throw Failure(Status.internal, "a prox that takes one step") }
    try runOnce(stepped(hyper), hyper, v, steps, shape, t: 0)
  }
}

/// An element-wise rule that another one runs on numbers of its own: what it would subtract, for a step size of 1. Its
/// own step size and decay are not used, and it sees parameters of 0.
public struct HeldRule: Sendable {
  private let kernels: ElementKernels, hyper: Hyper

  /// nil where there is none. Throws for rules that need sums, numbers beside their state, or that move by themselves.
  public init?(_ h: Hyper, _ name: String, of method: String) throws(Failure) {
    guard let held = h.held(name) else { return nil }
    guard case .element(let k) = held.component, k.phases(held.hyper) == 0, k.scalars(held.hyper).isEmpty,
      !k.evaluates, !held.method.asks(for: "own-step"), !held.method.needsLoss
    else {
      throw Failure(
        Status.unsupported,
        "\(method): `\(name)` must be a rule that acts on every element by itself, as (adam); \(held.method.name) is "
          + "none")
    }
    (kernels, hyper) = (k, held.hyper)
  }

  /// Its state for a tensor, `count` numbers each.
  public func slots(_ shape: Shape, count: Int) -> [Slot] {
    kernels.slots(hyper, shape).map {
      var s = $0
      s.count = count
      return s
    }
  }
  /// v ← direction(v), with its state.
  public func run<T: Real>(
    _ v: UnsafeMutablePointer<T>, _ slots: ArraySlice<UnsafeMutablePointer<T>>, _ count: Int, _ c: StepContext
  ) throws(Failure) {
    let rule = aligned(kernels.size), zeros = count &* MemoryLayout<T>.stride
    let space = try Memory(rule + Operands.padBytes + aligned(zeros), .current)
    defer { withExtendedLifetime(space) {} }
    let p = space.base, pad = p + rule, w = pad + Operands.padBytes
    kernels.prepare(hyper, c, p)
    var pointers = SlotPointers(repeating: w)
    for (k, s) in slots.enumerated() { pointers[k] = UnsafeMutableRawPointer(s) }
    let o = Operands(
      x: UnsafeMutableRawPointer(v), g: w, slots: pointers, used: slots.count, count: count, index: 0, pad: pad)
    if T.isDouble { kernels.map.1(p, Apply(), o) } else { kernels.map.0(p, Apply(), o) }
  }
}

extension Hyper {
  /// The manifold that a parameter names, for methods whose `validate` saw that it is one.
  public func manifold(_ name: String, of method: String) throws(Failure) -> HeldManifold {
    guard let held = held(name) else { throw Failure(Status.internal, "\(method): `\(name)` is not there") }
    return try HeldManifold(held, of: method, name)
  }
}
