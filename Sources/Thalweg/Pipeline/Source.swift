import Glibc

/// What a source asks for.
package struct Ask: Sendable {
  package var kind: Request.Kind
  package var index = 0
  package var count = 0
  /// Another minibatch than the first request of this step.
  package var freshSample = false
  package init(_ kind: Request.Kind, index: Int = 0, count: Int = 0, freshSample: Bool = false) {
    (self.kind, self.index, self.count, self.freshSample) = (kind, index, count, freshSample)
  }
}

/// A matrix that the host answered with, (rows, columns), row-major, in double.
package struct HostMatrix: Sendable {
  package var values: [Double]
  package var rows: Int
  package var columns: Int
  package init(_ values: [Double], _ rows: Int, _ columns: Int) {
    (self.values, self.rows, self.columns) = (values, rows, columns)
  }
  var isFinite: Bool { values.allSatisfy(\.isFinite) }
}

/// The answer to a request for matrices: which they are depends on the kind of the request.
package struct Answer: Sendable {
  package var first: HostMatrix?
  package var second: HostMatrix?
  package init(_ first: HostMatrix? = nil, _ second: HostMatrix? = nil) { (self.first, self.second) = (first, second) }
  var isFinite: Bool { (first?.isFinite ?? true) && (second?.isFinite ?? true) }
}

