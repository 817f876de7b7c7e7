import ThalwegCore

/// What a stage that sets the new parameters itself leaves in the update, so that θ·keep − lr·u is the new point.
struct NewPoint {
  let keep, lr: Double
  init(_ c: StepContext) { (keep, lr) = (c.keep, c.lr) }

  /// θ·keep − lr·u into `out`.
  func plain<T: Real>(_ t: Whole<T>, into out: UnsafeMutablePointer<T>) {
    Flat.scale(t.w, by: keep, into: out, t.count)
    Flat.add(t.v, times: -lr, into: out, t.count)
  }
  /// u ← (θ·keep − factor·new)/lr
  func set<T: Real>(_ t: Whole<T>, to new: UnsafeMutablePointer<T>, times factor: Double) {
    Flat.scale(t.w, by: keep / lr, into: t.v, t.count)
    Flat.add(new, times: -factor / lr, into: t.v, t.count)
  }
}

/// The weights behind the decay of a step, where that may be masked by the sign of the update: a stage at its place
/// sees a direction, one behind the mask an update that has what is spared of the decay in it, which does not turn its
/// sign.
struct DecayedWeights {
  let keep, lr: Double, masked, isBehind: Bool
  init(_ c: StepContext, isBehind: Bool) {
    (keep, lr, masked, self.isBehind) = (c.keep, c.lr, c.masksDecay && c.keep != 1, isBehind)
  }

  @inline(__always) private func spares<L: Lane>(_ u: L, _ x: L) -> L.Mask { L.less(u.sign * x, L(0)) }
  @inline(__always) func weight<L: Lane>(_ u: L, _ x: L) -> L {
    masked ? L.select(spares(u, x), x, keep * x) : keep * x
  }
  @inline(__always) private func direction<L: Lane>(_ u: L, _ x: L) -> L {
    masked && isBehind ? L.select(spares(u, x), u + (1 - keep) / lr * x, u) : u
  }

  /// Sums 0 and 1: ‖θ‖² of them, and ⟨u, θ⟩.
  private struct Products: ElementSum {
    let decayed: DecayedWeights
    @inline(__always) func callAsFunction<L: Lane>(_ u: L, _ x: L, _ s: Slots<L>, _ sums: inout Sums) {
      let y = decayed.weight(u, x)
      sums.add(0, y, times: y)
      sums.add(1, decayed.direction(u, x), times: y)
    }
  }
  private struct Add: ElementOperation {
    let decayed: DecayedWeights, factor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ u: inout L, _ x: inout L, _ s: Slots<L>) {
      u = u + factor * decayed.weight(u, x)
    }
  }
  func norm<T: Real>(_ t: Whole<T>) -> Double {
    masked ? t.sums(Products(decayed: self)).first.squareRoot() : abs(keep) * Flat.norm(t.w, t.count)
  }
  func along<T: Real>(_ t: Whole<T>) -> Double {
    masked ? t.sums(Products(decayed: self))[1] : keep * Flat.dot(t.v, t.w, t.count)
  }
  /// u ← u + factor·θ
  func add<T: Real>(_ t: Whole<T>, times factor: Double) {
    if masked {
      t.change(Add(decayed: self, factor: factor))
    } else {
      Flat.add(t.w, times: factor * keep, into: t.v, t.count)
    }
  }
}

/// The norm of a tensor's update is that of its weights: lr is the relative step.
///
///     decay first;  u ← u·‖θ‖/‖u‖,  0 where either norm is below ε
///
/// State    none.
/// Differs  nothing from Emerging-Optimizers' hook. A tensor of zeros never moves.
/// Source   NVIDIA Emerging-Optimizers, 2025.
struct RelativeUpdate: WholeRule {
  static let method = Method(
    "relative_update", .update, "The norm of a tensor's update is that of its weights.",
    rule: "u <- u*|theta|/|u|, theta decayed; 0 where either norm is below eps",
    source: "NVIDIA Emerging-Optimizers, 2025", parameters: [.eps(1e-15, "what counts as no norm")])

  let weights: DecayedWeights, eps: Double
  init(_ h: Hyper, _ c: StepContext) { (weights, eps) = (DecayedWeights(c, isBehind: false), h.eps) }

  func apply<T: Real>(_ t: Whole<T>) {
    let x = weights.norm(t), u = Flat.norm(t.v, t.count)
    Flat.scale(t.v, by: x < eps || u < eps || u == 0 ? 0 : x / u, into: t.v, t.count)
  }
}

