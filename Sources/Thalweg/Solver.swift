internal import CThalweg
internal import ThalwegCore
internal import ThalwegRunner

/// A method that runs on its own, from named tensors to named results, and may ask on its way: a linear solver, a line
/// search, a spectrum, a bilevel method.
///
///     let cg = try Solver("cg(rtol=1e-8)")
///     try cg.run(["b": b]) { request in                        // request.name is "product"
///       let v: [Double] = try request.tensor("vector").values()
///       try request.tensor("product").assign(multiply(a, v))
///     }
///     let x: [Double] = try cg.result("x").values()
///
/// Arithmetic is float64 when an input is f64 or none is a tensor, else float32. Numbers are tensors without axes.
public final class Solver {
  /// How a run ended.
  public enum Outcome: Int, Sendable, CaseIterable {
    case running = 0
    case converged, maxIterations, negativeCurvature, infeasible, lineSearchFailed
    /// An answer was infinite or NaN: the results are those from before it.
    case nonfinite
    case diverged
  }

  /// What a run needs now.
  public final class Request: CustomStringConvertible {
    /// "product"; `Method.named` tells the requests of a solver.
    public let name: String
    /// Another tag means another sample.
    public let tag: UInt64
    /// The names of the tensors that it shows, and of those that the host fills.
    public let given: [String], wanted: [String]
    private var tensors: [String: Tensor] = [:]
    fileprivate let lease = Lease()

    fileprivate init(_ shown: SolverObject.Shown, _ ask: RequestKind) throws(ThalwegError) {
      (name, tag, given, wanted) = (ask.name, shown.tag, ask.given.map(\.name), ask.wanted.map(\.name))
      for (i, field) in (given + wanted).enumerated() {
        tensors[field] = try Tensor(shown.tensors[i], until: lease)
      }
    }

    /// A tensor of the request, until it is answered: what is given is read-only, what is wanted holds rubbish until it
    /// is filled.
    public func tensor(_ name: String) throws(ThalwegError) -> Tensor {
      guard let t = tensors[name] else {
        throw ThalwegError(
          Failure(
            Status.name, "the request `\(self.name)` has no tensor `\(name)`" + suggestion(name, given + wanted)))
      }
      return t
    }
    /// A number that is given.
    public func number(_ name: String) throws(ThalwegError) -> Double {
      let values = try tensor(name).doubles()
      guard values.count == 1, let x = values.first else {
        throw ThalwegError(Failure(Status.shape, "`\(name)` is no number: it has \(values.count) elements"))
      }
      return x
    }
    /// Fills a number that is wanted.
    public func answer(_ name: String, _ number: Double) throws(ThalwegError) { try tensor(name).assign([number]) }

    public var description: String { "\(name)(\(given.joined(separator: ", "))) -> \(wanted.joined(separator: ", "))" }
  }

  public let sentence: String
  private let object: SolverObject
  private var pending: Request?

  /// From one stage, as "cg(rtol=1e-8)".
  public init(_ sentence: String) throws(ThalwegError) {
    self.sentence = sentence
    object = try checked { () throws(Failure) in try SolverObject(sentence) }
  }
  private init(_ sentence: String, _ object: SolverObject) { (self.sentence, self.object) = (sentence, object) }
  deinit { pending?.lease.end() }

  /// The tensors that it takes and finds; `Method.named` says more of them.
  public var inputs: [String] { object.method.inputs.map(\.name) }

  /// Starts a run from copies of the inputs, and drops the one before.
  ///
  /// Throws `.needs`, `.name`, `.shape`, `.dtype`; the run before is then as it was.
  public func begin(_ inputs: [String: Tensor] = [:]) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try object.begin(try operands(inputs, self.inputs, of: sentence))
      retire()
    }
  }
  /// Takes the answer to the request before, and goes on to the next; nil: the run has ended, and `outcome` says how.
  ///
  /// Throws `.sequence` where no run has begun; other errors end the run.
  public func next() throws(ThalwegError) -> Request? {
    retire()
    try checked { () throws(Failure) in try object.next() }
    return try waiting()
  }
  /// The request that waits for its answer, as after `load`.
  public func waiting() throws(ThalwegError) -> Request? {
    guard pending == nil, let shown = object.request else { return pending }
    pending = try Request(shown, object.method.asks[shown.kind])
    return pending
  }
  /// A whole run. Throws what `answer` throws; the run then waits where it stood.
  @discardableResult
  public func run(_ inputs: [String: Tensor] = [:], answering answer: (Request) throws -> Void = { _ in }) throws
    -> Outcome
  {
    try begin(inputs)
    while let request = try next() { try answer(request) }
    return outcome
  }
  private func retire() {
    pending?.lease.end()
    pending = nil
  }

  public var outcome: Outcome { Outcome(rawValue: object.ending.rawValue) ?? .running }

  /// A copy of a result as it stands now, of what the solver keeps, or of an input. Throws `.name`, `.sequence`.
  public func result(_ name: String) throws(ThalwegError) -> Tensor {
    let shown = try checked { () throws(Failure) in try object.tensor(name) }
    let lease = Lease()
    defer { lease.end() }
    let theirs = try Tensor(shown, until: lease), own = try Tensor(zeros: theirs.shape, dtype: theirs.dtype)
    switch theirs.dtype {
    case .f64: try own.assign(try theirs.values(of: Double.self))
    case .i64: try own.assign(try theirs.values(of: Int64.self))
    default: try own.assign(try theirs.values(of: Float.self))
    }
    return own
  }
  /// A number by name. Throws `.name`, `.sequence`.
  public func number(_ name: String) throws(ThalwegError) -> Double {
    try checked { () throws(Failure) in try object.number(name) }
  }

  /// A second solver that stands where this one stands, and goes on by itself.
  public func copy() throws(ThalwegError) -> Solver {
    Solver(sentence, try checked { () throws(Failure) in try object.copy() })
  }
  /// The run, inputs and all, to be taken up at the request that waits, with the same bits.
  public func save() throws(ThalwegError) -> [UInt8] {
    try checked { () throws(Failure) in
      try collected { (begin, put) throws(Failure) in try object.save(begin, put) }
    }
  }
  /// Takes up what `save` wrote, in a solver of the same sentence. Throws `.format`, `.version`, `.mismatch`; the run
  /// is then as it was.
  public func load(_ bytes: [UInt8]) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try withBytes(of: bytes) { (data) throws(Failure) in try object.load(data) }
      retire()
    }
  }
}
