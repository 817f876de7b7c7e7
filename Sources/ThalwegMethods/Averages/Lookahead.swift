import ThalwegCore

/// Lookahead: every k steps the slow weights follow the fast ones, which start again from there.
///
///     every k-th step:  slow ← slow + α(θ − slow),  θ ← slow
///     evaluation weights: slow
///
/// State    slow, which starts at the parameters.
/// Differs  nothing from pytorch-optimizer's Lookahead. `pullback=reset` starts the state of the rule
///          afresh at each synchronisation, its step count too.
/// Source   Zhang, Lucas, Hinton and Ba, 2019, arXiv:1907.08610.
struct Lookahead: ElementRule {
  static let method = Method(
    "lookahead", .average, "Every k steps the slow weights follow the fast ones, which start again from there.",
    rule: """
      every k-th step: slow <- slow + alpha*(theta - slow), theta <- slow
      evaluation weights: slow
      """,
    source: "Zhang, Lucas, Hinton, Ba, 2019, arXiv:1907.08610",
    parameters: [
      .integer("k", 5, .atLeast(1), "period", live: false),
      .number("alpha", 0.5, .between(0, 1, lowOpen: true, highOpen: false), "step of the slow weights"),
      .choice("pullback", ["keep", "reset"], "what becomes of the rule's state at a synchronisation", live: false),
    ],
    slots: [Slot("slow", "the slow weights", start: .iterate())])

  static var evaluates: Bool { true }
  static func ruleStep(_ t: Int, _ h: Hyper) -> Int {
    h.is("pullback", "reset") ? (t - 1) % max(1, h.integer("k")) + 1 : t
  }
  let alpha: Double
  let now: Bool

  init(_ h: Hyper, _ c: StepContext) { (alpha, now) = (h.alpha, c.t % max(1, h.integer("k")) == 0) }

  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L {
    if !now { return v }
    let slow = alpha == 1 ? v : s[0] + alpha * (v - s[0])
    s[0] = slow
    return slow
  }
  @inline(__always) func evaluate<L: Lane>(_ x: L, _ s: Slots<L>) -> L { s[0] }
}
