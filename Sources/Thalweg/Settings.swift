internal import ThalwegCore
internal import ThalwegRunner

/// Hyper-parameters, measured values, modes, checkpoints and state.
extension Optimizer {
  /// One of several values of hyper-parameters: a number, a flag, or text as in a sentence
  /// ("cosine(lr=0.1, total=1000)"). Literals of those types are values.
  public enum Value: Sendable, Hashable, ExpressibleByFloatLiteral, ExpressibleByIntegerLiteral,
    ExpressibleByBooleanLiteral, ExpressibleByStringLiteral
  {
    case number(Double)
    case flag(Bool)
    case text(String)

    public init(floatLiteral value: Double) { self = .number(value) }
    public init(integerLiteral value: Int) { self = .number(Double(value)) }
    public init(booleanLiteral value: Bool) { self = .flag(value) }
    public init(stringLiteral value: String) { self = .text(value) }

    /// As a sentence has it.
    fileprivate var written: String {
      switch self {
      case .number(let x): ThalwegCore.text(x)
      case .flag(let on): on ? "true" : "false"
      case .text(let s): s
      }
    }
  }

  /// Which parameters a hyper-parameter is for. A string literal is the name of a group.
  public enum Group: Sendable, Hashable, ExpressibleByStringLiteral {
    /// All groups, and those that are added later.
    case all
    /// The parameters that were added without a group.
    case standard
    case named(String)

    public init(stringLiteral name: String) { self = .named(name) }
  }
  /// Its number; nil for all of them.
  private func index(_ group: Group) throws(Failure) -> Int? {
    switch group {
    case .all: nil
    case .standard: 0
    case .named(let name): try runner.group(name)
    }
  }

  func settings(_ values: [String: Value]) -> [ThalwegRunner.Optimizer.Setting] {
    values.sorted { $0.key < $1.key }.map { (path: $0.key, value: $0.value.written) }
  }

  // MARK: hyper-parameters

  /// A hyper-parameter or a measured value as a number: "adamw.lr"; "lr" where only one stage has it; "adamw#1.lr" of
  /// the second of that name; "steps"; "clip_global_norm.norm". A scheduled value is that of the next step; `.all`
  /// reads the default group.
  ///
  /// Throws `.name`, and `.type` where it is no number.
  public func number(_ path: String, in group: Group = .standard) throws(ThalwegError) -> Double {
    try checked { () throws(Failure) in try runner.getNumber(try index(group) ?? 0, path) }
  }
  /// The same as it would be written in a sentence.
  public func text(_ path: String, in group: Group = .standard) throws(ThalwegError) -> String {
    try checked { () throws(Failure) in try runner.getText(try index(group) ?? 0, path) }
  }

  /// Changes a hyper-parameter between steps; replaces a schedule.
  ///
  ///     try optimizer.set("adamw.lr", to: 1e-4, in: "head")
  ///     try optimizer.set("lr", to: "cosine(lr=0.1, total=1000)")
  ///
  /// Throws `.name`, `.type`, `.range`; `.argument` where one value serves all groups. Nothing is changed then.
  public func set(_ path: String, to number: Double, in group: Group = .all) throws(ThalwegError) {
    try checked { () throws(Failure) in try runner.setNumber(try index(group), path, number) }
  }
  /// The same with text as in a sentence.
  public func set(_ path: String, to text: String, in group: Group = .all) throws(ThalwegError) {
    try checked { () throws(Failure) in try runner.setText(try index(group), path, text) }
  }
  /// The same with a flag.
  public func set(_ path: String, to flag: Bool, in group: Group = .all) throws(ThalwegError) {
    try set(path, to: Value.flag(flag).written, in: group)
  }
  /// Several at once, in whatever order they fit: all of them, or none when one is refused.
  public func set(_ values: [String: Value], in group: Group = .all) throws(ThalwegError) {
    try checked { () throws(Failure) in try runner.setTexts(try index(group), settings(values)) }
  }

  /// The pipeline as a sentence, with every hyper-parameter.
  public var sentence: String { runner.fullSentence }
  /// Steps that were taken.
  public var steps: Int { runner.step }
  /// Steps that the non-finite policy refused.
  public var skipped: Int { runner.skipped }

  // MARK: what it is told

