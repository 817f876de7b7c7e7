/// What the host must supply now.
package struct Request: Sendable {
  package enum Kind: Int32, Sendable, CaseIterable {
    case none = 0, gradient, loss, lossAndGradient, hessianVector, taskGradient, previousGradient, logitDerivatives,
      activations

    /// The answer is matrices, not gradients.
    package var takesMatrices: Bool { self == .logitDerivatives || self == .activations }
    /// The answer lies in the bound gradients.
    /// It asks for a gradient of the loss, which the sources before may make.
    var isGradient: Bool {
      self == .gradient || self == .lossAndGradient || self == .taskGradient || self == .previousGradient
    }
    package var takesGradients: Bool { self != .none && self != .loss && !takesMatrices }
  }
  package var kind = Kind.none
  package var pass = 0
  package var tag: UInt64 = 0
  package var index = 0
  package var count = 0
  package init(kind: Kind = .none, pass: Int = 0, tag: UInt64 = 0, index: Int = 0, count: Int = 0) {
    (self.kind, self.pass, self.tag, self.index, self.count) = (kind, pass, tag, index, count)
  }
}

package struct Options: Sendable {
  package enum StateFormat: Int32, Sendable { case f32 = 1, bf16, q8 }
  package enum Master: Int32, Sendable { case none = 0, f32, stochastic }
  package enum NonFinite: Int32, Sendable { case propagate = 0, skip, error }
  package var state = StateFormat.f32
  package var master = Master.none
  package var nonFinite = NonFinite.propagate
  package var maximize = false
  package var zeroGradients = false
  package var consumeGradients = false
  package var gradientScale = 1.0
  package var seed: UInt64 = 0
  package init() {}
}
