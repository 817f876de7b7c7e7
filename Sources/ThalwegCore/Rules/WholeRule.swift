/// A whole tensor, dense, in the compute type, as a matrix method sees it.
public struct Whole<T: Real> {
  /// What is transformed in place: gradient, update or parameter.
  public var v: UnsafeMutablePointer<T>
  /// Its companion: the parameter of a gradient, the previous parameter of a parameter.
  public var w: UnsafeMutablePointer<T>
  public var slots: [UnsafeMutablePointer<T>]
  public var shape: Shape
  /// As many bytes as the rule's `workspace` asked for, 64-byte aligned; nobody else uses it meanwhile.
  public var workspace: UnsafeMutableRawPointer
  public init(
    v: UnsafeMutablePointer<T>, w: UnsafeMutablePointer<T>, slots: [UnsafeMutablePointer<T>], shape: Shape,
    workspace: UnsafeMutableRawPointer
  ) { (self.v, self.w, self.slots, self.shape, self.workspace) = (v, w, slots, shape, workspace) }
  public var count: Int { shape.count }
  public var rows: Int { shape.rows }
  public var columns: Int { shape.columns }

  /// Changes every element of v, in vectors: the operation's parameter is v, its gradient w; the first of its state are
  /// `slots`, then comes `more`, all of the shape of the tensor. Elements outside `range` are left out.
  @inlinable @inline(never) public func change(
    _ op: some ElementOperation, slots: Swift.Range<Int> = 0..<0, more: UnsafeMutablePointer<T>? = nil,
    in range: Swift.Range<Int>? = nil
  ) {
    let range = range ?? 0..<count
    Parts(range.count, of: 1).forEach { _, part in
      operands(slots, more, range.lowerBound, part) { walk($0, op, T.Vector.self, true, false) }
    }
  }
  /// The operation's sums over every element. The last vector is filled up: an element whose operands are all zero must
  /// add nothing.
  @inlinable @inline(never) public func sums(
    _ op: some ElementSum, slots: Swift.Range<Int> = 0..<0, more: UnsafeMutablePointer<T>? = nil,
    in range: Swift.Range<Int>? = nil
  ) -> Sums {
    let range = range ?? 0..<count, parts = Parts(range.count, of: 1)
    return withUnsafeTemporaryAllocation(of: Sums.self, capacity: parts.count) { list in
      nonisolated(unsafe) let list = list
      parts.forEach { k, part in
        operands(slots, more, range.lowerBound, part) { list[k] = addUp($0, op, T.Vector.self, Sums()) }
      }
      var all = Sums()
      for part in list { all.add(part) }
      return all
    }
  }
  @inlinable @inline(__always) func operands(
    _ chosen: Swift.Range<Int>, _ more: UnsafeMutablePointer<T>?, _ first: Int, _ part: Swift.Range<Int>,
    _ body: (Operands) -> Void
  ) {
    let start = first &+ part.lowerBound
    withUnsafeTemporaryAllocation(byteCount: Operands.padBytes, alignment: 64) { room in
      let pad = room.baseAddress ?? workspace
      var list = SlotPointers(repeating: pad), used = 0
      for k in chosen {
        list[used] = UnsafeMutableRawPointer(slots[k] + start)
        used &+= 1
      }
      if let more {
        list[used] = UnsafeMutableRawPointer(more + start)
        used &+= 1
      }
      body(
        Operands(
          x: UnsafeMutableRawPointer(v + start), g: UnsafeMutableRawPointer(w + start), slots: list, used: used,
          count: part.count, index: start, pad: pad))
    }
  }
}

