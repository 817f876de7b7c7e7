import Glibc
import ThalwegCore

/// Warm-up, a plateau that may be ended at any time, decay.
///
///     k < W: lr·k/W;  k ≤ W + S: lr;  then f = min((k − W − S)/D, 1), value = end + (lr − end)·shape(f)
///     linear: 1 − f;  sqrt: 1 − √f;  cosine: (1 + cos πf)/2
///     begin_decay at step k: S ← max(k − W, 0), if that is shorter
///
/// State    the step of `begin_decay`.
/// Differs  the warm-up starts at 0, as in the authors' code. With D = 0 it jumps to `end`.
/// Source   Hu et al., 2024, arXiv:2404.06395 (MiniCPM).
struct WarmupStableDecay: Schedule {
  static let method = Method(
    "wsd", .schedule, "Warm-up, a plateau that the command begin_decay may end, decay.",
    rule: """
      k < W: lr*k/W;  k <= W + S: lr
      then f = min((k - W - S)/D, 1), value = end + (lr - end)*shape(f)
      linear: 1 - f;  sqrt: 1 - sqrt(f);  cosine: (1 + cos(pi*f))/2
      begin_decay at step k: S <- max(k - W, 0), if that is shorter
      """,
    source: "Hu et al., 2024, arXiv:2404.06395",
    parameters: [
      .lr(nil), .steps("warmup_steps", "length W of the warm-up"), .steps("stable_steps", "length S of the plateau"),
      .steps("decay_steps", "length D of the decay"), .end,
      .choice("shape", ["linear", "sqrt", "cosine"], "of the decay"),
    ])
  let lr, end, warmup, stable, decay: Double
  let linear, root: Bool
  /// The last step of the plateau; −1 as long as nobody ended it.
  var memory = [-1.0]

  init(_ h: Hyper) {
    (lr, end, warmup, stable, decay) = (h.lr, h.end, h.warmup_steps, h.stable_steps, h.decay_steps)
    (linear, root) = (h.is("shape", "linear"), h.is("shape", "sqrt"))
  }

  private var plateauEnd: Double { memory.first.flatMap { $0 < 0 ? nil : $0 } ?? warmup + stable }

  func value(_ k: Double) -> Double {
    if k < warmup { return lr * k / warmup }
    let since = k - plateauEnd
    if since <= 0 { return lr }
    let f = fraction(since, decay)
    return end + (lr - end) * (linear ? 1 - f : root ? 1 - f.squareRoot() : (1 + cos(.pi * f)) / 2)
  }

  mutating func command(_ name: String, at k: Double) -> Bool {
    guard name == "begin_decay" else { return false }
    memory = [min(max(k, warmup), plateauEnd)]
    return true
  }
}
