/// A kernel of a walk: for f32, for f64.
public typealias WalkKernel = (f32: PlainKernel, f64: PlainKernel)
public typealias WalkMeasure = (f32: PlainMeasure, f64: PlainMeasure)

/// The runner as one source sees it: the walks over its tensors, its numbers, and what the host has told. Methods use
/// it through `SourceIO`.
public protocol SourceHost {
  /// The source's stage, its hyper-parameters for each group, and the leading group's.
  var stageID: Int { get }
  var groups: [Hyper] { get }
  var hyper: Hyper { get }
  func group(of tensor: Int) -> Int
  var step: Int { get }
  var seed: UInt64 { get }
  var gradientScale: Double { get }
  var maximizes: Bool { get }
  func observed(_ what: String) -> Double
  var lossIsNew: Bool { get }
  func setLoss(_ loss: Double)
  var scalars: UnsafeMutablePointer<Double> { get }

  /// The same, but walks see the parameters in full where the host's are narrower.
  var exact: any SourceHost { get }
  /// One kernel, or one a group.
  func sum(_ kernels: [WalkMeasure], slots: [Int]?) -> [Double]
  /// The same of every tensor, by position.
  func sums(_ kernels: [WalkMeasure], slots: [Int]?) -> [[Double]]
  func change(_ kernels: [WalkKernel], slots: [Int]?, parameters: Bool)
  /// One kernel a tensor.
  func change(slots: [Int]?, parameters: Bool, _ kernel: (_ tensor: Int) -> WalkKernel)
  func keep(_ slot: Int, reads: Bool)
  func innerProducts(_ slots: [Int]) throws(Failure) -> [[Double]]
  func saveHome()
  func comeHome()
  /// A number of this rank, added to those of the others.
  func overRanks(_ x: Double) -> Double
  func clearAbsent(_ slot: Int)
  func keepAbsent(_ slot: Int)
  func takeUpAbsent(_ slot: Int)
  func project(_ slot: Int, _ set: HeldSet) throws(Failure)
  /// Tensor by tensor, the weighted sum of its samples goes into a slot.
  func combine(_ samples: Samples, into slot: Int, _ weights: (_ sample: Int, _ squares: [Double]) -> [Double])
  /// The memory of a slot, in the compute type unless it is stored in fewer bits: then a copy is made by `widen`, and
  /// stored by `narrow`.
  func memory(_ slot: Int, of tensor: Int) -> (base: UnsafeMutableRawPointer, isDouble: Bool)
  func widen(_ slot: Int, of tensor: Int) throws(Failure) -> Memory?
  func narrow(_ slot: Int, of tensor: Int, _ wide: UnsafeMutablePointer<Float>)
  func fill(_ slot: Int, of tensor: Int, _ values: [Double])
  func read(_ slot: Int, of tensor: Int) -> [Double]
  var count: Int { get }
  func tensors(where included: (Shape) -> Bool) -> [Int]
  func shape(of tensor: Int) -> Shape
  func label(_ tensor: Int) -> String
  /// The key of a tensor's random draws.
  func key(of tensor: Int) -> UInt32
  func steps(of tensor: Int) -> Int

  var answer: Answer { get }
  var kept: HostMatrix? { get }
  func keep(_ matrix: HostMatrix)
  /// Runs the pipeline as far as the move, and says the step size and decay of each tensor.
  func propose(_ op: GradientOperation) throws(Failure) -> Double
  func rate(of tensor: Int) -> (lr: Double, decay: Double)
  func setStepSize(_ tau: Double)
  func stepSize(of tensor: Int) -> Double
}

/// What a source may do with the tensors. Gradients read here are already scaled (loss scale, maximize).
public struct SourceIO {
  @usableFromInline let host: any SourceHost
  public init(_ host: any SourceHost) { self.host = host }

  /// The same for walks that change no parameters: they see them in full, where the host's are narrower than a master
  /// copy.
  public var exact: SourceIO { SourceIO(host.exact) }

  /// A number of this rank, added to those of the other ranks, which call this too.
  public func overRanks(_ x: Double) -> Double { host.overRanks(x) }

  /// The source's hyper-parameters now, schedules evaluated at this step: those that stand for all tensors, or of a
  /// tensor.
  public var hyper: Hyper { host.hyper }
  public func hyper(of tensor: Int) -> Hyper { host.groups[host.group(of: tensor)] }
  public var step: Int { host.step }
  public var seed: UInt64 { host.seed }
  public var stream: UInt32 { UInt32(host.stageID) }
  public var loss: Double { observed("loss") }
  /// It came with the answer that the source sees now.
  public var lossIsNew: Bool { host.lossIsNew }
  /// The loss that stages behind see.
  public func setLoss(_ loss: Double) { host.setLoss(loss) }
  /// What was observed under this name since the last step; NaN when nothing was.
  public func observed(_ what: String) -> Double { host.observed(what) }
  public func scalar(_ k: Int) -> Double { host.scalars[k] }
  /// Scalar k as a counter up to `most`.
  public func counter(_ k: Int, most: Int = 1 << 52) -> Int { counted(host.scalars[k], most: most) }
  public func setScalar(_ k: Int, _ x: Double) { host.scalars[k] = x }
  /// One more of what scalar k counts, for hosts to read.
  public func tally(_ k: Int, _ more: Int = 1) { host.scalars[k] += Double(more) }

