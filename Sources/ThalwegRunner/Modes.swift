import CThalweg
import ThalwegCore

/// Training and evaluation weights.
extension Optimizer {
  /// Writes the evaluation weights into the parameters, or puts the training weights back bit for bit.
  package func setMode(evaluate: Bool) throws(Failure) {
    guard evaluate != evaluating else { return }
    guard phase < 0 else { throw Failure(Status.sequence, "the mode cannot change between the requests of a step") }
    if !evaluate {
      for (i, m) in backup.enumerated() { restoreParameters(i, m) }
      backup = []
      evaluating = false
      return
    }
    try prepare()
    try noticeAhead(always: true)
    written = []
    // what was written is known now: when it is written back, that is another write
    for i in 0..<bound.count where records[i].marked { markAll(records + i) }
    var copies: [Memory] = []
    for i in 0..<bound.count { copies.append(try copyOfParameters(i)) }
    let parts = (0..<bound.count).map { records[$0].active }
    for i in 0..<bound.count { records[i].active = true }
    defer { for (i, active) in parts.enumerated() { records[i].active = active } }
    for i in 0..<bound.count {
      let r = records + i
      let branch = branches[r.pointee.branch]
      r.pointee.rules = r.pointee.ownRules
      for s in branch.stages where s.element?.evaluates ?? false {
        var c = context0(s, i)
        c.t = r.pointee.t
        s.element?.prepare(s.hyper[r.pointee.group], c, r.pointee.rules[s.id])
      }
    }
    forEach { p, r in
      guard r.pointee.t > 0, let s = self.branches[r.pointee.branch].evaluator, let e = s.element else { return }
      let x = p.hostParameters()
      p.run(e.evaluate, s.id, Apply(), x, x, changes: false)
      p.closeHost(x)
    }
    do throws(Failure) {
      for i in 0..<bound.count where records[i].t > 0 && records[i].count > 0 {
        let r = records + i
        guard let s = branches[r.pointee.branch].evaluator, s.whole != nil, let v = r.pointee.scratch,
          let space = workspaces.first
        else { continue }
        Optimizer.readParameters(r, v)
        _ = context0(s, i)
        try callWhole(s, i, v, companion: v, space.base, evaluating: true)
        r.pointee.x.write(0, r.pointee.count, from: v, size: r.pointee.size, rounding: nil)
      }
    } catch {
      for (i, m) in copies.enumerated() { restoreParameters(i, m) }
      throw error
    }
    backup = copies
    evaluating = true
  }

  func context0(_ s: Stage, _ i: Int) -> StepContext {
    if decayOf.count != groups.count * branches.count {
      decayOf = [Double](repeating: 0, count: groups.count * branches.count)
      peakOf = [Double](repeating: .nan, count: decayOf.count)
    }
    return context(s, branches[records[i].branch], i)
  }
}
