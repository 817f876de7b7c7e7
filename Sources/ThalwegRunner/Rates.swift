import CThalweg
import ThalwegCore

/// The numbers of a step: step sizes by group and pipeline, scalars, the rule of every stage and tensor.
extension Optimizer {
  /// What the host's gradients are multiplied by.
  var scale: Double { (options.maximize ? -1 : 1) * options.gradientScale }

  /// Rule numbers for this step: evaluates schedules, advances scalars, makes every stage's rule.
  func context(_ s: Stage, _ branch: Branch, _ i: Int) -> StepContext {
    let r = records + i
    var c = StepContext()
    c.t = s === branch.rule ? ruleStep(branch, r.pointee.t + 1, r.pointee.group) : r.pointee.t + 1
    c.step = step
    // A source that sets the step size changes the move and what follows it; rules go on as if it had not.
    let plain = stepSize == nil || s.role == .after
    c.lr = plain ? r.pointee.apply.lr : rate(of: i).lr
    c.keep = plain ? r.pointee.apply.keep : 1 - c.lr * r.pointee.decay
    (c.decay, c.masksDecay) = (r.pointee.decay, branch.masksDecay)
    c.weightDecay = decayOf[r.pointee.group * branches.count + r.pointee.branch]
    let shape = bound[i].shape
    (c.ndim, c.count, c.rows, c.columns, c.role) = (shape.ndim, shape.count, shape.rows, shape.columns, shape.role)
    if i < counts.count { c.count = counts[i] }
    (c.tensor, c.seed, c.stream) = (Int(r.pointee.key), options.seed, UInt32(s.id))
    c.loss = options.maximize ? -loss : loss
    c.isDouble = r.pointee.isDouble
    c.scalars = r.pointee.scalars[s.id]
    c.slots = r.pointee.used(s.id)
    if i < inGroup.count { c.inGroup = inGroup[i] }
    if branch.hasDecayStages { c.peak = peakOf[r.pointee.group * branches.count + r.pointee.branch] }
    return c
  }
  /// The step that the rule counts: its own since the last restart.
  func ruleStep(_ branch: Branch, _ t: Int, _ group: Int) -> Int {
    branch.after.reduce(t) { $1.element?.ruleStep($0, $1.hyper[group]) ?? $0 }
  }
  /// Starts the rule of a tensor afresh where a stage behind it says so.
  func restart(_ i: Int) {
    let r = records + i
    let branch = branches[r.pointee.branch], s = branch.rule
    guard !branch.after.isEmpty,
      ruleStep(branch, r.pointee.t + 2, r.pointee.group) <= ruleStep(branch, r.pointee.t + 1, r.pointee.group)
    else { return }
    for (k, slot) in slots(s, bound[i]).enumerated() {
      let store = r.pointee.slots + Int(r.pointee.firstSlot[s.id]) + k
      let bytes = SlotStore.bytes(store.pointee.format, slot.elements(of: r.pointee.count), r.pointee.size)
      store.pointee.base.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
      Optimizer.start(r, store, slot)
    }
    for (k, x) in s.scalars.enumerated() { r.pointee.scalars[s.id][k] = x.start }
  }
  func rate(of tensor: Int) -> (lr: Double, decay: Double) {
    rates[records[tensor].group * branches.count + records[tensor].branch]
  }
  /// The largest step size of the tensors that have a gradient this time.
  var largestRate: Double { (0..<bound.count).reduce(0) { records[$1].active ? max($0, rate(of: $1).lr) : $0 } }

  /// The tensor whose hyper-parameters stand for those of all: of the tensors that have a gradient, the first whose
  /// step size is not 0.
  func leader(_ s: Stage) -> Int? {
    let among = (0..<bound.count).lazy.filter { self.takesPart($0) && self.uses(s, self.bound[$0]) }
    return among.first { i in
      let lr: Double = self.branches[self.bound[i].branch].rule.hyper[self.bound[i].group].lr
      return lr != 0
    } ?? among.first
  }
  /// What numbers that all tensors share are made with: the step of the tensor that has taken most, whatever the order
  /// of binding.
  func commonContext(_ s: Stage, _ leader: Int) -> StepContext {
    var c = context(s, branches[records[leader].branch], leader)
    for i in 0..<bound.count where records[i].active && records[i].t > records[leader].t && uses(s, bound[i]) {
      c.t = max(c.t, context(s, branches[records[i].branch], i).t)
    }
    return c
  }
  /// Numbers of a stage that are one for all tensors.
  func share(_ s: Stage, _ count: Int) {
    let all = (0..<bound.count).filter { uses(s, bound[$0]) }
    for k in 0..<count {
      let largest = all.reduce(-Double.infinity) { max($0, records[$1].scalars[s.id][k]) }
      for i in all where records[i].active { records[i].scalars[s.id][k] = largest }
    }
  }

  func evaluateSchedules() throws(Failure) {
    for s in stages {
      for g in groups.indices where s.hasSchedules(g) { try s.evaluate(g, Double(step)) }
    }
  }

  /// Counts the tensors of every group and pipeline, in the order of their keys.
  private func countInGroups() {
    inGroup = [Int](repeating: 0, count: bound.count)
    var counts = [Int](repeating: 0, count: groups.count * branches.count)
    for i in (0..<bound.count).sorted(by: { records[$0].key < records[$1].key }) {
      let k = records[i].group * branches.count + records[i].branch
      inGroup[i] = counts[k]
      counts[k] += 1
    }
  }

