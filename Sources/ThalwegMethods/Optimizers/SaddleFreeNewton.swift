import Glibc
import ThalwegCore

/// Saddle-free Newton in a Krylov subspace: curvature counts by its magnitude, so that negative curvature is left
/// downhill instead of climbed.
///
///     Lanczos from the gradient, fully orthogonalised: V (m × n), T = Y·diag(w)·Yᵀ;   c = Yᵀ·V·g
///     for every damping μ: d = −Vᵀ·Y·(c/(|w| + μ)), the loss at θ + lr·d, on the same minibatch
///     θ ← θ + lr·d of the lowest loss (the first on a tie)
///     exact:  θ ← θ − lr·(|H| + damping·I)⁻¹·g, in the Krylov space of the gradient, which holds it:
///             `order` must be at least the number of parameters
///
/// State    within a step the vectors V, the parameters, and the products; nothing between steps.
///          A damping whose loss is not finite is passed over; where all of them are, nothing moves, and `refused`
///          counts it.
/// Errors   TW_ERROR_NUMERIC: exact without damping, and an eigenvalue of 0.
/// Differs  where g = 0 nothing moves (the start at random numbers, which would leave an exact saddle, is not carried).
///          The Krylov details follow later work (UNVERIFIED).
/// Source   Pascanu, Dauphin, Ganguli, Bengio, 2014, arXiv:1405.4604; Dauphin et al., 2014, arXiv:1406.2572.
struct SaddleFreeNewton: ElementRule {
  static let method = Method(
    "saddle_free_newton", .optimizer,
    "Saddle-free Newton in a Krylov subspace: the curvature of every direction counts by its magnitude.",
    rule: """
      order Lanczos steps from g: V, T = Y diag(w) Y';  c = Y'V g
      for every damping mu: d = -V'Y (c/(|w| + mu)), the loss at theta + lr*d
      theta <- theta + lr*d of the lowest loss
      exact: theta <- theta - lr*(|H| + damping*I)^-1 g, by as many Lanczos steps as there are parameters
      """,
    source: "Pascanu, Dauphin, Ganguli, Bengio, 2014, arXiv:1405.4604; Dauphin et al., 2014, arXiv:1406.2572",
    parameters: [
      .lr(1), .integer("order", 20, .within(1, 500), "Lanczos steps, at most the number of parameters", live: false),
      .list(
        "dampings", [1, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6], "what is added to the magnitudes, tried in this order"),
      .choice("mode", ["krylov", "exact"], "in a subspace, or of all parameters", live: false),
      .number("damping", 0, .atLeast(0), "added to the magnitudes (exact)").forAll,
    ],
    requests: "hessian_vector, loss", needsFinite: true,
    validate: { (h) throws(Failure) in
      let list = h.list("dampings")
      guard (1...64).contains(list.count), list.allSatisfy({ $0 > 0 && $0.isFinite }) else {
        throw Failure(
          Status.range,
          "saddle_free_newton: `dampings` must be 1 to 64 numbers above 0, got "
            + "[\(list.prefix(8).map { text($0) }.joined(separator: ", "))]")
      }
    })

  /// Vectors of the basis, the diagonal and the subdiagonal of T, ‖g‖, losses.
  static func scalars(_ h: Hyper) -> [Scalar] {
    let order = h.integer("order")
    return [Scalar("vectors")] + (0..<order).map { Scalar("alpha_\($0)") } + (0..<order).map { Scalar("beta_\($0)") }
      + [Scalar("norm")] + h.list("dampings").indices.map { Scalar("loss_\($0)") } + [Scalar("refused", tells: true)]
  }

  init(_ h: Hyper, _ c: StepContext) {}
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { g }

  static let registered = entry(SaddleFreeNewton.self, source: { (h) throws(Failure) in Krylov(h) })

  struct Krylov: Source {
    static var method: Method { SaddleFreeNewton.method }
    var handsDirection: Bool { true }
    let order: Int, dampings: [Double], exact: Bool
    init(_ h: Hyper) { (order, dampings, exact) = (h.integer("order"), h.list("dampings"), h.is("mode", "exact")) }

    private var vector: Int { order }
    private var point: Int { order + 1 }
    var slots: [Slot] {
      (0..<order).map { Slot.temporary("basis_\($0)", "vector \($0) of the basis V") } + [
        .temporary("probe", "the vector of a product, then the move"), .home("point", "the parameters of the step"),
      ]
    }
    var probe: Int? { vector }
    var global: Bool { true }  // a loss is of all tensors
    var triesPoints: Bool { true }
    func most(_ tensors: Int) -> Int { order + 1 + dampings.count }
    var kinds: [Request.Kind] { [.hessianVector, .loss] }

