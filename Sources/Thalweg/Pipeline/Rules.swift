import CThalweg

/// What a rule knows of the present step, besides its hyper-parameters.
package struct StepContext: @unchecked Sendable {
  /// The number of this step for this tensor, from 1 (its own count: a tensor without a gradient does not advance).
  package var t = 1
  /// Steps completed by the optimizer, from 0.
  package var step = 0
  package var lr = 0.0
  package var weightDecay = 0.0
  package var ndim = 0
  package var count = 0
  package var rows = 1
  package var columns = 1
  package var role = 0
  /// The number that keys the random draws of this tensor.
  package var tensor = 0
  package var seed: UInt64 = 0
  /// Random draws of different stages are independent.
  package var stream: UInt32 = 0
  /// The observed loss; NaN when none was given.
  package var loss = Double.nan
  package var isDouble = false
  /// The stage's scalars: one set for all tensors (global scope) or one a tensor.
  package var scalars: UnsafeMutablePointer<Double> = StepContext.nothing
  nonisolated(unsafe) static let nothing = UnsafeMutablePointer<Double>.allocate(capacity: 1)

  package var time: Double { Double(t) }
}

/// Over what a stage's sums and scalars reach.
package enum Scope: Sendable { case tensor, global }

/// What happens to `weight_decay`.
package enum Decay: Sendable {
  /// The method has none.
  case none
  /// g ← g + wd·θ before anything else.
  case coupled
  /// θ ← θ·(1 − lr·wd) before the update.
  case decoupled
  /// The rule does it itself (`c.weightDecay`).
  case rule
}

/// A state buffer, of the shape of the parameter unless it says how many elements it has.
package struct Slot: Sendable {
  package enum Start: Sendable {
    case zero, value(Double)
    /// The parameters as they are at the tensor's first step.
    case parameters
    /// The same, and anew where the host writes the parameters between two steps: what the next parameters are made of.
    case iterate(Iterate = .same)
  }
  /// What an iterate is of the parameters.
  package enum Iterate: Sendable {
    case same
    /// The parameters times a scalar of the stage.
    case times(Int)
    /// Their logarithm, 0 where they are not positive.
    case logarithm
  }
  /// How it may be stored: moments tolerate 16 and 8 bits; what is exact is kept in the compute type.
  package enum Storage: Sendable { case exact, signed, positive }
  package var name: String
  package var meaning: String
  package var storage: Storage
  package var start: Start
  package var temporary = false
  /// It holds the parameters while they are away from where the host left them; the engine brings them back when a step
  /// is broken off.
  package var home = false
  /// Its elements, where they are not those of the parameter: row sums, bases, factors. Only whole-tensor rules have
  /// such buffers; they are kept exactly and start at a number.
  package var count: Int?
  package init(_ name: String, _ meaning: String, _ storage: Storage = .exact, start: Start = .zero, count: Int? = nil)
  {
    (self.name, self.meaning, self.storage, self.start, self.count) = (name, meaning, storage, start, count)
  }
  package func elements(of parameter: Int) -> Int { count ?? parameter }
  /// Something that is needed from one request to the next and not between steps: it is saved only within a step.
  package static func temporary(_ name: String, _ meaning: String, start: Start = .zero) -> Slot {
    var s = Slot(name, meaning, start: start)
    s.temporary = true
    return s
  }
  /// Where a source keeps the parameters before it moves them; its first walk of a step over this slot must be one that
  /// saves them.
  package static func home(_ name: String, _ meaning: String) -> Slot {
    var s = temporary(name, meaning)
    s.home = true
    return s
  }
  /// An average that keeps signs.
  package static func moment(_ name: String, _ meaning: String) -> Slot { Slot(name, meaning, .signed) }
  /// An average of squares or magnitudes: never negative.
  package static func square(_ name: String, _ meaning: String) -> Slot { Slot(name, meaning, .positive) }
}

/// A number that a stage keeps between steps, in double.
package struct Scalar: Sendable {
  package var name: String
  package var start: Double
  package init(_ name: String, _ start: Double = 0) { (self.name, self.start) = (name, start) }
}

