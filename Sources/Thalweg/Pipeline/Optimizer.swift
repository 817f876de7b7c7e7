import CThalweg

/// What the host must supply now.
package struct Request: Sendable {
  package enum Kind: Int32, Sendable, CaseIterable {
    case none = 0, gradient, loss, lossAndGradient, hessianVector, taskGradient, previousGradient, logitDerivatives, activations

    /// The answer is matrices, not gradients.
    package var takesMatrices: Bool { self == .logitDerivatives || self == .activations }
  }
  package var kind = Kind.none
  package var pass = 0
  package var tag: UInt64 = 0
  package var index = 0
  package var count = 0
  package init(kind: Kind = .none, pass: Int = 0, tag: UInt64 = 0, index: Int = 0, count: Int = 0) {
    (self.kind, self.pass, self.tag, self.index, self.count) = (kind, pass, tag, index, count)
  }
}

package struct Options: Sendable {
  package enum StateFormat: Int32, Sendable { case f32 = 1, bf16, q8 }
  package enum Master: Int32, Sendable { case none = 0, f32, stochastic }
  package enum NonFinite: Int32, Sendable { case propagate = 0, skip, error }
  package var state = StateFormat.f32
  package var master = Master.none
  package var nonFinite = NonFinite.propagate
  package var maximize = false
  package var zeroGradients = false
  package var consumeGradients = false
  package var gradientScale = 1.0
  package var seed: UInt64 = 0
  package init() {}
}

/// One tensor as it was bound, for messages, introspection and checkpoints.
struct Bound {
  var view: View
  var name: String
  var group: Int
  var branch: Int
  var shape: Shape
}

