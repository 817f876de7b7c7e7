/// A method describes itself once; the parser, introspection, Python's classes and the documentation all come from
/// here.
public struct Method: Sendable {
  public enum Kind: String, Sendable, CaseIterable {
    case optimizer, transform, update, perturbation, aggregator, schedule, average, regularizer, constraint, objective,
      mask, routing, weighting, diagnostic, solver

    /// "an objective".
    public var withArticle: String { rawValue.withArticle }
    /// Never a stage of a pipeline: it is made with its numbers, and keeps them.
    public var standsAlone: Bool {
      switch self {
      case .objective, .weighting, .diagnostic, .solver, .schedule: true
      default: false
      }
    }
  }
  public var name: String
  public var kind: Kind
  public var summary: String
  public var rule: String
  public var source: String
  public var parameters: [Parameter]
  public var slots: [Slot]
  /// The tensors that it takes by name, where it is called on its own.
  public var inputs: [Input]
  /// The requests that a solver makes, and what it keeps between them besides its results.
  public var asks: [RequestKind] = []
  public var kept: [Input] = []
  /// What it asks the host for besides one gradient a step, comma separated.
  public var requests: String
  /// Whether that is among them.
  public func asks(for request: String) -> Bool {
    requests.split(separator: ",").contains { $0.drop { $0 == " " } == request }
  }
  /// It needs the loss of the step (`observe("loss", ...)`, or the answer to a request).
  public var needsLoss: Bool
  /// It refuses non-finite gradients whatever the policy: a reduction or factorisation would spread them.
  public var needsFinite: Bool
  /// Why 16-bit parameters with stochastic rounding are refused, where they are: the end of a sentence.
  public var refusesStochastic: String?
  /// Checks what a single range cannot say: combinations of hyper-parameters. Runs at creation and whenever one is set.
  public var validate: @Sendable (Hyper) throws(Failure) -> Void

  public init(
    _ name: String, _ kind: Kind, _ summary: String, rule: String, source: String, parameters: [Parameter] = [],
    slots: [Slot] = [],
    inputs: [Input] = [], requests: String = "", needsLoss: Bool = false, needsFinite: Bool = false,
    refusesStochastic: String? = nil, validate: @escaping @Sendable (Hyper) throws(Failure) -> Void = { _ in }
  ) {
    (self.name, self.kind, self.summary, self.rule, self.source) = (name, kind, summary, rule, source)
    self.parameters = parameters
    if kind.standsAlone { for k in parameters.indices { self.parameters[k].live = false } }
    (self.slots, self.inputs, self.requests) = (slots, inputs, requests)
    (self.needsLoss, self.needsFinite, self.validate) = (needsLoss, needsFinite, validate)
    self.refusesStochastic = refusesStochastic
    if kind == .aggregator, inputs.isEmpty, asks(for: "task_gradient") { self.inputs = Method.ofAggregators }
  }

  /// What an aggregator takes and gives where it is called on its own.
  private static let ofAggregators: [Input] = [
    .constant("J", "tasks, n", "the gradients, one task a row"),
    .constant("losses", "tasks", "the losses of the tasks, of methods that look at them", optional: true),
    .result("gradient", "n", "the combined gradient"),
    .result("weights", "tasks", "the weights of the rows in it, of methods that have such"),
    .result("residual", "", "by how much the conditions of an exact answer are missed, of methods that iterate"),
    .result("iterations", "", "how many it took, of methods that iterate"),
  ]

