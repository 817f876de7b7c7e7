internal import ThalwegCore
internal import ThalwegRunner

/// A penalty on its own: its value, gradient and prox.
///
///     let lasso = try Regularizer("l1(0.1)")
///     try lasso.prox(w, step: 0.5)                          // w is shrunk in place
///
/// In a sentence it stands in `penalty(...)`, `prox(...)` or `decoupled(...)`.
public final class Regularizer {
  public let sentence: String
  private let object: RegularizerObject

  /// From one stage, as "group_lasso(1e-3, axis=row)".
  public init(_ sentence: String) throws(ThalwegError) {
    self.sentence = sentence
    object = try checked { () throws(Failure) in try RegularizerObject(sentence) }
  }

  /// The tensors that it takes, the weights first.
  public var inputs: [String] { object.inputs.isEmpty ? ["w"] : object.inputs.map(\.name) }

  /// The penalty at `w`, its weight included. Throws `.needs` where it takes further inputs.
  public func value(at w: Tensor) throws(ThalwegError) -> Double {
    try checked { () throws(Failure) in try object.value([Operand(try w.argument("w", writable: false))]) }
  }
  /// The same with further inputs, by name.
  public func value(at inputs: [String: Tensor]) throws(ThalwegError) -> Double {
    try checked { () throws(Failure) in try object.value(try operands(inputs, self.inputs, of: sentence)) }
  }

  /// g += scale · gradient at `w`, of the shape of `w`.
  public func addGradient(at w: Tensor, to g: Tensor, scale: Double = 1) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try object.addGradient(
        [Operand(try w.argument("w", writable: false))], scale, try g.argument("g", writable: true))
    }
  }
  /// The same with further inputs, by name; g has the shape of the weights.
  public func addGradient(at inputs: [String: Tensor], to g: Tensor, scale: Double = 1) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try object.addGradient(
        try operands(inputs, self.inputs, of: sentence), scale, try g.argument("g", writable: true))
    }
  }

  /// w ← the u that minimises ½|u − w|² + step · penalty(u), in place.
  ///
  /// Throws `.range` for a step that is negative or not finite, `.unsupported` where there is no prox.
  public func prox(_ w: Tensor, step: Double) throws(ThalwegError) {
    try checked { () throws(Failure) in try object.prox(try w.argument("w", writable: true), step) }
  }
  /// The same with a step for each element, `steps` of the shape of `w`. Throws `.unsupported` where elements depend on
  /// one another.
  public func prox(_ w: Tensor, steps: Tensor) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try object.prox(try w.argument("w", writable: true), steps: try steps.argument("steps", writable: false))
    }
  }
}

/// A set on its own: "simplex", "stiefel". In a sentence it stands in `project(...)` or `manifold(...)`.
public final class Constraint {
  public let sentence: String
  private let object: ConstraintObject

  /// From one stage.
  public init(_ sentence: String) throws(ThalwegError) {
    self.sentence = sentence
    object = try checked { () throws(Failure) in try ConstraintObject(sentence) }
  }

  /// w ← the nearest point of the set, in place.
  public func project(_ w: Tensor) throws(ThalwegError) {
    try checked { () throws(Failure) in try object.project(try w.argument("w", writable: true)) }
  }

  // The geometry of a manifold; other sets throw `.unsupported`. Nothing here looks whether w and y are points and u
  // and v tangents at w: `pointErrors` and `tangentErrors` do.

