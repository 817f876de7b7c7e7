/// One stage of a pipeline, with its hyper-parameters for every group.
package final class Stage {
  package enum Role: Sendable { case source, gradient, rule, update, applier, after }
  package let id: Int
  package let method: Method
  package let component: Component
  package let role: Role
  /// The names under which a sentence called it: its own, and those of the sentence names that it came from.
  package let aliases: [String]
  /// Hyper-parameters by group; group 0 is the default.
  package var hyper: [Hyper]
  /// Those of its creation, schedules not yet evaluated: they decide which state it has.
  package internal(set) var founding: Hyper
  /// No tensor has stepped with its state yet: `founding` may still ask for more. `grown`: it has, since the state was
  /// planned.
  var isNew = true, grown = false
  /// Schedules by group and parameter.
  package var schedules: [[Int: any Schedule]]
  /// What a group that is added starts from: the sentence's own values, and what was set for all groups since.
  var standard: Hyper
  var standardSchedules: [Int: any Schedule]
  package let element: ElementKernels?
  package let whole: WholeKernels?
  package let source: (any Source)?
  package let scalars: [Scalar]
  package let scope: Scope
  package let phases: Int
  /// Over what the sums of each phase reach.
  let reach: [Scope]
  /// The scalars of global scope (tensors have their own otherwise).
  package let globals: UnsafeMutablePointer<Double>
  /// It stores the parameters that the update moves, and shows the host something else.
  package let isView: Bool
  /// The pipeline of `route` that a source stands in.
  var branch: Int?

  init(
    id: Int, method: Method, component: Component, role: Role, aliases: [String], hyper: Hyper,
    element: ElementKernels?,
    whole: WholeKernels?, source: (any Source)?, isView: Bool = false
  ) throws(Failure) {
    (self.id, self.method, self.component, self.role, self.aliases) = (id, method, component, role, aliases)
    (self.hyper, founding, self.element, self.whole, self.source, self.isView) = (
      [hyper], hyper, element, whole, source, isView
    )
    scalars = element?.scalars(hyper) ?? source?.scalars ?? []
    scope = element?.scope(hyper) ?? .global
    let phases = element?.phases(hyper) ?? 0
    self.phases = phases
    reach = (0..<phases).map { element?.reach(hyper, $0) ?? .global }
    standard = hyper
    standardSchedules = try Stage.schedules(hyper)
    schedules = [standardSchedules]
    // Last: an initialiser that throws after this would leak it.
    globals = .allocate(capacity: max(1, scalars.count))
    for (i, s) in scalars.enumerated() { globals[i] = s.start }
  }
  deinit { globals.deallocate() }

  package var name: String { method.name }
  var perTensor: Bool { (element?.perTensor ?? false) || (scope == .tensor && (phases > 0 || !scalars.isEmpty)) }

  private static func schedules(_ h: Hyper) throws(Failure) -> [Int: any Schedule] {
    var d: [Int: any Schedule] = [:]
    for (i, v) in h.values.enumerated() {
      if case .schedule(let node) = v { d[i] = try Registry.schedule(node) }
    }
    return d
  }

  func reach(_ parameter: Int) -> Parameter.Reach { founding.reach(parameter) }

  func addGroup() {
    hyper.append(standard)
    schedules.append(standardSchedules)
  }

  /// Evaluates the scheduled hyper-parameters of a group at step k; a value out of its range is an error.
  func evaluate(_ group: Int, _ k: Double) throws(Failure) {
    for (i, s) in schedules[group] {
      let x = s.value(k)
      try hyper[group].parameters[i].check(x, of: name)
      hyper[group].numbers[i] = x
    }
  }

  /// Checks that a group with these hyper-parameters may take a value; nothing changes.
  func check(_ old: Hyper, _ parameter: Int, _ value: Value) throws(Failure) {
    let p = old.parameters[parameter]
    guard p.live else { throw Failure(Status.sequence, "\(name): `\(p.name)` is fixed when the optimizer is created") }
    if case .schedule(let node) = value { _ = try Registry.schedule(node) }
    var changed = old
    changed.put(value, parameter)
    try check(changed, "`\(p.name)` = \(p.write(value))")
  }
  /// Checks that hyper-parameters go together, and with the state that there is.
  func check(_ changed: Hyper, _ what: String) throws(Failure) {
    try method.validate(changed)
    guard fits(changed) || (isNew && mayGrow(changed)) else {
      throw Failure(
        Status.sequence,
        "\(name): \(what) needs state that the optimizer was created without: write it in the sentence, "
          + "or set it before the first step")
    }
  }
  /// Gives a group a value that was checked; nil: gives it to what later groups start from.
  func put(_ group: Int?, _ parameter: Int, _ value: Value) {
    var made: (any Schedule)?
    if case .schedule(let node) = value { made = try? Registry.schedule(node) }
    if let group {
      hyper[group].put(value, parameter)
      schedules[group][parameter] = made
    } else {
      standard.put(value, parameter)
      standardSchedules[parameter] = made
    }
    if isNew { grow(group.map { hyper[$0] } ?? standard) }
  }

  package var sentence: String {
    let h = hyper[0]
    guard !h.parameters.isEmpty else { return name }
    return name + "(" + zip(h.parameters, h.values).map { "\($0.name)=\($0.write($1))" }.joined(separator: ", ") + ")"
  }
}

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
  /// The walk that moves the parameters last can mark them.
  private(set) var marksInWalk = false
  let stages: [Stage]
  let perTensor: Bool
  let mayFail: Bool
  let needsFinite: Bool
  /// A whole-tensor rule whose update is the move itself, the step size in it.
  let moves: Bool
  /// The stage that gives the evaluation weights: the last that has some.
  let evaluator: Stage?

  init(selectors: [Selector], gradient: [Stage], rule: Stage, updates: [Stage], applier: Stage?, after: [Stage]) {
    (self.selectors, self.gradient, self.rule, self.updates, self.applier, self.after) = (
      selectors, gradient, rule, updates, applier, after
    )
    stages = gradient + [rule] + updates + (applier.map { [$0] } ?? []) + after
    perTensor = stages.contains { $0.perTensor }
    mayFail = stages.contains { $0.whole?.mayFail($0.hyper[0]) ?? false }
    needsFinite = stages.contains { $0.method.needsFinite }
    moves = rule.whole != nil && rule.method.requests.contains("own-step")
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
    for s in stages { if s.whole?.keepsPoint ?? false { passes.append(Pass(work: .save(s))) } }
    for s in gradient {
      if s.whole != nil {
        passes.append(Pass(work: .materialise, chain: chain, scratchGradient: fromScratch))
        passes.append(Pass(work: .whole(s)))
        (chain, fromScratch, needsScratch) = ([], true, true)
      } else {
        sums(s)
        chain.append(s)
      }
    }
    var fromUpdate = false
    if rule.whole != nil {
      passes.append(Pass(work: .materialise, chain: chain, scratchGradient: fromScratch))
      passes.append(Pass(work: .whole(rule)))
      (fromUpdate, needsScratch) = (true, true)
    } else {
      sums(rule)
    }
    var pending: [Stage] = []
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
    // transforms that compare them: those read the host's gradient again.
    let final = Pass(
      work: .final, chain: chain, scratchGradient: fromScratch && !fromUpdate, scratchUpdate: fromUpdate,
      updates: pending)
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

  /// Sums over all tensors that pipelines of a route share are complete at one barrier: a pipeline that would come to
  /// it earlier waits.
  static func align(_ branches: [Branch], on shared: [Stage]) {
    for s in shared {
      for p in 0..<s.phases where s.reach[p] == .global {
        let places = branches.map {
          $0.planned.firstIndex { segment in segment.last?.measured.map { $0.stage === s && $0.phase == p } ?? false }
        }
        guard let last = places.compactMap({ $0 }).max() else { continue }
        for case (let branch, let place?) in zip(branches, places) where place < last {
          branch.planned.insert(contentsOf: [[Pass]](repeating: [], count: last - place), at: place)
        }
      }
    }
    for b in branches { b.propose() }
  }
}

