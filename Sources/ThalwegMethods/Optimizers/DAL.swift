import Glibc
import ThalwegCore

/// DAL: gradient descent whose step size keeps the drift of the discretisation small, from the Hessian along the
/// gradient.
///
///     lr = min(2/(‖H·g‖/‖g‖)^power, max_lr);   θ ← θ − lr·g;   norms over all tensors
///
/// State    the gradient of the step, which is also the probe; the parameters while they are away.
/// Differs  `static_lr` is the rate when power = 0, before step `start` (from 0) and after `stop`. H·g is asked for;
///          curvature=difference takes (g(θ + e·g) − g)/e instead, with e = fd_eps, or 0.01/‖g‖ when that is none.
/// Source   Rosca, Wu, Qin and Dherin, 2023, arXiv:2302.01952.
struct DAL: ElementRule {
  static let method = Method(
    "dal", .optimizer,
    "DAL: gradient descent at a step size from the Hessian along the gradient, which keeps discretisation drift small.",
    rule: """
      lr = min(2/(|H*g|/|g|)^power, max_lr);  theta <- theta - lr*g
      curvature=difference: H*g = ((gradient at theta + e*g) - g)/e,  e = fd_eps or 0.01/|g|
      """,
    source: "Rosca, Wu, Qin, Dherin, 2023, arXiv:2302.01952",
    parameters: [
      .number("static_lr", nil, .atLeast(0), "the step size when power is 0 or outside start and stop").forAll,
      .number("power", 1, .atLeast(0), "power of the curvature").forAll,
      .number("max_lr", 5, .atLeast(0), "largest step size").forAll,
      .maybe("start", .any, "first step that adapts").forAll,
      .maybe("stop", .atLeast(0), "last step that adapts").forAll,
      .choice("curvature", ["product", "difference"], "H*g, or a difference of gradients", live: false),
      .maybe("fd_eps", .above(0), "factor e of the difference; 0.01/|g| when none").forAll,
    ],
    requests: "hessian_vector")

  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("step_size")] }

  let rate: Double

  init(_ h: Hyper, _ c: StepContext) { rate = c.scalars[0] }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { rate * g }

  static let registered = entry(DAL.self, source: { (h) throws(Failure) in try Along(h) })

  struct Along: Source {
    static var method: Method { DAL.method }
    private let differs: Bool
    init(_ h: Hyper) throws(Failure) { differs = h.is("curvature", "difference") }
    var slots: [Slot] {
      [Slot.temporary("gradient", "the gradient of the step")] + (differs ? [homeSlot] : [])
    }
    var probe: Int? { differs ? nil : 0 }

    struct Norms: ElementSum {
      let inverse: Double  // 1/e, or 0 where the product came
      @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
        let curved = inverse > 0 ? inverse * (g - s[0]) : g
        sums.add(0, curved, times: curved)
        sums.add(1, s[0], times: s[0])
      }
    }
    private struct Leave: ElementOperation {
      let e: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = g
        s[1] = x
        x = x + e * g
      }
    }

    func most(_ tensors: Int) -> Int { 2 }
    var kinds: [Request.Kind] { differs ? [] : [.hessianVector] }

    /// The factor of the difference.
    private func factor(_ norm: Double, _ h: Hyper) -> Double { h.has("fd_eps") ? h.fd_eps : 0.01 / norm }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let h = io.hyper
      if phase == 0 {
        let k = Double(io.step), power: Double = h.power
        if power == 0 || (h.has("start") && k < h.start) || (h.has("stop") && k > h.stop) {
          io.setScalar(0, h.static_lr)
          return .update(nil)
        }
        guard differs else {
          io.change(SaveGradient(), slots: [0], parameters: false)
          return .ask(Ask(.hessianVector))
        }
        let norm = io.sum(SquaredNorm()).root(0)
        if norm == 0 {
          io.setScalar(0, h.max_lr)
          return .update(nil)
        }
        io.change(Leave(e: factor(norm, h)), slots: [0, 1], parameters: true)
        return .ask(Ask(.gradient))
      }
      let inverse = differs ? 1 / factor(io.sum(SlotNorm(), slots: [0]).root(0), h) : 0
      let sums = io.sum(Norms(inverse: inverse), slots: [0])
      let flat = sums[0] == 0 || sums[1] == 0
      io.setScalar(0, flat ? h.max_lr : smaller(2 / pow(sums.root(0) / sums.root(1), h.power), h.max_lr))
      if differs { io.comeHome() }
      return .update(io.gradient(in: 0))
    }
  }
}