  /// g ← the Riemannian gradient of the Euclidean gradient g at `w`.
  public func tangent(_ g: Tensor, at w: Tensor) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try object.tangent(try w.argument("w", writable: false), try g.argument("g", writable: true))
    }
  }
  /// u ← the tangent part of any vector u at `w`.
  public func projectTangent(_ u: Tensor, at w: Tensor) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try object.projectTangent(try w.argument("w", writable: false), try u.argument("u", writable: true))
    }
  }
  /// w ← the point that the tangent step `u` leads to, by the retraction that the sentence names.
  public func retract(_ w: Tensor, along u: Tensor) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try object.retract(try w.argument("w", writable: true), try u.argument("u", writable: false))
    }
  }
  /// w ← the point that the geodesic along `u` leads to. Throws `.unsupported` where there is no closed form.
  public func exponential(_ w: Tensor, along u: Tensor) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try object.exponential(try w.argument("w", writable: true), try u.argument("u", writable: false))
    }
  }
  /// u ← the tangent at `w` whose exponential is `y`. Throws `.unsupported` where there is no closed form.
  public func logarithm(of y: Tensor, at w: Tensor, into u: Tensor) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try object.logarithm(
        try w.argument("w", writable: false), try y.argument("y", writable: false),
        try u.argument("u", writable: true))
    }
  }
  /// u, a tangent at `w` ← what it becomes at `y`.
  public func transport(_ u: Tensor, from w: Tensor, to y: Tensor) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try object.transport(
        try w.argument("w", writable: false), try y.argument("y", writable: false),
        try u.argument("u", writable: true))
    }
  }
  /// How many of the first axes of `w` number its points: each has a number of its own in what follows.
  public func pointAxes(of w: Tensor) throws(ThalwegError) -> Int {
    try checked { () throws(Failure) in try object.pointAxes(try w.argument("w", writable: false)) }
  }
  /// ⟨u, v⟩ in the metric at `w`.
  public func inner(_ u: Tensor, _ v: Tensor, at w: Tensor) throws(ThalwegError) -> [Double] {
    try checked { () throws(Failure) in
      try object.inner(
        try w.argument("w", writable: false), try u.argument("u", writable: false),
        try v.argument("v", writable: false))
    }
  }
  /// The lengths of the shortest geodesics from `w` to `y`. Throws `.unsupported` where there is no closed form.
  public func distances(from w: Tensor, to y: Tensor) throws(ThalwegError) -> [Double] {
    try checked { () throws(Failure) in
      try object.distances(try w.argument("w", writable: false), try y.argument("y", writable: false))
    }
  }
  /// How far `w` is from where `project` puts it: 0 for points, to rounding.
  public func pointErrors(of w: Tensor) throws(ThalwegError) -> [Double] {
    try checked { () throws(Failure) in try object.pointErrors(try w.argument("w", writable: false)) }
  }
  /// How long the part of `u` is that is not tangent at `w`.
  public func tangentErrors(of u: Tensor, at w: Tensor) throws(ThalwegError) -> [Double] {
    try checked { () throws(Failure) in
      try object.tangentErrors(try w.argument("w", writable: false), try u.argument("u", writable: false))
    }
  }
  /// s ← a point of the set that minimises ⟨g, s⟩. Throws `.range` where the set is unbounded in that direction.
  public func minimize(_ g: Tensor, into s: Tensor) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try object.minimise(try g.argument("g", writable: false), try s.argument("s", writable: true))
    }
  }
}

/// A schedule on its own: "cosine(lr=0.1, total=1000)".
public final class Schedule {
  private let object: ScheduleObject

  /// From one stage.
  public init(_ sentence: String) throws(ThalwegError) {
    object = try checked { () throws(Failure) in try ScheduleObject(sentence) }
  }

  /// The value at a step, counted from 0. Throws `.range` below 0 and from 2^53 on.
  public func value(at step: Int) throws(ThalwegError) -> Double {
    try checked { () throws(Failure) in try object.value(Int64(step)) }
  }
  /// Tells it what it watches: "metric", "loss", "batch_size". Throws `.name` where it does not.
  public func observe(_ what: String, _ value: Double) throws(ThalwegError) {
    try checked { () throws(Failure) in try object.observe(what, value) }
  }
  /// Shows gradients of samples, (samples, n), to a rule for batch sizes.
  public func observe(samples: Tensor) throws(ThalwegError) {
    try checked { () throws(Failure) in try object.observe(samples: try samples.argument("samples", writable: false)) }
  }
  /// Runs a command: "begin_decay".
  public func run(_ command: String) throws(ThalwegError) {
    try checked { () throws(Failure) in try object.command(command) }
  }
  /// A sentence that goes on from what it remembers.
  public var sentence: String { object.sentence }
  /// What it remembers of the run.
  public func save() -> [UInt8] { object.save() }
  /// Takes it up again, in a schedule of the same sentence. Throws `.format`, `.mismatch`.
  public func load(_ bytes: [UInt8]) throws(ThalwegError) {
    try checked { () throws(Failure) in
      try withBytes(of: bytes) { (data) throws(Failure) in try object.load(data) }
    }
  }
}
