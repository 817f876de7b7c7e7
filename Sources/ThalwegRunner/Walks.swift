import CThalweg
import ThalwegCore

/// Programs over the tensors, sums of what they leave, and the walks of sources.
extension Optimizer {
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
  /// The same of the tensors that a source touches.
  func takesPart(_ i: Int, _ s: Stage?) -> Bool { takesPart(i) && s.map { touches($0, bound[i]) } ?? true }
  /// Whether it belongs there, but takes no part.
  func isAbsent(_ i: Int, _ s: Stage) -> Bool {
    !records[i].active && uses(s, bound[i]) && touches(s, bound[i])
  }

  func forEach(of stage: Stage? = nil, _ lay: (Program, UnsafeMutablePointer<Record>) -> Void) {
    bringHome()
    Threads.run(tasks.count, parallel: elements >= Walker.parallelFrom) { t in
      let task = tasks[t]
      withOwn(programs) { program in
        if task.small {
          for i in task.first..<task.end where takesPart(i, stage) {
            run(program, records + i, records[i].firstBlock, records[i].firstBlock + records[i].blocks, sums: true, lay)
          }
        } else {
          let r = records + Int(blocks[task.first].tensor)
          if takesPart(r - records, stage) { run(program, r, task.first, task.end, sums: true, lay) }
        }
      }
    }
  }

