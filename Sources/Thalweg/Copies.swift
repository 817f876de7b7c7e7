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
  func copyAtHome(_ i: Int) throws(Failure) -> Memory {
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
}
