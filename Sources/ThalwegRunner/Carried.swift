import CThalweg
import ThalwegCore

/// Steps whose whole state is the host's: a function of parameters, gradients, state and numbers. A compiler of arrays
/// (XLA) owns all of them, moves them between calls, and may run the function twice, or in another process.
extension Optimizer {
  /// Whose the state is: not decided before the first step.
  enum Carriage { case undecided, own, waiting, working }

  /// What comes before the numbers of tensors, stages and schedules: 1 when the run has begun, step, skipped, calls.
  private static let head = 4

  /// The scalars of all stages, as they lie.
  private var scalarRegions: [Region] { stages.flatMap(scalars) }
  /// How many numbers a run carries besides the state. Throws where the sentence asks for more than one gradient.
  package func carriedNumbers() throws(Failure) -> Int {
    try asksOnce()
    return numberCount
  }
  /// 4, one a tensor, scalars, what schedules remember.
  private var numberCount: Int {
    Optimizer.head + bound.count + scalarRegions.reduce(0) { $0 + $1.bytes / 8 }
      + remembering.reduce(0) { $0 + memory($1).count }
  }

  /// What a step is given, dense, as the tensors were bound; a gradient that is nil is absent.
  package struct Carried {
    package var parameters: UnsafePointer<UnsafeMutableRawPointer?>
    package var gradients: UnsafePointer<UnsafeMutableRawPointer?>
    /// One a row of `describeState`.
    package var state: UnsafePointer<UnsafeMutableRawPointer?>?
    package var stateCount: Int
    package var numbers: UnsafeMutablePointer<Double>
    package var numberCount: Int
    package var observed: [(what: String, value: Double)]
    /// No step: the parameters become the evaluation weights.
    package var evaluates: Bool

    package init(
      parameters: UnsafePointer<UnsafeMutableRawPointer?>, gradients: UnsafePointer<UnsafeMutableRawPointer?>,
      state: UnsafePointer<UnsafeMutableRawPointer?>?, stateCount: Int, numbers: UnsafeMutablePointer<Double>,
      numberCount: Int, observed: [(what: String, value: Double)], evaluates: Bool
    ) {
      (self.parameters, self.gradients, self.state, self.stateCount) = (parameters, gradients, state, stateCount)
      (self.numbers, self.numberCount, self.observed, self.evaluates) = (numbers, numberCount, observed, evaluates)
    }
  }

  /// One step. Numbers of 0 begin a run: state starts in the buffers, whatever they hold. When it fails, parameters,
  /// state and numbers are as before.
  package func stepCarried(_ c: Carried) throws(Failure) -> Int {
    guard phase < 0, !evaluating, carriage != .own else {
      throw Failure(
        Status.sequence, "this optimizer has state of its own; create another one for steps with carried state")
    }
    guard !bound.isEmpty else { throw Failure(Status.sequence, "no parameters are bound: call add_parameters first") }
    guard ranks == nil else { throw Failure(Status.unsupported, "steps with carried state have no reducer") }
    let rows = allStateRows(), expected = try carriedNumbers()
    guard c.stateCount == rows.count else {
      throw Failure(
        Status.count,
        "`state_count` must be \(rows.count), one buffer a row of state, got \(UInt(bitPattern: c.stateCount))")
    }
    guard c.numberCount == expected else {
      throw Failure(Status.count, "`number_count` must be \(expected), got \(UInt(bitPattern: c.numberCount))")
    }
    try checkCarried(c, rows)
    carriage = .working
    defer {
      carriage = .waiting
      observed.removeAll(keepingCapacity: true)
    }
    try prepare()
    attach(c, rows)
    if c.numbers[0] != 0 { try take(c.numbers) } else if !c.evaluates { try beginRun() }
    let memories = stages.map { ($0.schedules, $0.standardSchedules) }
    for o in c.observed { try observe(o.what, o.value) }
    guard numberCount == expected else {
      for (s, before) in zip(stages, memories) { (s.schedules, s.standardSchedules) = before }
      throw Failure(Status.unsupported, "a schedule that remembers more and more has no place in carried state")
    }
    if c.evaluates {
      defer { (evaluating, backup) = (false, []) }
      if c.numbers[0] != 0 { try setMode(evaluate: true) }
      return Status.ok
    }
    let status = try stepOnce()
    give(c.numbers)
    return status
  }