  /// What the rounding of narrow state is keyed by in this step: the same from whatever walks it is changed.
  func keyState() {
    if options.state == .f32 { return }
    for i in 0..<bound.count {
      records[i].stateKey = Random.key(
        seed: options.seed, stream: .max - 1, step: UInt64(step), tensor: records[i].key)
    }
  }

  func prepareRules() throws(Failure) {
    if inGroup.count != bound.count { countInGroups() }
    try evaluateSchedules()
    try checkAgreed()  // the last thing that can refuse: from here on scalars advance
    loss = pointLoss.isNaN ? observed["loss"] ?? .nan : pointLoss
    if applies.count != groups.count * branches.count {
      decayOf = [Double](repeating: 0, count: groups.count * branches.count)
      peakOf = [Double](repeating: .nan, count: decayOf.count)
      rates = [(lr: Double, decay: Double)](repeating: (1, 0), count: decayOf.count)
      applies = [Apply](repeating: Apply(), count: decayOf.count)
    }
    for g in groups.indices {
      for (b, branch) in branches.enumerated() {
        let h = branch.rule.hyper[g]
        var a = Apply()
        let lr: Double = h.lr, wd: Double = h.weight_decay
        if !lr.isNaN { a.lr = lr }
        let decay = wd.isNaN ? Decay.none : branch.rule.element?.decay(h) ?? branch.rule.whole?.decay(h) ?? .none
        switch decay {
        case .none: break
        case .coupled: a.coupled = wd
        case .decoupled: a.keep = 1 - a.lr * wd
        case .rule: break
        }
        a.scale = scale
        applies[g * branches.count + b] = a
        decayOf[g * branches.count + b] = wd.isNaN ? 0 : wd
        // here, before threads ask for it
        if branch.hasDecayStages { peakOf[g * branches.count + b] = branch.rule.peak(g) }
        rates[g * branches.count + b] = (a.lr, decay == .decoupled ? wd : 0)
      }
    }
    if let stepSize, case let top = largestRate, stepSize != top {
      for k in applies.indices {
        applies[k].lr = top > 0 ? stepSize * (rates[k].lr / top) : stepSize
        if rates[k].decay != 0 { applies[k].keep = 1 - applies[k].lr * rates[k].decay }
      }
    }
    for i in 0..<bound.count where records[i].active {
      let k = records[i].group * branches.count + records[i].branch
      (records[i].apply, records[i].decay) = (applies[k], rates[k].decay)
    }
    keyState()
    begun.removeAll(keepingCapacity: true)
    for _ in stages { begun.append(false) }
    leaders.removeAll(keepingCapacity: true)  // tensors of one group, branch and step count share their rules
    for i in 0..<bound.count {
      let r = records + i
      guard r.pointee.active else { continue }
      let branch = branches[r.pointee.branch]
      if options.master == .stochastic, r.pointee.x.dtype.size == 2 {
        r.pointee.rounding = Random.key(seed: options.seed, stream: .max, step: UInt64(step), tensor: r.pointee.key)
      }
      if !branch.decays.isEmpty { decideDecay(i, branch) }
      if !branch.perTensor {
        if let l = leaders.first(where: {
          $0.group == r.pointee.group && $0.branch == r.pointee.branch && $0.t == r.pointee.t
            && $0.isDouble == r.pointee.isDouble
        }) {
          r.pointee.rules = records[l.index].ownRules
          continue
        }
        leaders.append((r.pointee.group, r.pointee.branch, r.pointee.t, r.pointee.isDouble, i))
      }
      r.pointee.rules = r.pointee.ownRules
      for s in branch.stages {
        guard let e = s.element else { continue }
        let c = context(s, branch, i)
        let h = s.hyper[r.pointee.group]
        if !begun[s.id] {
          begun[s.id] = true
          if s.scope == .global, !s.scalars.isEmpty, let l = leader(s) {  // who has none begins nothing
            e.begin(s.globals, s.hyper[records[l].group], commonContext(s, l))
          } else if e.shared > 0, s.scope == .tensor {
            share(s, e.shared)
          }
        }
        if s.scope == .tensor { e.begin(r.pointee.scalars[s.id], h, c) }
        e.prepare(h, c, r.pointee.rules[s.id])
      }
    }
  }

  /// Lets stages decide on the decoupled decay of a tensor.
  private func decideDecay(_ i: Int, _ branch: Branch) {
    let r = records + i
    var decay = r.pointee.decay
    for s in branch.decays {
      guard let decide = s.whole?.newDecay else { continue }
      let kept = r.pointee.used(s.id) > 0 ? r.pointee.slot(s.id, 0).base : nil, isDouble = r.pointee.isDouble
      var number = kept.map { isDouble ? $0.load(as: Double.self) : Double($0.load(as: Float.self)) } ?? .nan
      decay = decide(s.hyper[r.pointee.group], context(s, branch, i), decay, &number)
      if isDouble {
        kept?.storeBytes(of: number, as: Double.self)
      } else {
        kept?.storeBytes(of: Float(number), as: Float.self)
      }
    }
    r.pointee.decay = decay
    r.pointee.apply.keep = decay == 0 ? 1 : 1 - r.pointee.apply.lr * decay
  }

  /// After a phase: totals become scalars, and the rules that use them are made anew.
  func remake(_ s: Stage, _ i: Int) {
    let r = records + i
    s.element?.prepare(s.hyper[r.pointee.group], context(s, branches[r.pointee.branch], i), r.pointee.rules[s.id])
  }
}