/// Which tensors a branch of `route` takes.
package enum Selector: Sendable {
  case matrix, vector, scalar, role(Int), name(String), other

  static let words: [(String, Selector)] = [
    ("matrix", .matrix), ("vector", .vector), ("scalar", .scalar), ("bias", .role(2)), ("norm", .role(3)),
    ("embedding", .role(4)),
    ("head", .role(5)), ("other", .other),
  ]

  func takes(_ shape: Shape, _ name: String) -> Bool {
    switch self {
    case .matrix: shape.ndim >= 2 && shape.role != 4 && shape.role != 5
    case .vector: shape.ndim == 1
    case .scalar: shape.ndim == 0
    case .role(let r): shape.role == r
    case .name(let pattern): matches(Array(pattern.utf8)[...], Array(name.utf8)[...])
    case .other: true
    }
  }

  /// Shell-like patterns: `*` any run, `?` one byte.
  private func matches(_ pattern: ArraySlice<UInt8>, _ text: ArraySlice<UInt8>) -> Bool {
    var (p, t) = (pattern.startIndex, text.startIndex)
    var star: (Int, Int)?
    while t < text.endIndex {
      if p < pattern.endIndex, pattern[p] == UInt8(ascii: "*") {
        star = (p, t)
        p += 1
      } else if p < pattern.endIndex, pattern[p] == UInt8(ascii: "?") || pattern[p] == text[t] {
        p += 1
        t += 1
      } else if let (sp, st) = star {
        star = (sp, st + 1)
        (p, t) = (sp + 1, st + 1)
      } else {
        return false
      }
    }
    while p < pattern.endIndex, pattern[p] == UInt8(ascii: "*") { p += 1 }
    return p == pattern.endIndex
  }
}

