import ThalwegCore

/// Several sources in one step: a stack of frames, each of which asks the one before it in the sentence.
///
/// Data flows left to right. The leftmost source is nearest to the host; the last one, or the one that a rule brings
/// along, decides. When a frame asks for a gradient, that is a conversation of the frame before it, at the parameters
/// as they stand and on the same minibatch; everything else goes to the host. A frame whose gradient is not complete
/// yet (an accumulation) is asked again, on the next minibatch.
struct Frame {
  enum Part: Equatable { case source(Int), route }
  /// A source, by its number, or the pipelines of a route side by side.
  var part: Part
  /// Answers that it has had; of a route the pipelines that are through.
  var phase = 0
  /// How often it has begun anew since it was asked.
  var round = 0
  /// What it was asked for, and on which minibatch: 0 for that of the step.
  var asked = Ask(.gradient)
  var sample: UInt64 = 0
  /// The gradient that the frame before it handed on; nil: the host's.
  var incoming: GradientOperation?
  /// The loss of the point that it asked about, where that was asked for on its own; `waits`: it is being asked for.
  var loss = Double.nan, waits = false
  /// The loss that it was told with the first answer, or has made of several: that of the one before it, in the
  /// sentence.
  var told = Double.nan
}

/// What a conversation comes to.
enum Outcome {
  case ask(Request)
  case update(GradientOperation?)
  case nothing
}

extension Optimizer {
  // MARK: who asks whom

  /// The sources in the order of data, without those of pipelines of a route, for which `.route` stands.
  private var chain: [Frame.Part] {
    var list: [Frame.Part] = []
    for (k, s) in sources.enumerated() where s.branch == nil && s.role != .update { list.append(.source(k)) }
    if routeStage != nil { list.append(.route) }
    for (k, s) in sources.enumerated() where s.branch == nil && s.role == .update { list.append(.source(k)) }
    return list
  }
  private func chain(of branch: Int) -> [Frame.Part] {
    sources.indices.filter { sources[$0].branch == branch }.map { .source($0) }
  }
  /// The pipelines of the route that have sources, in order.
  private var routed: [Int] { branches.indices.filter { b in sources.contains { $0.branch == b } } }

  private func branch(_ part: Frame.Part) -> Int? { if case .source(let k) = part { sources[k].branch } else { nil } }
  func stage(_ f: Frame) -> Stage? { if case .source(let k) = f.part { sources[k] } else { routeStage } }
  /// What stands before a part; nil: the host. `crosses`: the route begins there.
  private func before(_ part: Frame.Part) -> (part: Frame.Part?, crosses: Bool) {
    if let b = branch(part) {
      let own = chain(of: b)
      if let k = own.firstIndex(of: part), k > 0 { return (own[k - 1], false) }
      let all = chain, r = all.firstIndex(of: .route) ?? 0
      return (r > 0 ? all[r - 1] : nil, true)
    }
    let all = chain
    guard let k = all.firstIndex(of: part), k > 0 else { return (nil, false) }
    return (all[k - 1], false)
  }

  /// Whether frames of these parts may stand on each other: each is asked by the one below.
  func mayStack(_ parts: [Frame.Part], _ phases: [Int]) -> Bool {
    guard parts.first == chain.last else { return false }
    for k in parts.indices.dropFirst() {
      switch parts[k - 1] {
      case .route:
        let own =
          phases[k - 1] > 0 && phases[k - 1] <= routed.count
          ? self.chain(of: routed[phases[k - 1] - 1]).last : before(.route).part
        if parts[k] != own { return false }
      case .source: if before(parts[k - 1]).part != parts[k] { return false }
      }
    }
    return parts.indices.allSatisfy { parts[$0] != .route || phases[$0] <= routed.count }
  }

  // MARK: the stack

  /// The frames of a step that has just begun.
  func converse() throws(Failure) -> Outcome {
    stack = []
    guard let last = chain.last else { return .ask(fill(Ask(.gradient), 0)) }
    return try push(last, Ask(.gradient), 0)
  }

  /// Goes on with the answer to the request that waited.
  func proceed() throws(Failure) -> Outcome {
    phase += 1
    guard let top = stack.indices.last else { return .update(nil) }
    let f = stack[top]
    stack[top].waits = false
    // (of a trial that fails the gradient is not looked at)
    if f.waits, let loss = observed["loss"], loss.isFinite, let below = before(f.part).part {
      stack[top].loss = loss
      return try push(below, Ask(.gradient), minibatch(of: f))
    }
    stack[top].incoming = nil  // the answer is the host's
    return try advance()
  }

