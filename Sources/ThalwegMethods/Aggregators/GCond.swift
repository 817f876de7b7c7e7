import Glibc
import ThalwegCore

/// Gradient Conductor: conflicts between task gradients are resolved pair by pair, the worst first, by arbitration.
///
///     n_k ← max(β_n·n_k + (1 − β_n)·‖g_k‖, ε), from 1;   then ‖g_k‖ > norm_cap:  g_k ← g_k·norm_cap/(‖g_k‖ + ε)
///     while the smallest cosine of a pair (both ‖·‖² ≥ ε) is below weak − cos_tol, `max_iters` times at most:
///       d = ⟨g_i, g_j⟩;  W, L = winner and loser:  of a task that won dominance_window times in a row the other, else
///         the larger  stability·[cos(g_k, previous g_k)]₊ + strength·s_k/(s_i + s_j + ε),  s_k = ‖g_k‖/(n_k + ε)
///       smooth:  g_W ← g_W − sin a·d/(‖g_L‖² + ε)·g_L,   g_L ← g_L − sin(min(a, π/2))·d/(‖g_W‖² + ε)·g_W,  with
///         cos ≥ main:  a = π/2·(1 − (cos − main)/(weak − main + ε));   cos ≤ critical:  a = π
///         between:  a = π/2·(1 + ((cos − main)/(critical − main + ε))^remap_power)
///       steps:  cos < critical: g_L ← 0;   cos < main: g_L ← g_L − ⟨g_L, g_W⟩/(‖g_W‖² + ε)·g_W;   else both, without W
///     g = Σ g_k;   m ← β·m + (1 − β)·g;   the rule sees m̂ = m/(1 − βᵗ)
///     output=sign:  sign(m̂)·trust_coef·min(‖θ‖/‖m̂‖, 100), tensor by tensor; the ratio is 1 where a norm is below ε
///
/// State    m, the previous gradient of every task; n, the last winner, how often it won in a row, t. While it asks,
///          the gradients.
/// Differs  works on inner products (the same numbers). Gradients are accumulated by gradient_accumulate in front. The
///          authors' buffers are projected in place before they are kept, which is reference=resolved; whether the
///          paper kept raw gradients is UNVERIFIED. cos_tol is 0 there, and rounding after a projection a conflict.
///          The rule behind should have no momentum of its own.
/// Tells    residual, half of what the smallest cosine of a pair is still below weak when `max_iters` ends it, and
///          iterations, the conflicts that were resolved.
/// Source   Alves Limarenko and Studenikina, 2025, arXiv:2509.07252.
struct GCond: Source {
  static let method = Method(
    "gcond", .aggregator, "Conflicts between task gradients are resolved pair by pair, the worst first.",
    rule: """
      n_k <- max(beta_n*n_k + (1 - beta_n)*|g_k|, eps);  |g_k| > norm_cap: g_k <- g_k*norm_cap/(|g_k| + eps)
      while the smallest cosine of a pair is below weak - cos_tol: W, L = winner and loser of an arbitration by the
        stability and strength of both; smooth: both turn by an angle that grows with the conflict;
        steps: L is dropped below critical, projected below main; above both are projected
      g = sum g_k;  m <- momentum*m + (1 - momentum)*g, corrected for bias
      output=sign: sign(m)*trust_coef*min(|theta|/|m|, 100) of each tensor
      """,
    source: "Alves Limarenko, Studenikina, 2025, arXiv:2509.07252",
    parameters: [
      Tasks.parameter, .choice("mode", ["smooth", "steps"], "how conflicts are resolved").forAll,
      .number("critical", -0.8, .within(-1, 1), "cosine of a critical conflict").forAll,
      .number("main", -0.5, .within(-1, 1), "cosine of a conflict").forAll,
      .number("weak", 0, .within(-1, 1), "cosine of a weak conflict").forAll,
      .number("remap_power", 2, .above(0), "power of the angle between main and critical").forAll,
      .number("stability", 0.8, .atLeast(0), "weight of the cosine with the previous gradient").forAll,
      .number("strength", 0.2, .atLeast(0), "weight of the relative length").forAll,
      .integer("dominance_window", 3, .atLeast(0), "wins in a row after which a task yields; 0: never").forAll,
      .rate("norm_ema_beta", 0.95, "decay of the average lengths").forAll,
      {
        var p = Parameter.maybe("norm_cap", .above(0), "largest length of a task's gradient")
        p.reach = .all
        return p
      }(),
      .rate("momentum", 0.9, "decay of the momentum").forAll,
      {
        var p = Parameter.maybeInteger("max_iters", .atLeast(0), "conflicts resolved in a step, 2*tasks when none")
        p.reach = .all
        return p
      }(),
      .eps(1e-8).forAll, .number("cos_tol", 1e-6, .atLeast(0), "slack under the weak cosine").forAll,
      .choice("reference", ["raw", "resolved"], "which gradient the next step compares with").forAll,
      .list("lambdas", nil, "weight of each task, 1 each when none", optional: true),
      .choice("output", ["momentum", "sign"], "what the rule behind sees: m, or its sign times a trust ratio").forAll,
      .number("trust_coef", 1e-4, .atLeast(0), "factor of the signs"),
    ],
    slots: [
      Tasks.slot, Slot("previous_0", "the previous gradient of the first task; one more for every other task"),
      Slot("momentum", "the momentum m"),
    ],
    requests: "task_gradient", needsFinite: true,
    validate: { (h) throws(Failure) in
      try Tasks.check("gcond", "lambdas")(h)
      guard !h.list("lambdas").contains(0) else {
        throw Failure(Status.range, "gcond: `lambdas` must be above 0")
      }
      let critical: Double = h.critical, main: Double = h.main, weak: Double = h.weak
      guard critical <= main, main <= weak else {
        throw Failure(
          Status.range,
          "gcond: `critical`, `main` and `weak` must not fall, got \(text(critical)), \(text(main)) and \(text(weak))")
      }
    })

