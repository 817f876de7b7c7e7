import ThalwegCore

/// SAM-ON: only normalisation layers are perturbed; the step is taken with the second gradient of all tensors.
///
///     t = 1 (sam), or |θ| + η (asam_elementwise; 1 without `normalize`);   N = ‖t·g‖ over the tensors that are
///       perturbed
///     e = ρ·t²·g/(N + ε) there, 0 elsewhere;   linf: e = ρ·t·sign(g)
///
/// State    the parameters while they are away; nothing between steps.
/// Differs  `perturb` says which: groups with perturb=false stay where they are. `normalize` is off for the biases of
///          the perturbed layers in the authors' code. Their layer-wise mode, t = ‖θ‖·(1 + η) tensor by tensor, is not
///          there.
/// Source   Mueller, Vlaar, Rolnick and Hein, 2023, arXiv:2306.04226.
struct SAMON: Source {
  static let method = Method(
    "sam_on", .perturbation, "Only normalisation layers are perturbed; all tensors step.",
    rule: """
      t = 1 (sam) or |theta| + eta (asam_elementwise, with normalize);  N = |t*g| over the groups with perturb
      e = rho/(N + eps) * t^2*g there, 0 elsewhere;  norm=linf: e = rho*t*sign(g)
      g <- gradient at theta + e, on the same minibatch
      """,
    source: "Mueller, Vlaar, Rolnick, Hein, 2023, arXiv:2306.04226",
    parameters: [
      .number("rho", 0.5, .atLeast(0), "radius; larger than for full SAM"),
      .choice("mode", ["sam", "asam_elementwise"], "what the ball is measured in", standard: 1).forAll,
      .number("eta", 0.01, .atLeast(0), "added to |theta|"),
      .flag("perturb", true, "the group's tensors are normalisation layers"),
      .flag("normalize", true, "the group is measured in units of its parameters; off for biases in the paper"),
      .choice("norm", ["l2", "linf"], "of the ball").forAll, .eps(1e-16, "added to the norm"),
    ],
    slots: [homeSlot], requests: "gradient")

  let slots = SAMON.method.slots
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }

  private func metric(_ h: Hyper) -> Metric {
    Metric(adapts: h.is("mode", "asam_elementwise") && h.normalize, eta: h.eta, counts: h.perturb)
  }
  private struct Corner: ElementOperation {
    let metric: Metric, rho: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = x
      if metric.counts { x = x + rho * metric.t(x, g.sign) }
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase > 0 {
      io.change(RestoreParameters(), parameters: true)
      return .update(nil)
    }
    if io.hyper.is("norm", "linf") {
      io.change(parameters: true) { Corner(metric: metric($0), rho: $0.rho) }
    } else {
      let norm = io.sum { MetricNorm(metric: metric($0)) }.root(0)
      io.change(parameters: true) { Ascend(metric($0), scale: perLength($0.rho, norm, $0.eps)) }
    }
    return .ask(Ask(.gradient))
  }
}
