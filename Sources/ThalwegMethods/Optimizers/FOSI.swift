import Glibc
import ThalwegCore

/// FOSI: Newton's method on the outermost eigenvectors of the Hessian, a first-order method on the rest.
///
///     every `interval` steps, from step `warmup` on: Lanczos from a random vector, `order` products with the Hessian
///         V the l smallest and k largest Ritz pairs, ascending;  il = 1/|λ|;  c = |λ_last|/|λ_l|, in [1, lr_clip]
///     g₁ = VᵀVg, g₂ = g − g₁;   sgd vel = g₁, heavyball vel ← g₁ + μ·vel, adam vel ← (1 − μ)·g₁ + μ·vel
///     d₁ = Vᵀ(il·(V·vel));   d₂ = the move of the base method for g₂, less VᵀV of it
///     θ ← θ + c·d₂ − alpha·d₁
///
/// Until the first Ritz pairs it is the base method. heavyball: m ← μ·m + g₂, −lr·m; adam with bias correction.
///
/// State    k + l vectors (kept exactly: what rounding leaves of directions of large curvature would go to the base
///          method) and the velocity, the base method's moments (16 bits at least); while it asks `order` vectors more
///          and two.
/// Errors   TW_ERROR_NONFINITE: a Hessian-vector product.
/// Differs  order none is max(4·(k + l), ⌊2·ln n⌋), but at most 32 where 4·(k + l) is less. |λ| is at least `floor`.
///          The velocity is not turned with V, as in the authors' code. Put a weight decay into the loss: the
///          spectrum is wrong otherwise. One `lr` for all groups.
/// Source   Sivan, Gabel, Schuster, 2023, arXiv:2302.08484.
struct FOSI: ElementRule {
  static let method = Method(
    "fosi", .optimizer,
    "Newton's method on the outermost eigenvectors of the Hessian, a first-order method on the rest.",
    rule: """
      every interval steps: V, lambda = l smallest and k largest Ritz pairs of the Hessian;  il = 1/|lambda|
      g1 = V'V g, g2 = g - g1;  vel from g1;  d1 = V'(il*(V vel));  d2 = base method for g2, less V'V d2
      theta <- theta + c*d2 - alpha*d1,  c = |lambda_last|/|lambda_l|, in [1, lr_clip]
      """,
    source: "Sivan, Gabel, Schuster, 2023, arXiv:2302.08484",
    parameters: [
      .choice("base", ["adam", "heavyball", "sgd"], "the first-order method", live: false),
      .lr(1e-3).forAll, .rate("momentum", 0.9, "rate of the velocity, and of heavyball").forAll,
      .rate("beta1", 0.9, "rate of the first moment (adam)").forAll,
      .rate("beta2", 0.999, "rate of the second moment (adam)").forAll, .eps(1e-8).forAll,
      .integer("k", 5, .within(1, 200), "largest eigenvalues", live: false),
      .integer("l", 0, .within(0, 200), "smallest eigenvalues", live: false),
      .integer("interval", 100, .atLeast(1), "steps between spectra").forAll,
      .maybeInteger("warmup", .atLeast(1), "first step with a spectrum; none: interval").forAll,
      .number("alpha", 0.1, .between(0, 1, lowOpen: true, highOpen: false), "step size of Newton's part").forAll,
      .maybe("lr_clip", .atLeast(1), "largest factor of the base method's move; none: 1 for adam, else 3").forAll,
      .maybeInteger(
        "order", .within(1, 500), "Lanczos steps; none: max(4 (k + l), 2 ln n), of n parameters", live: false),
      .number("floor", 1e-12, .above(0), "least magnitude of an eigenvalue").forAll,
    ], requests: "hessian_vector, own-step", needsFinite: true,
    validate: { (h) throws(Failure) in
      guard !h.has("order") || h.integer("order") >= h.integer("k") + h.integer("l") else {
        throw Failure(Status.range, "fosi: `order` must be at least k + l, got \(h.integer("order"))")
      }
    })

  init(_ h: Hyper, _ c: StepContext) { lr = c.lr }
  let lr: Double
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { g.direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - g }