  let tasks: Tasks
  let lambdas: [Double]
  let scalars: [Scalar]
  init(_ h: Hyper) {
    tasks = Tasks(h)
    let given = h.list("lambdas")
    lambdas = given.count == tasks.count ? given : [Double](repeating: 1, count: tasks.count)
    scalars =
      [Scalar("t"), Scalar("winner", -1), Scalar("wins")] + (0..<tasks.count).map { Scalar("length_\($0)", 1) }
      + Convergence.scalars
  }
  private var momentum: Int { 2 * tasks.count }
  private func previous(_ k: Int) -> Int { tasks.count + k }
  var slots: [Slot] {
    tasks.slots + (0..<tasks.count).map { Slot("previous_\($0)", "the previous gradient of task \($0)") }
      + [Slot("momentum", "the momentum m")]
  }
  var opens: Bool { true }
  var findsNonfinite: Bool { true }
  func opening(_ io: SourceIO) -> Ask? { tasks.ask(0) }
  func most(_ tensors: Int) -> Int { tasks.count }
  var kinds: [Request.Kind] { [.taskGradient] }

  /// keep·s₀ + the weighted sum of up to eight other slots.
  private struct Mix: ElementOperation {
    let keep: Double, weights: SIMD8<Double>, count: Int
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      var sum = keep == 0 ? L(0) : keep * s[0]
      for k in 0..<count { sum = sum + weights[k] * s[k &+ 1] }
      s[0] = sum
    }
  }
  /// A slot becomes keep times itself, and the sum of the task gradients with these weights.
  private func mix(_ slot: Int, _ keep: Double, _ weights: [Double], _ io: SourceIO) {
    for first in stride(from: 0, to: tasks.count, by: 8) {
      let part = first..<min(first + 8, tasks.count)
      var w = SIMD8<Double>(repeating: 0)
      for k in part { w[k - first] = weights[k] }
      io.change(
        Mix(keep: first == 0 ? keep : 1, weights: w, count: part.count), slots: [slot] + part, parameters: false)
    }
  }
  private struct Unbias: ElementOperation {
    let factor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = factor * s[0] }
  }

  private struct Norms: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, x, times: x)
      sums.add(1, s[0], times: s[0])
    }
  }
  private struct Signs: ElementOperation {
    let size: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[1] = size * s[0].sign
    }
  }
  /// Signs of the momentum, with factor·m as its estimate, in the place of a task's gradient.
  private func signs(_ factor: Double, _ io: SourceIO) -> GradientOperation {
    let norms = io.sums(Norms(), slots: [momentum]), eps: Double = io.hyper.eps
    io.change(
      slots: [momentum, 0], parameters: false,
      each: { i in
        let w = norms[i].root(0), m = factor * norms[i].root(1)
        return Signs(size: io.hyper(of: i).trust_coef * (w < eps || m < eps ? 1 : min(w / m, 100)))
      })
    return io.gradient(in: 0)
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if let next = tasks.keep(phase, io, reads: !io.hyper.is("output", "sign")) { return .ask(next) }
    let h = io.hyper, m = tasks.count, all = 0..<m
    let both = try tasks.gramian(io, before: m)
    var surgery = Surgery(
      h, all.map { Array(both[$0][all]) }, lambdas, previous: all.map { Array(both[previous($0)][all]) },
      all.map { both[previous($0)][previous($0)] })
    (surgery.winner, surgery.wins) = (Int(exactly: io.scalar(1)) ?? -1, Int(exactly: io.scalar(2)) ?? 0)
    surgery.lengths = all.map { io.scalar(3 + $0) }
    surgery.run()

    let t = io.scalar(0) + 1, beta: Double = h.momentum
    io.setScalar(0, t)
    io.setScalar(1, Double(surgery.winner))
    io.setScalar(2, Double(surgery.wins))
    for k in all { io.setScalar(3 + k, surgery.lengths[k]) }
    surgery.convergence.put(io, from: 3 + m)
    let resolved = h.is("reference", "resolved")
    for k in all { mix(previous(k), 0, resolved ? surgery.C[k] : all.map { $0 == k ? lambdas[k] : 0 }, io) }
    let sum = all.map { j in all.reduce(0.0) { $0 + surgery.C[$1][j] } }
    mix(momentum, beta, sum.map { (1 - beta) * $0 }, io)
    let factor = 1 / (1 - pow(beta, t))
    if h.is("output", "sign") { return .update(signs(factor, io)) }
    return .update(io.operation(Unbias(factor: factor), slots: [momentum]))
  }

  /// The resolution of conflicts, with every gradient as a combination of those that came: g_k = Σ C_kj·J_j.
  struct Surgery {
    let h: Hyper, G: Gramian, previous: [[Double]], before: [Double], eps: Double
    private(set) var C: [[Double]]
    /// Inner products of the combinations, as far as they are known: those of a changed one are taken anew.
    private var products: Gramian = []
    var winner = -1, wins = 0
    var lengths: [Double] = []
    /// By how much the smallest cosine is still below that of a conflict, over the 2 that it may be.
    private(set) var convergence = Convergence()

    init(_ h: Hyper, _ G: Gramian, _ lambdas: [Double], previous: [[Double]], _ before: [Double]) {
      (self.h, self.G, self.previous, self.before, eps) = (h, G, previous, before, h.eps)
      C = G.indices.map { k in G.indices.map { $0 == k ? lambdas[k] : 0 } }
      products = G.indices.map { i in G.indices.map { lambdas[i] * (G[i][$0] * lambdas[$0]) } }
    }

    private func square(_ k: Int) -> Double { max(0, product(k, k)) }
    private func product(_ i: Int, _ j: Int) -> Double { products[i][j] }
    /// Combination k becomes another.
    private mutating func set(_ k: Int, _ c: [Double]) {
      C[k] = c
      let along = G.times(c)
      for j in G.indices where j != k {
        products[k][j] = dot(C[j], along)
        products[j][k] = products[k][j]
      }
      products[k][k] = dot(c, along)
    }
    private func norm(_ k: Int) -> Double { square(k).squareRoot() }

    mutating func run() {
      let beta: Double = h.norm_ema_beta, cap: Double = h.norm_cap
      for k in G.indices {
        let n = norm(k)
        lengths[k] = max(beta * lengths[k] + (1 - beta) * n, eps)
        if h.has("norm_cap"), n > cap { set(k, C[k].map { $0 * cap / (n + eps) }) }
      }
      let iterations = h.has("max_iters") ? h.integer("max_iters") : 2 * G.count
      for k in 0...iterations {
        let found = worst(), weak: Double = h.weak, least = weak - h.cos_tol
        convergence = Convergence(((found?.2 ?? 1) < least ? weak - (found?.2 ?? 1) : 0) / 2, k)
        guard k < iterations, let (i, j, cos) = found, cos < least else { return }
        if h.is("mode", "smooth") { turn(i, j, cos) } else { cut(i, j, cos) }
      }
    }

    /// The pair with the smallest cosine.
    private func worst() -> (Int, Int, Double)? {
      var found: (Int, Int, Double)?
      let squares = G.indices.map { square($0) }
      for i in G.indices where squares[i] >= eps {
        for j in (i + 1)..<max(G.count, i + 1) where squares[j] >= eps {
          let cos = product(i, j) / (squares[i].squareRoot() * squares[j].squareRoot() + eps)
          if found.map({ cos < $0.2 }) ?? true { found = (i, j, cos) }
        }
      }
      return found
    }

    private mutating func turn(_ i: Int, _ j: Int, _ cos: Double) {
      let main: Double = h.main, weak: Double = h.weak, critical: Double = h.critical, power: Double = h.remap_power
      let (W, L) = arbitrate(i, j), d = product(i, j)
      var angle = Double.pi
      if cos >= main {
        angle = .pi / 2 * (1 - min(max((cos - main) / (weak - main + eps), 0), 1))
      } else if cos > critical {
        angle = .pi / 2 * (1 + pow((cos - main) / (critical - main + eps), power))
      }
      let toWinner = -sin(angle) * d / (square(L) + eps)
      let toLoser = -sin(min(angle, .pi / 2)) * d / (square(W) + eps)
      let (w, l) = (C[W], C[L])
      set(W, zip(w, l).map { $0 + toWinner * $1 })
      set(L, zip(l, w).map { $0 + toLoser * $1 })
    }

    private mutating func cut(_ i: Int, _ j: Int, _ cos: Double) {
      let d = product(i, j)
      guard cos < h.main else {
        let (a, b, toA, toB) = (C[i], C[j], d / (square(j) + eps), d / (square(i) + eps))
        set(i, zip(a, b).map { $0 - toA * $1 })
        set(j, zip(b, a).map { $0 - toB * $1 })
        return
      }
      let (W, L) = arbitrate(i, j)
      let share = d / (square(W) + eps)
      set(L, cos < h.critical ? C[L].map { _ in 0 } : zip(C[L], C[W]).map { $0 - share * $1 })
    }

    /// Winner and loser; counts the wins.
    private mutating func arbitrate(_ i: Int, _ j: Int) -> (Int, Int) {
      let window = h.integer("dominance_window")
      var first = score(i, j) >= score(j, i)
      if window > 0, wins >= window, winner == i || winner == j { first = winner == j }
      let W = first ? i : j
      (winner, wins) = (W, winner == W ? min(wins + 1, max(window, 1)) : 1)
      return (W, first ? j : i)
    }
    private func score(_ k: Int, _ other: Int) -> Double {
      let stability: Double = h.stability, strength: Double = h.strength
      let cos = dot(C[k], previous[k]) / (norm(k) * before[k].squareRoot() + eps)
      let own = norm(k) / (lengths[k] + eps), others = norm(other) / (lengths[other] + eps)
      return stability * max(0, cos) + strength * own / (own + others + eps)
    }
  }
}