    private func ask(_ io: SourceIO, _ k: Int) -> Move {
      io.clearAbsent(vector)
      io.copy(k, into: vector)
      return .ask(Ask(.hessianVector))
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase == 0 {
        io.setScalar(0, 0)
        guard !exact || io.elements <= order else {
          throw Failure(
            Status.range,
            "saddle_free_newton: mode=exact needs `order` of at least \(io.elements), the number of parameters, "
              + "got \(order)")
        }
        io.change(SaveGradient(), slots: [0], parameters: false)
        let norm = io.norm(0)
        guard norm > 0, norm.isFinite else { return .update(nil) }
        io.add(0, 1 / norm, [], [])
        // c = Yᵀ·V·g is this number times the first row of Y
        io.setScalar(1 + 2 * order, norm)
        return ask(io, 0)
      }
      let known = io.counter(0, most: min(order, phase - 1))
      return known == 0 ? try lanczos(phase - 1, io) : try trial(phase - known - 1, known, io)
    }

    /// The product with vector k came.
    private func lanczos(_ k: Int, _ io: SourceIO) throws(Failure) -> Move {
      let limit = min(order, io.elements)
      guard k < limit else { throw Failure(Status.internal, "saddle_free_newton: vector \(k)") }
      io.change(SaveGradient(), slots: [vector], parameters: false)
      let alpha = io.product(vector, k)
      guard alpha.isFinite else {
        throw Failure(Status.nonfinite, "a Hessian-vector product has elements that are NaN or infinite")
      }
      io.setScalar(1 + k, alpha)
      if k + 1 < limit {
        let known = Array(0...k)
        for _ in 0..<2 { io.add(vector, 1, io.products(vector, known).map { -$0 }, known) }
        let beta = io.norm(vector)
        let size = (0..<k).reduce(abs(alpha)) { max($0, abs(io.scalar(1 + $1)), io.scalar(1 + order + $1)) }
        if beta > 1e-12 * size {
          io.setScalar(1 + order + k, beta)
          io.copy(vector, times: 1 / beta, into: k + 1)
          return ask(io, k + 1)
        }
      }
      if exact { return .update(io.combination(try move(io.hyper.damping, k + 1, io).map { -$0 })) }
      io.setScalar(0, Double(k + 1))
      io.saveHome()
      io.change(SaveParameters(), slots: [point], parameters: false)
      return try go(0, k + 1, io)
    }

    /// Coordinates of the move in the basis.
    private func move(_ damping: Double, _ m: Int, _ io: SourceIO) throws(Failure) -> [Double] {
      var T = [Double](repeating: 0, count: m * m)
      for i in 0..<m {
        T[i * m + i] = io.scalar(1 + i)
        if i + 1 < m {
          T[i * m + i + 1] = io.scalar(1 + order + i)
          T[(i + 1) * m + i] = T[i * m + i + 1]
        }
      }
      let eigen = try LinearAlgebra.Eigen(T, m), norm = io.scalar(1 + 2 * order)
      let rounding = eigen.values.reduce(0) { max($0, abs($1)) } * Double(m) * Double.ulpOfOne
      guard !exact || eigen.values.allSatisfy({ abs($0) + damping > rounding }) else {
        throw Failure(
          Status.numeric, "saddle_free_newton: the Hessian is singular along the gradient: `damping` must be above 0")
      }
      return (0..<m).map { i in
        (0..<m).reduce(0) {
          $0 - eigen.vectors[i * m + $1] * eigen.vectors[$1] * norm / (abs(eigen.values[$1]) + damping)
        }
      }
    }

    private func go(_ index: Int, _ m: Int, _ io: SourceIO) throws(Failure) -> Move {
      io.add(vector, 0, try move(dampings[index], m, io), Array(0..<m))
      io.change(slots: [point, vector], parameters: true) { SlotVectors.Along(t: $0.lr) }
      return .ask(Ask(.loss))
    }

    /// The loss of damping `index` came.
    private func trial(_ index: Int, _ m: Int, _ io: SourceIO) throws(Failure) -> Move {
      guard dampings.indices.contains(index) else {
        throw Failure(Status.internal, "saddle_free_newton: phase \(index)")
      }
      let losses = 2 + 2 * order
      io.setScalar(losses + index, io.cost)
      if index + 1 < dampings.count { return try go(index + 1, m, io) }
      io.comeHome()
      // the lowest finite one; without any nothing moves
      let finite = dampings.indices.filter { io.scalar(losses + $0).isFinite }
      guard let first = finite.first else {
        io.tally(losses + dampings.count)
        return .update(io.combination([Double](repeating: 0, count: m)))
      }
      let best = finite.reduce(first) { io.scalar(losses + $1) < io.scalar(losses + $0) ? $1 : $0 }
      let weights = try move(dampings[best], m, io)
      return .update(io.combination(weights.map { -$0 }))
    }
  }
}
