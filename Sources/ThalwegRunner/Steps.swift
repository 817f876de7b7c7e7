import CThalweg
import ThalwegCore

/// One step: what begins it, the requests of its source, and how it is taken back.
extension Optimizer {
  // MARK: what a step needs

  private func ready(gradients: Bool) throws(Failure) {
    guard !bound.isEmpty else { throw Failure(Status.sequence, "no parameters are bound: call add_parameters first") }
    guard hasGradients || !gradients else {
      throw Failure(Status.sequence, "no gradients are bound: call bind_gradients first, or pass them to the step")
    }
    guard !evaluating else { throw Failure(Status.sequence, "stepping in evaluation mode; call set_mode(train) first") }
    try refuseNoneFlagged()
  }
  private func between() throws(Failure) {
    guard phase < 0 else { throw Failure(Status.sequence, "a step is under way: answer its requests, or cancel it") }
  }
  private var lossNeeder: String { stages.first { $0.method.needsLoss }?.name ?? asker }
  /// A loss that is not finite is an answer to the request that waits.
  private var takesAnyLoss: Bool {
    for (k, f) in stack.enumerated().reversed() {
      guard let s = stage(f)?.source else { return false }
      if s.takesAnyLoss || s.triesPoints && (f.phase > 0 || phase > 0 && k == stack.count - 1) { return true }
      guard s.tellsLoss, f.phase == 0 else { return false }  // it would hand the loss on
    }
    return false
  }
  /// Who asked for what the host answers now, as messages call it.
  private var asker: String { stack.last.flatMap(stage)?.name ?? "the pipeline" }

  // MARK: one call

  /// Counts a step that the non-finite policy refused.
  private func refuse() -> Int {
    (skipped, calls) = (skipped + 1, calls + 1)
    Log.warn("step \(step) was skipped: a gradient is not finite (\(skipped) skipped so far)")
    return Status.skipped
  }

  /// Refuses sentences for which one gradient a step is not enough.
  func asksOnce() throws(Failure) {
    if let s = sources.first(where: { !($0.source?.single ?? false) }) ?? sources.dropFirst().first {
      let asks = s.method.publicRequests, others = asks.isEmpty || asks == "gradient" ? "" : " (\(asks))"
      throw asksMore(s.name, others)
    }
  }
  private func asksMore(_ name: String, _ others: String = "") -> Failure {
    Failure(
      Status.needs, "\(name) asks for more than the gradient that is there\(others); call next and answer its requests")
  }

  /// One whole step with the bound gradients.
  package func stepOnce() throws(Failure) -> Int {
    try ready(gradients: true)
    try asksOnce()
    try between()
    if needsLoss, observed["loss"] == nil {
      throw Failure(
        Status.needs,
        "\(lossNeeder) needs the loss of every step: observe \"loss\" before the step, or answer its requests with next"
      )
    }
    if routeStage != nil { return try stepRouted() }
    try prepare()
    try countRanks()
    keepParts()
    do throws(Failure) {
      try noticeAhead()
      try begin()
      guard let stage = sources.first, let source = stage.source else { return try update(nil) }
      lossIsNew = observed["loss"] != nil
      pointLoss = observed["loss"] ?? .nan
      let move = try source.advance(0, SourceIO(SourceDesk(self, stage)))
      guard case .update(let op) = move else { return endWithoutUpdate() }
      return try update(op)
    } catch {
      undo()
      observed.removeAll(keepingCapacity: true)  // what was observed was for this step
      if error.status == tw_status(Status.skipped) { return refuse() }
      throw error
    }
  }

  /// The same where a pipeline of a route has a source, which speaks for its tensors alone.
  private func stepRouted() throws(Failure) -> Int {
    let loss = observed["loss"], begun = try next(loss: nil)
    if begun.0 == nil { return begun.1 }
    let (more, status) = try next(loss: loss)
    guard more == nil else {
      let failure = asksMore(asker)
      try cancel()
      throw failure
    }
    return status
  }

  // MARK: reverse communication