/// The results of a reducing phase.
package struct Totals {
  let p: UnsafePointer<Double>
  /// Sum k, 0 to 3.
  package subscript(k: Int) -> Double { p[k] }
  /// The root of sum k, a sum of squares: right where the squares overflow too. Of finite elements it is finite.
  package func root(_ k: Int) -> Double { Squares(self, k).root }
  /// Sum k, and the largest double where finite elements have a larger sum.
  package func finite(_ k: Int) -> Double {
    p[k].isInfinite && p[Sums.scaled + k].isFinite ? (p[k] < 0 ? -1 : 1) * Double.greatestFiniteMagnitude : p[k]
  }
  package var maximum: Double { p[Sums.top] }
}

/// A sum of squares that may be larger than any double. As a scalar it is one number: the sum, or, where that
/// overflows, the negative of the sum times 2⁻¹²⁰⁰.
package struct Squares: Sendable {
  package private(set) var number: Double
  package init(_ number: Double) { self.number = number }
  package init(_ totals: Totals, _ k: Int) { self.init(sum: totals[k], scaled: totals.p[Sums.scaled + k]) }
  init(sum: Double, scaled: Double) { number = sum == .infinity && scaled.isFinite && scaled > 0 ? -scaled : sum }
  private var scaled: Double { number < 0 ? -number : number * 0x1p-600 * 0x1p-600 }
  /// Its root: infinite only where a square was.
  package var root: Double {
    number < 0 ? min((-number).squareRoot() * 0x1p600, .greatestFiniteMagnitude) : number.squareRoot()
  }
  /// Adds factor² times another sum.
  package mutating func add(_ more: Squares, times factor: Double = 1) {
    let sum = number + factor * factor * more.number
    if number >= 0, more.number >= 0, sum.isFinite { return number = sum }
    if number.isNaN || more.number.isNaN { return number = .nan }
    if number == .infinity || more.number == .infinity { return number = .infinity }
    number = -(scaled + factor * (factor * more.scaled))
  }
  package static func < (a: Squares, b: Squares) -> Bool {
    a.number < 0 || b.number < 0 ? a.scaled < b.scaled : a.number < b.number
  }
}

/// A tensor as a rule may ask about it before it runs.
package struct Shape: Sendable {
  package var dimensions: [Int]
  package var role = 0
  package var count: Int { dimensions.reduce(1, &*) }
  package var ndim: Int { dimensions.count }
  package var rows: Int { ndim >= 2 ? dimensions[0] : 1 }
  package var columns: Int { ndim >= 2 ? dimensions.dropFirst().reduce(1, &*) : count }
}

/// A stage that acts on every element by itself.
///
/// Used as an update rule, `direction` maps the gradient `v` and the parameter `w` to the step that is multiplied by
/// the learning rate and subtracted. Used as a transform of gradients, `v` is the gradient and `w` the parameter; of
/// updates, `v` is the update and `w` the gradient; of parameters (averages, proxes), `v` is the parameter.
///
/// A stage that needs norms or other sums declares `phases`: before `direction`, each phase walks all elements through
/// `measure` (which may change the state), then `finish` turns the totals into scalars, and the stage is made anew with
/// them. In `measure` an element whose operands are all zero must add nothing: the last vector of a tensor is padded
/// so.
package protocol ElementRule: BitwiseCopyable, Sendable {
  static var method: Method { get }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot]
  static func scalars(_ h: Hyper) -> [Scalar]
  static func scope(_ h: Hyper) -> Scope
  /// Of a rule with scalars a tensor, the first so many are one number for all tensors. They never fall: at the start
  /// of a step every tensor takes the largest, so that one that was absent misses nothing.
  static var shared: Int { get }
  static func phases(_ h: Hyper) -> Int
  /// Over what the sums of a phase reach, where that is not the scope: a stage with scalars a tensor may also take sums
  /// over all tensors, which every tensor then receives.
  static func reach(_ h: Hyper, _ phase: Int) -> Scope
  static func decay(_ h: Hyper) -> Decay
  /// The rule's numbers differ from tensor to tensor (by shape, or by random draws), so that it is made anew for each.
  static var perTensor: Bool { get }
  /// At the start of a step, before the first phase: advances the scalars.
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext)
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext)
  init(_ h: Hyper, _ c: StepContext)
  func measure<L: Lane>(_ phase: Int, _ v: L, _ w: L, _ s: Slots<L>, _ sums: inout Sums)
  func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L
  /// The new parameter. Methods whose move is not θ·keep − lr·direction override it.
  func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L
  /// What `evaluation weights` are, where they are not the parameters.
  static var evaluates: Bool { get }
  /// For stages behind the rule: the step that the rule counts at step t of a tensor. Where it falls back, the rule
  /// starts afresh.
  static func ruleStep(_ t: Int, _ h: Hyper) -> Int
  /// With the numbers that it has now `direction` is `v` times this number and touches no state; nil: it is more. The
  /// engine then multiplies as it reads, or leaves the stage out where the number is 1.
  var multiplies: Double? { get }
  func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L
}

