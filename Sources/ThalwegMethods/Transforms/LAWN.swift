import ThalwegCore

/// Logit attenuating weight normalisation: after a free phase every tensor keeps its norm, and moves on a sphere.
///
///     lawn(part=gradient) | rule | lawn(part=norm), with the same free_steps
///     t < free_steps (t from 0): the rule as it is.  At the first later step c = |θ|, and from there
///     gradient:  g ← g − (⟨θ, g⟩/|θ|²)·θ
///     norm:      θ_b = θ − f·lr·u,  f = min(1, (t − free_steps + 1)/warmup_steps);
///                project_direction: θ_b ← θ + tangent part of θ_b − θ;   θ ← c·θ_b/|θ_b|
///
/// u is the direction before the step size. Tensors of a rank below `min_rank` are free (`route` frees others) but for
/// the ramp f, and so is one whose norm is below 10⁻¹².
///
/// State    of the norm part: c.
/// Differs  two stages, one before the rule and one behind it; their decay should be 0. The second projection and the
///          form of the warm-up are UNVERIFIED.
/// Source   Gupta, Ramanath, Shi, Keerthi, 2021, arXiv:2108.05839.
struct LAWN: WholeRule {
  static let method = Method(
    "lawn", .transform, "Logit attenuating weight normalisation: after a free phase tensors keep their norms.",
    rule: """
      lawn(part=gradient) | rule | lawn(part=norm); from step free_steps on, c = |theta| then:
      gradient: g <- g - <theta, g>/|theta|^2*theta
      norm: theta_b = theta - min(1, (t - free_steps + 1)/warmup_steps)*lr*u;  theta <- c*theta_b/|theta_b|
      """,
    source: "Gupta, Ramanath, Shi, Keerthi, 2021, arXiv:2108.05839",
    parameters: [
      .choice("part", ["gradient", "norm"], "before the rule, or behind it", live: false),
      .integer("free_steps", 0, .atLeast(0), "steps of the free phase", live: false),
      .integer("warmup_steps", 0, .atLeast(0), "ramp of the step size after it"),
      .flag("project_direction", false, "the rule's step becomes tangent too"),
      .integer("min_rank", 2, .atLeast(0), "tensors of a lower rank are free"),
    ],
    slots: [Slot("norm", "the norm c")])

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var norm = method.slots[0]
    norm.count = 1
    return h.is("part", "norm") ? [norm] : []
  }

  static func place(_ h: Hyper) -> UpdatePlace { .norm }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { aligned(shape.count &* size) }

  private let move: NewPoint
  let ramp: Double, step: Int, tangent, isNorm, free: Bool
  init(_ h: Hyper, _ c: StepContext) {
    step = c.t - 1 - h.integer("free_steps")
    let warmup: Double = h.warmup_steps
    ramp = warmup == 0 ? 1 : min(1, Double(step + 1) / warmup)
    (move, tangent, isNorm) = (NewPoint(c), h.project_direction, h.is("part", "norm"))
    free = c.ndim < h.integer("min_rank")
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count
    if step < 0 { return }
    /// The update becomes that of a smaller step size, decay and all.
    func shorten() {
      guard isNorm, ramp != 1, T.isStep(move.lr) else { return }
      Flat.scale(t.v, by: ramp, into: t.v, n)
      if move.keep != 1 { Flat.add(t.w, times: (move.keep - 1) * (1 - ramp) / move.lr, into: t.v, n) }
    }
    if free { return shorten() }
    let norm = Flat.norm(UnsafePointer(t.w), n)
    if isNorm, step == 0 { t.slots[0][0] = T(norm) }
    guard norm >= 1e-12 else { return shorten() }
    func removeRadial(_ x: UnsafeMutablePointer<T>) {
      Flat.add(t.w, times: -(Flat.dot(t.w, x, n) / norm) / norm, into: x, n)
    }
    guard isNorm else { return removeRadial(t.v) }
    guard T.isStep(move.lr) else { return }
    // the move of the rule, then the point it leads to
    let new = t.workspace.assumingMemoryBound(to: T.self)
    Flat.scale(UnsafePointer(t.w), by: ramp * (move.keep - 1), into: new, n)
    Flat.add(t.v, times: -ramp * move.lr, into: new, n)
    if tangent { removeRadial(new) }
    Flat.add(t.w, times: 1, into: new, n)
    let length = Flat.norm(UnsafePointer(new), n)
    move.set(t, to: new, times: length == 0 ? 1 : Double(t.slots[0][0]) / length)
  }
}
