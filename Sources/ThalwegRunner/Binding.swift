import CThalweg
import ThalwegCore

/// The memory of the host: parameters, gradients, shadows.
extension Optimizer {
  package func group(_ name: String?) throws(Failure) -> Int {
    let name = name ?? ""
    guard let k = groups.place(of: name) else {
      throw Failure(Status.name, "no parameter group `\(name)`" + suggestion(name, Array(groups.dropFirst())))
    }
    return k
  }

  package func addParameters(_ views: [View], _ names: [String]?, _ groupName: String?) throws(Failure) {
    guard phase < 0 else { throw Failure(Status.sequence, "parameters cannot be added between the requests of a step") }
    guard !evaluating else { throw Failure(Status.sequence, "parameters cannot be added in evaluation mode") }
    var added: [Bound] = [], taken: Set<Exact> = []
    for (i, v) in views.enumerated() {
      let index = bound.count + i
      let name = names?[i] ?? String(index)
      let what = Optimizer.label("parameter", index, names?[i])
      guard !boundNames.contains(Exact(name)), taken.insert(Exact(name)).inserted else {
        throw Failure(Status.name, "\(what): another parameter is called `\(name)`")
      }
      guard !v.readOnly else { throw Failure(Status.layout, "\(what) is read-only; parameters are changed in place") }
      try v.refuseOverlapWithin(what)
      guard !v.absent else { throw Failure(Status.argument, "\(what) is marked absent; only gradients may be") }
      let shape = Shape(dimensions: v.shape, role: v.role)
      guard let b = branches.firstIndex(where: { $0.selectors.contains { $0.takes(shape, name) } }) else {
        throw Failure(Status.method, "\(what) of shape \(v.shape) fits no pipeline of route(...); add other=(...)")
      }
      for s in branches[b].stages {
        do { try s.whole?.accepts(s.hyper[0], shape) } catch {
          throw error.of(what)
        }
      }
      added.append(Bound(view: v, name: name, group: 0, branch: b, shape: shape))
    }
    try Optimizer.refuse(Overlap.first(views, joining: placed), "parameters") {
      $0 < bound.count ? bound[$0].name : added[$0 - bound.count].name
    }
    if let m = Overlap.first(views, against: shadowed) {
      let what = Optimizer.label("parameter", bound.count + m.first, added[m.first].name)
      throw Failure(Status.overlap, "\(what) and \(label("shadow", m.second)) \(m.answer.words)")
    }
    try checkShared(groups.place(of: groupName ?? ""))
    let g = makeGroup(groupName)
    for i in added.indices { added[i].group = g }
    reserve(bound.count + added.count)
    for b in added {
      let v = b.view
      let isDouble = v.dtype == .f64
      let stageCount = stages.count
      let first: UnsafeMutablePointer<Int32> = hold(stageCount + 1)
      first.initialize(repeating: 0, count: stageCount + 1)
      let rules: UnsafeMutablePointer<UnsafeMutableRawPointer> = hold(max(1, stageCount))
      let scalars: UnsafeMutablePointer<UnsafeMutablePointer<Double>> = hold(max(1, stageCount))
      let slots: UnsafeMutablePointer<SlotStore> = hold(1)
      for s in stages {
        rules[s.id] = UnsafeMutableRawPointer(StepContext.nothing)
        scalars[s.id] = s.globals
      }
      let homes: UnsafeMutablePointer<UnsafeMutableRawPointer?> = hold(max(1, sources.count))
      homes.initialize(repeating: nil, count: max(1, sources.count))
      (records + bound.count).initialize(
        to: Record(
          x: Layout(v), g: Layout(v), count: v.count, size: v.dtype.computeSize, branch: b.branch, group: b.group,
          key: drawKey(bound.count), isDouble: isDouble, slots: slots, firstSlot: first,
          rules: rules, ownRules: rules, scalars: scalars, homes: homes))
      bound.append(b)
    }
    boundNames.formUnion(taken)
    placed.append(views)
    hasGradients = false
  }

  /// "parameter 3 (`head.bias`)"
  static func label(_ kind: String, _ index: Int, _ name: String?) -> String {
    name.map { "\(kind) \(index) (`\($0)`)" } ?? "\(kind) \(index)"
  }
  func label(_ kind: String, _ i: Int) -> String {
    Optimizer.label(kind, i, bound[i].name == String(i) ? nil : bound[i].name)
  }

  static func checkOverlap(_ views: [(View, String)], _ what: String) throws(Failure) {
    try refuse(Overlap.first(among: views.map(\.0)), what) { views[$0].1 }
  }
  static func refuse(_ meeting: Overlap.Meeting?, _ what: String, _ name: (Int) -> String) throws(Failure) {
    guard let m = meeting else { return }
    let (a, b) = (name(m.first), name(m.second))
    throw Failure(Status.overlap, "\(what) \(m.first) (`\(a)`) and \(m.second) (`\(b)`) \(m.answer.words)")
  }
  func keepApart(_ views: [View], _ kind: String, from others: Overlap.Index, _ other: String) throws(Failure) {
    guard let m = Overlap.first(views, against: others) else { return }
    throw Failure(Status.overlap, "\(label(kind, m.first)) and \(label(other, m.second)) \(m.answer.words)")
  }

