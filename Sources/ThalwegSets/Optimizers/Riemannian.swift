import Glibc
import ThalwegCore

// Optimizers on manifolds, one after the other; what they share stands first.

/// A step along a manifold: a rule turns the Riemannian gradient into a tangent step, and what it keeps moves along.
private protocol RiemannianRule: WholeRule {
  var h: Hyper { get }
  var c: StepContext { get }
  /// v ← the tangent step at x, for the Riemannian gradient in v.
  func turn<T: Real>(_ t: Whole<T>, _ manifold: HeldManifold) throws(Failure)
  /// The slot with a tangent vector that is carried to the new point, where there is one.
  var carried: Int? { get }
}

extension RiemannianRule {
  static func decay(_ h: Hyper) -> Decay { .coupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try h.manifold("manifold", of: method.name).accepts(shape)
  }
  static func mayFail(_ h: Hyper) -> Bool { (try? h.manifold("manifold", of: method.name).mayFail) ?? true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { 3 &* shape.count &* size }
  static var leavesPoint: Bool { true }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let manifold = try h.manifold("manifold", of: Self.method.name), n = t.count, shape = t.shape
    let space = t.workspace.bindMemory(to: T.self, capacity: 3 &* n), (x, y) = (space, space + n)
    x.update(from: t.w, count: n)
    if c.t == 1 { try manifold.project(x, shape) }
    try manifold.tangent(t.v, at: x, shape)
    var at = t
    (at.w, at.workspace) = (x, UnsafeMutableRawPointer(space + 2 &* n))
    try turn(at, manifold)
    Flat.scale(t.v, by: -c.lr, into: y, n)
    try manifold.retract(y, from: x, shape)
    let every = h.integer("stabilize")
    if every > 0, c.t % every == 0 { try manifold.project(y, shape) }
    if let carried { try manifold.transport(t.slots[carried], from: x, to: y, shape) }
    t.v.update(from: y, count: n)
  }
}

private let common: [Parameter] = [
  .maybeInteger("stabilize", .atLeast(1), "the point is projected every so many steps").withStandard(10),
  .object("manifold", .constraint, standard: "euclidean", "the manifold that the tensor lies on"),
]
extension Parameter {
  fileprivate func withStandard(_ k: Int) -> Parameter {
    var p = self
    p.standard = .number(Double(k))
    return p
  }
}
private func manifoldOf(_ method: String) -> @Sendable (Hyper) throws(Failure) -> Void {
  { (h) throws(Failure) in _ = try h.manifold("manifold", of: method) }
}
private let moves =
  "r = the Riemannian gradient of g + weight_decay*theta;  theta' = retract(theta, -lr*d), kept vectors transported;  "

/// Gradient descent along a manifold, with momentum.
///
///     r = the Riemannian gradient of g + wd·θ
///     b ← r (first step), then μ·b + (1 − dampening)·r
///     d = b, or r + μ·b (nesterov); r where μ = 0, as in geoopt and torch
///     θ' = retract(θ, −lr·d),  b ← transport(b, θ → θ')
///
/// A point that is not on the manifold is projected at its first step, and every `stabilize` steps afterwards.
/// Shapes   what the manifold takes; `euclidean` takes all, and gives SGD.
/// Errors   those of the manifold; a step that fails changes nothing.
/// Differs  geoopt starts its buffer with the Euclidean gradient. The paper has no projection.
/// Source   Bonnabel, 2013, arXiv:1111.5280; Bécigneul and Ganea, 2019, arXiv:1810.00760.
struct RiemannianSGD: RiemannianRule {
  static let method = Method(
    "riemannian_sgd", .optimizer, "Gradient descent along a manifold, with momentum.",
    rule: moves
      + "b = momentum*b + (1 - dampening)*r (r at first);  d = b, or r + momentum*b (nesterov), or r without momentum",
    source: "Bonnabel, 2013, arXiv:1111.5280; Becigneul, Ganea, 2019, arXiv:1810.00760",
    parameters: [
      .lr(1e-3), .rate("momentum", 0, "share of the old direction").fixed,
      .number("dampening", 0, .within(0, 1), "what the new gradient is damped by"),
      .flag("nesterov", false, "looks ahead along the momentum"),
      .weightDecay(0, "added to the Euclidean gradient"),
    ] + common, slots: [.moment("momentum_buffer", "the momentum b, tangent at theta")], requests: "own-step",
    validate: manifoldOf("riemannian_sgd"))
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { h.momentum == 0 ? [] : method.slots }

  let h: Hyper, c: StepContext
  init(_ h: Hyper, _ c: StepContext) { (self.h, self.c) = (h, c) }
  var carried: Int? { h.momentum == 0 ? nil : 0 }

  func turn<T: Real>(_ t: Whole<T>, _ manifold: HeldManifold) throws(Failure) {
    guard carried != nil else { return }
    let b = t.slots[0], first = c.t == 1, mu = T(h.momentum), new = T(1 - h.dampening), nesterov: Bool = h.nesterov
    for i in 0..<t.count {
      let r = t.v[i]
      b[i] = first ? r : mu * b[i] + new * r
      t.v[i] = nesterov ? r + mu * b[i] : b[i]
    }
  }
}

