import Glibc
import ThalwegCore

/// DAL: gradient descent whose step size keeps the drift of the discretisation small, from the Hessian along the
/// gradient.
///
///     lr = min(2/(‖H·g‖/‖g‖)^power, max_lr);   θ ← θ − lr·g;   norms over all tensors
///
/// State    the gradient of the step, which is also the probe.
/// Differs  `static_lr` is the rate when power = 0, before step `start` (from 0) and after `stop`. H·g is asked for; a
///          host may answer with a difference of gradients.
/// Source   Rosca, Wu, Qin and Dherin, 2023, arXiv:2302.01952.
struct DAL: ElementRule {
  static let method = Method(
    "dal", .optimizer,
    "DAL: gradient descent at a step size from the Hessian along the gradient, which keeps discretisation drift small.",
    rule: "lr = min(2/(|H*g|/|g|)^power, max_lr);  theta <- theta - lr*g",
    source: "Rosca, Wu, Qin, Dherin, 2023, arXiv:2302.01952",
    parameters: [
      .number("static_lr", nil, .atLeast(0), "the step size when power is 0 or outside start and stop").forAll,
      .number("power", 1, .atLeast(0), "power of the curvature").forAll,
      .number("max_lr", 5, .atLeast(0), "largest step size").forAll,
      .maybe("start", .any, "first step that adapts").forAll,
      .maybe("stop", .atLeast(0), "last step that adapts").forAll,
    ],
    requests: "hessian_vector")

  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("step_size")] }

  let rate: Double

  init(_ h: Hyper, _ c: StepContext) { rate = c.scalars[0] }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { rate * g }

  static let registered = entry(DAL.self, source: { (h) throws(Failure) in try Along(h) })

  struct Along: Source {
    static var method: Method { DAL.method }
    init(_ h: Hyper) throws(Failure) {}
    var slots: [Slot] { [Slot.temporary("gradient", "the gradient of the step")] }
    var probe: Int? { 0 }

    struct Norms: ElementSum {
      @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
        sums.add(0, g, times: g)
        sums.add(1, s[0], times: s[0])
      }
    }

    func most(_ tensors: Int) -> Int { 2 }
    var kinds: [Request.Kind] { [.hessianVector] }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase == 0 {
        let h = io.hyper, k = Double(io.step), power: Double = h.power
        if power == 0 || (h.has("start") && k < h.start) || (h.has("stop") && k > h.stop) {
          io.setScalar(0, h.static_lr)
          return .update(nil)
        }
        io.change(SaveGradient(), slots: [0], parameters: false)
        return .ask(Ask(.hessianVector))
      }
      let h = io.hyper, sums = io.sum(Norms(), slots: [0])
      let flat = sums[0] == 0 || sums[1] == 0
      io.setScalar(0, flat ? h.max_lr : smaller(2 / pow(sums.root(0) / sums.root(1), h.power), h.max_lr))
      return .update(io.gradient(in: 0))
    }
  }
}
