import CThalweg

/// What a rule knows of the present step, besides its hyper-parameters.
public struct StepContext: @unchecked Sendable {
  /// The number of this step for this tensor, from 1 (its own count: a tensor without a gradient does not advance).
  public var t = 1
  /// Steps completed by the optimizer, from 0.
  public var step = 0
  public var lr = 0.0
  public var weightDecay = 0.0
  /// What the parameters are multiplied by in this step's decoupled decay; 1 where the rule has none, or does it
  /// itself.
  public var keep = 1.0
  /// The decoupled decay over the step size, as stages have decided on it.
  public var decay = 0.0
  /// A stage takes that decay out of the update where the update's sign is not that of the parameter.
  public var masksDecay = false
  public var ndim = 0
  public var count = 0
  public var rows = 1
  public var columns = 1
  public var role = 0
  /// The number that keys the random draws of this tensor.
  public var tensor = 0
  public var seed: UInt64 = 0
  /// Random draws of different stages are independent.
  public var stream: UInt32 = 0
  /// The observed loss; NaN when none was given.
  public var loss = Double.nan
  public var isDouble = false
  /// How many slots the stage has for the tensor.
  public var slots = 0
  /// How many tensors of its group that this pipeline takes come before it, in the order of binding.
  public var inGroup = 0
  /// The largest step size of the rule's schedule; NaN where it has none.
  public var peak = Double.nan
  /// The stage's scalars: one set for all tensors (global scope) or one a tensor.
  public var scalars: UnsafeMutablePointer<Double> = StepContext.nothing
  public nonisolated(unsafe) static let nothing = UnsafeMutablePointer<Double>.allocate(capacity: 1)

  public init() {}
  public var time: Double { Double(t) }
  /// Scalar k as a counter up to `most`.
  public func counter(_ k: Int, most: Int = 1 << 52) -> Int { counted(scalars[k], most: most) }
}

/// A scalar that counts, as a whole number; what was loaded may hold anything: what is no number up to `most` is 0.
public func counted(_ x: Double, most: Int) -> Int { x >= 0 && x <= Double(most) ? Int(x) : 0 }

/// Over what a stage's sums and scalars reach.
public enum Scope: Sendable { case tensor, global }

