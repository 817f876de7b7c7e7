import ThalwegCore

/// Paths to hyper-parameters and measured values: "adamw.lr", "lr", "adamw#1.lr", "clip_global_norm.norm", "steps".
extension Optimizer {
  package struct Place {
    let stage: Stage
    let parameter: Int
  }

  /// A stage's name, split off the path: (name, occurrence, rest).
  private func split(_ path: String) throws(Failure) -> (name: String?, occurrence: Int, rest: String) {
    guard let dot = path.lastIndex(of: ".") else { return (nil, 0, path) }
    var name = String(path[..<dot]), occurrence = 0
    if let hash = name.firstIndex(of: "#") {
      guard let k = Int(name[name.index(after: hash)...]), k >= 0 else {
        throw Failure(Status.name, "`\(path)`: a number must follow `#`")
      }
      occurrence = k
      name = String(name[..<hash])
    }
    return (name, occurrence, String(path[path.index(after: dot)...]))
  }

  private func candidates(_ name: String?, _ occurrence: Int, _ path: String) throws(Failure) -> [Stage] {
    guard let name else { return stages }
    let own = stages.filter { $0.name == name && !$0.aliases.isEmpty }
    if !own.isEmpty {
      guard occurrence < own.count else {
        throw Failure(Status.name, "`\(path)`: the pipeline has \(own.count) stages `\(name)`")
      }
      return [own[occurrence]]
    }
    let aliased = stages.filter { $0.aliases.contains(name) }
    guard !aliased.isEmpty else {
      throw Failure(
        Status.name, "`\(path)`: the pipeline has no stage `\(name)`" + suggestion(name, stages.flatMap(\.aliases)))
    }
    return aliased
  }

  package func find(_ path: String) throws(Failure) -> Place {
    let (name, occurrence, rest) = try split(path)
    let among = try candidates(name, occurrence, path)
    var found: [Place] = []
    for s in among where !s.aliases.isEmpty {
      if let k = s.hyper[0].index(rest) { found.append(Place(stage: s, parameter: k)) }
    }
    if found.count > 1, name == nil {
      // The update rule's own come first when a bare name is meant.
      let rules = found.filter { $0.stage.role == .rule }
      if rules.count == 1 { return rules[0] }
      let all = found.map { "\($0.stage.name).\(rest)" }.joined(separator: " or ")
      throw Failure(Status.name, "`\(path)` could be \(all): name one of them")
    }
    guard let place = found.first else {
      let names = among.flatMap { $0.hyper[0].parameters.map(\.name) }
      throw Failure(Status.name, "no hyper-parameter `\(path)`" + suggestion(rest, names))
    }
    return place
  }

  package func getNumber(_ group: Int, _ path: String) throws(Failure) -> Double {
    switch path {
    case "steps": return Double(step)
    case "skipped": return Double(skipped)
    case "gradient_scale": return options.gradientScale
    case "training": return evaluating ? 0 : 1
    default: break
    }
    let (name, occurrence, rest) = try split(path)
    if let name {
      for s in try candidates(name, occurrence, path) {
        guard let k = s.scalars.firstIndex(where: { $0.name == rest }) else { continue }
        // what every tensor has of its own reads as the largest
        let own = s.scope == .global ? [] : bound.indices.filter { uses(s, bound[$0]) && bound[$0].group == group }
        return own.map { records[$0].scalars[s.id][k] }.max() ?? s.globals[k]
      }
    }
    let place = try find(path)
    if let schedule = place.stage.schedules[group][place.parameter] { return schedule.value(Double(step)) }
    let x = place.stage.hyper[group].numbers[place.parameter]
    guard !x.isNaN else {
      let h = place.stage.hyper[group], value = h.parameters[place.parameter].write(h.values[place.parameter])
      throw Failure(Status.type, "`\(path)` is not a number: \(value)")
    }
    return x
  }

  package func setNumber(_ group: Int?, _ path: String, _ x: Double) throws(Failure) {
    if path == "gradient_scale" {
      guard x.isFinite, x > 0 else { throw Failure(Status.range, "`gradient_scale` must be above 0, got \(text(x))") }
      options.gradientScale = x
      return
    }
    let place = try find(path)
    let p = place.stage.hyper[0].parameters[place.parameter]
    let value: Value
    switch p.kind {
    case .number, .integer:
      try p.check(x, of: place.stage.name)
      value = .number(x)
    case .flag:
      guard x == 0 || x == 1 else {
        throw Failure(Status.type, "\(place.stage.name): `\(p.name)` must be \(p.expectation), got \(text(x))")
      }
      value = .flag(x == 1)
    default: value = try p.read(.number(x), of: place.stage.name)
    }
    try set(group, place, value)
  }