/// A stage that acts on a whole tensor: matrix methods, projections, proxes with norms.
public protocol WholeRule: Listed, Sendable {
  static var method: Method { get }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot]
  /// Numbers that it keeps for each tensor, in double (`c.scalars`); of a rule with a source: for all tensors together,
  /// and the source alone writes them.
  static func scalars(_ h: Hyper) -> [Scalar]
  static func decay(_ h: Hyper) -> Decay
  /// Throws when tensors of this shape are refused, before anything is bound.
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure)
  /// Bytes of scratch memory for a tensor whose elements have `size` bytes. Allocated before the first step, so that
  /// none can fail for it.
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int
  /// Where it treats parts of a tensor along the first axis by themselves, if they have a multiple of so many entries
  /// there; nil: it needs the whole. The engine then gives it part after part, each while it lies in the cache. It is
  /// asked once: a parameter that may be set later is no ground for an answer.
  static func grain(_ h: Hyper, _ shape: Shape) -> Int?
  /// A factorisation may fail: the engine then keeps copies, so that a failed step changes nothing.
  static var mayFail: Bool { get }
  /// The same, where it depends on the hyper-parameters.
  static func mayFail(_ h: Hyper) -> Bool
  /// Elements that are not finite are all that it fails for, and it looks before it writes: no copies are needed. The
  /// engine looks at gradients and parameters before the step; what overflows within the step it leaves as it is.
  static var needsFinite: Bool { get }
  /// The first slot receives the parameters as they were before the step.
  static var keepsPoint: Bool { get }
  /// A rule that takes its own step leaves the new parameters in v, and not the move to them: what is small beside the
  /// old parameters would be lost in their difference.
  static var leavesPoint: Bool { get }
  /// Where it stands among the stages behind a rule, whatever the order of the sentence.
  static func place(_ h: Hyper) -> UpdatePlace
  /// It decides on the decoupled decay of the step, and does nothing else.
  static var setsDecay: Bool { get }
  /// The decay per step size, `decay` that of the rule; `number` is the first of its first slot, and may be changed.
  func decay(_ decay: Double, _ number: inout Double) -> Double
  /// It takes the decay out of the update where the update's sign is not that of the parameter.
  static var masksDecay: Bool { get }
  /// At the place of norms, it looks at the weights behind the decay: where that is masked, right behind the mask, for
  /// the sign of the update tells what was spared.
  static var readsDecay: Bool { get }
  /// It gives evaluation weights.
  static var evaluates: Bool { get }
  /// Behind the move, it looks at all its tensors together before it changes one, and leaves what it finds in their
  /// `scalars`.
  static func gathers(_ h: Hyper) -> Bool
  static func gather(_ all: AllTensors) throws(Failure)
  init(_ h: Hyper, _ c: StepContext)
  func apply<T: Real>(_ t: Whole<T>) throws(Failure)
  /// Makes the evaluation weights of the parameters in v.
  func evaluate<T: Real>(_ t: Whole<T>) throws(Failure)
}

extension WholeRule {
  @inlinable public static var registered: Registered { entry(Self.self) }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { method.slots }
  @inlinable public static func scalars(_ h: Hyper) -> [Scalar] { [] }
  @inlinable public static func decay(_ h: Hyper) -> Decay { .none }
  public static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {}
  @inlinable public static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { 0 }
  @inlinable public static func grain(_ h: Hyper, _ shape: Shape) -> Int? { nil }
  @inlinable public static var mayFail: Bool { false }
  @inlinable public static func mayFail(_ h: Hyper) -> Bool { mayFail }
  @inlinable public static var needsFinite: Bool { false }
  @inlinable public static var keepsPoint: Bool { false }
  @inlinable public static var leavesPoint: Bool { false }
  @inlinable public static func place(_ h: Hyper) -> UpdatePlace { .direction }
  @inlinable public static var setsDecay: Bool { false }
  public func decay(_ decay: Double, _ number: inout Double) -> Double { decay }
  @inlinable public static var masksDecay: Bool { false }
  @inlinable public static var readsDecay: Bool { false }
  @inlinable public static var evaluates: Bool { false }
  @inlinable public static func gathers(_ h: Hyper) -> Bool { false }
  public static func gather(_ all: AllTensors) throws(Failure) {}
  public func evaluate<T: Real>(_ t: Whole<T>) throws(Failure) {}
}

/// Where a stage behind a rule stands: it changes the direction, takes part in the decay, or sets the norm of what both
/// lead to.
public enum UpdatePlace: Int, Sendable { case direction, decay, addedDecay, norm }

