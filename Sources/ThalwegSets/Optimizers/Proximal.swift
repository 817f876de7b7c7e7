import Glibc
import ThalwegCore

/// Gradient descent with the prox of a regularizer after every step, its step size that of the gradient.
///
///     b ← μ·b + g
///     θ' = prox(θ − lr·b, lr)
///
/// Shapes   what the regularizer takes.
/// Errors   those of the regularizer; a step that fails changes nothing.
/// Differs  `sgd | prox(...)` is the same rule: this is its name in the literature, with the regularizer as a value.
/// Source   Davis and Drusvyatskiy, 2019, arXiv:1803.06523.
struct ProxSGD: WholeRule {
  static let method = Method(
    "prox_sgd", .optimizer, "Gradient descent with the prox of a regularizer after every step.",
    rule: "b = momentum*b + g;  theta' = prox(theta - lr*b, lr)",
    source: "Davis, Drusvyatskiy, 2019, arXiv:1803.06523",
    parameters: [
      HeldProx.parameter("regularizer", "its prox ends the step"), .lr(1e-2),
      .rate("momentum", 0, "share of the old direction").fixed,
    ], slots: [.moment("momentum_buffer", "the momentum b")], requests: "own-step", validate: checkProx)
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { h.momentum == 0 ? [] : method.slots }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try HeldProx(h, "regularizer")?.accepts(shape) }
  static func mayFail(_ h: Hyper) -> Bool { (try? HeldProx(h, "regularizer")?.mayFail) ?? false }

  static var leavesPoint: Bool { true }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { actsOnElements(h) ? 1 : nil }

  let h: Hyper, lr: Double
  init(_ h: Hyper, _ c: StepContext) { (self.h, lr) = (h, c.lr) }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let momentum: Double = h.momentum
    t.change(Step(momentum: momentum, lr: lr), slots: 0..<(momentum == 0 ? 0 : 1))
    try HeldProx(h, "regularizer")?.apply(t.v, t.shape, lr)
  }

  /// The new point.
  struct Step: ElementOperation {
    let momentum, lr: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      if momentum != 0 {
        x = momentum * s[0] + x
        s[0] = x
      }
      x = g - lr * x
    }
  }
}

/// Adam with the prox of a regularizer in its own metric: every element has the step of its denominator.
///
///     m, v and their bias corrections as in Adam;  D = √v̂ + ε
///     θ' = prox(θ − lr·m̂/D) with step lr/D for each element
///
/// A regularizer whose elements depend on one another gets one step, lr/mean(D): the prox in the metric of D has no
/// closed form there. With `skip_zero_grad` an element that never had a gradient has D = 1, or ε would let its
/// threshold erase it at once.
/// Shapes   what the regularizer takes.
/// Errors   those of the regularizer; a step that fails changes nothing.
/// Differs  `adam | prox(...)` thresholds every element by lr, which solves another problem.
/// Source   Yun, Lozano and Yang, 2021, arXiv:2006.07065.
struct ProxAdam: WholeRule {
  static let method = Method(
    "prox_adam", .optimizer, "Adam with the prox of a regularizer in its own metric.",
    rule: "m, v as Adam;  D = sqrt(v^) + eps;  theta' = prox(theta - lr*m^/D), with step lr/D for each element",
    source: "Yun, Lozano, Yang, 2021, arXiv:2006.07065",
    parameters: [
      HeldProx.parameter("regularizer", "its prox ends the step"), .lr(1e-3),
      .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8, "added to the root", .above(0)),
      .flag("skip_zero_grad", true, "elements that never had a gradient take the step lr"),
    ],
    slots: [.moment("exp_avg", "first moment m"), .square("exp_avg_sq", "second moment v")], requests: "own-step",
    validate: checkProx)
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try HeldProx(h, "regularizer")?.accepts(shape) }
  static func mayFail(_ h: Hyper) -> Bool { (try? HeldProx(h, "regularizer")?.mayFail) ?? false }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { shape.count &* size }

  static var leavesPoint: Bool { true }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { actsOnElements(h) ? 1 : nil }

  let h: Hyper, c: StepContext
  init(_ h: Hyper, _ c: StepContext) { (self.h, self.c) = (h, c) }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let steps = t.workspace.assumingMemoryBound(to: T.self)
    let (beta1, beta2): (Double, Double) = (h.beta1, h.beta2)
    let root = Root(second: 1 - pow(beta2, c.time), eps: h.eps, skips: h.skip_zero_grad)
    let prox = try HeldProx(h, "regularizer"), each = prox?.isSeparable ?? false
    t.change(
      Step(beta1: beta1, beta2: beta2, first: 1 - pow(beta1, c.time), lr: c.lr, root: root, leavesStep: each),
      slots: 0..<2, more: steps)
    if let prox, t.count > 0 {
      if each {
        try prox.apply(t.v, t.shape, steps: steps)
      } else {
        let sum = t.sums(SlotTotal(), more: steps).first
        try prox.apply(t.v, t.shape, c.lr / (sum / Double(t.count)))
      }
    }
  }

  /// D of v; without a gradient ever m is 0 too, while v may have underflown.
  struct Root {
    let second, eps: Double, skips: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ v: L, _ m: L) -> L {
      let d = (v / second).squareRoot() + eps
      return skips ? L.select(L.equal(v, L(0)), L.select(L.equal(m, L(0)), L(1), d), d) : d
    }
  }
  /// The new point; behind m and v the steps of all elements, or D.
  struct Step: ElementOperation {
    let beta1, beta2, first, lr: Double, root: Root, leavesStep: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let m = beta1 * s[0] + (1 - beta1) * x, v = beta2 * s[1] + (1 - beta2) * (x * x)
      let d = root(v, m), step = L(lr) / d
      s[0] = m
      s[1] = v
      s[2] = leavesStep ? step : d
      x = g - step * (m / first)
    }
  }
}

private func actsOnElements(_ h: Hyper) -> Bool { (try? HeldProx(h, "regularizer")?.isSeparable) ?? true }
private let checkProx: @Sendable (Hyper) throws(Failure) -> Void = { (h) throws(Failure) in
  _ = try HeldProx(h, "regularizer")
}
