import CThalweg
import Glibc
import ThalwegCore

/// State that is made of the parameters: how it starts, and how it follows what the host writes between two steps.
extension Optimizer {
  // MARK: the start

  /// Reads what starts at the parameters from them as they stand, and fixes it: the tensor takes its first step.
  func start(_ i: Int) {
    readStart(i)
    records[i].started = true
  }
  /// The same without fixing it, for looking at.
  func readStart(_ i: Int) {
    let r = records + i
    guard r.pointee.count > 0 else { return }
    if let m = r.pointee.master, !r.pointee.viewed { Optimizer.readParameters(r, m) }
    for (k, row) in stateRows(i).enumerated()
    where row.slot.startsAtParameters && !isVacant(row.stage, row.slot, bound[i]) {
      let base = r.pointee.slots[k].base
      r.pointee.x.read(0, r.pointee.count, into: base, size: r.pointee.size, scale: 1)
      if case .iterate(.logarithm) = row.slot.start { takeLogarithms(base, 0, r.pointee.count, r.pointee.isDouble) }
    }
  }

  /// All state of a tensor as it was before its first step.
  func startAfresh(_ i: Int) {
    for (k, row) in stateRows(i).enumerated() where !isVacant(row.stage, row.slot, bound[i]) {
      let store = records[i].slots + k
      let bytes = SlotStore.bytes(store.pointee.format, row.slot.elements(of: records[i].count), records[i].size)
      store.pointee.base.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
      Optimizer.start(records + i, store, row.slot)
    }
  }

  private func takeLogarithms(_ base: UnsafeMutableRawPointer, _ first: Int, _ count: Int, _ isDouble: Bool) {
    func log(_ x: Double) -> Double { x > 0 ? Glibc.log(x) : 0 }
    for k in first..<(first + count) {
      if isDouble {
        let p = base.assumingMemoryBound(to: Double.self) + k
        p.pointee = log(p.pointee)
      } else {
        let p = base.assumingMemoryBound(to: Float.self) + k
        p.pointee = Float(log(Double(p.pointee)))
      }
    }
  }

  // MARK: what the host has written

  /// Whether written parameters are looked for before the step begins: where a source moves them first, or a view
  /// stands between. Elsewhere the first walk of the step looks, over memory that it reads anyway.
  func noticesAhead(_ r: UnsafeMutablePointer<Record>) -> Bool { !sources.isEmpty || r.pointee.viewed }

  /// `always`: for evaluation weights, which no walk of a step comes before.
  func noticeAhead(always: Bool = false) throws(Failure) {
    guard !marks.isEmpty else { return }
    if !sources.isEmpty || always {
      eachMarked { r, start, end in
        whereWritten(r, start, end) { _, _, _, _ in
          withUnsafeMutablePointer(to: &r.pointee.rewritten) { twi_store($0, 1) }
        }
      }
      let found = (0..<bound.count).contains { records[$0].rewritten != 0 }
      defer { if found { for i in 0..<bound.count { records[i].rewritten = 0 } } }
      if found {
        if !always { try keepIterates() }
        eachMarked { r, start, end in
          if r.pointee.rewritten != 0 { whereWritten(r, start, end) { startAnew(r, $0, $1, $2, $3) } }
        }
      }
    }
    for i in 0..<bound.count where records[i].viewed && records[i].marked { try noticeView(i) }
  }

  /// Calls `body` for the tensors with marks whose parameters the host sees, a task at a time, on all threads.
  private func eachMarked(_ body: (_ r: UnsafeMutablePointer<Record>, _ start: Int, _ end: Int) -> Void) {
    Threads.run(tasks.count, parallel: elements >= Walker.parallelFrom) { t in
      let task = tasks[t]
      func look(_ r: UnsafeMutablePointer<Record>, _ start: Int, _ end: Int) {
        if r.pointee.marked, !r.pointee.viewed { body(r, start, end) }
      }
      if task.small {
        for i in task.first..<task.end { look(records + i, 0, records[i].count) }
      } else {
        let last = blocks[task.end - 1]
        look(records + Int(last.tensor), blocks[task.first].offset, last.offset + last.count)
      }
    }
  }
  /// Keeps what a step that is broken off gives back: what is about to begin anew where the host has written.
  private func keepIterates() throws(Failure) {
    let regions = allStateRows().filter { row in
      records[row.tensor].rewritten != 0 && (row.kind == .master || row.slot.isIterate)
    }.map(storage)
    iterateCopies = try copies(regions)
    iterates = regions
  }

  /// The marks of a tensor.
  func marks(of i: Int) -> (base: UnsafeMutableRawPointer, bytes: Int)? {
    records[i].marks.map { ($0, records[i].markBytes(records[i].count)) }
  }

  /// Marks what no walk of the step could mark as it went: its parameters might have been put back, or a whole-tensor
  /// stage came last.
  func markAfterwards() {
    guard !marks.isEmpty else { return }
    for i in 0..<bound.count where records[i].active && records[i].watched {
      let r = records + i
      if !branches[r.pointee.branch].marksInWalk && !marksInStrips(r) || mayFail { mark(r, 0..<r.pointee.count) }
      r.pointee.marked = true
    }
  }
  func markAll(_ r: UnsafeMutablePointer<Record>) {
    mark(r, 0..<r.pointee.count)
    r.pointee.marked = true
  }
  /// Marks a part that begins with a chunk.
  func mark(_ r: UnsafeMutablePointer<Record>, _ part: Swift.Range<Int>) {
    for at in stride(from: part.lowerBound, to: part.upperBound, by: Program.chunk) {
      if let mark = r.pointee.mark(at) { r.pointee.takeMark(at, min(Program.chunk, part.upperBound - at), mark) }
    }
  }

