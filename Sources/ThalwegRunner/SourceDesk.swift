import CThalweg
import ThalwegCore

/// The runner as one source sees it.
struct SourceDesk: SourceHost {
  let optimizer: Optimizer
  let stage: Stage
  private var isExact = false
  var exact: any SourceHost {
    var desk = self
    desk.isExact = true
    return desk
  }
  init(_ optimizer: Optimizer, _ stage: Stage) {
    (self.optimizer, self.stage) = (optimizer, stage)
    optimizer.keyState()
  }

  var stageID: Int { stage.id }
  var groups: [Hyper] { stage.hyper }
  var hyper: Hyper { stage.hyper[optimizer.leader(stage).map { optimizer.bound[$0].group } ?? 0] }
  func group(of tensor: Int) -> Int { optimizer.bound[tensor].group }
  var count: Int { optimizer.bound.count }
  var step: Int { optimizer.step }
  var seed: UInt64 { optimizer.options.seed }
  var gradientScale: Double { optimizer.scale }
  var maximizes: Bool { optimizer.options.maximize }
  func observed(_ what: String) -> Double { optimizer.observed[what] ?? .nan }
  var lossIsNew: Bool { optimizer.lossIsNew }
  func setLoss(_ loss: Double) {
    (optimizer.observed["loss"], optimizer.pointLoss) = (loss, loss)
    if let top = optimizer.stack.indices.last { optimizer.stack[top].told = loss }
  }
  var scalars: UnsafeMutablePointer<Double> { stage.globals }

  func sum(_ kernels: [WalkMeasure], slots: [Int]?) -> [Double] {
    optimizer.sum(kernels, stage: stage, slots: slots, exact: isExact)
  }
  func sums(_ kernels: [WalkMeasure], slots: [Int]?) -> [[Double]] {
    optimizer.sums(kernels, stage: stage, slots: slots)
  }
  func change(_ kernels: [WalkKernel], slots: [Int]?, parameters: Bool) {
    optimizer.change(kernels, stage: stage, slots: slots, parameters: parameters, exact: isExact)
  }
  func change(slots: [Int]?, parameters: Bool, _ kernel: (_ tensor: Int) -> WalkKernel) {
    optimizer.change(stage: stage, slots: slots, parameters: parameters, kernel)
  }