  /// Carries a program out over a run of blocks; sums are taken block by block, whatever the run.
  @inline(__always)
  func run(
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
  func total(where included: (UnsafeMutablePointer<Record>) -> Bool, _ out: UnsafeMutablePointer<Double>) {
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
  static func order(_ list: UnsafeMutableBufferPointer<Double>) {
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

  /// Leaves the partial sums of all active tensors, for sources; here and below: one kernel, or one a group.
  private func measure(_ all: [WalkMeasure], _ stage: Stage, _ order: [Int]?, exact: Bool = false) {
    forEach(of: stage) { p, r in
      var apply = r.pointee.apply
      let kernels = all[all.count == 1 ? 0 : r.pointee.group]
      let x = exact ? p.parameters() : p.hostParameters(), k = r.pointee.isDouble ? kernels.f64 : kernels.f32
      p.sum(x, self.gradient(p, r, &apply) ?? x, stage.id, order ?? self.all(r, stage)) { _, _, _, o, out in k(o, out) }
    }
  }
  /// The sums of every tensor by itself, by position: 0 where it takes no part.
  func sums(_ all: [WalkMeasure], stage: Stage, slots order: [Int]? = nil) -> [[Double]] {
    measure(all, stage, order)
    var rows = [Double](repeating: 0, count: bound.count * Sums.count)
    rows.withUnsafeMutableBufferPointer { rows in
      guard let base = rows.baseAddress else { return }
      for i in 0..<bound.count where takesPart(i, stage) { total(records + i, base + i * Sums.count) }
      if sharesElements { addRanks(base, bound.count) }
    }
    return (0..<bound.count).map { Array(rows[($0 * Sums.count)..<(($0 + 1) * Sums.count)]) }
  }

  /// Sums over all active tensors.
  func sum(_ all: [WalkMeasure], stage: Stage, slots order: [Int]? = nil, exact: Bool = false) -> [Double] {
    measure(all, stage, order, exact: exact)
    total(where: { takesPart($0 - records, stage) }, totals)
    addRanks(totals, 1)
    return (0..<Sums.count).map { totals[$0] }
  }

  /// Changes parameters (as the host sees them) and the source's state element by element.
  func change(
    _ all: [WalkKernel], stage: Stage, slots order: [Int]? = nil, parameters: Bool, exact: Bool = false
  ) {
    change(stage: stage, slots: order, parameters: parameters, exact: exact) {
      all[all.count == 1 ? 0 : self.records[$0].group]
    }
  }
  /// The same with a kernel a tensor.
  func change(
    stage: Stage, slots order: [Int]? = nil, parameters: Bool, exact: Bool = false,
    _ kernel: (_ tensor: Int) -> WalkKernel
  ) {
    forEach(of: stage) { p, r in
      let kernels = kernel(r - self.records)
      self.change(p, r, stage, order, parameters, exact: exact, r.pointee.isDouble ? kernels.f64 : kernels.f32)
    }
    noteHome(stage, order)
  }
  /// A walk over the home slot has saved the parameters there.
  func noteHome(_ stage: Stage, _ order: [Int]?) {
    guard let k = sources.firstIndex(where: { $0 === stage }) else { return }
    for i in 0..<bound.count where takesPart(i) && records[i].away & (1 << UInt32(k)) == 0 {
      let r = records + i, seen = (order ?? all(r, stage)).prefix(SlotPointers.capacity)
      if let home = r.pointee.homes[k], seen.contains(where: { r.pointee.slot(stage.id, $0).base == home }) {
        r.pointee.away |= 1 << UInt32(k)
      }
    }
  }
  /// Brings parameters home that a source has sent there.
  func bringHome() {
    guard let k = returning else { return }
    returning = nil
    forEach { p, r in self.bringHome(p, r, k) }
  }
  func bringHome(_ p: Program, _ r: UnsafeMutablePointer<Record>, _ k: Int) {
    if r.pointee.away & (1 << UInt32(k)) != 0, let home = r.pointee.homes[k] { p.comeHome(home) }
  }
  /// The gradient that a source sees; nil where there is none to read.
  func gradient(_ p: Program, _ r: UnsafeMutablePointer<Record>, _ apply: inout Apply) -> Program.Place? {
    if let incoming { return p.gradient(incoming, copy: apply.scale != 1, &apply) }
    return r.pointee.present ? p.gradient(copy: apply.scale != 1, &apply) : nil
  }
  func change(
    _ p: Program, _ r: UnsafeMutablePointer<Record>, _ stage: Stage, _ order: [Int]?, _ parameters: Bool,
    exact: Bool = false, _ kernel: @escaping PlainKernel
  ) {
    var apply = r.pointee.apply
    // Where there is no gradient to read, nobody looks at it.
    let x = exact && !parameters ? p.parameters() : p.hostParameters(), g = gradient(p, r, &apply) ?? x
    p.add(x, g, stage.id, order ?? all(r, stage)) { _, _, o in kernel(o) }
    if parameters { p.closeHost(x) }
  }
  /// All slots of a stage.
  func all(_ r: UnsafeMutablePointer<Record>, _ stage: Stage) -> [Int] { Array(0..<r.pointee.used(stage.id)) }
}

/// Elements that are NaN or infinite, of each of two operands.
struct NonFiniteCount: ElementSum {
  @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, NonFiniteCount.count(x))
    sums.add(1, NonFiniteCount.count(g))
  }
  @inline(__always) static func count<L: Lane>(_ x: L) -> L {
    let d = x - x  // 0, or NaN where x is not finite
    return L.select(L.equal(d, d), L(0), L(1))
  }

  typealias Measures = (ElementKernels.Measure, ElementKernels.Measure)
  private static func measures(_ f32: @escaping PlainMeasure, _ f64: @escaping PlainMeasure) -> Measures {
    ({ _, _, _, o, out in f32(o, out) }, { _, _, _, o, out in f64(o, out) })
  }
  static let counts = measures(
    plainMeasure(NonFiniteCount(), SIMD16<Float>.self), plainMeasure(NonFiniteCount(), SIMD8<Double>.self))
  /// Whether there are any, at the speed of memory: of one operand, of two.
  static let ofOne = measures(
    nonFiniteMeasure(SIMD16<Float>.self, both: false), nonFiniteMeasure(SIMD8<Double>.self, both: false))
  static let ofTwo = measures(
    nonFiniteMeasure(SIMD16<Float>.self, both: true), nonFiniteMeasure(SIMD8<Double>.self, both: true))
}
