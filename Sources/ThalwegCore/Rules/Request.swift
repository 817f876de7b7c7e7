/// What the host must supply now.
public struct Request: Sendable {
  public enum Kind: Int32, Sendable, CaseIterable {
    case none = 0, gradient, loss, lossAndGradient, hessianVector, taskGradient, previousGradient, logitDerivatives,
      activations, sampleGradients, participant

    /// The answer is matrices, not gradients.
    public var takesMatrices: Bool { self == .logitDerivatives || self == .activations }
    /// The answer is read when it is given, and does not lie in the bound gradients.
    public var isGiven: Bool { takesMatrices || self == .sampleGradients }
    /// It asks for a gradient of the loss, which the sources before may make.
    public var isGradient: Bool {
      self == .gradient || self == .lossAndGradient || self == .taskGradient || self == .previousGradient
    }
    /// The answer lies in the bound gradients.
    public var takesGradients: Bool { self != .none && self != .loss && !isGiven }
    /// What messages call a tensor that is bound as a gradient.
    public var noun: String {
      switch self {
      case .hessianVector: "product"
      case .participant: "participant's parameter"
      default: "gradient"
      }
    }
  }
  public var kind = Kind.none
  public var pass = 0
  public var tag: UInt64 = 0
  public var index = 0
  public var count = 0
  public init(kind: Kind = .none, pass: Int = 0, tag: UInt64 = 0, index: Int = 0, count: Int = 0) {
    (self.kind, self.pass, self.tag, self.index, self.count) = (kind, pass, tag, index, count)
  }
}

extension Request.Kind {
  /// What it shows and wants, by name: what hosts read, and answer by. None of `none`.
  public var declared: RequestKind? {
    let gradients = Input.wanted("gradients", "...", "one for each parameter, of its shape")
    let loss = Input.wanted("loss", "", "the loss where the parameters stand")
    let probe = Input.given("probe", "...", "one for each parameter, of its shape")
    switch self {
    case .none: return nil
    case .gradient:
      return RequestKind("gradient", "the gradient where the parameters stand", given: [], wanted: [gradients])
    case .loss: return RequestKind("loss", "the loss where the parameters stand", given: [], wanted: [loss])
    case .lossAndGradient:
      return RequestKind("loss_and_gradient", "both where the parameters stand", given: [], wanted: [loss, gradients])
    case .hessianVector:
      return RequestKind(
        "hessian_vector", "the Hessian where the parameters stand, times the probe", given: [probe],
        wanted: [.wanted("products", "...", "one for each parameter, of its shape")])
    case .taskGradient:
      return RequestKind("task_gradient", "the gradient of task `index` of `count`", given: [], wanted: [gradients])
    case .previousGradient:
      return RequestKind(
        "previous_gradient", "the gradient of this minibatch at the previous parameters, which stand there now",
        given: [], wanted: [gradients])
    case .logitDerivatives:
      return RequestKind(
        "logit_derivatives", "how the logits change along the probe", given: [probe],
        wanted: [
          .constant("derivatives", "samples, classes", "of the logits along the probe", optional: true),
          .constant("logits", "samples, classes", "the logits, where `derivatives` are not given", optional: true),
        ])
    case .activations:
      return RequestKind(
        "activations", "of the layer whose weight is parameter `index`", given: [],
        wanted: [
          .wanted("inputs", "rows, in", "what the layer was given"),
          .wanted("output_gradients", "rows, out", "gradient of the loss at its pre-activations"),
        ])
    case .sampleGradients:
      return RequestKind(
        "sample_gradients", "the gradients of every sample of part `index` of `count` of the minibatch", given: [],
        wanted: [.wanted("samples", "n, ...", "one for each parameter, of its shape behind the samples")])
    case .participant:
      return RequestKind(
        "participant", "the parameters of participant `index` of `count`", given: [],
        wanted: [.wanted("parameters", "...", "one for each parameter, of its shape")])
    }
  }
}

public struct Options: Sendable {
  public enum StateFormat: Int32, Sendable { case f32 = 1, bf16, q8 }
  public enum Master: Int32, Sendable { case none = 0, f32, stochastic }
  public enum NonFinite: Int32, Sendable { case propagate = 0, skip, error }
  public var state = StateFormat.f32
  public var master = Master.none
  public var nonFinite = NonFinite.propagate
  public var maximize = false
  public var zeroGradients = false
  public var consumeGradients = false
  public var gradientScale = 1.0
  public var seed: UInt64 = 0
  public init() {}
}
