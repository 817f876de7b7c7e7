import ThalwegCore

/// SANIA: Polyak's step along a preconditioned gradient; the loss sets its length.
///
///     adagrad: s ← s + g²;   adam: s ← β₂·s + (1 − β₂)·g², over 1 − β₂ᵗ;   hutchinson: s ← average of z⊙Hz, |s|
///     B = max(s, ε), its root for adagrad and adam (not …_sqr), 1 for none;   d = g/B;   N = ⟨g, d⟩ over all tensors
///     λ = 1 − √(1 − 2·(f − f*)/N) where 2·(f − f*) < N, else 1;   θ ← θ − lr·λ·d
///
/// State    s (not for none), and for hutchinson the probe z and the gradient; the loss f of every step is needed.
/// Differs  ε floors the diagonal by a maximum, as in the authors' torch classes. The cubic and conjugate variants are
///          not carried.
/// Source   Abdukhakimov et al., 2023, arXiv:2312.17369.
struct SANIA: ElementRule {
  static let method = Method(
    "sania", .optimizer, "SANIA: Polyak's step along a preconditioned gradient; the loss sets its length.",
    rule: """
      adagrad: s <- s + g^2;  adam: s <- beta2*s + (1 - beta2)*g^2, corrected;  hutchinson: s <- average of z*Hz, |s|
      B = max(s, eps), its root for adagrad and adam (not for _sqr), 1 for none;  d = g/B;  N = <g, d>
      lambda = 1 - sqrt(1 - 2*max(f - f_star, 0)/N) where that is real, else 1
      theta <- theta - lr*lambda*d
      """,
    source: "Abdukhakimov et al., 2023, arXiv:2312.17369",
    parameters: [
      .choice(
        "precond", ["none", "adagrad_sqr", "adam_sqr", "adagrad", "adam", "hutchinson"], "the diagonal B", standard: 1,
        live: false),
      .rate("beta2", 0.999, "rate of adam's and hutchinson's averages"),
      .number("eps", 0.1, .above(0), "floor of the diagonal"),
      .number("f_star", 0, .any, "lower bound of the loss").forAll, .lr(1),
    ],
    slots: [Slot("diagonal", "the statistics s of the diagonal")], requests: "loss, hessian_vector", needsLoss: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { h.is("precond", "none") ? [] : method.slots }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("lambda"), Scalar("probes")] }

  let keep, take, correction, eps, lambda: Double
  let none, root, probed: Bool

  init(_ h: Hyper, _ c: StepContext) {
    let beta2: Double = h.beta2
    (none, probed) = (h.is("precond", "none"), h.is("precond", "hutchinson"))
    root = h.is("precond", "adagrad") || h.is("precond", "adam")
    let adam = h.is("precond", "adam") || h.is("precond", "adam_sqr")
    (keep, take, correction) = adam ? (beta2, 1 - beta2, 1 / (1 - power(beta2, c.t))) : (1, 1, 1)
    (eps, lambda) = (h.eps, c.scalars[0])
  }

  @inline(__always) func scaled<L: Lane>(_ g: L, _ s: Slots<L>) -> L {
    if none { return g }
    let b = L.max(probed ? s[0].magnitude : correction * s[0], eps)
    return g / (root ? b.squareRoot() : b)
  }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    if !none, !probed { s[0] = keep * s[0] + take * (g * g) }
    sums.add(0, g, times: scaled(g, s))
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let n = totals[0], gap = 2 * max(c.loss - h.f_star, 0)
    s[0] = n.isNaN ? n : n > 0 && gap < n ? 1 - (1 - gap / n).squareRoot() : 1
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { lambda * scaled(g, s) }

  static let registered = entry(
    SANIA.self, source: { (h) throws(Failure) in h.is("precond", "hutchinson") ? try Probe(h) : nil })

  /// Asks for the Hessian times a vector of random signs, and averages the diagonal.
  struct Probe: Source {
    static var method: Method { SANIA.method }
    init(_ h: Hyper) throws(Failure) {}
    var slots: [Slot] {
      [Slot.temporary("probe", "the vector z"), Slot.temporary("gradient", "the gradient of the step")]
    }
    var probe: Int? { 0 }

    func most(_ tensors: Int) -> Int { 2 }
    var kinds: [Request.Kind] { [.hessianVector] }
    struct Average: ElementOperation {
      let keep, take: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = keep * s[0] + take * (s[1] * g)
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase == 0 {
        io.change(SaveGradient(), slots: [2], parameters: false)
        io.draw(1, signs: true)
        return .ask(Ask(.hessianVector))
      }
      let first = io.scalar(1) == 0
      io.change(slots: [0, 1], parameters: false) { h in
        let keep = first ? 0 : h.beta2
        return Average(keep: keep, take: 1 - keep)
      }
      io.setScalar(1, 1)
      return .update(io.gradient(in: 2))
    }
  }
}
