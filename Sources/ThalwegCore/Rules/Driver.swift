/// One kind of request that a solver makes: what the host is given, and what it must fill. Entries without axes are
/// numbers, in double.
public struct RequestKind: Sendable {
  public var name: String
  public var meaning: String
  public var given: [Input]
  public var wanted: [Input]
  /// An answer that is not finite is one like any other; otherwise it ends the run.
  public var takesNonfinite: Bool

  public init(
    _ name: String, _ meaning: String, given: [Input], wanted: [Input], takesNonfinite: Bool = false
  ) {
    (self.name, self.meaning, self.given, self.wanted) = (name, meaning, given, wanted)
    self.takesNonfinite = takesNonfinite
  }
}

/// How a run of a solver ended.
public enum Ending: Int, Sendable, CaseIterable {
  case running = 0, converged, maxIter, negativeCurvature, infeasible, lineSearchFailed, nonfinite, diverged

  public var name: String {
    switch self {
    case .running: ""
    case .converged: "converged"
    case .maxIter: "max_iter"
    case .negativeCurvature: "negative_curvature"
    case .infeasible: "infeasible"
    case .lineSearchFailed: "line_search_failed"
    case .nonfinite: "nonfinite"
    case .diverged: "diverged"
    }
  }
}

/// A part of a vector that a request shows.
public struct Place: Sendable, Equatable {
  public let name: String
  public let offset: Int
  public let count: Int
  public init(_ name: String, _ offset: Int, _ count: Int) {
    (self.name, self.offset, self.count) = (name, offset, count)
  }
  public func meets(_ other: Place) -> Bool {
    name == other.name && offset < other.offset &+ other.count && other.offset < offset &+ count
  }
}

/// A request: its kind, and the vectors that stand for the entries with axes, in the order of the declaration. A number
/// that it gives or wants is the solver's number of that name.
public struct Question: Sendable {
  public let kind: String
  public let places: [Place]
  /// Another sample (minibatch, dropout mask) than the request before.
  public let fresh: Bool
}

/// What a solver does next.
public enum Verdict<Phase: Sendable>: Sendable {
  case question(Question, then: Phase)
  /// On with another phase at once.
  case go(Phase)
  case done(Ending)

  /// Asks the host: `then` is the phase that reads the answer.
  public static func ask<T: Real>(
    _ kind: String, _ given: [Vector<T>], _ wanted: [Vector<T>], fresh: Bool = false, then: Phase
  ) -> Verdict {
    let places = (given + wanted).map { Place($0.name, $0.offset, $0.count) }
    return .question(Question(kind: kind, places: places, fresh: fresh), then: then)
  }
  /// The same for a request of numbers alone.
  public static func ask(_ kind: String, fresh: Bool = false, then: Phase) -> Verdict {
    .question(Question(kind: kind, places: [], fresh: fresh), then: then)
  }
}

/// A method that runs on its own, from named tensors to named results: a state machine whose phases end where it asks
/// the host for something, or is done. All that it remembers lies in the vectors and numbers that it declares, so that
/// a run can be saved and resumed at every request.
public protocol Driver: Listed, Sendable {
  /// The phases; the run begins with the one of raw value 0.
  associatedtype Phase: RawRepresentable, Sendable where Phase.RawValue == Int
  static var method: Method { get }
  init(_ h: Hyper) throws(Failure)
  /// Sizes of axes of its vectors that are none of an input, and no hyper-parameter of that name.
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int]
  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase>
}

extension Driver {
  @inlinable public static var registered: Registered { entry(Self.self) }
  public func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { [:] }
}

extension Method {
  /// A solver: `inputs` are what a run begins with, and its results; `kept` is what else it remembers.
  public static func solver(
    _ name: String, _ summary: String, rule: String, source: String, parameters: [Parameter] = [], inputs: [Input],
    asks: [RequestKind] = [], kept: [Input] = [],
    validate: @escaping @Sendable (Hyper) throws(Failure) -> Void = { _ in }
  ) -> Method {
    var m = Method(
      name, .solver, summary, rule: rule, source: source, parameters: parameters,
      slots: kept.map { Slot($0.name, $0.meaning) }, inputs: inputs,
      requests: asks.map(\.name).joined(separator: ", "), validate: validate)
    (m.asks, m.kept) = (asks, kept)
    return m
  }

  /// Every number of a solver: inputs, results, what it keeps, and what its requests give and want.
  public var numbers: [String] {
    var out: [String] = []
    let declared = inputs + kept + asks.flatMap { $0.given + $0.wanted }
    for i in declared where i.axes.isEmpty && !out.contains(i.name) { out.append(i.name) }
    return out
  }
  /// Every vector of a solver besides its inputs.
  public var vectors: [Input] { (inputs.filter(\.result) + kept).filter { !$0.axes.isEmpty } }
}

/// A driver with its types erased.
public struct DriverKernels: Sendable {
  public let axes: @Sendable (Sizes) throws(Failure) -> [String: Int]
  public let advance32: @Sendable (Int, DriverIO<Float>) throws(Failure) -> Verdict<Int>
  public let advance64: @Sendable (Int, DriverIO<Double>) throws(Failure) -> Verdict<Int>
  @usableFromInline init(
    axes: @escaping @Sendable (Sizes) throws(Failure) -> [String: Int],
    advance32: @escaping @Sendable (Int, DriverIO<Float>) throws(Failure) -> Verdict<Int>,
    advance64: @escaping @Sendable (Int, DriverIO<Double>) throws(Failure) -> Verdict<Int>
  ) {
    (self.axes, self.advance32, self.advance64) = (axes, advance32, advance64)
  }
}

extension Driver {
  /// One phase, by its number.
  @inlinable public func advance<T: Real>(phase number: Int, _ io: DriverIO<T>) throws(Failure) -> Verdict<Int> {
    guard let phase = Phase(rawValue: number) else {
      throw Failure(Status.format, "\(Self.method.name) has no phase \(number)")
    }
    switch try advance(phase, io) {
    case .question(let q, let then): return .question(q, then: then.rawValue)
    case .go(let next): return .go(next.rawValue)
    case .done(let outcome): return .done(outcome)
    }
  }
}

/// Registers a solver.
@inlinable public func entry<D: Driver>(_: D.Type) -> Registered {
  Registered(
    method: D.method,
    component: .solver { (h) throws(Failure) in
      let driver = try D(h)
      return DriverKernels(
        axes: { (s) throws(Failure) in try driver.axes(s) },
        advance32: { (phase, io) throws(Failure) in try driver.advance(phase: phase, io) },
        advance64: { (phase, io) throws(Failure) in try driver.advance(phase: phase, io) })
    })
}