/// Damps the change of a tensor's norm.
///
///     norm:       decay first;  n₀ = ‖θ‖;  θ ← θ − lr·u,  n₁ = ‖θ‖,  δ = n₁ − n₀;  θ ← θ·(n₀ + share·δ)/n₁
///                 share = outward (δ ≥ ε), inward (δ ≤ −ε), 0 between; norms below ε count as 0
///     direction:  c = ⟨u, θ⟩/max(‖θ‖², ε);  u ← u + (share − 1)·c·θ,  share = outward (c < 0), else inward
///     pin:        then the stepped tensor is rescaled to max(‖θ‖ − lr·⟨u, θ⟩/‖θ‖, ε)
///
/// State    none.
/// Differs  nothing from Emerging-Optimizers' hook (norm) and the speed runs (direction). With lr = 0 nothing moves.
/// Source   NVIDIA Emerging-Optimizers, 2025; modded-nanogpt, 2025 (track 3).
struct RadialBrake: WholeRule {
  static let method = Method(
    "radial_brake", .update, "Damps the change of a tensor's norm.",
    rule: """
      norm: n0 = |theta| after the decay, n1 = |theta - lr*u|, d = n1 - n0;  theta <- (theta - lr*u)*(n0 + share*d)/n1
      direction: c = <u, theta>/max(|theta|^2, eps);  u <- u + (share - 1)*c*theta
      pin: theta - lr*u, rescaled to the norm max(|theta| - lr*<u, theta>/|theta|, eps)
      share = outward where the norm grows, inward where it falls
      """,
    source: "NVIDIA Emerging-Optimizers, 2025; modded-nanogpt, 2025 (track 3)",
    parameters: [
      .number("outward", 0.5, .within(0, 1), "share of a growth that is kept"),
      .number("inward", 1, .within(0, 1), "share of a fall that is kept"),
      .choice(
        "form", ["norm", "direction"], "of the new norm, or of the update's part along the weights", live: false),
      .flag("pin", false, "with form=direction: the norm is that of the first order", live: false),
      .eps(1e-15, "what counts as no norm", .above(0)),
    ])
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { aligned(shape.count &* size) }

  static func place(_ h: Hyper) -> UpdatePlace { h.is("form", "direction") && !h.pin ? .direction : .norm }
  static var readsDecay: Bool { true }

  private let move: NewPoint, weights: DecayedWeights
  let outward, inward, eps: Double
  let direction, pins: Bool
  init(_ h: Hyper, _ c: StepContext) {
    (move, outward, inward, eps) = (NewPoint(c), h.outward, h.inward, h.eps)
    (direction, pins) = (h.is("form", "direction"), h.pin)
    weights = DecayedWeights(c, isBehind: RadialBrake.place(h) == .norm)
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count, new = t.workspace.assumingMemoryBound(to: T.self), size = weights.norm(t)
    if direction {
      let along = weights.along(t), c = along / max(size * size, eps), more = ((c < 0 ? outward : inward) - 1) * c
      if more != 0 { weights.add(t, times: more) }
      guard pins, T.isStep(move.lr) else { return }
      let target = size == 0 ? eps : max(size - move.lr * (along + more * size * size) / size, eps)
      move.plain(t, into: new)
      let norm = Flat.norm(new, n)
      if norm > 0 { move.set(t, to: new, times: target / norm) }
      return
    }
    guard T.isStep(move.lr) else { return }
    move.plain(t, into: new)
    func counted(_ x: Double) -> Double { x < eps ? 0 : x }
    let before = counted(size), after = counted(Flat.norm(new, n)), change = after - before
    let share = change >= eps ? outward : change <= -eps ? inward : 0
    if share == 1, after != 0 { return }
    move.set(t, to: new, times: after == 0 ? 0 : (before + share * change) / after)
  }
}

/// Hyperball: steps on the sphere of a tensor's first norm.
///
///     u ← u + wd·θ;   θ ← θ − lr·R·u/max(‖u‖, ε);   θ ← θ·R/max(‖θ‖, ε),   R = ‖θ₀‖, or `radius`
///
/// State    R of each tensor.
/// Differs  nothing from heavyball. lr is a relative step. Tensors of lower rank than min_rank take the plain step,
///          with its decay. A tensor of zeros stays. R is that of the first step, whatever a host writes later. With
///          lr = 0 nothing moves.
/// Source   Wen et al., 2025.
struct Hyperball: WholeRule {
  static let method = Method(
    "hyperball", .update, "Steps on the sphere of a tensor's first norm.",
    rule: """
      u <- u + weight_decay*theta;  theta <- theta - lr*R*u/max(|u|, eps);  theta <- theta*R/max(|theta|, eps)
      R = |theta_0|, or radius
      """,
    source: "Wen et al., 2025",
    parameters: [
      .eps(1e-12, "floor of the norms", .above(0)),
      .integer("min_rank", 2, .atLeast(0), "tensors of lower rank take the plain step", live: false),
      .maybe("radius", .above(0), "of the sphere, in place of the first norm").fixed,
    ],
    slots: [Slot("radius", "the norm R of the first parameters")])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var radius = method.slots[0]
    radius.count = 1
    return h.has("radius") || shape.ndim < h.integer("min_rank") ? [] : [radius]
  }
  static func place(_ h: Hyper) -> UpdatePlace { .norm }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { aligned(shape.count &* size) }

  private let move: NewPoint
  let decay, eps, radius: Double
  let first, plain: Bool
  init(_ h: Hyper, _ c: StepContext) {
    (move, eps, radius, first) = (NewPoint(c), h.eps, h.radius, c.t == 1)
    decay = c.keep == 1 ? 0 : (1 - c.keep) / c.lr
    plain = c.ndim < h.integer("min_rank")
  }

  func apply<T: Real>(_ t: Whole<T>) {
    if plain { return }
    let n = t.count, new = t.workspace.assumingMemoryBound(to: T.self)
    var r = radius
    if r.isNaN {
      if first { t.slots[0][0] = T(Flat.norm(t.w, n)) }
      r = Double(t.slots[0][0])
    }
    guard T.isStep(move.lr) else { return }
    if decay != 0 { Flat.add(t.w, times: decay, into: t.v, n) }
    let step = move.lr * r / max(Flat.norm(t.v, n), eps)
    new.update(from: t.w, count: n)
    Flat.add(t.v, times: -step, into: new, n)
    move.set(t, to: new, times: r / max(Flat.norm(new, n), eps))
  }
}
