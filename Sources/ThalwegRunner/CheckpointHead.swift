import CThalweg
import ThalwegCore

// What a checkpoint says of a run as a whole, read and checked before anything is changed.

extension Checkpoint {
  /// Counters, the pending request, and what there is for each tensor, in the order of this optimizer.
  struct Head {
    var step = 0, skipped = 0, phase = -1, calls = 0
    var pointLoss = Double.nan
    var pending = Request(), lossFirst = false, evaluating = false, knowsActive = false
    var gradientScale: Double?
    var observed: [String: Double] = [:]
    var answer: HostMatrix?
    var stack: [Frame] = []
    var tensors: [(t: Int, key: UInt32, flags: Int)] = []
    /// Position in the file of each tensor of this optimizer.
    var order: [Int] = []
    var within: Bool { phase >= 0 }

    init(_ file: Safetensors, _ o: Optimizer) throws(Failure) {
      let n = o.bound.count, old = file.written == 1
      guard let c = file.numbers("engine/step"), c.count >= (old ? 9 : 13) else {
        throw Safetensors.damaged("it has no counters")
      }
      let senseless = Safetensors.damaged("its counters make no sense")
      guard c.allSatisfy({ $0.isFinite && abs($0) < 9e15 }), c.prefix(11).allSatisfy({ $0 == $0.rounded() }), c[0] >= 0,
        c[1] >= 0, c[2] >= -1,
        c[3] >= 0, c[3] < Double(Request.Kind.allCases.count), c[4] >= 0, c[5] >= 0, c[5] < 0x1p32, c[6] >= 0,
        c[6] < 0x1p32, c[7] >= 0, c[8] >= 0
      else { throw senseless }
      (step, skipped, phase) = (Int(c[0]), Int(c[1]), Int(c[2]))
      pending = Request(
        kind: Request.Kind(rawValue: Int32(c[3])) ?? .none, pass: Int(c[4]), tag: UInt64(c[5]) | UInt64(c[6]) << 32,
        index: Int(c[7]),
        count: Int(c[8]))
      calls = step
      if !old {
        guard c[9] >= 0, c[10] == 0 || c[10] == 1, c[11] > 0, (0...3).contains(c[12]) else { throw senseless }
        (calls, evaluating, gradientScale) = (Int(c[9]), c[10] == 1, c[11])
        (lossFirst, knowsActive) = (Int(c[12]) & 1 != 0, Int(c[12]) & 2 == 0)
      }
      // (files of earlier versions have none)
      let losses = within ? file.numbers("engine/losses") : nil
      let unasked = losses.map { $0.count == 1 } ?? (lossFirst && pending.kind == .loss && phase == 0)
      if within { stack = try Checkpoint.frames(file, o, phase, unasked) }
      if let row = losses, !unasked || row.count == 1 {
        guard row.count == 1 + 3 * stack.count else { throw senseless }
        pointLoss = row[0]
        for k in stack.indices {
          (stack[k].loss, stack[k].told, stack[k].waits) = (row[3 * k + 1], row[3 * k + 2], row[3 * k + 3] == 1)
        }
      }
      guard !(within && evaluating), o.mayWait(pending, stack, lossFirst) else { throw senseless }
      if within, let row = file.numbers("engine/answer") {
        guard row.count >= 2, row[0] >= 0, row[1] >= 0, row[0] <= 0x1p31, row[1] <= 0x1p31,
          row[0] * row[1] == Double(row.count - 2)
        else {
          throw Safetensors.damaged("its kept answer makes no sense")
        }
        answer = HostMatrix(Array(row[2...]), Int(row[0]), Int(row[1]))
      }
      if old {
        guard let t = file.numbers("engine/tensor_steps"), t.count == n, t.allSatisfy({ $0 >= 0 && $0 < 9e15 }) else {
          throw senseless
        }
        order = Array(0..<n)
        let flags = step > 0 || within ? Flag.started : 0
        // An older file does not say which tensors are away: those are where a gradient is wanted after the first
        // answer.
        let away = phase > 0 && pending.kind.takesGradients && pending.kind != .hessianVector ? Flag.away : 0
        tensors = t.indices.map { (Int(t[$0]), UInt32(truncatingIfNeeded: $0), flags | away) }
        return
      }
      guard let text = file.text("engine/names"), let t = file.numbers("engine/tensors") else {
        throw Safetensors.damaged("it names no tensors")
      }
      let names = text.split(separator: "\0", omittingEmptySubsequences: false).dropLast().map(String.init)
      guard t.count == names.count * 3, t.allSatisfy({ $0 >= 0 && $0 < 9e15 && $0 == $0.rounded() }) else {
        throw senseless
      }
      var place: [Exact: Int] = [:]
      for (k, name) in names.enumerated() { place[Exact(name)] = k }
      guard place.count == names.count else { throw senseless }
      for b in o.bound {
        guard let k = place[Exact(b.name)] else {
          throw Failure(Status.mismatch, "the checkpoint has no parameter `\(b.name)`" + suggestion(b.name, names))
        }
        order.append(k)
        tensors.append((Int(t[3 * k]), UInt32(truncatingIfNeeded: Int(t[3 * k + 1])), Int(t[3 * k + 2])))
      }
      guard pending.kind != .activations || !within || order == Array(0..<n) else {
        throw Failure(
          Status.mismatch,
          "the checkpoint waits for the activations of one layer after the other; bind the parameters in its order")
      }
      guard names.count == n else {
        let mine = Set(o.bound.map { Exact($0.name) })
        throw Failure(
          Status.mismatch,
          "the checkpoint has the parameter `\(names.first { !mine.contains(Exact($0)) } ?? "")`, which this "
            + "optimizer does not"
        )
      }
      guard let values = file.numbers("engine/observed"), let text = file.text("engine/observed_names") else {
        throw senseless
      }
      let what = text.split(separator: "\0", omittingEmptySubsequences: false).dropLast().map(String.init)
      guard what.count == values.count else { throw senseless }
      for (name, x) in zip(what, values) { observed[name] = x }
    }
  }

