/// What a stage beside the rule does to an element, said in numbers.
///
/// In a walk of its own the load, the store and the start of a loop are dearer than such a stage's few operations. The
/// kernel of the rule therefore does on its way what can be said so: before the rule to the gradient, behind it to the
/// parameter. Operations and roundings are those of the stage.
public struct Fold: BitwiseCopyable, Sendable {
  public enum Kind: UInt8, BitwiseCopyable, Sendable { case times, plus, plusSign, clip, shrink, average }
  public let kind: Kind
  public let a, b: Double
  @inlinable init(_ kind: Kind, _ a: Double, _ b: Double = 0) {
    (self.kind, self.a, self.b) = (kind, a, b)
  }

  /// v ← v·factor.
  @inlinable public static func times(_ factor: Double) -> Fold { Fold(.times, factor) }
  /// v ← v + weight·w.
  @inlinable public static func plus(_ weight: Double) -> Fold { Fold(.plus, weight) }
  /// v ← v + weight·sign(w).
  @inlinable public static func plusSign(_ weight: Double) -> Fold { Fold(.plusSign, weight) }
  /// v ← min(max(v, low), high); NaN stays.
  @inlinable public static func clip(_ low: Double, _ high: Double) -> Fold { Fold(.clip, low, high) }
  /// v ← sign(v)·max(|v| − threshold, 0).
  @inlinable public static func shrink(_ threshold: Double) -> Fold { Fold(.shrink, threshold) }
  /// s ← s + share·(v − s), for the one slot of the stage.
  @inlinable public static func average(_ share: Double) -> Fold { Fold(.average, share) }

  /// Where the state of an average is: behind that of the rule.
  public static let slot = SlotPointers.capacity - 1
  /// Of one walk.
  public static let capacity = 16

  @inlinable @inline(__always)
  func callAsFunction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L {
    switch kind {
    case .times: return v * a
    case .plus: return v + a * w
    case .plusSign: return v + a * w.sign
    case .clip: return v.clamped(L(a), L(b))
    case .shrink: return v.shrunk(by: a)
    case .average:
      let old = s[Fold.slot]
      s[Fold.slot] = old + a * (v - old)
      return v
    }
  }
}

/// One or two folds, in their order.
public struct Folds: BitwiseCopyable, Sendable {
  public let first: Fold, second: Fold?
  @inlinable public init(_ first: Fold, _ second: Fold? = nil) { (self.first, self.second) = (first, second) }
}

/// What the next rule of a program does beside itself: the first `before` to the gradient, the others to the parameter.
struct Folding {
  private let list = UnsafeMutablePointer<Fold>.allocate(capacity: Fold.capacity)
  private var count = 0, before = 0
  /// The stage whose average is among them.
  private(set) var averaged: Int?
  var isEmpty: Bool { count == 0 }
  func deallocate() { list.deallocate() }

  mutating func clear() { (count, before, averaged) = (0, 0, nil) }
  mutating func turn() { before = count }
  /// Adds what a stage does, if that can be said in numbers and there is room.
  mutating func add(_ e: ElementKernels, _ stage: Int, _ r: UnsafeMutablePointer<Record>) -> Bool {
    let rule = UnsafeRawPointer(r.pointee.rules[stage]), factor = e.multiplies(rule)
    if factor == 1 { return true }
    guard let said = factor.map({ Folds(.times($0)) }) ?? e.folds(rule), count + 2 <= Fold.capacity else {
      return false
    }
    if said.first.kind == .average {
      guard averaged == nil, r.pointee.used(stage) == 1, r.pointee.slot(stage, 0).format == .direct else {
        return false
      }
      averaged = stage
    }
    (list[count], count) = (said.first, count + 1)
    if let second = said.second { (list[count], count) = (second, count + 1) }
    return true
  }
  func show(to o: inout Operands) {
    (o.folds, o.before, o.foldCount, o.averages) = (list, before, count, averaged != nil)
  }
}

/// A rule between folds.
@inlinable @inline(never)
func foldedKernel<R: ElementRule, L: Lane>(_: R.Type, _: L.Type) -> ElementKernels.Kernel {
  { p, a, o in
    let rule = p.loadUnaligned(as: R.self), folds = UnsafePointer(o.folds), before = o.before, count = o.foldCount
    let scale = a.scale
    var inner = a
    inner.scale = 1
    var v = Vectors<L>(o)
    repeat {
      while v.next() {
        let old = L.load(v.x), s = v.s
        var g = L.load(v.g) * scale
        for k in 0..<before { g = folds[k](g, old, s) }
        var x = rule.step(inner.gradient(g, old), old, s, inner)
        for k in before..<count { x = folds[k](x, x, s) }
        x.store(v.x)
      }
    } while v.turn()
    v.finish(writesX: true)
  }
}
