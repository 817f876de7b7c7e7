import Glibc
import ThalwegCore

/// Dynamic weight average: tasks whose loss falls slowly weigh more.
///
///     w = m·softmax((L_prev / L_older)/T),  1 until two epochs are over     value = Σ w_i·L_i     ∂value/∂L = w
///
/// losses (m,) are the means of an epoch that is over; every pass is one epoch, and the weights are those of the next.
/// State    the losses of the epoch before.
/// Errors   TW_ERROR_RANGE: a loss that is not finite.
/// Differs  a ratio whose older loss is 0 counts as 1 (the card).
/// Source   Liu, Johns, Davison, 2019, arXiv:1803.10704.
struct DWA: Objective {
  static let method = Method(
    "dwa", .weighting, "Dynamic weight average: tasks whose loss falls slowly weigh more.",
    rule: "w = m*softmax((L_prev/L_older)/temperature), 1 until two epochs are over;  value = sum w_i*L_i",
    source: "Liu, Johns, Davison, 2019, arXiv:1803.10704",
    parameters: [.number("temperature", 2, .above(0), "of the softmax")],
    inputs: [
      .variable("losses", "m", "mean losses of the tasks in an epoch that is over"),
      .result("weights", "m", "weights of the tasks in the next epoch"),
    ])
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("older", "m")] }
  let temperature: Double
  init(_ h: Hyper) { temperature = h.temperature }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let losses = try x["losses"], m = x.sizes["m"], older = try x.memory["older"]
    try refuseNonFinite(losses, m, "losses")
    let w = (0..<m).map { i in
      x.memory.passes == 0 ? 0 : (older[i] == 0 ? 1 : Double(losses[i]) / older[i]) / temperature
    }
    let top = w.max() ?? 0, total = w.reduce(0) { $0 + exp($1 - top) }
    var value = 0.0
    let weights = try cache?.keep("weights", m, T.self)
    for i in 0..<m {
      let weight = Double(m) * exp(w[i] - top) / total
      value += weight * Double(losses[i])
      weights?[i] = T(weight)
      older[i] = Double(losses[i])
    }
    if let weights { try cache?.keep("losses", m, of: weights) }
    return value
  }
}
