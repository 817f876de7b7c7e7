internal import ThalwegCore
internal import ThalwegRunner

extension Optimizer {
  /// What a method needs now. The parameters stand where the answer is wanted; gradients go into the bound tensors.
  public final class Request: CustomStringConvertible {
    /// What is asked for.
    public enum Kind: Int32, Sendable, CaseIterable {
      /// The gradient at the parameters as they stand.
      case gradient = 1
      /// The loss there.
      case loss
      case lossAndGradient
      /// The Hessian there times `probe`, into the bound gradients.
      case hessianVector
      /// The gradient of task `index` of `count`.
      case taskGradient
      /// The gradient of this minibatch at the previous parameters, which stand there now.
      case previousGradient
      /// Derivatives of the logits along `probe`: `answer(matrices:)` with (samples, classes), and the logits.
      case logitDerivatives
      /// Of the layer whose weight is parameter `index`: `answer(matrices:)` with its inputs (rows, in) and the
      /// gradient at its pre-activations (rows, out).
      case activations
      /// Of every sample of part `index` of `count` of the minibatch: `answer(samples:)`.
      case sampleGradients
      /// The parameters of participant `index` of `count`, into the bound gradients.
      case participant
    }

    public let kind: Kind
    /// 0, 1, ... within a step.
    public let pass: Int
    /// Equal tags mean the same minibatch and the same dropout; within a step they may come back after others.
    public let tag: UInt64
    public let index: Int
    public let count: Int
    /// The loss, where `wantsLoss`.
    public var loss = Double.nan
    /// The gradients that are bound when the request is answered stay as and where they are until the step has ended
    /// (other requests are answered with other memory): what combines several gradients need not copy them.
    public var gradientsStay = false
    /// Shaped like the parameters, for `hessianVector` and `logitDerivatives`, else empty. Read-only, until the request
    /// is answered.
    public let probe: [Tensor]
    let lease = Lease()
    private weak var optimizer: Optimizer?

    init(_ asked: ThalwegCore.Request, of optimizer: Optimizer) throws(Failure) {
      guard let kind = Kind(rawValue: asked.kind.rawValue) else {
        throw Failure(Status.internal, "an unknown kind of request \(asked.kind)")
      }
      (self.kind, pass, tag, index, count) = (kind, asked.pass, asked.tag, asked.index, asked.count)
      self.optimizer = optimizer
      var list: [Tensor] = []
      if let probes = optimizer.runner.probeTensors() {
        for i in 0..<optimizer.runner.count {
          do { list.append(try Tensor(probes[i], until: lease)) } catch {
            throw Failure(Status.internal, error.message)
          }
        }
      }
      probe = list
    }

    /// The answer needs a loss.
    public var wantsLoss: Bool { kind == .loss || kind == .lossAndGradient }
    /// The answer goes into the bound gradients.
    public var wantsGradient: Bool {
      switch kind {
      case .loss, .logitDerivatives, .activations, .sampleGradients: false
      default: true
      }
    }
    /// It is the optimizer's request still.
    var waits: Bool { optimizer?.pending === self }

    /// Answers with matrices of two axes, which are read before the call returns. What they are says the kind; a host
    /// without derivatives passes nil and the logits, and is asked once more a little along the probe.
    ///
    /// Throws `.sequence` where no such request waits; `.shape`, `.argument`: the request still waits.
    public func answer(matrices first: Tensor?, _ second: Tensor? = nil) throws(ThalwegError) {
      try answering { (runner) throws(Failure) in
        guard first != nil || second != nil else { throw Failure(Status.argument, "both matrices are nil") }
        try runner.answer(
          first.map { (t) throws(Failure) in try HostMatrix(try t.view("first"), "first") },
          second.map { (t) throws(Failure) in try HostMatrix(try t.view("second"), "second") })
      }
    }

    /// Answers with the gradients of samples, (samples, shape of the parameter...) for each parameter, which are read
    /// before the call returns; nil for parameters without a gradient.
    public func answer(samples: [Tensor?]) throws(ThalwegError) {
      try answering { (runner) throws(Failure) in
        var list: [View?] = []
        for (i, t) in samples.enumerated() { list.append(try t?.view("samples \(i)")) }
        try runner.answer(samples: list)
      }
    }

    private func answering(_ body: (ThalwegRunner.Optimizer) throws(Failure) -> Void) throws(ThalwegError) {
      try checked { () throws(Failure) in
        guard waits, let optimizer else { throw Failure(Status.sequence, "the request is answered or gone") }
        try optimizer.live(gradients: false)
        try body(optimizer.runner)
      }
    }

    public var description: String { "\(kind), pass \(pass), tag \(tag)" + (count > 0 ? ", \(index) of \(count)" : "") }
  }
}
