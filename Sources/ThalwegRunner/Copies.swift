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

  /// Where all state lies.
  private var stateRegions: [Region] {
    arenas.map { ($0.base, $0.size) } + (carriage == .working ? allStateRows().map(storage) : [])
  }

  /// Copies of all parameters and state, for steps that may fail half way.
  func takeSnapshot() throws(Failure) {
    hasSnapshot = false
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
    for a in stateRegions { try room(a.bytes).copyMemory(from: a.base, byteCount: a.bytes) }
    for s in stages where !s.scalars.isEmpty {
      let bytes = s.scalars.count * 8
      try room(bytes).copyMemory(from: s.globals, byteCount: bytes)
    }
    for i in 0..<bound.count {
      let m = try room(records[i].count * records[i].x.dtype.size)
      if records[i].away != 0 { try copyAtHome(i, to: m) } else { copyParameters(i, to: m) }
    }
    snapshot.removeSubrange(used...)
    hasSnapshot = true
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
    for a in stateRegions { a.base.copyMemory(from: snapshot[k].base, byteCount: a.bytes); k += 1 }
    for s in stages where !s.scalars.isEmpty {
      UnsafeMutableRawPointer(s.globals).copyMemory(from: snapshot[k].base, byteCount: s.scalars.count * 8)
      k += 1
    }
    for i in 0..<bound.count {
      if !home.contains(i) { restoreParameters(i, snapshot[k]) }
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
}