  /// Returns the request to answer, or nil when the step is done (with its status).
  /// `stays`: the gradients that are bound now stay as they are until the step has ended, so that a source need not
  /// copy them.
  package func next(loss: Double?, stays: Bool = false) throws(Failure) -> (Request?, Int) {
    let begins = phase < 0
    gradientsStay = stays
    if begins {
      try ready(gradients: false)
      try prepare()
      try countRanks()
    }
    defer { (answered, told) = (nil, nil) }
    do throws(Failure) {
      let answer = begins ? (try open(), Status.more) : try advance(told ?? loss)
      try checkRanks()
      return answer
    } catch {
      undo()
      forget()
      if error.status == tw_status(Status.skipped) { return (nil, refuse()) }
      throw error
    }
  }

  /// The first request of a step.
  private func open() throws(Failure) -> Request {
    phase = 0
    keepParts()
    for i in 0..<bound.count where !records[i].started && viewStage(bound[i]) != nil {
      start(i)
      shown.append(i)
      try showView(i)
      markAll(records + i)  // what the host writes from here on it writes over the view
    }
    try evaluateSchedules()
    try noticeAhead()
    try keepSources()
    if mayFail, opens { try takeSnapshot() }  // before a source moves the parameters
    pointLoss = observed["loss"] ?? .nan
    if needsLoss || asksLossFirst, observed["loss"] == nil, opens {
      lossFirst = true
      pending = Request(kind: .loss, tag: tag(0))
    } else if case .ask(let first) = try converse() {
      pending = first
    }
    return pending
  }
  /// Some source has a first request of its own.
  var opens: Bool { sources.contains { $0.source?.opens ?? false } }

  /// The tensors that a source with a first request of its own may move. Which have a gradient this time is not known
  /// yet, where there are to be any; those that never had one stay where they are.
  func takePart(_ source: any Source) {
    for i in 0..<bound.count {
      records[i].active = source.takesGradients ? records[i].t > 0 : !records[i].absent
      records[i].apply.scale = scale
    }
    if !source.takesGradients { startActive() }
  }

  /// After a state from within a step was loaded: the parameters go where the request that waits wants them. Loading
  /// itself does not touch them.
  package func takePlace() {
    for (i, m) in places { restoreParameters(i, m) }
    places = []
  }

  /// Takes an answer, and asks on or ends the step.
  private func advance(_ loss: Double?) throws(Failure) -> (Request?, Int) {
    takePlace()
    try ready(gradients: pending.kind.takesGradients)
    if resumed {
      if !knowsActive { activate() }
      try evaluateSchedules()
      if mayFail { try takeSnapshot() }
      resumed = false
    }
    if pending.kind == .sampleGradients, answered == nil {
      throw Failure(
        Status.needs, "\(asker) asked for the gradients of the samples: answer with answer_samples; nothing was changed"
      )
    }
    if pending.kind.takesMatrices, answered == nil {
      let who = asker
      let what = pending.kind == .activations ? "activations" : "derivatives of the logits"
      throw Failure(Status.needs, "\(who) asked for \(what): answer with answer_matrix; nothing was changed")
    }
    lossIsNew = pending.kind == .loss || pending.kind == .lossAndGradient
    var trialFailed = false
    if lossIsNew {
      let given = loss ?? .nan
      trialFailed = takesAnyLoss && !given.isFinite
      guard trialFailed || !given.isNaN else {
        throw Failure(
          Status.needs,
          "\(lossNeeder) needs the loss of this step: set the request's loss (it is NaN, unset or as given)")
      }
      guard trialFailed || given.isFinite else {
        throw Failure(Status.nonfinite, "\(lossNeeder) needs a finite loss, got \(text(given)); nothing was changed")
      }
      let loss = trialFailed ? .infinity : given
      if pending.kind != .loss {
        observed["loss"] = loss
      } else if let next = try takeLoss(loss) {
        pending = next
        return (next, Status.more)
      }
      let isFirst = phase == 0 && (lossFirst ? stack.isEmpty : !opens && pending.kind == .lossAndGradient)
      if isFirst { pointLoss = observed["loss"] ?? .nan }
    }
    if lossFirst, stack.isEmpty {
      if case .ask(let first) = try converse() { pending = first }
      return (pending, Status.more)
    }
    if phase == 0 {
      try begin()
    } else {
      try checkPresent()
      if !trialFailed { try checkFinite() }
    }
    switch try proceed() {
    case .ask(let next):
      pending = next
      return (pending, Status.more)
    case .update(let op): return (nil, try update(op))
    case .nothing: return (nil, endWithoutUpdate())
    }
  }

