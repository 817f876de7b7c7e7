import ThalwegCore

/// What estimates from losses alone share: the parameters go along a direction and come back, and what is learned of it
/// adds up. The first slot holds the parameters of the step, the second the direction, the third the estimate.
enum LossWalk {
  static let point = 0, direction = 1, estimate = 2
  static let slots: [Slot] = [
    .home("point", "the parameters of the step"), .temporary("direction", "the direction that is tried"),
    .temporary("estimate", "the estimate of the gradient"),
  ]

  private struct Go: ElementOperation {
    let length: Double, keeps: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      if keeps { s[0] = x }
      x = s[0] + length * s[1]
    }
  }
  /// θ + length·direction; `keeps`: the parameters are still where the step found them.
  static func go(_ length: Double, keeps: Bool, _ io: SourceIO) {
    io.change(Go(length: length, keeps: keeps), slots: [point, direction], parameters: true)
  }

  private struct Add: ElementOperation {
    let factor: Double, fresh: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[1] = fresh ? factor * s[0] : s[1] + factor * s[0]
    }
  }
  /// estimate += factor·direction.
  static func add(_ factor: Double, fresh: Bool, _ io: SourceIO) {
    if fresh { io.clearAbsent(estimate) }
    io.change(Add(factor: factor, fresh: fresh), slots: [direction, estimate], parameters: false)
  }

  /// Back to the parameters of the step, bit for bit; the pipeline sees the estimate.
  static func end(_ io: SourceIO) -> Move {
    io.comeHome()
    return .update(io.gradient(in: estimate))
  }
}

/// The gradient from losses along random directions, or along every coordinate; no gradient is asked for.
///
///     d = (f(θ + μ·u) − f(θ))/μ,  central: (f(θ + μ·u) − f(θ − μ·u))/(2μ);   g = (factor/q)·Σ_j d_j·u_j
///     gaussian: u ~ N(0, I);  rademacher: random signs;  sphere: u/‖u‖ over all tensors, factor n;  else factor 1
///     coordinate: every entry by itself, g_i = d_i; q is not looked at
///
/// All losses of a step are of one minibatch. Any rule may follow.
/// State    the parameters while they are away, u and g; nothing between steps.
/// A direction whose loss is not finite is left out, and the others are averaged; g is 0 where none is left.
/// Differs  coordinates take n or 2·n losses: small tensors only.
/// Source   Nesterov and Spokoiny, 2017; Duchi, Jordan, Wainwright and Wibisono, 2015.
struct ZOGradient: Source {
  static let method = Method(
    "zo_gradient", .transform, "The gradient from losses along random directions, or along every coordinate.",
    rule: """
      d = (f(theta + mu*u) - f(theta))/mu, central: (f(theta + mu*u) - f(theta - mu*u))/(2 mu)
      g = (factor/q)*sum_j d_j*u_j;  sphere: u/|u|, factor n;  coordinate: every entry by itself
      directions whose loss is not finite are left out
      """,
    source: "Nesterov, Spokoiny, 2017; Duchi, Jordan, Wainwright, Wibisono, 2015",
    parameters: [
      .number("mu", 1e-3, .above(0), "length of the perturbation").forAll,
      .integer("q", 1, .within(1, 0x1p20), "directions a step", live: false),
      .choice("kind", ["gaussian", "sphere", "rademacher", "coordinate"], "of the directions", live: false),
      .flag("central", false, "losses on both sides", live: false),
    ],
    slots: LossWalk.slots, requests: "loss")

  let slots = LossWalk.slots
  let scalars = [Scalar("loss"), Scalar("failed")]
  let takesGradients = false, opens = true, global = true, takesAnyLoss = true
  private let q: Int, central, sphere, signs, coordinates: Bool
  init(_ h: Hyper) {
    (q, central) = (h.integer("q"), h.central)
    (sphere, signs) = (h.is("kind", "sphere"), h.is("kind", "rademacher"))
    coordinates = h.is("kind", "coordinate")
  }
  func most(_ tensors: Int) -> Int { coordinates ? 1 << 60 : (central ? 2 : 1) * q + 1 }

