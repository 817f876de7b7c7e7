import ThalwegCore

/// Stages behind the move that look at all their tensors before they change one.
extension Optimizer {
  /// Lets those look that stand at a segment, ranks that have no tensor for them included.
  func gather(_ segment: Int) throws(Failure) {
    var seen: [Int] = []
    for branch in branches where segment < branch.segments.count {
      guard let s = branch.segments[segment].first?.stage, s.gathers, !seen.contains(s.id) else { continue }
      seen.append(s.id)
      // in the order in which they came, which a checkpoint keeps: whoever binds them again may do so in another
      let tensors = (0..<bound.count).filter { i in
        records[i].active && records[i].count > 0 && branches[records[i].branch].stages.contains { $0 === s }
      }.sorted { (records[$0].key, $0) < (records[$1].key, $1) }
      try s.whole?.gather(AllTensors(Gathered(optimizer: self, stage: s, tensors: tensors)))
    }
  }

  private struct Gathered: AllTensorsHost {
    let optimizer: Optimizer, stage: Stage, tensors: [Int]
    private func record(_ k: Int) -> UnsafeMutablePointer<Record> { optimizer.records + tensors[k] }

    var count: Int { tensors.count }
    func hyper(_ k: Int) -> Hyper { stage.hyper[record(k).pointee.group] }
    func numbers(_ k: Int) -> UnsafeMutablePointer<Double> { record(k).pointee.scalars[stage.id] }
    func shape(_ k: Int) -> Shape { optimizer.bound[tensors[k]].shape }
    func memory(_ k: Int) -> (list: [UnsafeMutableRawPointer], isDouble: Bool, shape: Shape) {
      let r = record(k)
      let dense = r.pointee.master ?? r.pointee.plain
      if dense == nil, let scratch = r.pointee.scratch { Optimizer.readParameters(r, scratch) }
      let slots = (0..<r.pointee.used(stage.id)).map { r.pointee.slot(stage.id, $0).base }
      let list = (dense ?? r.pointee.scratch).map { [$0] + slots } ?? []
      return (list, r.pointee.isDouble, shape(k))
    }
    var hasRanks: Bool { optimizer.ranks != nil }
    func addRanks(_ values: inout [Double]) { optimizer.addRanks(&values) }
  }
}