public struct WholeKernels: Sendable {
  public let slots: @Sendable (Hyper, Shape) -> [Slot]
  public let scalars: @Sendable (Hyper) -> [Scalar]
  public let decay: @Sendable (Hyper) -> Decay
  public let accepts: @Sendable (Hyper, Shape) throws(Failure) -> Void
  public let workspace: @Sendable (Hyper, Shape, Int) -> Int
  public let grain: @Sendable (Hyper, Shape) -> Int?
  public let mayFail: @Sendable (Hyper) -> Bool
  public let place: @Sendable (Hyper) -> UpdatePlace
  /// The decay that a stage decides on, where it does.
  public typealias Decision = @Sendable (Hyper, StepContext, _ decay: Double, _ number: inout Double) -> Double
  public let newDecay: Decision?
  public let gathers: @Sendable (Hyper) -> Bool
  public let gather: @Sendable (AllTensors) throws(Failure) -> Void
  public struct Traits: Sendable {
    public let needsFinite, keepsPoint, leavesPoint, masksDecay, readsDecay: Bool
    @usableFromInline init<R: WholeRule>(_: R.Type) {
      (needsFinite, keepsPoint) = (R.needsFinite, R.keepsPoint)
      (leavesPoint, masksDecay, readsDecay) = (R.leavesPoint, R.masksDecay, R.readsDecay)
    }
  }
  public let traits: Traits
  /// It does nothing but change the decoupled decay of a rule.
  public var changesDecay: Bool { newDecay != nil || traits.masksDecay }
  public typealias Call<T: Real> = @Sendable (Hyper, StepContext, Whole<T>) throws(Failure) -> Void
  public let f32: Call<Float>
  public let f64: Call<Double>
  /// The evaluation weights, where it gives some.
  public let evaluate: (f32: Call<Float>, f64: Call<Double>)?
  @usableFromInline init(
    slots: @escaping @Sendable (Hyper, Shape) -> [Slot], scalars: @escaping @Sendable (Hyper) -> [Scalar],
    decay: @escaping @Sendable (Hyper) -> Decay,
    accepts: @escaping @Sendable (Hyper, Shape) throws(Failure) -> Void,
    workspace: @escaping @Sendable (Hyper, Shape, Int) -> Int, grain: @escaping @Sendable (Hyper, Shape) -> Int?,
    mayFail: @escaping @Sendable (Hyper) -> Bool, place: @escaping @Sendable (Hyper) -> UpdatePlace,
    newDecay: Decision?, gathers: @escaping @Sendable (Hyper) -> Bool,
    gather: @escaping @Sendable (AllTensors) throws(Failure) -> Void, traits: Traits,
    f32: @escaping Call<Float>, f64: @escaping Call<Double>, evaluate: (f32: Call<Float>, f64: Call<Double>)?
  ) {
    (self.slots, self.scalars, self.decay) = (slots, scalars, decay)
    (self.accepts, self.workspace, self.grain) = (accepts, workspace, grain)
    (self.mayFail, self.place, self.newDecay, self.traits) = (mayFail, place, newDecay, traits)
    (self.gathers, self.gather) = (gathers, gather)
    (self.f32, self.f64, self.evaluate) = (f32, f64, evaluate)
  }
}

@usableFromInline func deciding<R: WholeRule>(_: R.Type) -> WholeKernels.Decision {
  { (h, c, decay, number) in R(h, c).decay(decay, &number) }
}

@inlinable @inline(never)
public func kernels<R: WholeRule>(_: R.Type) -> WholeKernels {
  WholeKernels(
    slots: { R.slots($0, $1) }, scalars: { R.scalars($0) }, decay: { R.decay($0) },
    accepts: { (h, s) throws(Failure) in try R.accepts(h, s) }, workspace: { R.workspace($0, $1, $2) },
    grain: { R.grain($0, $1) },
    mayFail: { R.mayFail($0) }, place: { R.place($0) },
    newDecay: R.setsDecay ? deciding(R.self) : nil,
    gathers: { R.gathers($0) }, gather: { (all) throws(Failure) in try R.gather(all) },
    traits: WholeKernels.Traits(R.self),
    f32: { (h, c, w) throws(Failure) in try R(h, c).apply(w) },
    f64: { (h, c, w) throws(Failure) in try R(h, c).apply(w) },
    evaluate: R.evaluates
      ? (
        { (h, c, w) throws(Failure) in try R(h, c).evaluate(w) },
        { (h, c, w) throws(Failure) in try R(h, c).evaluate(w) }
      ) : nil)
}

extension WholeKernels {
  public func binding(_ inner: Hyper) -> WholeKernels {
    WholeKernels(
      slots: { [slots] _, s in slots(inner, s) }, scalars: { [scalars] _ in scalars(inner) },
      decay: { [decay] _ in decay(inner) },
      accepts: { [accepts] (_, s) throws(Failure) in try accepts(inner, s) },
      workspace: { [workspace] _, s, n in workspace(inner, s, n) }, grain: { [grain] _, s in grain(inner, s) },
      mayFail: { [mayFail] _ in mayFail(inner) }, place: { [place] _ in place(inner) }, newDecay: nil,
      gathers: { _ in false }, gather: gather, traits: traits,
      f32: { [f32] (h, c, w) throws(Failure) in try f32(h.ofHeld.first ?? inner, c, w) },
      f64: { [f64] (h, c, w) throws(Failure) in try f64(h.ofHeld.first ?? inner, c, w) },
      evaluate: nil)
  }
}
