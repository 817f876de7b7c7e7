import CThalweg
import ThalwegCore

/// What a checkpoint holds: all that decides the future of a run. Nothing is changed by loading until everything is
/// checked.
///
///     engine/sentence    the pipeline with the hyper-parameters of the default group
///     engine/settings    live hyper-parameters of every group, and of groups to come, as they are written in a
///     sentence
///     engine/memories    what schedules remember: (group or −1, stage, parameter, count, numbers), one after the other
///     engine/step        step, skipped, phase, the pending request, calls, mode, gradient_scale, flags (1: the loss
///     was asked
///                        for first; 2: which tensors take part is not known)
///     engine/names       the tensors, each ended by a zero byte: everything a tensor follows this order and is found
///     by name
///     engine/tensors     for each: its step, the number that keys its random draws, flags
///     engine/observed    what was observed for the step to come, under the names in engine/observed_names
///     engine/frames      within a step of several sources: who asks whom (part, answers, rounds, minibatch in two
///     halves, kind, index, count)
///     engine/before      within a step: the scalars of the sources from before it; NAME/STAGE/SLOT/before the same of
///     lasting state
///     engine/window      within a step: the losses of a window of minibatches so far
///     engine/answer      within a step: a matrix that the source keeps
///     STAGE/scalars      one set, or one a tensor
///     NAME/engine/fingerprints  what the last step left in the parameters, where it matters whether the host has
///     written since
///     NAME/STAGE/SLOT    state as stored; NAME/engine/master; in evaluation mode NAME/engine/training, the training
///     weights; within a step
///                        NAME/engine/place, the parameters where the request that waits has them
///
/// Version 1 had the default group's hyper-parameters alone, and tensors by position.
package enum Checkpoint {
  enum Flag {
    static let started = 1, active = 2, away = 4, shown = 8, tookPart = 16, startedNow = 32, written = 64, sources = 8
  }
  static func key(_ s: Stage) -> String { "\(s.id).\(s.name)" }

  // MARK: saving

  private static func rows(_ o: Optimizer, within: Bool, evaluating: Bool) -> [Optimizer.StateRow] {
    // What is needed from one request to the next alone is part of it only within a step.
    o.allStateRows().filter { within || !$0.slot.temporary } + (evaluating ? o.trainingRows() : [])
      + (within ? o.beforeRows() : [])
  }
  private static func name(_ row: Optimizer.StateRow, _ o: Optimizer) -> String {
    let b = o.bound[row.tensor].name
    switch row.kind {
    // stages are numbered, so that two of one name do not meet
    case .slot: return "\(b)/\(key(row.stage))/\(row.slot.name)"
    case .before: return "\(b)/\(key(row.stage))/\(row.slot.name)/before"
    case .master, .training, .place, .written, .dense: return "\(b)/engine/\(row.slot.name)"
    }
  }
  private static func form(_ row: Optimizer.StateRow, _ o: Optimizer) -> (dtype: String, shape: [Int]) {
    let v = o.bound[row.tensor].view
    switch row.kind {
    case .training, .place, .written: return (v.dtype.name.uppercased(), v.shape)
    case .dense: return (v.dtype == .f64 ? "F64" : "F32", v.shape)
    case .master: return ("F32", v.shape)
    case .slot, .before:
      switch row.format {
      case .direct: return (v.dtype == .f64 ? "F64" : "F32", row.slot.count.map { [$0] } ?? v.shape)
      case .bf16: return ("BF16", row.slot.count.map { [$0] } ?? v.shape)
      case .signed8, .positive8: return ("U8", [o.stateBytes(row)])
      }
    }
  }

  /// The checkpoint as pieces of memory, good until the optimizer is used again.
  private static func writer(_ o: Optimizer) throws(Failure) -> Safetensors.Writer {
    try o.allocated()
    let w = Safetensors.Writer(o.allocator), within = o.phase >= 0
    try w.add("engine/sentence", text: o.fullSentence)
    try w.add("engine/settings", text: o.settingsText)
    try w.add("engine/memories", o.memories)
    let r = o.pending
    try w.add(
      "engine/step",
      [
        Double(o.step), Double(o.skipped), Double(o.phase), Double(r.kind.rawValue), Double(r.pass),
        Double(r.tag & 0xffff_ffff),
        Double(r.tag >> 32), Double(r.index), Double(r.count), Double(o.calls), o.evaluating ? 1 : 0,
        o.options.gradientScale,
        Double((o.lossFirst ? 1 : 0) + (within && o.resumed && !o.knowsActive ? 2 : 0)),
      ])
    try w.add("engine/names", text: o.bound.map { $0.name + "\0" }.joined())
    let shown = Set(o.shown), startedNow = Set(o.startedNow), written = Set(o.written.map(\.tensor))
    try w.add(
      "engine/tensors",
      (0..<o.bound.count).flatMap { i -> [Double] in
        let t = o.records[i]
        var flags = (t.started ? Flag.started : 0) | (t.active ? Flag.active : 0) | (t.away != 0 ? Flag.away : 0)
        if within {
          flags |=
            (shown.contains(i) ? Flag.shown : 0) | (t.tookPart ? Flag.tookPart : 0)
            | (startedNow.contains(i) ? Flag.startedNow : 0)
            | (written.contains(i) ? Flag.written : 0)
        }
        return [Double(t.t), Double(t.key), Double(flags | Int(t.away) << Flag.sources)]
      })
    let observed = o.observed.sorted { $0.key < $1.key }
    try w.add("engine/observed", observed.map(\.value))
    try w.add("engine/observed_names", text: observed.map { $0.key + "\0" }.joined())
    if within {
      if o.composed { try w.add("engine/frames", o.stack.flatMap(numbers)) }
      try w.add("engine/losses", [o.pointLoss] + o.stack.flatMap { [$0.loss, $0.told, $0.waits ? 1 : 0] })
      try w.add(
        "engine/before",
        o.sourceCopies.flatMap { m in (0..<(m.count / 8)).map { m.base.assumingMemoryBound(to: Double.self)[$0] } })
      try w.add("engine/window", o.lossWindow.numbers)
      if let k = o.kept { try w.add("engine/answer", [Double(k.rows), Double(k.columns)] + k.values) }
    }
    for s in o.stages where !s.scalars.isEmpty { try w.add("\(key(s))/scalars", o.scalarValues(s)) }
    for row in rows(o, within: within, evaluating: o.evaluating) {
      let f = form(row, o), s = o.storage(row)
      w.add(name(row, o), f.dtype, f.shape, s.base, s.bytes)
    }
    for i in 0..<o.bound.count where o.records[i].marked {
      if let m = o.marks(of: i) { w.add("\(o.bound[i].name)/engine/fingerprints", "U8", [m.bytes], m.base, m.bytes) }
    }
    for i in 0..<o.bound.count where within && (o.records[i].away != 0 || shown.contains(i) || written.contains(i)) {
      guard let row = o.placeRow(i) else { continue }
      let f = form(row, o), known = o.places.first { $0.tensor == i }?.bits
      let bits: Memory
      if let known { bits = known } else { bits = try o.copyOfParameters(i) }
      w.add(name(row, o), f.dtype, f.shape, bits, o.stateBytes(row))
    }
    for i in written.sorted() where within {
      for row in o.writtenRows(i) {
        let f = form(row, o), s = o.storage(row)
        w.add(name(row, o), f.dtype, f.shape, s.base, s.bytes)
      }
    }
    return w
  }

  package static func size(_ o: Optimizer) throws(Failure) -> Int { try writer(o).size }

  /// Hands the checkpoint to `put`, piece by piece; `begin` is told its size first.
  package static func save(
    _ o: Optimizer, _ begin: (Int) throws(Failure) -> Void, _ put: (UnsafeRawBufferPointer) throws(Failure) -> Void
  ) throws(Failure) {
    let w = try writer(o)
    try begin(w.size)
    try w.write(put)
  }

  /// The same into a file; errors are those of `Files.write`.
  package static func save(_ o: Optimizer, to path: String) throws(Failure) {
    try Files.write(to: path) { (put) throws(Failure) in try save(o, { _ in }, put) }
  }

  // MARK: loading

  package static func load(_ o: Optimizer, from path: String) throws(Failure) {
    let file = try Files.read(path, .current, begins: begins)
    defer { withExtendedLifetime(file) {} }
    try load(o, file.bytes)
  }

  package static func load(_ o: Optimizer, _ data: UnsafeRawBufferPointer) throws(Failure) {
    let before = o.growth
    do throws(Failure) { try read(o, data) } catch {
      o.growth = before
      throw error
    }
  }

  private static func read(_ o: Optimizer, _ data: UnsafeRawBufferPointer) throws(Failure) {
    guard o.phase < 0 else {
      throw Failure(Status.sequence, "loading within a step; answer its requests, or cancel it, first")
    }
    guard !o.evaluating else {
      throw Failure(Status.sequence, "loading in evaluation mode; call set_mode(train) first")
    }
    let file = try Safetensors(data)
    for s in o.stages { s.isNew = o.isNew }
    // Everything is intact; does it belong to this optimizer?
    guard let sentence = file.text("engine/sentence") else { throw Safetensors.damaged("it has no sentence") }
    let saved: [String]
    do { saved = try Compiler(sentence, trusted: true).stages.map(\.name) } catch {
      throw Failure(Status.mismatch, "the checkpoint's sentence is not known here: \(error.message)")
    }
    guard saved == o.stages.map(\.name) else {
      throw Failure(
        Status.mismatch,
        "the checkpoint is of `\(saved.joined(separator: " | "))`, this optimizer is "
          + "`\(o.stages.map(\.name).joined(separator: " | "))`")
    }
    let head = try Head(file, o)
    let settings = try Settings(file, o, sentence)
    settings.grow()
    o.coming = { s, group in settings.hyper(s, group) }  // which tensors are flagged is what the file says
    o.listed = (-1, [])
    defer { (o.coming, o.listed) = (nil, (-1, [])) }
    try o.allocated()
    let memories = try memories(file, o, settings)
    let scalars = try scalars(file, o, head)
    let rows = rows(o, within: head.within, evaluating: head.evaluating)
    let away = (0..<o.bound.count).filter {
      file.written > 1 && head.within && head.tensors[$0].flags & (Flag.away | Flag.shown | Flag.written) != 0
    }
    .compactMap(o.placeRow)
    let written = (0..<o.bound.count).filter { head.within && head.tensors[$0].flags & Flag.written != 0 }
    let over = try written.map { (i) throws(Failure) in
      (
        tensor: i, bits: try Memory(o.stateBytes(o.writtenRows(i)[0]), o.allocator, zeroed: false),
        dense: try Memory(o.stateBytes(o.writtenRows(i)[1]), o.allocator, zeroed: false)
      )
    }
    let all = rows + away + written.flatMap(o.writtenRows)
    let places = try places(file, o, all, head, settings)
    let stands = try away.map { (row) throws(Failure) in
      (tensor: row.tensor, bits: try Memory(o.stateBytes(row), o.allocator, zeroed: false))
    }
    let backup =
      try head.evaluating
      ? (0..<o.bound.count).map { (i) throws(Failure) in
        try Memory(o.bound[i].view.count * o.bound[i].view.dtype.size, o.allocator, zeroed: false)
      } : []
    guard let window = file.numbers("engine/window").map(LossWindow.init) ?? LossWindow() else {
      throw Safetensors.damaged("its losses make no sense")
    }
    let before = try before(file, o, head)
    let lasting = try (head.within ? o.beforeRows() : []).map { (row) throws(Failure) in
      try Memory(o.stateBytes(row), o.allocator, zeroed: false)
    }

    // From here on nothing fails.
    settings.put(o)
    for (s, group, k, memory) in memories { o.put(memory, (s, group, k)) }
    (o.step, o.skipped, o.phase, o.calls) = (head.step, head.skipped, head.phase, head.calls)
    (o.pending, o.lossFirst, o.resumed) = (head.pending, head.lossFirst, head.within)
    (o.knowsActive, o.observed, o.kept, o.answered, o.told) = (head.knowsActive, head.observed, head.answer, nil, nil)
    (o.backup, o.evaluating, o.hasSnapshot, o.sourceCopies) = (backup, head.evaluating, false, before)
    (o.stack, o.stateCopies, o.pointLoss, o.lossWindow) = (head.stack, lasting, head.pointLoss, window)
    (o.shown, o.startedNow, o.written, o.places) = ([], [], over, stands)
    if let x = head.gradientScale { o.options.gradientScale = x }
    for i in 0..<o.bound.count {
      let t = head.tensors[i]
      (o.records[i].t, o.records[i].key, o.records[i].marked) = (t.t, t.key, false)
      o.inGroup = []
      o.records[i].started = t.flags & Flag.started != 0
      o.records[i].active = t.flags & Flag.active != 0
      o.records[i].tookPart = t.flags & Flag.tookPart != 0
      // which source has moved it; older files had one
      let away =
        t.flags >> Flag.sources == 0 && t.flags & Flag.away != 0
        ? 1 : UInt32(truncatingIfNeeded: t.flags >> Flag.sources)
      o.records[i].away = o.sources.indices.reduce(0) {
        $0 | (o.records[i].homes[$1] != nil ? away & (1 << UInt32($1)) : 0)
      }
      o.records[i].apply.scale = o.scale
      if let m = o.marks(of: i), let e = file.found[Exact("\(o.bound[i].name)/engine/fingerprints")], e.bytes == m.bytes
      {
        file.copy(e, to: m.base, m.bytes)
        o.records[i].marked = true
      }
      if t.flags & Flag.shown != 0 { o.shown.append(i) }
      if t.flags & Flag.startedNow != 0 { o.startedNow.append(i) }
    }
    for (s, values) in scalars { o.putScalars(s, values) }
    for (row, e) in zip(all, places) {
      let target = o.storage(row)
      file.copy(e, to: target.base, target.bytes)
    }
  }

  private static func memories(_ file: Safetensors, _ o: Optimizer, _ settings: Settings) throws(Failure) -> [(
    Stage, Int, Int, [Double]
  )] {
    var list: [(Stage, Int, Int, [Double])] = []
    if file.written == 1 {
      for s in o.stages {
        for g in o.groups.indices {
          for k in s.hyper[g].parameters.indices {
            guard let m = file.numbers("\(key(s))/schedule.\(g).\(k)") else { continue }
            if settings.schedule(s, g, k)?.takes(m[...]) == m.count { list.append((s, g, k, m)) }
            if g == 0, settings.schedule(s, -1, k)?.takes(m[...]) == m.count { list.append((s, -1, k, m)) }
          }
        }
      }
      return list
    }
    let senseless = Safetensors.damaged("the memory of its schedules makes no sense")
    guard let all = file.numbers("engine/memories") else { throw senseless }
    var rest = all[...]
    while !rest.isEmpty {
      guard rest.count >= 4, rest.prefix(4).allSatisfy({ $0 == $0.rounded() && abs($0) < 9e15 }) else {
        throw senseless
      }
      let f = rest.prefix(4).map { Int($0) }
      rest = rest.dropFirst(4)
      if f[3] >= 0, f[3] <= rest.count, f[0] >= 0, settings.groups[f[0]] == nil {  // of a group that is empty
        rest = rest.dropFirst(f[3])
        continue
      }
      guard let group = settings.groups[f[0]], o.stages.indices.contains(f[1]), f[3] >= 0, f[3] <= rest.count,
        settings.schedule(o.stages[f[1]], group, f[2])?.takes(rest.prefix(f[3])) == f[3]
      else { throw senseless }
      list.append((o.stages[f[1]], group, f[2], Array(rest.prefix(f[3]))))
      rest = rest.dropFirst(f[3])
    }
    return list
  }

  /// Scalars of all stages, one set or in the order of this optimizer's tensors.
  private static func scalars(_ file: Safetensors, _ o: Optimizer, _ head: Head) throws(Failure) -> [(Stage, [Double])]
  {
    var list: [(Stage, [Double])] = []
    for s in o.stages where !s.scalars.isEmpty {
      let name = "\(key(s))/scalars", n = s.scalars.count, expected = s.scope == .global ? n : n * o.bound.count
      guard let v = file.numbers(name) ?? (s.scalars.allSatisfy(\.tells) ? [] : nil) else {
        throw Failure(Status.mismatch, "the checkpoint has no `\(name)`")
      }
      if s.scope == .global, v.count < n {  // written when the stage had fewer
        list.append((s, v + s.scalars.dropFirst(v.count).map(\.start)))
        continue
      }
      guard v.count == expected else {
        throw Failure(Status.mismatch, "`\(name)` has \(v.count) numbers in the checkpoint, \(expected) here")
      }
      list.append((s, s.scope == .global ? v : head.order.flatMap { v[($0 * n)..<(($0 + 1) * n)] }))
    }
    return list
  }
  /// The source's scalars from before the step, as copies of the regions that it has here.
  private static func before(_ file: Safetensors, _ o: Optimizer, _ head: Head) throws(Failure) -> [Memory] {
    guard head.within, var rest = file.numbers("engine/before")?[...], !rest.isEmpty else { return [] }
    let senseless = Safetensors.damaged("its scalars from before the step make no sense")
    var list: [Memory] = []
    for s in o.sources {
      let n = s.scalars.count, regions = o.scalars(s)
      // as many sets as there are tensors that the source uses, in the order of the file
      let places = head.order.indices.filter { s.scope == .tensor && o.uses(s, o.bound[$0]) }
      let ranks = places.map { i in places.reduce(0) { $0 + (head.order[$1] < head.order[i] ? 1 : 0) } }
      var count = regions.reduce(0) { $0 + $1.bytes / 8 }
      // (written when the stage had fewer)
      if s.scope == .global { count = min(count, file.numbers("\(key(s))/scalars")?.count ?? 0) }
      guard rest.count >= count, s.scope == .global || regions.count == ranks.count || n == 0 else { throw senseless }
      let own = Array(rest.prefix(count))
      rest = rest.dropFirst(count)
      for (k, r) in regions.enumerated() {
        let m = try Memory(r.bytes, o.allocator, zeroed: false), first = s.scope == .tensor ? ranks[k] * n : 0
        for j in 0..<(r.bytes / 8) {
          let known = first + j < own.count
          m.base.assumingMemoryBound(to: Double.self)[j] = known ? own[first + j] : s.scalars[j % n].start
        }
        list.append(m)
      }
    }
    guard rest.isEmpty else { throw senseless }
    return list
  }

  static func numbers(_ f: Frame) -> [Double] {
    let part: Double
    switch f.part {
    case .source(let k): part = Double(k)
    case .route: part = -1
    }
    return [
      part, Double(f.phase), Double(f.round), Double(f.sample & 0xffff_ffff), Double(f.sample >> 32),
      Double(f.asked.kind.rawValue),
      Double(f.asked.index), Double(f.asked.count),
    ]
  }
  /// The sources at work in a checkpoint from within a step; `unasked`: none is yet.
  static func frames(_ file: Safetensors, _ o: Optimizer, _ phase: Int, _ unasked: Bool) throws(Failure)
    -> [Frame]
  {
    if unasked || o.sources.isEmpty { return [] }
    guard o.composed else {
      var f = Frame(part: .source(0))
      f.phase = phase
      return [f]
    }
    let senseless = Safetensors.damaged("its requests make no sense")
    guard let all = file.numbers("engine/frames"), !all.isEmpty, all.count % 8 == 0,
      all.count <= 8 * (o.sources.count + 1),
      all.allSatisfy({ $0 == $0.rounded() && $0 >= -1 && $0 < 9e15 })
    else { throw senseless }
    var list: [Frame] = []
    for row in stride(from: 0, to: all.count, by: 8).map({ Array(all[$0..<($0 + 8)]) }) {
      guard row[0] < Double(o.sources.count), row[0] >= 0 || o.routeStage != nil,
        row.dropFirst().allSatisfy({ $0 >= 0 }), row[3] < 0x1p32,
        row[4] < 0x1p32, let kind = Request.Kind(rawValue: Int32(min(row[5], 1e6))), kind.isGradient
      else { throw senseless }
      var f = Frame(part: row[0] < 0 ? .route : .source(Int(row[0])))
      (f.phase, f.round, f.sample) = (Int(row[1]), Int(row[2]), UInt64(row[3]) | UInt64(row[4]) << 32)
      f.asked = Ask(kind, index: Int(row[6]), count: Int(row[7]))
      list.append(f)
    }
    guard o.mayStack(list.map(\.part), list.map(\.phase)) else { throw senseless }
    return list
  }

  /// Where the file has each row; throws unless it has just these.
  private static func places(
    _ file: Safetensors, _ o: Optimizer, _ rows: [Optimizer.StateRow], _ head: Head, _ settings: Settings
  ) throws(Failure) -> [Safetensors.Entry] {
    var places: [Safetensors.Entry] = []
    var known = Set(
      [
        "engine/sentence", "engine/settings", "engine/memories", "engine/step", "engine/names", "engine/tensors",
        "engine/observed",
        "engine/observed_names",
      ].map(Exact.init))
    if head.within {
      let inside = ["engine/frames", "engine/losses", "engine/window", "engine/before", "engine/answer"]
      known.formUnion(inside.map(Exact.init))
    }
    for s in o.stages where !s.scalars.isEmpty { known.insert(Exact("\(key(s))/scalars")) }
    if file.written == 1 {
      known.insert(Exact("engine/tensor_steps"))
      for s in o.stages {
        for g in o.groups.indices {
          for k in s.hyper[g].parameters.indices { known.insert(Exact("\(key(s))/schedule.\(g).\(k)")) }
        }
      }
    }
    // "marks": as an unreleased version wrote them
    for b in o.bound { known.formUnion(["fingerprints", "marks"].map { Exact("\(b.name)/engine/\($0)") }) }
    // older versions kept what sources need within a step for all tensors
    for (i, b) in o.bound.enumerated() where head.within {
      for row in o.stateRows(i) where o.isVacant(row.stage, row.slot, b) {
        known.insert(Exact("\(b.name)/\(key(row.stage))/\(row.slot.name)"))
      }
    }
    var last = 0
    for row in rows {
      let name = name(row, o), f = form(row, o), bytes = o.stateBytes(row)
      guard let e = file.found[Exact(name)] else {
        throw Failure(Status.mismatch, "the checkpoint has no `\(name)`" + suggestion(name, file.order.map(\.name)))
      }
      guard e.dtype == f.dtype, e.shape == f.shape, e.bytes == bytes else {
        throw Failure(
          Status.mismatch,
          "\(o.label("parameter", row.tensor)): `\(name)` is \(e.dtype) \(e.shape) in the checkpoint, "
            + "\(f.dtype) \(f.shape) here"
            + (e.dtype == f.dtype ? "" : " (another `state_dtype`, or parameters of another dtype)"))
      }
      // Version 1 has counters by position: tensors in another order would get those of others.
      if file.written == 1 {
        guard e.start >= last else {
          throw Failure(
            Status.mismatch,
            "the checkpoint, of an older version, has its parameters in another order; bind them in that order")
        }
        last = e.start
      }
      known.insert(Exact(name))
      places.append(e)
    }
    if let k = file.order.first(where: { !known.contains(Exact($0.name)) })?.name {
      throw Failure(Status.mismatch, "the checkpoint has `\(k)`, which this optimizer does not")
    }
    return places
  }
}

extension Checkpoint {
  /// Whether bytes that begin so may be a checkpoint: looked at before room for all of them is asked for. Throws
  /// TW_ERROR_FORMAT.
  package static func begins(_ first: UnsafeRawBufferPointer, of size: Int) throws(Failure) {
    guard first.count >= 8, let length = first.baseAddress?.loadUnaligned(as: UInt64.self), length >= 2,
      length <= UInt64(Safetensors.headerLimit), Int(length) <= size - 8
    else {
      throw Failure(Status.format, "not a usable thalweg checkpoint: its \(size) bytes do not begin with a header")
    }
  }
}