  private func push(_ part: Frame.Part, _ asked: Ask, _ sample: UInt64) throws(Failure) -> Outcome {
    stack.append(Frame(part: part, asked: asked, sample: sample))
    return try start()
  }

  /// The first request of the frame on top.
  private func start() throws(Failure) -> Outcome {
    guard let top = stack.indices.last else { throw Failure(Status.internal, "no frame") }
    let f = stack[top]
    if case .source(let k) = f.part, let source = sources[k].source, source.opens {
      let ask = within(f) { () -> Ask? in
        if phase == 0 { takePart(source) }
        return source.opening(SourceIO(SourceDesk(self, sources[k])))
      }
      if let ask { return try pass(ask) }
    } else if try atHome() {
      return try advance()
    }
    return try pass(Ask(.gradient))
  }

  /// Hands a request on to the frame before the one on top, or to the host.
  private func pass(_ ask: Ask) throws(Failure) -> Outcome {
    guard let f = stack.last else { throw Failure(Status.internal, "no frame") }
    var ask = ask
    if ask.kind == .gradient {
      (ask.kind, ask.index, ask.count) = (f.asked.kind, f.asked.index, f.asked.count)
      // the loss is that of the point where it was asked, and not of those where it looks next
      if f.phase > 0, ask.kind == .lossAndGradient { ask.kind = .gradient }
    }
    let round = minibatch(of: f)
    let sample = ask.freshSample ? another(round, of: f, f.phase, fresh: true) : round
    if ask.kind.isGradient, let below = before(f.part).part {
      if ask.kind == .lossAndGradient, !tellsLoss(below), let top = stack.indices.last {
        if phase > 0 || pointLoss.isNaN {
          stack[top].waits = true
          return .ask(fill(Ask(.loss), sample))
        }
        stack[top].loss = pointLoss
        ask.kind = .gradient
      }
      return try push(below, ask, sample)
    }
    return .ask(fill(ask, sample))
  }
  /// The parts before the one that asks, the nearest first.
  var partsBeforeAsker: [Frame.Part] {
    var list: [Frame.Part] = [], at = (stack.last?.part ?? chain.last).flatMap { before($0).part }
    while let part = at {
      list.append(part)
      at = before(part).part
    }
    return list
  }
  /// The number of the k-th minibatch of a source that is asked about one.
  func minibatch(_ k: Int, of source: Int, from sample: UInt64) -> UInt64 {
    var f = Frame(part: .source(source))
    (f.sample, f.round) = (sample, k)
    return minibatch(of: f)
  }
  /// The number of the minibatch that a frame asks about.
  private func minibatch(of f: Frame) -> UInt64 { f.round == 0 ? f.sample : another(f.sample, of: f, f.round) }
  /// Whether a part hands on the loss of the point where it was asked, with its gradient.
  private func tellsLoss(_ part: Frame.Part) -> Bool {
    if case .source(let k) = part { sources[k].source?.tellsLoss ?? false } else { false }
  }
  /// The source that decides begins with the loss of its point, which those before it do not tell.
  var asksLossFirst: Bool {
    guard let last = chain.last, case .source(let k) = last, let source = sources[k].source, source.opens,
      source.kinds.first == .lossAndGradient, let below = before(last).part
    else { return false }
    return !tellsLoss(below)
  }

  /// The number of another minibatch that a frame asks for, in a round or (fresh) at a request of its own; nested ones
  /// are told apart by who asks. The low half stays below 2: there the step counts. That of a lone source is plain.
  private func another(_ sample: UInt64, of f: Frame, _ k: Int, fresh: Bool = false) -> UInt64 {
    if fresh, sample == 0, !composed { return UInt64(UInt32(truncatingIfNeeded: k)) << 32 | 1 }
    let who: UInt64
    switch f.part {
    case .source(let number): who = UInt64(number) &* 2 &+ (fresh ? 1 : 2)
    case .route: who = 0
    }
    return Random.mix(Random.mix(sample, who), UInt64(truncatingIfNeeded: k)) & 0x7fff_ffff_0000_0000 | 1
  }

