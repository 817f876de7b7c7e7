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
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { shape.count &* size }

  let h: Hyper, lr: Double
  init(_ h: Hyper, _ c: StepContext) { (self.h, lr) = (h, c.lr) }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let y = t.workspace.bindMemory(to: T.self, capacity: t.count), step = T(lr), mu = T(h.momentum)
    for i in 0..<t.count {
      if mu != 0 {
        t.slots[0][i] = mu * t.slots[0][i] + t.v[i]
        t.v[i] = t.slots[0][i]
      }
      y[i] = t.w[i] - step * t.v[i]
    }
    try HeldProx(h, "regularizer")?.apply(y, t.shape, lr)
    for i in 0..<t.count { t.v[i] = t.w[i] - y[i] }
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
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { 2 &* shape.count &* size }

  let h: Hyper, c: StepContext
  init(_ h: Hyper, _ c: StepContext) { (self.h, self.c) = (h, c) }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let y = t.workspace.bindMemory(to: T.self, capacity: 2 &* t.count), steps = y + t.count
    let (beta1, beta2): (Double, Double) = (h.beta1, h.beta2), eps = T(h.eps), lr = T(c.lr)
    let first = T(1 - pow(beta1, c.time)), second = T(1 - pow(beta2, c.time)), skips: Bool = h.skip_zero_grad
    let (m, v) = (t.slots[0], t.slots[1])
    var sum = 0.0
    for i in 0..<t.count {
      let g = t.v[i]
      m[i] = T(beta1) * m[i] + T(1 - beta1) * g
      v[i] = T(beta2) * v[i] + T(1 - beta2) * (g * g)
      let d = skips && v[i] == 0 ? 1 : (v[i] / second).squareRoot() + eps
      sum += Double(d)
      steps[i] = lr / d
      y[i] = t.w[i] - steps[i] * (m[i] / first)
    }
    if let prox = try HeldProx(h, "regularizer"), t.count > 0 {
      if prox.isSeparable {
        try prox.apply(y, t.shape, steps: steps)
      } else {
        try prox.apply(y, t.shape, c.lr / (sum / Double(t.count)))
      }
    }
    for i in 0..<t.count { t.v[i] = t.w[i] - y[i] }
  }
}

private let checkProx: @Sendable (Hyper) throws(Failure) -> Void = { (h) throws(Failure) in
  _ = try HeldProx(h, "regularizer")
}