  /// A command of a source, between steps; it may end in an update of the pipeline.
  func runCommand(_ stage: Stage, _ source: any Source, _ name: String) throws(Failure) {
    try ready(gradients: false)
    try between()
    try prepare()
    keepParts()
    if hasGradients { activate() }
    do throws(Failure) {
      if mayFail { try takeSnapshot() }
      switch try source.command(name, SourceIO(SourceDesk(self, stage))) {
      case .update(let op): _ = try update(op)
      case .ask, .nothing: hasSnapshot = false  // a source before others has nothing open between steps
      }
    } catch {
      undo()
      throw error
    }
  }

  package func answer(_ first: HostMatrix?, _ second: HostMatrix?) throws(Failure) {
    guard phase >= 0, pending.kind.takesMatrices, let top = stack.last, let stage = stage(top),
      let source = stage.source
    else {
      throw Failure(Status.sequence, "no request for matrices is waiting")
    }
    if resumed, !knowsActive { activate() }
    let answer = Answer(first, second)
    scope = waitingScope
    defer { scope = nil }
    try source.check(answer, top.phase, SourceIO(SourceDesk(self, stage)))
    answered = answer
  }

  /// Takes the gradients of the samples: one tensor for each bound parameter, nil where it has none.
  package func answer(samples list: [View?]) throws(Failure) {
    guard phase >= 0, pending.kind == .sampleGradients, let top = stack.last, let stage = stage(top),
      let source = stage.source
    else { throw Failure(Status.sequence, "no request for the gradients of samples is waiting") }
    guard list.count == bound.count else {
      throw Failure(Status.count, "there are \(bound.count) parameters, got the samples of \(list.count)")
    }
    takePlace()
    if resumed, !knowsActive { activate() }
    if phase == 0 { startActive() }
    var count: Int?, tensors: [Int] = [], layouts: [Layout] = [], sizes: [Int] = []
    defer { for l in layouts { l.release() } }
    for (i, view) in list.enumerated() where records[i].active && includes(top, i) {
      let name = "samples of " + label("parameter", i)
      guard let view else {
        throw Failure(Status.sequence, "\(name) are missing: mark the gradient absent before the step, or pass zeros")
      }
      guard view.shape.count == bound[i].view.shape.count + 1, Array(view.shape.dropFirst()) == bound[i].view.shape
      else {
        throw Failure(
          Status.shape, "\(name) must have the shape (samples, ...) of \(bound[i].view.shape), got \(view.shape)")
      }
      guard count == nil || count == view.shape[0] else {
        throw Failure(Status.shape, "\(name) are \(view.shape[0]), those of other parameters \(count ?? 0)")
      }
      count = view.shape[0]
      tensors.append(i)
      layouts.append(Layout(view))
      sizes.append(bound[i].view.count)
    }
    let samples = try Samples(count ?? 0, tensors, layouts, sizes, scale: scale)
    scope = waitingScope
    defer { scope = nil }
    try source.take(samples, top.phase, SourceIO(SourceDesk(self, stage)))
    var answer = Answer()
    if options.nonFinite != .propagate { answer.hadNonFinite = !samples.isFinite }
    answered = answer
  }

  package func cancel() throws(Failure) {
    guard phase >= 0 else { throw Failure(Status.sequence, "no step is under way") }
    undo()
    forget()
  }

  // MARK: taking back

  private func keepParts() { for i in 0..<bound.count { records[i].tookPart = records[i].active } }

