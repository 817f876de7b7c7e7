internal import ThalwegCore
internal import ThalwegRunner

/// A method of the library, as it describes itself.
///
///     for m in Method.all where m.kind == .optimizer { print(m.name, m.summary) }
///     print(try Method.named("adamw").rule)
public struct Method: Sendable, CustomStringConvertible {
  public enum Kind: String, Sendable, CaseIterable {
    case optimizer, transform, update, perturbation, aggregator, schedule, average, regularizer, constraint, objective,
      mask, routing, weighting, diagnostic, solver
  }
  /// A hyper-parameter.
  public struct Parameter: Sendable {
    public let name: String, meaning: String
    /// As it would be written in a sentence; nil: it must be given.
    public let standard: String?
    /// Infinite where there is no bound.
    public let minimum: Double, maximum: Double
    /// Words that may stand here; empty where it is no choice.
    public let choices: [String]
    /// It may change while running.
    public let isLive: Bool
  }
  /// A tensor that is taken or given by name.
  public struct Input: Sendable {
    public let name: String, meaning: String
    /// "(B, m)": a name is one size wherever it occurs, a leading ... any axes.
    public let shape: String
    public let isOptional: Bool
    /// It holds whole numbers.
    public let isInteger: Bool
    /// There is a gradient by it.
    public let isDifferentiable: Bool
    /// It is no input: a pull-back or a solver writes it.
    public let isResult: Bool
  }
  /// A buffer of state that it keeps for each parameter.
  public struct Slot: Sendable { public let name: String, meaning: String }
  /// A request of a solver.
  public struct Request: Sendable {
    public let name: String, meaning: String
    public let given: [Input], wanted: [Input]
  }

  public let name: String
  public let kind: Kind
  /// One sentence.
  public let summary: String
  /// The update rule, on several lines.
  public let rule: String
  /// Authors, year, arXiv number.
  public let source: String
  /// What the name stands for when it is made of other methods, else "".
  public let sentence: String
  /// What it asks for besides one gradient a step, comma separated, else "".
  public let asks: String
  public let parameters: [Parameter]
  public let state: [Slot]
  /// Tensors that it takes where it is called on its own.
  public let inputs: [Input]
  /// The requests of a solver.
  public let requests: [Request]

  /// Every method, sorted by name.
  public static let all = Registry.all.map(Method.init)
  /// Throws `.method`, with the nearest name in the message.
  public static func named(_ name: String) throws(ThalwegError) -> Method {
    Method(try checked { () throws(Failure) in try Registry.described(name) })
  }

  private init(_ r: Registered) {
    let m = r.method
    (name, summary, rule, source, sentence) = (m.name, m.summary, m.rule, m.source, r.sentence)
    kind = Kind(rawValue: m.kind.rawValue) ?? .optimizer
    asks = m.publicRequests
    parameters = m.parameters.map(Parameter.init)
    state = m.slots.map { Slot(name: $0.name, meaning: $0.meaning) }
    inputs = m.inputs.map(Input.init)
    requests = m.asks.map {
      Request(
        name: $0.name, meaning: $0.meaning, given: $0.given.map(Input.init), wanted: $0.wanted.map(Input.init))
    }
  }

  public var description: String { "\(name): \(summary)" }
}

extension Method.Parameter {
  fileprivate init(_ p: ThalwegCore.Parameter) {
    (name, meaning, minimum, maximum, isLive) = (p.name, p.meaning, p.minimum, p.maximum, p.live)
    standard = p.standard.map { p.write($0) }
    if case .choice(let words) = p.kind { choices = words } else { choices = [] }
  }
}
extension Method.Input {
  fileprivate init(_ i: ThalwegCore.Input) {
    (name, meaning, shape, isOptional) = (i.name, i.meaning, i.shape, i.optional)
    (isInteger, isDifferentiable, isResult) = (i.integer, i.differentiable, i.result)
  }
}

/// The library as a whole.
public enum Library {
  /// "major.minor.patch".
  public static var version: String { release }
  /// The number of threads of a step; results do not depend on it. The default is that of the processors this process
  /// may use, or THALWEG_NUM_THREADS.
  public static var threads: Int { Threads.count }
  /// Throws `.range` outside of 1 to 1024.
  public static func set(threads count: Int) throws(ThalwegError) {
    try checked { () throws(Failure) in try setThreads(count) }
  }
}
