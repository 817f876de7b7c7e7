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

/// What a source does next.
package enum Move: Sendable {
  /// Ask the host; its answer comes with the next `advance`.
  case ask(Ask)
  /// Let the pipeline step, with the host's gradient as it stands now, changed by an operation (nil: not changed).
  case update(GradientOperation?)
  /// The step is over without an update of the pipeline (an accumulated gradient, a method that moved the parameters itself).
  case nothing
}

/// Decides how gradients are obtained: perturbs parameters, asks for more than one gradient, combines them.
///
/// A state machine: `advance` is called with the number of requests answered so far in this step (from 0: the first gradient is there).
/// What must survive until the next call lies in slots and scalars, so that a step can be saved and resumed between any two requests.
package protocol Source: Sendable {
  static var method: Method { get }
  init(_ h: Hyper) throws(Failure)
  var slots: [Slot] { get }
  var scalars: [Scalar] { get }
  /// One gradient a step is enough (it only accumulates, say): `step` may be used.
  var single: Bool { get }
  /// The slot whose content a Hessian-vector request wants multiplied.
  var probe: Int? { get }
  /// What `observe` may tell it, besides the loss.
  var observes: [String] { get }
  /// What `command` may ask of it, between steps; the pipeline then steps if the move says so.
  var commands: [String] { get }
  func command(_ name: String, _ io: SourceIO) throws(Failure) -> Move
  /// What the first request of a step is, if not the gradient at the parameters. It may move the parameters when `opensAway` says so:
  /// `cancel` is then called in phase 0 too.
  func opening(_ io: SourceIO) -> Ask?
  var opensAway: Bool { get }
  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move
  /// Undoes what was done since the step began.
  func cancel(_ phase: Int, _ io: SourceIO)
}

extension Source {
  package var slots: [Slot] { [] }
  package var scalars: [Scalar] { [] }
  package var single: Bool { false }
  package var probe: Int? { nil }
  package var opensAway: Bool { false }
  package var observes: [String] { [] }
  package var commands: [String] { [] }
  package func command(_ name: String, _ io: SourceIO) throws(Failure) -> Move { .nothing }
  package func opening(_ io: SourceIO) -> Ask? { nil }
  package func cancel(_ phase: Int, _ io: SourceIO) {}
}

/// An element-wise change of the gradient before the pipeline sees it. `g` is the host's gradient; the state is the source's.
package struct GradientOperation: Sendable {
  let stage: Int
  /// (record, operands with the gradient in x, all slots of the stage, offset)
  let run: @Sendable (UnsafeMutablePointer<Record>, Operands, UnsafeMutablePointer<SlotStore>, Int) -> Void
}

/// What a source may do with the tensors. Gradients read here are already scaled (loss scale, maximize).
package struct SourceIO {
  private let optimizer: Optimizer
  private let stage: Stage
  init(_ optimizer: Optimizer, _ stage: Stage, opening: Bool = false) { (self.optimizer, self.stage) = (optimizer, stage) }

  /// The source's hyper-parameters now, schedules evaluated at this step.
  package var hyper: Hyper { stage.hyper[0] }
  package func evaluateSchedules() throws(Failure) { try stage.evaluate(0, Double(optimizer.step)) }
  package var step: Int { optimizer.step }
  package var seed: UInt64 { optimizer.options.seed }
  package var stream: UInt32 { UInt32(stage.id) }
  package var loss: Double { optimizer.observed["loss"] ?? .nan }
  /// What was observed under this name since the last step; NaN when nothing was.
  package func observed(_ what: String) -> Double { optimizer.observed[what] ?? .nan }
  package func scalar(_ k: Int) -> Double { stage.globals[k] }
  package func setScalar(_ k: Int, _ x: Double) { stage.globals[k] = x }

  /// Sums over all elements of all tensors that have a gradient. `slots` picks and orders the state seen.
  package func sum(_ op: some ElementSum, slots: [Int]? = nil) -> [Double] { optimizer.sum(op, stage: stage, slots: slots) }
  /// Changes parameters (as the host sees them) and the source's state.
  package func change(_ op: some ElementOperation, slots: [Int]? = nil, parameters: Bool) {
    optimizer.change(op, stage: stage, slots: slots, parameters: parameters)
  }
  /// Fills a slot with the standard normal numbers of this step, or with their signs (0 counts as +1): a Rademacher vector.
  package func draw(_ slot: Int, signs: Bool) {
    optimizer.change(stage: stage, slots: [slot], parameters: false) { tensor in
      Draw(key: Random.key(seed: seed, stream: stream, step: UInt64(step), tensor: UInt32(truncatingIfNeeded: tensor)), signs: signs)
    }
  }
  /// Sets a slot to zero in the tensors that have no gradient this time.
  package func clearAbsent(_ slot: Int) {
    for i in 0..<optimizer.bound.count where !optimizer.records[i].active {
      let r = optimizer.records + i
      r.pointee.slot(stage.id, slot).base.initializeMemory(as: UInt8.self, repeating: 0, count: r.pointee.count * r.pointee.size)
    }
  }
  /// Makes an operation for `Move.update`: `x` is the gradient; `slots` picks the state seen.
  package func operation(_ op: some ElementOperation, slots: [Int]? = nil) -> GradientOperation {
    // x and g are one block here
    let kernels = (plainKernel(op, SIMD16<Float>.self, writesG: false), plainKernel(op, SIMD8<Double>.self, writesG: false))
    return GradientOperation(stage: stage.id) { r, operands, list, offset in
      var o = operands
      if let slots {
        for (k, s) in slots.prefix(SlotPointers.capacity).enumerated() { o.slots[k] = list[s].base + offset * r.pointee.size }
        o.used = min(slots.count, SlotPointers.capacity)
      }
      if r.pointee.isDouble { kernels.1(o) } else { kernels.0(o) }
    }
  }

  /// The gradient becomes the sum of weights[k] times slot k; any number of slots, eight at a time.
  package func combination(_ weights: [Double]) -> GradientOperation {
    let parts = stride(from: 0, to: weights.count, by: SlotPointers.capacity).map { first in
      let w = Array(weights[first..<min(first + SlotPointers.capacity, weights.count)])
      let op = Combination(weights: w, fresh: first == 0)
      return (first, w.count, plainKernel(op, SIMD16<Float>.self), plainKernel(op, SIMD8<Double>.self))
    }
    return GradientOperation(stage: stage.id) { r, operands, list, offset in
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

/// Standard normal numbers, or their signs, into the first slot.
private struct Draw: ElementOperation {
  let key: UInt64
  let signs: Bool
  func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    let z = s.normal(key)
    s[0] = signs ? L.select(L.less(z, L(0)), L(-1), L(1)) : z
  }
}
/// Keeps the gradient of the step in the first slot while the host answers with something else.
package struct SaveGradient: ElementOperation {
  package init() {}
  @inline(__always) package func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = g }
}
/// Gives the pipeline the gradient of the first slot.
package struct RestoreGradient: ElementOperation {
  package init() {}
  @inline(__always) package func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { (x, g) = (s[0], s[0]) }
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
/// Σ g².
package struct SquaredNorm: ElementSum {
  package init() {}
  @inline(__always) package func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) { sums.add(0, g, times: g) }
}