  /// Takes back what the present step has done: parameters and state are those from before it, whatever is bound by
  /// now.
  func undo() {
    endLoans()
    returning = nil
    var home: Set<Int> = []
    for i in 0..<bound.count where records[i].away != 0 {
      comeHome(i)
      home.insert(i)
    }
    restoreSnapshot(home: home)
    for i in shown { if let dense = records[i].master { writeParameters(i, dense) } }
    for (i, bits, dense) in written {
      restoreParameters(i, bits)
      records[i].master?.copyMemory(from: dense.base, byteCount: dense.count)
    }
    for i in shown + startedNow {
      (records[i].started, records[i].marked) = (false, false)
      startAfresh(i)  // a source may have begun to fill a table
    }
    for i in 0..<bound.count { records[i].active = records[i].tookPart }
    (shown, startedNow, written) = ([], [], [])
    putBack(sourceCopies, sources.flatMap(scalars))
    putBack(stateCopies, lastingRows.map(storage))
    (sourceCopies, stateCopies) = ([], [])
    putBack(iterateCopies, iterates)  // last: all other copies were made after these
    (iterateCopies, iterates) = ([], [])
  }
  /// What belongs to one step alone.
  func forget() {
    endLoans()
    if phase >= 0 || !sources.isEmpty {
      (phase, pending, resumed, lossFirst, knowsActive) = (-1, Request(), false, false, false)
      (sourceCopies, stateCopies, stack, answered, kept, stepSize, shown, places) = ([], [], [], nil, nil, nil, [], [])
      for i in 0..<bound.count { records[i].away = 0 }
    }
    if !startedNow.isEmpty { startedNow = [] }
    (hasSnapshot, pointLoss, told, lossWindow) = (false, .nan, nil, LossWindow())
    if !written.isEmpty { written = [] }
    if !iterates.isEmpty { (iterateCopies, iterates) = ([], []) }
    if !observed.isEmpty { observed.removeAll(keepingCapacity: true) }
  }
  /// The parameters of a tensor return to where the host left them, bit for bit.
  func comeHome(_ i: Int) {
    // the source that decides went first, and so it knows where the host left them
    if let k = sources.indices.last(where: { records[i].away & (1 << UInt32($0)) != 0 }), let home = records[i].homes[k]
    {
      writeParameters(i, home)
    }
    records[i].away = 0
  }
  func writeParameters(_ i: Int, _ from: UnsafeMutableRawPointer) {
    records[i].x.write(0, records[i].count, from: from, size: records[i].size, rounding: nil)
  }
  /// Copies of what sources change within a step, so that one that is broken off leaves it as it was: the scalars of
  /// all, and the lasting state of those that do not decide. The one that does changes its own in the call that ends
  /// the step.
  private func keepSources() throws(Failure) {
    (sourceCopies, stateCopies) = ([], [])
    if sources.count == 1, routeStage == nil, sources[0].source?.single ?? false { return }
    sourceCopies = try copies(sources.flatMap(scalars))
    stateCopies = try copies(lastingRows.map(storage))
  }
  /// The lasting state of sources that others ask.
  var lastingRows: [StateRow] {
    let decides = routeStage == nil || sources.last?.role == .update ? sources.last : nil
    let others = sources.filter { $0 !== decides }
    if others.isEmpty { return [] }
    return allStateRows().filter { row in
      row.kind != .master && !row.slot.temporary && others.contains { $0 === row.stage }
    }
  }

  // MARK: beginning and end

  /// A tensor takes part when it has a gradient; where only losses are asked for, when nobody said that it has none.
  private func activate() {
    let wanted = pending.kind.takesGradients || phase < 0
    for i in 0..<bound.count {
      records[i].active = wanted ? records[i].present : !records[i].absent
      records[i].apply.scale = scale
    }
  }

  /// Everything that can refuse a step happens here, before anything is changed.
  private func begin() throws(Failure) {
    if !openingDecides { activate() }
    // an opening may have moved tensors that turn out to have no gradient
    for i in 0..<bound.count where records[i].away != 0 && !records[i].active { comeHome(i) }
    if !sources.isEmpty { try evaluateSchedules() }  // for what it reads before the rules are made
    try checkFinite(begins: true)
    startActive()
    if mayFail { try takeSnapshot() }
  }

