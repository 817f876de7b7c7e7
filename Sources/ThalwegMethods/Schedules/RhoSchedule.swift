import ThalwegCore

/// The radius of sharpness-aware perturbations over a training.
///
///     proportional: rho_min + (rho_max − rho_min)·(lr(k) − lr_min)/(lr_max − lr_min);  rho_max where lr_max = lr_min
///     linear:       rho_min + (rho_max − rho_min)·(e − 1)/max(E − 1, 1),  E = epochs
///     step:         values[i] of the first bounds[i] ≥ e, the last value after all of them
///     e = 1 + ⌊k/epoch⌋;   never below 0
///
/// State    that of the schedule of step sizes.
/// Differs  nothing from juntang-zhuang/GSAM (proportional) and val-iisc/Saddle-LongTail (linear and step), whose
///          bounds and values are the defaults. Step sizes outside of [lr_min, lr_max] extrapolate.
/// Source   Zhuang et al., 2022, arXiv:2203.08065; Rangwani, Aithal, Mishra and Babu, 2022, arXiv:2212.13827.
struct RhoSchedule: WrappingSchedule {
  static let method = Method(
    "rho_schedule", .schedule, "The radius of sharpness-aware perturbations over a training.",
    rule: """
      proportional: rho_min + (rho_max - rho_min)*(lr(k) - lr_min)/(lr_max - lr_min)
      linear: rho_min + (rho_max - rho_min)*(e - 1)/max(epochs - 1, 1);  step: values[i] of the first bounds[i] >= e
      e = 1 + floor(k/epoch);  at least 0
      """,
    source: "Zhuang et al., 2022, arXiv:2203.08065; Rangwani, Aithal, Mishra, Babu, 2022, arXiv:2212.13827",
    parameters: [
      .choice("mode", ["proportional", "linear", "step"], "what the radius follows", live: false),
      .number("rho_min", 0.05, .atLeast(0), "smallest radius").fixed,
      .number("rho_max", 0.8, .atLeast(0), "largest radius").fixed,
      {
        var p = Parameter.object("lr", .schedule, "the schedule of step sizes that proportional follows")
        (p.standard, p.optional) = (Value.none, true)
        return p
      }(),
      .number("lr_min", 0, .any, "step size of the smallest radius").fixed,
      .number("lr_max", 0.1, .any, "step size of the largest radius").fixed,
      .steps("epoch", "steps of an epoch", 1, from: 1),
      .steps("epochs", "epochs of the training, for linear", 1, from: 1),
      .list("bounds", [5, 160, 180], "last epochs, for step"),
      .list("values", [0.05, 0.1, 0.5, 0.6], "radii up to them, and one more"),
    ],
    validate: { (h) throws(Failure) in
      let low: Double = h.lr_min, high: Double = h.lr_max, bounds = h.list("bounds"), values = h.list("values")
      guard low <= high else {
        throw Failure(
          Status.range, "rho_schedule: `lr_max` must not be below `lr_min`, got \(text(high)) and \(text(low))")
      }
      guard !h.is("mode", "proportional") || h.given("lr") else {
        throw Failure(Status.needs, "rho_schedule: mode=proportional needs `lr`, a schedule or a number")
      }
      guard values.count == bounds.count + 1, values.allSatisfy({ $0 >= 0 && $0.isFinite }) else {
        throw Failure(
          Status.range,
          "rho_schedule: `values` must have one number more than `bounds` has, none negative; got \(values.count) "
            + "for \(bounds.count)")
      }
    })

  let proportional, linear: Bool
  let low, high, lrLow, lrHigh, epoch, epochs: Double
  let bounds, values: [Double]
  var inner: any Schedule

  init(_ h: Hyper) throws(Failure) {
    (proportional, linear) = (h.is("mode", "proportional"), h.is("mode", "linear"))
    (low, high, lrLow, lrHigh) = (h.rho_min, h.rho_max, h.lr_min, h.lr_max)
    (epoch, epochs, bounds, values) = (h.epoch, h.epochs, h.list("bounds"), h.list("values"))
    inner = try h.schedules("lr").first ?? Linear(0, 0, 1)
  }

  func value(_ k: Double) -> Double {
    let e = 1 + (k / epoch).rounded(.down)
    if proportional {
      let share = lrHigh == lrLow ? 1 : (inner.value(k) - lrLow) / (lrHigh - lrLow)
      return max(0, low + (high - low) * share)
    }
    if linear { return max(0, low + (high - low) * (e - 1) / max(epochs - 1, 1)) }
    return zip(bounds, values).first { $0.0 >= e }?.1 ?? values.last ?? low
  }
}
