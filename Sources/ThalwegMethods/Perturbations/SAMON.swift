import Glibc
import ThalwegCore

/// SAM-ON: only normalisation layers are perturbed; the step is taken with the second gradient of all tensors.
///
///     t = 1 (sam), |θ| + η (asam_elementwise) or ‖θ‖·(1 + η) of the tensor (asam_layerwise); 1 without `normalize`
///     N = ‖t·g‖ over the tensors that are perturbed
///     e = ρ·t²·g/(N + ε) there, 0 elsewhere;   linf: e = ρ·t·sign(g)
///
/// State    the parameters of the perturbed tensors while they are away; nothing of others, nothing between steps.
/// Errors   no group has perturb=true: the step is refused.
/// Differs  nothing from mueller-mp/SAM-ON. `perturb` says which: groups with perturb=false stay where they are, and
///          where no group says so all tensors are perturbed. `normalize` is off for the biases of the perturbed layers
///          in the authors' code.
/// Source   Mueller, Vlaar, Rolnick and Hein, 2023, arXiv:2306.04226.
struct SAMON: Source {
  static let method = Method(
    "sam_on", .perturbation, "Only normalisation layers are perturbed; all tensors step.",
    rule: """
      t = 1 (sam), |theta| + eta (asam_elementwise) or |theta|*(1 + eta) of the whole tensor (asam_layerwise);
      t = 1 without normalize;  N = |t*g| over the groups with perturb
      e = rho/(N + eps) * t^2*g there, 0 elsewhere;  norm=linf: e = rho*t*sign(g)
      g <- gradient at theta + e, on the same minibatch
      """,
    source: "Mueller, Vlaar, Rolnick, Hein, 2023, arXiv:2306.04226",
    parameters: [
      .number("rho", 0.5, .atLeast(0), "radius; larger than for full SAM"),
      .choice("mode", ["sam", "asam_elementwise", "asam_layerwise"], "what the ball is measured in", standard: 1)
        .forAll,
      .number("eta", 0.01, .atLeast(0), "added to |theta|"),
      .flag("perturb", true, "the group's tensors are normalisation layers, which are perturbed"),
      .flag("normalize", true, "the group is measured in units of its parameters; off for biases in the paper"),
      .choice("norm", ["l2", "linf"], "of the ball").forAll, .eps(1e-16, "added to the norm"),
    ],
    slots: [homeSlot], requests: "gradient")

  let slots = SAMON.method.slots
  init(_ h: Hyper) {}
  var flag: String? { "perturb" }
  func most(_ tensors: Int) -> Int { 2 }

  private func metric(_ h: Hyper) -> Metric {
    Metric(adapts: h.is("mode", "asam_elementwise") && h.normalize, eta: h.eta)
  }
  private struct Corner: ElementOperation {
    let metric: Metric, rho: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = x
      x = x + rho * metric.t(x, g.sign)
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase > 0 {
      io.comeHome()
      return .update(nil)
    }
    if io.hyper.is("mode", "asam_layerwise") {
      layerwise(io)
    } else if io.hyper.is("norm", "linf") {
      io.change(parameters: true) { Corner(metric: metric($0), rho: $0.rho) }
    } else {
      let norm = io.sum { MetricNorm(metric: metric($0)) }.root(0)
      io.change(parameters: true) { Ascend(metric($0), scale: perLength($0.rho, norm, $0.eps)) }
    }
    return .ask(Ask(.gradient))
  }

  private struct Norms: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, x, times: x)
      sums.add(1, g, times: g)
    }
  }
  /// One t for all entries of a tensor.
  private func layerwise(_ io: SourceIO) {
    let norms = io.sums(Norms()), corner = io.hyper.is("norm", "linf")
    func t(_ tensor: Int) -> Double {
      let h = io.hyper(of: tensor)
      return h.normalize ? norms[tensor].root(0) * (1 + h.eta) : 1
    }
    if corner {
      io.change(parameters: true, each: { Corner(metric: Metric(), rho: io.hyper(of: $0).rho * t($0)) })
      return
    }
    let norm = io.tensors { _ in true }.reduce(0.0) { hypot($0, t($1) * norms[$1].root(1)) }
    io.change(
      parameters: true,
      each: { tensor in
        let h = io.hyper(of: tensor)
        return Ascend(scale: t(tensor) * t(tensor) * perLength(h.rho, norm, h.eps))
      })
  }
}