  /// Vectors that there is room for.
  private static func order(_ h: Hyper) -> Int {
    h.has("order") ? h.integer("order") : max(room, 4 * (h.integer("k") + h.integer("l")))
  }
  /// 2·ln n of nine million parameters.
  private static let room = 32
  /// Lanczos steps of n parameters.
  static func steps(_ h: Hyper, _ n: Int) -> Int {
    let wanted = max(4 * (h.integer("k") + h.integer("l")), Int(2 * log(Double(max(1, n)))))
    return min(h.has("order") ? order(h) : min(wanted, order(h)), n)
  }
  static func scalars(_ h: Hyper) -> [Scalar] {
    let pairs = h.integer("k") + h.integer("l"), order = order(h)
    return ["steps", "pairs", "scaling"].map { Scalar($0) } + (0..<pairs).map { Scalar("inverse_\($0)") }
      + (0..<order).map { Scalar("alpha_\($0)") } + (0..<order).map { Scalar("beta_\($0)") }
  }
  static let registered = entry(FOSI.self, source: { (h) throws(Failure) in Spectrum(h) })

  struct Spectrum: Source {
    static var method: Method { FOSI.method }
    let largest: Int, smallest: Int, order: Int, adam: Bool, plain: Bool
    init(_ h: Hyper) {
      (largest, smallest, order) = (h.integer("k"), h.integer("l"), FOSI.order(h))
      (adam, plain) = (h.is("base", "adam"), h.is("base", "sgd"))
    }
    private var pairs: Int { largest + smallest }
    private var velocity: Int { pairs }
    private var first: Int { pairs + 1 }
    private var second: Int { pairs + 2 }
    private var basis: Int { pairs + 3 }
    private var probe0: Int { basis + order }
    private var gradient: Int { basis + order + 1 }
    private var newton: Int { basis + order + 2 }

    var slots: [Slot] {
      (0..<pairs).map { Slot("vector_\($0)", "eigenvector \($0)") } + [
        .apart("velocity", "velocity of Newton's part"), .apart("exp_avg", "moment of the base method"),
        .apart("exp_avg_sq", "second moment of the base method"),
      ] + (0..<order).map { Slot.temporary("basis_\($0)", "Lanczos vector \($0)") } + [
        .temporary("probe", "the vector of a product"), .temporary("gradient", "gradient of the step, then the move"),
        .temporary("newton", "Newton's part"),
      ]
    }
    var probe: Int? { probe0 }
    var global: Bool { true }
    func most(_ tensors: Int) -> Int { order + 1 }
    var kinds: [Request.Kind] { [.hessianVector] }

    private func alphaAt(_ k: Int) -> Int { 3 + pairs + k }
    private func betaAt(_ k: Int) -> Int { 3 + pairs + order + k }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase > 0 { return try lanczos(phase - 1, io) }
      io.change(SaveGradient(), slots: [gradient], parameters: false)
      let h = io.hyper, next = io.counter(0) + 1, interval = max(1, h.integer("interval"))
      let start = h.has("warmup") ? h.integer("warmup") : interval
      guard next >= start, (next - start) % interval == 0 else { return step(io) }
      io.draw(basis, signs: false)
      let norm = io.norm(basis)
      guard norm > 0 else { return step(io) }
      io.add(basis, 1 / norm, [], [])
      return ask(io, 0)
    }

    private func ask(_ io: SourceIO, _ k: Int) -> Move {
      io.clearAbsent(probe0)
      io.copy(basis + k, into: probe0)
      return .ask(Ask(.hessianVector))
    }