  /// The gradient goes into a slot, to stay there until the step ends. With `reads` nobody changes it there: where the
  /// host's own stays as it is for so long, it is read where it lies.
  public func keep(_ slot: Int, reads: Bool) { host.keep(slot, reads: reads) }
  /// The inner products of all pairs of slots, over all tensors that have a gradient.
  public func innerProducts(_ slots: [Int]) throws(Failure) -> [[Double]] { try host.innerProducts(slots) }

  /// Sums over all elements of all tensors that have a gradient. `slots` picks and orders the state seen.
  @inlinable public func sum(_ op: some ElementSum, slots: [Int]? = nil) -> SourceTotals {
    SourceTotals(values: host.sum([walk(op)], slots: slots))
  }
  /// The same with the hyper-parameters of each tensor's group.
  @inlinable public func sum(slots: [Int]? = nil, _ op: (Hyper) -> some ElementSum) -> SourceTotals {
    SourceTotals(values: host.sum(host.groups.map { walk(op($0)) }, slots: slots))
  }
  /// Sums over the elements of every tensor by itself, by position: 0 in one that has no gradient this time.
  @inlinable public func sums(_ op: some ElementSum, slots: [Int]? = nil) -> [SourceTotals] {
    host.sums([walk(op)], slots: slots).map { SourceTotals(values: $0) }
  }
  @inlinable public func sums(slots: [Int]? = nil, _ op: (Hyper) -> some ElementSum) -> [SourceTotals] {
    host.sums(host.groups.map { walk(op($0)) }, slots: slots).map { SourceTotals(values: $0) }
  }
  /// Changes parameters (as the host sees them) and the source's state.
  @inlinable public func change(_ op: some ElementOperation, slots: [Int]? = nil, parameters: Bool) {
    host.change([walk(op, parameters)], slots: slots, parameters: parameters)
  }
  @inlinable public func change(slots: [Int]? = nil, parameters: Bool, _ op: (Hyper) -> some ElementOperation) {
    host.change(host.groups.map { walk(op($0), parameters) }, slots: slots, parameters: parameters)
  }
  /// The same with an operation for each tensor, by position.
  @inlinable public func change(
    slots: [Int]? = nil, parameters: Bool, each op: (_ tensor: Int) -> some ElementOperation
  ) {
    host.change(slots: slots, parameters: parameters) { walk(op($0), parameters) }
  }
  @inlinable func walk(_ op: some ElementSum) -> WalkMeasure {
    (plainMeasure(op, SIMD16<Float>.self), plainMeasure(op, SIMD8<Double>.self))
  }
  @inlinable func walk(_ op: some ElementOperation, _ parameters: Bool) -> WalkKernel {
    (
      plainKernel(op, SIMD16<Float>.self, writesX: parameters, writesG: false),
      plainKernel(op, SIMD8<Double>.self, writesX: parameters, writesG: false)
    )
  }
  /// Keeps the parameters that did not go away yet in the home slot.
  public func saveHome() { host.saveHome() }
  /// Parameters that are away return to where they stood, bit for bit: at the latest when something looks at them next.
  public func comeHome() { host.comeHome() }
  /// Sets a slot to zero in the tensors that have no gradient this time.
  public func clearAbsent(_ slot: Int) { host.clearAbsent(slot) }
  /// The parameters of the tensors that have no gradient this time go into a slot: they stay where they are.
  public func keepAbsent(_ slot: Int) { host.keepAbsent(slot) }
  /// The tensors that have no gradient this time take part after all where a slot holds something of them; but for
  /// sources that others follow, which ask for more gradients.
  public func takeUpAbsent(_ slot: Int) { host.takeUpAbsent(slot) }
  /// Fills a slot with the standard normal numbers of this step (or of another number that tells draws apart), or with
  /// their signs (0 counts as +1): a Rademacher vector.
  @inlinable public func draw(_ slot: Int, signs: Bool, number: Int? = nil) {
    clearAbsent(slot)  // the numbers of an earlier step would count in a product of all tensors
    let number = UInt64(truncatingIfNeeded: number ?? step)
    host.change(slots: [slot], parameters: false) { tensor in
      let key = Random.key(seed: seed, stream: stream, step: number, tensor: host.key(of: tensor))
      return walk(Draw(key: key, signs: signs), false)
    }
  }
  /// In every tensor that takes part, slot ← Σ_b weight·(gradient of sample b); `weights` makes those of a sample, one
  /// a tensor, of the squares of its norms.
  public func combine(
    _ samples: Samples, into slot: Int, _ weights: (_ sample: Int, _ squares: [Double]) -> [Double]
  ) { host.combine(samples, into: slot, weights) }
  /// What lies in a slot becomes the nearest point of the set, in every tensor that has a gradient.
  public func project(_ slot: Int, _ set: HeldSet) throws(Failure) { try host.project(slot, set) }

