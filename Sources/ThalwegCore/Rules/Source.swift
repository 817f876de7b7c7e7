import Glibc

/// What a source asks for.
public struct Ask: Sendable {
  public var kind: Request.Kind
  public var index = 0
  public var count = 0
  /// Another minibatch than the first request of this step.
  public var freshSample = false
  public init(_ kind: Request.Kind, index: Int = 0, count: Int = 0, freshSample: Bool = false) {
    (self.kind, self.index, self.count, self.freshSample) = (kind, index, count, freshSample)
  }
}

/// A matrix that the host answered with, (rows, columns), row-major, in double.
public struct HostMatrix: Sendable {
  public var values: [Double]
  public var rows: Int
  public var columns: Int
  public init(_ values: [Double], _ rows: Int, _ columns: Int) {
    (self.values, self.rows, self.columns) = (values, rows, columns)
  }
  public var isFinite: Bool { Flat.isFinite(values, values.count) }
}

/// The answer to a request for matrices: which they are depends on the kind of the request.
public struct Answer: Sendable {
  public var first: HostMatrix?
  public var second: HostMatrix?
  /// Samples that were read had elements that are NaN or infinite.
  public var hadNonFinite = false
  public init(_ first: HostMatrix? = nil, _ second: HostMatrix? = nil) { (self.first, self.second) = (first, second) }
  public var isFinite: Bool { !hadNonFinite && (first?.isFinite ?? true) && (second?.isFinite ?? true) }
}

/// What a source does next.
public enum Move: Sendable {
  /// Ask the host; its answer comes with the next `advance`.
  case ask(Ask)
  /// Let the pipeline step, with the host's gradient as it stands now, changed by an operation (nil: not changed).
  case update(GradientOperation?)
  /// The step is over without an update of the pipeline (an accumulated gradient, a method that moved the parameters
  /// itself).
  case nothing
}

/// Decides how gradients are obtained: perturbs parameters, asks for more than one gradient, combines them.
///
/// A state machine: `advance` is called with the number of requests answered so far in this step (from 0: the first
/// gradient is there). What must survive until the next call lies in slots and scalars, so that a step can be saved and
/// resumed between any two requests. Slots that are not temporary change only in the call that ends the step: a step
/// that is broken off before leaves no trace then. Before it moves the parameters it keeps them in its `home` slot,
/// from where the engine brings them back when the step is broken off.
public protocol Source: Listed, Sendable {
  static var method: Method { get }
  init(_ h: Hyper) throws(Failure)
  var slots: [Slot] { get }
  var scalars: [Scalar] { get }
  /// One gradient a step is enough (it only accumulates, say): `step` may be used.
  var single: Bool { get }
  /// It reaches the whole update, or sets the step size of all: it cannot stand in a pipeline of `route`.
  var global: Bool { get }
  /// The flag among its parameters that says whether it touches a group's tensors; nil: it touches all. Of others it
  /// sees nothing, their gradient is the one that comes last, and they have none of its temporary slots.
  var flag: String? { get }
  /// The slot with the vector of a request that has one: for a Hessian-vector product, or for derivatives of the
  /// logits.
  var probe: Int? { get }
  /// Takes the gradients of the samples, which are the host's and there during this call alone. What it makes of them
  /// lies in temporary slots and in scalars, written anew whenever the same request is answered again.
  func take(_ samples: Samples, _ phase: Int, _ io: SourceIO) throws(Failure)
  /// Refuses matrices that do not fit the request for phase `phase`; the host may then answer again.
  func check(_ answer: Answer, _ phase: Int, _ io: SourceIO) throws(Failure)
  /// What `observe` may tell it, besides the loss.
  var observes: [String] { get }
  /// What `command` may ask of it, between steps; the pipeline then steps if the move says so.
  var commands: [String] { get }
  func command(_ name: String, _ io: SourceIO) throws(Failure) -> Move
  /// Some request brings gradients. Where none does, all tensors take part that are not marked absent, from the opening
  /// on.
  var takesGradients: Bool { get }
  /// It keeps every gradient that it asks for, and takes the inner products of all before it looks at them otherwise:
  /// what is not finite is found there.
  var findsNonfinite: Bool { get }
  /// A loss after the first request that is not finite is that of a trial which fails: it is taken as +∞, and the
  /// gradient that comes with it is not looked at.
  var triesPoints: Bool { get }
  /// The same of its first loss.
  var takesAnyLoss: Bool { get }
  /// Its update does not look at where the parameters stand, and it leaves them where the last request had them: the
  /// engine brings them home where another source goes on.
  var endsAway: Bool { get }
  /// What it hands on is a direction made of several gradients: what a stage before the rule adds to that is not in
  /// them.
  var handsDirection: Bool { get }
  /// The first request of a step is its own: `opening` says what it is (nil: the gradient), and may move the parameters
  /// of tensors that have stepped before. Which tensors have a gradient this time is not known then.
  var opens: Bool { get }
  func opening(_ io: SourceIO) -> Ask?
  /// The loss that comes with its first gradient is that of the point where it was asked for one.
  var tellsLoss: Bool { get }
  /// It makes one gradient of those of several minibatches where another source asks it: how many, what a loss that is
  /// told now counts, and whether their sum is divided. nil: it does not.
  func window(_ io: SourceIO) throws(Failure) -> Window?
  /// What a checkpoint that was written within a step may say: how many requests a step has at the most, and of which
  /// kinds.
  func most(_ tensors: Int) -> Int
  var kinds: [Request.Kind] { get }
  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move
}