  private struct Scale: ElementOperation {
    let factor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = factor * s[0] }
  }
  private struct Length: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, s[0], times: s[0])
    }
  }
  private func elements(_ io: SourceIO) -> Int { io.tensors { _ in true }.reduce(0) { $0 &+ io.shape(of: $1).count } }

  /// Puts direction j into its slot.
  private func draw(_ j: Int, _ io: SourceIO) {
    if coordinates {
      io.clearAbsent(LossWalk.direction)
      io.change(Scale(factor: 0), slots: [LossWalk.direction], parameters: false)
      var rest = j
      for tensor in io.tensors(where: { _ in true }) {
        let n = io.shape(of: tensor).count
        var unit = [Double](repeating: 0, count: n)
        if rest >= 0, rest < n { unit[rest] = 1 }
        io.fill(LossWalk.direction, of: tensor, unit)
        rest -= n
      }
      return
    }
    io.draw(LossWalk.direction, signs: signs, number: io.step &* q &+ j)
    guard sphere else { return }
    let length = io.sum(Length(), slots: [LossWalk.direction]).root(0)
    io.change(Scale(factor: length > 0 ? 1 / length : 0), slots: [LossWalk.direction], parameters: false)
  }

  /// What is left of q directions is averaged.
  private func end(_ io: SourceIO, _ count: Int) -> Move {
    let left = Double(count) - io.scalar(1)
    if left == 0 { Log.warn("zo_gradient: no loss along a direction was finite; the gradient is 0") }
    if left > 0, left < Double(count), !coordinates {
      io.change(Scale(factor: Double(count) / left), slots: [LossWalk.estimate], parameters: false)
    }
    return LossWalk.end(io)
  }

  func opening(_ io: SourceIO) -> Ask? {
    if central {
      draw(0, io)
      LossWalk.go(io.hyper.mu, keeps: true, io)
    }
    return Ask(.loss)
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let mu: Double = io.hyper.mu, count = coordinates ? max(1, elements(io)) : q
    let base = central ? phase % 2 == 0 : phase == 0
    if base { io.setScalar(0, io.loss) }
    if central, base {
      LossWalk.go(-mu, keeps: false, io)
      return .ask(Ask(.loss))
    }
    let j = central ? phase / 2 : phase - 1  // the direction that was answered
    if j >= 0 {
      let slope = (central ? io.scalar(0) - io.loss : io.loss - io.scalar(0)) / (central ? 2 * mu : mu)
      let factor = coordinates ? 1 : (sphere ? Double(elements(io)) : 1) / Double(q)
      LossWalk.add(slope.isFinite ? (io.maximizes ? -1 : 1) * factor * slope : 0, fresh: j == 0, io)
      io.setScalar(1, (j == 0 ? 0 : io.scalar(1)) + (slope.isFinite ? 0 : 1))
      if j + 1 >= count { return end(io, count) }
    }
    draw(j + 1, io)
    LossWalk.go(mu, keeps: j < 0, io)
    return .ask(Ask(.loss))
  }
}

/// MeZO: descent along random directions, by the difference of two losses on each.
///
///     z ~ N(0, I) of every seed;   g_s = (f(θ + ε·z_s) − f(θ − ε·z_s))/(2ε)
///     θ ← θ − lr·(mean_s g_s·z_s + wd·θ)
///
/// State    the parameters while they are away, z and the estimate; nothing between steps.
/// A seed whose losses are not finite is left out; the others count as they would beside it.
/// Differs  the parameters come back bit for bit, which the paper's in-place walk does not (`restore` copy): that takes
///          three copies within a step. Groups say which tensors decay.
/// Source   Malladi et al., 2023, arXiv:2305.17333.
struct MeZO: ElementRule {
  static let method = Method(
    "mezo", .optimizer, "Descent along random directions, by the difference of two losses on each.",
    rule: """
      g_s = (f(theta + eps*z_s) - f(theta - eps*z_s))/(2 eps), z_s ~ N(0, I)
      theta <- theta - lr*(mean_s g_s*z_s + weight_decay*theta)
      """,
    source: "Malladi, Gao, Nichani, Damian, Lee, Chen, Arora, 2023, arXiv:2305.17333",
    parameters: [
      .lr(1e-6), .number("eps", 1e-3, .above(0), "length of the perturbation").forAll,
      .weightDecay(0, "decoupled weight decay"),
      .integer("n_seeds", 1, .within(1, 0x1p20), "directions a step", live: false),
    ],
    requests: "loss")

  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("above")] }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  init(_ h: Hyper, _ c: StepContext) {}
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { g }

  static let registered = entry(MeZO.self, source: { (h) throws(Failure) in Differences(h) })

  struct Differences: Source {
    static var method: Method { MeZO.method }
    let slots = LossWalk.slots
    let takesGradients = false, opens = true, global = true, takesAnyLoss = true
    private let seeds: Int
    init(_ h: Hyper) { seeds = h.integer("n_seeds") }
    func most(_ tensors: Int) -> Int { 2 * seeds }

    private func start(_ s: Int, _ io: SourceIO) {
      io.draw(LossWalk.direction, signs: false, number: io.step &* seeds &+ s)
      LossWalk.go(io.hyper.eps, keeps: s == 0, io)
    }
    func opening(_ io: SourceIO) -> Ask? {
      start(0, io)
      return Ask(.loss)
    }
    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let s = phase / 2
      if phase % 2 == 0 {
        io.setScalar(0, io.loss)
        LossWalk.go(-io.hyper.eps, keeps: false, io)
        return .ask(Ask(.loss))
      }
      let slope = (io.maximizes ? -1 : 1) * (io.scalar(0) - io.loss) / (2 * io.hyper.eps)
      LossWalk.add(slope.isFinite ? slope / Double(seeds) : 0, fresh: s == 0, io)
      if s + 1 == seeds { return LossWalk.end(io) }
      start(s + 1, io)
      return .ask(Ask(.loss))
    }
  }
}

