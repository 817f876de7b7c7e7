import CThalweg

/// A hyper-parameter: its name, meaning, default and range. The parser, the setters and the documentation all read it.
public struct Parameter: Sendable {
  public enum Kind: Sendable, Equatable {
    case number, integer, flag, list, regularizer, constraint, pipeline, schedule, schedules
    case choice([String])
  }
  public var name: String
  public var kind: Kind
  public var meaning: String
  /// nil: required.
  public var standard: Value?
  public var minimum = -Double.infinity
  public var maximum = Double.infinity
  public var minimumOpen = false
  public var maximumOpen = false
  /// `none` is a value too.
  public var optional = false
  /// False for what shapes the state and cannot change while running.
  public var live = true
  /// An infinity is a value like any other.
  public var infinite: Bool

  public init(name: String, kind: Kind, meaning: String, standard: Value?, live: Bool = true) {
    (self.name, self.kind, self.meaning, self.standard, self.live) = (name, kind, meaning, standard, live)
    if case .number(let x)? = standard { infinite = x.isInfinite } else { infinite = false }
  }
  /// The same, with infinities allowed.
  public func orInfinite() -> Parameter {
    var p = self
    p.infinite = true
    return p
  }
  /// What it is where it is not given, from the other hyper-parameters; `standard` is that of their standards.
  var rule: (@Sendable (Hyper) -> Double)?
  public func following(_ rule: @escaping @Sendable (Hyper) -> Double) -> Parameter {
    var p = self
    p.rule = rule
    return p
  }
  /// Lists that have a name.
  public var presets: [(name: String, values: [Double])] = []
  /// A number that may also be a list of numbers, one for each entry.
  public var takesList = false
  /// The numbers of the method that is held may be schedules, which the stage evaluates.
  public var schedulesHeld = false
  /// A choice that may also be a whole number.
  public var takesInteger = false
  /// What a value that is given for one group alone reaches.
  public enum Reach: Sendable {
    /// The tensors of that group.
    case group
    /// One number serves all tensors: a value for one of several groups is refused when it is given.
    case all
    /// The groups have it one by one, but must agree when a step is taken (a schedule changes them one after the
    /// other); a step size of 0, which leaves its group alone, need not.
    case equal
  }
  public var reach = Reach.group
  /// A flag with which every group has a value of its own after all; `Hyper.reach` knows.
  public var unless: String?
  /// The same, but one value serves all groups.
  public var forAll: Parameter {
    var p = self
    p.reach = .all
    return p
  }
  /// The same, unless a flag of the method is set.
  public func forAll(unless flag: String) -> Parameter {
    var p = forAll
    p.unless = flag
    return p
  }
  /// The same, but all groups must have the same value when a step is taken.
  public var equalInAll: Parameter {
    var p = self
    p.reach = .equal
    return p
  }

  public var code: Int32 {
    switch kind {
    case .number: Int32(TW_PARAMETER_NUMBER)
    case .integer: Int32(TW_PARAMETER_INTEGER)
    case .flag: Int32(TW_PARAMETER_FLAG)
    case .choice: Int32(TW_PARAMETER_CHOICE)
    case .list, .schedules: Int32(TW_PARAMETER_LIST)
    case .regularizer: Int32(TW_PARAMETER_REGULARIZER)
    case .constraint: Int32(TW_PARAMETER_CONSTRAINT)
    case .pipeline: Int32(TW_PARAMETER_PIPELINE)
    case .schedule: Int32(TW_PARAMETER_SCHEDULE)
    }
  }
}

/// The value of a hyper-parameter.
public enum Value: Sendable {
  case none
  case number(Double)
  case flag(Bool)
  case choice(Int)
  case list([Double])
  case schedule(StageNode)
  case schedules([StageNode])
  case stage(StageNode)
  case pipeline([StageNode])
}

/// A range of numbers, as cards write it.
public enum Range: Sendable {
  case any
  case atLeast(Double)
  case above(Double)
  case atMost(Double)
  /// [0, 1): a decay rate.
  case rate
  case within(Double, Double)
  case between(Double, Double, lowOpen: Bool, highOpen: Bool)
}