extension ElementRule {
  package static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { method.slots }
  package static func scalars(_ h: Hyper) -> [Scalar] { [] }
  package static func scope(_ h: Hyper) -> Scope { .global }
  package static var shared: Int { 0 }
  package static func phases(_ h: Hyper) -> Int { 0 }
  package static func reach(_ h: Hyper, _ phase: Int) -> Scope { scope(h) }
  package static func decay(_ h: Hyper) -> Decay { .none }
  package static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {}
  package static func finish(
    _ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext
  ) {}
  @inline(__always) package func measure<L: Lane>(_ phase: Int, _ v: L, _ w: L, _ s: Slots<L>, _ sums: inout Sums) {}
  @inline(__always) package func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L {
    let d = direction(g, x, s)
    return x * a.keep - a.lr * d
  }
  package static var perTensor: Bool { false }
  package static var evaluates: Bool { false }
  package static func ruleStep(_ t: Int, _ h: Hyper) -> Int { t }
  package var multiplies: Double? { nil }
  @inline(__always) package func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { x }
}

/// What the engine does around every update rule, as numbers: x ← x·keep − lr·direction(scale·g + coupled·x).
package struct Apply: BitwiseCopyable, Sendable {
  package var scale = 1.0
  package var coupled = 0.0
  package var keep = 1.0
  package var lr = 1.0
  package init() {}

  /// The gradient as the rule sees it.
  @inline(__always) func gradient<L: Lane>(_ g: L, _ x: L) -> L {
    let scaled = g * scale
    return coupled != 0 ? scaled + coupled * x : scaled
  }
}

/// An element rule with its types erased: what the engine runs. (A class: a struct of closures would copy them all at
/// every use.)
package final class ElementKernels: Sendable {
  package typealias Kernel = @Sendable (UnsafeRawPointer, Apply, Operands) -> Void
  /// Goes on with the sums that it is given: a block gives the same bits whether it comes whole or in chunks.
  package typealias Measure = @Sendable (UnsafeRawPointer, Apply, Int, Operands, UnsafeMutablePointer<Sums>) -> Void
  typealias Prepare = @Sendable (Hyper, StepContext, UnsafeMutableRawPointer) -> Void
  typealias Begin = @Sendable (UnsafeMutablePointer<Double>, Hyper, StepContext) -> Void
  typealias Finish = @Sendable (Int, Totals, UnsafeMutablePointer<Double>, Hyper, StepContext) -> Void
  let size: Int
  let prepare: Prepare
  let slots: @Sendable (Hyper, Shape) -> [Slot]
  let scalars: @Sendable (Hyper) -> [Scalar]
  let scope: @Sendable (Hyper) -> Scope
  let shared: Int
  let phases: @Sendable (Hyper) -> Int
  let reach: @Sendable (Hyper, Int) -> Scope
  let decay: @Sendable (Hyper) -> Decay
  let perTensor: Bool
  let begin: Begin
  let finish: Finish
  /// x ← step(g, x): the whole update in one walk. (f32, f64)
  let fused: (Kernel, Kernel)
  /// The same over whole 8-bit blocks, with narrow state. (f32)
  let packed: Kernel
  /// v ← direction(v, w).
  let map: (Kernel, Kernel)
  let measure: (Measure, Measure)
  /// Of the rule that was prepared at this address.
  let multiplies: @Sendable (UnsafeRawPointer) -> Double?
  let evaluates: Bool
  let ruleStep: @Sendable (Int, Hyper) -> Int
  let evaluate: (Kernel, Kernel)

  init(
    size: Int, prepare: @escaping Prepare, slots: @escaping @Sendable (Hyper, Shape) -> [Slot],
    scalars: @escaping @Sendable (Hyper) -> [Scalar],
    scope: @escaping @Sendable (Hyper) -> Scope, shared: Int, phases: @escaping @Sendable (Hyper) -> Int,
    reach: @escaping @Sendable (Hyper, Int) -> Scope,
    decay: @escaping @Sendable (Hyper) -> Decay, perTensor: Bool, begin: @escaping Begin, finish: @escaping Finish,
    fused: (Kernel, Kernel), packed: @escaping Kernel, map: (Kernel, Kernel), measure: (Measure, Measure),
    multiplies: @escaping @Sendable (UnsafeRawPointer) -> Double?, evaluates: Bool,
    ruleStep: @escaping @Sendable (Int, Hyper) -> Int, evaluate: (Kernel, Kernel)
  ) {
    (self.size, self.prepare, self.slots, self.scalars, self.scope, self.phases) = (
      size, prepare, slots, scalars, scope, phases
    )
    self.shared = shared
    (self.reach, self.decay, self.perTensor, self.begin, self.finish) = (reach, decay, perTensor, begin, finish)
    (self.fused, self.packed, self.map, self.measure) = (fused, packed, map, measure)
    (self.multiplies, self.evaluates, self.ruleStep, self.evaluate) = (multiplies, evaluates, ruleStep, evaluate)
  }
}