  package func setText(_ group: Int?, _ path: String, _ source: String) throws(Failure) {
    let node = try Parser.value(source)
    if path == "gradient_scale", case .number(let x) = node { return try setNumber(group, path, x) }
    let place = try find(path)
    let p = place.stage.hyper[0].parameters[place.parameter]
    let value: Value
    do throws(Failure) { value = try p.read(node, of: place.stage.name) } catch {
      guard let position = error.position, !error.message.contains("\n") else { throw error }
      throw Failure(Int(error.status), error.message + Parser.pointer(source, position))  // within a schedule
    }
    try set(group, place, value)
  }

  /// Changes a hyper-parameter of one group, or of all and of those to come (nil). All or none: a refusal changes
  /// nothing.
  private func set(_ group: Int?, _ place: Place, _ value: Value) throws(Failure) {
    guard phase < 0 else {
      throw Failure(Status.sequence, "hyper-parameters cannot change between the requests of a step")
    }
    let stage = place.stage, p = stage.standard.parameters[place.parameter]
    var group = group
    stage.isNew = isNew
    risk = nil
    defer { if stage.grown || stage.flag != nil { listed = (-1, []) } }
    if stage.reach(place.parameter) == .all, let g = group {
      let others = populated.subtracting([g])
      if !others.isEmpty {
        let h = stage.hyper[g]
        if p.write(h.values[place.parameter]) == p.write(value) { return }
        throw Failure(
          Status.argument,
          "\(stage.name): `\(p.name)` is one value for all parameter groups; set it for all of them at once")
      }
      group = nil
    }
    if let group {
      try stage.check(stage.hyper[group], place.parameter, value)
      return stage.put(group, place.parameter, value)
    }
    for h in stage.hyper + [stage.standard] { try stage.check(h, place.parameter, value) }
    for g in groups.indices { stage.put(g, place.parameter, value) }
    stage.put(nil, place.parameter, value)
  }

  /// The groups that hold parameters.
  private var populated: Set<Int> { Set(bound.map(\.group)) }
  var populatedGroups: [Int] { populated.sorted() }

  static func places(_ stages: [Stage], _ reach: Parameter.Reach) -> [Place] {
    stages.flatMap { s in
      s.standard.parameters.indices.filter { s.reach($0) == reach }.map { Place(stage: s, parameter: $0) }
    }
  }

  /// Refuses another group beside those that hold parameters where a value that is one for all differs. nil: a group
  /// that is added.
  func checkShared(_ group: Int?) throws(Failure) {
    guard !shared.isEmpty else { return }
    for place in shared {
      let p = place.stage.standard.parameters[place.parameter]
      func value(_ g: Int?) -> String {
        p.write((g.map { place.stage.hyper[$0] } ?? place.stage.standard).values[place.parameter])
      }
      for g in populated where value(g) != value(group) {
        throw Failure(
          Status.argument,
          "\(place.stage.name): `\(p.name)` is one value for all parameter groups: \(value(g)) and \(value(group)) "
            + "do not go together"
        )
      }
    }
  }

  /// At a step: hyper-parameters in which the groups that take part must agree. A step size of 0 leaves its group
  /// alone.
  func checkAgreed() throws(Failure) {
    guard !agreed.isEmpty, groups.count > 1 else { return }
    for place in agreed {
      let s = place.stage, name = s.standard.parameters[place.parameter].name
      var first: Double?
      for i in bound.indices where records[i].active && branches[bound[i].branch].stages.contains(where: { $0 === s }) {
        let x = s.hyper[bound[i].group].numbers[place.parameter]
        if x == 0, name == "lr" { continue }
        if let first, first != x {
          throw Failure(
            Status.range,
            "\(s.name): `\(name)` must be the same in all parameter groups, got \(text(first)) and \(text(x)); "
              + "nothing was changed"
          )
        }
        first = x
      }
    }
  }

  package func getText(_ group: Int, _ path: String) throws(Failure) -> String {
    if ["steps", "skipped", "gradient_scale", "training"].contains(path) { return text(try getNumber(group, path)) }
    let place = try find(path)
    let h = place.stage.hyper[group]
    return h.parameters[place.parameter].write(h.values[place.parameter])
  }