extension Parameter {
  /// A number; `standard` nil makes it required.
  public static func number(
    _ name: String, _ standard: Double?, _ range: Range, _ meaning: String, optional: Bool = false
  ) -> Parameter {
    var p = Parameter(name: name, kind: .number, meaning: meaning, standard: standard.map { .number($0) })
    p.limit(range)
    p.optional = optional
    return p
  }
  /// A number that is off (`none`) unless given.
  public static func maybe(_ name: String, _ range: Range, _ meaning: String) -> Parameter {
    var p = number(name, nil, range, meaning, optional: true)
    p.standard = Value.none
    return p
  }
  public static func integer(_ name: String, _ standard: Int?, _ range: Range, _ meaning: String, live: Bool = true)
    -> Parameter
  {
    var p = Parameter(name: name, kind: .integer, meaning: meaning, standard: standard.map { .number(Double($0)) })
    p.limit(range)
    p.live = live
    return p
  }
  /// A whole number that is off (`none`) unless given.
  public static func maybeInteger(_ name: String, _ range: Range, _ meaning: String, live: Bool = true) -> Parameter {
    var p = integer(name, nil, range, meaning, live: live)
    (p.standard, p.optional) = (Value.none, true)
    return p
  }
  public static func flag(_ name: String, _ standard: Bool, _ meaning: String, live: Bool = true) -> Parameter {
    Parameter(name: name, kind: .flag, meaning: meaning, standard: .flag(standard), live: live)
  }
  /// One of several words, or a whole number.
  public static func choiceOrInteger(
    _ name: String, _ words: [String], _ meaning: String, standard: Int = 0, live: Bool = true
  ) -> Parameter {
    var p = choice(name, words, meaning, standard: standard, live: live)
    p.takesInteger = true
    return p
  }
  /// One of several words; the first is the default unless `standard` names another.
  public static func choice(_ name: String, _ words: [String], _ meaning: String, standard: Int = 0, live: Bool = true)
    -> Parameter
  {
    Parameter(name: name, kind: .choice(words), meaning: meaning, standard: .choice(standard), live: live)
  }
  public static func list(
    _ name: String, _ standard: [Double]?, _ meaning: String, optional: Bool = false,
    presets: [(name: String, values: [Double])] = []
  ) -> Parameter {
    var p = Parameter(name: name, kind: .list, meaning: meaning, standard: standard.map { .list($0) })
    p.presets = presets
    if optional { p.standard = p.standard ?? Value.none }
    p.optional = optional
    p.live = false
    return p
  }
  public static func object(_ name: String, _ kind: Kind, _ meaning: String) -> Parameter {
    Parameter(name: name, kind: kind, meaning: meaning, standard: nil, live: false)
  }
  /// A set or a regularizer; `standard` is the name of the default, nil for none.
  public static func object(_ name: String, _ kind: Kind, standard: String?, _ meaning: String) -> Parameter {
    var p = object(name, kind, meaning)
    p.standard = standard.map { .stage(StageNode(name: $0, arguments: [], position: 0)) } ?? Value.none
    p.optional = standard == nil
    return p
  }

  /// The same, but it cannot change while running.
  public var fixed: Parameter {
    var p = self
    p.live = false
    return p
  }

  public static func lr(_ standard: Double?, _ range: Range = .atLeast(0)) -> Parameter {
    .number("lr", standard, range, "step size")
  }
  public static func weightDecay(_ standard: Double = 0, _ meaning: String = "weight decay") -> Parameter {
    .number("weight_decay", standard, .atLeast(0), meaning)
  }
  public static func rate(_ name: String, _ standard: Double, _ meaning: String) -> Parameter {
    .number(name, standard, .rate, meaning)
  }
  public static func eps(
    _ standard: Double, _ meaning: String = "added to the denominator", _ range: Range = .atLeast(0)
  ) -> Parameter {
    .number("eps", standard, range, meaning)
  }

  private mutating func limit(_ range: Range) {
    switch range {
    case .any: break
    case .atLeast(let a): minimum = a
    case .above(let a): (minimum, minimumOpen) = (a, true)
    case .atMost(let b): maximum = b
    case .rate: (minimum, maximum, maximumOpen) = (0, 1, true)
    case .within(let a, let b): (minimum, maximum) = (a, b)
    case .between(let a, let b, let lowOpen, let highOpen):
      (minimum, maximum, minimumOpen, maximumOpen) = (a, b, lowOpen, highOpen)
    }
  }