/// Erases a rule. The closures are made in small functions that are not inlined: a generic class, or an inlined maker,
/// would be silently slower by orders of magnitude.
@inline(never)
package func kernels<R: ElementRule>(_: R.Type) -> ElementKernels {
  ElementKernels(
    size: MemoryLayout<R>.stride,
    prepare: { h, c, p in p.storeBytes(of: R(h, c), as: R.self) },
    slots: { R.slots($0, $1) }, scalars: { R.scalars($0) }, scope: { R.scope($0) }, shared: R.shared,
    phases: { R.phases($0) },
    reach: { R.reach($0, $1) }, decay: { R.decay($0) }, perTensor: R.perTensor,
    begin: { R.begin($0, $1, $2) }, finish: { R.finish($0, $1, $2, $3, $4) },
    fused: (fusedKernel(R.self, SIMD16<Float>.self), fusedKernel(R.self, SIMD8<Double>.self)),
    packed: packedKernel(R.self),
    map: (mapKernel(R.self, SIMD16<Float>.self), mapKernel(R.self, SIMD8<Double>.self)),
    measure: (measureKernel(R.self, SIMD16<Float>.self), measureKernel(R.self, SIMD8<Double>.self)),
    multiplies: { $0.loadUnaligned(as: R.self).multiplies }, evaluates: R.evaluates, ruleStep: { R.ruleStep($0, $1) },
    evaluate: (evaluateKernel(R.self, SIMD16<Float>.self), evaluateKernel(R.self, SIMD8<Double>.self)))
}

@inline(never)
private func fusedKernel<R: ElementRule, L: Lane>(_: R.Type, _: L.Type) -> ElementKernels.Kernel {
  { p, a, o in
    let rule = p.loadUnaligned(as: R.self)
    var v = Vectors<L>(o), ahead = o.ahead
    while v.next() {
      twi_prefetch(ahead)
      ahead += MemoryLayout<L>.size
      let old = L.load(v.x)
      rule.step(a.gradient(L.load(v.g), old), old, v.s, a).store(v.x)
    }
    v.finish(writesX: true)
  }
}

@inline(never)
private func packedKernel<R: ElementRule>(_: R.Type) -> ElementKernels.Kernel {
  { p, a, o in
    typealias L = SIMD16<Float>
    let rule = p.loadUnaligned(as: R.self)
    guard let codecs = o.codecs else { return }
    let x = o.x.assumingMemoryBound(to: Float.self), g = o.g.assumingMemoryBound(to: Float.self)
    var slots = o.slots
    var i = 0
    while i < o.count {
      for k in 0..<o.codecCount { slots[codecs[k].slot] = codecs[k].base(i) }
      let end = i &+ EightBit.block
      while i < end {
        for k in 0..<4 {
          twi_prefetch(x + (i &+ Codec.ahead &+ k &* L.width))
          twi_prefetch(g + (i &+ Codec.ahead &+ k &* L.width))
        }
        for k in 0..<o.codecCount { codecs[k].decode(i) }
        var s = Slots<L>(slots, o.index &+ i)
        s.i = i
        while s.i < i &+ Group.size {
          let old = L.load(x + s.i)
          rule.step(a.gradient(L.load(g + s.i), old), old, s, a).store(x + s.i)
          s.i &+= L.width
          s.index &+= L.width
        }
        for k in 0..<o.codecCount { codecs[k].encode(i) }
        i &+= Group.size
      }
      for k in 0..<o.codecCount { codecs[k].close(end) }
    }
    for k in 0..<o.codecCount { codecs[k].finish(i) }
  }
}