  /// Lets the frame on top see its answer.
  private func advance() throws(Failure) -> Outcome {
    while let top = stack.indices.last {
      let f = stack[top]
      switch f.part {
      case .route: if let next = try advanceRoute() { return next }
      case .source(let k):
        guard let source = sources[k].source else { throw Failure(Status.internal, "a frame without its source") }
        if f.phase == 0, lossIsNew, source.tellsLoss {
          let loss = observed["loss"] ?? .nan
          stack[top].told = loss
          // a trial that fails is one whatever it would do there
          if top > 0, !loss.isFinite, !source.single {
            leave(f.incoming)
            continue
          }
        }
        let move = try within(f) { () throws(Failure) in
          let move = try source.advance(f.phase, SourceIO(SourceDesk(self, sources[k])))
          // (the update of the pipeline looks at them in its first walk, and may bring them home there)
          if case .update = move, top == 0 { return move }
          bringHome()
          return move
        }
        switch move {
        case .ask(let ask):
          stack[top].phase += 1
          return try pass(ask)
        case .update(let op):
          let made = op.map { $0.over(f.incoming) } ?? f.incoming
          if top == 0 { return .update(made) }
          leave(made)
        case .nothing:
          if top == 0 { return .nothing }
          stack[top].round += 1
          stack[top].phase = 0
          settle(f)
          return try start()
        }
      }
    }
    throw Failure(Status.internal, "a conversation without an end")
  }

  /// The frame on top is through: its parameters stand where they stood when it was asked.
  private func leave(_ made: GradientOperation?) {
    guard let f = stack.popLast(), let parent = stack.indices.last else { return }
    settle(f)
    stack[parent].incoming = made
    // those before it may have looked at other points since
    let p = stack[parent], first = p.phase == 0 && p.round == 0 ? pointLoss : .nan
    let loss = p.loss.isNaN ? f.told.isNaN ? first : f.told : p.loss
    lossIsNew = !loss.isNaN
    if lossIsNew { observed["loss"] = loss }
    stack[parent].loss = .nan
  }
  private func settle(_ f: Frame) {
    guard case .source(let k) = f.part else { return }
    for i in 0..<bound.count where includes(f, i) && records[i].away & (1 << UInt32(k)) != 0 {
      if sources[k].source?.endsAway ?? false, let home = records[i].homes[k] { writeParameters(i, home) }
      records[i].away &= ~(1 << UInt32(k))
    }
  }

  /// Calls `body` for the tensors and with the gradient of a frame.
  private func within<T, E: Error>(_ f: Frame, _ body: () throws(E) -> T) throws(E) -> T {
    (scope, incoming) = (branch(f.part), f.incoming)
    defer { (scope, incoming) = (nil, nil) }
    return try body()
  }
  func includes(_ f: Frame, _ i: Int) -> Bool { branch(f.part).map { $0 == bound[i].branch } ?? true }
  /// The tensors that the frame on top speaks for.
  var waitingScope: Int? { stack.last.flatMap { branch($0.part) } }

  // MARK: a route

  /// Keeps what the route has so far, and goes on to its next pipeline; nil when all are through.
  private func advanceRoute() throws(Failure) -> Outcome? {
    guard let top = stack.indices.last, let s = routeStage else { throw Failure(Status.internal, "no route") }
    let f = stack[top], work = routed
    scope = f.phase == 0 ? nil : work[f.phase - 1]
    incoming = f.incoming
    SourceIO(SourceDesk(self, s)).change(SaveGradient(), slots: [0], parameters: false)
    (scope, incoming) = (nil, nil)
    stack[top].incoming = kept(s)
    guard f.phase < work.count, let last = chain(of: work[f.phase]).last else {
      if top == 0 { return .update(kept(s)) }
      leave(kept(s))
      return nil
    }
    stack[top].phase += 1
    return try push(last, f.asked, f.sample)
  }
  private func kept(_ route: Stage) -> GradientOperation { GradientOperation(stage: route.id, slots: [0], run: nil) }

  /// Whether the frame on top, the first of a pipeline in a route, begins with the gradient that the route has already:
  /// nothing has moved since, and the same is asked for.
  private func atHome() throws(Failure) -> Bool {
    guard let top = stack.indices.last, before(stack[top].part).crosses,
      let r = stack.lastIndex(where: { $0.part == .route }), let s = routeStage
    else { return false }
    let route = stack[r]
    guard
      stack[(r + 1)...].allSatisfy({ f in
        f.phase == 0 && f.round == 0 && f.sample == route.sample && f.asked.kind == route.asked.kind
          && f.asked.index == route.asked.index
      }), !bound.indices.contains(where: { includes(stack[top], $0) && records[$0].away != 0 && isAway($0, since: r) })
    else { return false }
    stack[top].incoming = kept(s)
    return true
  }
  /// Whether a frame above `r` has moved the tensor.
  private func isAway(_ i: Int, since r: Int) -> Bool {
    stack[(r + 1)...].contains {
      if case .source(let k) = $0.part { records[i].away & (1 << UInt32(k)) != 0 } else { false }
    }
  }
}
