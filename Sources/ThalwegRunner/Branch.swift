import ThalwegCore

/// The stages that one set of tensors goes through, and the walks that they need.
package final class Branch {
  let selectors: [Selector]
  let gradient: [Stage]
  let rule: Stage
  let updates: [Stage]
  let applier: Stage?
  let after: [Stage]
  /// Passes between two barriers.
  var segments: [[Pass]] { stopsAtMove ? proposal : planned }
  private var planned: [[Pass]] = []
  /// Those before the parameters move.
  private var proposal: [[Pass]] = []
  var stopsAtMove = false
  private(set) var needsScratch = false
  /// Stages behind the rule see the gradient that whole-tensor stages have made: it has a scratch tensor of its own.
  private(set) var keepsGradient = false
  var scratchTensors: Int { keepsGradient ? 2 : needsScratch ? 1 : 0 }
  /// The walk that moves the parameters last can mark them.
  private(set) var marksInWalk = false
  let stages: [Stage]
  let perTensor: Bool
  let mayFail: Bool
  let needsFinite: Bool
  /// The same of the parameters.
  let needsFiniteParameters: Bool
  /// A whole-tensor rule whose update is the move itself, the step size in it.
  let moves: Bool
  /// It leaves the new parameters in the place of that update.
  let leavesPoint: Bool
  /// Stages that decide on the decoupled decay; and whether one takes it out of the update in places.
  let decays: [Stage]
  let masksDecay: Bool
  let hasDecayStages: Bool
  /// The stage that gives the evaluation weights: the last that has some.
  let evaluator: Stage?

  init(selectors: [Selector], gradient: [Stage], rule: Stage, updates: [Stage], applier: Stage?, after: [Stage]) {
    (self.selectors, self.gradient, self.rule, self.updates, self.applier, self.after) = (
      selectors, gradient, rule, updates, applier, after
    )
    stages = gradient + [rule] + updates + (applier.map { [$0] } ?? []) + after
    decays = updates.filter { $0.whole?.newDecay != nil }
    hasDecayStages = updates.contains { [.decay, .addedDecay].contains($0.whole?.place($0.hyper[0])) }
    masksDecay = updates.contains { $0.whole?.traits.masksDecay ?? false }
    perTensor = !decays.isEmpty || stages.contains { $0.perTensor }
    mayFail = stages.contains(where: \.mayFail)
    needsFiniteParameters = stages.contains { $0.whole?.traits.needsFinite ?? false }
    needsFinite = needsFiniteParameters || stages.contains { $0.method.needsFinite }
    moves = rule.whole != nil && rule.method.asks(for: "own-step")
    leavesPoint = rule.whole?.traits.leavesPoint ?? false
    evaluator = stages.last { $0.element?.evaluates ?? ($0.whole?.evaluate != nil) }
    plan()
  }

  /// One walk over the elements of a tensor (or one visit of the whole of it).
  final class Pass {
    enum Work {
      /// Takes the sums of a stage in one of its phases. The operand is the gradient, or (updates) the update.
      case measure(Stage, Int)
      /// Keeps the parameters in the first slot of a stage that compares them later.
      case save(Stage)
      /// Writes the transformed gradient into the scratch tensor.
      case materialise
      /// Writes the rule's direction, with the element-wise updates so far, into the scratch tensor.
      case direct
      /// Changes the scratch tensor in place, element by element (update transforms after a measured one).
      case update
      /// What a rule that takes its own step has left in the scratch tensor becomes a direction for stages behind it.
      case difference
      /// Runs a whole-tensor stage on the scratch tensor.
      case whole(Stage)
      /// Moves the parameters.
      case final
      /// Runs a whole-tensor stage on the parameters.
      case wholeAfter(Stage)
      /// Runs element-wise stages on the parameters.
      case after
    }
    var work: Work
    /// Element-wise gradient transforms to apply on reading.
    var chain: [Stage] = []
    /// The gradient is read from the scratch tensor.
    var scratchGradient = false
    /// That is the second one; and, of a stage that makes it, what is written too.
    fileprivate(set) var keepsGradient = false, makesGradient = false
    /// The gradient that it writes is that of the rule, with its coupled decay.
    fileprivate(set) var addsDecay = false
    /// The update is read from the scratch tensor.
    var scratchUpdate = false
    var updates: [Stage] = []
    var after: [Stage] = []
    /// The sums that are taken of the update as this pass leaves it, in the same walk.
    fileprivate var alsoMeasures: (stage: Stage, phase: Int)?
    /// The sums that this pass takes.
    var measured: (stage: Stage, phase: Int)? {
      if case .measure(let s, let phase) = work { (s, phase) } else { alsoMeasures }
    }
    /// The first walk of a step over a tensor, and the last, if that moves the parameters: they look for what the host
    /// has written since.
    fileprivate(set) var opens = false, closes = false
    init(
      work: Work, chain: [Stage] = [], scratchGradient: Bool = false, scratchUpdate: Bool = false, updates: [Stage] = []
    ) {
      (self.work, self.chain, self.scratchGradient, self.scratchUpdate, self.updates) = (
        work, chain, scratchGradient, scratchUpdate, updates
      )
    }
    /// It reads or writes the scratch tensor.
    var scratches: Bool {
      switch work {
      case .measure, .save, .final, .after: scratchGradient || scratchUpdate
      case .materialise, .direct, .update, .difference, .whole, .wholeAfter: true
      }
    }
    fileprivate var writesUpdate: Bool {
      switch work {
      case .direct, .update: true
      default: false
      }
    }
    /// A whole-list sum: all tensors must be through before the next pass.
    var barrier: Bool {
      if let (s, p) = measured { return s.reach[p] == .global }
      return isWhole
    }
  }

  private func plan() {
    var passes: [Pass] = []
    var chain: [Stage] = []
    var fromScratch = false
    func sums(_ s: Stage) {
      for p in 0..<s.phases { passes.append(Pass(work: .measure(s, p), chain: chain, scratchGradient: fromScratch)) }
    }
    for s in stages { if s.whole?.traits.keepsPoint ?? false { passes.append(Pass(work: .save(s))) } }
    let updates = updates.filter { $0.whole?.newDecay == nil }
    keepsGradient = !updates.isEmpty && gradient.contains { $0.whole != nil }
    for s in gradient {
      if s.whole != nil {
        for pass in [Pass(work: .materialise, chain: chain, scratchGradient: fromScratch), Pass(work: .whole(s))] {
          pass.makesGradient = keepsGradient
          passes.append(pass)
        }
        (chain, fromScratch, needsScratch) = ([], true, true)
      } else {
        sums(s)
        chain.append(s)
      }
    }
    var fromUpdate = false
    if rule.whole != nil {
      let pass = Pass(work: .materialise, chain: chain, scratchGradient: fromScratch)
      pass.addsDecay = true
      passes.append(pass)
      passes.append(Pass(work: .whole(rule)))
      (fromUpdate, needsScratch) = (true, true)
    } else {
      sums(rule)
    }
    var pending: [Stage] = []
    if moves, !updates.isEmpty { passes.append(Pass(work: .difference)) }
    for s in updates {
      if s.phases > 0 || s.whole != nil {
        if !fromUpdate {
          passes.append(Pass(work: .direct, chain: chain, scratchGradient: fromScratch, updates: pending))
          (fromUpdate, needsScratch) = (true, true)
        } else if !pending.isEmpty {
          passes.append(Pass(work: .update, chain: chain, scratchGradient: fromScratch, updates: pending))
        }
        pending = []
        if s.whole != nil {
          passes.append(Pass(work: .whole(s)))
        } else {
          for p in 0..<s.phases {
            // the pass that writes the update takes the first sums too
            if p == 0, let last = passes.last, last.writesUpdate, last.measured == nil {
              last.alsoMeasures = (s, p)
            } else {
              passes.append(Pass(work: .measure(s, p), chain: chain, scratchGradient: fromScratch, scratchUpdate: true))
            }
          }
          pending.append(s)
        }
      } else {
        pending.append(s)
      }
    }
    // A materialised gradient and a materialised update never need the scratch tensor at once, but for update
    // transforms that compare them: those read the host's gradient again, or the one that is kept.
    let final = Pass(
      work: .final, chain: chain, scratchGradient: fromScratch && (keepsGradient || !fromUpdate),
      scratchUpdate: fromUpdate, updates: pending)
    var rest = after[...]
    while let s = rest.first, s.whole == nil, s.phases == 0 {
      final.after.append(s)
      rest = rest.dropFirst()
    }
    passes.append(final)
    while let s = rest.first {
      rest = rest.dropFirst()
      if s.whole != nil {
        passes.append(Pass(work: .wholeAfter(s)))
        needsScratch = true
      } else {
        let p = Pass(work: .after)
        p.after = [s]
        while let n = rest.first, n.whole == nil, n.phases == 0 {
          p.after.append(n)
          rest = rest.dropFirst()
        }
        passes.append(p)
      }
    }
    for pass in passes { pass.keepsGradient = keepsGradient }
    passes.first?.opens = true
    if let last = passes.last, !last.isWhole { (last.closes, marksInWalk) = (true, true) }
    var current: [Pass] = []
    for p in passes {
      switch p.work {
      case .whole, .wholeAfter:
        if !current.isEmpty { planned.append(current) }
        planned.append([p])
        current = []
      default:
        current.append(p)
        if p.barrier {
          planned.append(current)
          current = []
        }
      }
    }
    if !current.isEmpty { planned.append(current) }
    propose()
  }

  private func propose() {
    proposal = []
    for segment in planned {
      let before = segment.prefix { if case .final = $0.work { false } else { true } }
      if !before.isEmpty || segment.isEmpty { proposal.append(Array(before)) }
      if before.count < segment.count { break }
    }
  }

  /// Sums over all tensors that pipelines of a route share are complete at one barrier, and a stage that looks at all
  /// tensors finds them moved: a pipeline that would come there earlier waits.
  static func align(_ branches: [Branch], on shared: [Stage]) {
    func align(_ isThere: (Pass) -> Bool) {
      let places = branches.map { $0.planned.firstIndex { $0.last.map(isThere) ?? false } }
      guard let last = places.compactMap({ $0 }).max() else { return }
      for case (let branch, let place?) in zip(branches, places) where place < last {
        branch.planned.insert(contentsOf: [[Pass]](repeating: [], count: last - place), at: place)
      }
    }
    for s in shared {
      for p in 0..<s.phases where s.reach[p] == .global {
        align { $0.measured.map { $0.stage === s && $0.phase == p } ?? false }
      }
      if s.gathers { align { $0.stage === s } }
    }
    settle(branches, shared)
    for b in branches { b.propose() }
  }
  /// Pipelines that cannot fail wait with their changes until those that may are through: nobody then needs copies of
  /// their tensors.
  private static func settle(_ branches: [Branch], _ shared: [Stage]) {
    let failing = branches.filter(\.mayFail).compactMap { b in
      b.planned.lastIndex { $0.contains { $0.stage?.mayFail ?? false } }
    }
    guard let last = failing.max() else { return }
    func changes(_ pass: Pass) -> Bool {
      switch pass.work {
      case .measure, .materialise: false
      default: true
      }
    }
    func isShared(_ pass: Pass) -> Bool { shared.contains { $0 === pass.measured?.stage || $0 === pass.stage } }
    for b in branches where !b.mayFail {
      guard let first = b.planned.firstIndex(where: { $0.contains(where: changes) }), first <= last,
        !b.planned[first...].contains(where: { $0.contains(where: isShared) })
      else { continue }
      b.planned.insert(contentsOf: [[Pass]](repeating: [], count: last + 1 - first), at: first)
    }
  }
}