/// Reads a sentence into branches of stages.
struct Compiler {
  let text: String
  private(set) var stages: [Stage] = []
  /// The stages that decide how gradients are obtained.
  private(set) var sources: [Stage] = []
  /// Keeps the gradients of a route, where some pipeline in it has a source.
  private(set) var routeStage: Stage?
  private(set) var branches: [Branch] = []
  /// Before the next stage there are only sources; it stands inside `route`.
  private var opens = true, routed = false
  /// What views add to the gradients: they stand behind the rule but also act before it.
  private var pulls: [Stage] = []

  private struct Item {
    var node: StageNode
    var aliases: [String]
  }

  /// `trusted`: the sentence was written by `fullSentence`, which may be longer than what is read from a host.
  init(_ text: String, trusted: Bool = false) throws(Failure) {
    self.text = text
    let nodes = try Parser.sentence(text, trusted: trusted)
    try compile(nodes)
  }

  /// Adds the sentence and a caret to an error of a stage.
  private func at(_ node: StageNode, _ f: Failure) -> Failure {
    f.message.contains("\n") ? f : Failure(Int(f.status), f.message + Parser.pointer(text, f.position ?? node.position))
  }

  /// Replaces the names that stand for sentences.
  private func expand(_ nodes: [StageNode], _ aliases: [String], _ position: Int?, _ depth: Int = 0) throws(Failure)
    -> [Item]
  {
    var items: [Item] = []
    for var n in nodes {
      if let position { n.position = position }
      guard let e = Registry.entry(n.name) else {
        throw at(n, Failure(Status.method, "no method `\(n.name)`" + suggestion(n.name, Registry.names())))
      }
      if case .sentence(let make) = e.component, depth < 8 {
        let h: Hyper
        do { h = try e.method.read(n) } catch { throw at(n, error) }
        items += try expand(make(h), aliases + [n.name], n.position, depth + 1)
      } else {
        items.append(Item(node: n, aliases: aliases))
      }
    }
    return items
  }

  private mutating func compile(_ nodes: [StageNode]) throws(Failure) {
    let items = try expand(nodes, [], nil)
    guard let k = items.firstIndex(where: { $0.node.name == "route" }) else {
      branches = [try branch(items, prefix: [], suffix: [], selectors: [.other])]
      return
    }
    let route = items[k].node
    var prefix: [Stage] = []
    for item in items[..<k] { if let s = try stage(item, seenRule: false) { prefix.append(try beside(item, s)) } }
    var suffix: [Stage] = []
    for item in items[(k + 1)...] { if let s = try stage(item, seenRule: true) { suffix.append(try beside(item, s)) } }
    guard !route.arguments.isEmpty else {
      throw at(route, Failure(Status.method, "route needs pipelines, as route(matrix=(muon), other=(adamw))"))
    }
    routed = true
    for a in route.arguments {
      opens = prefix.allSatisfy { $0.role == .source }
      guard let name = a.name else {
        throw at(
          route, Failure(Status.name, "route: every pipeline needs a selector, as matrix=(muon) or \"*.bias\"=(sgd)"))
      }
      let selector = Selector.words.first { $0.0 == name }?.1 ?? .name(name)
      if case .name(let p) = selector, p.utf8.allSatisfy({ $0 == 95 || ($0 >= 97 && $0 <= 122) }),
        nearest(p, Selector.words.map(\.0)) != nil
      {
        throw at(
          route,
          Failure(
            Status.name,
            "route: no selector `\(p)`" + suggestion(p, Selector.words.map(\.0))
              + "; tensors are also selected by name, with a pattern in quotes"))
      }
      let inner: [StageNode]
      switch a.value {
      case .sentence(let s): inner = s
      case .word(let w): inner = [w]
      default:
        throw at(route, Failure(Status.type, "route: `\(name)` must be a pipeline in parentheses, got \(a.value.text)"))
      }
      let nested = try expand(inner, [], nil)
      if let bad = nested.first(where: { $0.node.name == "route" }) {
        throw at(bad.node, Failure(Status.method, "route cannot stand inside route"))
      }
      branches.append(try branch(nested, prefix: prefix, suffix: suffix, selectors: [selector]))
    }
    Branch.align(branches, on: prefix + suffix)
    guard sources.contains(where: { $0.branch != nil }), let e = Registry.entry(route.name) else { return }
    let s = try Stage(
      id: stages.count, method: e.method, component: e.component, role: .source, aliases: [],
      hyper: try e.method.read(StageNode(name: route.name, arguments: [], position: route.position)),
      element: nil, whole: nil, source: nil)
    stages.append(s)
    routeStage = s
  }