extension Source {
  @inlinable public static var registered: Registered { entry(Self.self) }
  public var slots: [Slot] { [] }
  public var scalars: [Scalar] { [] }
  public var single: Bool { false }
  public var global: Bool { false }
  public var flag: String? { nil }
  public var probe: Int? { nil }
  public func check(_ answer: Answer, _ phase: Int, _ io: SourceIO) throws(Failure) {}
  public func take(_ samples: Samples, _ phase: Int, _ io: SourceIO) throws(Failure) {}
  public var observes: [String] { [] }
  public var commands: [String] { [] }
  public func command(_ name: String, _ io: SourceIO) throws(Failure) -> Move { .nothing }
  public var takesGradients: Bool { true }
  public var findsNonfinite: Bool { false }
  public var triesPoints: Bool { false }
  public var takesAnyLoss: Bool { false }
  public var endsAway: Bool { false }
  public var handsDirection: Bool { false }
  public var opens: Bool { false }
  public func opening(_ io: SourceIO) -> Ask? { nil }
  public var tellsLoss: Bool { !opens }
  public func window(_ io: SourceIO) throws(Failure) -> Window? { nil }
  public func most(_ tensors: Int) -> Int { 1 }
  public var kinds: [Request.Kind] { [] }
}

/// Minibatches that come to one.
public struct Window: Sendable {
  public var minibatches: Int, weight: Double, divides: Bool
  public init(minibatches: Int, weight: Double, divides: Bool) {
    (self.minibatches, self.weight, self.divides) = (minibatches, weight, divides)
  }
}

/// The gradient that the pipeline sees in place of the host's.
public struct GradientOperation: Sendable {
  public let stage: Int
  /// The state it looks at.
  public let slots: [Int]
  /// Changes a copy of the host's gradient, in x of the operands, with all slots of the stage from an offset on; nil:
  /// the gradient is what lies in the first slot.
  public let run: (@Sendable (UnsafeMutablePointer<Record>, Operands, UnsafeMutablePointer<SlotStore>, Int) -> Void)?
  /// It makes a gradient of its slots alone, and asks memory for what comes next in them by itself.
  public let blends: Bool
  /// What the sources before have made of the host's gradient, in order.
  public var under: [GradientOperation] = []
  /// Where it is a weighted sum of its slots: the weights.
  public var weights: [Double]?

  public init(
    stage: Int, slots: [Int], blends: Bool = false,
    run: (@Sendable (UnsafeMutablePointer<Record>, Operands, UnsafeMutablePointer<SlotStore>, Int) -> Void)?
  ) { (self.stage, self.slots, self.blends, self.run) = (stage, slots, blends, run) }

  /// The same on what another operation makes.
  public func over(_ first: GradientOperation?) -> GradientOperation {
    guard run != nil, let first else { return self }
    var op = self
    op.under = first.under + [first]
    return op
  }
}

/// The results of a walk of a source.
public struct SourceTotals: Sendable {
  public let values: [Double]
  @usableFromInline init(values: [Double]) { self.values = values }
  public subscript(k: Int) -> Double { values[k] }
  /// As of `Totals`.
  public func squares(_ k: Int) -> Squares { Squares(sum: values[k], scaled: values[Sums.scaled + k]) }
  public func root(_ k: Int) -> Double { squares(k).root }
}
