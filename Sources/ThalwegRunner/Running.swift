import CThalweg
import ThalwegCore

/// The update: segment after segment of the plan, over all tensors.
extension Optimizer {
  /// Moves the parameters. `source` transforms the host's gradient first.
  func update(_ op: GradientOperation?) throws(Failure) -> Int {
    if mayFail, !hasSnapshot { try takeSnapshot() }
    try checkRanks()  // what a source could not sum: before anything moves
    (sourceOperation, taskWeights) = (op, op?.weights)
    defer { sourceOperation = nil }
    try prepareRules()
    try runSegments()
    try checkRanks()
    for i in 0..<bound.count where records[i].active {
      restart(i)
      records[i].t += 1
    }
    markAfterwards()
    (step, calls) = (step + 1, calls + 1)
    forget()
    return Status.ok
  }

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

  func runSegments() throws(Failure) {
    if returning != nil, branches.contains(where: { $0.segments.first?.first?.isWhole ?? true }) { bringHome() }
    for segment in 0..<longestSegments {
      try runStrips(segment)
      if branches.contains(where: { segment < $0.segments.count && $0.segments[segment].first?.isWhole ?? false }) {
        try gather(segment)
        try checkRanks()
        try runWhole(segment)
      }
      runElements(segment)
      try checkRanks()
      returning = nil  // the first passes have brought them home
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
        addRanks(totals, 1)
        try checkRanks()
        if s.scope == .tensor {
          for i in 0..<bound.count
          where records[i].active && branches[records[i].branch].stages.contains(where: { $0 === s }) {
            s.element?.finish(
              p, Totals(totals), records[i].scalars[s.id], s.hyper[records[i].group],
              context(s, branches[records[i].branch], i))
            remake(s, i)
          }
          continue
        }
        guard let first = leader(s) else { continue }
        s.element?.finish(p, Totals(totals), s.globals, s.hyper[records[first].group], commonContext(s, first))
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

  func runElements(_ segment: Int) {
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
      if sharesElements {
        finishTensors(segment, position)
        continue
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

  struct ElementWalk {
    var optimizer: Unmanaged<Optimizer>
    var segment: Int, position: Int
  }
  /// One task of a walk.
  func run(_ walk: ElementWalk, _ t: Int) {
    let task = tasks[t], segment = walk.segment
    if task.small {
      if sharesElements {
        withOwn(programs) { program in
          for i in task.first..<task.end {
            run(walk, i, records[i].firstBlock, records[i].firstBlock + records[i].blocks, program)
          }
        }
      } else if walk.position == 0 {
        withOwn(programs) { runSmall(task.first, task.end, segment, $0) }
      }
      return
    }
    withOwn(programs) { run(walk, Int(blocks[task.first].tensor), task.first, task.end, $0) }
  }
  /// A run of blocks of tensor i.
  private func run(_ walk: ElementWalk, _ i: Int, _ first: Int, _ end: Int, _ program: Program) {
    let r = records + i, branch = branches[records[i].branch]
    guard r.pointee.active, !goesInStrips(r, walk.segment), walk.segment < branch.segments.count,
      walk.position < branch.segments[walk.segment].count
    else { return }
    let pass = branch.segments[walk.segment][walk.position]
    if !pass.isWhole { run(pass, branch, r, first, end, program) }
  }

  /// All passes of a segment over tensors that one task holds whole: their data stays in cache between the passes.
  func runSmall(_ first: Int, _ end: Int, _ segment: Int, _ program: Program) {
    withUnsafeTemporaryAllocation(of: Double.self, capacity: Sums.count) { sums in
      guard let out = sums.baseAddress else { return }
      for i in first..<end {
        let r = records + i
        guard r.pointee.active, !goesInStrips(r, segment) else { continue }
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
  func run(
    _ pass: Branch.Pass, _ branch: Branch, _ r: UnsafeMutablePointer<Record>, _ first: Int, _ end: Int,
    _ program: Program
  ) {
    run(program, r, first, end, sums: pass.measured != nil) { p, r in lay(pass, branch, p, r) }
  }
  func lay(_ pass: Branch.Pass, _ branch: Branch, _ p: Program, _ r: UnsafeMutablePointer<Record>) {
    if pass.opens, let k = returning { bringHome(p, r, k) }
    if pass.opens, r.pointee.marked, !noticesAhead(r) { p.notice() }
    pass.lay(out: p, branch, r, sourceOperation)
    if options.zeroGradients, r.pointee.present, case .final = pass.work { p.clearGradient() }
    if pass.closes, r.pointee.watched, !mayFail { p.mark() }
  }

  func finishTensor(_ pass: Branch.Pass, _ i: Int, _ out: UnsafeMutablePointer<Double>) {
    guard let (s, p) = pass.measured, s.reach[p] == .tensor, let e = s.element else { return }
    let r = records + i
    if !sharesElements { total(r, out) }
    e.finish(
      p, Totals(out), r.pointee.scalars[s.id], s.hyper[r.pointee.group], context(s, branches[r.pointee.branch], i))
    remake(s, i)
  }

  /// Whole-tensor stages: many tensors side by side, each on one thread.
  func runWhole(_ segment: Int) throws(Failure) {
    var work: [(Int, Branch.Pass)] = []
    for i in 0..<bound.count
    where records[i].active && records[i].count > 0 && !goesInStrips(records + i, segment) {
      let branch = branches[records[i].branch]
      if segment < branch.segments.count, let p = branch.segments[segment].first, p.isWhole { work.append((i, p)) }
    }
    guard !work.isEmpty else { return }
    // The largest first, so that the last thread is not left with it.
    work.sort { records[$0.0].count > records[$1.0].count }
    // (one alone leaves the threads to the stage)
    try runTasks(work.count, parallel: work.count > 1, workspaces, tensor: { work[$0].0 }) {
      (k, space) throws(Failure) in
      let (i, pass) = work[k]
      let scratch = pass.makesGradient ? records[i].second : records[i].scratch
      try runFinite(i, pass, 0..<records[i].count, scratch, space.base)
    }
  }

  /// Runs tasks that may fail, each with a member of a pool, and throws the first failure with the name of its tensor.
  func runTasks<T>(
    _ count: Int, parallel: Bool = true, _ pool: [T], tensor: (Int) -> Int,
    _ body: (Int, T) throws(Failure) -> Void
  ) throws(Failure) {
    let failures = UnsafeMutablePointer<Failure?>.allocate(capacity: count)
    failures.initialize(repeating: nil, count: count)
    defer {
      failures.deinitialize(count: count)
      failures.deallocate()
    }
    Threads.run(count, parallel: parallel && elements >= Walker.parallelFrom) { k in
      withOwn(pool) { own in
        do throws(Failure) { try body(k, own) } catch { failures[k] = error }
      }
    }
    for k in 0..<count {
      if let f = failures[k] { throw Failure(Int(f.status), "\(label("parameter", tensor(k))): \(f.message)") }
    }
  }

  /// A stage of numbers that were finite before the step. What became too large within it stays what the step made of
  /// it: single lines, where the stage can do the others without them, else the tensor.
  func runFinite(
    _ i: Int, _ pass: Branch.Pass, _ part: Swift.Range<Int>, _ scratch: UnsafeMutableRawPointer?,
    _ space: UnsafeMutableRawPointer
  ) throws(Failure) {
    do throws(Failure) { try runWhole(i, pass, part, scratch, space) } catch {
      guard let s = pass.stage, let whole = s.whole, whole.traits.needsFinite,
        error.status == tw_status(Status.nonfinite)
      else { throw error }
      guard let line = lines(s, i), line < part.count, records[i].used(s.id) == 0 else { return }
      for start in stride(from: part.lowerBound, to: part.upperBound, by: line) {
        try runFinite(i, pass, start..<min(start + line, part.upperBound), scratch, space)
      }
    }
  }

  /// A whole-tensor stage on a tensor, or on a part that it may be given by itself; `scratch`: where the scratch tensor
  /// begins.
  func runWhole(
    _ i: Int, _ pass: Branch.Pass, _ part: Swift.Range<Int>, _ scratch: UnsafeMutableRawPointer?,
    _ space: UnsafeMutableRawPointer
  ) throws(Failure) {
    let r = records + i, size = r.pointee.size, start = part.lowerBound, offset = start * size
    switch pass.work {
    case .whole(let s):
      guard let scratch else { return }
      try callWhole(s, i, scratch + offset, companion: nil, space, part: part)
    case .wholeAfter(let s):
      let bytes = part.count * size, dense = r.pointee.master.map { $0 + offset }
      if let place = placeToChange(r, s) {
        let v = place + offset
        if s.isView, let dense { v.copyMemory(from: dense, byteCount: bytes) }
        try callWhole(s, i, v, companion: v, space, part: part)
        if dense != nil, !r.pointee.viewed { show(r, v, part) }
        if let shadow = r.pointee.shadow { shadow.write(start, part.count, from: v, size: size, rounding: nil) }
        return
      }
      guard let scratch else { return }
      let v = scratch + offset
      // in the scratch tensor, then back: the host's memory may be strided or narrow, and a failure must not leave it
      // half done
      if let dense {
        v.copyMemory(from: dense, byteCount: bytes)
      } else {
        r.pointee.x.read(start, part.count, into: v, size: size, scale: 1)
      }
      try callWhole(s, i, v, companion: v, space, part: part)
      if let dense, !s.isView { dense.copyMemory(from: v, byteCount: bytes) }
      if !r.pointee.viewed || s.isView { show(r, v, part) }
      if let shadow = r.pointee.shadow { shadow.write(start, part.count, from: v, size: size, rounding: nil) }
    default: break
    }
  }
  private func show(_ r: UnsafeMutablePointer<Record>, _ v: UnsafeMutableRawPointer, _ part: Swift.Range<Int>) {
    r.pointee.x.write(part.lowerBound, part.count, from: v, size: r.pointee.size, rounding: r.pointee.rounding)
  }
  /// Where a stage may change the parameters in place: a master copy or dense memory, and the stage fails before it
  /// writes or never. What a view shows is made where the host sees it.
  private func placeToChange(_ r: UnsafeMutablePointer<Record>, _ s: Stage) -> UnsafeMutableRawPointer? {
    guard let whole = s.whole, !whole.mayFail(s.hyper[r.pointee.group]) else { return nil }
    if !s.isView, let m = r.pointee.master { return m }
    return r.pointee.plain
  }

  /// The host takes its first gradient where it will take all others: at the view of a stored tensor.
  func showView(_ i: Int) throws(Failure) {
    guard records[i].count > 0, let s = viewStage(bound[i]) else { return }
    _ = context0(s, i)
    guard let space = workspaces.first else { return }
    try runWhole(i, Branch.Pass(work: .wholeAfter(s)), 0..<records[i].count, records[i].scratch, space.base)
  }

  /// Makes what the host sees of a stored tensor in v.
  func callView(_ s: Stage, _ i: Int, _ v: UnsafeMutableRawPointer, _ space: UnsafeMutableRawPointer) throws(Failure) {
    _ = context0(s, i)
    try callWhole(s, i, v, companion: v, space)
  }

  func callWhole(
    _ s: Stage, _ i: Int, _ v: UnsafeMutableRawPointer, companion: UnsafeMutableRawPointer?,
    _ space: UnsafeMutableRawPointer, part: Swift.Range<Int>? = nil, evaluating: Bool = false
  ) throws(Failure) {
    guard let whole = s.whole else { return }
    let step = (f32: whole.f32, f64: whole.f64), call = evaluating ? whole.evaluate ?? step : step
    let r = records + i
    let size = r.pointee.size, part = part ?? 0..<r.pointee.count, n = part.count, start = part.lowerBound
    let shape = self.shape(of: part, i)
    let stores = (0..<r.pointee.used(s.id)).map { r.pointee.slot(s.id, $0) }
    let c = context(s, branches[r.pointee.branch], i)
    let h = s.hyper[r.pointee.group]
    // behind the workspace of the rule itself, which takes some counting where nothing is widened
    var room: UnsafeMutableRawPointer?
    func free(_ elements: Int) -> UnsafeMutableRawPointer {
      let p = room ?? space + aligned(whole.workspace(s.hyper[0], shape, size))
      room = p + aligned(elements * size)
      return p
    }
    // State kept in fewer bits is widened for the call and narrowed after it.
    let lengths = stores.contains(where: \.isWidened) ? slots(s, bound[i]).map { $0.elements(of: n) } : []
    var list: [UnsafeMutableRawPointer] = []
    for (k, store) in stores.enumerated() {
      if !store.isWidened {
        list.append(store.base + start * size)
      } else {  // never of a part
        let m = lengths[k], wide = free(m)
        store.widen(m, 0, m, wide.assumingMemoryBound(to: Float.self))
        list.append(wide)
      }
    }
    var w = companion ?? v
    if companion == nil {
      if let dense = r.pointee.master ?? r.pointee.plain {
        w = dense + start * size
      } else {
        w = free(n)
        r.pointee.x.read(start, n, into: w, size: size, scale: 1)
      }
    }
    if r.pointee.isDouble {
      try call.f64(
        h, c,
        Whole(
          v: v.assumingMemoryBound(to: Double.self), w: w.assumingMemoryBound(to: Double.self),
          slots: list.map { $0.assumingMemoryBound(to: Double.self) }, shape: shape, workspace: space))
    } else {
      try call.f32(
        h, c,
        Whole(
          v: v.assumingMemoryBound(to: Float.self), w: w.assumingMemoryBound(to: Float.self),
          slots: list.map { $0.assumingMemoryBound(to: Float.self) }, shape: shape, workspace: space))
    }
    if evaluating { return }
    for (k, store) in stores.enumerated() where store.isWidened {
      let m = lengths[k]
      store.narrow(m, 0, m, list[k].assumingMemoryBound(to: Float.self), r.pointee.key(s.id, k))
    }
  }
}

extension Branch.Pass {
  var isWhole: Bool { stage != nil }
  /// The whole-tensor stage that it runs.
  var stage: Stage? {
    switch work {
    case .whole(let s), .wholeAfter(let s): s
    default: nil
    }
  }
}