  /// Hyper-parameters of every group of this optimizer, checked.
  struct Settings {
    private var list: [(stage: Stage, group: Int, hyper: Hyper)] = []
    /// For a group of the file (−1: those to come), the one of this optimizer.
    private(set) var groups: [Int: Int] = [-1: -1]

    init(_ file: Safetensors, _ o: Optimizer, _ sentence: String) throws(Failure) {
      let base = try o.parse(sentence: sentence)
      guard file.written > 1 else {
        // Version 1: what was set for the default group.
        for (s, values) in base {
          var h = s.hyper[0]
          for (k, v) in values { h.put(v, k) }
          list.append((s, 0, h))
          list.append((s, -1, h))
        }
        for g in o.groups.indices { groups[g] = g }
        return
      }
      var json = JSON(Array((file.text("engine/settings") ?? "").utf8))
      guard let top = json.object() else { throw Safetensors.damaged("it has no hyper-parameters") }
      var saved: [(key: Int, name: String, values: [JSON.Field])] = []
      for entry in top {
        guard case .object(let fields) = entry.item, let k = Int(entry.key), k >= -1 else {
          throw Safetensors.damaged("its parameter groups make no sense")
        }
        var group = ""
        if case .string(let g)? = fields.first(where: { $0.key == "name" })?.item { group = g }
        saved.append((k, group, fields.filter { $0.key != "name" }))
      }
      let theirs = saved.filter { $0.key >= 0 }
      // A group of the file that was bound without a name, or is empty, need not be so here.
      let mine = o.populatedGroups, named = theirs.filter { $0.key > 0 }
      if theirs.count != o.groups.count, let there = [theirs, named].first(where: { $0.count == mine.count }) {
        for (t, g) in zip(there.sorted { $0.key < $1.key }, mine) { groups[t.key] = g }
        for t in saved where t.key < 0 || groups[t.key] != nil { try read(t.values, groups[t.key] ?? -1, o) }
        return
      }
      let byName = theirs.allSatisfy { t in o.groups.place(of: t.name) != nil }
      guard theirs.count == o.groups.count, Set(theirs.map(\.key)) == Set(o.groups.indices) else {
        func list(_ names: [String]) -> String { names.dropFirst().map { "`\($0)`" }.joined(separator: ", ") }
        throw Failure(
          Status.mismatch,
          "the checkpoint has \(theirs.count - 1) named parameter groups (\(list(theirs.map(\.name)))), "
            + "this optimizer has \(o.groups.count - 1) (\(list(Array(o.groups))))")
      }
      for (k, name, values) in saved {
        let mine = k < 0 ? -1 : byName ? o.groups.place(of: name) ?? k : k
        groups[k] = mine
        try read(values, mine, o)
      }
    }

    /// Takes the values of one group of the file for a group of this optimizer (−1: those to come).
    private mutating func read(_ values: [JSON.Field], _ mine: Int, _ o: Optimizer) throws(Failure) {
      var texts: [String: String] = [:]
      for field in values { if case .string(let t) = field.item { texts[field.key] = t } }
      for s in o.stages where !s.aliases.isEmpty {
        var h = mine < 0 ? s.standard : s.hyper[mine]
        for (i, p) in h.parameters.enumerated() where p.live {
          guard let text = texts["\(s.id).\(p.name)"] else { continue }
          do throws(Failure) { h.put(try p.read(try Parser.value(text, trusted: true), of: s.name), i) } catch {
            throw Failure(Status.mismatch, "the checkpoint's \(s.name).\(p.name) is not known here: \(error.message)")
          }
        }
        try s.check(h, "what was saved")
        list.append((s, mine, h))
      }
    }