/// What a source does next.
package enum Move: Sendable {
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
package protocol Source: Sendable {
  static var method: Method { get }
  init(_ h: Hyper) throws(Failure)
  var slots: [Slot] { get }
  var scalars: [Scalar] { get }
  /// One gradient a step is enough (it only accumulates, say): `step` may be used.
  var single: Bool { get }
  /// It reaches the whole update, or sets the step size of all: it cannot stand in a pipeline of `route`.
  var global: Bool { get }
  /// The slot with the vector of a request that has one: for a Hessian-vector product, or for derivatives of the
  /// logits.
  var probe: Int? { get }
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
  /// Its update does not look at where the parameters stand, and it leaves them where the last request had them: the
  /// engine brings them home where another source goes on.
  var endsAway: Bool { get }
  /// The first request of a step is its own: `opening` says what it is (nil: the gradient), and may move the parameters
  /// of tensors that have stepped before. Which tensors have a gradient this time is not known then.
  var opens: Bool { get }
  func opening(_ io: SourceIO) -> Ask?
  /// What a checkpoint that was written within a step may say: how many requests a step has at the most, and of which
  /// kinds.
  func most(_ tensors: Int) -> Int
  var kinds: [Request.Kind] { get }
  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move
}

extension Source {
  package var slots: [Slot] { [] }
  package var scalars: [Scalar] { [] }
  package var single: Bool { false }
  package var global: Bool { false }
  package var probe: Int? { nil }
  package func check(_ answer: Answer, _ phase: Int, _ io: SourceIO) throws(Failure) {}
  package var observes: [String] { [] }
  package var commands: [String] { [] }
  package func command(_ name: String, _ io: SourceIO) throws(Failure) -> Move { .nothing }
  package var takesGradients: Bool { true }
  package var endsAway: Bool { false }
  package var opens: Bool { false }
  package func opening(_ io: SourceIO) -> Ask? { nil }
  package func most(_ tensors: Int) -> Int { 1 }
  package var kinds: [Request.Kind] { [] }
}

/// The gradient that the pipeline sees in place of the host's.
package struct GradientOperation: Sendable {
  let stage: Int
  /// The state it looks at.
  let slots: [Int]
  /// Changes a copy of the host's gradient, in x of the operands, with all slots of the stage from an offset on; nil:
  /// the gradient is what lies in the first slot.
  let run: (@Sendable (UnsafeMutablePointer<Record>, Operands, UnsafeMutablePointer<SlotStore>, Int) -> Void)?
  /// What the sources before have made of the host's gradient, in order.
  var under: [GradientOperation] = []

  /// The same on what another operation makes.
  func over(_ first: GradientOperation?) -> GradientOperation {
    guard run != nil, let first else { return self }
    var op = self
    op.under = first.under + [first]
    return op
  }
}

/// The results of a walk of a source.
package struct SourceTotals: Sendable {
  let values: [Double]
  package subscript(k: Int) -> Double { values[k] }
  /// As of `Totals`.
  package func squares(_ k: Int) -> Squares { Squares(sum: values[k], scaled: values[Sums.scaled + k]) }
  package func root(_ k: Int) -> Double { squares(k).root }
}

/// What a source may do with the tensors. Gradients read here are already scaled (loss scale, maximize).
package struct SourceIO {
  private let optimizer: Optimizer
  private let stage: Stage
  init(_ optimizer: Optimizer, _ stage: Stage, opening: Bool = false) {
    (self.optimizer, self.stage) = (optimizer, stage)
  }

  /// The source's hyper-parameters now, schedules evaluated at this step: those that stand for all tensors, or of a
  /// tensor.
  package var hyper: Hyper { stage.hyper[optimizer.leader(stage).map { optimizer.bound[$0].group } ?? 0] }
  package func hyper(of tensor: Int) -> Hyper { stage.hyper[optimizer.bound[tensor].group] }
  package var step: Int { optimizer.step }
  package var seed: UInt64 { optimizer.options.seed }
  package var stream: UInt32 { UInt32(stage.id) }
  package var loss: Double { optimizer.observed["loss"] ?? .nan }
  /// It came with the answer that the source sees now.
  package var lossIsNew: Bool { optimizer.lossIsNew }
  /// The loss that stages behind see.
  package func setLoss(_ loss: Double) { optimizer.observed["loss"] = loss }
  /// What was observed under this name since the last step; NaN when nothing was.
  package func observed(_ what: String) -> Double { optimizer.observed[what] ?? .nan }
  package func scalar(_ k: Int) -> Double { stage.globals[k] }
  package func setScalar(_ k: Int, _ x: Double) { stage.globals[k] = x }

  /// Sums over all elements of all tensors that have a gradient. `slots` picks and orders the state seen.
  package func sum(_ op: some ElementSum, slots: [Int]? = nil) -> SourceTotals {
    SourceTotals(values: optimizer.sum([op], stage: stage, slots: slots))
  }
  /// The same with the hyper-parameters of each tensor's group.
  package func sum(slots: [Int]? = nil, _ op: (Hyper) -> some ElementSum) -> SourceTotals {
    SourceTotals(values: optimizer.sum(stage.hyper.map(op), stage: stage, slots: slots))
  }
  /// Changes parameters (as the host sees them) and the source's state.
  package func change(_ op: some ElementOperation, slots: [Int]? = nil, parameters: Bool) {
    optimizer.change([op], stage: stage, slots: slots, parameters: parameters)
  }
  package func change(slots: [Int]? = nil, parameters: Bool, _ op: (Hyper) -> some ElementOperation) {
    optimizer.change(stage.hyper.map(op), stage: stage, slots: slots, parameters: parameters)
  }
  /// Keeps the parameters that did not go away yet in the home slot.
  package func saveHome() {
    guard let k = optimizer.sources.firstIndex(where: { $0 === stage }) else { return }
    for i in 0..<optimizer.bound.count where optimizer.takesPart(i) && optimizer.records[i].away & (1 << UInt32(k)) == 0
    {
      let r = optimizer.records + i
      guard let home = r.pointee.homes[k] else { continue }
      Optimizer.readParameters(r, home)
      r.pointee.away |= 1 << UInt32(k)
    }
  }
  /// Sets a slot to zero in the tensors that have no gradient this time.
  package func clearAbsent(_ slot: Int) {
    for i in 0..<optimizer.bound.count where optimizer.isAbsent(i, stage) {
      let r = optimizer.records + i
      r.pointee.slot(stage.id, slot).base.initializeMemory(
        as: UInt8.self, repeating: 0, count: r.pointee.count * r.pointee.size)
    }
  }
  /// Fills a slot with the standard normal numbers of this step, or with their signs (0 counts as +1): a Rademacher
  /// vector.
  package func draw(_ slot: Int, signs: Bool) {
    clearAbsent(slot)  // the numbers of an earlier step would count in a product of all tensors
    optimizer.change(stage: stage, slots: [slot], parameters: false) { tensor in
      Draw(
        key: Random.key(seed: seed, stream: stream, step: UInt64(step), tensor: optimizer.records[tensor].key),
        signs: signs)
    }
  }

  /// A set that sources project onto, each tensor by itself.
  package struct Projection: Sendable {
    let hyper: Hyper
    let kernels: ConstraintKernels
    package init(_ node: StageNode) throws(Failure) {
      let (e, h) = try Registry.component(node, .constraint)
      guard case .constraint(let k) = e.component else {
        throw Failure(Status.internal, "\(node.name) is no constraint")
      }
      (hyper, kernels) = (h, k)
    }
  }
  /// What lies in a slot becomes the nearest point of the set, in every tensor that has a gradient.
  package func project(_ slot: Int, _ set: Projection) throws(Failure) {
    let pair = set.kernels.projection(set.hyper)
    for i in 0..<optimizer.bound.count where optimizer.takesPart(i) && optimizer.records[i].count > 0 {
      let r = optimizer.records[i], p = r.slot(stage.id, slot).base, shape = optimizer.bound[i].shape
      do throws(Failure) {
        if r.isDouble {
          let v = p.assumingMemoryBound(to: Double.self)
          try runOnce(pair, set.hyper, v, v, shape, t: 0)
        } else {
          let v = p.assumingMemoryBound(to: Float.self)
          try runOnce(pair, set.hyper, v, v, shape, t: 0)
        }
      } catch { throw Failure(Int(error.status), "\(label(i)): \(error.message)") }
    }
  }

  /// The source's tensors that have a gradient this time, by position; only those of such shapes.
  package func tensors(where included: (Shape) -> Bool) -> [Int] {
    (0..<optimizer.bound.count).filter { optimizer.takesPart($0) && included(optimizer.bound[$0].shape) }
  }
  package func shape(of tensor: Int) -> Shape { optimizer.bound[tensor].shape }
  /// The tensor as messages call it.
  package func label(_ tensor: Int) -> String { optimizer.label("parameter", tensor) }
  /// Writes a slot of one tensor.
  package func fill(_ slot: Int, of tensor: Int, _ values: [Double]) {
    let r = optimizer.records[tensor], base = r.slot(stage.id, slot).base
    for (i, x) in values.prefix(r.count).enumerated() {
      if r.isDouble {
        base.assumingMemoryBound(to: Double.self)[i] = x
      } else {
        base.assumingMemoryBound(to: Float.self)[i] = Float(x)
      }
    }
  }
  /// The parameters of the tensors that have no gradient this time go into a slot: they stay where they are.
  package func keepAbsent(_ slot: Int) {
    for i in 0..<optimizer.bound.count where optimizer.isAbsent(i, stage) {
      Optimizer.readParameters(optimizer.records + i, (optimizer.records + i).pointee.slot(stage.id, slot).base)
    }
  }

  /// The matrices of the answer; they are there when `advance` follows a request for them.
  package var answer: Answer { optimizer.answered ?? Answer() }
  /// What gradients of the host are multiplied by: gradients in answers are as the host computed them.
  package var gradientScale: Double { optimizer.scale }
  /// The loss is to rise.
  package var maximizes: Bool { optimizer.options.maximize }
  /// A matrix that the source keeps until the step ends; it is saved with the step.
  package var kept: HostMatrix? { optimizer.kept }
  package func keep(_ matrix: HostMatrix) { optimizer.kept = matrix }

  /// Runs the pipeline on the gradient that `op` makes, as far as the move and no further: what the source's stage, the
  /// last of the updates, measures of the update stays in its slots; all other state is put back. Then the update u,
  /// which that left in `slot`, becomes the move for a step size of 1: θ' = θ + τ·u with decoupled decay and the ratios
  /// of the groups' step sizes in u. Returns τ, the largest step size.
  package func propose(_ op: GradientOperation, _ slot: Int) throws(Failure) -> Double {
    try optimizer.propose(op, for: stage)
    let top = optimizer.largestRate
    optimizer.change(stage: stage, slots: [slot], parameters: false) { tensor in
      let rate = optimizer.rate(of: tensor)
      return Proposal(ratio: top > 0 ? rate.lr / top : 1, decay: rate.decay)
    }
    return top
  }
  /// The step size of the update that ends this step, in place of the largest one: those of all groups change in
  /// proportion. Rules see their own.
  package func setStepSize(_ tau: Double) { optimizer.stepSize = tau }
  /// For `Move.update`: the gradient is what lies in a slot.
  package func gradient(in slot: Int) -> GradientOperation {
    GradientOperation(stage: stage.id, slots: [slot], run: nil)
  }
  /// The same for an operation on it: `x` is the gradient; `slots` picks the state seen.
  package func operation(_ op: some ElementOperation, slots: [Int] = [0]) -> GradientOperation {
    operation(slots: slots) { _ in op }
  }
  /// The same with the hyper-parameters of each tensor's group.
  package func operation(slots: [Int] = [0], _ op: (Hyper) -> some ElementOperation) -> GradientOperation {
    // x and g are one block here
    let all = stage.hyper.map(op).map {
      (plainKernel($0, SIMD16<Float>.self, writesG: false), plainKernel($0, SIMD8<Double>.self, writesG: false))
    }
    return GradientOperation(stage: stage.id, slots: slots) { r, operands, _, _ in
      let kernels = all[r.pointee.group]
      if r.pointee.isDouble { kernels.1(operands) } else { kernels.0(operands) }
    }
  }

  /// The gradient becomes the sum of weights[k] times slot k; any number of slots, eight at a time.
  package func combination(_ weights: [Double]) -> GradientOperation {
    let parts = stride(from: 0, to: weights.count, by: 8).map { first in
      let w = Array(weights[first..<min(first + 8, weights.count)])
      let op = Combination(weights: w, fresh: first == 0)
      return (first, w.count, plainKernel(op, SIMD16<Float>.self), plainKernel(op, SIMD8<Double>.self))
    }
    return GradientOperation(stage: stage.id, slots: Array(weights.indices)) { r, operands, list, offset in
      for (first, count, f32, f64) in parts {
        var o = operands
        for k in 0..<count { o.slots[k] = list[first + k].base + offset * r.pointee.size }
        o.used = count
        if r.pointee.isDouble { f64(o) } else { f32(o) }
      }
    }
  }
}

/// x + the weighted sum of up to eight slots; the sum alone when `fresh`.
private struct Combination: ElementOperation {
  let weights: SIMD8<Double>, count: Int, fresh: Bool
  init(weights: [Double], fresh: Bool) {
    var w = SIMD8<Double>(repeating: 0)
    for (k, x) in weights.enumerated() { w[k] = x }
    (self.weights, count, self.fresh) = (w, weights.count, fresh)
  }
  @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    var sum = fresh ? L(0) : x
    for k in 0..<count { sum = sum + weights[k] * s[k] }
    x = sum
    g = sum
  }
}

