import Glibc
import ThalwegCore

/// Width transfer: a value that was tuned at a base width, times what the maximal update parametrisation makes of it.
///
///     inner(k)·m^e,   m = width/base width,  e by the optimizer, the role of the tensor and what the value is
///
/// State    that of the inner schedule.
/// Differs  `forward` and `init_std` are for the host, which reads them from the schedule. The exponents of
///          second-order methods follow from the change of one step (UNVERIFIED against the paper's table). Biases of
///              the output
///          layer need no scaling.
/// Source   Yang and Littwin, 2023, arXiv:2308.01814; Ishikawa and Karakida, 2023, arXiv:2312.12226.
struct MupScaling: WrappingSchedule {
  static let method = Method(
    "mup_scaling", .schedule, "Width transfer: a value tuned at a base width, as it is at another one.",
    rule: "inner(k)*m^e, m = width_mult; e by the optimizer, the role of the tensor and what the value is",
    source: "Yang, Littwin, 2023, arXiv:2308.01814; Ishikawa, Karakida, 2023, arXiv:2312.12226",
    parameters: [
      .object("inner", .schedule, "the schedule at the base width, or a constant"),
      .choice("optimizer", optimizers, "the method", live: false),
      .choice(
        "role", ["hidden", "input", "output", "vector"], "which sides of the tensor grow: both, out, in; or a vector",
        live: false),
      Parameter.number("width_mult", 1, .above(0), "m, the width over the base width").fixed,
      .choice(
        "value", ["lr", "init_std", "forward", "eps", "weight_decay", "damping_in", "damping_out"], "what the value is",
        live: false),
    ],
    validate: { (h) throws(Failure) in
      if h.is("role", "vector"), optimizers.dropFirst(4).contains(where: { h.is("optimizer", $0) }) {
        throw Failure(
          Status.range, "mup_scaling: muon moves matrices; `role` must be hidden, input or output, got vector")
      }
    })
  private static let optimizers = ["adam", "sgd", "kfac", "shampoo", "muon", "muon_spectral", "muon_match_rms"]

  let factor: Double
  var inner: any Schedule

  init(_ h: Hyper) throws(Failure) {
    guard let first = try h.schedules("inner").first else {
      throw Failure(Status.internal, "mup_scaling: no inner schedule")
    }
    (inner, factor) = (first, pow(h.width_mult, MupScaling.exponent(h)))
  }

  /// Hidden, input, output; vectors are as inputs.
  private static func exponent(_ h: Hyper) -> Double {
    func by(_ hidden: Double, _ input: Double, _ output: Double) -> Double {
      h.is("role", "hidden") ? hidden : h.is("role", "output") ? output : input
    }
    func isFor(_ names: String...) -> Bool { names.contains { h.is("optimizer", $0) } }
    let forwardScaled = isFor("adam", "sgd")
    if h.is("value", "init_std") { return by(-0.5, 0, forwardScaled ? 0 : -1) }
    if h.is("value", "forward") { return by(0, 0, forwardScaled ? -1 : 0) }
    if h.is("value", "weight_decay") { return isFor("adam") ? by(1, 0, 0) : 0 }
    if h.is("value", "eps") { return isFor("adam") ? -1 : isFor("shampoo") ? by(0, -1, 1) : 0 }
    if h.is("value", "damping_in") { return isFor("kfac") ? by(1, 0, 1) : isFor("shampoo") ? by(0, -1, 1) : 0 }
    if h.is("value", "damping_out") { return isFor("kfac") ? by(-1, -1, 0) : isFor("shampoo") ? by(0, -1, 1) : 0 }
    if isFor("adam") { return by(-1, 0, 0) }
    if isFor("sgd") { return by(0, 1, 1) }
    if isFor("shampoo", "muon") { return by(0, 0.5, -0.5) }
    return isFor("muon_match_rms") ? by(-0.5, 0, -1) : 0
  }

  func value(_ k: Double) -> Double { factor * inner.value(k) }
  mutating func command(_ name: String, at k: Double) -> Bool { inner.command(name, at: k) }
}