  /// The pipeline with every hyper-parameter of the default group; `route` is written as its branches.
  package var fullSentence: String {
    let shown = stages.filter { !$0.aliases.isEmpty }
    if branches.count == 1 { return shown.map(\.sentence).joined(separator: " | ") }
    let shared = shown.filter { s in
      branches.allSatisfy { $0.stages.contains { $0 === s } } || (s.role == .source && s.branch == nil)
    }
    func isShared(_ s: Stage) -> Bool { shared.contains { $0 === s } }
    let inner = branches.enumerated().map { place, b -> String in
      let selector: String
      switch b.selectors.first ?? .other {
      case .name(let p): selector = "\"\(p)\""
      case .role(let r):
        selector = Selector.words.first { if case .role(r) = $0.1 { true } else { false } }?.0 ?? "other"
      case .matrix: selector = "matrix"
      case .vector: selector = "vector"
      case .scalar: selector = "scalar"
      case .other: selector = "other"
      }
      return "\(selector)=("
        + shown.filter { s in
          (s.role == .source && s.branch == place) || (b.stages.contains { $0 === s } && !isShared(s))
        }.map(\.sentence).joined(separator: " | ") + ")"
    }
    let head = shared.filter { $0.role == .source || $0.role == .gradient }.map(\.sentence)
    let tail = shared.filter { $0.role != .source && $0.role != .gradient }.map(\.sentence)
    return (head + ["route(" + inner.joined(separator: ", ") + ")"] + tail).joined(separator: " | ")
  }

  /// The hyper-parameters of a saved sentence of the same stages, checked but not yet set.
  func parse(sentence: String) throws(Failure) -> [(Stage, [(Int, Value)])] {
    let other = try Compiler(sentence, trusted: true).stages
    guard other.count == stages.count else { throw Failure(Status.mismatch, "the checkpoint is of another pipeline") }
    var list: [(Stage, [(Int, Value)])] = []
    for (mine, saved) in zip(stages, other) {
      var values: [(Int, Value)] = []
      for (k, p) in mine.hyper[0].parameters.enumerated() {
        guard k < saved.hyper[0].values.count else {
          throw Failure(Status.mismatch, "the checkpoint's \(mine.name) has other hyper-parameters")
        }
        let value = saved.hyper[0].values[k]
        if !p.live, p.write(value) != p.write(mine.hyper[0].values[k]) {
          throw Failure(
            Status.mismatch,
            "\(mine.name): `\(p.name)` is \(p.write(value)) in the checkpoint, \(p.write(mine.hyper[0].values[k])) here"
          )
        }
        values.append((k, value))
      }
      list.append((mine, values))
    }
    return list
  }

  /// All that watch it take it, or none when one of them refuses it.
  package func observe(_ what: String, _ value: Double) throws(Failure) {
    let before = (observed, stages.map { ($0.schedules, $0.standardSchedules) })
    do throws(Failure) { try tell(what, value) } catch {
      observed = before.0
      for (s, old) in zip(stages, before.1) { (s.schedules, s.standardSchedules) = old }
      throw error
    }
  }

  private func tell(_ what: String, _ value: Double) throws(Failure) {
    var used = false
    if what == "loss" {
      guard value.isFinite else {
        throw Failure(
          Status.nonfinite,
          "the observed loss is \(text(value))"
            + (stages.first { $0.method.needsLoss }.map { "; \($0.name) needs a finite one" } ?? ""))
      }
      observed["loss"] = value
      used = true
    }
    for s in stages {
      if let source = s.source, source.observes.contains(what) {
        observed[what] = value
        used = true
      }
      if try s.eachSchedule({ (schedule) throws(Failure) in try schedule.observe(what, value) }) { used = true }
    }
    guard used else {
      let known = stages.flatMap { $0.source?.observes ?? [] }.map { "`\($0)`" }.joined(separator: ", ")
      throw Failure(
        Status.name,
        "no stage of this pipeline watches `\(what)`" + (known.isEmpty ? "" : "; its stages watch \(known)"))
    }
  }

  package func command(_ path: String) throws(Failure) {
    let (name, occurrence, rest) = try split(path)
    var ran = false
    for s in stages where name == nil || s.aliases.contains(name ?? "") {
      if let source = s.source, source.commands.contains(rest) {
        _ = occurrence
        try runCommand(s, source, rest)
        ran = true
      }
    }
    for s in stages {
      let at = Double(step)
      if try s.eachSchedule(of: name, { (schedule) throws(Failure) in schedule.command(rest, at: at) }) { ran = true }
    }
    guard ran else { throw Failure(Status.name, "no stage of this pipeline has the command `\(path)`") }
  }
}

extension Stage {
  /// Calls `body` with every schedule, of every group and of groups to come; whether one of them answered true. With a
  /// name: with those of that name.
  func eachSchedule(of name: String? = nil, _ body: (inout any Schedule) throws(Failure) -> Bool) throws(Failure)
    -> Bool
  {
    func isNamed(_ h: Hyper, _ k: Int) -> Bool {
      guard let name else { return true }
      if case .schedule(let node) = h.values[k] { return node.name == name }
      return false
    }
    var any = false
    for g in schedules.indices {
      for (k, old) in schedules[g] where isNamed(hyper[g], k) {
        var changed = old
        if try body(&changed) { any = true }
        schedules[g][k] = changed
      }
    }
    for (k, old) in standardSchedules where isNamed(standard, k) {
      var changed = old
      if try body(&changed) { any = true }
      standardSchedules[k] = changed
    }
    return any
  }
}
