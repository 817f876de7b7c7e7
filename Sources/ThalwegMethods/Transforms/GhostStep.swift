import Glibc
import ThalwegCore

/// Safe steps for softmax: the move stays within the distance to the nearest complex zero of the partition function.
///
///     θ' = θ + τ·u;    a = derivatives of the logits along u;    Δ = maxₖ aₖ − minₖ aₖ,  ρ = π/Δ  for each sample
///     two logits, exact:  ρ = √((z₀ − z₁)² + π²)/|a₀ − a₁|;    one logit z of a sigmoid is the two logits z and 0
///     ρ_B = the smallest ρ, or a quantile;    cap: τ' = min(τ, safety·ρ_B);    set: τ' = safety·ρ_B
///
/// Shapes   a and z (samples, classes).
/// State    nothing between steps; the update, the gradient and the parameters while it asks. Numbers: r = τ/ρ_B of the
///          step as it was proposed, radius = ρ_B, tau = τ' as it was taken, norm = ‖u‖.
/// Errors   TW_ERROR_NONFINITE when a, z or the update is not finite: the step is refused, and nothing has changed.
/// Differs  u is the whole move for a step size of 1: direction, coupled and decoupled decay. With several step sizes τ
///          is the largest and u holds their ratios. What follows the move (averages, projections) follows the shorter
///          one; a prox takes its step size. The
///          state of the rule goes on as if the step had not been capped. A quantile is the sorted radius at ⌊q·(n −
///          1)⌋. u = 0 asks for
///          nothing. Logits alone: a is (z(θ + fd_eps·u/‖u‖) − z(θ))·‖u‖/fd_eps, for parameters of 32 and 64 bits.
/// Source   Sao, 2026, arXiv:2603.13552.
struct GhostStep: ElementRule {
  static let method = Method(
    "ghost_step", .update,
    "Keeps the move within the radius that the logits' complex zeros allow (softmax cross-entropy).",
    rule: """
      theta <- theta + tau'*u, u the whole update for a step size of 1;  a = derivatives of the logits along u
      rho = pi/(max_k a_k - min_k a_k) for each sample;  two logits, exact: sqrt((z_0 - z_1)^2 + pi^2)/|a_0 - a_1|
      rho_B = smallest rho, or a quantile;  cap: tau' = min(tau, safety*rho_B);  set: tau' = safety*rho_B
      """,
    source: "Sao, 2026, arXiv:2603.13552",
    parameters: [
      .choice("mode", ["cap", "set"], "only shorten the step, or put it at the radius").forAll,
      .number("safety", 1, .between(0, 1, lowOpen: true, highOpen: false), "share of the radius to use").forAll,
      .flag("exact_binary", true, "the exact radius where there are two logits and they are given").forAll,
      .number("quantile", 0, .rate, "0: the smallest radius of the samples; else this quantile").forAll,
      .number("fd_eps", 1e-4, .above(0), "length of the finite difference, where the host gives logits alone").forAll,
    ],
    slots: [
      Slot.temporary("update", "the update u"), Slot.temporary("gradient", "the gradient of the step"),
      Slot.home("point", "the parameters while they are away"),
    ],
    requests: "logit_derivatives", needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("r"), Scalar("radius", .infinity), Scalar("tau"), Scalar("norm"), Scalar("proposed")]
  }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func reach(_ h: Hyper, _ phase: Int) -> Scope { .tensor }
  static var perTensor: Bool { true }

  init(_ h: Hyper, _ c: StepContext) {}

  /// Keeps the update for the source, which is the only one to look at it.
  @inline(__always) func measure<L: Lane>(_ phase: Int, _ v: L, _ w: L, _ s: Slots<L>, _ sums: inout Sums) { s[0] = v }
  var multiplies: Double? { 1 }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v }

  static let registered = entry(GhostStep.self, source: { (h) throws(Failure) in try Controller(h) })

  struct Controller: Source {
    static var method: Method { GhostStep.method }
    let update = 0, gradient = 1, point = 2
    init(_ h: Hyper) throws(Failure) {}
    var slots: [Slot] { GhostStep.method.slots }
    var probe: Int? { update }
    var global: Bool { true }

    func most(_ tensors: Int) -> Int { 3 }
    var kinds: [Request.Kind] { [.logitDerivatives] }
    struct Norm: ElementSum {
      @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
        sums.add(0, s[0], times: s[0])
      }
    }
    struct Displace: ElementOperation {
      let length: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[1] = x
        x = x + length * s[0]
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let move = Move.update(io.gradient(in: gradient))
      if phase == 0 {
        io.change(SaveGradient(), slots: [gradient], parameters: false)
        io.clearAbsent(update)
        let tau = try io.propose(io.gradient(in: gradient), update)
        let norm = io.sum(Norm(), slots: [update]).root(0)
        guard norm.isFinite else {
          throw Failure(Status.nonfinite, "ghost_step: the update is not finite; nothing was changed")
        }
        io.setScalar(3, norm)
        io.setScalar(4, tau)
        if norm == 0 {
          take(tau, .infinity, io)
          return move
        }
        return .ask(Ask(.logitDerivatives))
      }
      let h = io.hyper, norm = io.scalar(3)
      guard var a = io.answer.first ?? io.answer.second else { throw Failure(Status.needs, "ghost_step has no answer") }
      var logits = io.answer.second
      if phase == 1, io.answer.first == nil {
        io.keep(a)
        io.change(Displace(length: h.fd_eps / norm), slots: [update, point], parameters: true)
        return .ask(Ask(.logitDerivatives))
      }
      if phase == 2 {
        io.comeHome()
        logits = io.kept
        let start = io.kept?.values ?? [], scale = norm / h.fd_eps
        for i in a.values.indices.prefix(start.count) { a.values[i] = (a.values[i] - start[i]) * scale }
      }
      let radius = try GhostStep.radius(a, h.exact_binary ? logits : nil, h.quantile)
      take(io.scalar(4), radius, io)
      return move
    }

    /// Sets the step size from the one proposed and the radius.
    private func take(_ proposed: Double, _ radius: Double, _ io: SourceIO) {
      let h = io.hyper, reach = h.safety * radius
      let tau = radius == .infinity ? proposed : h.is("mode", "set") ? reach : min(proposed, reach)
      io.setScalar(0, radius == .infinity ? 0 : proposed / radius)
      io.setScalar(1, radius)
      io.setScalar(2, tau)
      io.setStepSize(tau)
    }

    func check(_ answer: Answer, _ phase: Int, _ io: SourceIO) throws(Failure) {
      if let a = answer.first, let z = answer.second, a.rows != z.rows || a.columns != z.columns {
        throw Failure(
          Status.shape, "derivatives of shape [\(a.rows), \(a.columns)], but logits of shape [\(z.rows), \(z.columns)]")
      }
      guard phase == 2 else { return }
      guard answer.first == nil, let z = answer.second else {
        throw Failure(
          Status.argument, "only the logits at the parameters as they stand are wanted now, as the second matrix")
      }
      guard let k = io.kept, k.rows == z.rows, k.columns == z.columns else {
        throw Failure(
          Status.shape,
          "logits of shape [\(z.rows), \(z.columns)], but others for the first request; the samples must be the same")
      }
    }
  }

  /// ρ_B of derivatives a (samples, classes); the exact radius of two logits where they are given.
  static func radius(_ a: HostMatrix, _ logits: HostMatrix?, _ quantile: Double) throws(Failure) -> Double {
    guard a.rows > 0, a.columns > 0 else { return .infinity }
    var radii: [Double] = []
    radii.reserveCapacity(a.rows)
    for i in 0..<a.rows {
      let row = a.values[(i * a.columns)..<((i + 1) * a.columns)]
      // the second logit of a sigmoid is 0, and so is its derivative
      let rest = a.columns == 1 ? 0 : row[row.startIndex]
      let spread = row.reduce(rest) { max($0, $1) } - row.reduce(rest) { min($0, $1) }
      var reach = Double.pi
      if let z = logits?.values, a.columns <= 2 { reach = hypot(a.columns == 1 ? z[i] : z[2 * i] - z[2 * i + 1], .pi) }
      radii.append(spread == 0 ? .infinity : reach / spread)
    }
    guard radii.allSatisfy({ !$0.isNaN }) else {
      throw Failure(Status.nonfinite, "ghost_step: a radius is not a number; nothing was changed")
    }
    guard quantile > 0 else { return radii.min() ?? .infinity }
    radii.sort()
    return radii[min(Int(quantile * Double(radii.count - 1)), radii.count - 1)]
  }
}
