import Glibc
import ThalwegCore

/// The noise schedule of NoProp, from noise to signal, and what its blocks need of it.
///
///     ᾱ_t = f(T − t)/f(0),  f(t) = cos²(((t/T + s)/(1 + s))·π/2), kept in [clip, 1 − clip];   t = k, up to T
///     alpha_bar: ᾱ_t;   snr: ᾱ/(1 − ᾱ);   loss: η·T/2·(SNR_t − SNR_{t−1}), the weight of block t's loss
///     of a step of inference, p = ᾱ_{t−1}/ᾱ_t:  a = √ᾱ_t·(1 − p)/(1 − ᾱ_{t−1});  b = √p·(1 − ᾱ_t)/(1 − ᾱ_{t−1});
///     c = (1 − ᾱ_t)(1 − p)/(1 − ᾱ_{t−1});   z_t = a·û + b·z_{t−1} + √c·noise
///
/// State    none. At t = 0 the weight is 0, and a, b, c are those of t = 1.
/// Differs  the clip and which way the cosine runs are not certain: ᾱ rises here.
/// Source   Li, Teh and Pascanu, 2025, arXiv:2503.24322.
struct NoPropSchedule: Schedule {
  static let method = Method(
    "noprop_schedule", .schedule, "The noise schedule of NoProp, from noise to signal.",
    rule: """
      abar_t = f(T - t)/f(0), f(t) = cos^2(((t/T + s)/(1 + s))*pi/2), kept in [clip, 1 - clip];  t = k
      of: alpha_bar, snr = abar/(1 - abar), loss = eta*T/2*(snr_t - snr_{t-1}), or a, b, c of the inference step
      """,
    source: "Li, Teh, Pascanu, 2025, arXiv:2503.24322",
    parameters: [
      .choice("of", ["alpha_bar", "snr", "loss", "a", "b", "c"], "which of the numbers", live: false),
      .steps("total", "T, how many blocks there are", 10, from: 1),
      Parameter.number("eta", 0.1, .above(0), "factor of the loss").fixed,
      Parameter.number("s", 0.008, .atLeast(0), "offset of the cosine").fixed,
      Parameter.number("clip", 1e-5, .between(0, 0.5, lowOpen: true, highOpen: true), "distance from 0 and 1").fixed,
    ])
  let h: Hyper, T, s, clip: Double
  init(_ h: Hyper) { (self.h, T, s, clip) = (h, h.total, h.s, h.clip) }

  private func signal(_ t: Double) -> Double {
    func f(_ t: Double) -> Double {
      let c = cos((t / T + s) / (1 + s) * Double.pi / 2)
      return c * c
    }
    return min(max(f(T - min(t, T)) / f(0), clip), 1 - clip)
  }

  func value(_ k: Double) -> Double {
    func ratio(_ x: Double) -> Double { x / (1 - x) }
    let now = signal(k)
    if h.is("of", "alpha_bar") { return now }
    if h.is("of", "snr") { return ratio(now) }
    if h.is("of", "loss") {
      return k < 1 || k > T ? 0 : h.eta * T / 2 * (ratio(now) - ratio(signal(k - 1)))
    }
    let t = min(max(k, 1), T), after = signal(t), before = signal(t - 1), p = before / after, rest = 1 - before
    if h.is("of", "a") { return after.squareRoot() * (1 - p) / rest }
    return h.is("of", "b") ? p.squareRoot() * (1 - after) / rest : (1 - after) * (1 - p) / rest
  }
}