  /// How many tensors there are, whether they have a gradient this time or not: positions are below it.
  public var count: Int { host.count }
  /// The source's tensors that have a gradient this time, by position; only those of such shapes.
  public func tensors(where included: (Shape) -> Bool) -> [Int] { host.tensors(where: included) }
  public func shape(of tensor: Int) -> Shape { host.shape(of: tensor) }
  /// The number that keys its random draws: the same wherever it is bound again.
  public func key(of tensor: Int) -> UInt32 { host.key(of: tensor) }
  /// How many steps it has taken part in.
  public func steps(of tensor: Int) -> Int { host.steps(of: tensor) }
  /// The tensor as messages call it.
  public func label(_ tensor: Int) -> String { host.label(tensor) }
  /// A slot of one tensor, in double.
  public func read(_ slot: Int, of tensor: Int) -> [Double] { host.read(slot, of: tensor) }
  /// Writes a slot of one tensor.
  public func fill(_ slot: Int, of tensor: Int, _ values: [Double]) { host.fill(slot, of: tensor, values) }

  /// Works with slots of one tensor where they lie, in the compute type; with copies of those stored in fewer bits.
  public func work<W: SlotWork>(_ work: W, on tensor: Int, slots: [Int]) throws(Failure) -> W.Result {
    let list = slots.map { host.memory($0, of: tensor) }, shape = host.shape(of: tensor)
    if list.first?.isDouble ?? false {
      return try work(list.map { $0.base.assumingMemoryBound(to: Double.self) }, shape)
    }
    var copies: [Memory?] = []
    for slot in slots { copies.append(try host.widen(slot, of: tensor)) }
    let result = try work(
      zip(list, copies).map { ($1?.base ?? $0.base).assumingMemoryBound(to: Float.self) }, shape)
    for case (let slot, let copy?) in zip(slots, copies) {
      host.narrow(slot, of: tensor, copy.base.assumingMemoryBound(to: Float.self))
    }
    return result
  }

  /// The matrices of the answer; they are there when `advance` follows a request for them.
  public var answer: Answer { host.answer }
  /// What gradients of the host are multiplied by: gradients in answers are as the host computed them.
  public var gradientScale: Double { host.gradientScale }
  /// The loss is to rise.
  public var maximizes: Bool { host.maximizes }
  /// A matrix that the source keeps until the step ends; it is saved with the step.
  public var kept: HostMatrix? { host.kept }
  public func keep(_ matrix: HostMatrix) { host.keep(matrix) }

  /// Runs the pipeline on the gradient that `op` makes, as far as the move and no further: what the source's stage, the
  /// last of the updates, measures of the update stays in its slots; all other state is put back. Then the update u,
  /// which that left in `slot`, becomes the move for a step size of 1: θ' = θ + τ·u with decoupled decay and the ratios
  /// of the groups' step sizes in u. Returns τ, the largest step size.
  @inlinable public func propose(_ op: GradientOperation, _ slot: Int) throws(Failure) -> Double {
    let top = try host.propose(op)
    host.change(slots: [slot], parameters: false) { tensor in
      let rate = host.rate(of: tensor)
      return walk(Proposal(ratio: top > 0 ? rate.lr / top : 1, decay: rate.decay), false)
    }
    return top
  }
  /// The step size of the update that ends this step, in place of the largest one: those of all groups change in
  /// proportion. Rules see their own.
  public func setStepSize(_ tau: Double) { host.setStepSize(tau) }
  /// The step size of a tensor in this step, its schedule evaluated, also in the opening; NaN where its rule has none.
  public func stepSize(of tensor: Int) -> Double { host.stepSize(of: tensor) }
  /// For `Move.update`: the gradient is what lies in a slot.
  public func gradient(in slot: Int) -> GradientOperation {
    GradientOperation(stage: host.stageID, slots: [slot], run: nil)
  }
  /// The same for an operation on it: `x` is the gradient; `slots` picks the state seen.
  @inlinable public func operation(_ op: some ElementOperation, slots: [Int] = [0]) -> GradientOperation {
    operation(slots: slots) { _ in op }
  }
  /// The same with the hyper-parameters of each tensor's group.
  @inlinable public func operation(slots: [Int] = [0], _ op: (Hyper) -> some ElementOperation) -> GradientOperation {
    let all = host.groups.map { walk(op($0), true) }  // x and g are one block here
    return GradientOperation(stage: host.stageID, slots: slots) { r, operands, _, _ in
      let kernels = all[r.pointee.group]
      if r.pointee.isDouble { kernels.f64(operands) } else { kernels.f32(operands) }
    }
  }

