import ThalwegCore

/// Exponential moving average of the parameters.
///
///     n-th update (n from 0):  d_n = decay, or min(decay, (1 + n)/(10 + n)) with warmup
///     first=copy:  a ← θ at the first update;   then, and always with first=zero,  a ← d_n·a + (1 − d_n)·θ
///     evaluation weights: a, or a/(1 − d_0·d_1···) with debias
///
/// State    a; with first=zero and debias the product of the rates.
/// Differs  the debiasing of optax.ema divides by 1 − dⁿ, which is the same without warm-up. Written a ← a + (1 − d)(θ
///          − a), so that a constant sequence is reproduced exactly. `debias` means nothing with first=copy.
/// Source   Polyak and Juditsky, 1992; debiasing: Kingma and Ba, 2014, arXiv:1412.6980.
struct EMA: ElementRule {
  static let method = Method(
    "ema", .average, "Exponential moving average of the parameters, used as evaluation weights.",
    rule: """
      d = decay, or min(decay, (1 + n)/(10 + n)) with warmup, at the n-th update (n from 0)
      first=copy: a <- theta at the first update
      a <- d*a + (1 - d)*theta
      evaluation weights: a, or a/(1 - product of all d) with debias (first=zero)
      """,
    source: "Polyak, Juditsky, 1992; Kingma, Ba, 2014, arXiv:1412.6980",
    parameters: [
      .rate("decay", 0.999, "share of the average that is kept"),
      .choice("first", ["copy", "zero"], "what the first update does", live: false),
      .flag("debias", false, "divide by the weight that the zero start does not have", live: false),
      .flag("warmup", false, "shorter memory at first"),
    ],
    slots: [Slot("average", "the average a")])

  private static func rate(_ h: Hyper, _ t: Int) -> Double {
    let decay: Double = h.decay, n = Double(t - 1)
    return h.warmup ? min(decay, (1 + n) / (10 + n)) : decay
  }
  static func scalars(_ h: Hyper) -> [Scalar] { h.debias && h.is("first", "zero") ? [Scalar("start_weight", 1)] : [] }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func begin(_ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    if !scalars(h).isEmpty { s[0] *= rate(h, c.t) }
  }
  static var evaluates: Bool { true }

  let take, unbias: Double

  init(_ h: Hyper, _ c: StepContext) {
    take = c.t == 1 && h.is("first", "copy") ? 1 : 1 - EMA.rate(h, c.t)
    unbias = EMA.scalars(h).isEmpty ? 1 : 1 / (1 - c.scalars[0])
  }

  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L {
    let a = s[0]
    s[0] = a + take * (v - a)
    return v
  }
  var folds: Folds? { Folds(.average(take)) }
  @inline(__always) func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { s[0] * unbias }
}