/// A pipeline at work on bound tensors.
package final class Optimizer {
  package let stages: [Stage]
  package let branches: [Branch]
  let sourceStage: Stage?
  /// The pipeline of `route` that the source stands in; nil: none.
  let sourceBranch: Int?
  private let needsLoss: Bool
  /// Some stage refuses non-finite gradients whatever the policy.
  private let needsFinite: Bool
  private let mayFail: Bool
  private let longestSegments: Int
  package var options: Options
  package private(set) var groups: [String] = [""]
  var bound: [Bound] = []
  private let allocator: Allocator

  var records: UnsafeMutablePointer<Record>
  private var capacity = 0
  /// Arrays that records point into; freed with the optimizer.
  private var holdings: [UnsafeMutableRawPointer] = []
  private var arenas: [Memory] = []
  private var scratch: [Memory] = []
  /// One a thread, like the work space of whole-tensor stages.
  private var programs: [Program] = []
  private var workspaces: [Memory] = []
  private let threadBusy: UnsafeMutablePointer<Int64>
  private static let mostThreads = 64

  private struct Block { var tensor: Int32; var offset: Int; var count: Int }
  private struct Task { var first: Int; var end: Int; var small: Bool }
  private var blocks: UnsafeMutablePointer<Block>
  private var blockCount = 0
  private var tasks: [Task] = []
  private var partials: UnsafeMutablePointer<Double>
  private var totals: UnsafeMutablePointer<Double>
  private var planned = 0        // tensors with state and plan
  private var elements = 0

  package private(set) var step = 0
  package private(set) var skipped = 0
  /// Number of requests answered in the present step; −1 between steps.
  package private(set) var phase = -1
  package private(set) var evaluating = false
  private var backup: [Memory] = []
  var observed: [String: Double] = [:]
  private var pending = Request()
  private var hasGradients = false
  /// Where the parameters, the shadows and the gradients lie, for questions about shared memory.
  private var placed = Overlap.Index(), shadowed = Overlap.Index()
  private var gradients: [View] = []
  private var snapshotMemory: [Memory] = []
  /// The host's answer to a request for matrices, until it is taken.
  private(set) var answered: Answer?
  /// What a source keeps of an answer until the step ends.
  var kept: HostMatrix?
  /// The largest step size of this step, where a source sets it.
  var stepSize: Double?
  /// A checkpoint was loaded in the middle of a step.
  private var resumed = false

  package init(_ text: String, _ options: Options, _ allocator: Allocator) throws(Failure) {
    let compiled = try Compiler(text)
    (stages, branches, sourceStage, sourceBranch) = (compiled.stages, compiled.branches, compiled.source, compiled.sourceBranch)
    needsLoss = stages.contains { $0.method.needsLoss }
    needsFinite = branches.contains { $0.needsFinite } || (sourceStage?.method.needsFinite ?? false)
    mayFail = branches.contains { $0.mayFail }
    longestSegments = branches.map(\.segments.count).max() ?? 0
    (self.options, self.allocator) = (options, allocator)
    // Last: an initialiser that throws after an allocation would leak it.
    (records, capacity) = (.allocate(capacity: 1), 1)
    (blocks, partials, totals) = (.allocate(capacity: 1), .allocate(capacity: 1), .allocate(capacity: 1))
    threadBusy = .allocate(capacity: Optimizer.mostThreads)
    for i in 0..<Optimizer.mostThreads { threadBusy[i] = 0 }
  }

  deinit {
    for i in 0..<bound.count {
      records[i].x.release()
      records[i].g.release()
      records[i].shadow?.release()
    }
    records.deallocate()
    for p in holdings { p.deallocate() }
    blocks.deallocate()
    partials.deallocate()
    totals.deallocate()
    threadBusy.deallocate()
    for p in probeList { p.shape.deallocate() }
    probeTensor?.deallocate()
  }

  package var count: Int { bound.count }

  // MARK: binding

  package func group(_ name: String?) throws(Failure) -> Int {
    guard let name, !name.isEmpty else { return 0 }
    guard let k = groups.firstIndex(of: name) else {
      throw Failure(Status.name, "no parameter group `\(name)`" + suggestion(name, Array(groups.dropFirst())))
    }
    return k
  }

  package func addParameters(_ views: [View], _ names: [String]?, _ groupName: String?) throws(Failure) {
    guard phase < 0 else { throw Failure(Status.sequence, "parameters cannot be added between the requests of a step") }
    guard !evaluating else { throw Failure(Status.sequence, "parameters cannot be added in evaluation mode") }
    var added: [Bound] = []
    var taken = Set(bound.map(\.name))
    for (i, v) in views.enumerated() {
      let index = bound.count + i
      let name = names?[i] ?? String(index)
      let what = Optimizer.label("parameter", index, names?[i])
      guard taken.insert(name).inserted else { throw Failure(Status.name, "\(what): another parameter is called `\(name)`") }
      guard !v.readOnly else { throw Failure(Status.layout, "\(what) is read-only; parameters are changed in place") }
      try v.refuseOverlapWithin(what)
      guard !v.absent else { throw Failure(Status.argument, "\(what) is marked absent; only gradients may be") }
      let shape = Shape(dimensions: v.shape, role: v.role)
      guard let b = branches.firstIndex(where: { $0.selectors.contains { $0.takes(shape, name) } }) else {
        throw Failure(Status.method, "\(what) of shape \(v.shape) fits no pipeline of route(...); add other=(...)")
      }
      for s in branches[b].stages {
        do { try s.whole?.accepts(s.hyper[0], shape) } catch { throw Failure(Int(error.status), "\(what): \(error.message)") }
      }
      added.append(Bound(view: v, name: name, group: 0, branch: b, shape: shape))
    }
    var all = placed
    all.append(views)
    try Optimizer.refuse(all.meeting, "parameters") { $0 < bound.count ? bound[$0].name : added[$0 - bound.count].name }
    if let m = Overlap.first(views, against: shadowed) {
      let what = Optimizer.label("parameter", bound.count + m.first, added[m.first].name)
      throw Failure(Status.overlap, "\(what) and \(label("shadow", m.second)) \(m.answer.words)")
    }
    var g = 0
    if let n = groupName, !n.isEmpty {
      if let k = groups.firstIndex(of: n) { g = k } else {
        for s in stages { try s.addGroup() }
        groups.append(n)
        g = groups.count - 1
      }
    }
    for i in added.indices { added[i].group = g }
    reserve(bound.count + added.count)
    for b in added {
      let v = b.view
      let isDouble = v.dtype == .f64
      let stageCount = stages.count
      let first: UnsafeMutablePointer<Int32> = hold(stageCount + 1)
      first.initialize(repeating: 0, count: stageCount + 1)
      let rules: UnsafeMutablePointer<UnsafeMutableRawPointer> = hold(max(1, stageCount))
      let scalars: UnsafeMutablePointer<UnsafeMutablePointer<Double>> = hold(max(1, stageCount))
      let slots: UnsafeMutablePointer<SlotStore> = hold(1)
      for s in stages {
        rules[s.id] = UnsafeMutableRawPointer(StepContext.nothing)
        scalars[s.id] = s.globals
      }
      (records + bound.count).initialize(to: Record(
        x: Layout(v), g: Layout(v), shadow: nil, count: v.count, size: v.dtype.computeSize, branch: b.branch, group: b.group,
        isDouble: isDouble, slots: slots, slotCount: 0, firstSlot: first, rules: rules, ownRules: rules, scalars: scalars))
      bound.append(b)
    }
    placed = all
    hasGradients = false
  }

  /// "parameter 3 (`head.bias`)"
  static func label(_ kind: String, _ index: Int, _ name: String?) -> String {
    name.map { "\(kind) \(index) (`\($0)`)" } ?? "\(kind) \(index)"
  }
  func label(_ kind: String, _ i: Int) -> String { Optimizer.label(kind, i, bound[i].name == String(i) ? nil : bound[i].name) }

  static func checkOverlap(_ views: [(View, String)], _ what: String) throws(Failure) {
    try refuse(Overlap.first(among: views.map(\.0)), what) { views[$0].1 }
  }
  private static func refuse(_ meeting: Overlap.Meeting?, _ what: String, _ name: (Int) -> String) throws(Failure) {
    guard let m = meeting else { return }
    let (a, b) = (name(m.first), name(m.second))
    throw Failure(Status.overlap, "\(what) \(m.first) (`\(a)`) and \(m.second) (`\(b)`) \(m.answer.words)")
  }
  private func keepApart(_ views: [View], _ kind: String, from others: Overlap.Index, _ other: String) throws(Failure) {
    guard let m = Overlap.first(views, against: others) else { return }
    throw Failure(Status.overlap, "\(label(kind, m.first)) and \(label(other, m.second)) \(m.answer.words)")
  }

  private func reserve(_ n: Int) {
    guard n > capacity else { return }
    let larger = max(n, capacity * 2)
    let p = UnsafeMutablePointer<Record>.allocate(capacity: larger)
    p.moveInitialize(from: records, count: bound.count)
    records.deallocate()
    (records, capacity) = (p, larger)
  }
  private func hold<T>(_ n: Int) -> UnsafeMutablePointer<T> {
    let p = UnsafeMutablePointer<T>.allocate(capacity: n)
    holdings.append(UnsafeMutableRawPointer(p))
    return p
  }

  private func match(_ views: [View], _ kind: String) throws(Failure) {
    guard views.count == bound.count else {
      throw Failure(Status.count, "expected \(bound.count) \(kind)s, one for each parameter, got \(views.count)")
    }
    for (i, v) in views.enumerated() where v.shape != bound[i].view.shape && !(v.absent && kind == "gradient") {
      throw Failure(Status.shape, "\(label(kind, i)) has shape \(v.shape), its parameter has \(bound[i].view.shape)")
    }
  }

  package func rebindParameters(_ views: [View]) throws(Failure) {
    guard phase < 0, !evaluating else { throw Failure(Status.sequence, "parameters cannot be moved within a step or in evaluation mode") }
    try match(views, "parameter")
    for (i, v) in views.enumerated() {
      guard v.dtype == bound[i].view.dtype else {
        throw Failure(Status.dtype, "\(label("parameter", i)) was bound as \(bound[i].view.dtype.name), got \(v.dtype.name)")
      }
      guard !v.readOnly else { throw Failure(Status.layout, "\(label("parameter", i)) is read-only; parameters are changed in place") }
      guard !v.absent else { throw Failure(Status.argument, "\(label("parameter", i)) is marked absent; only gradients may be") }
      try v.refuseOverlapWithin(label("parameter", i))
    }
    let all = Overlap.Index(views)
    try Optimizer.refuse(all.meeting, "parameters") { bound[$0].name }
    try keepApart(views, "parameter", from: shadowed, "shadow")
    if hasGradients { try keepApart(gradients, "gradient", from: all, "parameter") }
    for (i, v) in views.enumerated() {
      records[i].x.release()
      records[i].x = Layout(v)
      bound[i].view = v
    }
    placed = all
  }

  package func bindGradients(_ views: [View]) throws(Failure) {
    guard !bound.isEmpty else { throw Failure(Status.sequence, "bind parameters before gradients") }
    try match(views, "gradient")
    let writes = options.zeroGradients || options.consumeGradients
    if writes {
      for (i, v) in views.enumerated() where !v.absent {
        let what = label("gradient", i), but = ", but zero_gradients or consume_gradients would write it"
        guard !v.readOnly else { throw Failure(Status.layout, "\(what) is read-only" + but) }
        try v.refuseOverlapWithin(what, Status.layout, but)
      }
      let what = "gradients are written by zero_gradients or consume_gradients:"
      try Optimizer.refuse(Overlap.first(among: views), what) { bound[$0].name }
    }
    // what changes during the step must not be read as a gradient
    try keepApart(views, "gradient", from: placed, "parameter")
    try keepApart(views, "gradient", from: shadowed, "shadow")
    for (i, v) in views.enumerated() {
      records[i].g.release()
      records[i].g = Layout(v)
      records[i].absent = v.absent
      records[i].bound = true
    }
    gradients = views
    hasGradients = true
  }

  package func bindShadow(_ views: [View]) throws(Failure) {
    if !views.isEmpty {
      try match(views, "shadow")
      for (i, v) in views.enumerated() {
        guard v.dtype.size == 2 else { throw Failure(Status.dtype, "\(label("shadow", i)) must be f16 or bf16, got \(v.dtype.name)") }
        guard !v.readOnly else { throw Failure(Status.layout, "\(label("shadow", i)) is read-only") }
        guard !v.absent else { throw Failure(Status.argument, "\(label("shadow", i)) is marked absent; only gradients may be") }
        try v.refuseOverlapWithin(label("shadow", i))
      }
      try Optimizer.checkOverlap(zip(views, bound).map { ($0, $1.name) }, "shadows")
      try keepApart(views, "shadow", from: placed, "parameter")
      if hasGradients { try keepApart(gradients, "gradient", from: Overlap.Index(views), "shadow") }
    }
    shadowed = Overlap.Index(views)
    for i in 0..<bound.count {
      records[i].shadow?.release()
      records[i].shadow = views.isEmpty ? nil : Layout(views[i])
    }
  }

  // MARK: state

  private func format(_ slot: Slot, _ b: Bound) -> SlotStore.Format {
    if b.view.dtype == .f64 || slot.storage == .exact || slot.count != nil { return .direct }
    switch options.state {
    case .f32: return .direct
    case .bf16: return .bf16
    case .q8: return b.view.count < EightBit.smallest ? .direct : slot.storage == .signed ? .signed8 : .positive8
    }
  }

  func slots(_ s: Stage, _ b: Bound) -> [Slot] {
    if s.source != nil, s.element == nil || s.role == .source { return s.source?.slots ?? [] }
    var list = s.element?.slots(s.founding, b.shape) ?? s.whole?.slots(s.founding, b.shape) ?? []
    if let extra = s.source?.slots { list += extra }
    return list
  }

  func uses(_ s: Stage, _ b: Bound) -> Bool { s.role == .source || branches[b.branch].stages.contains { $0 === s } }

  /// The state of a tensor: stage, slot and storage in order; known before it is allocated.
  func stateRows(_ i: Int) -> [(stage: Stage, slot: Slot, format: SlotStore.Format)] {
    let b = bound[i]
    var rows: [(Stage, Slot, SlotStore.Format)] = []
    for s in stages where uses(s, b) {
      // sources see their state as it lies there
      for slot in slots(s, b) { rows.append((s, slot, s.element == nil && s.whole == nil ? .direct : format(slot, b))) }
    }
    return rows
  }

  private func needsMaster(_ b: Bound) -> Bool { options.master == .f32 && b.view.dtype.size == 2 && viewStage(b) == nil }
  private func viewStage(_ b: Bound) -> Stage? { branches[b.branch].after.first { $0.isView } }

  /// Allocates the state of new tensors and plans the walks. Throws before anything is changed.
  private func prepare() throws(Failure) {
    guard planned < bound.count || programs.isEmpty else { return }
    var bytes = 0, scratchBytes = 0, ruleBytes = 0
    var estimate = 0.0   // sums of absurd sizes must not overflow
    for i in planned..<bound.count {
      let b = bound[i]
      let size = b.view.dtype.computeSize
      estimate += Double(b.view.count) * Double(stateRows(i).count + 3) * 16
      guard estimate < 1e17 else { throw Failure(Status.memory, "the state of these tensors does not fit into any memory") }
      for row in stateRows(i) { bytes += aligned(SlotStore.bytes(row.format, row.slot.elements(of: b.view.count), size)) }
      if needsMaster(b) { bytes += aligned(b.view.count * 4) }
      for s in stages where uses(s, b) {
        ruleBytes += aligned(s.element?.size ?? 0)
        if s.scope == .tensor { ruleBytes += aligned(s.scalars.count * 8) }
      }
      if branches[b.branch].needsScratch { scratchBytes += aligned(b.view.count * size) }
    }
    let arena = try Memory(bytes, allocator)
    let extra = try Memory(scratchBytes, allocator)
    let rules = try Memory(ruleBytes, allocator)
    let threads = min(Optimizer.mostThreads, max(Threads.count, 1) + 1)
    var benches = programs
    while benches.count < threads { benches.append(try Program(allocator)) }

    var workBytes = workspaces.first?.size ?? 0, wholes = 0
    for i in 0..<bound.count {
      for st in branches[bound[i].branch].stages {
        guard let w = st.whole else { continue }
        // the rule's own, then its narrow state widened, then the parameters where they are not dense in the compute type
        let b = bound[i], size = b.view.dtype.computeSize
        let narrow = slots(st, b).filter { format($0, b) != .direct }.count
        workBytes = max(workBytes, aligned(w.workspace(st.hyper[0], b.shape, size)) + (narrow + 1) * aligned(b.view.count * size))
        wholes += 1
      }
    }
    var spaces = workspaces
    if let first = spaces.first, first.size < workBytes { spaces = [] }
    while spaces.count < min(threads, wholes) { spaces.append(try Memory(workBytes, allocator, zeroed: false)) }

    var at = arena.base, scratchAt = extra.base, ruleAt = rules.base
    for i in planned..<bound.count {
      let b = bound[i]
      let r = records + i
      let size = r.pointee.size
      let rows = stateRows(i)
      let stores: UnsafeMutablePointer<SlotStore> = hold(max(1, rows.count))
      r.pointee.slots = stores
      r.pointee.slotCount = rows.count
      var next = 0
      for s in stages {
        r.pointee.firstSlot[s.id] = Int32(next)
        if uses(s, b) { next += slots(s, b).count }
      }
      r.pointee.firstSlot[stages.count] = Int32(next)
      for (k, row) in rows.enumerated() {
        (stores + k).initialize(to: SlotStore(base: at, format: row.format))
        at += aligned(SlotStore.bytes(row.format, row.slot.elements(of: b.view.count), size))
      }
      if needsMaster(b) {
        r.pointee.master = at
        at += aligned(b.view.count * 4)
        Optimizer.readParameters(r, at - aligned(b.view.count * 4))
      }
      if let v = viewStage(b) {
        r.pointee.master = r.pointee.slot(v.id, 0).base
        r.pointee.viewed = true
      }
      for (k, row) in rows.enumerated() { Optimizer.start(r, stores + k, row.slot) }
      if branches[b.branch].needsScratch {
        r.pointee.scratch = scratchAt
        scratchAt += aligned(b.view.count * size)
      }
      for s in stages where uses(s, b) {
        r.pointee.rules[s.id] = ruleAt
        ruleAt += aligned(s.element?.size ?? 0)
        if s.scope == .tensor, !s.scalars.isEmpty {
          r.pointee.scalars[s.id] = ruleAt.assumingMemoryBound(to: Double.self)
          for (k, x) in s.scalars.enumerated() { r.pointee.scalars[s.id][k] = x.start }
          ruleAt += aligned(s.scalars.count * 8)
        }
      }
      let own: UnsafeMutablePointer<UnsafeMutableRawPointer> = hold(max(1, stages.count))
      for s in stages.indices { own[s] = r.pointee.rules[s] }
      r.pointee.ownRules = own
    }
    arenas += [arena, rules]
    scratch.append(extra)
    programs = benches
    workspaces = spaces
    planned = bound.count
    plan()
  }

  static func readParameters(_ r: UnsafeMutablePointer<Record>, _ out: UnsafeMutableRawPointer) {
    r.pointee.x.read(0, r.pointee.count, into: out, size: r.pointee.size, scale: 1)
  }

  private static func start(_ r: UnsafeMutablePointer<Record>, _ s: UnsafeMutablePointer<SlotStore>, _ slot: Slot) {
    let n = slot.elements(of: r.pointee.count)
    switch slot.start {
    case .zero: break
    case .parameters: if slot.count == nil { readParameters(r, s.pointee.base) }
    case .value(let x):
      if s.pointee.format == .direct {
        if r.pointee.isDouble { s.pointee.base.assumingMemoryBound(to: Double.self).update(repeating: x, count: n) } else {
          s.pointee.base.assumingMemoryBound(to: Float.self).update(repeating: Float(x), count: n)
        }
        return
      }
      var row = [Float](repeating: Float(x), count: EightBit.block)
      for i in stride(from: 0, to: n, by: EightBit.block) { s.pointee.narrow(n, i, min(EightBit.block, n - i), &row) }
    }
  }

  /// Cuts the tensors into blocks, and the blocks into tasks: by size alone, so that results do not depend on the threads.
  private func plan() {
    var list: [Block] = []
    tasks = []
    elements = 0
    var open: Task?, openElements = 0
    let large = Walker.taskBlocks * Walker.block
    for i in 0..<bound.count {
      let n = records[i].count
      records[i].firstBlock = list.count
      var offset = 0
      while offset < n {
        let c = min(Walker.block, n - offset)
        list.append(Block(tensor: Int32(i), offset: offset, count: c))
        offset += c
      }
      records[i].blocks = list.count - records[i].firstBlock
      elements += n
      if n > large {
        if let t = open { tasks.append(t); open = nil }
        var b = records[i].firstBlock
        while b < list.count {
          let e = min(b + Walker.taskBlocks, list.count)
          tasks.append(Task(first: b, end: e, small: false))
          b = e
        }
      } else {
        // small tensors: a task holds whole ones; tasks of small tensors count tensors, not blocks
        if open == nil { open = Task(first: i, end: i, small: true); openElements = 0 }
        open?.end = i + 1
        openElements += max(n, 64)
        if openElements >= large, let t = open { tasks.append(t); open = nil }
      }
    }
    if let t = open { tasks.append(t) }
    blocks.deallocate()
    blocks = .allocate(capacity: max(1, list.count))
    for (i, b) in list.enumerated() { blocks[i] = b }
    blockCount = list.count
    partials.deallocate()
    partials = .allocate(capacity: max(1, list.count) * Sums.count)
    totals.deallocate()
    totals = .allocate(capacity: (bound.count + 1) * Sums.count)
  }

  // MARK: running

  /// Calls `body` with a member of the pool that no other thread uses.
  @inline(__always)
  private func withOwn<T>(_ pool: [T], _ body: (T) -> Void) {
    var k = 0
    while !twi_swap_if(threadBusy + k, 0, 1) {
      k += 1
      if k >= pool.count {
        k = 0
        twi_pause()
      }
    }
    body(pool[k])
    twi_store(threadBusy + k, 0)
  }

  /// Lays a program out over every active tensor and carries it out; partial sums, if any, lie in `partials` by block.
  func forEach(_ lay: (Program, UnsafeMutablePointer<Record>) -> Void) {
    Threads.run(tasks.count, parallel: elements >= Walker.parallelFrom) { t in
      let task = tasks[t]
      withOwn(programs) { program in
        if task.small {
          for i in task.first..<task.end where records[i].active { run(program, records + i, records[i].firstBlock, records[i].firstBlock + records[i].blocks, sums: true, lay) }
        } else {
          let r = records + Int(blocks[task.first].tensor)
          if r.pointee.active { run(program, r, task.first, task.end, sums: true, lay) }
        }
      }
    }
  }

  /// Carries a program out over a run of blocks; sums are taken block by block, whatever the run.
  @inline(__always)
  private func run(_ program: Program, _ r: UnsafeMutablePointer<Record>, _ first: Int, _ end: Int, sums: Bool, _ lay: (Program, UnsafeMutablePointer<Record>) -> Void) {
    guard first < end else { return }
    program.begin(r, at: blocks[first].offset)
    lay(program, r)
    if sums {
      for b in first..<end { program.execute(blocks[b].count, partials + b * Sums.count) }
    } else {
      program.execute(blocks[end - 1].offset + blocks[end - 1].count - blocks[first].offset, partials)
    }
  }

  private func total(_ r: UnsafeMutablePointer<Record>, _ out: UnsafeMutablePointer<Double>) {
    for k in 0..<Sums.count { out[k] = 0 }
    for b in r.pointee.firstBlock..<(r.pointee.firstBlock + r.pointee.blocks) {
      let p = partials + b * Sums.count
      for k in 0..<4 { out[k] += p[k] }
      out[4] = (p[4] > out[4] || p[4] != p[4]) ? p[4] : out[4]
    }
  }

  /// The sums over several tensors. They are added in the order of their size, so that the order of binding does not matter.
  private func total(where included: (UnsafeMutablePointer<Record>) -> Bool, _ out: UnsafeMutablePointer<Double>) {
    for k in 0..<Sums.count { out[k] = 0 }
    var columns: [[Double]] = [[], [], [], []]
    withUnsafeTemporaryAllocation(of: Double.self, capacity: Sums.count) { row in
      guard let p = row.baseAddress else { return }
      for i in 0..<bound.count {
        let r = records + i
        guard r.pointee.active, included(r) else { continue }
        total(r, p)
        for k in 0..<4 where p[k] != 0 { columns[k].append(p[k]) }
        out[4] = (p[4] > out[4] || p[4] != p[4]) ? p[4] : out[4]
      }
    }
    for k in 0..<4 {
      if columns[k].count > 1 { columns[k].sort { $0 < $1 || ($1.isNaN && !$0.isNaN) } }
      for x in columns[k] { out[k] += x }
    }
  }

  /// Sums over all active tensors, for sources.
  func sum(_ op: some ElementSum, stage: Stage, slots order: [Int]? = nil) -> [Double] {
    let kernels = (plainMeasure(op, SIMD16<Float>.self), plainMeasure(op, SIMD8<Double>.self))
    forEach { p, r in
      var apply = r.pointee.apply
      let x = p.hostParameters(), k = r.pointee.isDouble ? kernels.1 : kernels.0
      p.sum(x, p.gradient(copy: apply.scale != 1, &apply), state: self.state(r, stage, order)) { _, _, _, o, out in k(o, out) }
    }
    total(where: { _ in true }, totals)
    return (0..<Sums.count).map { totals[$0] }
  }

  /// Changes parameters (as the host sees them) and the source's state element by element.
  func change(stage: Stage, slots order: [Int]? = nil, parameters: Bool, _ op: (_ tensor: Int) -> some ElementOperation) {
    forEach { p, r in
      let op = op(r - self.records)
      self.change(p, r, stage, order, parameters, r.pointee.isDouble ? plainKernel(op, SIMD8<Double>.self, writesX: parameters, writesG: false) : plainKernel(op, SIMD16<Float>.self, writesX: parameters, writesG: false))
    }
  }
  func change(_ op: some ElementOperation, stage: Stage, slots order: [Int]? = nil, parameters: Bool) {
    let kernels = (
      plainKernel(op, SIMD16<Float>.self, writesX: parameters, writesG: false), plainKernel(op, SIMD8<Double>.self, writesX: parameters, writesG: false)
    )
    forEach { p, r in self.change(p, r, stage, order, parameters, r.pointee.isDouble ? kernels.1 : kernels.0) }
  }
  private func change(_ p: Program, _ r: UnsafeMutablePointer<Record>, _ stage: Stage, _ order: [Int]?, _ parameters: Bool, _ kernel: @escaping PlainKernel) {
    var apply = r.pointee.apply
    let x = p.hostParameters(), g = p.gradient(copy: apply.scale != 1, &apply)
    p.add(x, g, state: state(r, stage, order)) { _, _, o in kernel(o) }
    if parameters { p.closeHost(x) }
  }
  private func state(_ r: UnsafeMutablePointer<Record>, _ stage: Stage, _ order: [Int]?) -> [UnsafeMutableRawPointer] {
    let list = r.pointee.slots + Int(r.pointee.firstSlot[stage.id])
    return (order ?? Array(0..<r.pointee.used(stage.id))).prefix(SlotPointers.capacity).map { list[$0].base }
  }

  // MARK: one step

  /// `opening`: a request is about to ask for the gradients.
  private func ready(opening: Bool = false) throws(Failure) {
    guard !bound.isEmpty else { throw Failure(Status.sequence, "no parameters are bound: call add_parameters first") }
    guard hasGradients || opening else { throw Failure(Status.sequence, "no gradients are bound: call bind_gradients first, or pass them to the step") }
    guard !evaluating else { throw Failure(Status.sequence, "stepping in evaluation mode; call set_mode(train) first") }
  }


  /// Counts a step that the non-finite policy refused.
  package func refuse() -> Int {
    skipped += 1
    Log.warn("step \(step) was skipped: a gradient is not finite (\(skipped) skipped so far)")
    return Status.skipped
  }

  /// One whole step with the bound gradients.
  package func stepOnce() throws(Failure) -> Int {
    try ready()
    if let s = sourceStage, !(s.source?.single ?? false) {
      throw Failure(Status.needs, "\(s.name) needs more than one gradient a step (\(s.method.requests)); call next and answer its requests")
    }
    guard phase < 0 else { throw Failure(Status.sequence, "a step is under way: answer its requests, or cancel it") }
    if needsLoss, observed["loss"] == nil {
      let who = stages.first { $0.method.needsLoss }?.name ?? ""
      throw Failure(Status.needs, "\(who) needs the loss of every step: observe \"loss\" before the step, or answer its requests with next")
    }
    try prepare()
    try begin()
    if let stage = sourceStage, let source = stage.source {
      let io = SourceIO(self, stage)
      guard case .update(let op) = try source.advance(0, io) else { return endWithoutUpdate() }
      return try update(op)
    }
    return try update(nil)
  }

  /// Reverse communication: returns the request to answer, or nil when the step is done (with its status).
  package func next(loss: Double?) throws(Failure) -> (Request?, Int) {
    if phase < 0 {
      try ready(opening: true)
      let known = planned
      try prepare()
      for i in known..<bound.count { try showView(i) }
      try evaluateSchedules()
      activate()
      try keepSource()
      phase = 0
      var first = Request(kind: needsLoss ? .lossAndGradient : .gradient, pass: 0, tag: UInt64(step) &* 2)
      if let stage = sourceStage, let source = stage.source, let ask = source.opening(SourceIO(self, stage, opening: true)) { first = fill(ask) }
      pending = first
      return (first, Status.more)
    }
    defer { answered = nil }
    do throws(Failure) {
      try ready()
      if resumed {
        activate()
        try evaluateSchedules()
        resumed = false
      }
      if pending.kind.takesMatrices, answered == nil {
        let who = sourceStage?.name ?? "the pipeline"
        throw Failure(Status.needs, "\(who) asked for \(pending.kind == .activations ? "activations" : "derivatives of the logits"): answer with answer_matrix; nothing was changed")
      }
      if pending.kind == .loss || pending.kind == .lossAndGradient {
        let who = stages.first { $0.method.needsLoss }?.name ?? sourceStage?.name ?? "the pipeline"
        guard let loss, !loss.isNaN else { throw Failure(Status.needs, "\(who) needs the loss of this step: set the request's loss (it is NaN)") }
        guard loss.isFinite else { throw Failure(Status.nonfinite, "\(who) needs a finite loss, got \(text(loss)); nothing was changed") }
        observed["loss"] = loss
      }
      if phase == 0 { try begin(); phase = 0 } else { try checkPresent(); try checkFinite() }
      guard let stage = sourceStage, let source = stage.source else {
        return (nil, try update(nil))
      }
      let io = SourceIO(self, stage)
      switch try source.advance(phase, io) {
      case .ask(let ask):
        phase += 1
        pending = fill(ask)
        return (pending, Status.more)
      case .update(let op):
        return (nil, try update(op))
      case .nothing:
        return (nil, endWithoutUpdate())
      }
    } catch {
      abandon()
      if error.status == tw_status(Status.skipped) { return (nil, refuse()) }
      throw error
    }
  }

  /// A command of a source, between steps; it may end in an update of the pipeline.
  func runCommand(_ stage: Stage, _ source: any Source, _ name: String) throws(Failure) {
    try ready()
    guard phase < 0 else { throw Failure(Status.sequence, "a step is under way: answer its requests, or cancel it") }
    try prepare()
    activate()
    switch try source.command(name, SourceIO(self, stage)) {
    case .update(let op): _ = try update(op)
    case .ask, .nothing: break
    }
  }

  private func fill(_ ask: Ask) -> Request {
    Request(
      kind: ask.kind, pass: phase, tag: UInt64(step) &* 2 &+ (ask.freshSample ? UInt64(phase) &* 0x1_0000_0000 &+ 1 : 0), index: ask.index,
      count: ask.count)
  }

  /// The slot of the source with the vector of the present request.
  package var probeSlot: (stage: Int, slot: Int)? {
    guard pending.kind == .hessianVector || pending.kind == .logitDerivatives, let s = sourceStage, let k = s.source?.probe else { return nil }
    return (s.id, probeIndex(s, k))
  }
  func probeIndex(_ s: Stage, _ k: Int) -> Int { s.role == .source ? k : (s.element.map { $0.slots(s.founding, Shape(dimensions: [1])).count } ?? 0) + k }

  /// Descriptions of a source's slot as tensors; valid until the next call.
  func probes(_ stage: Int, _ slot: Int) -> UnsafeMutablePointer<tw_tensor> {
    if probeList.count != bound.count {
      for p in probeList { p.shape.deallocate() }
      probeList = bound.map { b in
        let p = UnsafeMutablePointer<Int64>.allocate(capacity: max(1, b.view.shape.count))
        for (i, d) in b.view.shape.enumerated() { p[i] = Int64(d) }
        return (p, b.view.shape.count)
      }
      probeTensor?.deallocate()
      probeTensor = .allocate(capacity: max(1, bound.count))
    }
    let out = probeTensor ?? .allocate(capacity: 1)
    for i in 0..<bound.count {
      (out + i).initialize(to: tw_tensor(
        data: records[i].slot(stage, slot).base, dtype: records[i].isDouble ? DType.f64.rawValue : DType.f32.rawValue, ndim: Int32(probeList[i].ndim),
        shape: UnsafePointer(probeList[i].shape), strides: nil, flags: UInt32(TW_TENSOR_READ_ONLY), role: 0, reserved: (0, 0, 0)))
    }
    return out
  }
  private var probeList: [(shape: UnsafeMutablePointer<Int64>, ndim: Int)] = []
  private var probeTensor: UnsafeMutablePointer<tw_tensor>?

  package func answer(_ first: HostMatrix?, _ second: HostMatrix?) throws(Failure) {
    guard phase >= 0, pending.kind.takesMatrices, let stage = sourceStage, let source = stage.source else {
      throw Failure(Status.sequence, "no request for matrices is waiting")
    }
    let answer = Answer(first, second)
    try source.check(answer, phase, SourceIO(self, stage))
    answered = answer
  }

  package func cancel() throws(Failure) {
    guard phase >= 0 else { throw Failure(Status.sequence, "no step is under way") }
    abandon()
  }

  /// Undoes a step between its requests.
  private func abandon() {
    if phase >= 0, let stage = sourceStage, let source = stage.source, phase > 0 || source.opensAway {
      activate()
      source.cancel(phase, SourceIO(self, stage))
      putBack(sourceCopies, scalars(stage))   // a step resumed from a checkpoint has none
    }
    forget()
  }
  /// What belongs to one step alone.
  private func forget() {
    (phase, pending, resumed) = (-1, Request(), false)
    (sourceCopies, snapshotMemory, answered, kept, stepSize) = ([], [], nil, nil, nil)
    if !observed.isEmpty { observed.removeAll(keepingCapacity: true) }
  }

  private typealias Region = (base: UnsafeMutableRawPointer, bytes: Int)

  /// Where the scalars of a stage lie.
  private func scalars(_ s: Stage) -> [Region] {
    let bytes = s.scalars.count * 8
    if bytes == 0 { return [] }
    if s.scope == .global { return [(UnsafeMutableRawPointer(s.globals), bytes)] }
    return (0..<bound.count).filter { uses(s, bound[$0]) }.map { (UnsafeMutableRawPointer(records[$0].scalars[s.id]), bytes) }
  }
  /// Where the lasting state and the scalars of all stages but one lie.
  private func regions(without source: Stage) -> [Region] {
    stages.filter { $0 !== source }.flatMap(scalars)
      + allStateRows().filter { $0.index >= 0 && !$0.slot.temporary && $0.stage !== source }.map { storage($0) }
  }
  private func copies(_ regions: [Region]) throws(Failure) -> [Memory] {
    var list: [Memory] = []
    for r in regions {
      let m = try Memory(r.bytes, allocator, zeroed: false)
      m.base.copyMemory(from: r.base, byteCount: r.bytes)
      list.append(m)
    }
    return list
  }
  private func putBack(_ copies: [Memory], _ regions: [Region]) {
    for (r, m) in zip(regions, copies) { r.base.copyMemory(from: m.base, byteCount: r.bytes) }
  }
  /// Copies of the source's scalars, so that a step that is broken off leaves them as they were; its state a source changes last.
  private func keepSource() throws(Failure) {
    sourceCopies = []
    guard let stage = sourceStage, let source = stage.source, !source.single else { return }
    sourceCopies = try copies(scalars(stage))
  }
  private var sourceCopies: [Memory] = []

  /// What the host's gradients are multiplied by.
  var scale: Double { (options.maximize ? -1 : 1) * options.gradientScale }

  private func activate() {
    let scale = self.scale
    for i in 0..<bound.count {
      records[i].active = records[i].bound && !records[i].absent
      records[i].apply.scale = scale
    }
  }

  /// Everything that can refuse a step happens here, before anything is changed.
  private func begin() throws(Failure) {
    activate()
    if sourceStage != nil { try evaluateSchedules() }   // for what it reads before the rules are made
    try checkFinite()
    if mayFail { try takeSnapshot() }
  }

  private struct NonFiniteCount: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      let d = g - g   // 0, or NaN where g is not finite
      sums.add(0, L.select(L.equal(d, d), L(0), L(1)))
    }
  }
  private static let nonFinite: (ElementKernels.Measure, ElementKernels.Measure) = {
    let (f32, f64) = (plainMeasure(NonFiniteCount(), SIMD16<Float>.self), plainMeasure(NonFiniteCount(), SIMD8<Double>.self))
    return ({ _, _, _, o, out in f32(o, out) }, { _, _, _, o, out in f64(o, out) })
  }()

  /// A tensor that had a gradient at the first request of a step has one at all of them.
  private func checkPresent() throws(Failure) {
    for i in 0..<bound.count where records[i].active && (records[i].absent || !records[i].bound) {
      throw Failure(Status.sequence, "\(label("gradient", i)) is absent, but was there at the first request of this step; pass zeros")
    }
  }

  private func checkFinite() throws(Failure) {
    guard options.nonFinite != .propagate || needsFinite else { return }
    if let answered {   // the gradients were seen before, and may hold anything by now
      if answered.isFinite { return }
      if options.nonFinite == .skip { throw Failure(Status.skipped, "non-finite answer") }
      throw Failure(Status.nonfinite, "the answer to \(sourceStage?.name ?? "the request") has elements that are NaN or infinite; nothing was changed")
    }
    forEach { p, r in
      var apply = Apply()
      let g = p.gradient(copy: false, &apply)
      p.sum(g, g, r.pointee.isDouble ? Optimizer.nonFinite.1 : Optimizer.nonFinite.0)
    }
    for i in 0..<bound.count where records[i].active {
      total(records + i, totals)
      if totals[0] > 0 {
        if options.nonFinite == .skip { throw Failure(Status.skipped, "non-finite gradient") }
        throw Failure(Status.nonfinite, "\(label("gradient", i)) has \(Int(totals[0])) elements that are NaN or infinite; nothing was changed")
      }
    }
  }

  private func endWithoutUpdate() -> Int {
    forget()
    if options.zeroGradients { clearGradients() }
    return Status.ok
  }

  private func clearGradients() {
    for i in 0..<bound.count where records[i].active { records[i].g.clear(0, records[i].count) }
  }

  /// Rule numbers for this step: evaluates schedules, advances scalars, makes every stage's rule.
  private func context(_ s: Stage, _ branch: Branch, _ i: Int) -> StepContext {
    let r = records + i
    var c = StepContext()
    c.t = s === branch.rule ? ruleStep(branch, r.pointee.t + 1, r.pointee.group) : r.pointee.t + 1
    c.step = step
    // A source that sets the step size changes the move and what follows it; rules go on as if it had not.
    c.lr = stepSize == nil || s.role == .after ? r.pointee.apply.lr : rate(of: i).lr
    c.weightDecay = decayOf[r.pointee.group * branches.count + r.pointee.branch]
    let shape = bound[i].shape
    (c.ndim, c.count, c.rows, c.columns, c.role) = (shape.ndim, shape.count, shape.rows, shape.columns, shape.role)
    (c.tensor, c.seed, c.stream) = (i, options.seed, UInt32(s.id))
    c.loss = loss
    c.isDouble = r.pointee.isDouble
    c.scalars = r.pointee.scalars[s.id]
    return c
  }
  /// The step that the rule counts: its own since the last restart.
  private func ruleStep(_ branch: Branch, _ t: Int, _ group: Int) -> Int {
    branch.after.reduce(t) { $1.element?.ruleStep($0, $1.hyper[group]) ?? $0 }
  }
  /// Starts the rule of a tensor afresh where a stage behind it says so.
  private func restart(_ i: Int) {
    let r = records + i
    let branch = branches[r.pointee.branch], s = branch.rule
    guard !branch.after.isEmpty,
      ruleStep(branch, r.pointee.t + 2, r.pointee.group) <= ruleStep(branch, r.pointee.t + 1, r.pointee.group) else { return }
    for (k, slot) in slots(s, bound[i]).enumerated() {
      let store = r.pointee.slots + Int(r.pointee.firstSlot[s.id]) + k
      let bytes = SlotStore.bytes(store.pointee.format, slot.elements(of: r.pointee.count), r.pointee.size)
      store.pointee.base.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
      Optimizer.start(r, store, slot)
    }
    for (k, x) in s.scalars.enumerated() { r.pointee.scalars[s.id][k] = x.start }
  }
  private var loss = Double.nan
  /// weight_decay by group and branch, for rules that decay themselves.
  private var decayOf: [Double] = []
  /// Step size and decoupled decay by group and branch, as the hyper-parameters say.
  private var rates: [(lr: Double, decay: Double)] = []
  func rate(of tensor: Int) -> (lr: Double, decay: Double) { rates[records[tensor].group * branches.count + records[tensor].branch] }
  /// The largest step size of the tensors that have a gradient this time.
  var largestRate: Double { (0..<bound.count).reduce(0) { records[$1].active ? max($0, rate(of: $1).lr) : $0 } }

  private func evaluateSchedules() throws(Failure) {
    for s in stages {
      for g in groups.indices where !s.schedules[g].isEmpty { try s.evaluate(g, Double(step)) }
    }
  }

  private func prepareRules() throws(Failure) {
    try evaluateSchedules()
    loss = observed["loss"] ?? .nan
    decayOf = [Double](repeating: 0, count: groups.count * branches.count)
    rates = [(lr: Double, decay: Double)](repeating: (1, 0), count: decayOf.count)
    var applies = [Apply](repeating: Apply(), count: decayOf.count)
    for g in groups.indices {
      for (b, branch) in branches.enumerated() {
        let h = branch.rule.hyper[g]
        var a = Apply()
        let lr: Double = h.lr, wd: Double = h.weight_decay
        if !lr.isNaN { a.lr = lr }
        let decay = wd.isNaN ? Decay.none : branch.rule.element?.decay(h) ?? branch.rule.whole?.decay(h) ?? .none
        switch decay {
        case .none: break
        case .coupled: a.coupled = wd
        case .decoupled: a.keep = 1 - a.lr * wd
        case .rule: break
        }
        a.scale = scale
        applies[g * branches.count + b] = a
        decayOf[g * branches.count + b] = wd.isNaN ? 0 : wd
        rates[g * branches.count + b] = (a.lr, decay == .decoupled ? wd : 0)
      }
    }
    if let stepSize, case let top = largestRate, stepSize != top {
      for k in applies.indices {
        applies[k].lr = top > 0 ? stepSize * (rates[k].lr / top) : stepSize
        if rates[k].decay != 0 { applies[k].keep = 1 - applies[k].lr * rates[k].decay }
      }
    }
    var begun = [Bool](repeating: false, count: stages.count)
    // Tensors of one group, branch and step count share their rules.
    var leaders: [(group: Int, branch: Int, t: Int, isDouble: Bool, index: Int)] = []
    for i in 0..<bound.count {
      let r = records + i
      guard r.pointee.active else { continue }
      let branch = branches[r.pointee.branch]
      r.pointee.apply = applies[r.pointee.group * branches.count + r.pointee.branch]
      if options.master == .stochastic, r.pointee.x.dtype.size == 2 {
        r.pointee.rounding = Random.key(seed: options.seed, stream: .max, step: UInt64(step), tensor: UInt32(truncatingIfNeeded: i))
      }
      if !branch.perTensor {
        if let l = leaders.first(where: { $0.group == r.pointee.group && $0.branch == r.pointee.branch && $0.t == r.pointee.t && $0.isDouble == r.pointee.isDouble }) {
          r.pointee.rules = records[l.index].ownRules
          continue
        }
        leaders.append((r.pointee.group, r.pointee.branch, r.pointee.t, r.pointee.isDouble, i))
      }
      r.pointee.rules = r.pointee.ownRules
      for s in branch.stages {
        guard let e = s.element else { continue }
        let c = context(s, branch, i)
        let h = s.hyper[r.pointee.group]
        if s.scope == .tensor || !begun[s.id] {
          begun[s.id] = true
          e.begin(r.pointee.scalars[s.id], h, c)
        }
        e.prepare(h, c, r.pointee.rules[s.id])
      }
    }
  }

  /// After a phase: totals become scalars, and the rules that use them are made anew.
  private func remake(_ s: Stage, _ i: Int) {
    let r = records + i
    s.element?.prepare(s.hyper[r.pointee.group], context(s, branches[r.pointee.branch], i), r.pointee.rules[s.id])
  }

  /// Moves the parameters. `source` transforms the host's gradient first.
  private func update(_ op: GradientOperation?) throws(Failure) -> Int {
    if mayFail, snapshotMemory.isEmpty { try takeSnapshot() }
    do throws(Failure) {
      sourceOperation = op
      defer { sourceOperation = nil }
      try prepareRules()
      try runSegments()
    } catch {
      if mayFail { restoreSnapshot() }
      throw error
    }
    snapshotMemory = []
    for i in 0..<bound.count where records[i].active {
      restart(i)
      records[i].t += 1
    }
    step += 1
    forget()
    return Status.ok
  }
  var sourceOperation: GradientOperation?

  /// Runs the pipeline as far as the move, for what `stage` measures of the update, and puts all other state back.
  func propose(_ op: GradientOperation, for stage: Stage) throws(Failure) {
    let others = regions(without: stage), before = try copies(others)
    for b in branches { b.stopsAtMove = true }
    sourceOperation = op
    defer {
      sourceOperation = nil
      for b in branches { b.stopsAtMove = false }
      putBack(before, others)
    }
    try prepareRules()
    try runSegments()
  }

  private func runSegments() throws(Failure) {
    for segment in 0..<longestSegments {
      if branches.contains(where: { segment < $0.segments.count && $0.segments[segment].first?.isWhole ?? false }) {
        try runWhole(segment)
      }
      runElements(segment)
      // sums over all tensors
      var done: [Int] = []
      for branch in branches where segment < branch.segments.count {
        guard let (s, p) = branch.segments[segment].last?.measured, s.reach[p] == .global, !done.contains(s.id) else { continue }
        done.append(s.id)
        total(where: { r in
          let passes = self.branches[r.pointee.branch].segments
          return segment < passes.count && passes[segment].last?.measured?.stage === s
        }, totals)
        if s.scope == .tensor {
          for i in 0..<bound.count where records[i].active && branches[records[i].branch].stages.contains(where: { $0 === s }) {
            s.element?.finish(p, Totals(p: totals), records[i].scalars[s.id], s.hyper[records[i].group], context(s, branches[records[i].branch], i))
            remake(s, i)
          }
          continue
        }
        guard let first = (0..<bound.count).first(where: { records[$0].active && branches[records[$0].branch].stages.contains { $0 === s } }) else { continue }
        s.element?.finish(p, Totals(p: totals), s.globals, s.hyper[records[first].group], context(s, branch, first))
        var made: [UnsafeMutableRawPointer] = []
        for i in 0..<bound.count where records[i].active && branches[records[i].branch].stages.contains(where: { $0 === s }) {
          let rule = records[i].rules[s.id]
          if made.last == rule || (made.count < 64 && made.contains(rule)) { continue }
          made.append(rule)
          remake(s, i)
        }
      }
    }
  }

  private func runElements(_ segment: Int) {
    let parallel = elements >= Walker.parallelFrom
    let longest = branches.map { segment < $0.segments.count ? $0.segments[segment].count : 0 }.max() ?? 0
    guard longest > 0 else { return }
    for position in 0..<longest {
      Threads.run(tasks.count, parallel: parallel) { t in
        let task = tasks[t]
        if task.small {
          if position == 0 { withOwn(programs) { runSmall(task.first, task.end, segment, $0) } }
          return
        }
        let r = records + Int(blocks[task.first].tensor)
        let branch = branches[r.pointee.branch]
        guard r.pointee.active, segment < branch.segments.count, position < branch.segments[segment].count else { return }
        let pass = branch.segments[segment][position]
        guard !pass.isWhole else { return }
        withOwn(programs) { run(pass, branch, r, task.first, task.end, $0) }
      }
      for i in 0..<bound.count where records[i].blocks > Walker.taskBlocks {
        let branch = branches[records[i].branch]
        guard records[i].active, segment < branch.segments.count, position < branch.segments[segment].count else { continue }
        finishTensor(branch.segments[segment][position], i, totals)
      }
    }
  }

  /// All passes of a segment over tensors that one task holds whole: their data stays in cache between the passes.
  private func runSmall(_ first: Int, _ end: Int, _ segment: Int, _ program: Program) {
    withUnsafeTemporaryAllocation(of: Double.self, capacity: Sums.count) { sums in
      guard let out = sums.baseAddress else { return }
      for i in first..<end {
        let r = records + i
        guard r.pointee.active else { continue }
        let branch = branches[r.pointee.branch]
        guard segment < branch.segments.count else { continue }
        for pass in branch.segments[segment] where !pass.isWhole {
          run(pass, branch, r, r.pointee.firstBlock, r.pointee.firstBlock + r.pointee.blocks, program)
          finishTensor(pass, i, out)
        }
      }
    }
  }

  /// A pass over a run of blocks of one tensor.
  private func run(_ pass: Branch.Pass, _ branch: Branch, _ r: UnsafeMutablePointer<Record>, _ first: Int, _ end: Int, _ program: Program) {
    run(program, r, first, end, sums: pass.measured != nil) { p, r in
      pass.lay(out: p, branch, r, sourceOperation)
      if options.zeroGradients, case .final = pass.work { p.clearGradient() }
    }
  }

  private func finishTensor(_ pass: Branch.Pass, _ i: Int, _ out: UnsafeMutablePointer<Double>) {
    guard let (s, p) = pass.measured, s.reach[p] == .tensor, let e = s.element else { return }
    let r = records + i
    total(r, out)
    e.finish(p, Totals(p: out), r.pointee.scalars[s.id], s.hyper[r.pointee.group], context(s, branches[r.pointee.branch], i))
    remake(s, i)
  }

  /// Whole-tensor stages: many tensors side by side, each on one thread.
  private func runWhole(_ segment: Int) throws(Failure) {
    var work: [(Int, Branch.Pass)] = []
    for i in 0..<bound.count where records[i].active && records[i].count > 0 {
      let branch = branches[records[i].branch]
      if segment < branch.segments.count, let p = branch.segments[segment].first, p.isWhole { work.append((i, p)) }
    }
    guard !work.isEmpty else { return }
    // The largest first, so that the last thread is not left with it.
    work.sort { records[$0.0].count > records[$1.0].count }
    let failures = UnsafeMutablePointer<Failure?>.allocate(capacity: work.count)
    failures.initialize(repeating: nil, count: work.count)
    defer {
      failures.deinitialize(count: work.count)
      failures.deallocate()
    }
    let many = work.count > 1
    Threads.run(work.count, parallel: many && elements >= Walker.parallelFrom) { k in
      withOwn(workspaces) { space in
        do throws(Failure) { try runWhole(work[k].0, work[k].1, space.base) } catch { failures[k] = error }
      }
    }
    for k in 0..<work.count { if let f = failures[k] { throw Failure(Int(f.status), "\(label("parameter", work[k].0)): \(f.message)") } }
  }

  private func runWhole(_ i: Int, _ pass: Branch.Pass, _ space: UnsafeMutableRawPointer) throws(Failure) {
    let r = records + i
    switch pass.work {
    case .whole(let s):
      guard let v = r.pointee.scratch else { return }
      try callWhole(s, i, v, companion: nil, space)
    case .wholeAfter(let s):
      guard let v = r.pointee.scratch else { return }
      // in the scratch tensor, then back: the host's memory may be strided or narrow, and a failure must not leave it half done
      let n = r.pointee.count, bytes = n * r.pointee.size
      if let m = r.pointee.master { v.copyMemory(from: m, byteCount: bytes) } else { Optimizer.readParameters(r, v) }
      try callWhole(s, i, v, companion: v, space)
      if let m = r.pointee.master, !s.isView { m.copyMemory(from: v, byteCount: bytes) }
      if !r.pointee.viewed || s.isView { r.pointee.x.write(0, n, from: v, size: r.pointee.size, rounding: r.pointee.rounding) }
      if let shadow = r.pointee.shadow { shadow.write(0, n, from: v, size: r.pointee.size, rounding: nil) }
    default: break
    }
  }

  /// The host takes its first gradient where it will take all others: at the view of a stored tensor.
  private func showView(_ i: Int) throws(Failure) {
    guard records[i].count > 0, let s = viewStage(bound[i]) else { return }
    _ = context0(s, i)
    guard let space = workspaces.first else { return }
    try runWhole(i, Branch.Pass(work: .wholeAfter(s)), space.base)
  }

  private func callWhole(
    _ s: Stage, _ i: Int, _ v: UnsafeMutableRawPointer, companion: UnsafeMutableRawPointer?, _ space: UnsafeMutableRawPointer, evaluating: Bool = false
  ) throws(Failure) {
    guard let whole = s.whole else { return }
    let step = (f32: whole.f32, f64: whole.f64), call = evaluating ? whole.evaluate ?? step : step
    let r = records + i
    let n = r.pointee.count, size = r.pointee.size
    let stores = (0..<r.pointee.used(s.id)).map { r.pointee.slot(s.id, $0) }
    let c = context(s, branches[r.pointee.branch], i)
    let h = s.hyper[r.pointee.group]
    var free = space + aligned(whole.workspace(s.hyper[0], bound[i].shape, size))
    // State kept in fewer bits is widened for the call and narrowed after it.
    var list: [UnsafeMutableRawPointer] = []
    for store in stores {
      if store.format == .direct { list.append(store.base) } else {
        store.widen(n, 0, n, free.assumingMemoryBound(to: Float.self))
        list.append(free)
        free += aligned(n * size)
      }
    }
    var w = companion ?? r.pointee.master ?? v
    if companion == nil, r.pointee.master == nil {
      if r.pointee.x.dense, r.pointee.x.dtype == (r.pointee.isDouble ? .f64 : .f32) { w = r.pointee.x.data } else {
        Optimizer.readParameters(r, free)
        w = free
      }
    }
    if r.pointee.isDouble {
      try call.f64(h, c, Whole(v: v.assumingMemoryBound(to: Double.self), w: w.assumingMemoryBound(to: Double.self),
                                slots: list.map { $0.assumingMemoryBound(to: Double.self) }, shape: bound[i].shape, workspace: space))
    } else {
      try call.f32(h, c, Whole(v: v.assumingMemoryBound(to: Float.self), w: w.assumingMemoryBound(to: Float.self),
                                slots: list.map { $0.assumingMemoryBound(to: Float.self) }, shape: bound[i].shape, workspace: space))
    }
    for (store, p) in zip(stores, list) where store.format != .direct { store.narrow(n, 0, n, p.assumingMemoryBound(to: Float.self)) }
  }

  // MARK: copies

  /// Copies of all parameters and state, for steps that may fail half way.
  private func takeSnapshot() throws(Failure) {
    var copies: [Memory] = []
    for a in arenas {
      let m = try Memory(a.size, allocator)
      m.base.copyMemory(from: a.base, byteCount: a.size)
      copies.append(m)
    }
    for s in stages where !s.scalars.isEmpty {
      let m = try Memory(s.scalars.count * 8, allocator)
      m.base.copyMemory(from: s.globals, byteCount: s.scalars.count * 8)
      copies.append(m)
    }
    for i in 0..<bound.count { copies.append(try copyOfParameters(i)) }
    snapshotMemory = copies
  }
  private func restoreSnapshot() {
    var k = 0
    for a in arenas { a.base.copyMemory(from: snapshotMemory[k].base, byteCount: a.size); k += 1 }
    for s in stages where !s.scalars.isEmpty {
      UnsafeMutableRawPointer(s.globals).copyMemory(from: snapshotMemory[k].base, byteCount: s.scalars.count * 8)
      k += 1
    }
    for i in 0..<bound.count { restoreParameters(i, snapshotMemory[k]); k += 1 }
    snapshotMemory = []
  }

  /// The bits of a tensor's elements, densely.
  func copyOfParameters(_ i: Int) throws(Failure) -> Memory {
    let r = records + i
    let size = r.pointee.x.dtype.size
    let m = try Memory(r.pointee.count * size, allocator)
    r.pointee.x.forEachRun(0, r.pointee.count) { offset, stride, first, n in
      if stride == 1 { (m.base + first * size).copyMemory(from: r.pointee.x.data + offset * size, byteCount: n * size) } else {
        for k in 0..<n { (m.base + (first + k) * size).copyMemory(from: r.pointee.x.data + (offset + k * stride) * size, byteCount: size) }
      }
    }
    return m
  }
  func restoreParameters(_ i: Int, _ m: Memory) {
    let r = records + i
    let size = r.pointee.x.dtype.size
    r.pointee.x.forEachRun(0, r.pointee.count) { offset, stride, first, n in
      if stride == 1 { (r.pointee.x.data + offset * size).copyMemory(from: m.base + first * size, byteCount: n * size) } else {
        for k in 0..<n { (r.pointee.x.data + (offset + k * stride) * size).copyMemory(from: m.base + (first + k) * size, byteCount: size) }
      }
    }
  }

  // MARK: modes

  /// Writes the evaluation weights into the parameters, or puts the training weights back bit for bit.
  package func setMode(evaluate: Bool) throws(Failure) {
    guard evaluate != evaluating else { return }
    guard phase < 0 else { throw Failure(Status.sequence, "the mode cannot change between the requests of a step") }
    if !evaluate {
      for (i, m) in backup.enumerated() { restoreParameters(i, m) }
      backup = []
      evaluating = false
      return
    }
    try prepare()
    var copies: [Memory] = []
    for i in 0..<bound.count { copies.append(try copyOfParameters(i)) }
    for i in 0..<bound.count { records[i].active = true }
    defer { for i in 0..<bound.count { records[i].active = false } }
    for i in 0..<bound.count {
      let r = records + i
      let branch = branches[r.pointee.branch]
      r.pointee.rules = r.pointee.ownRules
      for s in branch.stages where s.element?.evaluates ?? false {
        var c = context0(s, i)
        c.t = r.pointee.t
        s.element?.prepare(s.hyper[r.pointee.group], c, r.pointee.rules[s.id])
      }
    }
    forEach { p, r in
      guard r.pointee.t > 0, let s = self.branches[r.pointee.branch].evaluator, let e = s.element else { return }
      let x = p.hostParameters()
      p.run(e.evaluate, s.id, Apply(), x, x)
      p.closeHost(x)
    }
    do throws(Failure) {
      for i in 0..<bound.count where records[i].t > 0 && records[i].count > 0 {
        let r = records + i
        guard let s = branches[r.pointee.branch].evaluator, s.whole != nil, let v = r.pointee.scratch, let space = workspaces.first else { continue }
        Optimizer.readParameters(r, v)
        _ = context0(s, i)
        try callWhole(s, i, v, companion: v, space.base, evaluating: true)
        r.pointee.x.write(0, r.pointee.count, from: v, size: r.pointee.size, rounding: nil)
      }
    } catch {
      for (i, m) in copies.enumerated() { restoreParameters(i, m) }
      throw error
    }
    backup = copies
    evaluating = true
  }

  private func context0(_ s: Stage, _ i: Int) -> StepContext {
    if decayOf.count != groups.count * branches.count { decayOf = [Double](repeating: 0, count: groups.count * branches.count) }
    return context(s, branches[records[i].branch], i)
  }

  // MARK: state, seen from outside

  struct StateRow {
    var tensor: Int
    var stage: Stage
    var slot: Slot
    var index: Int
    var format: SlotStore.Format
  }
  /// Made once for the tensors that are bound: callers ask for one row after the other.
  func allStateRows() -> [StateRow] {
    if listed.tensors == bound.count { return listed.rows }
    var rows: [StateRow] = []
    for i in 0..<bound.count {
      for (k, row) in stateRows(i).enumerated() { rows.append(StateRow(tensor: i, stage: row.stage, slot: row.slot, index: k, format: row.format)) }
      if needsMaster(bound[i]), let first = stages.first {
        rows.append(StateRow(tensor: i, stage: first, slot: Slot("master", "the parameters in float32"), index: -1, format: .direct))
      }
    }
    listed = (bound.count, rows)
    return rows
  }
  private var listed: (tensors: Int, rows: [StateRow]) = (-1, [])
  func allocated() throws(Failure) { try prepare() }
  func storage(_ row: StateRow) -> (base: UnsafeMutableRawPointer, bytes: Int) {
    let r = records + row.tensor
    let bytes = row.index < 0 ? r.pointee.count * 4 : SlotStore.bytes(row.format, row.slot.elements(of: r.pointee.count), r.pointee.size)
    let base = row.index < 0 ? r.pointee.master ?? UnsafeMutableRawPointer(StepContext.nothing) : r.pointee.slots[row.index].base
    return (base, bytes)
  }
  /// How many numbers a row of state holds.
  func elements(_ row: StateRow) -> Int { row.slot.elements(of: bound[row.tensor].view.count) }
  func stateBytes(_ row: StateRow) -> Int {
    row.index < 0 ? bound[row.tensor].view.count * 4 : SlotStore.bytes(row.format, elements(row), bound[row.tensor].view.dtype.computeSize)
  }
  func widen(_ row: StateRow, _ out: UnsafeMutablePointer<Double>) {
    let r = records + row.tensor
    let n = elements(row)
    let s = storage(row).base
    if row.format == .direct {
      if r.pointee.isDouble { for i in 0..<n { out[i] = s.assumingMemoryBound(to: Double.self)[i] } } else {
        for i in 0..<n { out[i] = Double(s.assumingMemoryBound(to: Float.self)[i]) }
      }
      return
    }
    let store = SlotStore(base: s, format: row.format)
    var block = [Float](repeating: 0, count: EightBit.block)
    for i in stride(from: 0, to: n, by: EightBit.block) {
      let c = min(EightBit.block, n - i)
      store.widen(n, i, c, &block)
      for k in 0..<c { out[i + k] = Double(block[k]) }
    }
  }

  /// Numbers that a checkpoint keeps beside the state, by name: counters, scalars, schedule memories, hyper-parameters.
  func counters() -> [(String, [Double])] {
    var rows: [(String, [Double])] = []
    rows.append(("engine/step", [Double(step), Double(skipped), Double(phase), Double(pending.kind.rawValue), Double(pending.pass),
                                 Double(pending.tag & 0xffff_ffff), Double(pending.tag >> 32), Double(pending.index), Double(pending.count)]))
    rows.append(("engine/tensor_steps", (0..<bound.count).map { Double(records[$0].t) }))
    if phase >= 0, let k = kept { rows.append(("engine/answer", [Double(k.rows), Double(k.columns)] + k.values)) }
    for s in stages {
      if !s.scalars.isEmpty {
        if s.scope == .global { rows.append(("\(s.id).\(s.name)/scalars", (0..<s.scalars.count).map { s.globals[$0] })) } else {
          rows.append(("\(s.id).\(s.name)/scalars", (0..<bound.count).flatMap { i in
            (0..<s.scalars.count).map { uses(s, bound[i]) && i < planned ? records[i].scalars[s.id][$0] : s.scalars[$0].start }
          }))
        }
      }
      for g in groups.indices {
        for (k, schedule) in s.schedules[g].sorted(by: { $0.key < $1.key }) where !schedule.memory.isEmpty {
          rows.append(("\(s.id).\(s.name)/schedule.\(g).\(k)", schedule.memory))
        }
      }
    }
    return rows
  }

  func restore(_ rows: [String: [Double]]) {
    if let e = rows["engine/step"], e.count == 9 {
      (step, skipped, phase) = (Int(e[0]), Int(e[1]), Int(e[2]))
      pending = Request(kind: Request.Kind(rawValue: Int32(e[3])) ?? .none, pass: Int(e[4]), tag: UInt64(e[5]) | UInt64(e[6]) << 32,
                        index: Int(e[7]), count: Int(e[8]))
    }
    resumed = phase >= 0
    (sourceCopies, snapshotMemory, answered, kept) = ([], [], nil, nil)   // of the state that was there before
    if let k = rows["engine/answer"], k.count >= 2 { kept = HostMatrix(Array(k[2...]), Int(k[0]), Int(k[1])) }
    if let t = rows["engine/tensor_steps"] { for i in 0..<bound.count { records[i].t = Int(t[i]) } }
    for s in stages {
      if let v = rows["\(s.id).\(s.name)/scalars"] {
        if s.scope == .global { for k in 0..<s.scalars.count { s.globals[k] = v[k] } } else {
          for i in 0..<bound.count where uses(s, bound[i]) { for k in 0..<s.scalars.count { records[i].scalars[s.id][k] = v[i * s.scalars.count + k] } }
        }
      }
      for g in groups.indices {
        for k in s.schedules[g].keys { if let m = rows["\(s.id).\(s.name)/schedule.\(g).\(k)"] { s.schedules[g][k]?.memory = m } }
      }
    }
    activate()
  }

  /// A request that a loaded checkpoint was waiting for.
  package var waiting: Request? { phase >= 0 ? pending : nil }

}

extension Branch.Pass {
  var isWhole: Bool {
    switch work {
    case .whole, .wholeAfter: true
    default: false
    }
  }
}