    /// The product with vector k came.
    private func lanczos(_ k: Int, _ io: SourceIO) throws(Failure) -> Move {
      let limit = min(order, FOSI.steps(io.hyper, io.elements)), known = (0...k).map { basis + $0 }
      guard k < limit else { throw Failure(Status.internal, "fosi: vector \(k)") }
      io.change(SaveGradient(), slots: [probe0], parameters: false)
      let alpha = io.product(probe0, basis + k)
      guard alpha.isFinite else {
        throw Failure(Status.nonfinite, "a Hessian-vector product has elements that are NaN or infinite")
      }
      io.setScalar(alphaAt(k), alpha)
      if k + 1 < limit {
        for _ in 0..<2 { io.add(probe0, 1, io.products(probe0, known).map { -$0 }, known) }
        let beta = io.norm(probe0)
        let size = (0..<k).reduce(abs(alpha)) { max($0, abs(io.scalar(alphaAt($1))), io.scalar(betaAt($1))) }
        if beta > 1e-12 * size {
          io.setScalar(betaAt(k), beta)
          io.copy(probe0, times: 1 / beta, into: basis + k + 1)
          return ask(io, k + 1)
        }
      }
      try ritz(k + 1, io)
      return step(io)
    }

    /// The outermost eigenpairs of T, ascending.
    private func ritz(_ m: Int, _ io: SourceIO) throws(Failure) {
      var T = [Double](repeating: 0, count: m * m)
      for i in 0..<m {
        T[i * m + i] = io.scalar(alphaAt(i))
        if i + 1 < m { (T[i * m + i + 1], T[(i + 1) * m + i]) = (io.scalar(betaAt(i)), io.scalar(betaAt(i))) }
      }
      let eigen = try LinearAlgebra.Eigen(T, m), top = min(largest, m), low = min(smallest, m - top)
      // descending as they are found
      let chosen = (0..<low).map { m - 1 - $0 } + (0..<top).reversed()
      var inverse: [Double] = []
      for (slot, column) in chosen.enumerated() {
        io.add(slot, 0, (0..<m).map { eigen.vectors[$0 * m + column] }, (0..<m).map { basis + $0 })
        io.clearAbsent(slot)
        inverse.append(1 / max(abs(eigen.values[column]), io.hyper.floor))
        io.setScalar(3 + slot, inverse[slot])
      }
      io.setScalar(1, Double(chosen.count))
      let ratio = inverse[low] / inverse[chosen.count - 1]
      let most = io.hyper.has("lr_clip") ? io.hyper.lr_clip : adam ? 1 : 3
      io.setScalar(2, min(max(ratio, 1), most))
    }

    private struct Adam: ElementOperation {
      let beta1, beta2, c1, c2, eps, lr: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        let m = beta1 * s[0] + (1 - beta1) * s[2], v = beta2 * s[1] + (1 - beta2) * (s[2] * s[2])
        s[0] = m
        s[1] = v
        s[2] = -lr * ((c2 * v).squareRoot() + eps).divide(c1 * m)
      }
    }

    /// The move, negative, becomes the gradient.
    private func step(_ io: SourceIO) -> Move {
      let h = io.hyper, t = io.counter(0) + 1, mu: Double = h.momentum
      let vectors = Array(0..<io.counter(1, most: pairs)), parts = io.products(gradient, vectors)
      if !vectors.isEmpty {
        io.add(newton, 0, parts, vectors)
        io.add(velocity, plain ? 0 : mu, [adam ? 1 - mu : 1], [newton])
        io.add(gradient, 1, parts.map { -$0 }, vectors)
        let speeds = io.products(velocity, vectors)
        io.add(newton, 0, vectors.map { io.scalar(3 + $0) * speeds[$0] }, vectors)
      }
      if adam {
        let beta1: Double = h.beta1, beta2: Double = h.beta2
        let op = Adam(
          beta1: beta1, beta2: beta2, c1: 1 / (1 - power(beta1, t)), c2: 1 / (1 - power(beta2, t)), eps: h.eps, lr: h.lr
        )
        io.change(op, slots: [first, second, gradient], parameters: false)
      } else if plain {
        io.add(gradient, -h.lr, [], [])
      } else {
        io.add(first, mu, [1], [gradient])
        io.copy(first, times: -h.lr, into: gradient)
      }
      io.setScalar(0, Double(t))
      if vectors.isEmpty {
        io.add(gradient, -1, [], [])
        return .update(io.gradient(in: gradient))
      }
      io.add(gradient, 1, io.products(gradient, vectors).map { -$0 }, vectors)
      io.add(gradient, -io.scalar(2), [h.alpha], [newton])
      return .update(io.gradient(in: gradient))
    }
  }
}