  /// "≥ 0", "in [0, 1)", ... for messages.
  public var rangeText: String {
    if minimum > -.infinity, maximum < .infinity {
      return "in \(minimumOpen ? "(" : "[")\(text(minimum)), \(text(maximum))\(maximumOpen ? ")" : "]")"
    }
    if minimum > -.infinity { return "\(minimumOpen ? "above" : "at least") \(text(minimum))" }
    if maximum < .infinity { return "\(maximumOpen ? "below" : "at most") \(text(maximum))" }
    return "any number"
  }

  /// Throws unless the number is in range.
  public func check(_ x: Double, of method: String) throws(Failure) {
    let low = minimumOpen ? x > minimum : x >= minimum
    let high = maximumOpen ? x < maximum : x <= maximum
    guard !x.isNaN, low, high, x.isFinite || infinite else {
      throw Failure(
        Status.range,
        "\(method): `\(name)` must be \(x.isInfinite && !infinite ? "finite, " : "")\(rangeText), got \(text(x))")
    }
    if kind == .integer, x != x.rounded() || abs(x) > 9e15 {
      throw Failure(Status.type, "\(method): `\(name)` must be a whole number, got \(text(x))")
    }
  }

  /// What is expected, in words.
  public var expectation: String {
    switch kind {
    case .number:
      "a number \(rangeText)" + (live ? ", or a schedule" : "")
        + (takesList ? ", or a list of numbers, one for each entry" : "")
        + (optional ? ", or none" : "")
    case .integer: "a whole number \(rangeText)" + (optional ? ", or none" : "")
    case .flag: "true or false"
    case .choice(let words): "one of " + words.joined(separator: ", ") + (takesInteger ? ", or a whole number" : "")
    case .list:
      "a list of numbers [a, b, ...]" + presets.map { ", or \($0.name)" }.joined() + (optional ? ", or none" : "")
    case .regularizer: "a regularizer, as l1(1e-4)" + (optional ? ", or none" : "")
    case .constraint: "a constraint, as l2_ball(1)" + (optional ? ", or none" : "")
    case .pipeline: "a pipeline in parentheses, as (adamw(lr=1e-3))"
    case .schedule: "a schedule, as cosine(lr=0.1, total=1000), or a number"
    case .schedules: "a list of schedules, as [linear(0, end=0.1, total=100), cosine(lr=0.1, total=1000)]"
    }
  }

  /// The words of a choice.
  private var words: [String] {
    if case .choice(let words) = kind { return words }
    return []
  }

  /// Reads a value of the sentence.
  public func read(_ node: ValueNode, of method: String) throws(Failure) -> Value {
    func wrong() -> Failure {
      Failure(Status.type, "\(method): `\(name)` must be \(expectation), got \(node.text)")
    }
    if case .word(let w) = node, w.name == "none", w.arguments.isEmpty, !words.contains("none") {
      if optional { return .none }
      throw wrong()
    }
    switch (kind, node) {
    case (.number, .number(let x)), (.integer, .number(let x)):
      try check(x, of: method)
      return .number(x)
    // What shapes the state must be known before the first step, and the same ever after.
    case (.number, .word) where !live: throw wrong()
    case (.number, .word), (.schedule, .word), (.schedule, .number): return .schedule(try schedule(node, of: method))
    case (.schedules, .list(let items)):
      var list: [StageNode] = []
      for item in items { list.append(try schedule(item, of: method)) }
      return .schedules(list)
    // as Python writes them, too
    case (.flag, .word(let w)) where w.arguments.isEmpty && ["true", "false", "True", "False"].contains(w.name):
      return .flag(w.name.lowercased() == "true")
    case (.choice(let words), .word(let w)) where w.arguments.isEmpty:
      guard let k = words.firstIndex(of: w.name) else { throw wrong() }
      return .choice(k)
    case (.choice(let words), .string(let s)):
      guard let k = words.firstIndex(of: s) else { throw wrong() }
      return .choice(k)
    case (.choice, .number(let x)) where takesInteger && x == x.rounded() && abs(x) <= 9e15: return .number(x)
    case (.choice(let words), .number(let x)):
      guard let k = words.firstIndex(of: text(x)) else { throw wrong() }
      return .choice(k)
    case (.list, .list(let items)),
      (.number, .list(let items)) where kind == .list || takesList:
      var numbers: [Double] = []
      for item in items {
        switch item {
        case .number(let x): numbers.append(x)
        case .list(let inner):  // rows of numbers are read one after the other
          for i in inner { if case .number(let x) = i { numbers.append(x) } else { throw wrong() } }
        default: throw wrong()
        }
      }
      if kind == .number { for x in numbers { try check(x, of: method) } }
      return .list(numbers)
    case (.list, .word(let w)) where w.arguments.isEmpty:
      guard let preset = presets.first(where: { $0.name == w.name }) else { throw wrong() }
      return .list(preset.values)
    case (.list, .string(let s)):
      guard let preset = presets.first(where: { $0.name == s }) else { throw wrong() }
      return .list(preset.values)
    case (.regularizer, .word(let w)), (.constraint, .word(let w)): return .stage(w)
    case (.pipeline, .sentence(let s)): return .pipeline(s)
    case (.pipeline, .word(let w)): return .pipeline([w])
    default: throw wrong()
    }
  }