  /// A stage outside of route, whose pipelines have the update rules.
  private func beside(_ item: Item, _ s: Stage) throws(Failure) -> Stage {
    guard s.role != .rule else {
      throw at(
        item.node,
        Failure(Status.method, "the update rule `\(s.name)` beside route: every pipeline inside route has its own"))
    }
    return s
  }

  private mutating func branch(_ items: [Item], prefix: [Stage], suffix: [Stage], selectors: [Selector]) throws(Failure)
    -> Branch
  {
    var gradient = prefix.filter { $0.role != .source }, updates: [Stage] = [], after: [Stage] = []
    var rule: Stage?, applier: Stage?
    for item in items {
      guard let s = try stage(item, seenRule: rule != nil) else { continue }
      switch s.role {
      case .source: break
      case .gradient:
        gradient.append(s)
      case .rule:
        if let first = rule {
          throw at(
            item.node, Failure(Status.method, "two update rules, `\(first.name)` and `\(s.name)`: a pipeline has one"))
        }
        rule = s
      case .update: updates.append(s)
      case .applier:
        if let first = applier {
          throw at(item.node, Failure(Status.method, "`\(first.name)` and `\(s.name)` cannot be combined"))
        }
        applier = s
      case .after: after.append(s)
      }
    }
    for s in suffix {
      switch s.role {
      case .update: updates.append(s)
      case .applier: applier = s
      default: after.append(s)
      }
    }
    gradient += pulls
    pulls = []
    guard let rule else {
      let where_ = items.last?.node ?? StageNode(name: "", arguments: [], position: 0)
      throw at(where_, Failure(Status.method, "the pipeline has no update rule; add one, as adamw(lr=1e-3)"))
    }
    if let k = updates.firstIndex(where: { $0.source != nil }) {
      let s = updates[k]
      if k + 1 < updates.count {
        throw Failure(
          Status.method, "`\(updates[k + 1].name)` must stand before `\(s.name)`, which measures the whole update")
      }
      if let other = applier ?? (rule.method.requests.contains("own-step") ? rule : nil) {
        throw Failure(
          Status.method, "`\(s.name)` cannot be combined with `\(other.name)`, which moves the parameters itself")
      }
    }
    if applier != nil, rule.method.requests.contains("own-step") {
      throw Failure(
        Status.method, "`\(applier!.name)` cannot be combined with `\(rule.name)`, which moves the parameters itself")
    }
    return Branch(
      selectors: selectors, gradient: gradient, rule: rule, updates: updates, applier: applier, after: after)
  }