  /// Reads the arguments of a stage: positional ones in the order of the parameters, then by name; the rest take their
  /// defaults.
  public func read(_ node: StageNode) throws(Failure) -> Hyper {
    var values: [Value?] = parameters.map { _ in nil }
    var positional = 0
    guard node.arguments.count <= parameters.count else {
      throw Failure(Status.name, "\(name) takes at most \(parameters.count) arguments, got \(node.arguments.count)")
    }
    for a in node.arguments {
      let index: Int
      if let n = a.name {
        guard let k = parameters.firstIndex(where: { $0.name == n }) else {
          throw Failure(
            Status.name,
            "\(name) has no hyper-parameter `\(n)`" + suggestion(n, parameters.map(\.name)) + "; it has: "
              + (parameters.isEmpty ? "none" : parameters.map(\.name).joined(separator: ", ")), at: a.position)
        }
        index = k
      } else {
        index = positional
        positional += 1
      }
      guard values[index] == nil else {
        throw Failure(Status.name, "\(name): `\(parameters[index].name)` is given twice", at: a.position)
      }
      do throws(Failure) { values[index] = try parameters[index].read(a.value, of: name) } catch {
        throw Failure(Int(error.status), error.message, at: error.position ?? a.position)
      }
    }
    var all: [Value] = []
    for (p, v) in zip(parameters, values) {
      guard let value = v ?? p.standard else {
        throw Failure(Status.name, "\(name) needs `\(p.name)`: \(p.expectation) (\(p.meaning))")
      }
      all.append(value)
    }
    for (k, p) in parameters.enumerated() where values[k] == nil {
      if let rule = p.rule { all[k] = .number(rule(Hyper(parameters, all))) }
    }
    var h = Hyper(parameters, all)
    for (k, value) in all.enumerated() {
      let node: StageNode, kind: Kind
      switch value {
      case .stage(let s): (node, kind) = (s, parameters[k].kind == .regularizer ? .regularizer : .constraint)
      case .pipeline(let stages):
        guard let only = stages.first, stages.count == 1 else {
          throw Failure(Status.method, "\(name): `\(parameters[k].name)` must be one rule, got \(stages.count) stages")
        }
        (node, kind) = (only, .optimizer)
      default: continue
      }
      do throws(Failure) {
        let (e, inner) = try Registry.component(node, kind, schedules: parameters[k].schedulesHeld)
        h.held[k] = Held(method: e.method, component: e.component, hyper: inner)
      } catch { throw error.within(node) }
    }
    try validate(h)
    return h
  }
}

/// A method that another one holds as the value of a hyper-parameter.
public struct Held: Sendable {
  public let method: Method
  public let component: Component
  public let hyper: Hyper
}

/// What a method is to the engine.
public enum Component: Sendable {
  /// An element-wise update rule, transform or average.
  case element(ElementKernels)
  /// A whole-tensor rule, transform or set.
  case whole(WholeKernels)
  /// One or the other, by its hyper-parameters at creation.
  indirect case chosen(@Sendable (Hyper) -> Component)
  /// Decides how gradients are obtained.
  case source(@Sendable (Hyper) throws(Failure) -> any Source)
  /// A source and the rule that belongs to it, element-wise or whole.
  indirect case driven(@Sendable (Hyper) throws(Failure) -> (any Source)?, Component)
  case schedule(@Sendable (Hyper) throws(Failure) -> any Schedule)
  case regularizer(RegularizerKernels)
  case constraint(ConstraintKernels)
  /// A value and gradients of named tensors; a regularizer too, when it needs more than the weights.
  case objective(ObjectiveKernels)
  /// Runs on its own, from named tensors to named results, and may ask.
  case solver(@Sendable (Hyper) throws(Failure) -> DriverKernels)
  /// A name for a pipeline of other methods.
  case sentence(@Sendable (Hyper) -> [StageNode])
  /// Takes a regularizer or a constraint: `penalty`, `prox`, `project`, `manifold`.
  case adapter(Adapter)
  /// Sends tensors to pipelines.
  case route
}

public enum Adapter: Sendable {
  case penalty, prox, decoupledPenalty, project, manifold
  /// It changes the parameters behind the step.
  public var moves: Bool { self != .penalty }
}

public struct Registered: Sendable {
  public let method: Method
  public let component: Component
  public init(method: Method, component: Component) { (self.method, self.component) = (method, component) }
}

/// Every method that this library was linked with: the module above all families says which.
@_silgen_name("twi_registered_methods")
private func registeredMethods() -> [Registered]

public enum Registry {
  public static let all: [Registered] = registeredMethods().sorted { $0.method.name < $1.method.name }
  private static let index: [String: Int] = {
    var d: [String: Int] = [:]
    for (i, r) in all.enumerated() { d[r.method.name] = i }
    return d
  }()

