import Glibc
import ThalwegCore

/// The weight of a divergence that rises with the steps up to a cap.
///
///     value = min(cap, k/total);   total 0: the cap at once
///
/// State    none.
/// Source   Liang et al., 2018, arXiv:1802.05814.
struct KLAnneal: Schedule {
  static let method = Method(
    "kl_anneal", .schedule, "The weight of a divergence that rises with the steps up to a cap.",
    rule: "value = min(anneal_cap, k/total_anneal_steps);  the cap for 0 steps",
    source: "Liang, Krishnan, Hoffman, Jebara, 2018, arXiv:1802.05814",
    parameters: [
      .number("anneal_cap", 0.2, .within(0, 1), "largest weight"),
      .steps("total_anneal_steps", "steps to weight 1; 0: the cap at once", 200_000),
    ])
  let cap, total: Double
  init(_ h: Hyper) { (cap, total) = (h.anneal_cap, h.total_anneal_steps) }
  func value(_ k: Double) -> Double { total > 0 ? min(cap, k / total) : cap }
}

/// The decay of an old policy's average: none at first, then rising to a hold.
///
///     value = 0 for k < flat, else min((k − flat)·uprate, uphold)
///
/// `decay_type` names the two settings of the paper: 1 is (0, 0.001, 0.5), 2 is (75, 0.0075, 0.999); each number may be
/// given alone.
/// State    none.
/// Source   Zheng et al., 2025, arXiv:2509.16117.
struct NFTOldDecay: Schedule {
  static let method = Method(
    "nft_old_decay", .schedule, "The decay of an old policy's average: none at first, then rising to a hold.",
    rule: "value = 0 for k < flat, else min((k - flat)*uprate, uphold)", source: "Zheng et al., 2025, arXiv:2509.16117",
    parameters: [
      .integer("decay_type", 1, .within(1, 2), "1: (0, 0.001, 0.5), 2: (75, 0.0075, 0.999)").fixed,
      .maybe("flat", .atLeast(0), "steps without an average; none: by decay_type").fixed,
      .maybe("uprate", .atLeast(0), "rise of a step; none: by decay_type").fixed,
      .maybe("uphold", .within(0, 1), "largest decay; none: by decay_type").fixed,
    ])
  let flat, uprate, uphold: Double
  init(_ h: Hyper) {
    let late = h.integer("decay_type") == 2
    flat = h.has("flat") ? h.flat : late ? 75 : 0
    uprate = h.has("uprate") ? h.uprate : late ? 0.0075 : 0.001
    uphold = h.has("uphold") ? h.uphold : late ? 0.999 : 0.5
  }
  func value(_ k: Double) -> Double { k < flat ? 0 : min((k - flat) * uprate, uphold) }
}

/// The step size of projections into a generator's space: a fast rise, then a cosine down to 0.
///
///     t = k/steps;  value = lr·(½ − ½·cos(π·min(1, (1 − t)/rampdown)))·min(1, t/rampup);   0 from `steps` on
///
/// State    none.
/// Source   Karras et al., 2020, arXiv:1912.04958; Fang et al., 2023, arXiv:2308.04699.
struct InversionLR: Schedule {
  static let method = Method(
    "inversion_lr", .schedule, "The step size of projections into a generator's space: a rise, then a cosine to 0.",
    rule: "t = k/steps;  value = lr*(1/2 - cos(pi*min(1, (1 - t)/rampdown))/2)*min(1, t/rampup)",
    source: "Karras et al., 2020, arXiv:1912.04958; Fang et al., 2023, arXiv:2308.04699",
    parameters: [
      .lr(0.1), .steps("steps", "length of the stage", 1000, from: 1),
      .number("rampdown", 0.75, .between(0, 1, lowOpen: true, highOpen: false), "share with a falling rate"),
      .number("rampup", 0.05, .between(0, 1, lowOpen: true, highOpen: false), "share with a rising rate"),
    ])
  let lr, steps, rampdown, rampup: Double
  init(_ h: Hyper) { (lr, steps, rampdown, rampup) = (h.lr, h.steps, h.rampdown, h.rampup) }
  func value(_ k: Double) -> Double {
    let t = min(k / steps, 1)
    return lr * (0.5 - 0.5 * cos(.pi * min(1, (1 - t) / rampdown))) * min(1, t / rampup)
  }
}