  /// Pointers that are there, aligned and apart.
  private func checkCarried(_ c: Carried, _ rows: [StateRow]) throws(Failure) {
    var regions: [(base: UInt, end: UInt, written: Bool)] = []
    func add(
      _ p: UnsafeMutableRawPointer, _ bytes: Int, _ alignment: Int, _ written: Bool, _ what: @autoclosure () -> String
    ) throws(Failure) {
      let base = UInt(bitPattern: p), end = base.addingReportingOverflow(UInt(bytes))
      guard base % UInt(alignment) == 0 else {
        throw Failure(Status.layout, "\(what()) is not aligned to its \(alignment) bytes")
      }
      guard !end.overflow else {
        throw Failure(Status.layout, "\(what()) would run past the end of the address space")
      }
      if bytes > 0 { regions.append((base, end.partialValue, written)) }
    }
    for i in 0..<bound.count {
      let v = bound[i].view, bytes = v.count * v.dtype.size
      guard v.dense else {
        throw Failure(Status.layout, "\(label("parameter", i)) was bound with gaps; carried state wants dense tensors")
      }
      guard let p = c.parameters[i] else { throw Failure(Status.argument, "\(label("parameter", i)) is NULL") }
      try add(p, bytes, v.dtype.size, true, label("parameter", i))
      if let g = c.gradients[i] { try add(g, bytes, v.dtype.size, false, label("gradient", i)) }
    }
    for (k, row) in rows.enumerated() {
      guard let p = c.state?[k] else { throw Failure(Status.argument, "state \(k) is NULL") }
      let alignment = row.format == .direct ? (records[row.tensor].isDouble ? 8 : 4) : row.format == .bf16 ? 2 : 4
      try add(p, stateBytes(row), alignment, true, "state \(k)")
    }
    try add(UnsafeMutableRawPointer(c.numbers), c.numberCount * 8, 8, true, "numbers")
    regions.sort { $0.base < $1.base }
    var end: (any: UInt, written: UInt) = (0, 0)
    for r in regions {
      guard r.base >= end.written, !r.written || r.base >= end.any else {
        throw Failure(
          Status.overlap, "parameters, gradients, state and numbers of a step with carried state share memory")
      }
      end.any = max(end.any, r.end)
      if r.written { end.written = max(end.written, r.end) }
    }
  }

  /// The records look at the host's memory of this call.
  private func attach(_ c: Carried, _ rows: [StateRow]) {
    for i in 0..<bound.count {
      let r = records + i
      if let p = c.parameters[i] {
        r.pointee.x.data = p
        bound[i].view.data = p
      }
      r.pointee.g = r.pointee.x
      r.pointee.absent = c.gradients[i] == nil
      if let g = c.gradients[i] { r.pointee.g.data = g }
      r.pointee.bound = true
    }
    hasGradients = true
    for (k, row) in rows.enumerated() {
      guard let p = c.state?[k] else { continue }
      let r = records + row.tensor
      switch row.kind {
      case .slot(let k):
        r.pointee.slots[k].base = p
        if row.slot.home, let source = sources.firstIndex(where: { $0 === row.stage }) { r.pointee.homes[source] = p }
      case .master: r.pointee.master = p
      default: break
      }
    }
    for i in 0..<bound.count where records[i].viewed {
      if let v = viewStage(bound[i]) { records[i].master = records[i].slot(v.id, 0).base }
    }
  }

  private func beginRun() throws(Failure) {
    (step, skipped, calls) = (0, 0, 0)
    for i in 0..<bound.count {
      (records[i].t, records[i].started, records[i].active) = (0, false, false)
      startAfresh(i)
    }
    for s in stages {
      for r in scalars(s) {
        for (k, x) in s.scalars.enumerated() { r.base.assumingMemoryBound(to: Double.self)[k] = x.start }
      }
    }
    for m in remembering {
      guard case .schedule(let node) = (m.group < 0 ? m.stage.standard : m.stage.hyper[m.group]).values[m.parameter]
      else { continue }
      put(try Registry.schedule(node).memory, m)
    }
  }

  private func take(_ numbers: UnsafeMutablePointer<Double>) throws(Failure) {
    let damaged = Failure(Status.argument, "`numbers` are not those of a run of this optimizer")
    let n = bound.count
    for k in 0..<(Optimizer.head + n) {
      guard numbers[k] >= 0, numbers[k] < 9e15, numbers[k] == numbers[k].rounded() else { throw damaged }
    }
    guard numbers[0] == 1 else { throw damaged }
    (step, skipped, calls) = (Int(numbers[1]), Int(numbers[2]), Int(numbers[3]))
    for i in 0..<n {
      let x = Int(numbers[Optimizer.head + i])
      (records[i].t, records[i].started) = (x / 2, x % 2 == 1)
    }
    var at = numbers + Optimizer.head + n
    for r in scalarRegions {
      r.base.copyMemory(from: at, byteCount: r.bytes)
      at += r.bytes / 8
    }
    for m in remembering {
      let count = memory(m).count, values = Array(UnsafeBufferPointer(start: at, count: count))
      guard schedule(m)?.takes(values[...]) == count else { throw damaged }
      put(values, m)
      at += count
    }
  }

  private func give(_ numbers: UnsafeMutablePointer<Double>) {
    let n = bound.count
    (numbers[0], numbers[1], numbers[2], numbers[3]) = (1, Double(step), Double(skipped), Double(calls))
    for i in 0..<n { numbers[Optimizer.head + i] = Double(2 * records[i].t + (records[i].started ? 1 : 0)) }
    var at = numbers + Optimizer.head + n
    for r in scalarRegions {
      at.update(from: r.base.assumingMemoryBound(to: Double.self), count: r.bytes / 8)
      at += r.bytes / 8
    }
    for m in remembering {
      for x in memory(m) {
        at.pointee = x
        at += 1
      }
    }
  }
}
