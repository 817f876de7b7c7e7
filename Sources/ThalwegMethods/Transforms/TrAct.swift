import ThalwegCore

/// TrAct: the weight gradient of a layer becomes the move that a gradient step on its pre-activations asks of the
/// weight.
///
///     ΔW = Gᵀ·X·(Xᵀ·X/n + λ·I)⁻¹,  for n < in as  Zᵀ·X  with  (X·Xᵀ/n + λ·I)·Z = G;   ΔW takes the place of Gᵀ·X, the
///     gradient
///
/// Shapes   X (n, in): the layer's inputs; G (n, out): the gradient of the loss at its pre-activations; W (out, in), or
///          (out, in, kh, kw) seen as (out, in·kh·kw), X then the patches of all samples and positions. n is the number
///          of rows given.
/// State    nothing between steps; the gradient of the step while it asks.
/// Errors   TW_ERROR_SHAPE when X or G does not fit W; TW_ERROR_NONFINITE when they are not finite.
/// Differs  nothing from the paper. Asked for is every tensor of rank 2 or more that is not marked as bias, norm or
///          embedding: `route` says which layers. X = 0, or no rows, gives 0. Everything else keeps its gradient.
/// Source   Petersen, Borgelt and Ermon, 2024, arXiv:2410.23970.
struct TrAct: Source {
  static let method = Method(
    "tract", .transform,
    "TrAct: the weight gradient becomes the least-squares move for a gradient step on the pre-activations.",
    rule: """
      W's gradient <- G' X (X' X / n + lam*I)^-1,  X (n, in): inputs of the layer, G (n, out): gradient at its \
      pre-activations
      tensors of rank below 2, biases, norms and embeddings keep their gradient
      """,
    source: "Petersen, Borgelt, Ermon, 2024, arXiv:2410.23970", parameters: [.number("lam", 0.1, .above(0), "ridge")],
    slots: [Slot.temporary("gradient", "the gradient of the step, with those that are replaced")],
    requests: "activations", needsFinite: true)

  let slots = TrAct.method.slots
  init(_ h: Hyper) {}

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let layers = io.tensors(where: LayerAnswer.takes)
    if phase == 0 {
      io.change(SaveGradient(), slots: [0], parameters: false)
    } else if phase <= layers.count {
      let layer = layers[phase - 1]
      if let x = io.answer.first, let g = io.answer.second {
        io.fill(0, of: layer, try TrAct.move(x, g, io.hyper(of: layer).lam, io.gradientScale))
      }
    }
    if phase < layers.count { return .ask(Ask(.activations, index: layers[phase], count: layers.count)) }
    return .update(io.gradient(in: 0))
  }

  func most(_ tensors: Int) -> Int { tensors + 1 }
  var kinds: [Request.Kind] { [.activations] }

  func check(_ answer: Answer, _ phase: Int, _ io: SourceIO) throws(Failure) {
    try LayerAnswer.check(answer, io.tensors(where: LayerAnswer.takes), phase, io, "tract")
  }

  /// scale·ΔW, (out, in).
  static func move(_ x: HostMatrix, _ g: HostMatrix, _ lam: Double, _ scale: Double) throws(Failure) -> [Double] {
    let n = x.rows, inputs = x.columns, out = g.columns, side = min(n, inputs)
    try Memory.ask(8 * out * inputs)
    var move = [Double](repeating: 0, count: out * inputs)
    guard n > 0 else { return move }
    guard side <= 1 << 15 else { throw Failure(Status.shape, "tract: a system of \(side) equations is too large") }
    let primal = inputs <= n
    try Memory.ask(8 * side * side)
    var system = [Double](repeating: 0, count: side * side)
    try LinearAlgebra.gram(x.values, transposed: primal, into: &system, side, primal ? n : inputs, alpha: 1 / Double(n))
    for i in 0..<side { system[i * (side + 1)] += lam }
    if primal {
      try Memory.ask(8 * inputs * out)
      var right = [Double](repeating: 0, count: inputs * out)
      try LinearAlgebra.multiply(x.values, transposed: true, g.values, into: &right, inputs, out, n, alpha: scale)
      return LinearAlgebra.transposed(try LinearAlgebra.solvePositive(system, right, inputs, out), inputs, out)
    }
    let z = try LinearAlgebra.solvePositive(system, g.values, n, out)
    try LinearAlgebra.multiply(z, transposed: true, x.values, into: &move, out, inputs, n, alpha: scale)
    return move
  }
}