  /// The gradient becomes the sum of weights[k] times slot k.
  public func combination(_ weights: [Double]) -> GradientOperation {
    var sum = rows(weights.count) { (n, rows: Blend.List<Float>, out: UnsafeMutablePointer<Float>) in
      Blend.combine(n, rows, weights, out)
    } double: { (n, rows: Blend.List<Double>, out: UnsafeMutablePointer<Double>) in
      Blend.combine(n, rows, weights, out)
    }
    sum.weights = weights
    return sum
  }
  /// The gradient becomes, entry by entry, the sum of weights[k] times the k-th smallest of the first slots.
  public func ordered(_ weights: [Double]) -> GradientOperation {
    let network = Blend.network(weights)
    return rows(weights.count) {
      (n, rows: Blend.List<Float>, out: UnsafeMutablePointer<Float>) in
      Blend.order(n, rows, network, weights, out)
    } double: { (n, rows: Blend.List<Double>, out: UnsafeMutablePointer<Double>) in
      Blend.order(n, rows, network, weights, out)
    }
  }
  private func rows(
    _ count: Int, float: @escaping @Sendable (Int, Blend.List<Float>, UnsafeMutablePointer<Float>) -> Void,
    double: @escaping @Sendable (Int, Blend.List<Double>, UnsafeMutablePointer<Double>) -> Void
  ) -> GradientOperation {
    GradientOperation(stage: host.stageID, slots: Array(0..<count), blends: true) { r, o, list, offset in
      if (0..<count).contains(where: { list[$0].format != .direct }) {  // which then is no double
        return Widening.rows(r.pointee.count, o, list, offset, count, float)
      }
      func read<T: Real>(_ body: (Int, Blend.List<T>, UnsafeMutablePointer<T>) -> Void) {
        withUnsafeTemporaryAllocation(of: UnsafePointer<T>.self, capacity: max(1, count)) { buffer in
          guard let rows = buffer.baseAddress else { return }
          for k in 0..<count {
            (rows + k).initialize(to: UnsafePointer(list[k].base.assumingMemoryBound(to: T.self) + offset))
          }
          body(o.count, rows, o.x.assumingMemoryBound(to: T.self))
        }
      }
      if r.pointee.isDouble { read(double) } else { read(float) }
    }
  }
}

/// Rows of slots that are stored in fewer bits, a short piece at a time.
private enum Widening {
  static let piece = 256
  static func rows(
    _ total: Int, _ o: Operands, _ list: UnsafeMutablePointer<SlotStore>, _ offset: Int, _ count: Int,
    _ body: (Int, Blend.List<Float>, UnsafeMutablePointer<Float>) -> Void
  ) {
    let wide = UnsafeMutablePointer<Float>.allocate(capacity: count &* piece)
    let rows = UnsafeMutablePointer<UnsafePointer<Float>>.allocate(capacity: count)
    defer {
      wide.deallocate()
      rows.deallocate()
    }
    for start in stride(from: 0, to: o.count, by: piece) {
      let n = min(piece, o.count &- start), at = offset &+ start
      for k in 0..<count {
        let store = list[k], row = wide + k &* piece
        if store.format == .direct {
          (rows + k).initialize(to: UnsafePointer(store.base.assumingMemoryBound(to: Float.self) + at))
        } else {
          store.widen(total, at, n, row)
          (rows + k).initialize(to: UnsafePointer(row))
        }
      }
      body(n, rows, o.x.assumingMemoryBound(to: Float.self) + start)
    }
  }
}

/// The move of an update in the first slot, decoupled decay included.
public struct Proposal: ElementOperation {
  public let ratio: Double, decay: Double
  @usableFromInline init(ratio: Double, decay: Double) { (self.ratio, self.decay) = (ratio, decay) }
  @inlinable @inline(__always) public func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    s[0] = -ratio * (s[0] + decay * x)
  }
}

/// Standard normal numbers, or their signs, into the first slot.
public struct Draw: ElementOperation {
  public let key: UInt64
  public let signs: Bool
  @usableFromInline init(key: UInt64, signs: Bool) { (self.key, self.signs) = (key, signs) }
  @inlinable @inline(__always) public func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    s[0] = signs ? s.sign(key) : s.normal(key)
  }
}
