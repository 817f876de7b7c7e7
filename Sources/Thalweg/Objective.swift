internal import ThalwegCore
internal import ThalwegRunner

/// A scalar function of named tensors: a loss, a weighting of tasks, a diagnostic. Also an aggregator, of a matrix of
/// gradients.
///
///     let loss = try Objective("softmax_cross_entropy")
///     let pass = try loss.forward(["z": z, "y": y])
///     print(pass.value, try pass.gradient(of: "z").values(of: Float.self))
///
/// Arithmetic is float64 when an input is f64, else float32. Some remember earlier forward passes; `save` keeps that.
public final class Objective {
  public let sentence: String
  fileprivate let object: ObjectiveObject

  /// From one stage: an objective, a weighting, a diagnostic or an aggregator.
  public init(_ sentence: String) throws(ThalwegError) {
    self.sentence = sentence
    object = try checked { () throws(Failure) in try ObjectiveObject(sentence) }
  }

  /// Its tensors, inputs and results; `Method.named` says more of them.
  public var inputs: [String] { object.inputs.map(\.name) }

  /// The value alone.
  ///
  /// Throws `.needs` where an input is missing, `.name` for one that there is not, `.shape`, `.dtype`, `.range`.
  public func value(_ inputs: [String: Tensor]) throws(ThalwegError) -> Double {
    try checked { () throws(Failure) in
      try object.forward(try operands(inputs, self.inputs, of: sentence), nil)
    }
  }
  /// The value, with what pull-backs need. The inputs may change afterwards.
  public func forward(_ inputs: [String: Tensor]) throws(ThalwegError) -> Pass {
    try checked { () throws(Failure) in
      let cache = CacheObject()
      let value = try object.forward(try operands(inputs, self.inputs, of: sentence), cache)
      return Pass(self, cache, value)
    }
  }

  /// What it remembers of its forward passes.
  public func save() -> [UInt8] { (try? object.save()) ?? [] }
  /// Takes it up again, in an objective of the same sentence. Throws `.format`, `.mismatch`.
  public func load(_ bytes: [UInt8]) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try withBytes(of: bytes) { (data) throws(Failure) in try object.load(data) }
    }
  }

  /// A forward pass, from which gradients are pulled back as often as they are wanted.
  public final class Pass {
    public let value: Double
    private let objective: Objective
    private let cache: CacheObject

    fileprivate init(_ objective: Objective, _ cache: CacheObject, _ value: Double) {
      (self.objective, self.cache, self.value) = (objective, cache, value)
    }

    /// Adds scale · derivative of the value by each named input to its tensor; a result gets what it stands for, times
    /// scale.
    ///
    /// Throws `.argument` for an input that is held constant, `.nonfinite` where the value is infinite or NaN,
    /// `.needs`, `.shape`, `.overlap`, `.layout`.
    public func pullback(into gradients: [String: Tensor], scale: Double = 1) throws(ThalwegError) {
      try checked { () throws(Failure) in
        try refuseStrangers(gradients, objective.inputs, of: objective.sentence)
        var targets: [View?] = []
        for name in objective.inputs { targets.append(try gradients[name]?.view("the gradient of `\(name)`")) }
        try objective.object.pullback(cache, scale, targets)
      }
    }
    /// The gradient by one input, or a result, in memory of its own: f64 where an input is, else f32.
    public func gradient(of name: String) throws(ThalwegError) -> Tensor {
      let shape = try checked { () throws(Failure) in
        guard let input = objective.object.inputs.first(where: { $0.name == name }) else {
          throw Failure(
            Status.name, "`\(objective.sentence)` has no tensor `\(name)`" + suggestion(name, objective.inputs))
        }
        guard let shape = cache.shape(input) else {
          throw Failure(
            Status.needs, "there is no `\(name)` without the optional inputs that it comes from")
        }
        return shape
      }
      let gradient = try Tensor(zeros: shape, dtype: cache.isDouble ? .f64 : .f32)
      try pullback(into: [name: gradient])
      return gradient
    }
  }
}
