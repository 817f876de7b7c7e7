import ThalwegCore

/// Gradients that a source keeps until the step ends: read where the host has them, if it says that they stay, copied
/// else; and their inner products.
extension Optimizer {
  /// A slot that stands for memory of the host, and its own memory.
  struct Loan {
    let stage: Int, slot: Int
    let store: UnsafeMutablePointer<SlotStore>
    let own: UnsafeMutableRawPointer
  }

  /// The gradient goes into a slot.
  func keep(_ slot: Int, of stage: Stage, reads: Bool) {
    let lends = reads && gradientsStay && incoming == nil && !options.consumeGradients
    func isLent(_ r: UnsafeMutablePointer<Record>) -> Bool {
      lends && r.pointee.present && r.pointee.g.dense && r.pointee.g.dtype == (r.pointee.isDouble ? .f64 : .f32)
        && r.pointee.apply.scale == 1
    }
    endLoans { $0.stage == stage.id && $0.slot == slot }  // of an earlier round of this step
    forEach(of: stage) { p, r in
      if !isLent(r) {
        change(p, r, stage, [slot], false, r.pointee.isDouble ? Optimizer.saves.f64 : Optimizer.saves.f32)
      }
    }
    for i in 0..<bound.count where takesPart(i, stage) && isLent(records + i) {
      let r = records + i, store = r.pointee.slots + Int(r.pointee.firstSlot[stage.id]) + slot
      loans.append(Loan(stage: stage.id, slot: slot, store: store, own: store.pointee.base))
      store.pointee.base = r.pointee.g.data
    }
  }
  private static let saves: WalkKernel = (
    plainKernel(SaveGradient(), SIMD16<Float>.self, writesX: false, writesG: false),
    plainKernel(SaveGradient(), SIMD8<Double>.self, writesX: false, writesG: false)
  )

  /// Slots are the optimizer's own again.
  func endLoans(where ended: (Loan) -> Bool = { _ in true }) {
    if loans.isEmpty { return }
    loans.removeAll { loan in
      guard ended(loan) else { return false }
      loan.store.pointee.base = loan.own
      return true
    }
  }

  /// What was answered is looked at when its inner products are taken, not before.
  var looksLater: Bool {
    gradientsStay && ranks == nil && !needsFiniteParameters && waitingScope == nil
      && stack.last.flatMap(stage)?.source?.findsNonfinite ?? false
  }

  // MARK: inner products

  /// Squares within these are far from what floats lose.
  private static let safe = 1e-25...1e30

  /// Those of all pairs of slots, over all tensors that take part.
  func innerProducts(_ slots: [Int], of stage: Stage) throws(Failure) -> [[Double]] {
    let exact = elements < InnerProducts.exactBelow
    var sums = try innerProducts(slots, stage, exact: exact)
    // (all ranks do the same, whatever each holds)
    if !exact || ranks != nil, !slots.indices.allSatisfy({ Optimizer.safe.contains(sums[$0 * ($0 + 3) / 2]) }) {
      sums = try innerProducts(slots, stage, exact: true)
    }
    // (a host whose answers stay has not had them looked at; of others nothing is found)
    if !slots.indices.allSatisfy({ sums[$0 * ($0 + 3) / 2].isFinite }) { try lookAtKept(slots, stage) }
    return slots.indices.map { i in slots.indices.map { j in sums[max(i, j) * (max(i, j) + 1) / 2 + min(i, j)] } }
  }

  /// The lower triangle, row by row.
  private func innerProducts(_ slots: [Int], _ stage: Stage, exact: Bool) throws(Failure) -> [Double] {
    var parts: [(tensor: Int, start: Int, count: Int)] = []
    for i in 0..<bound.count where takesPart(i, stage) && uses(stage, bound[i]) {
      for start in stride(from: 0, to: records[i].count, by: Optimizer.part) {
        parts.append((i, start, min(Optimizer.part, records[i].count - start)))
      }
    }
    let m = slots.count
    func line(_ i: Int) -> Int { i * (i + 1) / 2 }
    // in so many rows at once as keep the sums of the parts small
    var all: [Double] = [], first = 0
    while first < m {
      var end = min(first + 4, m)
      while end < m, max(1, parts.count) * (line(min(end + 4, m)) - line(first)) <= 1 << 22 { end = min(end + 4, m) }
      let width = line(end) - line(first)
      let memory = try Memory(8 * max(1, parts.count) * width, allocator)
      let sums = memory.base.bindMemory(to: Double.self, capacity: max(1, parts.count) * width)
      Threads.run(parts.count, parallel: elements >= Walker.parallelFrom) { k in
        let part = parts[k], r = records + part.tensor
        func add<T: Real>(_: T.Type) {
          let rows = slots.map {
            UnsafePointer(r.pointee.slot(stage.id, $0).base.assumingMemoryBound(to: T.self) + part.start)
          }
          InnerProducts.add(rows, from: first, to: end, part.count, exact: exact, into: sums + k * width)
        }
        if r.pointee.isDouble { add(Double.self) } else { add(Float.self) }
      }
      all += totals(of: parts.map(\.tensor), sums, width)
      first = end
    }
    addToRanks(&all)
    return all
  }
  private static let part = 1 << 16

  /// Sums of parts: those of a tensor in order, the tensors in the order of their size, so that the order of binding
  /// does not matter.
  private func totals(of tensors: [Int], _ sums: UnsafeMutablePointer<Double>, _ width: Int) -> [Double] {
    var starts = tensors.indices.filter { $0 == 0 || tensors[$0] != tensors[$0 - 1] }
    starts.append(tensors.count)
    var column: [Double] = []
    return (0..<width).map { pair in
      column.removeAll(keepingCapacity: true)
      for (from, to) in zip(starts, starts.dropFirst()) {
        column.append((from..<to).reduce(0) { $0 + sums[$1 * width + pair] })
      }
      column.withUnsafeMutableBufferPointer { Optimizer.order($0) }
      return column.reduce(0, +)
    }
  }

  private func addToRanks(_ sums: inout [Double]) {
    guard ranks != nil else { return }
    let four = Sums.scaled, rows = (sums.count + four - 1) / four
    var packed = [Double](repeating: 0, count: rows * Sums.count)
    for k in sums.indices { packed[k / four * Sums.count + k % four] = sums[k] }
    packed.withUnsafeMutableBufferPointer { if let p = $0.baseAddress { addRanks(p, rows) } }
    for k in sums.indices { sums[k] = packed[k / four * Sums.count + k % four] }
  }

  /// Refuses the step where an element of a slot is NaN or infinite.
  private func lookAtKept(_ slots: [Int], _ stage: Stage) throws(Failure) {
    for (k, slot) in slots.enumerated() {
      let counts = sums([Optimizer.counts], stage: stage, slots: [slot])
      for i in 0..<bound.count where counts[i][0] > 0 {
        throw refusedGradient("\(label("gradient", i)) of task \(k)", Int(counts[i][0]))
      }
    }
  }
  private static let counts: WalkMeasure = (
    plainMeasure(NonFiniteSlot(), SIMD16<Float>.self), plainMeasure(NonFiniteSlot(), SIMD8<Double>.self)
  )
}

/// Elements of a slot that are NaN or infinite.
private struct NonFiniteSlot: ElementSum {
  @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, NonFiniteCount.count(s[0]))
  }
}
