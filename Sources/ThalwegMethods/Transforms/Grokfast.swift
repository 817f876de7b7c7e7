import ThalwegCore

/// Grokfast: adds the slow part of the gradient to it.
///
///     ema:  s ← g at first, then α·s + (1 − α)·g;   g ← g + λ·s
///     ma:   g ← g + λ·(mean, or sum, of the last `window` gradients, this one included), once there are so many
///           (warmup=false: from the first on)
///
/// State    ema: s.  ma: the window, as many tensors as it is long.
/// Differs  nothing from ironjr/grokfast. λ is 2 (ema) or 5 (ma) unless given. Stages before it act on the gradients
///          that are averaged.
/// Errors   TW_ERROR_SHAPE when the window of a tensor has more than 2⁴⁰ elements.
/// Source   Lee, Kang, Kim and Lee, 2024, arXiv:2405.20233.
struct Grokfast: ElementRule {
  static let method = Method(
    "grokfast", .transform, "Adds the slow part of the gradient to it.",
    rule: """
      ema: s <- g at first, then alpha*s + (1 - alpha)*g;  g <- g + lamb*s
      ma: g <- g + lamb*(mean or sum of the last gradients, this one included), once there are `window` of them
      """,
    source: "Lee, Kang, Kim, Lee, 2024, arXiv:2405.20233",
    parameters: [
      .maybe("lamb", .atLeast(0), "weight of the slow part; none: 2 for ema, 5 for ma"),
      .rate("alpha", 0.98, "rate of the average, with form=ema"),
      .choice("form", ["ema", "ma"], "a decaying average, or a window", live: false),
      .integer("window", 100, .within(1, 1e6), "length of the window, with form=ma", live: false),
      .choice("filter", ["mean", "sum"], "of the window"),
      .flag("warmup", true, "nothing is added before the window is full"),
    ],
    slots: [.moment("slow", "the slow gradient s"), Slot("window", "the last gradients")])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [method.slots[0]] }
  static func phases(_ h: Hyper) -> Int { 1 }
  static func reach(_ h: Hyper, _ phase: Int) -> Scope { .tensor }

  let alpha, lamb: Double
  let first: Bool

  init(_ h: Hyper, _ c: StepContext) { (alpha, lamb, first) = (h.alpha, h.has("lamb") ? h.lamb : 2, c.t == 1) }

  /// The average moves here, once a step: `direction` runs for every walk that reads the gradient.
  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    s[0] = first ? g : alpha * s[0] + (1 - alpha) * g
  }
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { lamb == 0 ? g : g + lamb * s[0] }

  static let registered = Registered(
    method: method,
    component: .chosen {
      $0.is("form", "ma") ? .whole(kernels(GrokfastWindow.self)) : .element(kernels(Grokfast.self))
    })
}

/// The form with a window. Gradient k of a tensor lies at place k mod window.
struct GrokfastWindow: WholeRule {
  static var method: Method { Grokfast.method }
  private static let largest = 1 << 40

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var window = method.slots[1]
    let (count, overflow) = shape.count.multipliedReportingOverflow(by: h.integer("window"))
    window.count = overflow || count > largest ? 0 : count
    return [window]
  }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    let (count, overflow) = shape.count.multipliedReportingOverflow(by: h.integer("window"))
    if overflow || count > largest {
      throw Failure(
        Status.shape,
        "grokfast: a window of \(h.integer("window")) gradients of shape \(shape.dimensions) is too large")
    }
  }

  let length, t: Int
  let weight: Double
  let waits: Bool

  init(_ h: Hyper, _ c: StepContext) {
    (length, t) = (max(1, h.integer("window")), max(1, c.t))
    let lamb = h.has("lamb") ? h.lamb : 5
    weight = h.is("filter", "mean") ? lamb / Double(min(t, length)) : lamb
    waits = h.warmup && t < length
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count, window = t.slots[0]
    (window + (self.t - 1) % length * n).update(from: t.v, count: n)
    if waits || weight == 0 { return }
    for k in 0..<min(self.t, length) { Flat.add(window + k * n, times: weight, into: t.v, n) }
  }
}