@inline(never)
private func mapKernel<R: ElementRule, L: Lane>(_: R.Type, _: L.Type) -> ElementKernels.Kernel {
  { p, a, o in
    let rule = p.loadUnaligned(as: R.self)
    var v = Vectors<L>(o)
    while v.next() {
      let w = L.load(v.g)
      rule.direction(a.gradient(L.load(v.x), w), w, v.s).store(v.x)
    }
    v.finish(writesX: true)
  }
}

@inline(never)
private func measureKernel<R: ElementRule, L: Lane>(_: R.Type, _: L.Type) -> ElementKernels.Measure {
  { p, a, phase, o, total in
    let rule = p.loadUnaligned(as: R.self)
    var sums = total.pointee
    var v = Vectors<L>(o)
    while v.next() {
      let w = L.load(v.g)
      rule.measure(phase, a.gradient(L.load(v.x), w), w, v.s, &sums)
    }
    v.finish(writesX: false)
    total.pointee = sums
  }
}

@inline(never)
private func evaluateKernel<R: ElementRule, L: Lane>(_: R.Type, _: L.Type) -> ElementKernels.Kernel {
  { p, a, o in
    let rule = p.loadUnaligned(as: R.self)
    var v = Vectors<L>(o)
    while v.next() { rule.evaluate(L.load(v.x), v.s).store(v.x) }
    v.finish(writesX: true)
  }
}

// MARK: one-off walks of sources

/// An element-wise change that a source makes: parameters, gradients and its own state.
package protocol ElementOperation: Sendable {
  func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>)
}
/// Sums that a source takes over all elements.
package protocol ElementSum: Sendable {
  func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums)
}

package typealias PlainKernel = @Sendable (Operands) -> Void
package typealias PlainMeasure = @Sendable (Operands, UnsafeMutablePointer<Sums>) -> Void

/// A loop for each case, so that an operand which is neither used nor written is not read.
@inline(never)
func plainKernel<O: ElementOperation, L: Lane>(_ op: O, _: L.Type, writesX: Bool = true, writesG: Bool = true)
  -> PlainKernel
{
  if writesG { return { o in walk(o, op, L.self, true, true) } }
  if writesX { return { o in walk(o, op, L.self, true, false) } }
  return { o in walk(o, op, L.self, false, false) }
}

@inline(__always)
private func walk<O: ElementOperation, L: Lane>(_ o: Operands, _ op: O, _: L.Type, _ writesX: Bool, _ writesG: Bool) {
  var v = Vectors<L>(o)
  while v.next() {
    var a = L.load(v.x), b = L.load(v.g)
    op(&a, &b, v.s)
    if writesX { a.store(v.x) }
    if writesG { b.store(v.g) }
  }
  v.finish(writesX: writesX, writesG: writesG)
}

@inline(never)
func plainMeasure<O: ElementSum, L: Lane>(_ op: O, _: L.Type) -> PlainMeasure {
  { o, total in
    let op = op
    var sums = total.pointee
    var v = Vectors<L>(o)
    while v.next() { op(L.load(v.x), L.load(v.g), v.s, &sums) }
    v.finish(writesX: false)
    total.pointee = sums
  }
}

// MARK: whole tensors

/// A whole tensor, dense, in the compute type, as a matrix method sees it.
package struct Whole<T: Real> {
  /// What is transformed in place: gradient, update or parameter.
  package var v: UnsafeMutablePointer<T>
  /// Its companion: the parameter of a gradient, the previous parameter of a parameter.
  package var w: UnsafeMutablePointer<T>
  package var slots: [UnsafeMutablePointer<T>]
  package var shape: Shape
  /// As many bytes as the rule's `workspace` asked for, 64-byte aligned; nobody else uses it meanwhile.
  package var workspace: UnsafeMutableRawPointer
  package var count: Int { shape.count }
  package var rows: Int { shape.rows }
  package var columns: Int { shape.columns }
}