/// The move of an update in the first slot, decoupled decay included.
private struct Proposal: ElementOperation {
  let ratio: Double, decay: Double
  @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    s[0] = -ratio * (s[0] + decay * x)
  }
}

/// Standard normal numbers, or their signs, into the first slot.
private struct Draw: ElementOperation {
  let key: UInt64
  let signs: Bool
  @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    s[0] = signs ? s.sign(key) : s.normal(key)
  }
}
/// Keeps the gradient of the step in the first slot while the host answers with something else.
package struct SaveGradient: ElementOperation {
  package init() {}
  @inline(__always) package func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = g }
}
/// Saves the parameters into the first slot.
package struct SaveParameters: ElementOperation {
  package init() {}
  @inline(__always) package func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = x }
}
/// Puts them back, bit for bit.
package struct RestoreParameters: ElementOperation {
  package init() {}
  @inline(__always) package func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = s[0] }
}
/// Saves the parameters into the first slot and goes to the point in the second.
package struct StepBack: ElementOperation {
  package init() {}
  @inline(__always) package func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    s[0] = x
    x = s[1]
  }
}
/// Σ g²; 0 where the tensor does not count.
package struct SquaredNorm: ElementSum {
  let counts: Bool
  package init(of counts: Bool = true) { self.counts = counts }
  @inline(__always) package func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    if counts { sums.add(0, g, times: g) }
  }
}

extension Random {
  /// A number in (0, 1) of one step of a stage, the same for all tensors: the normal distribution function at a normal
  /// draw, which tests can ask for.
  package static func fraction(seed: UInt64, stream: UInt32, step: Int) -> Double {
    let draw = normal(key(seed: seed, stream: stream, step: UInt64(step), tensor: 0), 0)
    return 0.5 * erfc(-draw * 0.5.squareRoot())
  }
}