  private mutating func stage(_ item: Item, seenRule: Bool) throws(Failure) -> Stage? {
    let n = item.node
    guard let e = Registry.entry(n.name) else { throw at(n, Failure(Status.method, "no method `\(n.name)`")) }
    do throws(Failure) {
      let h = try e.method.read(n)
      let role: Stage.Role
      var element: ElementKernels?, whole: WholeKernels?, made: (any Source)?, isView = false
      var component = e.component
      if case .chosen(let choose) = component { component = choose(h) }
      switch (e.method.kind, component) {
      case (.optimizer, .element(let k)): (role, element) = (.rule, k)
      case (.optimizer, .whole(let k)): (role, whole) = (.rule, k)
      case (.optimizer, .driven(let make, let k)):
        (role, element, made) = (.rule, k, try make(h))
      case (.transform, .element(let k)): (role, element) = (seenRule ? .update : .gradient, k)
      case (.transform, .whole(let k)): (role, whole) = (seenRule ? .update : .gradient, k)
      case (.update, .element(let k)): (role, element) = (.update, k)
      case (.update, .whole(let k)): (role, whole) = (.update, k)
      case (.update, .driven(let make, let k)): (role, element, made) = (.update, k, try make(h))
      case (.average, .element(let k)): (role, element) = (e.method.requests.contains("applier") ? .applier : .after, k)
      case (.average, .whole(let k)): (role, whole) = (.after, k)
      case (_, .source(let make)): (role, made) = (.source, try make(h))
      case (_, .adapter(let kind)):
        (role, element, whole) = try adapt(kind, h)
      case (.mask, .constraint(let k)):
        (role, whole, isView) = (.after, k.view(h), true)
      default:
        throw Failure(
          Status.method,
          "`\(n.name)` is \(e.method.kind.withArticle); it cannot be a stage of a pipeline"
            + (e.method.kind == .regularizer ? ": write penalty(\(n.text)) or prox(\(n.text))" : "")
            + (e.method.kind == .objective ? ": it is called on its own" : "")
            + (e.method.kind == .constraint ? ": write project(\(n.text))" : "")
            + (e.method.kind == .schedule ? ": write it as the value of a hyper-parameter, as lr=\(n.text)" : ""))
      }
      if e.method.kind == .update || e.method.kind == .average || role == .after || role == .applier, !seenRule {
        throw Failure(Status.method, "`\(n.name)` must stand after the update rule")
      }
      if role == .gradient || role == .source, seenRule {
        throw Failure(Status.method, "`\(n.name)` must stand before the update rule")
      }
      let s = try Stage(
        id: stages.count, method: e.method, component: component, role: role, aliases: item.aliases + [n.name],
        hyper: h,
        element: element, whole: whole, source: made, isView: isView)
      if let made {
        if role == .source, !opens {
          throw Failure(Status.method, "`\(n.name)` must stand before the stages that change gradients")
        }
        if sources.count >= 16 {
          throw Failure(Status.method, "more than 16 stages that decide how gradients are obtained")
        }
        if routed {
          if made.global {
            throw Failure(
              Status.method,
              "`\(n.name)` reaches all tensors: it cannot stand inside route(...), but may stand behind it")
          }
          s.branch = branches.count
        }
        sources.append(s)
      }
      if role != .source { opens = false }
      stages.append(s)
      if case .constraint(let k) = e.component, e.method.kind == .mask, let pull = k.pull?(h) {
        let p = try Stage(
          id: stages.count, method: e.method, component: e.component, role: .gradient, aliases: [], hyper: h,
          element: nil, whole: pull,
          source: nil)
        stages.append(p)
        pulls.append(p)
      }
      return s
    } catch { throw at(n, error) }
  }

  private func adapt(_ kind: Adapter, _ h: Hyper) throws(Failure) -> (Stage.Role, ElementKernels?, WholeKernels?) {
    guard case .stage(let inner) = h.values[0] else {
      throw Failure(Status.internal, "an adapter without its argument")
    }
    switch kind {
    case .penalty, .prox, .decoupledPenalty:
      let (e, ih) = try Registry.component(inner, .regularizer)
      if case .objective = e.component {
        throw Failure(
          Status.needs,
          "\(inner.name) needs \(e.method.inputs.dropFirst().map { "`\($0.name)`" }.joined(separator: ", ")), which "
            + "a pipeline cannot give it: add its gradient on its own"
        )
      }
      guard case .regularizer(let r) = e.component else {
        throw Failure(Status.internal, "\(inner.name) is no regularizer")
      }
      if kind == .prox, !r.hasProx { throw Failure(Status.unsupported, "\(inner.name) has no prox") }
      let (element, whole) = kind == .penalty ? r.penalty(ih) : kind == .prox ? r.proximal(ih) : r.decoupled(ih)
      return (kind == .penalty ? .gradient : .after, element, whole)
    case .project, .manifold:
      let (e, ih) = try Registry.component(inner, .constraint)
      guard case .constraint(let c) = e.component else {
        throw Failure(Status.internal, "\(inner.name) is no constraint")
      }
      if kind == .manifold {
        guard let m = c.manifold else {
          throw Failure(Status.unsupported, "\(inner.name) is not a manifold with a retraction")
        }
        return (.after, nil, m(ih))
      }
      let (element, whole) = c.projection(ih)
      return (.after, element, whole)
    }
  }
}
