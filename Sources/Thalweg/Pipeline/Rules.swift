import CThalweg

/// What a rule knows of the present step, besides its hyper-parameters.
package struct StepContext: @unchecked Sendable {
  /// The number of this step for this tensor, from 1 (its own count: a tensor without a gradient does not advance).
  package var t = 1
  /// Steps completed by the optimizer, from 0.
  package var step = 0
  package var lr = 0.0
  package var weightDecay = 0.0
  /// What the parameters are multiplied by in this step's decoupled decay; 1 where the rule has none, or does it itself.
  package var keep = 1.0
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
