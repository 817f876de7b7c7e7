internal import ThalwegCore
internal import ThalwegRunner

/// A sentence at work on tensors: an update rule with what stands before and behind it.
///
///     let w = try Tensor(zeros: [10, 64]), g = try Tensor(zeros: [10, 64])
///     let optimizer = try Optimizer("clip_global_norm(1.0) | adamw(lr=1e-3) | ema(0.99)")
///     try optimizer.add(parameters: [w])
///     try optimizer.bind(gradients: [g])
///     for batch in batches {
///       try g.assign(gradient(batch))
///       try optimizer.step()                       // w has moved
///     }
///
/// Methods that need more than one gradient a step ask for it: `step(answering:)`, or `next()` by hand.
///
/// Parameters are changed in place. A call that throws has changed nothing; a step that ends in an error leaves
/// parameters and state as they were before it. The tensors stay alive with the optimizer. One thread at a time.
public final class Optimizer {
  /// What belongs to the optimizer as a whole and to no method.
  public struct Options: Sendable {
    /// How moments are stored (those of f64 parameters always in f64). bf16 takes half of the memory, q8 a quarter;
    /// both round at random, so that averages stay right.
    public enum State: Int32, Sendable, CaseIterable {
      case f32 = 1
      case bf16, q8
    }
    /// How 16-bit parameters keep what their type cannot hold: not at all, in copies in float32, or by rounding at
    /// random.
    public enum Master: Int32, Sendable, CaseIterable { case none, f32, stochastic }
    /// What a NaN or an infinity in a gradient does: it goes into the weights, the step is skipped, or it throws.
    public enum NonFinite: Int32, Sendable, CaseIterable { case propagate, skip, error }

    public var state = State.f32
    public var master = Master.none
    public var nonFinite = NonFinite.propagate
    /// Ascend instead of descend.
    public var maximize = false
    /// Gradients are set to zero in the same pass.
    public var zeroGradients = false
    /// Gradients may be used as scratch, and hold rubbish afterwards.
    public var consumeGradients = false
    /// Gradients are multiplied by it: 1 over a loss scale. Above 0.
    public var gradientScale = 1.0
    /// Of every random draw.
    public var seed: UInt64 = 0

    public init(
      state: State = .f32, master: Master = .none, nonFinite: NonFinite = .propagate, maximize: Bool = false,
      zeroGradients: Bool = false, consumeGradients: Bool = false, gradientScale: Double = 1, seed: UInt64 = 0
    ) {
      (self.state, self.master, self.nonFinite) = (state, master, nonFinite)
      (self.maximize, self.zeroGradients, self.consumeGradients) = (maximize, zeroGradients, consumeGradients)
      (self.gradientScale, self.seed) = (gradientScale, seed)
    }

    fileprivate var core: ThalwegCore.Options {
      var o = ThalwegCore.Options()
      o.state = .init(rawValue: state.rawValue) ?? .f32
      o.master = .init(rawValue: master.rawValue) ?? .none
      o.nonFinite = .init(rawValue: nonFinite.rawValue) ?? .propagate
      (o.maximize, o.zeroGradients, o.consumeGradients) = (maximize, zeroGradients, consumeGradients)
      (o.gradientScale, o.seed) = (gradientScale, seed)
      return o
    }
  }

  /// What a step came to.
  public enum Outcome: Sendable {
    case done
    /// The non-finite policy refused it: counted, and nothing changed.
    case skipped
  }

  let runner: ThalwegRunner.Optimizer
  private var parameters: [Tensor] = [], gradients: [Tensor?] = [], shadows: [Tensor] = []
  /// Gradients that are read where they lie until the step ends.
  private var staying: [[Tensor?]] = []
  /// Some memory may go away before the optimizer does.
  private var borrows = false
  /// The request that waits for its answer.
  private(set) var pending: Request?
  /// The host's, where the model is spread over processes.
  var reduction: Reduction?
  /// Of the step that ended last.
  public private(set) var outcome = Outcome.done

  /// Reads the sentence.
  ///
  /// Throws `.syntax`, `.method`, `.name`, `.type` or `.range`, with the place in the sentence and the nearest name.
  public init(_ sentence: String, options: Options = Options()) throws(ThalwegError) {
    runner = try checked { () throws(Failure) in
      try ThalwegRunner.Optimizer(sentence, options.core, .current)
    }
  }

  deinit {
    breakOff()
    withExtendedLifetime((parameters, gradients, shadows)) {}
  }

  // MARK: memory

