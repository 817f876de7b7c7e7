import ThalwegCore

/// Adam with critical momenta: the step is taken along the momentum and the mean of the momenta of the largest
/// gradients so far.
///
///     m ← β₁·m + (1 − β₁)·g;   a = m + mean(buffer);   v ← β₂·v + (1 − β₂)·a²
///     θ ← θ·(1 − lr·wd) − lr·(a/c₁)/(√(v/c₂) + ε)
///     m enters the buffer with the key Σ‖g‖ (the sum of the tensors' norms) while there is room, else in the place of
///     the smallest key if its
///     own is larger; all keys ← decay·keys
///
/// State    m, v, the sum of the buffer, up to `capacity` momenta; their keys. `layerwise`: buffer and key of every
///          tensor alone.
/// Differs  as the authors' class: the first call only puts the raw gradient into the buffer (whether the paper does is
///          UNVERIFIED), and c₁ divides the buffer's part too. A buffer has at most 13 momenta.
/// Source   Malviya et al., 2023, arXiv:2307.09638.
struct AdamCM: ElementRule {
  private static let most = 13
  static let method = Method(
    "adam_cm", .optimizer,
    "Adam with critical momenta: the momenta of the largest gradients so far take part in the step.",
    rule: """
      m <- beta1*m + (1 - beta1)*g;  a = m + mean(buffer);  v <- beta2*v + (1 - beta2)*a^2
      theta <- theta*(1 - lr*weight_decay) - lr * (a/c1)/(sqrt(v/c2) + eps)
      m enters the buffer with key sum |g| while there is room, else in place of the smallest key if its own is larger
      keys <- decay*keys;  the first call only puts g into the buffer
      """,
    source: "Malviya et al., 2023, arXiv:2307.09638",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8),
      .weightDecay(0, "decoupled weight decay"),
      .integer("capacity", 5, .within(1, Double(most)), "momenta in the buffer", live: false),
      .number("decay", 0.7, .between(0, 1, lowOpen: true, highOpen: true), "of the keys, each step")
        .forAll(unless: "layerwise"),
      .flag("layerwise", false, "every tensor has a buffer and keys of its own", live: false),
    ],
    slots: Adam.moments + [
      Slot("buffer_sum", "sum of the buffer"), Slot("buffer", "critical momenta, one buffer each"),
    ])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    method.slots.dropLast() + (0..<h.integer("capacity")).map { Slot("buffer_\($0)", "a critical momentum") }
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func scope(_ h: Hyper) -> Scope { .tensor }
  static func phases(_ h: Hyper) -> Int { h.layerwise ? 1 : 2 }
  static func reach(_ h: Hyper, _ phase: Int) -> Scope { phase == 0 ? .tensor : .global }
  /// Norm of the tensor's gradient, filled places, filled places before this step, the place of this step (or -1), the
  /// keys.
  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("norm"), Scalar("filled"), Scalar("used"), Scalar("place", -1)]
      + (0..<h.integer("capacity")).map { Scalar("key_\($0)") }
  }

  let beta1, beta2, eps, r1, r2, mean, inverse: Double
  let first, full: Bool
  let place, filled: Int

  init(_ h: Hyper, _ c: StepContext) {
    let s = c.scalars
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
    inverse = s[0] > 0 ? 1 / s[0] : s[0]
    (first, mean, place, full) = (s[2] == 0, s[2] > 0 ? 1 / s[2] : 0, AdamCM.place(s[3]), s[2] == s[1])
    filled = min(h.integer("capacity"), AdamCM.most)
  }

  /// A place in the buffer; -1: none.
  private static func place(_ x: Double) -> Int { x >= 0 ? Int(min(x, Double(most - 1))) : -1 }

  @inline(__always) func measure<L: Lane>(_ phase: Int, _ g: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, g, times: phase == 0 ? g : inverse * g)
  }

  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    if phase == 0 { s[0] = totals.root(0) }
    guard phase == phases(h) - 1 else { return }
    // Σ g²/‖g‖ over every tensor is the sum of the norms
    let key = phase == 0 ? s[0] : totals[0], keys = s + 4, capacity = Double(h.integer("capacity"))
    s[1] = max(0, min(s[1], capacity))
    s[2] = s[1]
    if s[1] < capacity {
      s[3] = s[1]
      s[1] += 1
    } else {
      var least = 0
      for k in 0..<Int(capacity) where keys[k] < keys[least] { least = k }
      s[3] = key > keys[least] ? Double(least) : -1
    }
    if s[3] >= 0 { keys[place(s[3])] = key }
    for k in 0..<Int(capacity) { keys[k] *= h.decay }
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    if first {
      s[1] = beta2 * s[1]
      s[2] = g
      s[3] = g
      return L(0)
    }
    let m = beta1 * s[0] + (1 - beta1) * g
    let a = m + mean * s[2]
    let v = beta2 * s[1] + (1 - beta2) * (a * a)
    s[0] = m
    s[1] = v
    if place >= 0 {
      s[3 &+ place] = m
      if full {  // from all of them: what a large one was rounded by would stay in a running sum
        var sum = s[3], k = 1
        while k < filled {
          sum = sum + s[3 &+ k]
          k &+= 1
        }
        s[2] = sum
      } else {
        s[2] = s[2] + m
      }
    }
    return ((v * r2).squareRoot() + eps).divide(a * r1)
  }
}