  func keep(_ slot: Int, reads: Bool) { optimizer.keep(slot, of: stage, reads: reads) }
  func innerProducts(_ slots: [Int]) throws(Failure) -> [[Double]] {
    try optimizer.innerProducts(slots, of: stage)
  }
  func overRanks(_ x: Double) -> Double {
    var list = [x]
    optimizer.addRanks(&list)
    return list[0]
  }
  func comeHome() { optimizer.returning = optimizer.sources.firstIndex { $0 === stage } }
  func saveHome() {
    optimizer.bringHome()
    guard let k = optimizer.sources.firstIndex(where: { $0 === stage }) else { return }
    for i in 0..<optimizer.bound.count where optimizer.takesPart(i) && optimizer.records[i].away & (1 << UInt32(k)) == 0
    {
      let r = optimizer.records + i
      guard let home = r.pointee.homes[k] else { continue }
      Optimizer.readParameters(r, home)
      r.pointee.away |= 1 << UInt32(k)
    }
  }
  func clearAbsent(_ slot: Int) {
    for i in 0..<optimizer.bound.count where optimizer.isAbsent(i, stage) {
      let r = optimizer.records + i, store = r.pointee.slot(stage.id, slot)
      store.base.initializeMemory(
        as: UInt8.self, repeating: 0, count: SlotStore.bytes(store.format, r.pointee.count, r.pointee.size))
    }
  }
  func keepAbsent(_ slot: Int) {
    for i in 0..<optimizer.bound.count where optimizer.isAbsent(i, stage) {
      Optimizer.readParameters(optimizer.records + i, (optimizer.records + i).pointee.slot(stage.id, slot).base)
    }
  }
  func takeUpAbsent(_ slot: Int) {
    // (ranks would have to agree on what their parts of a tensor hold)
    guard optimizer.sources.last === stage, optimizer.ranks == nil else { return }
    for i in 0..<optimizer.bound.count where optimizer.isAbsent(i, stage) && optimizer.records[i].started {
      let r = optimizer.records + i, bytes = r.pointee.count * r.pointee.size
      let held = UnsafeRawBufferPointer(start: r.pointee.slot(stage.id, slot).base, count: bytes)
      if held.contains(where: { $0 != 0 }) { r.pointee.active = true }
    }
  }
  func project(_ slot: Int, _ set: HeldSet) throws(Failure) {
    for i in 0..<optimizer.bound.count where optimizer.takesPart(i, stage) && optimizer.records[i].count > 0 {
      let r = optimizer.records[i], p = r.slot(stage.id, slot).base, shape = optimizer.bound[i].shape
      do throws(Failure) {
        if r.isDouble {
          try set.project(p.assumingMemoryBound(to: Double.self), shape)
        } else {
          try set.project(p.assumingMemoryBound(to: Float.self), shape)
        }
      } catch { throw error.of(label(i)) }
    }
  }
  func combine(_ samples: Samples, into slot: Int, _ weights: (_ sample: Int, _ squares: [Double]) -> [Double]) {
    let targets = samples.tensors.map { i in
      let r = optimizer.records[i]
      return Samples.Target(r.slot(stage.id, slot).base, isDouble: r.isDouble)
    }
    samples.combine(into: targets, weights)
  }
  func memory(_ slot: Int, of tensor: Int) -> (base: UnsafeMutableRawPointer, isDouble: Bool) {
    let r = optimizer.records[tensor]
    return (r.slot(stage.id, slot).base, r.isDouble)
  }
  func fill(_ slot: Int, of tensor: Int, _ values: [Double]) {
    let r = optimizer.records[tensor], store = r.slot(stage.id, slot), base = store.base
    if store.format != .direct {
      var wide = widened(slot, tensor)
      for (i, x) in zip(wide.indices, values) { wide[i] = Float(x) }
      return wide.withUnsafeMutableBufferPointer { p in
        if let p = p.baseAddress { narrow(slot, of: tensor, p) }
      }
    }
    for (i, x) in values.prefix(elements(slot, tensor)).enumerated() {
      if r.isDouble {
        base.assumingMemoryBound(to: Double.self)[i] = x
      } else {
        base.assumingMemoryBound(to: Float.self)[i] = Float(x)
      }
    }
  }
  func widen(_ slot: Int, of tensor: Int) throws(Failure) -> Memory? {
    let n = elements(slot, tensor), store = optimizer.records[tensor].slot(stage.id, slot)
    guard store.format != .direct else { return nil }
    let wide = try Memory(4 * n, optimizer.allocator, zeroed: false)
    store.widen(n, 0, n, wide.base.assumingMemoryBound(to: Float.self))
    return wide
  }
  func narrow(_ slot: Int, of tensor: Int, _ wide: UnsafeMutablePointer<Float>) {
    let n = elements(slot, tensor), r = optimizer.records[tensor]
    r.slot(stage.id, slot).narrow(n, 0, n, wide, r.key(stage.id, slot))
  }
  /// A slot that is stored in fewer bits.
  private func widened(_ slot: Int, _ tensor: Int) -> [Float] {
    let n = elements(slot, tensor), store = optimizer.records[tensor].slot(stage.id, slot)
    return [Float](unsafeUninitializedCapacity: n) { p, count in
      if let p = p.baseAddress { store.widen(n, 0, n, p) }
      count = n
    }
  }
  func read(_ slot: Int, of tensor: Int) -> [Double] {
    let r = optimizer.records[tensor], store = r.slot(stage.id, slot), base = store.base
    if store.format != .direct { return widened(slot, tensor).map { Double($0) } }
    return (0..<elements(slot, tensor)).map {
      r.isDouble
        ? base.assumingMemoryBound(to: Double.self)[$0] : Double(base.assumingMemoryBound(to: Float.self)[$0])
    }
  }
  private func elements(_ slot: Int, _ tensor: Int) -> Int {
    let b = optimizer.bound[tensor], list = optimizer.slots(stage, b)
    return list.indices.contains(slot) ? list[slot].elements(of: b.shape.count) : 0
  }

  func tensors(where included: (Shape) -> Bool) -> [Int] {
    (0..<optimizer.bound.count).filter { optimizer.takesPart($0, stage) && included(optimizer.bound[$0].shape) }
  }
  func shape(of tensor: Int) -> Shape { optimizer.bound[tensor].shape }
  func label(_ tensor: Int) -> String { optimizer.label("parameter", tensor) }
  func key(of tensor: Int) -> UInt32 { optimizer.records[tensor].key }
  func steps(of tensor: Int) -> Int { optimizer.records[tensor].t }

  var answer: Answer { optimizer.answered ?? Answer() }
  var kept: HostMatrix? { optimizer.kept }
  func keep(_ matrix: HostMatrix) { optimizer.kept = matrix }
  func propose(_ op: GradientOperation) throws(Failure) -> Double {
    try optimizer.propose(op, for: stage)
    return optimizer.largestRate
  }
  func rate(of tensor: Int) -> (lr: Double, decay: Double) {
    (optimizer.rate(of: tensor).lr, optimizer.records[tensor].decay)
  }
  func setStepSize(_ tau: Double) { optimizer.stepSize = tau }
  func stepSize(of tensor: Int) -> Double {
    let b = optimizer.bound[tensor]
    return optimizer.branches[b.branch].rule.hyper[b.group].lr
  }
}