  /// Tells the pipeline a number that it watches: "loss", "metric", "batch_size". Throws `.name` where nothing does.
  public func observe(_ what: String, _ value: Double) throws(ThalwegError) {
    try checked { () throws(Failure) in try runner.observe(what, value) }
  }
  /// Runs a command of a stage: "gradient_accumulate.flush", "wsd.begin_decay".
  public func run(_ command: String) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try live(gradients: true)
      try runner.command(command)
    }
  }

  // MARK: modes

  /// False in evaluation mode.
  public var isTraining: Bool { !runner.evaluating }
  /// Writes the evaluation weights (averages, schedule-free iterates) into the parameters; no steps until `train()`.
  public func evaluate() throws(ThalwegError) { try setMode(evaluate: true) }
  /// Puts the training weights back, bit for bit.
  public func train() throws(ThalwegError) { try setMode(evaluate: false) }
  private func setMode(evaluate: Bool) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try live(gradients: false)
      try runner.setMode(evaluate: evaluate)
    }
  }
  /// Calls `body` with the evaluation weights in the parameters.
  public func averaged<R>(_ body: () throws -> R) throws -> R {
    let trains = isTraining
    try evaluate()
    let result: R
    do { result = try body() } catch {
      if trains { try train() }
      throw error
    }
    if trains { try train() }
    return result
  }

  // MARK: checkpoints

  /// All that decides the rest of the run, but for the parameters: state, counters, hyper-parameters, schedules, the
  /// mode, and within a step what it needs. In safetensors layout.
  public func save() throws(ThalwegError) -> [UInt8] {
    try checked { () throws(Failure) in
      try live(gradients: false)
      return try collected { (begin, put) throws(Failure) in try Checkpoint.save(runner, begin, put) }
    }
  }
  /// Takes up what `save` wrote, in an optimizer of the same sentence with the same tensors, found by name.
  ///
  /// Throws `.format`, `.version`, `.mismatch`; the optimizer is then as it was.
  public func load(_ bytes: [UInt8]) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try live(gradients: false)
      try withBytes(of: bytes) { (data) throws(Failure) in try Checkpoint.load(runner, data) }
    }
  }
  /// The same to a file, which is replaced whole or not at all.
  public func save(to path: String) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try live(gradients: false)
      try Checkpoint.save(runner, to: try usable(path))
    }
  }
  /// The same from a file.
  public func load(from path: String) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try live(gradients: false)
      try Checkpoint.load(runner, from: try usable(path))
    }
  }
  /// The system's names end at a zero.
  private func usable(_ path: String) throws(Failure) -> String {
    guard !path.isEmpty, !path.utf8.contains(0) else {
      throw Failure(Status.file, "`path` must be a name without zero bytes, got \(path.debugDescription)")
    }
    return path
  }

  // MARK: state

  /// One buffer of the state: a slot of a stage for a parameter.
  public struct StateRow: Sendable, Hashable {
    /// "adamw"; "engine" for master copies.
    public let stage: String
    /// "exp_avg".
    public let slot: String
    /// The number of the parameter.
    public let parameter: Int
    /// Elements.
    public let count: Int
    /// As they are stored.
    public let bytes: Int
    fileprivate let index: Int
  }
  /// The state, known before it is allocated.
  public var state: [StateRow] {
    (0..<runner.stateCount).compactMap { i in
      guard let r = try? runner.describeState(i) else { return nil }
      return StateRow(stage: r.stage, slot: r.slot, parameter: r.tensor, count: r.count, bytes: r.bytes, index: i)
    }
  }
  /// The elements of a row, widened.
  public func read(_ row: StateRow) throws(ThalwegError) -> [Double] {
    try checked { () throws(Failure) in
      try live(gradients: false)
      let now = try runner.describeState(row.index)
      guard now.stage == row.stage, now.slot == row.slot, now.count == row.count else {
        throw Failure(Status.argument, "`row` is not one of this optimizer's: \(row.stage).\(row.slot)")
      }
      try Memory.ask(now.count * 8)
      var values = [Double](repeating: 0, count: now.count)
      try values.withUnsafeMutableBufferPointer { (p) throws(Failure) in
        if let out = p.baseAddress { try runner.readState(row.index, out) }
      }
      return values
    }
  }
}
