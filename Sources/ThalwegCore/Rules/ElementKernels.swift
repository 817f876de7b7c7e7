import CThalweg

/// An element rule with its types erased: what the engine runs. (A class: a struct of closures would copy them all at
/// every use.)
public final class ElementKernels: Sendable {
  public typealias Kernel = @Sendable (UnsafeRawPointer, Apply, Operands) -> Void
  /// Goes on with the sums that it is given: a block gives the same bits whether it comes whole or in chunks.
  public typealias Measure = @Sendable (UnsafeRawPointer, Apply, Int, Operands, UnsafeMutablePointer<Sums>) -> Void
  public typealias Prepare = @Sendable (Hyper, StepContext, UnsafeMutableRawPointer) -> Void
  public typealias Begin = @Sendable (UnsafeMutablePointer<Double>, Hyper, StepContext) -> Void
  public typealias Finish = @Sendable (Int, Totals, UnsafeMutablePointer<Double>, Hyper, StepContext) -> Void
  public let size: Int
  public let prepare: Prepare
  public let slots: @Sendable (Hyper, Shape) -> [Slot]
  public let scalars: @Sendable (Hyper) -> [Scalar]
  public let scope: @Sendable (Hyper) -> Scope
  public let shared: Int
  public let phases: @Sendable (Hyper) -> Int
  public let reach: @Sendable (Hyper, Int) -> Scope
  public let decay: @Sendable (Hyper) -> Decay
  public let perTensor: Bool
  public let begin: Begin
  public let finish: Finish
  /// x ← step(g, x): the whole update in one walk. (f32, f64)
  public let fused: (Kernel, Kernel)
  /// The same over whole 8-bit blocks, with narrow state. (f32)
  public let packed: Kernel
  /// The same with what other stages do beside it. (f32)
  public let folded: Kernel
  /// What the rule that was prepared at this address does beside another.
  public let folds: @Sendable (UnsafeRawPointer) -> Folds?
  /// v ← direction(v, w).
  public let map: (Kernel, Kernel)
  public let measure: (Measure, Measure)
  /// Of the rule that was prepared at this address.
  public let multiplies: @Sendable (UnsafeRawPointer) -> Double?
  public let evaluates: Bool
  public let ruleStep: @Sendable (Int, Hyper) -> Int
  public let evaluate: (Kernel, Kernel)

  public init(
    size: Int, prepare: @escaping Prepare, slots: @escaping @Sendable (Hyper, Shape) -> [Slot],
    scalars: @escaping @Sendable (Hyper) -> [Scalar],
    scope: @escaping @Sendable (Hyper) -> Scope, shared: Int, phases: @escaping @Sendable (Hyper) -> Int,
    reach: @escaping @Sendable (Hyper, Int) -> Scope,
    decay: @escaping @Sendable (Hyper) -> Decay, perTensor: Bool, begin: @escaping Begin, finish: @escaping Finish,
    fused: (Kernel, Kernel), packed: @escaping Kernel, folded: @escaping Kernel,
    folds: @escaping @Sendable (UnsafeRawPointer) -> Folds?, map: (Kernel, Kernel), measure: (Measure, Measure),
    multiplies: @escaping @Sendable (UnsafeRawPointer) -> Double?, evaluates: Bool,
    ruleStep: @escaping @Sendable (Int, Hyper) -> Int, evaluate: (Kernel, Kernel)
  ) {
    (self.size, self.prepare, self.slots, self.scalars, self.scope, self.phases) = (
      size, prepare, slots, scalars, scope, phases
    )
    (self.shared, self.folded, self.folds) = (shared, folded, folds)
    (self.reach, self.decay, self.perTensor, self.begin, self.finish) = (reach, decay, perTensor, begin, finish)
    (self.fused, self.packed, self.map, self.measure) = (fused, packed, map, measure)
    (self.multiplies, self.evaluates, self.ruleStep, self.evaluate) = (multiplies, evaluates, ruleStep, evaluate)
  }
}

/// Erases a rule. The closures are made in small functions that are not inlined: a generic class, or an inlined maker,
/// would be silently slower by orders of magnitude.
@inlinable @inline(never)
public func kernels<R: ElementRule>(_: R.Type) -> ElementKernels {
  ElementKernels(
    size: MemoryLayout<R>.stride,
    prepare: { h, c, p in p.storeBytes(of: R(h, c), as: R.self) },
    slots: { R.slots($0, $1) }, scalars: { R.scalars($0) }, scope: { R.scope($0) }, shared: R.shared,
    phases: { R.phases($0) },
    reach: { R.reach($0, $1) }, decay: { R.decay($0) }, perTensor: R.perTensor,
    begin: { R.begin($0, $1, $2) }, finish: { R.finish($0, $1, $2, $3, $4) },
    fused: (fusedKernel(R.self, SIMD16<Float>.self), fusedKernel(R.self, SIMD8<Double>.self)),
    packed: packedKernel(R.self), folded: foldedKernel(R.self, SIMD16<Float>.self),
    folds: { $0.loadUnaligned(as: R.self).folds },
    map: (mapKernel(R.self, SIMD16<Float>.self), mapKernel(R.self, SIMD8<Double>.self)),
    measure: (measureKernel(R.self, SIMD16<Float>.self), measureKernel(R.self, SIMD8<Double>.self)),
    multiplies: { $0.loadUnaligned(as: R.self).multiplies }, evaluates: R.evaluates, ruleStep: { R.ruleStep($0, $1) },
    evaluate: (evaluateKernel(R.self, SIMD16<Float>.self), evaluateKernel(R.self, SIMD8<Double>.self)))
}

