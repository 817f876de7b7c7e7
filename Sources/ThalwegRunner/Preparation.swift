import CThalweg
import ThalwegCore

/// State and plan of tensors that are new, before the first step that needs them.
extension Optimizer {
  func format(_ slot: Slot, _ b: Bound) -> SlotStore.Format {
    if b.view.dtype == .f64 || slot.storage == .exact { return .direct }
    switch options.state {
    case .f32: return .direct
    case .bf16: return .bf16
    case .q8:
      let isSmall = slot.elements(of: b.view.count) < EightBit.smallest
      return isSmall ? .direct : slot.storage == .half ? .bf16 : slot.storage == .signed ? .signed8 : .positive8
    }
  }

  func slots(_ s: Stage, _ b: Bound) -> [Slot] {
    if s === routeStage { return s.method.slots }
    if s.role == .source { return s.source?.slots ?? [] }
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
    try prepareNew()
    try placeFlagged()
  }
  private func prepareNew() throws(Failure) {
    guard carriage != .waiting else {
      throw Failure(Status.sequence, "this optimizer steps with state that its host carries; it has none of its own")
    }
    let carried = carriage == .working
    let again = stages.contains { $0.grown }
    if again { planned = 0 }
    guard planned < bound.count || programs.isEmpty else { return }
    let depot = twi_depot_at_work()  // what is made here lasts: the depot is for what steps give back
    twi_depot_work(nil)
    defer { twi_depot_work(depot) }
    var bytes = 0, scratchBytes = 0, ruleBytes = 0, markBytes = 0
    var estimate = 0.0  // sums of absurd sizes must not overflow
    for i in planned..<bound.count {
      let b = bound[i]
      let size = b.view.dtype.computeSize
      estimate += Double(b.view.count) * Double(stateRows(i).count + 3) * 16
      guard estimate < 1e17 else {
        throw Failure(Status.memory, "the state of these tensors does not fit into any memory")
      }
      if !carried {
        for row in stateRows(i) where !isPlacedApart(row.stage, row.slot) {
          bytes += aligned(SlotStore.bytes(row.format, row.slot.elements(of: b.view.count), size))
        }
        if needsMaster(b) { bytes += aligned(b.view.count * 4) }
      }
      // who carries the state carries the parameters too: nothing is written behind the optimizer's back
      if !carried, stateRows(i).contains(where: { $0.slot.isIterate }) {
        markBytes += aligned(Marks.bytes(b.view.count, of: b.view.count, b.view.dtype.size))
      }
      for s in stages where uses(s, b) {
        ruleBytes += aligned(s.element?.size ?? 0)
        if s.scope == .tensor { ruleBytes += aligned(s.scalars.count * 8) }
      }
      scratchBytes += branches[b.branch].scratchTensors * aligned(b.view.count * size)
    }
    let arena = try Memory(bytes, allocator)
    let extra = try Memory(scratchBytes, allocator)
    let rules = try Memory(ruleBytes, allocator)
    var zeros = probeZeros
    if routeStage != nil, sources.contains(where: { $0.source?.probe != nil }) {
      let most = bound.reduce(0) { max($0, $1.view.count * $1.view.dtype.computeSize) }
      if zeros?.size ?? -1 < most { zeros = try Memory(most, allocator) }
    }
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
        let narrow = slots(st, b).filter { !$0.apart && format($0, b) != .direct }.reduce(0) {
          $0 + aligned($1.elements(of: b.view.count) * size)
        }
        workBytes = max(
          workBytes, aligned(w.workspace(st.hyper[0], b.shape, size)) + narrow + aligned(b.view.count * size))
        wholes += 1
      }
    }
    var spaces = workspaces
    if let first = spaces.first, first.size < workBytes { spaces = [] }
    for i in planned..<bound.count { planStrips(i) }
    try makeRoomForStrips(benches)
    while spaces.count < min(threads, wholes) { spaces.append(try Memory(workBytes, allocator, zeroed: false)) }

    var at = arena.base, scratchAt = extra.base, ruleAt = rules.base
    var markAt = fingerprints.base
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
        let elsewhere = isPlacedApart(row.stage, row.slot)
        let base = elsewhere ? UnsafeMutableRawPointer(StepContext.nothing) : at
        (stores + k).initialize(to: SlotStore(base: base, format: row.format, apart: row.slot.apart))
        if carried || elsewhere { continue }
        at += aligned(SlotStore.bytes(row.format, row.slot.elements(of: b.view.count), size))
      }
      if needsMaster(b) {
        r.pointee.master = at
        if !carried { at += aligned(b.view.count * 4) }
      }
      if let v = viewStage(b) {
        r.pointee.master = r.pointee.slot(v.id, 0).base
        r.pointee.viewed = true
      }
      for (k, row) in rows.enumerated() {
        if isPlacedApart(row.stage, row.slot) { continue }
        if !carried { Optimizer.start(r, stores + k, row.slot) }
        if row.slot.home, let source = sources.firstIndex(where: { $0 === row.stage }) {
          r.pointee.homes[source] = stores[k].base
        }
      }
      r.pointee.marked = false
      if !carried, rows.contains(where: { $0.slot.isIterate }) {
        r.pointee.marks = markAt
        markAt += aligned(r.pointee.markBytes(r.pointee.count))
      }
      if branches[b.branch].needsScratch {
        r.pointee.scratch = scratchAt
        scratchAt += aligned(b.view.count * size)
      }
      if branches[b.branch].keepsGradient {
        r.pointee.second = scratchAt
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
    flagged = []
    if again {
      (arenas, scratch, marks) = ([], [], [])
      for s in stages { s.grown = false }
    }
    arenas += [arena, rules]
    scratch.append(extra)
    programs = benches
    probeZeros = zeros
    workspaces = spaces
    if markBytes > 0 { marks.append(fingerprints) }
    (planned, risk) = (bound.count, nil)
    if !carried { carriage = .own }
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
  func plan() {
    var list: [Block] = []
    (tasks, stripTasks) = ([], [])
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
      cutStrips(i)
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
}