  /// Calls `body` for the chunks from `start` to `end` whose mark is not as it was.
  private func whereWritten(
    _ r: UnsafeMutablePointer<Record>, _ start: Int, _ end: Int,
    _ body: (_ start: Int, _ count: Int, _ now: UnsafeRawPointer, _ then: UnsafeRawPointer) -> Void
  ) {
    withUnsafeTemporaryAllocation(byteCount: Marks.whole * 8, alignment: 64) { room in
      guard let now = room.baseAddress else { return }
      var at = start
      while at < end, let then = r.pointee.mark(at) {
        let n = min(Program.chunk, end - at)
        r.pointee.takeMark(at, n, now)
        if memcmp(now, then, r.pointee.markBytes(n)) != 0 { body(at, n, now, then) }
        at += n
      }
    }
  }

  /// Iterates of a chunk start anew where the host has written its parameters since the last step.
  func startAnew(
    _ r: UnsafeMutablePointer<Record>, _ at: Int, _ n: Int, _ now: UnsafeRawPointer, _ then: UnsafeRawPointer
  ) {
    let i = r - records, size = r.pointee.size, bytes = r.pointee.x.dtype.size
    if let m = r.pointee.master { r.pointee.x.adopt(at, n, m.assumingMemoryBound(to: Float.self) + at) }
    withUnsafeTemporaryAllocation(byteCount: n * size, alignment: 64) { room in
      guard let x = room.baseAddress else { return }
      if let m = r.pointee.master {
        x.copyMemory(from: m + at * size, byteCount: n * size)
      } else {
        r.pointee.x.read(at, n, into: x, size: size, scale: 1)
      }
      for (k, row) in stateRows(i).enumerated() {
        guard case .iterate(let kind) = row.slot.start else { continue }
        let base = r.pointee.slots[k].base
        let factor: Double
        if case .times(let s) = kind { factor = r.pointee.scalars[row.stage.id][s] } else { factor = 1 }
        for e in 0..<n where Marks.differs(e, of: r.pointee.count, bytes, now, then) {
          if r.pointee.isDouble {
            base.assumingMemoryBound(to: Double.self)[at + e] = factor * x.assumingMemoryBound(to: Double.self)[e]
          } else {
            base.assumingMemoryBound(to: Float.self)[at + e] = Float(factor) * x.assumingMemoryBound(to: Float.self)[e]
          }
          if case .logarithm = kind { takeLogarithms(base, at + e, 1, r.pointee.isDouble) }
        }
      }
    }
  }

  /// The stored tensor behind a view takes over the elements that the host has written: those that are not what the
  /// view shows.
  private func noticeView(_ i: Int) throws(Failure) {
    let r = records + i, n = r.pointee.count, size = r.pointee.size
    var written = false
    whereWritten(r, 0, n) { _, _, _, _ in written = true }
    guard written, let s = viewStage(bound[i]), let dense = r.pointee.master, let v = r.pointee.scratch,
      let space = workspaces.first
    else { return }
    let before = try copies([(dense, n * size)])
    self.written.append((i, try copyOfParameters(i), before[0]))
    v.copyMemory(from: dense, byteCount: n * size)
    try callView(s, i, v, space.base)
    let x = r.pointee.x
    x.forEachRun(0, n) { offset, stride, first, m in
      for k in 0..<m {
        let e = first + k, host = x.data + (offset + k * stride) * x.dtype.size
        switch x.dtype {
        case .f64:
          take(
            host.load(as: Double.self), v.assumingMemoryBound(to: Double.self)[e],
            &dense.assumingMemoryBound(to: Double.self)[e])
        case .f32:
          take(
            host.load(as: Float.self), v.assumingMemoryBound(to: Float.self)[e],
            &dense.assumingMemoryBound(to: Float.self)[e])
        case .f16:
          let shown = Float(Float16(v.assumingMemoryBound(to: Float.self)[e]))
          take(Float(host.load(as: Float16.self)), shown, &dense.assumingMemoryBound(to: Float.self)[e])
        case .bf16:
          let shown = floatFromBF16(bf16FromFloat(v.assumingMemoryBound(to: Float.self)[e]))
          take(floatFromBF16(host.load(as: UInt16.self)), shown, &dense.assumingMemoryBound(to: Float.self)[e])
        }
      }
    }
    func take<T: Real>(_ host: T, _ shown: T, _ stored: inout T) { if host != shown { stored = host } }
    try showView(i)
  }
}

extension Slot {
  var isIterate: Bool { if case .iterate = start { true } else { false } }
  /// Read from the parameters at the first step; what is a multiple of a scalar starts at 0.
  var startsAtParameters: Bool {
    if count != nil { return false }
    switch start {
    case .parameters, .iterate(.same), .iterate(.logarithm): return true
    default: return false
    }
  }
}