/// What happens to `weight_decay`.
public enum Decay: Sendable {
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
public struct Slot: Sendable {
  public enum Start: Sendable {
    case zero, value(Double)
    /// The parameters as they are at the tensor's first step.
    case parameters
    /// The same, and anew where the host writes the parameters between two steps: what the next parameters are made of.
    case iterate(Iterate = .same)
  }
  /// What an iterate is of the parameters.
  public enum Iterate: Sendable {
    case same
    /// The parameters times a scalar of the stage.
    case times(Int)
    /// Their logarithm, 0 where they are not positive.
    case logarithm
  }
  /// How it may be stored: moments tolerate 16 and 8 bits, half stands for 16 bits at least; what is exact is kept in
  /// the compute type.
  public enum Storage: Sendable { case exact, half, signed, positive }
  public var name: String
  public var meaning: String
  public var storage: Storage
  public var start: Start
  public var temporary = false
  /// It holds the parameters while they are away from where the host left them; the engine brings them back when a step
  /// is broken off.
  public var home = false
  /// The rule's source alone looks at it.
  public var apart = false
  /// Its elements, where they are not those of the parameter: row sums, bases, factors. Only whole-tensor rules have
  /// such buffers; they start at a number.
  public var count: Int?
  public init(_ name: String, _ meaning: String, _ storage: Storage = .exact, start: Start = .zero, count: Int? = nil) {
    (self.name, self.meaning, self.storage, self.start, self.count) = (name, meaning, storage, start, count)
  }
  public func elements(of parameter: Int) -> Int { count ?? parameter }
  /// Something that is needed from one request to the next and not between steps: it is saved only within a step.
  public static func temporary(_ name: String, _ meaning: String, start: Start = .zero) -> Slot {
    var s = Slot(name, meaning, start: start)
    s.temporary = true
    return s
  }
  /// Where a source keeps the parameters before it moves them; its first walk of a step over this slot must be one that
  /// saves them.
  public static func home(_ name: String, _ meaning: String) -> Slot {
    var s = temporary(name, meaning)
    s.home = true
    return s
  }
  /// What tolerates 16 bits, and not 8.
  public static func half(_ name: String, _ meaning: String) -> Slot { Slot(name, meaning, .half) }
  /// The same, for a source: its rule does not look at it.
  public static func apart(_ name: String, _ meaning: String, _ storage: Storage = .half) -> Slot {
    var s = Slot(name, meaning, storage)
    s.apart = true
    return s
  }
  /// An average that keeps signs.
  @inlinable public static func moment(_ name: String, _ meaning: String) -> Slot { Slot(name, meaning, .signed) }
  /// An average of squares or magnitudes: never negative.
  @inlinable public static func square(_ name: String, _ meaning: String) -> Slot { Slot(name, meaning, .positive) }
}

/// A number that a stage keeps between steps, in double.
public struct Scalar: Sendable {
  public var name: String
  public var start: Double
  /// It tells hosts something and decides nothing: a file of an earlier version may lack it.
  public var tells: Bool
  public init(_ name: String, _ start: Double = 0, tells: Bool = false) {
    (self.name, self.start, self.tells) = (name, start, tells)
  }
}

/// The results of a reducing phase.
public struct Totals {
  public let p: UnsafePointer<Double>
  public init(_ p: UnsafePointer<Double>) { self.p = p }
  /// Sum k, 0 to 3.
  public subscript(k: Int) -> Double { p[k] }
  /// The root of sum k, a sum of squares: right where the squares overflow too. Of finite elements it is finite.
  public func root(_ k: Int) -> Double { Squares(self, k).root }
  /// Sum k, and the largest double where finite elements have a larger sum.
  public func finite(_ k: Int) -> Double {
    p[k].isInfinite && p[Sums.scaled + k].isFinite ? (p[k] < 0 ? -1 : 1) * Double.greatestFiniteMagnitude : p[k]
  }
  public var maximum: Double { p[Sums.top] }
}

/// A sum of squares that may be larger than any double. As a scalar it is one number: the sum, or, where that
/// overflows, the negative of the sum times 2⁻¹²⁰⁰.
public struct Squares: Sendable {
  public private(set) var number: Double
  public init(_ number: Double) { self.number = number }
  public init(_ totals: Totals, _ k: Int) { self.init(sum: totals[k], scaled: totals.p[Sums.scaled + k]) }
  public init(sum: Double, scaled: Double) {
    number = sum == .infinity && scaled.isFinite && scaled > 0 ? -scaled : sum
  }
  private var scaled: Double { number < 0 ? -number : number * 0x1p-600 * 0x1p-600 }
  /// Its root: infinite only where a square was.
  public var root: Double {
    number < 0 ? min((-number).squareRoot() * 0x1p600, .greatestFiniteMagnitude) : number.squareRoot()
  }
  /// Adds factor² times another sum.
  public mutating func add(_ more: Squares, times factor: Double = 1) {
    let sum = number + factor * factor * more.number
    if number >= 0, more.number >= 0, sum.isFinite { return number = sum }
    if number.isNaN || more.number.isNaN { return number = .nan }
    if number == .infinity || more.number == .infinity { return number = .infinity }
    number = -(scaled + factor * (factor * more.scaled))
  }
  public static func < (a: Squares, b: Squares) -> Bool {
    a.number < 0 || b.number < 0 ? a.scaled < b.scaled : a.number < b.number
  }
}

/// A tensor as a rule may ask about it before it runs.
public struct Shape: Sendable {
  public var dimensions: [Int]
  public var role = 0
  public init(dimensions: [Int], role: Int = 0) { (self.dimensions, self.role) = (dimensions, role) }
  public var count: Int { dimensions.reduce(1, &*) }
  public var ndim: Int { dimensions.count }
  public var rows: Int { ndim >= 2 ? dimensions[0] : 1 }
  /// As messages have it: (3,), (2, 4).
  public var text: String { "(\(dimensions.map(String.init).joined(separator: ", "))\(ndim == 1 ? "," : ""))" }
  public var columns: Int { ndim >= 2 ? dimensions.dropFirst().reduce(1, &*) : count }
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
public protocol ElementRule: Listed, BitwiseCopyable, Sendable {
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
  /// The sum of a phase is that of the squares of v, which has a loop of its own: `measure` is not asked.
  func squares(_ phase: Int) -> Bool
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
  /// `direction` said in numbers; nil: it cannot be.
  var folds: Folds? { get }
  func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L
}

extension ElementRule {
  @inlinable public static var registered: Registered { entry(Self.self) }
  @inlinable public static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { method.slots }
  @inlinable public static func scalars(_ h: Hyper) -> [Scalar] { [] }
  @inlinable public static func scope(_ h: Hyper) -> Scope { .global }
  @inlinable public static var shared: Int { 0 }
  @inlinable public static func phases(_ h: Hyper) -> Int { 0 }
  @inlinable public static func reach(_ h: Hyper, _ phase: Int) -> Scope { scope(h) }
  @inlinable public static func decay(_ h: Hyper) -> Decay { .none }
  public static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {}
  public static func finish(
    _ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext
  ) {}
  @inlinable @inline(__always) public func measure<L: Lane>(
    _ phase: Int, _ v: L, _ w: L, _ s: Slots<L>, _ sums: inout Sums
  ) {}
  @inlinable @inline(__always) public func squares(_ phase: Int) -> Bool { false }
  @inlinable @inline(__always) public func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L {
    let d = direction(g, x, s)
    return x * a.keep - a.lr * d
  }
  @inlinable public static var perTensor: Bool { false }
  @inlinable public static var evaluates: Bool { false }
  @inlinable public static func ruleStep(_ t: Int, _ h: Hyper) -> Int { t }
  public var multiplies: Double? { nil }
  @inlinable public var folds: Folds? { nil }
  @inlinable @inline(__always) public func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { x }
}

/// What the engine does around every update rule, as numbers: x ← x·keep − lr·direction(scale·g + coupled·x).
public struct Apply: BitwiseCopyable, Sendable {
  public var scale = 1.0
  public var coupled = 0.0
  public var keep = 1.0
  public var lr = 1.0
  public init() {}

  /// The gradient as the rule sees it.
  @inlinable @inline(__always) public func gradient<L: Lane>(_ g: L, _ x: L) -> L {
    let scaled = g * scale
    return coupled != 0 ? scaled + coupled * x : scaled
  }
}
