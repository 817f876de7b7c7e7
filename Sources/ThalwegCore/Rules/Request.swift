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