  public static func entry(_ name: String) -> Registered? { index[name].map { all[$0] } }
  @inlinable public static func find(_ name: String) -> Method? { entry(name)?.method }
  public static func names(_ kind: Method.Kind? = nil) -> [String] {
    all.filter { kind == nil || $0.method.kind == kind }.map(\.method.name)
  }

  /// The entry of a stage, which must be of one kind; its arguments are checked.
  /// `schedules`: numbers may be functions of the step, which the caller evaluates; they begin as of the first.
  public static func component(
    _ node: StageNode, _ kind: Method.Kind, schedules: Bool = false
  ) throws(Failure) -> (Registered, Hyper) {
    guard let e = entry(node.name) else {
      throw Failure(Status.method, "no \(kind.rawValue) `\(node.name)`" + suggestion(node.name, names(kind)))
    }
    guard e.method.kind == kind || (kind == .constraint && e.method.kind == .mask) else {
      throw Failure(
        Status.method,
        "`\(node.name)` is \(e.method.kind.withArticle); \(kind.withArticle) is wanted here"
          + suggestion(node.name, names(kind)))
    }
    var h = try e.method.read(kind == .schedule ? node.withoutMemory : node)
    // Only the stages of a pipeline evaluate schedules at every step; parts of them keep their numbers.
    for (k, p) in h.parameters.enumerated() where p.kind == .number {
      guard case .schedule(let s) = h.values[k] else { continue }
      guard schedules else {
        throw Failure(Status.type, "\(node.name): `\(p.name)` must be a plain number here, got \(s.text)")
      }
      let made = try schedule(s)
      guard made.memory.isEmpty else {
        throw Failure(
          Status.type,
          "\(node.name): `\(p.name)` must be a number or a schedule of the step alone here, and \(s.name) watches "
            + "the run")
      }
      h.numbers[k] = made.value(0)
      try p.check(h.numbers[k], of: node.name)
    }
    return (e, h)
  }

  public static func schedule(_ node: StageNode) throws(Failure) -> any Schedule {
    let (e, h) = try component(node, .schedule)
    guard case .schedule(let make) = e.component else {
      throw Failure(Status.internal, "\(node.name) is not a schedule")
    }
    var schedule = try make(h)
    if let memory = try node.memory() {
      guard schedule.takes(memory[...]) == memory.count else {
        throw Failure(Status.range, "\(node.name): `memory` does not fit, got \(memory.count) numbers")
      }
      schedule.memory = memory
    }
    return schedule
  }
}

/// What the registry lists. The protocols of methods give it; a method that has a source, or is a name for others, says
/// it itself. (A requirement: the loops of a method are made where it is written, in sight of its formulas.)
public protocol Listed {
  static var registered: Registered { get }
}

/// The entries of a list.
@inline(never)
public func entries(_ list: [any Listed.Type]) -> [Registered] { list.map { $0.registered } }

/// Registers a rule: its method and its kernels.
@inlinable public func entry<R: ElementRule>(_: R.Type) -> Registered {
  Registered(method: R.method, component: .element(kernels(R.self)))
}
@inlinable public func entry<R: WholeRule>(_: R.Type) -> Registered {
  Registered(method: R.method, component: .whole(kernels(R.self)))
}
@inlinable public func entry<S: Schedule>(_: S.Type) -> Registered {
  Registered(method: S.method, component: .schedule { (h) throws(Failure) in try S(h) })
}
@inlinable public func entry<S: Source>(_: S.Type) -> Registered {
  Registered(method: S.method, component: .source { (h) throws(Failure) in try S(h) })
}
/// Registers a rule with the source that belongs to it; nil: these hyper-parameters need none. The source's slots stand
/// behind the rule's, which must have as many for every shape.
@inlinable
public func entry<R: ElementRule>(_: R.Type, source: @escaping @Sendable (Hyper) throws(Failure) -> (any Source)?)
  -> Registered
{
  Registered(method: R.method, component: .driven(source, .element(kernels(R.self))))
}
@inlinable
public func entry<R: WholeRule>(_: R.Type, source: @escaping @Sendable (Hyper) throws(Failure) -> (any Source)?)
  -> Registered
{
  Registered(method: R.method, component: .driven(source, .whole(kernels(R.self))))
}
/// Registers a name that stands for a sentence.
@inlinable public func alias(_ method: Method, _ expand: @escaping @Sendable (Hyper) -> [StageNode]) -> Registered {
  Registered(method: method, component: .sentence(expand))
}

