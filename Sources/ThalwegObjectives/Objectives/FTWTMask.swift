import Glibc
import ThalwegCore

/// Targets of dynamic pruning: which filters of a layer a sample needs, for a small head that learns to foresee it.
///
///     r_c = max over space of |act|;   p = r/Σ r by samples
///     mass = 1: filters with p ≤ delta go;  else, from the strongest down, those whose running share
///       exceeds mass + delta
///     uniform: the ⌊ratio·C⌋ weakest go, and those with r ≤ delta;   the strongest stays in any case
///     value = mean binary cross-entropy of the logits against the targets;   0 from progress = cooldown on
///
/// act (N, C, H, W) is the output of the layer, logits (N, C) the head's. Of equal filters the lower index is stronger.
/// progress is the share of the epochs that is over; the targets are those of every call.
/// Errors   TW_ERROR_RANGE: a progress outside [0, 1].
/// Differs  a mass of 0 or below keeps all. The release drops every filter where one alone exceeds the mass. The step
///          size of the predictor (`lr_mask`) is that of the host's optimizer.
/// Source   Elkerdawy, Elhoushi, Zhang, Ray, 2022, arXiv:2110.08232.
struct FTWTMask: Objective {
  static let method = Method(
    "ftwt_mask", .objective,
    "Targets of dynamic pruning: which filters a sample needs, and the loss of their forecast.",
    rule: """
      r_c = max over space of |act|, p = r/sum r;  mass = 1: p <= delta goes;
      else what is beyond a running share of mass + delta goes
      uniform: the floor(ratio*C) weakest go, and r <= delta;  value = mean binary cross-entropy against the targets
      0 from progress = cooldown on
      """,
    source: "Elkerdawy, Elhoushi, Zhang, Ray, 2022, arXiv:2110.08232",
    parameters: [
      .number("mass", 1, .atMost(1), "share of the heat that is kept; 0 or below: all"),
      .choice("variant", ["mass", "uniform"], "what is dropped"),
      .number("delta", 1e-5, .atLeast(0), "tolerance"), .number("ratio", 0.5, .rate, "share that uniform drops"),
      .number(
        "cooldown", 1, .between(0, 1, lowOpen: true, highOpen: false), "share of the epochs after which the loss is 0"),
    ],
    inputs: [
      .constant("act", "N, C, H, W", "outputs of the layer"), .variable("logits", "N, C", "what the head foresees"),
      .constant("progress", "", "share of the epochs that is over", optional: true),
      .result("target", "N, C", "1 where a filter stays"),
    ])
  let mass, delta, ratio, cooldown: Double, uniform: Bool
  init(_ h: Hyper) {
    (mass, delta, ratio, cooldown, uniform) = (h.mass, h.delta, h.ratio, h.cooldown, h.is("variant", "uniform"))
  }

  private func stays(_ r: [Double]) -> [Bool] {
    let n = r.count, rank = ranked(r), total = r.reduce(0, +)
    if uniform {
      let most = n - Int(ratio * Double(n))
      return (0..<n).map { rank[$0] == 0 || (rank[$0] < most && r[$0] > delta) }
    }
    if mass <= 0 { return [Bool](repeating: true, count: n) }
    func share(_ i: Int) -> Double { total > 0 ? r[i] / total : 0 }
    if mass == 1 { return (0..<n).map { rank[$0] == 0 || share($0) > delta } }
    var order = [Int](repeating: 0, count: n), out = [Bool](repeating: false, count: n), sum = 0.0
    for i in 0..<n { order[rank[i]] = i }
    for i in order {
      sum += share(i)
      out[i] = rank[i] == 0 || sum <= mass + delta
    }
    return out
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let act = try x["act"], z = try x["logits"], n = x.sizes["N"], c = x.sizes["C"], plane = x.sizes["H"] * x.sizes["W"]
    let g = try cache?.keep("logits", n * c, T.self), target = try cache?.keep("target", n * c, T.self)
    var weight = 1 / Double(n * c)
    if let done = x.optional("progress").map({ Double($0[0]) }) {
      guard done >= 0, done <= 1 else {
        throw Failure(Status.range, "ftwt_mask: `progress` must be in [0, 1], got \(text(done))")
      }
      if done >= cooldown { weight = 0 }
    }
    return weight
      * Rows.sum(n, work: c * (plane + 8)) { i in
        let heat = (0..<c).map { k -> Double in
          let map = act + (i * c + k) * plane
          return (0..<plane).reduce(0.0) { larger($0, abs(Double(map[$1]))) }
        }
        let stays = stays(heat)
        var value = 0.0
        for k in 0..<c {
          let u = Double(z[i * c + k]), wanted = stays[k] ? 1.0 : 0
          value += softplus(u) - wanted * u
          g?[i * c + k] = T(weight * (sigmoid(u) - wanted))
          target?[i * c + k] = T(wanted)
        }
        return value
      }
  }
}