/// A stage that acts on a whole tensor: matrix methods, projections, proxes with norms.
package protocol WholeRule: Sendable {
  static var method: Method { get }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot]
  static func decay(_ h: Hyper) -> Decay
  /// Throws when tensors of this shape are refused, before anything is bound.
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure)
  /// Bytes of scratch memory for a tensor whose elements have `size` bytes. Allocated before the first step, so that
  /// none can fail for it.
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int
  /// A factorisation may fail: the engine then keeps copies, so that a failed step changes nothing.
  static var mayFail: Bool { get }
  /// The same, where it depends on the hyper-parameters.
  static func mayFail(_ h: Hyper) -> Bool
  /// The first slot receives the parameters as they were before the step.
  static var keepsPoint: Bool { get }
  /// It gives evaluation weights.
  static var evaluates: Bool { get }
  init(_ h: Hyper, _ c: StepContext)
  func apply<T: Real>(_ t: Whole<T>) throws(Failure)
  /// Makes the evaluation weights of the parameters in v.
  func evaluate<T: Real>(_ t: Whole<T>) throws(Failure)
}

extension WholeRule {
  package static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { method.slots }
  package static func decay(_ h: Hyper) -> Decay { .none }
  package static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {}
  package static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { 0 }
  package static var mayFail: Bool { false }
  package static func mayFail(_ h: Hyper) -> Bool { mayFail }
  package static var keepsPoint: Bool { false }
  package static var evaluates: Bool { false }
  package func evaluate<T: Real>(_ t: Whole<T>) throws(Failure) {}
}

package struct WholeKernels: Sendable {
  let slots: @Sendable (Hyper, Shape) -> [Slot]
  let decay: @Sendable (Hyper) -> Decay
  let accepts: @Sendable (Hyper, Shape) throws(Failure) -> Void
  let workspace: @Sendable (Hyper, Shape, Int) -> Int
  let mayFail: @Sendable (Hyper) -> Bool
  let keepsPoint: Bool
  typealias Call<T: Real> = @Sendable (Hyper, StepContext, Whole<T>) throws(Failure) -> Void
  let f32: Call<Float>
  let f64: Call<Double>
  /// The evaluation weights, where it gives some.
  let evaluate: (f32: Call<Float>, f64: Call<Double>)?
}

@inline(never)
package func kernels<R: WholeRule>(_: R.Type) -> WholeKernels {
  WholeKernels(
    slots: { R.slots($0, $1) }, decay: { R.decay($0) },
    accepts: { (h, s) throws(Failure) in try R.accepts(h, s) }, workspace: { R.workspace($0, $1, $2) },
    mayFail: { R.mayFail($0) }, keepsPoint: R.keepsPoint,
    f32: { (h, c, w) throws(Failure) in try R(h, c).apply(w) },
    f64: { (h, c, w) throws(Failure) in try R(h, c).apply(w) },
    evaluate: R.evaluates
      ? (
        { (h, c, w) throws(Failure) in try R(h, c).evaluate(w) },
        { (h, c, w) throws(Failure) in try R(h, c).evaluate(w) }
      ) : nil)
}

extension ElementKernels {
  /// The same kernels with their own hyper-parameters: for a regularizer or a set inside `prox(...)` or `project(...)`.
  func binding(_ inner: Hyper) -> ElementKernels {
    ElementKernels(
      size: size, prepare: { [prepare] _, c, p in prepare(inner, c, p) }, slots: { [slots] _, s in slots(inner, s) },
      scalars: { [scalars] _ in scalars(inner) }, scope: { [scope] _ in scope(inner) }, shared: shared,
      phases: { [phases] _ in phases(inner) },
      reach: { [reach] _, p in reach(inner, p) }, decay: { [decay] _ in decay(inner) }, perTensor: perTensor,
      begin: { [begin] s, _, c in begin(s, inner, c) },
      finish: { [finish] p, t, s, _, c in finish(p, t, s, inner, c) }, fused: fused, packed: packed, map: map,
      measure: measure,
      multiplies: multiplies, evaluates: evaluates,
      ruleStep: { [ruleStep] t, _ in ruleStep(t, inner) }, evaluate: evaluate)
  }
}

extension WholeKernels {
  func binding(_ inner: Hyper) -> WholeKernels {
    WholeKernels(
      slots: { [slots] _, s in slots(inner, s) }, decay: { [decay] _ in decay(inner) },
      accepts: { [accepts] (_, s) throws(Failure) in try accepts(inner, s) },
      workspace: { [workspace] _, s, n in workspace(inner, s, n) }, mayFail: { [mayFail] _ in mayFail(inner) },
      keepsPoint: keepsPoint,
      f32: { [f32] (_, c, w) throws(Failure) in try f32(inner, c, w) },
      f64: { [f64] (_, c, w) throws(Failure) in try f64(inner, c, w) },
      evaluate: nil)
  }
}
