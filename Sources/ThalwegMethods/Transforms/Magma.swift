import Glibc
import ThalwegCore

/// Momentum-aligned gradient masking: a tensor's step is taken or left out by a coin, shortened where its momentum and
/// the gradient disagree.
///
///     m ← momentum_beta·m + (1 − momentum_beta)·g;   cos = ⟨m, g⟩/(max(‖m‖, 1e-8)·max(‖g‖, 1e-8))
///     a ← alignment_ema·a + (1 − alignment_ema)·sigmoid(cos/tau), from 1;   coin ~ Bernoulli(mask_prob)
///     θ ← θ + coin·a·(the whole step of the rule, its decay too)
///
/// State    m; a and the last factor, for each tensor.
/// Differs  the moment is the stage's own average: with the rule's rate its cosine is that of the rule's first moment.
///          A draw is the distribution function of the tensor's normal draw of the step. No paper was seen
///          (UNVERIFIED).
/// Source   2026, arXiv:2602.15322.
struct Magma: ElementRule {
  static let method = Method(
    "magma", .update, "A tensor's step is left out by a coin, and shortened where momentum and gradient disagree.",
    rule: """
      m <- momentum_beta*m + (1 - momentum_beta)*g;  cos = <m, g>/(|m|*|g|)
      a <- alignment_ema*a + (1 - alignment_ema)*sigmoid(cos/tau);  coin ~ Bernoulli(mask_prob)
      theta <- theta + coin*a*(the step of the rule, with its decay)
      """,
    source: "2026, arXiv:2602.15322",
    parameters: [
      .number("mask_prob", 0.5, .within(0, 1), "probability that a tensor steps"),
      .number("tau", 2, .above(0), "temperature of the alignment"),
      .rate("momentum_beta", 0.9, "rate of the momentum that is compared"),
      .rate("alignment_ema", 0.9, "rate of the alignment"),
    ], slots: [.moment("exp_avg", "the momentum m")])

  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("alignment", 1), Scalar("factor", 1)] }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let (a, b, ema) = (max(totals.root(1), 1e-8), max(totals.root(2), 1e-8), h.alignment_ema as Double)
    // where the products overflow, of the scaled sum
    let cosine =
      (a * b).isFinite ? totals[0] / (a * b) : totals.p[Sums.scaled] / (a * 0x1p-600 * (b * 0x1p-600))
    s[0] = ema * s[0] + (1 - ema) / (1 + exp(-cosine / h.tau))
    let draw = Random.fraction(
      seed: c.seed, stream: c.stream, step: c.t - 1, tensor: UInt32(truncatingIfNeeded: c.tensor))
    s[1] = draw < h.mask_prob ? s[0] : 0
  }

  let keep, factor: Double, decay: TakenDecay
  init(_ h: Hyper, _ c: StepContext) {
    (keep, factor, decay) = (h.momentum_beta, c.scalars[1], TakenDecay(c))
  }
  @inline(__always) func measure<L: Lane>(_ phase: Int, _ u: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    let m = keep * s[0] + (1 - keep) * g
    s[0] = m
    sums.add(0, m, times: g)
    sums.add(1, m, times: m)
    sums.add(2, g, times: g)
  }
  /// The engine decays in full: what is left out of the decay goes into the update.
  @inline(__always) func direction<L: Lane>(_ u: L, _ g: L, _ s: Slots<L>) -> L {
    factor * u - (1 - factor) * decay.of(s[1])
  }

  static let registered = entry(Magma.self, source: { (h) throws(Failure) in Point(h) })

  /// Shows the stage the parameters.
  struct Point: Source {
    static var method: Method { Magma.method }
    init(_ h: Hyper) {}
    var slots: [Slot] { [.temporary("point", "the parameters of the step")] }
    var single: Bool { true }
    var global: Bool { true }
    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      io.change(SaveParameters(), slots: [1], parameters: false)
      return .update(nil)
    }
  }
}