/// Antithetic evolution strategy: a gradient from the losses of pairs of mirrored points, by their ranks.
///
///     f±_p = loss at θ ± σ·e_p,  e_p ~ N(0, I);   centered_rank: s = rank/(2·pairs − 1) − ½ among all;   none: s = f
///     g = Σ_p (s⁺_p − s⁻_p)·e_p/(2·pairs·σ)
///
/// All losses of a step are of one minibatch. Any rule may follow (the paper: Adam with decoupled decay 0.005).
/// State    the parameters while they are away, e and g; nothing between steps.
/// A loss that is not finite has the worst rank; without ranks its pair is left out.
/// Differs  ranks are those of a stable sort of all f⁺, then all f⁻. `maximize` turns the losses.
/// Source   Salimans, Ho, Chen, Sidor and Sutskever, 2017, arXiv:1703.03864.
struct OpenAIES: Source {
  static let method = Method(
    "openai_es", .transform, "Antithetic evolution strategy: a gradient from the losses of pairs of mirrored points.",
    rule: """
      f+, f- = losses at theta + sigma*e_p, theta - sigma*e_p, e_p ~ N(0, I)
      s = rank/(2 pairs - 1) - 1/2 among all (centered_rank), or f (none)
      g = sum_p (s+_p - s-_p)*e_p/(2 pairs sigma)
      """,
    source: "Salimans, Ho, Chen, Sidor, Sutskever, 2017, arXiv:1703.03864",
    parameters: [
      .integer("pairs", 8, .within(1, 4096), "pairs of points a step", live: false),
      .number("sigma", 0.02, .above(0), "length of the perturbation").forAll,
      .choice("shaping", ["centered_rank", "none"], "of the losses", live: false),
    ],
    slots: LossWalk.slots, requests: "loss")

  let slots = LossWalk.slots
  let takesGradients = false, opens = true, global = true, takesAnyLoss = true
  private let pairs: Int, ranks: Bool
  init(_ h: Hyper) { (pairs, ranks) = (h.integer("pairs"), h.is("shaping", "centered_rank")) }
  /// All f⁺, then all f⁻.
  var scalars: [Scalar] { (0..<(2 * pairs)).map { Scalar("loss_\($0)") } }
  func most(_ tensors: Int) -> Int { 2 * pairs }

  private func draw(_ p: Int, _ io: SourceIO) {
    io.draw(LossWalk.direction, signs: false, number: io.step &* pairs &+ p)
  }
  func opening(_ io: SourceIO) -> Ask? {
    draw(0, io)
    LossWalk.go(io.hyper.sigma, keeps: true, io)
    return Ask(.loss)
  }
  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let sigma: Double = io.hyper.sigma, p = phase / 2
    io.setScalar(phase % 2 == 0 ? p : pairs + p, io.loss)
    if phase % 2 == 0 {
      LossWalk.go(-sigma, keeps: false, io)
      return .ask(Ask(.loss))
    }
    if p + 1 < pairs {
      draw(p + 1, io)
      LossWalk.go(sigma, keeps: false, io)
      return .ask(Ask(.loss))
    }
    let f = (0..<(2 * pairs)).map { k in
      let loss = io.scalar(k)
      return loss.isFinite ? (io.maximizes ? -1 : 1) * loss : .infinity
    }
    var s = f
    if !f.contains(where: \.isFinite) {
      Log.warn("openai_es: no loss was finite; the gradient is 0")
    } else if ranks {
      let order = f.indices.sorted { f[$0] < f[$1] || (f[$0] == f[$1] && $0 < $1) }
      for (rank, i) in order.enumerated() { s[i] = Double(rank) / Double(2 * pairs - 1) - 0.5 }
    }
    for p in 0..<pairs {
      draw(p, io)
      let weight = (s[p] - s[pairs + p]) / (2 * Double(pairs) * sigma)
      LossWalk.add(weight.isFinite ? weight : 0, fresh: p == 0, io)
    }
    return LossWalk.end(io)
  }
}