@inlinable @inline(never)
func fusedKernel<R: ElementRule, L: Lane>(_: R.Type, _: L.Type) -> ElementKernels.Kernel {
  { p, a, o in
    let rule = p.loadUnaligned(as: R.self)
    var v = Vectors<L>(o), ahead = o.ahead
    repeat {
      while v.next() {
        twi_prefetch(ahead)
        ahead += MemoryLayout<L>.size
        let old = L.load(v.x)
        rule.step(a.gradient(L.load(v.g), old), old, v.s, a).store(v.x)
      }
    } while v.turn()
    v.finish(writesX: true)
  }
}

@inlinable @inline(never)
func packedKernel<R: ElementRule>(_: R.Type) -> ElementKernels.Kernel {
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

@inlinable @inline(never)
func mapKernel<R: ElementRule, L: Lane>(_: R.Type, _: L.Type) -> ElementKernels.Kernel {
  { p, a, o in
    let rule = p.loadUnaligned(as: R.self)
    var v = Vectors<L>(o)
    repeat {
      while v.next() {
        fetchAhead(v.x)
        let w = L.load(v.g)
        rule.direction(a.gradient(L.load(v.x), w), w, v.s).store(v.out)
      }
    } while v.turn()
    v.finish(writesX: true)
  }
}

@inlinable @inline(never)
func measureKernel<R: ElementRule, L: Lane>(_: R.Type, _: L.Type) -> ElementKernels.Measure {
  { p, a, phase, o, total in
    let rule = p.loadUnaligned(as: R.self)
    var sums = total.pointee
    var v = Vectors<L>(o)
    if rule.squares(phase) {
      repeat {
        while v.next() {
          fetchAhead(v.x)
          let g = a.gradient(L.load(v.x), L.load(v.g))
          sums.add(0, g, times: g)
        }
      } while v.turn()
    } else {
      repeat {
        while v.next() {
          fetchAhead(v.x)
          let w = L.load(v.g)
          rule.measure(phase, a.gradient(L.load(v.x), w), w, v.s, &sums)
        }
      } while v.turn()
    }
    v.finish(writesX: false)
    total.pointee = sums
  }
}

@inlinable @inline(never)
func evaluateKernel<R: ElementRule, L: Lane>(_: R.Type, _: L.Type) -> ElementKernels.Kernel {
  { p, a, o in
    let rule = p.loadUnaligned(as: R.self)
    var v = Vectors<L>(o)
    repeat { while v.next() { rule.evaluate(L.load(v.x), v.s).store(v.x) } } while v.turn()
    v.finish(writesX: true)
  }
}

extension ElementKernels {
  /// The same kernels with their own hyper-parameters: for a regularizer or a set inside `prox(...)` or `project(...)`.
  public func binding(_ inner: Hyper) -> ElementKernels {
    ElementKernels(
      size: size, prepare: { [prepare] h, c, p in prepare(h.ofHeld.first ?? inner, c, p) },
      slots: { [slots] _, s in slots(inner, s) },
      scalars: { [scalars] _ in scalars(inner) }, scope: { [scope] _ in scope(inner) }, shared: shared,
      phases: { [phases] _ in phases(inner) },
      reach: { [reach] _, p in reach(inner, p) }, decay: { [decay] _ in decay(inner) }, perTensor: perTensor,
      begin: { [begin] s, h, c in begin(s, h.ofHeld.first ?? inner, c) },
      finish: { [finish] p, t, s, h, c in finish(p, t, s, h.ofHeld.first ?? inner, c) }, fused: fused, packed: packed,
      folded: folded, folds: folds, map: map, measure: measure,
      multiplies: multiplies, evaluates: evaluates,
      ruleStep: { [ruleStep] t, _ in ruleStep(t, inner) }, evaluate: evaluate)
  }
}

/// The rule whose direction is its operand: applies an update that is already there.
public struct Identity: ElementRule {
  public static let method = Method("identity", .transform, "The update itself.", rule: "", source: "")
  public static let kernels = ThalwegCore.kernels(Identity.self)
  @inlinable public init(_ h: Hyper, _ c: StepContext) {}
  @inlinable @inline(__always) public func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v }
}