  /// Binds parameters behind those already bound.
  ///
  /// - Parameters:
  ///   - names: one for each, unique: for checkpoints, messages and `route`. Else their numbers.
  ///   - group: whose hyper-parameters may differ from those of others; nil is the default group.
  ///   - values: hyper-parameters of that group alone, as for `set`.
  ///
  /// Throws `.dtype`, `.shape`, `.layout`, `.overlap`, `.count`, `.name`, and what `set` throws; nothing is bound then.
  public func add(
    parameters: [Tensor], names: [String]? = nil, group: String? = nil, values: [String: Value] = [:]
  ) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try runner.addParameters(try views(parameters, "parameter"), names, group, settings(values))
    }
    self.parameters += parameters
    // gradients of fewer parameters are those of nobody
    gradients = []
    lend(parameters)
  }

  /// Moves all parameters to other memory of the same shapes and dtypes; state is kept.
  public func rebind(parameters: [Tensor]) throws(ThalwegError) {
    try checked { () throws(Failure) in try runner.rebindParameters(try views(parameters, "parameter")) }
    self.parameters = parameters
    lend(parameters)
  }

  /// Binds the gradients, one for each parameter in order; nil: this one has none and is left alone. Every step reads
  /// them anew.
  public func bind(gradients: [Tensor?]) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try live(gradients: false)
      guard runner.count > 0 else { throw Failure(Status.sequence, "bind parameters before gradients") }
      var list: [View] = []
      for (i, g) in gradients.enumerated() {
        if let g { list.append(try g.view("gradient \(i)")) } else { list.append(try Tensor.absent()) }
      }
      try runner.bindGradients(list)
    }
    self.gradients = gradients
    lend(gradients)
  }

  /// Binds 16-bit tensors that receive a rounded copy of the parameters in the same pass, one for each; none unbinds.
  public func bind(shadows: [Tensor]) throws(ThalwegError) {
    try checked { () throws(Failure) in try runner.bindShadow(try views(shadows, "shadow")) }
    self.shadows = shadows
    lend(shadows)
  }

  private func views(_ tensors: [Tensor], _ kind: String) throws(Failure) -> [View] {
    var list: [View] = []
    for (i, t) in tensors.enumerated() { list.append(try t.view("\(kind) \(i)")) }
    return list
  }
  private func lend(_ tensors: [Tensor?]) {
    for t in tensors { t?.lend(to: self) }
    borrows = borrows || tensors.contains { $0?.lease?.mayEnd ?? false }
  }

  /// Refuses to touch memory whose scope has ended.
  func live(gradients needed: Bool) throws(Failure) {
    guard borrows else { return }
    func look(_ tensors: [Tensor?], _ kind: String) throws(Failure) {
      guard let i = tensors.firstIndex(where: { $0?.lease?.isOver ?? false }) else { return }
      throw Failure(Status.sequence, "\(kind) \(i): the scope of its memory has ended; bind \(kind)s that live")
    }
    try look(parameters, "parameter")
    if needed {
      try look(gradients, "gradient")
      try look(shadows, "shadow")
    }
  }

  /// The number of parameters.
  public var parameterCount: Int { runner.count }

  // MARK: steps

  /// One step with the bound gradients, for pipelines that need one gradient a step.
  ///
  /// Throws `.needs` where the method asks for more: answer its requests. `.sequence` without parameters or gradients,
  /// in evaluation mode, within a step.
  @discardableResult
  public func step() throws(ThalwegError) -> Outcome {
    try checked { () throws(Failure) in
      try live(gradients: true)
      return note(try runner.stepOnce())
    }
  }

  /// Binds the gradients and steps.
  @discardableResult
  public func step(gradients: [Tensor?]) throws(ThalwegError) -> Outcome {
    try bind(gradients: gradients)
    return try step()
  }

  /// One step that asks as often as the method needs; `answer` fills the bound gradients and the request.
  ///
  ///     try optimizer.step { request in
  ///       request.loss = fill(gradients, with: batch(request.tag))
  ///     }
  ///
  /// When `answer` throws, the step is taken back.
  @discardableResult
  public func step(answering answer: (Request) throws -> Void) throws -> Outcome {
    guard runner.waiting == nil else {
      throw ThalwegError(Failure(Status.sequence, "a step is under way: answer its requests, or cancel it"))
    }
    while let request = try next() {
      do { try answer(request) } catch {
        if request.waits { try cancel() }
        throw error
      }
      guard request.waits else {
        throw ThalwegError(Failure(Status.sequence, "the step was ended by the closure that answers its requests"))
      }
    }
    return outcome
  }

  /// The same for methods that ask for losses and gradients alone: `evaluate` fills the bound gradients with those at
  /// the parameters as they stand, and returns the loss there.
  ///
  /// Throws `.needs` where the method asks for anything else.
  @discardableResult
  public func step(evaluating evaluate: () throws -> Double) throws -> Outcome {
    try step(answering: { request in
      guard [.gradient, .loss, .lossAndGradient, .previousGradient].contains(request.kind) else {
        throw ThalwegError(
          Failure(
            Status.needs,
            "the method asks for \(request.kind): give step a closure that takes the request, `{ request in ... }`"))
      }
      request.loss = try evaluate()
    })
  }

  /// Requests by hand: a step begins with the first call, and each call takes the answer to the request before it. nil:
  /// the step is done, and `outcome` says how.
  ///
  ///     while let request = try optimizer.next() { ... }
  ///
  /// An error ends the step; parameters and state are those from before it.
  public func next() throws(ThalwegError) -> Request? {
    try checked { () throws(Failure) in
      try live(gradients: true)
      let (loss, stays, before) = (pending?.loss, pending?.gradientsStay ?? false, staying)
      retire()
      let (asked, status) = try runner.next(loss: loss, stays: stays)
      if asked != nil { staying = stays ? before + [gradients] : before }
      guard let asked else {
        _ = note(status)
        return nil
      }
      return try show(asked)
    }
  }

  /// The request that waits for its answer, as after loading a checkpoint from within a step; nil between steps.
  public func waiting() throws(ThalwegError) -> Request? {
    if let pending { return pending }
    return try checked { () throws(Failure) in
      guard let asked = runner.waiting else { return nil }
      try live(gradients: false)
      runner.takePlace()
      return try show(asked)
    }
  }

  /// Ends a step between two requests: parameters and state are those from before it. Throws `.sequence` between steps.
  public func cancel() throws(ThalwegError) {
    retire()
    try checked { () throws(Failure) in try runner.cancel() }
  }

  private func note(_ status: Int) -> Outcome {
    outcome = status == Status.skipped ? .skipped : .done
    return outcome
  }
  private func show(_ asked: ThalwegCore.Request) throws(Failure) -> Request {
    let request = try Request(asked, of: self)
    pending = request
    return request
  }
  private func retire() {
    pending?.lease.end()
    (pending, staying) = (nil, [])
  }
  /// What a step under way has moved goes back.
  func breakOff() {
    retire()
    if runner.waiting != nil { try? runner.cancel() }
  }
}
