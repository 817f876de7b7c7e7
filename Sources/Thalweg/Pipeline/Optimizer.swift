import CThalweg

/// What the host must supply now.
package struct Request: Sendable {
  package enum Kind: Int32, Sendable, CaseIterable {
    case none = 0, gradient, loss, lossAndGradient, hessianVector, taskGradient, previousGradient, logitDerivatives,
      activations

    /// The answer is matrices, not gradients.
    package var takesMatrices: Bool { self == .logitDerivatives || self == .activations }
    /// The answer lies in the bound gradients.
    /// It asks for a gradient of the loss, which the sources before may make.
    var isGradient: Bool {
      self == .gradient || self == .lossAndGradient || self == .taskGradient || self == .previousGradient
    }
    package var takesGradients: Bool { self != .none && self != .loss && !takesMatrices }
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

/// A name compared byte by byte: two spellings of one accent are two names.
struct Exact: Hashable {
  let text: String
  init(_ text: String) { self.text = text }
  static func == (a: Exact, b: Exact) -> Bool { a.text.utf8.elementsEqual(b.text.utf8) }
  func hash(into h: inout Hasher) { for b in text.utf8 { h.combine(b) } }
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
  /// The stages that decide how gradients are obtained, in the order of the sentence.
  let sources: [Stage]
  /// Keeps gradients between the sources of several pipelines of a route.
  let routeStage: Stage?
  let needsLoss: Bool
  /// Some stage refuses non-finite gradients whatever the policy.
  let needsFinite: Bool
  let mayFail: Bool
  private let longestSegments: Int
  package var options: Options
  package internal(set) var groups: [String] = [""]
  var bound: [Bound] = []
  let allocator: Allocator

  var records: UnsafeMutablePointer<Record>
  private var capacity = 0
  /// Arrays that records point into; freed with the optimizer.
  private var holdings: [UnsafeMutableRawPointer] = []
  private(set) var arenas: [Memory] = []
  private var scratch: [Memory] = []
  /// One a thread, like the work space of whole-tensor stages.
  private var programs: [Program] = []
  private(set) var workspaces: [Memory] = []
  private let threadBusy: UnsafeMutablePointer<Int64>
  private static let mostThreads = 64

  struct Block { var tensor: Int32; var offset: Int; var count: Int }
  struct Task { var first: Int; var end: Int; var small: Bool }
  private(set) var blocks: UnsafeMutablePointer<Block>
  private var blockCount = 0
  private(set) var tasks: [Task] = []
  /// The marks of the tensors that are watched.
  private(set) var marks: [Memory] = []
  private var partials: UnsafeMutablePointer<Double>
  private(set) var totals: UnsafeMutablePointer<Double>
  // Lists that steps fill again and again, so that a step allocates nothing.
  private var columns = [[Double]](repeating: [], count: Sums.top)
  private var applies: [Apply] = []
  private var begun: [Bool] = []
  private var leaders: [(group: Int, branch: Int, t: Int, isDouble: Bool, index: Int)] = []
  private var totalled: [Int] = []
  private var remade: [UnsafeMutableRawPointer] = []
  private(set) var planned = 0  // tensors with state and plan
  private(set) var elements = 0

  package internal(set) var step = 0
  package internal(set) var skipped = 0
  /// Calls that were steps, were skipped, or only accumulated: each is another minibatch.
  var calls = 0
  /// Number of requests answered in the present step; −1 between steps.
  package internal(set) var phase = -1
  package internal(set) var evaluating = false
  /// The training weights, in evaluation mode.
  var backup: [Memory] = []
  var observed: [String: Double] = [:]
  var pending = Request()
  /// The step began with a request for the loss, which the source's own first request does not bring.
  var lossFirst = false
  private(set) var hasGradients = false
  var snapshotMemory: [Memory] = []
  /// The scalars of the sources as they were before the step, and the lasting state of those that do not decide.
  var sourceCopies: [Memory] = [], stateCopies: [Memory] = []
  /// The sources at work: the last one asked is on top.
  var stack: [Frame] = []
  /// While a source of a pipeline of a route is at work, that pipeline; and the gradient that a source before it handed
  /// on.
  var scope: Int?, incoming: GradientOperation?
  /// Tensors whose state started in the present step, and those that were shown a view for the first time.
  var startedNow: [Int] = [], shown: [Int] = []
  /// Where a request that was loaded wants the parameters, until a call looks at it.
  var places: [(tensor: Int, bits: Memory)] = []
  /// Parameters that the host had written over a view, and the stored tensor behind it, as they were before the step.
  var written: [(tensor: Int, bits: Memory, dense: Memory)] = []
  /// What `allStateRows` made.
  var listed: (tensors: Int, rows: [StateRow]) = (-1, [])
  /// Where the parameters, the shadows and the gradients lie, for questions about shared memory.
  private var placed = Overlap.Index(), shadowed = Overlap.Index()
  private var gradients: [View] = []
  /// The host's answer to a request for matrices, until it is taken.
  var answered: Answer?
  /// What a source keeps of an answer until the step ends.
  var kept: HostMatrix?
  /// The largest step size of this step, where a source sets it.
  var stepSize: Double?
  /// A checkpoint was loaded in the middle of a step; `knowsActive`: it told which tensors take part.
  var resumed = false, knowsActive = false
  /// Hyper-parameters that are one for all groups, and those in which groups must agree at a step.
  let shared: [Place], agreed: [Place]

  package init(_ text: String, _ options: Options, _ allocator: Allocator) throws(Failure) {
    let compiled = try Compiler(text)
    (stages, branches, sources, routeStage) = (
      compiled.stages, compiled.branches, compiled.sources, compiled.routeStage
    )
    needsLoss = stages.contains { $0.method.needsLoss }
    needsFinite = branches.contains { $0.needsFinite } || sources.contains { $0.method.needsFinite }
    if options.master == .stochastic, let s = stages.first(where: { $0.method.refusesStochastic != nil }) {
      throw Failure(
        Status.argument, "\(s.name) does not go with master=stochastic: \(s.method.refusesStochastic ?? "")")
    }
    (shared, agreed) = (Optimizer.places(stages, .all), Optimizer.places(stages, .equal))
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
    if phase >= 0 { undo() }  // the host's parameters must not stay where a request had them
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
    guard let k = groups.firstIndex(where: { Exact($0) == Exact(name) }) else {
      throw Failure(Status.name, "no parameter group `\(name)`" + suggestion(name, Array(groups.dropFirst())))
    }
    return k
  }

  package func addParameters(_ views: [View], _ names: [String]?, _ groupName: String?) throws(Failure) {
    guard phase < 0 else { throw Failure(Status.sequence, "parameters cannot be added between the requests of a step") }
    guard !evaluating else { throw Failure(Status.sequence, "parameters cannot be added in evaluation mode") }
    var added: [Bound] = []
    var taken = Set(bound.map { Exact($0.name) })
    for (i, v) in views.enumerated() {
      let index = bound.count + i
      let name = names?[i] ?? String(index)
      let what = Optimizer.label("parameter", index, names?[i])
      guard taken.insert(Exact(name)).inserted else {
        throw Failure(Status.name, "\(what): another parameter is called `\(name)`")
      }
      guard !v.readOnly else { throw Failure(Status.layout, "\(what) is read-only; parameters are changed in place") }
      try v.refuseOverlapWithin(what)
      guard !v.absent else { throw Failure(Status.argument, "\(what) is marked absent; only gradients may be") }
      let shape = Shape(dimensions: v.shape, role: v.role)
      guard let b = branches.firstIndex(where: { $0.selectors.contains { $0.takes(shape, name) } }) else {
        throw Failure(Status.method, "\(what) of shape \(v.shape) fits no pipeline of route(...); add other=(...)")
      }
      for s in branches[b].stages {
        do { try s.whole?.accepts(s.hyper[0], shape) } catch {
          throw Failure(Int(error.status), "\(what): \(error.message)")
        }
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
    let g: Int
    let known = groupName.map { n in n.isEmpty ? 0 : groups.firstIndex { Exact($0) == Exact(n) } } ?? 0
    try checkShared(known)
    if let known {
      g = known
    } else {
      for s in stages { s.addGroup() }
      groups.append(groupName ?? "")
      g = groups.count - 1
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
      let homes: UnsafeMutablePointer<UnsafeMutableRawPointer?> = hold(max(1, sources.count))
      homes.initialize(repeating: nil, count: max(1, sources.count))
      (records + bound.count).initialize(
        to: Record(
          x: Layout(v), g: Layout(v), shadow: nil, count: v.count, size: v.dtype.computeSize, branch: b.branch,
          group: b.group,
          isDouble: isDouble, slots: slots, slotCount: 0, firstSlot: first, rules: rules, ownRules: rules,
          scalars: scalars, homes: homes))
      records[bound.count].key = UInt32(truncatingIfNeeded: bound.count)
      bound.append(b)
    }
    placed = all
    hasGradients = false
  }

  /// "parameter 3 (`head.bias`)"
  static func label(_ kind: String, _ index: Int, _ name: String?) -> String {
    name.map { "\(kind) \(index) (`\($0)`)" } ?? "\(kind) \(index)"
  }
  func label(_ kind: String, _ i: Int) -> String {
    Optimizer.label(kind, i, bound[i].name == String(i) ? nil : bound[i].name)
  }

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
    guard phase < 0, !evaluating else {
      throw Failure(Status.sequence, "parameters cannot be moved within a step or in evaluation mode")
    }
    try match(views, "parameter")
    for (i, v) in views.enumerated() {
      guard v.dtype == bound[i].view.dtype else {
        throw Failure(
          Status.dtype, "\(label("parameter", i)) was bound as \(bound[i].view.dtype.name), got \(v.dtype.name)")
      }
      guard !v.readOnly else {
        throw Failure(Status.layout, "\(label("parameter", i)) is read-only; parameters are changed in place")
      }
      guard !v.absent else {
        throw Failure(Status.argument, "\(label("parameter", i)) is marked absent; only gradients may be")
      }
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
    takePlace()
  }

  package func bindShadow(_ views: [View]) throws(Failure) {
    if !views.isEmpty {
      try match(views, "shadow")
      for (i, v) in views.enumerated() {
        guard v.dtype.size == 2 else {
          throw Failure(Status.dtype, "\(label("shadow", i)) must be f16 or bf16, got \(v.dtype.name)")
        }
        guard !v.readOnly else { throw Failure(Status.layout, "\(label("shadow", i)) is read-only") }
        guard !v.absent else {
          throw Failure(Status.argument, "\(label("shadow", i)) is marked absent; only gradients may be")
        }
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
    if s === routeStage { return s.method.slots }
    if s.source != nil, s.element == nil || s.role == .source { return s.source?.slots ?? [] }
    var list = s.element?.slots(s.founding, b.shape) ?? s.whole?.slots(s.founding, b.shape) ?? []
    if let extra = s.source?.slots { list += extra }
    return list
  }

  func uses(_ s: Stage, _ b: Bound) -> Bool {
    s.role == .source ? s.branch == nil || s.branch == b.branch : branches[b.branch].stages.contains { $0 === s }
  }

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

  func needsMaster(_ b: Bound) -> Bool { options.master == .f32 && b.view.dtype.size == 2 && viewStage(b) == nil }
  func viewStage(_ b: Bound) -> Stage? { branches[b.branch].after.first { $0.isView } }

  /// Allocates the state of new tensors and plans the walks. Throws before anything is changed.
  func prepare() throws(Failure) {
    let again = stages.contains { $0.grown }
    if again { planned = 0 }
    guard planned < bound.count || programs.isEmpty else { return }
    var bytes = 0, scratchBytes = 0, ruleBytes = 0, markBytes = 0
    var estimate = 0.0  // sums of absurd sizes must not overflow
    for i in planned..<bound.count {
      let b = bound[i]
      let size = b.view.dtype.computeSize
      estimate += Double(b.view.count) * Double(stateRows(i).count + 3) * 16
      guard estimate < 1e17 else {
        throw Failure(Status.memory, "the state of these tensors does not fit into any memory")
      }
      for row in stateRows(i) {
        bytes += aligned(SlotStore.bytes(row.format, row.slot.elements(of: b.view.count), size))
      }
      if needsMaster(b) { bytes += aligned(b.view.count * 4) }
      if stateRows(i).contains(where: { $0.slot.isIterate }) { markBytes += Marks.count(b.view.count) * 4 }
      for s in stages where uses(s, b) {
        ruleBytes += aligned(s.element?.size ?? 0)
        if s.scope == .tensor { ruleBytes += aligned(s.scalars.count * 8) }
      }
      if branches[b.branch].needsScratch { scratchBytes += aligned(b.view.count * size) }
    }
    let arena = try Memory(bytes, allocator)
    let extra = try Memory(scratchBytes, allocator)
    let rules = try Memory(ruleBytes, allocator)
    let fingerprints = try Memory(markBytes, allocator, zeroed: false)
    let threads = min(Optimizer.mostThreads, max(Threads.count, 1) + 1)
    var benches = programs
    while benches.count < threads {
      benches.append(try Program(allocator, written: { [unowned self] in startAnew($0, $1, $2, $3, $4) }))
    }

    var workBytes = workspaces.first?.size ?? 0, wholes = 0
    for i in 0..<bound.count {
      for st in branches[bound[i].branch].stages {
        guard let w = st.whole else { continue }
        // the rule's own, then its narrow state widened, then the parameters where they are not dense in the compute
        // type
        let b = bound[i], size = b.view.dtype.computeSize
        let narrow = slots(st, b).filter { format($0, b) != .direct }.count
        workBytes = max(
          workBytes, aligned(w.workspace(st.hyper[0], b.shape, size)) + (narrow + 1) * aligned(b.view.count * size))
        wholes += 1
      }
    }
    var spaces = workspaces
    if let first = spaces.first, first.size < workBytes { spaces = [] }
    while spaces.count < min(threads, wholes) { spaces.append(try Memory(workBytes, allocator, zeroed: false)) }

    var at = arena.base, scratchAt = extra.base, ruleAt = rules.base
    var markAt = fingerprints.base.assumingMemoryBound(to: UInt32.self)
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
      }
      if let v = viewStage(b) {
        r.pointee.master = r.pointee.slot(v.id, 0).base
        r.pointee.viewed = true
      }
      for (k, row) in rows.enumerated() {
        Optimizer.start(r, stores + k, row.slot)
        if row.slot.home, let source = sources.firstIndex(where: { $0 === row.stage }) {
          r.pointee.homes[source] = stores[k].base
        }
      }
      r.pointee.marked = false
      if rows.contains(where: { $0.slot.isIterate }) {
        r.pointee.marks = markAt
        markAt += Marks.count(r.pointee.count)
      }
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
    if again {
      (arenas, scratch, marks) = ([], [], [])
      for s in stages { s.grown = false }
    }
    arenas += [arena, rules]
    scratch.append(extra)
    programs = benches
    workspaces = spaces
    if markBytes > 0 { marks.append(fingerprints) }
    planned = bound.count
    plan()
  }

  static func readParameters(_ r: UnsafeMutablePointer<Record>, _ out: UnsafeMutableRawPointer) {
    r.pointee.x.read(0, r.pointee.count, into: out, size: r.pointee.size, scale: 1)
  }

  /// Gives a slot its start, where that is a number.
  static func start(_ r: UnsafeMutablePointer<Record>, _ s: UnsafeMutablePointer<SlotStore>, _ slot: Slot) {
    let n = slot.elements(of: r.pointee.count)
    switch slot.start {
    case .zero, .parameters, .iterate: break
    case .value(let x):
      if s.pointee.format == .direct {
        if r.pointee.isDouble {
          s.pointee.base.assumingMemoryBound(to: Double.self).update(repeating: x, count: n)
        } else {
          s.pointee.base.assumingMemoryBound(to: Float.self).update(repeating: Float(x), count: n)
        }
        return
      }
      var row = [Float](repeating: Float(x), count: EightBit.block)
      for i in stride(from: 0, to: n, by: EightBit.block) {
        s.pointee.narrow(n, i, min(EightBit.block, n - i), &row, nil)
      }
    }
  }

  /// Cuts the tensors into blocks, and the blocks into tasks: by size alone, so that results do not depend on the
  /// threads.
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
  func withOwn<T>(_ pool: [T], _ body: (T) -> Void) {
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
  /// Whether a tensor takes part in the step, and belongs to the source that is at work.
  func takesPart(_ i: Int) -> Bool { records[i].active && (scope == nil || scope == records[i].branch) }
  /// Whether it belongs there, but takes no part.
  func isAbsent(_ i: Int, _ s: Stage) -> Bool { !records[i].active && uses(s, bound[i]) }

  func forEach(_ lay: (Program, UnsafeMutablePointer<Record>) -> Void) {
    Threads.run(tasks.count, parallel: elements >= Walker.parallelFrom) { t in
      let task = tasks[t]
      withOwn(programs) { program in
        if task.small {
          for i in task.first..<task.end where takesPart(i) {
            run(program, records + i, records[i].firstBlock, records[i].firstBlock + records[i].blocks, sums: true, lay)
          }
        } else {
          let r = records + Int(blocks[task.first].tensor)
          if takesPart(r - records) { run(program, r, task.first, task.end, sums: true, lay) }
        }
      }
    }
  }

  /// Carries a program out over a run of blocks; sums are taken block by block, whatever the run.
  @inline(__always)
  private func run(
    _ program: Program, _ r: UnsafeMutablePointer<Record>, _ first: Int, _ end: Int, sums: Bool,
    _ lay: (Program, UnsafeMutablePointer<Record>) -> Void
  ) {
    guard first < end else { return }
    program.begin(r, at: blocks[first].offset)
    lay(program, r)
    if sums {
      for b in first..<end { program.execute(blocks[b].count, partials + b * Sums.count) }
    } else {
      program.execute(blocks[end - 1].offset + blocks[end - 1].count - blocks[first].offset, partials)
    }
  }

  func total(_ r: UnsafeMutablePointer<Record>, _ out: UnsafeMutablePointer<Double>) {
    for k in 0..<Sums.count { out[k] = 0 }
    for b in r.pointee.firstBlock..<(r.pointee.firstBlock + r.pointee.blocks) {
      let p = partials + b * Sums.count
      for k in 0..<Sums.top { out[k] += p[k] }
      if !(p[Sums.top] <= out[Sums.top]), out[Sums.top] == out[Sums.top] { out[Sums.top] = p[Sums.top] }
    }
  }

  /// The sums over several tensors. They are added in the order of their size, so that the order of binding does not
  /// matter.
  private func total(where included: (UnsafeMutablePointer<Record>) -> Bool, _ out: UnsafeMutablePointer<Double>) {
    for k in 0..<Sums.count { out[k] = 0 }
    withUnsafeTemporaryAllocation(of: Double.self, capacity: Sums.count) { row in
      guard let p = row.baseAddress else { return }
      for k in columns.indices { columns[k].removeAll(keepingCapacity: true) }
      for i in 0..<bound.count {
        let r = records + i
        guard takesPart(i), included(r) else { continue }
        total(r, p)
        for k in 0..<Sums.top where p[k] != 0 { columns[k].append(p[k]) }
        if !(p[Sums.top] <= out[Sums.top]), out[Sums.top] == out[Sums.top] { out[Sums.top] = p[Sums.top] }
      }
    }
    for k in columns.indices {
      columns[k].withUnsafeMutableBufferPointer { Optimizer.order($0) }
      for x in columns[k] { out[k] += x }
    }
  }
  /// Ascending, NaN last: a heap sort, since the library's own allocates.
  private static func order(_ list: UnsafeMutableBufferPointer<Double>) {
    func isAfter(_ a: Double, _ b: Double) -> Bool { a > b || (a.isNaN && !b.isNaN) }
    func sink(_ start: Int, _ end: Int) {
      var i = start
      while 2 &* i &+ 1 < end {
        var child = 2 &* i &+ 1
        if child &+ 1 < end, isAfter(list[child &+ 1], list[child]) { child &+= 1 }
        guard isAfter(list[child], list[i]) else { return }
        list.swapAt(i, child)
        i = child
      }
    }
    for i in stride(from: list.count / 2 - 1, through: 0, by: -1) { sink(i, list.count) }
    for end in stride(from: list.count - 1, to: 0, by: -1) {
      list.swapAt(0, end)
      sink(0, end)
    }
  }

  /// Sums over all active tensors, for sources.
  func sum(_ ops: [some ElementSum], stage: Stage, slots order: [Int]? = nil) -> [Double] {
    let all = ops.map { (plainMeasure($0, SIMD16<Float>.self), plainMeasure($0, SIMD8<Double>.self)) }
    forEach { p, r in
      var apply = r.pointee.apply
      let kernels = all[all.count == 1 ? 0 : r.pointee.group]
      let x = p.hostParameters(), k = r.pointee.isDouble ? kernels.1 : kernels.0
      p.sum(x, self.gradient(p, r, &apply) ?? x, state: self.state(r, stage, order)) { _, _, _, o, out in k(o, out) }
    }
    total(where: { _ in true }, totals)
    return (0..<Sums.count).map { totals[$0] }
  }

  /// Changes parameters (as the host sees them) and the source's state element by element. Here and above: one
  /// operation, or one a group.
  func change(stage: Stage, slots order: [Int]? = nil, parameters: Bool, _ op: (_ tensor: Int) -> some ElementOperation)
  {
    forEach { p, r in
      let op = op(r - self.records)
      self.change(
        p, r, stage, order, parameters,
        r.pointee.isDouble
          ? plainKernel(op, SIMD8<Double>.self, writesX: parameters, writesG: false)
          : plainKernel(op, SIMD16<Float>.self, writesX: parameters, writesG: false))
    }
    noteHome(stage, order)
  }
  func change(_ ops: [some ElementOperation], stage: Stage, slots order: [Int]? = nil, parameters: Bool) {
    let all = ops.map { op in
      (
        plainKernel(op, SIMD16<Float>.self, writesX: parameters, writesG: false),
        plainKernel(op, SIMD8<Double>.self, writesX: parameters, writesG: false)
      )
    }
    forEach { p, r in
      let kernels = all[all.count == 1 ? 0 : r.pointee.group]
      self.change(p, r, stage, order, parameters, r.pointee.isDouble ? kernels.1 : kernels.0)
    }
    noteHome(stage, order)
  }
  /// A walk over the home slot has saved the parameters there.
  private func noteHome(_ stage: Stage, _ order: [Int]?) {
    guard let k = sources.firstIndex(where: { $0 === stage }) else { return }
    for i in 0..<bound.count where takesPart(i) && records[i].away & (1 << UInt32(k)) == 0 {
      if let home = records[i].homes[k], state(records + i, stage, order).contains(home) {
        records[i].away |= 1 << UInt32(k)
      }
    }
  }
  /// The gradient that a source sees; nil where there is none to read.
  private func gradient(_ p: Program, _ r: UnsafeMutablePointer<Record>, _ apply: inout Apply) -> Program.Place? {
    if let incoming { return p.gradient(incoming, copy: apply.scale != 1, &apply) }
    return r.pointee.present ? p.gradient(copy: apply.scale != 1, &apply) : nil
  }
  private func change(
    _ p: Program, _ r: UnsafeMutablePointer<Record>, _ stage: Stage, _ order: [Int]?, _ parameters: Bool,
    _ kernel: @escaping PlainKernel
  ) {
    var apply = r.pointee.apply
    // Where there is no gradient to read, nobody looks at it.
    let x = p.hostParameters(), g = gradient(p, r, &apply) ?? x
    p.add(x, g, state: state(r, stage, order)) { _, _, o in kernel(o) }
    if parameters { p.closeHost(x) }
  }
  private func state(_ r: UnsafeMutablePointer<Record>, _ stage: Stage, _ order: [Int]?) -> [UnsafeMutableRawPointer] {
    let list = r.pointee.slots + Int(r.pointee.firstSlot[stage.id])
    return (order ?? Array(0..<r.pointee.used(stage.id))).prefix(SlotPointers.capacity).map { list[$0].base }
  }

  // MARK: probes

  /// The slot of the source with the vector of the present request.
  package var probeSlot: (stage: Int, slot: Int)? {
    guard pending.kind == .hessianVector || pending.kind == .logitDerivatives, let s = stack.last.flatMap(stage),
      let k = s.source?.probe
    else { return nil }
    return (s.id, probeIndex(s, k))
  }
  func probeIndex(_ s: Stage, _ k: Int) -> Int {
    s.role == .source ? k : (s.element.map { $0.slots(s.founding, Shape(dimensions: [1])).count } ?? 0) + k
  }

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
      (out + i).initialize(
        to: tw_tensor(
          data: records[i].slot(stage, slot).base, dtype: records[i].isDouble ? DType.f64.rawValue : DType.f32.rawValue,
          ndim: Int32(probeList[i].ndim),
          shape: UnsafePointer(probeList[i].shape), strides: nil, flags: UInt32(TW_TENSOR_READ_ONLY), role: 0,
          reserved: (0, 0, 0)))
    }
    return out
  }
  private var probeList: [(shape: UnsafeMutablePointer<Int64>, ndim: Int)] = []
  private var probeTensor: UnsafeMutablePointer<tw_tensor>?

  // MARK: copies of state

  typealias Region = (base: UnsafeMutableRawPointer, bytes: Int)

  /// Where the scalars of a stage lie.
  func scalars(_ s: Stage) -> [Region] {
    let bytes = s.scalars.count * 8
    if bytes == 0 { return [] }
    if s.scope == .global { return [(UnsafeMutableRawPointer(s.globals), bytes)] }
    return (0..<bound.count).filter { uses(s, bound[$0]) }.map {
      (UnsafeMutableRawPointer(records[$0].scalars[s.id]), bytes)
    }
  }
  /// Where the lasting state and the scalars of all stages but one lie.
  func regions(without source: Stage) -> [Region] {
    stages.filter { $0 !== source }.flatMap(scalars)
      + allStateRows().filter { $0.kind != .master && !$0.slot.temporary && $0.stage !== source }.map { storage($0) }
  }
  func copies(_ regions: [Region]) throws(Failure) -> [Memory] {
    var list: [Memory] = []
    for r in regions {
      let m = try Memory(r.bytes, allocator, zeroed: false)
      m.base.copyMemory(from: r.base, byteCount: r.bytes)
      list.append(m)
    }
    return list
  }
  func putBack(_ copies: [Memory], _ regions: [Region]) {
    for (r, m) in zip(regions, copies) { r.base.copyMemory(from: m.base, byteCount: r.bytes) }
  }
  private struct NonFiniteCount: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      let d = g - g  // 0, or NaN where g is not finite
      sums.add(0, L.select(L.equal(d, d), L(0), L(1)))
    }
  }
  static let nonFinite: (ElementKernels.Measure, ElementKernels.Measure) = {
    let (f32, f64) = (
      plainMeasure(NonFiniteCount(), SIMD16<Float>.self), plainMeasure(NonFiniteCount(), SIMD8<Double>.self)
    )
    return ({ _, _, _, o, out in f32(o, out) }, { _, _, _, o, out in f64(o, out) })
  }()

  /// What the host's gradients are multiplied by.
  var scale: Double { (options.maximize ? -1 : 1) * options.gradientScale }

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
    (c.tensor, c.seed, c.stream) = (Int(r.pointee.key), options.seed, UInt32(s.id))
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
      ruleStep(branch, r.pointee.t + 2, r.pointee.group) <= ruleStep(branch, r.pointee.t + 1, r.pointee.group)
    else { return }
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
  func rate(of tensor: Int) -> (lr: Double, decay: Double) {
    rates[records[tensor].group * branches.count + records[tensor].branch]
  }
  /// The largest step size of the tensors that have a gradient this time.
  var largestRate: Double { (0..<bound.count).reduce(0) { records[$1].active ? max($0, rate(of: $1).lr) : $0 } }

  /// The tensor whose hyper-parameters stand for those of all: of the tensors that have a gradient, the first whose
  /// step size is not 0.
  func leader(_ s: Stage) -> Int? {
    let among = (0..<bound.count).lazy.filter { self.takesPart($0) && self.uses(s, self.bound[$0]) }
    return among.first { i in
      let lr: Double = self.branches[self.bound[i].branch].rule.hyper[self.bound[i].group].lr
      return lr != 0
    } ?? among.first
  }
  /// What numbers that all tensors share are made with: the step of the tensor that has taken most, whatever the order
  /// of binding.
  private func commonContext(_ s: Stage, _ leader: Int) -> StepContext {
    var c = context(s, branches[records[leader].branch], leader)
    for i in 0..<bound.count where records[i].active && records[i].t > records[leader].t && uses(s, bound[i]) {
      c.t = max(c.t, context(s, branches[records[i].branch], i).t)
    }
    return c
  }
  /// Numbers of a stage that are one for all tensors.
  private func share(_ s: Stage, _ count: Int) {
    let all = (0..<bound.count).filter { uses(s, bound[$0]) }
    for k in 0..<count {
      let largest = all.reduce(-Double.infinity) { max($0, records[$1].scalars[s.id][k]) }
      for i in all where records[i].active { records[i].scalars[s.id][k] = largest }
    }
  }

  func evaluateSchedules() throws(Failure) {
    for s in stages {
      for g in groups.indices where !s.schedules[g].isEmpty { try s.evaluate(g, Double(step)) }
    }
  }

  private func prepareRules() throws(Failure) {
    try evaluateSchedules()
    try checkAgreed()  // the last thing that can refuse: from here on scalars advance
    loss = observed["loss"] ?? .nan
    if applies.count != groups.count * branches.count {
      decayOf = [Double](repeating: 0, count: groups.count * branches.count)
      rates = [(lr: Double, decay: Double)](repeating: (1, 0), count: decayOf.count)
      applies = [Apply](repeating: Apply(), count: decayOf.count)
    }
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
    for i in 0..<bound.count where records[i].active {
      records[i].apply = applies[records[i].group * branches.count + records[i].branch]
    }
    begun.removeAll(keepingCapacity: true)
    for _ in stages { begun.append(false) }
    leaders.removeAll(keepingCapacity: true)  // tensors of one group, branch and step count share their rules
    for i in 0..<bound.count {
      let r = records + i
      guard r.pointee.active else { continue }
      let branch = branches[r.pointee.branch]
      if options.master == .stochastic, r.pointee.x.dtype.size == 2 {
        r.pointee.rounding = Random.key(seed: options.seed, stream: .max, step: UInt64(step), tensor: r.pointee.key)
      }
      if options.state != .f32 {
        r.pointee.stateKey = Random.key(seed: options.seed, stream: .max - 1, step: UInt64(step), tensor: r.pointee.key)
      }
      if !branch.perTensor {
        if let l = leaders.first(where: {
          $0.group == r.pointee.group && $0.branch == r.pointee.branch && $0.t == r.pointee.t
            && $0.isDouble == r.pointee.isDouble
        }) {
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
        if !begun[s.id] {
          begun[s.id] = true
          if s.scope == .global, !s.scalars.isEmpty, let l = leader(s) {  // who has none begins nothing
            e.begin(s.globals, s.hyper[records[l].group], commonContext(s, l))
          } else if e.shared > 0, s.scope == .tensor {
            share(s, e.shared)
          }
        }
        if s.scope == .tensor { e.begin(r.pointee.scalars[s.id], h, c) }
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
  func update(_ op: GradientOperation?) throws(Failure) -> Int {
    if mayFail, snapshotMemory.isEmpty { try takeSnapshot() }
    sourceOperation = op
    defer { sourceOperation = nil }
    try prepareRules()
    try runSegments()
    for i in 0..<bound.count where records[i].active {
      restart(i)
      records[i].t += 1
    }
    markAfterwards()
    (step, calls) = (step + 1, calls + 1)
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
      totalled.removeAll(keepingCapacity: true)
      for branch in branches where segment < branch.segments.count {
        guard let (s, p) = branch.segments[segment].last?.measured, s.reach[p] == .global, !totalled.contains(s.id)
        else { continue }
        totalled.append(s.id)
        total(
          where: { r in
            let passes = self.branches[r.pointee.branch].segments
            return segment < passes.count && passes[segment].last?.measured?.stage === s
          }, totals)
        if s.scope == .tensor {
          for i in 0..<bound.count
          where records[i].active && branches[records[i].branch].stages.contains(where: { $0 === s }) {
            s.element?.finish(
              p, Totals(p: totals), records[i].scalars[s.id], s.hyper[records[i].group],
              context(s, branches[records[i].branch], i))
            remake(s, i)
          }
          continue
        }
        guard let first = leader(s) else { continue }
        s.element?.finish(p, Totals(p: totals), s.globals, s.hyper[records[first].group], commonContext(s, first))
        remade.removeAll(keepingCapacity: true)
        for i in 0..<bound.count
        where records[i].active && branches[records[i].branch].stages.contains(where: { $0 === s }) {
          let rule = records[i].rules[s.id]
          if remade.last == rule || (remade.count < 64 && remade.contains(rule)) { continue }
          remade.append(rule)
          remake(s, i)
        }
      }
    }
  }

  private func runElements(_ segment: Int) {
    let parallel = elements >= Walker.parallelFrom
    let longest = branches.reduce(0) { max($0, segment < $1.segments.count ? $1.segments[segment].count : 0) }
    guard longest > 0 else { return }
    for position in 0..<longest {
      var walk = ElementWalk(optimizer: Unmanaged.passUnretained(self), segment: segment, position: position)
      withUnsafeMutablePointer(to: &walk) { p in
        Threads.run(tasks.count, parallel: parallel, p) { context, t in
          let walk = context.unsafelyUnwrapped.assumingMemoryBound(to: ElementWalk.self).pointee
          walk.optimizer._withUnsafeGuaranteedRef { $0.run(walk, Int(t)) }
        }
      }
      for i in 0..<bound.count where records[i].blocks > Walker.taskBlocks {
        let branch = branches[records[i].branch]
        guard records[i].active, segment < branch.segments.count, position < branch.segments[segment].count else {
          continue
        }
        finishTensor(branch.segments[segment][position], i, totals)
      }
    }
  }

  private struct ElementWalk {
    var optimizer: Unmanaged<Optimizer>
    var segment: Int, position: Int
  }
  /// One task of a walk.
  private func run(_ walk: ElementWalk, _ t: Int) {
    let task = tasks[t], segment = walk.segment
    if task.small {
      if walk.position == 0 { withOwn(programs) { runSmall(task.first, task.end, segment, $0) } }
      return
    }
    let r = records + Int(blocks[task.first].tensor)
    let branch = branches[r.pointee.branch]
    guard r.pointee.active, segment < branch.segments.count, walk.position < branch.segments[segment].count else {
      return
    }
    let pass = branch.segments[segment][walk.position]
    guard !pass.isWhole else { return }
    withOwn(programs) { run(pass, branch, r, task.first, task.end, $0) }
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
  private func run(
    _ pass: Branch.Pass, _ branch: Branch, _ r: UnsafeMutablePointer<Record>, _ first: Int, _ end: Int,
    _ program: Program
  ) {
    let clears = options.zeroGradients && r.pointee.present
    run(program, r, first, end, sums: pass.measured != nil) { p, r in
      if pass.opens, r.pointee.marked, !noticesAhead(r) { p.notice() }
      pass.lay(out: p, branch, r, sourceOperation)
      if clears, case .final = pass.work { p.clearGradient() }
      if pass.closes, r.pointee.watched, !mayFail { p.mark() }
    }
  }

  private func finishTensor(_ pass: Branch.Pass, _ i: Int, _ out: UnsafeMutablePointer<Double>) {
    guard let (s, p) = pass.measured, s.reach[p] == .tensor, let e = s.element else { return }
    let r = records + i
    total(r, out)
    e.finish(
      p, Totals(p: out), r.pointee.scalars[s.id], s.hyper[r.pointee.group], context(s, branches[r.pointee.branch], i))
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
    for k in 0..<work.count {
      if let f = failures[k] { throw Failure(Int(f.status), "\(label("parameter", work[k].0)): \(f.message)") }
    }
  }

  private func runWhole(_ i: Int, _ pass: Branch.Pass, _ space: UnsafeMutableRawPointer) throws(Failure) {
    let r = records + i
    switch pass.work {
    case .whole(let s):
      guard let v = r.pointee.scratch else { return }
      try callWhole(s, i, v, companion: nil, space)
    case .wholeAfter(let s):
      guard let v = r.pointee.scratch else { return }
      // in the scratch tensor, then back: the host's memory may be strided or narrow, and a failure must not leave it
      // half done
      let n = r.pointee.count, bytes = n * r.pointee.size
      if let m = r.pointee.master { v.copyMemory(from: m, byteCount: bytes) } else { Optimizer.readParameters(r, v) }
      try callWhole(s, i, v, companion: v, space)
      if let m = r.pointee.master, !s.isView { m.copyMemory(from: v, byteCount: bytes) }
      if !r.pointee.viewed || s.isView {
        r.pointee.x.write(0, n, from: v, size: r.pointee.size, rounding: r.pointee.rounding)
      }
      if let shadow = r.pointee.shadow { shadow.write(0, n, from: v, size: r.pointee.size, rounding: nil) }
    default: break
    }
  }

  /// The host takes its first gradient where it will take all others: at the view of a stored tensor.
  func showView(_ i: Int) throws(Failure) {
    guard records[i].count > 0, let s = viewStage(bound[i]) else { return }
    _ = context0(s, i)
    guard let space = workspaces.first else { return }
    try runWhole(i, Branch.Pass(work: .wholeAfter(s)), space.base)
  }

  /// Makes what the host sees of a stored tensor in v.
  func callView(_ s: Stage, _ i: Int, _ v: UnsafeMutableRawPointer, _ space: UnsafeMutableRawPointer) throws(Failure) {
    _ = context0(s, i)
    try callWhole(s, i, v, companion: v, space)
  }

  func callWhole(
    _ s: Stage, _ i: Int, _ v: UnsafeMutableRawPointer, companion: UnsafeMutableRawPointer?,
    _ space: UnsafeMutableRawPointer, evaluating: Bool = false
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
      if store.format == .direct {
        list.append(store.base)
      } else {
        store.widen(n, 0, n, free.assumingMemoryBound(to: Float.self))
        list.append(free)
        free += aligned(n * size)
      }
    }
    var w = companion ?? r.pointee.master ?? v
    if companion == nil, r.pointee.master == nil {
      if r.pointee.x.dense, r.pointee.x.dtype == (r.pointee.isDouble ? .f64 : .f32) {
        w = r.pointee.x.data
      } else {
        Optimizer.readParameters(r, free)
        w = free
      }
    }
    if r.pointee.isDouble {
      try call.f64(
        h, c,
        Whole(
          v: v.assumingMemoryBound(to: Double.self), w: w.assumingMemoryBound(to: Double.self),
          slots: list.map { $0.assumingMemoryBound(to: Double.self) }, shape: bound[i].shape, workspace: space))
    } else {
      try call.f32(
        h, c,
        Whole(
          v: v.assumingMemoryBound(to: Float.self), w: w.assumingMemoryBound(to: Float.self),
          slots: list.map { $0.assumingMemoryBound(to: Float.self) }, shape: bound[i].shape, workspace: space))
    }
    if evaluating { return }
    for (k, store) in stores.enumerated() where store.format != .direct {
      store.narrow(n, 0, n, list[k].assumingMemoryBound(to: Float.self), r.pointee.key(s.id, k))
    }
  }

  // MARK: copies

  /// Copies of all parameters and state, for steps that may fail half way.
  func takeSnapshot() throws(Failure) {
    var copies: [Memory] = []
    for a in arenas {
      let m = try Memory(a.size, allocator, zeroed: false)
      m.base.copyMemory(from: a.base, byteCount: a.size)
      copies.append(m)
    }
    for s in stages where !s.scalars.isEmpty {
      let m = try Memory(s.scalars.count * 8, allocator, zeroed: false)
      m.base.copyMemory(from: s.globals, byteCount: s.scalars.count * 8)
      copies.append(m)
    }
    for i in 0..<bound.count { copies.append(try copyAtHome(i)) }
    snapshotMemory = copies
  }
  /// The bits of a tensor where the host left it.
  private func copyAtHome(_ i: Int) throws(Failure) -> Memory {
    let here = try copyOfParameters(i), away = records[i].away
    guard away != 0 else { return here }
    comeHome(i)
    defer {
      restoreParameters(i, here)
      records[i].away = away
    }
    return try copyOfParameters(i)
  }
  /// Puts the copies back. `home`: tensors whose parameters stand where they stood before the step already.
  func restoreSnapshot(home: Set<Int>) {
    guard !snapshotMemory.isEmpty else { return }
    var k = 0
    for a in arenas { a.base.copyMemory(from: snapshotMemory[k].base, byteCount: a.size); k += 1 }
    for s in stages where !s.scalars.isEmpty {
      UnsafeMutableRawPointer(s.globals).copyMemory(from: snapshotMemory[k].base, byteCount: s.scalars.count * 8)
      k += 1
    }
    for i in 0..<bound.count {
      if !home.contains(i) { restoreParameters(i, snapshotMemory[k]) }
      k += 1
    }
    snapshotMemory = []
  }

  /// The bits of a tensor's elements, densely.
  func copyOfParameters(_ i: Int) throws(Failure) -> Memory {
    let r = records + i
    let size = r.pointee.x.dtype.size
    let m = try Memory(r.pointee.count * size, allocator, zeroed: false)
    r.pointee.x.gather(0, r.pointee.count, m.base)
    return m
  }
  func restoreParameters(_ i: Int, _ m: Memory) {
    let r = records + i
    let size = r.pointee.x.dtype.size
    r.pointee.x.forEachRun(0, r.pointee.count) { offset, stride, first, n in
      if stride == 1 {
        (r.pointee.x.data + offset * size).copyMemory(from: m.base + first * size, byteCount: n * size)
      } else {
        for k in 0..<n {
          (r.pointee.x.data + (offset + k * stride) * size).copyMemory(
            from: m.base + (first + k) * size, byteCount: size)
        }
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
    try noticeAhead(always: true)
    written = []
    var copies: [Memory] = []
    for i in 0..<bound.count { copies.append(try copyOfParameters(i)) }
    let parts = (0..<bound.count).map { records[$0].active }
    for i in 0..<bound.count { records[i].active = true }
    defer { for (i, active) in parts.enumerated() { records[i].active = active } }
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
      p.run(e.evaluate, s.id, Apply(), x, x, changes: false)
      p.closeHost(x)
    }
    do throws(Failure) {
      for i in 0..<bound.count where records[i].t > 0 && records[i].count > 0 {
        let r = records + i
        guard let s = branches[r.pointee.branch].evaluator, s.whole != nil, let v = r.pointee.scratch,
          let space = workspaces.first
        else { continue }
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

  func context0(_ s: Stage, _ i: Int) -> StepContext {
    if decayOf.count != groups.count * branches.count {
      decayOf = [Double](repeating: 0, count: groups.count * branches.count)
    }
    return context(s, branches[records[i].branch], i)
  }
}

extension Branch.Pass {
  var isWhole: Bool {
    switch work {
    case .whole, .wholeAfter: true
    default: false
    }
  }
}
