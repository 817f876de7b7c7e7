import Glibc
import ThalwegCore

/// Flat, then a power of the steps that are left.
///
///     min(lr, lr·(max(total − k, 0)/(total − start))^power);   start ≥ total: lr until total, then 0
///
/// State    none.
/// Differs  modded-nanogpt writes min(lr, c·(total − k)^power) with c = lr/(total − start)^power.
/// Source   modded-nanogpt, 2025.
struct PowerCooldown: Schedule {
  static let method = Method(
    "power_cooldown", .schedule, "Flat, then a power of the steps that are left.",
    rule: "min(lr, lr*(max(total - k, 0)/(total - start))^power)", source: "modded-nanogpt, 2025",
    parameters: [
      .lr(1), .steps("total", "length"), .steps("start", "last flat step"),
      .number("power", 1.2, .atLeast(0), "power of the share that is left"),
    ])
  private let lr, total, start, power: Double
  init(_ h: Hyper) { (lr, total, start, power) = (h.lr, h.total, h.start, h.power) }

  func value(_ k: Double) -> Double {
    if k <= start || total <= start { return k >= total ? 0 : lr }
    let left = max(total - k, 0) / (total - start)
    return power == 0 ? (left > 0 ? lr : 0) : lr * min(1, pow(left, power))
  }
}

/// REX, the reflected exponential: slow at first, fast at the end.
///
///     p = k/total;   end + (lr − end)·(1 − p)/((1 − β) + β·(1 − p));   end from total on
///
/// State    none.
/// Differs  nothing from pytorch-optimizer's REXScheduler, but that a constructor takes no step. β = 0 is linear.
/// Source   Chen, Wolfe and Kyrillidis, 2021, arXiv:2107.04197.
struct REX: Schedule {
  static let method = Method(
    "rex", .schedule, "The reflected exponential: slow at first, fast at the end.",
    rule: "p = k/total;  end + (lr - end)*(1 - p)/((1 - beta) + beta*(1 - p));  end from total on",
    source: "Chen, Wolfe, Kyrillidis, 2021, arXiv:2107.04197",
    parameters: [.lr(1), .steps("total", "length"), .end, .rate("beta", 0.5, "how late it falls; 0 is linear")])
  private let lr, total, end, beta: Double
  init(_ h: Hyper) { (lr, total, end, beta) = (h.lr, h.total, h.end, h.beta) }

  func value(_ k: Double) -> Double {
    let left = 1 - fraction(k, total)
    return end + (lr - end) * left / ((1 - beta) + beta * left)
  }
}

/// The momentum of a Muon run: up to a peak, and down again at the very end.
///
///     k < warmup: start → peak;   k > total − cooldown: peak → end, linearly;   else peak
///
/// State    none.
/// Differs  written for `momentum=momentum_warmup(total=...)`. Without a cooldown there is no last phase.
/// Source   modded-nanogpt, 2025.
struct MomentumWarmup: Schedule {
  static let method = Method(
    "momentum_warmup", .schedule, "A momentum that rises to a peak and falls again at the very end.",
    rule: "k < warmup: start -> peak, linear;  k > total - cooldown: peak -> end, linear;  else peak",
    source: "modded-nanogpt, 2025",
    parameters: [
      .steps("total", "length"), .number("start", 0.85, .rate, "first value"),
      .number("peak", 0.95, .rate, "value between"), .number("end", 0.85, .rate, "last value"),
      .steps("warmup", "length of the rise", 300), .steps("cooldown", "length of the fall", 50),
    ])
  private let total, start, peak, end, warmup, cooldown: Double
  init(_ h: Hyper) {
    (total, start, peak, end, warmup, cooldown) = (h.total, h.start, h.peak, h.end, h.warmup, h.cooldown)
  }

  func value(_ k: Double) -> Double {
    if k < warmup { return start + (peak - start) * (k / warmup) }
    guard cooldown > 0, k > total - cooldown else { return peak }
    return peak + (end - peak) * min((k - (total - cooldown)) / cooldown, 1)
  }
}

/// Batch sizes in rungs, and the factor of the rate that goes with each.
///
///     i = number of boundaries ≤ k;   batch: batches[i];   lr: lr·multipliers[i], or lr·(batches[i]/batches[0])^power
///
/// State    none.
/// Differs  the host draws the batch: one schedule gives its size (`gives=batch`), another the rate (`gives=lr`).
/// Source   modded-nanogpt, 2025.
struct BatchLadder: Schedule {
  static let method = Method(
    "batch_ladder", .schedule, "Batch sizes in rungs, or the learning rate that goes with them.",
    rule: """
      i = number of boundaries <= k
      batch: batches[i];  lr: lr*multipliers[i], or lr*(batches[i]/batches[0])^power
      """,
    source: "modded-nanogpt, 2025",
    parameters: [
      .list("boundaries", nil, "the steps at which the next rung begins, ascending"),
      .list("batches", nil, "batch size of every rung, one more than boundaries"),
      .choice("gives", ["lr", "batch"], "the learning rate, or the batch size"), .lr(1),
      .number("power", 0.5, .any, "power of the batch size in the rate"),
      .list("multipliers", nil, "factors of the rate, in place of the power", optional: true),
    ],
    validate: { (h) throws(Failure) in
      let steps = h.list("boundaries"), batches = h.list("batches"), factors = h.list("multipliers")
      guard zip(steps, steps.dropFirst()).allSatisfy({ $0 < $1 }), steps.allSatisfy(\.isFinite) else {
        throw Failure(Status.range, "batch_ladder: `boundaries` must be finite and ascending")
      }
      guard batches.count == steps.count + 1, batches.allSatisfy({ $0 > 0 && $0.isFinite }) else {
        throw Failure(
          Status.range,
          "batch_ladder: `batches` must be \(steps.count + 1) numbers above 0, one more than boundaries, got "
            + "\(batches.count)")
      }
      guard !h.given("multipliers") || factors.count == batches.count && factors.allSatisfy(\.isFinite) else {
        throw Failure(
          Status.range, "batch_ladder: `multipliers` must be \(batches.count) finite numbers, got \(factors.count)")
      }
    })
  private let boundaries, values: [Double]
  init(_ h: Hyper) {
    let batches = h.list("batches"), factors = h.list("multipliers"), lr: Double = h.lr, p: Double = h.power
    let first = batches.first ?? 1
    boundaries = h.list("boundaries")
    values =
      h.is("gives", "batch")
      ? batches : factors.isEmpty ? batches.map { lr * pow($0 / first, p) } : factors.map { lr * $0 }
  }

  func value(_ k: Double) -> Double {
    let rung = boundaries.count { $0 <= k }
    return rung < values.count ? values[rung] : values.last ?? 0
  }
}