  /// The first request of the step is that of a source which asks for no gradients: it has said who takes part.
  private var openingDecides: Bool {
    guard let f = stack.last else { return !(sources.last?.source?.takesGradients ?? true) }
    return stage(f)?.source.map { $0.opens && !$0.takesGradients } ?? false
  }

  private func startActive() {
    for i in 0..<bound.count where records[i].active && !records[i].started {
      start(i)
      startedNow.append(i)
    }
  }

  /// A tensor that had a gradient at the first request of a step has one at all of them.
  private func checkPresent() throws(Failure) {
    guard pending.kind != .loss else { return }
    // Where matrices are asked for nobody reads the gradients; a host that resumes there need not have bound any.
    let matrices = pending.kind.isGiven
    for i in 0..<bound.count where records[i].active && (matrices ? records[i].absent : !records[i].present) {
      throw Failure(
        Status.sequence,
        "\(label(pending.kind.noun, i)) is absent, but was there at the first request of this step; pass zeros")
    }
  }

  /// `begins`: the parameters stand where the host left them, and are looked at too where a stage needs it.
  private func checkFinite(begins: Bool = false) throws(Failure) {
    guard options.nonFinite != .propagate || needsFinite, !looksLater else { return }
    if let answered {  // the gradients were seen before, and may hold anything by now
      if answered.isFinite { return }
      throw refused("non-finite answer", "the answer to \(asker) has elements that are NaN or infinite")
    }
    guard pending.kind.takesGradients || phase < 0 else { return }
    let parameters = begins && needsFiniteParameters
    func look(counting: Bool) {
      forEach { p, r in
        var apply = Apply()
        let g = p.gradient(copy: false, &apply)
        let also = parameters && branches[r.pointee.branch].needsFiniteParameters
        let measures = counting ? NonFiniteCount.counts : also ? NonFiniteCount.ofTwo : NonFiniteCount.ofOne
        // where there is a master copy it is what moves: 16 bits may show it as infinite
        p.sum(g, also ? p.parameters() : g, r.pointee.isDouble ? measures.1 : measures.0)
      }
    }
    look(counting: false)
    let some = (0..<bound.count).contains { (i) in
      guard records[i].active else { return false }
      total(records + i, totals)
      return totals[0] > 0
    }
    if some { look(counting: true) }
    var bad: (tensor: Int, count: Int)?
    for i in 0..<bound.count where some && records[i].active && bad == nil {
      total(records + i, totals)
      if totals[0] > 0 { bad = (i, Int(totals[0])) }
      if totals[1] > 0, parameters, branches[records[i].branch].needsFiniteParameters {
        throw Failure(
          Status.nonfinite,
          "\(label("parameter", i)) has \(Int(totals[1])) elements that are NaN or infinite; nothing was changed")
      }
    }
    for k in 0..<Sums.count { totals[k] = k == 0 ? Double(bad?.count ?? 0) : 0 }
    addRanks(totals, 1)  // all ranks refuse a step, or none does
    try checkRanks()
    if let bad {
      let task = pending.kind == .taskGradient ? " of task \(pending.index)" : ""
      throw refusedGradient(label(pending.kind.noun, bad.tensor) + task, bad.count)
    }
    if totals[0] > 0 {
      throw refused("non-finite gradient", "a gradient of another rank has elements that are NaN or infinite")
    }
  }

  private func refused(_ what: String, _ message: String) -> Failure {
    options.nonFinite == .skip
      ? Failure(Status.skipped, what) : Failure(Status.nonfinite, message + "; nothing was changed")
  }
  func refusedGradient(_ which: String, _ count: Int) -> Failure {
    refused("non-finite gradient", "\(which) has \(count) elements that are NaN or infinite")
  }

  private func endWithoutUpdate() -> Int {
    calls += 1
    forget()
    if options.zeroGradients {
      for i in 0..<bound.count where records[i].active && records[i].present { records[i].g.clear(0, records[i].count) }
    }
    return Status.ok
  }
}
