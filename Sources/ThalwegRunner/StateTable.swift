import CThalweg
import ThalwegCore

/// The state as it is seen from outside: one row a buffer, known before it is allocated.
extension Optimizer {
  struct StateRow {
    enum Kind: Equatable { case slot(Int), master, training, place, written, dense, before(Int) }
    var tensor: Int
    var stage: Stage
    var slot: Slot
    var kind: Kind
    var format: SlotStore.Format
  }

  /// Made once for the tensors that are bound: callers ask for one row after the other.
  func allStateRows() -> [StateRow] {
    if listed.tensors == bound.count { return listed.rows }
    var rows: [StateRow] = []
    for i in 0..<bound.count {
      for (k, row) in stateRows(i).enumerated() where !isVacant(row.stage, row.slot, bound[i]) {
        rows.append(StateRow(tensor: i, stage: row.stage, slot: row.slot, kind: .slot(k), format: row.format))
      }
      if needsMaster(bound[i]), let first = stages.first {
        rows.append(
          StateRow(
            tensor: i, stage: first, slot: Slot("master", "the parameters in float32"), kind: .master, format: .direct))
      }
    }
    listed = (bound.count, rows)
    return rows
  }
  /// The training weights, which the optimizer keeps in evaluation mode.
  func trainingRows() -> [StateRow] {
    guard let first = stages.first else { return [] }
    return (0..<bound.count).map {
      StateRow(
        tensor: $0, stage: first, slot: Slot("training", "the training weights"), kind: .training, format: .direct)
    }
  }

  /// The parameters of a tensor where the waiting request has them.
  func placeRow(_ i: Int) -> StateRow? {
    stages.first.map {
      StateRow(
        tensor: i, stage: $0, slot: Slot("place", "where a request has the parameters"), kind: .place, format: .direct)
    }
  }

  /// What the host had written over the view of a tensor before the step, and the stored tensor as it was then.
  func writtenRows(_ i: Int) -> [StateRow] {
    guard let first = stages.first else { return [] }
    return [
      StateRow(
        tensor: i, stage: first, slot: Slot("written", "the parameters before the step"), kind: .written,
        format: .direct),
      StateRow(
        tensor: i, stage: first, slot: Slot("dense", "the stored tensor before the step"), kind: .dense, format: .direct
      ),
    ]
  }

  /// The lasting state of sources that others ask, as it was before the step.
  func beforeRows() -> [StateRow] {
    lastingRows.enumerated().map { k, row in
      StateRow(tensor: row.tensor, stage: row.stage, slot: row.slot, kind: .before(k), format: row.format)
    }
  }

  /// Allocates the state for somebody who looks at it. What has not started yet shows the parameters as they stand now;
  /// nothing is fixed by that.
  func allocated() throws(Failure) {
    try prepare()
    for i in 0..<bound.count where !records[i].started { readStart(i) }
  }

  /// Where a row lies; the training weights only in evaluation mode.
  func storage(_ row: StateRow) -> (base: UnsafeMutableRawPointer, bytes: Int) {
    let r = records + row.tensor, nothing = UnsafeMutableRawPointer(StepContext.nothing)
    let base: UnsafeMutableRawPointer
    switch row.kind {
    case .slot(let k): base = r.pointee.slots[k].base
    case .master: base = r.pointee.master ?? nothing
    case .training: base = row.tensor < backup.count ? backup[row.tensor].base : nothing
    case .place: base = places.first { $0.tensor == row.tensor }?.bits.base ?? nothing
    case .written: base = written.first { $0.tensor == row.tensor }?.bits.base ?? nothing
    case .before(let k): base = k < stateCopies.count ? stateCopies[k].base : nothing
    case .dense: base = written.first { $0.tensor == row.tensor }?.dense.base ?? nothing
    }
    return (base, stateBytes(row))
  }
  /// How many numbers a row of state holds.
  func elements(_ row: StateRow) -> Int { row.slot.elements(of: bound[row.tensor].view.count) }
  func stateBytes(_ row: StateRow) -> Int {
    let v = bound[row.tensor].view
    switch row.kind {
    case .slot, .before: return SlotStore.bytes(row.format, elements(row), v.dtype.computeSize)
    case .master: return v.count * 4
    case .training, .place, .written: return v.count * v.dtype.size
    case .dense: return v.count * v.dtype.computeSize
    }
  }

  func widen(_ row: StateRow, _ out: UnsafeMutablePointer<Double>) {
    let n = elements(row), s = storage(row).base
    if row.format == .direct {
      if records[row.tensor].isDouble {
        for i in 0..<n { out[i] = s.assumingMemoryBound(to: Double.self)[i] }
      } else {
        for i in 0..<n { out[i] = Double(s.assumingMemoryBound(to: Float.self)[i]) }
      }
      return
    }
    let store = SlotStore(base: s, format: row.format)
    var block = [Float](repeating: 0, count: EightBit.block)
    for i in stride(from: 0, to: n, by: EightBit.block) {
      let c = min(EightBit.block, n - i)
      store.widen(n, i, c, &block)
      for k in 0..<c { out[i + k] = Double(block[k]) }
    }
  }

  package struct StateDescription {
    package let stage: String, slot: String
    package let tensor: Int, count: Int, bytes: Int
    package let storage: Int32
  }
  package var stateCount: Int { allStateRows().count }
  /// Throws when there is no such row.
  package func describeState(_ index: Int) throws(Failure) -> StateDescription {
    let rows = allStateRows()
    guard index >= 0, index < rows.count else {
      throw Failure(Status.argument, "`index` must be below \(rows.count), got \(UInt(bitPattern: index))")
    }
    let row = rows[index], b = bound[row.tensor]
    let storage: Int32 = row.format == .direct ? (b.view.dtype == .f64 ? 0 : 1) : row.format == .bf16 ? 2 : 3
    return StateDescription(
      stage: row.kind == .master ? "engine" : row.stage.name, slot: row.slot.name, tensor: row.tensor,
      count: elements(row),
      bytes: stateBytes(row), storage: storage)
  }
  package func readState(_ index: Int, _ out: UnsafeMutablePointer<Double>) throws(Failure) {
    _ = try describeState(index)
    let row = allStateRows()[index]
    try prepare()
    if !records[row.tensor].started { readStart(row.tensor) }
    if row.slot.temporary, phase < 0 {
      // between steps it holds rubbish, which nobody should compare
      out.update(repeating: 0, count: elements(row))
      return
    }
    widen(row, out)
  }
}