  func reserve(_ n: Int) {
    guard n > capacity else { return }
    let larger = max(n, capacity * 2)
    let p = UnsafeMutablePointer<Record>.allocate(capacity: larger)
    p.moveInitialize(from: records, count: bound.count)
    records.deallocate()
    (records, capacity) = (p, larger)
  }
  func hold<T>(_ n: Int) -> UnsafeMutablePointer<T> {
    let p = UnsafeMutablePointer<T>.allocate(capacity: n)
    holdings.append(UnsafeMutableRawPointer(p))
    return p
  }

  func match(_ views: [View], _ kind: String) throws(Failure) {
    guard views.count == bound.count else {
      throw Failure(Status.count, "expected \(bound.count) \(kind)s, one for each parameter, got \(views.count)")
    }
    for (i, v) in views.enumerated() where v.shape != bound[i].view.shape && !v.absent {
      throw Failure(Status.shape, "\(label(kind, i)) has shape \(v.shape), its parameter has \(bound[i].view.shape)")
    }
  }

  package func rebindParameters(_ views: [View]) throws(Failure) {
    guard phase < 0, !evaluating else {
      throw Failure(Status.sequence, "parameters cannot be moved within a step or in evaluation mode")
    }
    try match(views, "parameter")
    for (i, v) in views.enumerated() {
      guard v.dtype == bound[i].view.dtype else {
        throw Failure(
          Status.dtype,
          "\(label("parameter", i)) was bound as \(bound[i].view.dtype.name), got \(v.dtype.name); "
            + "a new optimizer takes it"
        )
      }
      guard !v.readOnly else {
        throw Failure(Status.layout, "\(label("parameter", i)) is read-only; parameters are changed in place")
      }
      guard !v.absent else {
        throw Failure(Status.argument, "\(label("parameter", i)) is marked absent; only gradients may be")
      }
      try v.refuseOverlapWithin(label("parameter", i))
    }
    let all = Overlap.Index(views)
    try Optimizer.refuse(all.meeting, "parameters") { bound[$0].name }
    try keepApart(views, "parameter", from: shadowed, "shadow")
    if hasGradients { try keepApart(gradients, "gradient", from: all, "parameter") }
    for (i, v) in views.enumerated() {
      records[i].x.release()
      records[i].x = Layout(v)
      bound[i].view = v
    }
    placed = all
  }

  package func bindGradients(_ views: [View]) throws(Failure) {
    guard !bound.isEmpty else { throw Failure(Status.sequence, "bind parameters before gradients") }
    let noun = pending.kind.noun
    try match(views, noun)
    let writes = options.zeroGradients || options.consumeGradients
    if writes {
      for (i, v) in views.enumerated() where !v.absent {
        let what = label(noun, i), but = ", but zero_gradients or consume_gradients would write it"
        guard !v.readOnly else { throw Failure(Status.layout, "\(what) is read-only" + but) }
        try v.refuseOverlapWithin(what, Status.layout, but)
      }
      let what = "\(noun)s are written by zero_gradients or consume_gradients:"
      try Optimizer.refuse(Overlap.first(among: views), what) { bound[$0].name }
    }
    // what changes during the step must not be read as a gradient
    try keepApart(views, noun, from: placed, "parameter")
    try keepApart(views, noun, from: shadowed, "shadow")
    for (i, v) in views.enumerated() {
      records[i].g.release()
      records[i].g = Layout(v)
      records[i].absent = v.absent
      records[i].bound = true
    }
    gradients = views
    hasGradients = true
    takePlace()
  }

  package func bindShadow(_ views: [View]) throws(Failure) {
    if !views.isEmpty {
      try match(views, "shadow")
      for (i, v) in views.enumerated() {
        guard v.dtype.size == 2 else {
          throw Failure(Status.dtype, "\(label("shadow", i)) must be f16 or bf16, got \(v.dtype.name)")
        }
        guard !v.readOnly else { throw Failure(Status.layout, "\(label("shadow", i)) is read-only") }
        guard !v.absent else {
          throw Failure(Status.argument, "\(label("shadow", i)) is marked absent; only gradients may be")
        }
        try v.refuseOverlapWithin(label("shadow", i))
      }
      try Optimizer.checkOverlap(zip(views, bound).map { ($0, $1.name) }, "shadows")
      try keepApart(views, "shadow", from: placed, "parameter")
      if hasGradients { try keepApart(gradients, "gradient", from: Overlap.Index(views), "shadow") }
    }
    shadowed = Overlap.Index(views)
    for i in 0..<bound.count {
      records[i].shadow?.release()
      records[i].shadow = views.isEmpty ? nil : Layout(views[i])
    }
  }
}