    /// State that was asked for before the first step of the optimizer that was saved.
    func grow() { for (s, _, h) in list where s.isNew { s.grow(h) } }

    func put(_ o: Optimizer) {
      for (s, group, h) in list {
        for (k, v) in h.values.enumerated() where h.parameters[k].live { s.put(group < 0 ? nil : group, k, v) }
      }
    }
    /// The hyper-parameters that a group will have.
    func hyper(_ s: Stage, _ group: Int) -> Hyper {
      list.last { $0.stage === s && $0.group == group }?.hyper ?? (group < 0 ? s.standard : s.hyper[group])
    }
    /// The schedule that a group will have, fresh.
    func schedule(_ s: Stage, _ group: Int, _ parameter: Int) -> (any Schedule)? {
      let h = hyper(s, group)
      guard h.values.indices.contains(parameter), case .schedule(let node) = h.values[parameter] else { return nil }
      return try? Registry.schedule(node)
    }
  }
}

extension Optimizer {
  /// Live hyper-parameters by group, as JSON: {"-1": {"0.lr": "0.1", ...}, "0": {"name": "", "0.lr": ...}, ...}; −1 is
  /// what groups to come start from.
  var settingsText: String {
    func object(_ name: String?, _ hyper: (Stage) -> Hyper) -> String {
      var fields: [String] = name.map { ["\"name\":" + JSON.escape($0)] } ?? []
      for s in stages where !s.aliases.isEmpty {
        let h = hyper(s)
        for (p, v) in zip(h.parameters, h.values) where p.live {
          fields.append("\"\(s.id).\(p.name)\":" + JSON.escape(p.write(v)))
        }
      }
      return "{" + fields.joined(separator: ",") + "}"
    }
    let list =
      ["\"-1\":" + object(nil) { $0.standard }]
      + groups.indices.map { g in "\"\(g)\":" + object(groups[g]) { $0.hyper[g] } }
    return "{" + list.joined(separator: ",") + "}"
  }

  typealias Remembering = (stage: Stage, group: Int, parameter: Int)
  /// The schedules that remember something: stage, group or −1 for those to come, hyper-parameter.
  var remembering: [Remembering] {
    stages.flatMap { s in
      (-1..<groups.count).flatMap { g in
        (g < 0 ? s.standardSchedules : s.schedules[g]).sorted { $0.key < $1.key }.filter { !$0.value.memory.isEmpty }
          .map { (s, g, $0.key) }
      }
    }
  }
  func schedule(_ m: Remembering) -> (any Schedule)? {
    (m.group < 0 ? m.stage.standardSchedules : m.stage.schedules[m.group])[m.parameter]
  }
  func memory(_ m: Remembering) -> [Double] { schedule(m)?.memory ?? [] }
  func put(_ memory: [Double], _ m: Remembering) {
    if m.group < 0 {
      m.stage.standardSchedules[m.parameter]?.memory = memory
    } else {
      m.stage.schedules[m.group][m.parameter]?.memory = memory
    }
  }
  /// What schedules remember: (group or −1, stage, parameter, count, numbers), one after the other.
  var memories: [Double] {
    remembering.flatMap { m in
      let memory = memory(m)
      return [m.group, m.stage.id, m.parameter, memory.count].map(Double.init) + memory
    }
  }

  func scalarValues(_ s: Stage) -> [Double] {
    if s.scope == .global { return (0..<s.scalars.count).map { s.globals[$0] } }
    return (0..<bound.count).flatMap { i in
      (0..<s.scalars.count).map {
        uses(s, bound[i]) && i < planned ? records[i].scalars[s.id][$0] : s.scalars[$0].start
      }
    }
  }
  func putScalars(_ s: Stage, _ values: [Double]) {
    let n = s.scalars.count
    if s.scope == .global {
      for k in 0..<n { s.globals[k] = values[k] }
    } else {
      for i in 0..<bound.count where uses(s, bound[i]) {
        for k in 0..<n { records[i].scalars[s.id][k] = values[i * n + k] }
      }
    }
  }

  /// A checkpoint within a step says who asks whom.
  var composed: Bool { sources.count > 1 || routeStage != nil }

  /// Whether this pipeline may wait for a request, with these sources at work.
  func mayWait(_ r: Request, _ stack: [Frame], _ lossFirst: Bool) -> Bool {
    let own = sources.flatMap { $0.source?.kinds ?? [] }
    for f in stack {
      guard case .source(let k) = f.part else { continue }
      if f.phase >= sources[k].source?.most(bound.count) ?? 1 { return false }
    }
    return r.index < max(1, r.count, bound.count) && r.count <= 1 << 31
      && (r.kind == .none || ([.gradient, .loss, .lossAndGradient] + own).contains(r.kind)) && (!lossFirst || opens)
  }

  /// A request that a loaded checkpoint was waiting for.
  package var waiting: Request? { phase >= 0 ? pending : nil }
}