/// Adam along a manifold: one second moment for each point of a product of manifolds.
///
///     r = the Riemannian gradient of g + wd·θ
///     m ← β₁m + (1 − β₁)r,  v ← β₂v + (1 − β₂)⟨r, r⟩  (one number for every factor)
///     d = m̂/(√v̂ + ε), hats: bias corrections; amsgrad: the largest v so far in place of v
///     θ' = retract(θ, −lr·d),  m ← transport(m, θ → θ')
///
/// Factors: the whole tensor of sphere, stiefel, grassmann and spd, the rows of oblique, the points (lines of the last
/// axis) of poincare_ball and lorentz, the elements of euclidean, which so gives Adam.
/// A point that is not on the manifold is projected at its first step, and every `stabilize` steps afterwards.
/// Errors   those of the manifold; a step that fails changes nothing.
/// Differs  the paper has no bias correction (`bias_correction=false`) and a β₁ that falls: give it a schedule.
/// Source   Bécigneul and Ganea, 2019, arXiv:1810.00760.
struct RiemannianAdam: RiemannianRule {
  static let method = Method(
    "riemannian_adam", .optimizer, "Adam along a manifold: one second moment for each point.",
    rule: moves
      + "m = beta1*m + (1 - beta1)*r;  v = beta2*v + (1 - beta2)*<r, r>, one a factor;  d = m^/(sqrt(v^) + eps)",
    source: "Becigneul, Ganea, 2019, arXiv:1810.00760",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8, "added to the root", .above(0)), .weightDecay(0, "added to the Euclidean gradient"),
      .flag("amsgrad", false, "divides by the largest second moment so far", live: false),
      .flag("bias_correction", true, "corrects the moments for their start at 0"),
    ] + common,
    slots: [
      .moment("exp_avg", "first moment m, tangent at theta"), Slot("exp_avg_sq", "second moment v of each factor"),
      Slot("max_exp_avg_sq", "largest second moment so far (amsgrad)"),
    ], requests: "own-step", validate: manifoldOf("riemannian_adam"))
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let factors = (try? h.manifold("manifold", of: method.name).factors(shape).count) ?? 0
    return [
      method.slots[0], Slot("exp_avg_sq", method.slots[1].meaning, count: factors),
      Slot("max_exp_avg_sq", method.slots[2].meaning, count: h.amsgrad ? factors : 0),
    ]
  }

  let h: Hyper, c: StepContext
  init(_ h: Hyper, _ c: StepContext) { (self.h, self.c) = (h, c) }
  var carried: Int? { 0 }

  func turn<T: Real>(_ t: Whole<T>, _ manifold: HeldManifold) throws(Failure) {
    let factors = manifold.factors(t.shape), (m, v, most) = (t.slots[0], t.slots[1], t.slots[2])
    let squares = t.workspace.assumingMemoryBound(to: T.self), amsgrad: Bool = h.amsgrad
    try manifold.squares(t.v, at: t.w, into: squares, t.shape)
    let (beta1, beta2, eps): (Double, Double, Double) = (h.beta1, h.beta2, h.eps)
    let corrects: Bool = h.bias_correction
    let first = corrects ? 1 - pow(beta1, c.time) : 1, second = corrects ? 1 - pow(beta2, c.time) : 1
    for f in 0..<factors.count {
      v[f] = T(beta2) * v[f] + T(1 - beta2) * squares[f]
      if amsgrad { most[f] = max(most[f], v[f]) }
      let size = Double(amsgrad ? most[f] : v[f])
      let rate = 1 / (first * ((size / second).squareRoot() + eps)), at = factors.start(f)
      Flat.combine(beta1, m + at, 1 - beta1, t.v + at, into: m + at, factors.length)
      Flat.scale(m + at, by: rate, into: t.v + at, factors.length)
    }
  }
}

/// Adagrad along a manifold: one sum of squares for each point of a product of manifolds.
///
///     r = the Riemannian gradient of g + wd·θ
///     G ← G + ⟨r, r⟩  (one number for every factor, as in `riemannian_adam`)
///     θ' = retract(θ, −lr·r/(√G + ε))
///
/// A point that is not on the manifold is projected at its first step, and every `stabilize` steps afterwards.
/// Errors   those of the manifold; a step that fails changes nothing.
/// Source   Bécigneul and Ganea, 2019, arXiv:1810.00760.
struct RiemannianAdagrad: RiemannianRule {
  static let method = Method(
    "riemannian_adagrad", .optimizer, "Adagrad along a manifold: one sum of squares for each point.",
    rule: moves + "G = G + <r, r>, one a factor;  d = r/(sqrt(G) + eps)",
    source: "Becigneul, Ganea, 2019, arXiv:1810.00760",
    parameters: [
      .lr(1e-2), .eps(1e-10, "added to the root", .above(0)), .weightDecay(0, "added to the Euclidean gradient"),
    ] + common,
    slots: [Slot("sum", "sum of squares G of each factor")], requests: "own-step",
    validate: manifoldOf("riemannian_adagrad"))
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    [
      Slot(
        "sum", method.slots[0].meaning, count: (try? h.manifold("manifold", of: method.name).factors(shape).count) ?? 0)
    ]
  }

  let h: Hyper, c: StepContext
  init(_ h: Hyper, _ c: StepContext) { (self.h, self.c) = (h, c) }
  var carried: Int? { nil }

  func turn<T: Real>(_ t: Whole<T>, _ manifold: HeldManifold) throws(Failure) {
    let factors = manifold.factors(t.shape), sum = t.slots[0], eps: Double = h.eps
    let squares = t.workspace.assumingMemoryBound(to: T.self)
    try manifold.squares(t.v, at: t.w, into: squares, t.shape)
    for f in 0..<factors.count {
      sum[f] += squares[f]
      let at = t.v + factors.start(f)
      Flat.scale(at, by: 1 / (Double(sum[f]).squareRoot() + eps), into: at, factors.length)
    }
  }
}