  /// A schedule; a number stands for a constant one.
  private func schedule(_ node: ValueNode, of method: String) throws(Failure) -> StageNode {
    switch node {
    case .word(let w):
      if w.arguments.isEmpty, w.name == "true" || w.name == "false" { break }
      guard let m = Registry.find(w.name) else {
        throw Failure(
          Status.method,
          "\(method): `\(name)`: no schedule `\(w.name)`" + suggestion(w.name, Registry.names(.schedule)),
          at: w.position)
      }
      guard m.kind == .schedule else { break }
      do throws(Failure) { _ = try Registry.component(w, .schedule) } catch { throw error.within(w) }
      return w
    case .number:
      let w = StageNode(name: "constant", arguments: [ArgumentNode(name: nil, value: node, position: 0)], position: 0)
      _ = try Registry.component(w, .schedule)
      return w
    default: break
    }
    throw Failure(Status.type, "\(method): `\(name)` must be \(expectation), got \(node.text)")
  }

  /// A value as a sentence writes it.
  public func write(_ value: Value) -> String {
    switch (kind, value) {
    case (_, .none): "none"
    case (_, .number(let x)): text(x)
    case (_, .flag(let b)): b ? "true" : "false"
    case (.choice(let words), .choice(let k)): words[k]
    case (_, .choice(let k)): String(k)
    case (_, .list(let xs)):
      presets.first { $0.values == xs }?.name ?? "[" + xs.map { text($0) }.joined(separator: ", ") + "]"
    case (_, .schedule(let s)), (_, .stage(let s)): s.text
    case (_, .schedules(let list)): "[" + list.map(\.text).joined(separator: ", ") + "]"
    case (_, .pipeline(let s)): "(" + s.map(\.text).joined(separator: " | ") + ")"
    }
  }
}

/// The hyper-parameters of one stage as a rule reads them: `h.beta1`, `h.nesterov`, `h.is("mode", "paper")`.
///
/// Schedules are already evaluated. `none` reads as NaN; `h.has("mu")` tells.
@dynamicMemberLookup
public struct Hyper: Sendable {
  public let parameters: [Parameter]
  public var values: [Value]
  public var numbers: [Double]
  /// The methods that it holds, by the number of the parameter.
  public internal(set) var held: [Int: Held] = [:]
  /// The hyper-parameters of the first of them at this step, where some are schedules: with these its kernels run.
  public var ofHeld: [Hyper] = []
  /// The names as they lie in a register: up to fifteen bytes, that is nearly all, are the string itself.
  private let words: [SIMD2<UInt64>]

  public init(_ parameters: [Parameter], _ values: [Value]) {
    self.parameters = parameters
    self.values = values
    numbers = values.map(Hyper.number)
    words = parameters.map { Hyper.word($0.name) }
  }
  @inline(__always) private static func word(_ name: String) -> SIMD2<UInt64> {
    unsafeBitCast(name, to: SIMD2<UInt64>.self)
  }

