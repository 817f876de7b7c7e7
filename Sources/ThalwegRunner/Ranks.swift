import CThalweg
import ThalwegCore

/// The other processes that a model is spread over, as the host adds up numbers for it.
package struct Ranks {
  /// What a rank holds of the tensors.
  package enum Shards: Int32 { case tensors = 1, elements }
  let reducer: tw_reducer
  let context: UnsafeMutableRawPointer?
  let shards: Shards
  /// Which of the ranks this one is, as far as the host has said: its tensors draw other random numbers than those of
  /// the others.
  let number: Int
  package init(
    _ reducer: @escaping tw_reducer, _ context: UnsafeMutableRawPointer?, _ shards: Shards, number: Int = 0
  ) {
    (self.reducer, self.context, self.shards, self.number) = (reducer, context, shards, number)
  }
}

/// Sums over tensors, or over the elements of one, that lie on several ranks. A rank sums up what it holds; here the
/// host adds up the sums of all, in the same order of calls on each of them.
extension Optimizer {
  package func setRanks(_ new: Ranks?) throws(Failure) {
    guard phase < 0 else {
      throw Failure(Status.sequence, "a step is under way: answer its requests, or cancel it")
    }
    if new?.shards == .elements, let s = stages.first(where: { $0.whole != nil }) {
      throw Failure(
        Status.unsupported,
        "\(s.name) works on whole tensors: it cannot have their elements on several ranks; gather the tensor on one "
          + "of them, and say that ranks hold whole tensors")
    }
    (ranks, rankFailure, counts, risk) = (new, nil, [], nil)
    for i in 0..<bound.count where records[i].t == 0 { records[i].key = drawKey(i) }
  }

  /// What the random draws of tensor i go by. On several ranks the high bits tell them apart.
  func drawKey(_ i: Int) -> UInt32 { UInt32(truncatingIfNeeded: i &+ (ranks?.number ?? 0) << 18) }

  /// Tensors have parts elsewhere.
  var sharesElements: Bool { ranks?.shards == .elements }

  /// Adds rows of totals, each with its maximum, to those of the other ranks. The first error is kept, and thrown
  /// before the step is done.
  func addRanks(_ rows: UnsafeMutablePointer<Double>, _ count: Int) {
    guard let ranks, rankFailure == nil else { return }
    // a maximum may be NaN, which those of other ranks must not hide: such rows are counted
    let width = Sums.top + 1
    reduced.removeAll(keepingCapacity: true)
    for k in 0..<count {
      let row = rows + k * Sums.count
      for j in 0..<Sums.top { reduced.append(row[j]) }
      reduced.append(row[Sums.top].isNaN ? 1 : 0)
    }
    for k in 0..<count {
      let top = rows[k * Sums.count + Sums.top]
      reduced.append(top.isNaN ? 0 : top)
    }
    let status = reduced.withUnsafeMutableBufferPointer { all in
      all.baseAddress.map { ranks.reducer(ranks.context, $0, count * width, $0 + count * width, count) } ?? 0
    }
    guard status >= 0 else {
      rankFailure = Failure(
        Int(status), "the sums of the ranks could not be added: the reducer returned \(status); nothing was changed")
      return
    }
    for k in 0..<count {
      let row = rows + k * Sums.count
      for j in 0..<Sums.top { row[j] = reduced[k * width + j] }
      row[Sums.top] = reduced[k * width + Sums.top] > 0 ? .nan : reduced[count * width + k]
    }
  }

  /// The same of a list of numbers.
  func addRanks(_ values: inout [Double]) {
    guard ranks != nil else { return }
    let count = (values.count + Sums.top - 1) / Sums.top
    var rows = [Double](repeating: 0, count: count * Sums.count)
    func place(_ k: Int) -> Int { k / Sums.top * Sums.count + k % Sums.top }
    for k in values.indices { rows[place(k)] = values[k] }
    rows.withUnsafeMutableBufferPointer { all in if let base = all.baseAddress { addRanks(base, count) } }
    for k in values.indices { values[k] = rows[place(k)] }
  }

  func checkRanks() throws(Failure) {
    if let f = rankFailure {
      rankFailure = nil
      throw f
    }
  }

  /// How many elements the tensors have on all ranks together; asked once, and anew when tensors come.
  func countRanks() throws(Failure) {
    guard sharesElements, counts.count != bound.count else { return }
    for i in 0..<bound.count {
      for k in 0..<Sums.count { totals[i * Sums.count + k] = k == 0 ? Double(records[i].count) : 0 }
    }
    addRanks(totals, bound.count)
    try checkRanks()
    counts = (0..<bound.count).map { counted(totals[$0 * Sums.count], most: 1 << 52) }
  }

  /// Ends the sums that a pass took of single tensors, where every rank holds a part of each.
  func finishTensors(_ segment: Int, _ position: Int) {
    var rows = 0
    for i in 0..<bound.count where measures(segment, position, i) {
      total(records + i, totals + rows * Sums.count)
      rows += 1
    }
    if rows == 0 { return }
    addRanks(totals, rows)
    rows = 0
    for i in 0..<bound.count where measures(segment, position, i) {
      finishTensor(branches[records[i].branch].segments[segment][position], i, totals + rows * Sums.count)
      rows += 1
    }
  }
  /// A pass sums up this tensor by itself.
  private func measures(_ segment: Int, _ position: Int, _ i: Int) -> Bool {
    let passes = branches[records[i].branch].segments
    guard records[i].active, segment < passes.count, position < passes[segment].count,
      let (s, p) = passes[segment][position].measured
    else { return false }
    return s.reach[p] == .tensor && s.element != nil
  }
}
