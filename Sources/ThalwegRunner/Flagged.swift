import ThalwegCore

/// Sources that touch the tensors of some groups alone: those whose flag is set. Other tensors have no memory for what
/// such a source needs within a step.
extension Optimizer {
  /// The hyper-parameters of a stage and a group that a checkpoint which is being read will give.
  typealias Coming = (Stage, Int) -> Hyper

  /// Whether a source of the stage touches a tensor.
  func touches(_ s: Stage, _ b: Bound) -> Bool {
    guard let k = s.flag else { return true }
    return (coming?(s, b.group) ?? s.hyper[b.group]).numbers[k] == 1
  }
  /// Whether memory for a slot comes and goes with the flag: nothing in it outlives a step.
  private func depends(_ s: Stage, _ slot: Slot) -> Bool { s.flag != nil && slot.temporary }
  /// Whether a tensor has no memory for a slot.
  func isVacant(_ s: Stage, _ slot: Slot, _ b: Bound) -> Bool { depends(s, slot) && !touches(s, b) }
  /// Whether the memory for a slot is that of `placeFlagged`.
  func isPlacedApart(_ s: Stage, _ slot: Slot) -> Bool { carriage != .working && depends(s, slot) }

  /// Memory for the temporary slots of the tensors that are flagged now: between steps, where nothing lies in it.
  func placeFlagged() throws(Failure) {
    let choosy = sources.filter { $0.flag != nil }
    guard !choosy.isEmpty, phase < 0, carriage != .working else { return }
    let now = choosy.map { s in bound.map { uses(s, $0) && touches(s, $0) } }
    if now == flagged { return }
    func each(_ body: (_ tensor: Int, _ k: Int, _ row: (stage: Stage, slot: Slot, format: SlotStore.Format)) -> Void) {
      for i in 0..<bound.count {
        for (k, row) in stateRows(i).enumerated() where depends(row.stage, row.slot) { body(i, k, row) }
      }
    }
    func bytes(_ i: Int, _ slot: Slot, _ format: SlotStore.Format) -> Int {
      aligned(SlotStore.bytes(format, slot.elements(of: bound[i].view.count), bound[i].view.dtype.computeSize))
    }
    var size = 0
    each { i, _, row in if touches(row.stage, bound[i]) { size += bytes(i, row.slot, row.format) } }
    flagged = []  // where this throws, the next step asks again
    flaggedMemory = nil
    let memory = try Memory(size, allocator)
    var at = memory.base
    each { i, k, row in
      let r = records + i, source = sources.firstIndex { $0 === row.stage }, isHere = touches(row.stage, bound[i])
      r.pointee.slots[k].base = isHere ? at : UnsafeMutableRawPointer(StepContext.nothing)
      if let source, row.slot.home { r.pointee.homes[source] = isHere ? at : nil }
      guard isHere else { return }
      Optimizer.start(r, r.pointee.slots + k, row.slot)
      at += bytes(i, row.slot, row.format)
    }
    (flagged, flaggedMemory) = (now, memory)
  }

  /// A source that touches flagged tensors alone, and has none, would do nothing. (Another rank may have some.)
  func refuseNoneFlagged() throws(Failure) {
    for s in sources where ranks == nil {
      guard let k = s.flag, !bound.contains(where: { uses(s, $0) && touches(s, $0) }) else { continue }
      let p = s.hyper[0].parameters[k]
      throw Failure(
        Status.sequence,
        "\(s.name): no tensor is flagged, and without one it does nothing; `\(p.name)` (\(p.meaning)) is false in "
          + "every parameter group: set `\(s.name).\(p.name)` to true in the group of those that it is to touch")
    }
  }
}