/// A value that changes with the step. Most are pure; those that watch the run keep what they saw in `memory`, which is
/// saved.
public protocol Schedule: Listed, Sendable {
  static var method: Method { get }
  init(_ h: Hyper) throws(Failure)
  /// The value at step k, counted from 0.
  func value(_ k: Double) -> Double
  /// The largest value before step `end`, as far as ten million steps tell: infinite where it still grows there. NaN
  /// without steps.
  func peak(before end: Double) -> Double
  /// What it remembers, as numbers. In a sentence any schedule may be written with them, as name(..., memory=[...]),
  /// and goes on from there.
  var memory: [Double] { get set }
  /// How many of these numbers are its memory; the first of them are its own, if any is. nil: they make no sense.
  func takes(_ numbers: ArraySlice<Double>) -> Int?
  /// Takes what it watches; false when it does not watch `what`.
  mutating func observe(_ what: String, _ value: Double) throws(Failure) -> Bool
  /// Per-sample gradients, (samples, n) row-major; false when it does not watch them.
  mutating func observe(samples: UnsafePointer<Double>, _ m: Int, _ n: Int) throws(Failure) -> Bool
  /// Runs a command at step k; false when it has none of that name.
  mutating func command(_ name: String, at k: Double) -> Bool
}

extension Schedule {
  @inlinable public static var registered: Registered { entry(Self.self) }
  public var memory: [Double] {
    get { [] }
    set {}
  }
  public func peak(before end: Double) -> Double {
    let end = min(end, 1e7)
    var best = Double.nan, step = 0.0, at = 0.0
    func take(_ k: Double) { if !(value(k) <= best) { (best, at) = (value(k), k) } }
    while step < end {
      take(step)
      step += max(1, (step / 256).rounded(.down))
    }
    // between two of them it rises or falls
    var width = max(1, (at / 256).rounded(.down))
    while width > 1 {
      width = (width / 2).rounded(.up)
      for k in [at - width, at + width] where k >= 0 && k < end { take(k) }
    }
    let last = [5e6, 6e6, 7e6, 8e6, 9e6, 1e7].map(value)
    if end == 1e7, zip(last, last.dropFirst()).allSatisfy({ $0 < $1 || $1 == .infinity }), (last.last ?? 0) >= best {
      return .infinity
    }
    return best
  }
  public func takes(_ numbers: ArraySlice<Double>) -> Int? {
    let own = numbers.prefix(memory.count)
    return own.count == memory.count && !own.contains(where: \.isNaN) ? own.count : nil
  }
  public mutating func observe(_ what: String, _ value: Double) throws(Failure) -> Bool { false }
  public mutating func observe(samples: UnsafePointer<Double>, _ m: Int, _ n: Int) throws(Failure) -> Bool { false }
  public mutating func command(_ name: String, at k: Double) -> Bool { false }
}

/// A schedule around one other, which watches the run and remembers in its place.
public protocol WrappingSchedule: Schedule {
  var inner: any Schedule { get set }
}

extension WrappingSchedule {
  public var memory: [Double] {
    get { inner.memory }
    set { inner.memory = newValue }
  }
  public func takes(_ numbers: ArraySlice<Double>) -> Int? { inner.takes(numbers) }
  public mutating func observe(_ what: String, _ value: Double) throws(Failure) -> Bool {
    try inner.observe(what, value)
  }
  public mutating func observe(samples: UnsafePointer<Double>, _ m: Int, _ n: Int) throws(Failure) -> Bool {
    try inner.observe(samples: samples, m, n)
  }
  public mutating func command(_ name: String, at k: Double) -> Bool { inner.command(name, at: k) }
}

extension String {
  /// "an objective".
  public var withArticle: String { (first.map("aeiou".contains) ?? false ? "an " : "a ") + self }
}
