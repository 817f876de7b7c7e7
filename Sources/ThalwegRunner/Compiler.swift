import ThalwegCore

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
      if let position {  // that of the name: what it stands for is written nowhere
        n.position = position
        for k in n.arguments.indices { n.arguments[k].position = position }
      }
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
          route,
          Failure(
            Status.name, "route: every pipeline needs a selector, as matrix=(muon) or \"*.bias\"=(sgd)",
            at: a.position))
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
              + "; tensors are also selected by name, with a pattern in quotes", at: a.position))
      }
      let inner: [StageNode]
      switch a.value {
      case .sentence(let s): inner = s
      case .word(let w): inner = [w]
      default:
        throw at(
          route,
          Failure(
            Status.type, "route: `\(name)` must be a pipeline in parentheses, got \(a.value.text)", at: a.position))
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
    updates = inPlace(updates)
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
      if let other = applier ?? (rule.method.asks(for: "own-step") ? rule : nil) {
        throw Failure(
          Status.method, "`\(s.name)` cannot be combined with `\(other.name)`, which moves the parameters itself")
      }
    }
    if let s = updates.first, rule.method.asks(for: "no-updates") {
      throw Failure(
        Status.method,
        "`\(s.name)` cannot stand behind `\(rule.name)`, whose update is not its move; write the rule without "
          + "average, the stage and schedule_free, as adam(beta1=0) | \(s.name) | schedule_free")
    }
    // iterates beside the parameters would not see what moves those alone
    func moves(_ s: Stage) -> Bool {
      if case .adapter(let kind) = s.component { return kind.moves }
      return s.whole.map { $0.evaluate == nil } ?? false
    }
    let evaluates = rule.element?.evaluates ?? (rule.whole?.evaluate != nil)
    if let averages = applier ?? (rule.method.asks(for: "own-step") && evaluates ? rule : nil),
      let s = after.first(where: moves)
    {
      throw Failure(
        Status.method,
        "`\(s.name)` cannot stand behind `\(averages.name)`: it would move the point where gradients are taken, and "
          + "not the weights that are averaged; `ema` goes with it")
    }
    let masks = updates.filter { $0.whole?.traits.masksDecay ?? false }
    if masks.count > 1 {
      throw Failure(Status.method, "`\(masks[0].name)` stands behind the rule twice: the decay is masked once")
    }
    if let mask = updates.firstIndex(where: { $0.whole?.traits.masksDecay ?? false }),
      let k = updates.indices.dropFirst(mask + 2).first(where: { readsDecay(updates[$0]) })
    {
      throw Failure(
        Status.method,
        "`\(updates[k].name)` measures the weights behind the decay that `\(updates[mask].name)` masks, and "
          + "`\(updates[k - 1].name)` between them hides the mask")
    }
    if rule.source?.handsDirection ?? false, let s = gradient.first(where: { $0.hyper[0].held[0] != nil }) {
      throw Failure(
        Status.method,
        "`\(s.name)` cannot stand before `\(rule.name)`, which makes its direction of gradients of its own requests: "
          + "add the term to the loss and its gradient to the answers")
    }
    let decay = rule.element?.decay(rule.hyper[0]) ?? rule.whole?.decay(rule.hyper[0]) ?? .none
    if decay == .rule, let s = updates.first(where: { $0.whole?.changesDecay ?? false }) {
      throw Failure(
        Status.method,
        "`\(s.name)` finds no decay to change behind `\(rule.name)`, which takes its weight decay into its own step")
    }
    if applier != nil, rule.method.asks(for: "own-step") {
      throw Failure(
        Status.method, "`\(applier!.name)` cannot be combined with `\(rule.name)`, which moves the parameters itself")
    }
    return Branch(
      selectors: selectors, gradient: gradient, rule: rule, updates: updates, applier: applier, after: after)
  }

  private func readsDecay(_ s: Stage) -> Bool {
    guard let whole = s.whole, whole.traits.readsDecay else { return false }
    return whole.place(s.hyper[0]) == .norm
  }

  /// Stages behind a rule in the order in which they act: directions, the decay, norms; each kind as the sentence has
  /// it. None changes sides with a stage that measures the update.
  private func inPlace(_ updates: [Stage]) -> [Stage] {
    var ordered: [Stage] = [], first = 0
    func place(_ s: Stage) -> Int { (s.whole?.place(s.hyper[0]) ?? .direction).rawValue }
    for end in updates.indices where updates[end].source != nil || end == updates.count - 1 {
      let run = updates[first...end], last = run.last?.source == nil ? run : run.dropLast()
      for k in 0...UpdatePlace.norm.rawValue { ordered += last.filter { place($0) == k } }
      ordered += run.dropFirst(last.count)
      first = end + 1
    }
    return ordered
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
      if case .driven(let make, let rule) = component { (made, component) = (try make(h), rule) }
      switch (e.method.kind, component) {
      case (.optimizer, .element(let k)): (role, element) = (.rule, k)
      case (.optimizer, .whole(let k)): (role, whole) = (.rule, k)
      case (.transform, .element(let k)): (role, element) = (seenRule ? .update : .gradient, k)
      case (.transform, .whole(let k)): (role, whole) = (seenRule ? .update : .gradient, k)
      case (.update, .element(let k)): (role, element) = (.update, k)
      case (.update, .whole(let k)): (role, whole) = (.update, k)
      case (.average, .element(let k)): (role, element) = (e.method.asks(for: "applier") ? .applier : .after, k)
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
              "`\(n.name)` reaches all tensors: it cannot stand inside route(...)"
                + (role == .update ? ", but may stand behind it" : ""))
          }
          s.branch = branches.count
        }
        if let first = sources.first, !made.takesGradients {
          throw Failure(
            Status.method, "`\(n.name)` asks for no gradient: `\(first.name)` before it would have nothing to do")
        }
        let single = sources.first { !($0.source?.takesGradients ?? true) }
        if let first = single, made.kinds.contains(.taskGradient) {
          throw Failure(
            Status.method,
            "`\(n.name)` asks for the gradient of every task, and `\(first.name)` before it makes one of all")
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
    guard let inner = h.held[0] else { throw Failure(Status.internal, "an adapter without its argument") }
    let (name, ih) = (inner.method.name, inner.hyper)
    switch kind {
    case .penalty, .prox, .decoupledPenalty:
      if case .objective(let k) = inner.component {
        let own = k.inPipelines
        if let make = kind == .penalty ? own.penalty : kind == .prox ? own.proximal : own.decoupled {
          let (element, whole) = make(ih)
          return (kind == .penalty ? .gradient : .after, element, whole)
        }
        if own.penalty != nil {
          throw Failure(Status.unsupported, "\(name) looks at the gradient: write penalty(\(name)) before the rule")
        }
        let needs = inner.method.inputs.dropFirst().filter { !$0.optional }.map { "`\($0.name)`" }.joined(
          separator: ", ")
        throw Failure(
          Status.needs,
          needs.isEmpty
            ? "\(name) is no penalty of single parameters: call it on its own, and add its gradient"
            : "\(name) needs \(needs), which a pipeline cannot give it: add its gradient on its own")
      }
      guard case .regularizer(let r) = inner.component else {
        throw Failure(Status.internal, "\(name) is no regularizer")
      }
      if kind == .prox, !r.hasProx { throw Failure(Status.unsupported, "\(name) has no prox") }
      let (element, whole) = kind == .penalty ? r.penalty(ih) : kind == .prox ? r.proximal(ih) : r.decoupled(ih)
      return (kind == .penalty ? .gradient : .after, element, whole)
    case .project, .manifold:
      let set = try HeldSet(inner)
      if kind == .manifold {
        guard let m = set.kernels.manifold else {
          throw Failure(Status.unsupported, "\(name) is not a manifold with a retraction")
        }
        return (.after, nil, m.move.binding(ih))
      }
      let (element, whole) = set.kernels.projection(ih)
      return (.after, element, whole)
    }
  }
}