  public mutating func put(_ value: Value, _ parameter: Int) {
    values[parameter] = value
    numbers[parameter] = Hyper.number(value)
  }

  public static func number(_ v: Value) -> Double {
    switch v {
    case .number(let x): x
    case .flag(let b): b ? 1 : 0
    case .choice(let k): Double(k)
    default: .nan
    }
  }

  /// Rules look their numbers up for every tensor, so equal bits come first: they are equal strings, and the others are
  /// compared only where none has them.
  public func index(_ name: String) -> Int? {
    let word = Hyper.word(name)
    for i in words.indices where words[i] == word { return i }
    return parameters.firstIndex { $0.name == name }
  }
  public subscript(dynamicMember name: String) -> Double { index(name).map { numbers[$0] } ?? .nan }
  public subscript(dynamicMember name: String) -> Bool { index(name).map { numbers[$0] == 1 } ?? false }
  /// As a whole number; what no Int can hold is the largest that a Double counts to.
  public func integer(_ name: String) -> Int {
    let x: Double = self[dynamicMember: name]
    return x.isNaN ? 0 : Int(min(max(x, -0x1p53), 0x1p53))
  }
  public func has(_ name: String) -> Bool { let x: Double = self[dynamicMember: name]; return !x.isNaN }
  public func `is`(_ name: String, _ word: String) -> Bool {
    guard let i = index(name), case .choice(let words) = parameters[i].kind, case .choice(let k) = values[i] else {
      return false
    }
    return words[k] == word
  }
  public func list(_ name: String) -> [Double] {
    if let i = index(name), case .list(let xs) = values[i] { return xs }
    return []
  }
  /// Some value is a list.
  public var hasLists: Bool { values.contains { if case .list = $0 { true } else { false } } }
  /// The regularizer or the set that a parameter names.
  public func held(_ name: String) -> Held? { index(name).flatMap { held[$0] } }
  /// The schedule that a schedule contains (`warmup`), or those of a list (`join`).
  public func schedules(_ name: String) throws(Failure) -> [any Schedule] {
    var nodes: [StageNode] = []
    if let i = index(name) {
      if case .schedule(let s) = values[i] { nodes = [s] }
      if case .schedules(let list) = values[i] { nodes = list }
    }
    var made: [any Schedule] = []
    for n in nodes { made.append(try Registry.schedule(n)) }
    return made
  }
  /// What a value of parameter `k` for one group reaches, with the flags as they are.
  public func reach(_ k: Int) -> Parameter.Reach {
    if let flag = parameters[k].unless, self[dynamicMember: flag] { return .group }
    return parameters[k].reach
  }
  /// It is not `none` (it may be a schedule).
  public func given(_ name: String) -> Bool {
    guard let i = index(name) else { return false }
    if case .none = values[i] { return false }
    return true
  }
  public func pipeline(_ name: String) -> [StageNode] {
    if let i = index(name), case .pipeline(let s) = values[i] { return s }
    return []
  }
}

extension Hyper {
  /// The method with all its values, as a sentence writes it.
  public func sentence(_ name: String) -> String {
    let arguments = zip(parameters, values).map { "\($0.name)=\($0.write($1))" }
    return arguments.isEmpty ? name : name + "(" + arguments.joined(separator: ", ") + ")"
  }
  /// A stage `name` that takes over the values of the named parameters: what a sentence name hands on to its parts.
  public func node(_ name: String, _ parameters: [Parameter]) -> StageNode {
    var arguments: [ArgumentNode] = []
    for p in parameters {
      if let i = index(p.name) { arguments.append(ArgumentNode(name: p.name, value: p.node(values[i]), position: 0)) }
    }
    return StageNode(name: name, arguments: arguments, position: 0)
  }
}

extension Parameter {
  /// A value as the parser would have read it.
  public func node(_ value: Value) -> ValueNode {
    switch value {
    case .number(let x): .number(x)
    case .list(let xs): .list(xs.map { .number($0) })
    case .schedule(let s), .stage(let s): .word(s)
    case .schedules(let list): .list(list.map { .word($0) })
    case .pipeline(let s): .sentence(s)
    case .none, .flag, .choice: .word(StageNode(name: write(value), arguments: [], position: 0))
    }
  }
}