/// Mechanic: tunes the step size of any rule by what its steps would have gained.
///
///     w = the step of the rule, decay in it;   S = Σ sᵢ;   g' = g + wd·S·‖g‖/(‖θ‖ + ε)·θ
///     Δ = (x₀ − θ)/(S + ε);   h = ⟨g', Δ⟩, hᵢ = h within ±mᵢ;   Δ' = Δ + w
///     mᵢ ← max(βᵢ·mᵢ, |h| + ε);   vᵢ ← βᵢ²·vᵢ + h²;   rᵢ ← βᵢ·rᵢ + hᵢ·sᵢ;   βᵢ = 1 − 10^−i, i from 1
///     sᵢ ← (s_init/n·mᵢ + max(0, rᵢ))/(√vᵢ + ε);   θ ← x₀ − (Σ sᵢ)·Δ'
///
/// Norms and inner products run over all tensors.
///
/// State    x₀, the parameters at the start, or where the host put them since; s, r, m, v, n numbers each.
/// Differs  nothing from optax.contrib.mechanize, but that what the host writes into the parameters is the new x₀: by
///          way of Δ the next step would undo it. With a step size of 0 a group stays where it is.
/// Source   Cutkosky, Defazio, Mehta, 2023, arXiv:2306.00144.
struct Mechanic: ElementRule {
  static let method = Method(
    "mechanic", .update, "Tunes the step size of any rule by what its steps would have gained.",
    rule: """
      w = the rule's step;  S = sum s_i;  g' = g + weight_decay*S*|g|/(|theta| + eps)*theta
      D = (x0 - theta)/(S + eps);  h = <g', D>, h_i = h within +-m_i;  D' = D + w
      m_i <- max(b_i*m_i, |h| + eps);  v_i <- b_i^2*v_i + h^2;  r_i <- b_i*r_i + h_i*s_i;  b_i = 1 - 10^-i
      s_i <- (s_init/n*m_i + max(0, r_i))/(sqrt(v_i) + eps);  theta <- x0 - (sum s_i)*D'
      """,
    source: "Cutkosky, Defazio, Mehta, 2023, arXiv:2306.00144",
    parameters: [
      .weightDecay(0.01, "of the gradient that is compared").forAll, .eps(1e-8, "added to divisors", .above(0)).forAll,
      .number("s_init", 1e-6, .above(0), "step size at first").forAll,
      .integer("num_betas", 6, .within(1, 15), "time scales n", live: false),
    ])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  static func scalars(_ h: Hyper) -> [Scalar] {
    let n = h.integer("num_betas"), first: Double = h.s_init
    return (0..<n).map { Scalar("s_\($0 + 1)", first) }
      + ["r", "m", "v"].flatMap { name in (0..<n).map { Scalar("\(name)_\($0 + 1)") } }
  }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func reach(_ h: Hyper, _ phase: Int) -> Scope { .tensor }
  static var perTensor: Bool { true }

  let keep, lr: Double
  init(_ h: Hyper, _ c: StepContext) { (keep, lr) = (c.keep, c.lr) }
  /// Keeps the update for the source.
  @inline(__always) func measure<L: Lane>(_ phase: Int, _ u: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) { s[0] = u }
  /// From the parameters of the step to the new ones.
  @inline(__always) func direction<L: Lane>(_ u: L, _ g: L, _ s: Slots<L>) -> L {
    (keep * s[2] - s[3]).direction(lr)
  }

  static let registered = entry(Mechanic.self, source: { (h) throws(Failure) in Tuner(h) })

  struct Tuner: Source {
    static var method: Method { Mechanic.method }
    let n: Int
    init(_ h: Hyper) { n = h.integer("num_betas") }
    private let update = 0, gradient = 1, point = 2, next = 3, origin = 4
    var slots: [Slot] {
      [
        .temporary("update", "the rule's update"), .temporary("gradient", "the gradient of the step"),
        .temporary("point", "the parameters of the step"), .temporary("next", "the new parameters"),
        Slot("origin", "x0, the parameters at the start", start: .iterate()),
      ]
    }
    var single: Bool { true }
    var global: Bool { true }

    private struct Sums4: ElementSum {
      @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
        sums.add(0, g, times: g)
        sums.add(1, x, times: x)
        sums.add(2, g, times: s[0] - x)
        sums.add(3, x, times: s[0] - x)
      }
    }
    private struct Step: ElementOperation {
      let old, new, tau: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        // u is the move for a step size of 1, so that −τ·u is what the rule subtracts
        s[1] = s[2] - new * ((s[2] - x) / old - tau * s[0])
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let h = io.hyper, eps: Double = h.eps, first: Double = h.s_init
      io.change(SaveGradient(), slots: [gradient], parameters: false)
      let exact = io.exact  // what a step adds is small beside the rounding of narrow parameters
      exact.change(SaveParameters(), slots: [point], parameters: false)
      let tau = try io.propose(io.gradient(in: gradient), update)
      let sums = exact.sum(Sums4(), slots: [origin])
      let S = (0..<n).reduce(0) { $0 + io.scalar($1) }
      let decay = h.weight_decay * S * sums.root(0) / (sums.root(1) + eps)
      let gain = (sums[2] + decay * sums[3]) / (S + eps)
      var total = 0.0
      for i in 0..<n {
        let beta = 1 - pow(10, -Double(i + 1)), m = io.scalar(2 * n + i)
        let bounded = min(max(gain, -m), m)
        let most = max(beta * m, abs(gain) + eps), square = beta * beta * io.scalar(3 * n + i) + gain * gain
        let reward = beta * io.scalar(n + i) + bounded * io.scalar(i)
        let s = (first / Double(n) * most + max(0, reward)) / (square.squareRoot() + eps)
        for (k, x) in [s, reward, most, square].enumerated() { io.setScalar(k * n + i, x) }
        total += s
      }
      exact.change(Step(old: S + eps, new: total, tau: tau), slots: [update, next, origin], parameters: false)
      return .update(io.gradient(in: gradient))
    }
  }
}
