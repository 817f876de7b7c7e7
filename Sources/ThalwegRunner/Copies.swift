import CThalweg
import ThalwegCore

/// Copies of parameters and state, for steps that may fail or be broken off.
extension Optimizer {
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

  /// Where the state lies that a step may have changed when it fails: that of the tensors at risk, and numbers.
  private func stateAtRisk(_ tensors: [Int]) -> [Region] {
    if tensors.count == bound.count {
      return arenas.map { ($0.base, $0.size) } + (carriage == .working ? allStateRows().map(storage) : [])
    }
    var isListed = [Bool](repeating: false, count: bound.count)
    for i in tensors { isListed[i] = true }
    let rows = allStateRows().filter { isListed[$0.tensor] && !$0.slot.temporary }
    // of each pair of arenas the second holds rules and numbers
    return stride(from: 1, to: arenas.count, by: 2).map { (arenas[$0].base, arenas[$0].size) } + rows.map(storage)
  }

  /// Copies of the parameters and the state that a step which fails may have changed by then.
  func takeSnapshot() throws(Failure) {
    hasSnapshot = false
    let tensors = atRisk(), state = stateAtRisk(tensors)
    var used = 0
    func room(_ bytes: Int) throws(Failure) -> UnsafeMutableRawPointer {
      defer { used += 1 }
      if used < snapshot.count {
        if snapshot[used].size != bytes { snapshot[used] = try Memory(bytes, allocator, zeroed: false) }
      } else {
        snapshot.append(try Memory(bytes, allocator, zeroed: false))
      }
      return snapshot[used].base
    }
    for a in state { try room(a.bytes).copyMemory(from: a.base, byteCount: a.bytes) }
    for s in stages where !s.scalars.isEmpty {
      let bytes = s.scalars.count * 8
      try room(bytes).copyMemory(from: s.globals, byteCount: bytes)
    }
    for i in tensors {
      let m = try room(records[i].count * records[i].x.dtype.size)
      if records[i].away != 0 { try copyAtHome(i, to: m) } else { copyParameters(i, to: m) }
      if let shadow = records[i].shadow {
        shadow.gather(0, records[i].count, try room(records[i].count * shadow.dtype.size))
      }
    }
    snapshot.removeSubrange(used...)
    (snapshotState, hasSnapshot) = (state, true)
    snapshotTensors = tensors.map { ($0, records[$0].shadow != nil) }
  }
  /// The bits of a tensor where the host left it, while its parameters are away.
  private func copyAtHome(_ i: Int, to m: UnsafeMutableRawPointer) throws(Failure) {
    let here = try copyOfParameters(i), away = records[i].away
    comeHome(i)
    copyParameters(i, to: m)
    restoreParameters(i, here)
    records[i].away = away
  }
  /// Puts the copies back. `home`: tensors whose parameters stand where they stood before the step already.
  func restoreSnapshot(home: Set<Int>) {
    guard hasSnapshot else { return }
    hasSnapshot = false
    var k = 0
    for a in snapshotState { a.base.copyMemory(from: snapshot[k].base, byteCount: a.bytes); k += 1 }
    for s in stages where !s.scalars.isEmpty {
      UnsafeMutableRawPointer(s.globals).copyMemory(from: snapshot[k].base, byteCount: s.scalars.count * 8)
      k += 1
    }
    for (i, hadShadow) in snapshotTensors {
      if !home.contains(i) { restoreParameters(i, snapshot[k]) }
      k += 1
      if !hadShadow { continue }
      if let shadow = records[i].shadow { restore(shadow, records[i].count, snapshot[k]) }
      k += 1
    }
  }

  /// The bits of a tensor's elements, densely.
  func copyOfParameters(_ i: Int) throws(Failure) -> Memory {
    let m = try Memory(records[i].count * records[i].x.dtype.size, allocator, zeroed: false)
    copyParameters(i, to: m.base)
    return m
  }
  private func copyParameters(_ i: Int, to m: UnsafeMutableRawPointer) { records[i].x.gather(0, records[i].count, m) }
  func restoreParameters(_ i: Int, _ m: Memory) { restore(records[i].x, records[i].count, m) }
  private func restore(_ there: Layout, _ count: Int, _ m: Memory) {
    let size = there.dtype.size
    there.forEachRun(0, count) { offset, stride, first, n in
      if stride == 1 {
        (there.data + offset * size).copyMemory(from: m.base + first * size, byteCount: n * size)
      } else {
        for k in 0..<n {
          (there.data + (offset + k * stride) * size).copyMemory(from: m.base + (first + k) * size, byteCount: size)
        }
      }
    }
  }
}

/// When within a step it may fail, and which tensors it has changed by then.
extension Optimizer {
  /// The places of a step in their order: of each segment strips, whole-tensor stages, walks.
  private static func place(_ segment: Int, _ part: Int) -> Int { 3 * segment + part }

  /// The last place at which a step may fail: in a stage that may, or where sums of ranks are added. −1: nowhere.
  private var lastFailure: Int {
    var last = -1
    for b in branches {
      for (k, segment) in b.segments.enumerated() {
        for pass in segment {
          if let s = pass.stage, s.mayFail || s.gathers { last = max(last, Optimizer.place(k, 1)) }
          if ranks != nil, let (s, p) = pass.measured, sharesElements || s.reach[p] == .global {
            last = max(last, Optimizer.place(k, 2))
          }
        }
      }
    }
    return last
  }

  /// The tensors of which something has changed where a step may fail last.
  private func atRisk() -> [Int] {
    if let risk { return risk }
    let found = findAtRisk()
    risk = found
    return found
  }
  private func findAtRisk() -> [Int] {
    let last = lastFailure
    if last < 0, sources.isEmpty { return [] }
    return (0..<bound.count).filter { i in
      // (what sources move comes home; the one that decides changes its lasting state before the update)
      if sources.contains(where: { s in uses(s, bound[i]) && slots(s, bound[i]).contains { !$0.temporary } }) {
        return true
      }
      let stripped = records[i].stripped
      for (k, segment) in branches[records[i].branch].segments.enumerated() {
        let isStripped = stripped.contains(k)
        for pass in segment {
          let place =
            isStripped ? Optimizer.place(stripped.lowerBound, 0) : Optimizer.place(k, pass.isWhole ? 1 : 2)
          if place <= last, changes(pass, bound[i]) { return true }
        }
      }
      return false
    }
  }
  /// It changes a tensor or its state, and not scratch memory alone.
  private func changes(_ pass: Branch.Pass, _ b: Bound) -> Bool {
    let readers = pass.chain + pass.updates
    switch pass.work {
    case .measure(let s, _): return (readers + [s]).contains { !slots($0, b).isEmpty }
    case .materialise: return readers.contains { !slots($0, b).isEmpty }
    default: return true
    }
  }
}
