import ThalwegCore

/// The part of a direction along the weights, which would only lengthen weights that a normalisation follows.
///
/// In a tensor of rank 2 or more the rows of the matrix view are looked at first, then the whole as one row:
///
///     cosᵢ = |⟨gᵢ, θᵢ⟩|/(max(‖gᵢ‖, ε)·max(‖θᵢ‖, ε))
///     all cosᵢ < δ/√(row length):  h = θᵢ/(‖θᵢ‖ + ε),  uᵢ ← uᵢ − h·⟨h, uᵢ⟩
struct RadialProjection: Sendable {
  static let parameters: [Parameter] = [
    .number("delta", 0.1, .above(0), "largest cosine that is projected, times the root of the row length"),
    .number("wd_ratio", 0.1, .within(0, 1), "share of the decay in tensors that are projected"),
  ]
  let delta, eps, ratio: Double
  init(_ h: Hyper) { (delta, eps, ratio) = (h.delta, h.eps, h.wd_ratio) }

  /// Returns the share of the decay.
  func remove<T: Real>(
    from u: UnsafeMutablePointer<T>, gradient g: UnsafePointer<T>, weights x: UnsafePointer<T>, _ shape: Shape
  ) -> Double {
    guard shape.ndim > 1 else { return 1 }
    for (rows, length) in [(shape.rows, shape.columns), (1, shape.count)] {
      let limit = delta / Double(length).squareRoot()
      let small = (0..<rows).allSatisfy { i in
        let a = g + i * length, b = x + i * length
        return abs(Flat.dot(a, b, length)) / (max(Flat.norm(a, length), eps) * max(Flat.norm(b, length), eps)) < limit
      }
      guard small else { continue }
      for i in 0..<rows {
        let w = x + i * length, v = u + i * length, size = Flat.norm(w, length) + eps
        if size > 0 { Flat.add(w, times: -Flat.dot(w, v, length) / size / size, into: v, length) }
      }
      return ratio
    }
    return 1
  }
}

/// AdamP: Adam without the part of the step along weights that do not matter in scale.
///
///     m, v as Adam;   u = m/(√(v/c₂) + ε),  or (β₁·m + (1 − β₁)·g)/… with nesterov;   u and ratio by the projection
///     θ ← θ·(1 − lr·wd·ratio) − (lr/c₁)·u
///
/// State    m, v.
/// Differs  nothing from clovaai/AdamP; the cosine is that of the gradient, the projection that of the direction.
///          Tensors of rank 0 and 1 are never projected.
/// Source   Heo et al., 2020, arXiv:2006.08217.
struct AdamP: WholeRule {
  static let method = Method(
    "adamp", .optimizer, "Adam without the part of the step along weights whose scale does not matter.",
    rule: """
      m, v as adam;  u = m/(sqrt(v/c2) + eps), nesterov: (beta1*m + (1 - beta1)*g)/...
      rows of the matrix, then the whole: if every |cos(g, theta)| < delta/sqrt(length), u <- u - h<h, u>,
      h = theta/(|theta| + eps), and ratio = wd_ratio; else ratio = 1
      theta <- theta*(1 - lr*weight_decay*ratio) - lr/c1*u
      """,
    source: "Heo et al., 2020, arXiv:2006.08217",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8), .weightDecay(0, "decoupled weight decay"),
    ] + RadialProjection.parameters + [.flag("nesterov", false, "look ahead along the first moment")],
    slots: Adam.moments)

  static func decay(_ h: Hyper) -> Decay { .rule }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { aligned(shape.count &* size) }

  let beta1, beta2, r1, r2, decay: Double
  let nesterov: Bool
  let projection: RadialProjection

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, nesterov, decay) = (h.beta1, h.beta2, h.nesterov, c.weightDecay)
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
    projection = RadialProjection(h)
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count, m = t.slots[0], v = t.slots[1], u = t.workspace.assumingMemoryBound(to: T.self)
    let (b1, b2, n1, n2) = (T(beta1), T(beta2), T(1 - beta1), T(1 - beta2))
    let correction = T(r2), eps = T(projection.eps)
    for i in 0..<n {
      let g = t.v[i]
      m[i] = b1 * m[i] + n1 * g
      v[i] = b2 * v[i] + n2 * (g * g)
      let top = nesterov ? b1 * m[i] + n1 * g : m[i], root = (v[i] * correction).squareRoot() + eps
      u[i] = top == 0 && root == 0 ? 0 : top / root
    }
    let share = projection.remove(from: u, gradient: t.v, weights: t.w, t.shape)
    Flat.scale(u, by: r1, into: t.v, n)
    if decay != 0 { Flat.add(t.w, times: decay * share, into: t.v, n) }
  }
}

/// SGDP: momentum SGD without the part of the step along weights that do not matter in scale.
///
///     b ← μ·b + (1 − τ)·g  (from 0);   u = b,  or g + μ·b with nesterov;   u and ratio by the projection
///     θ ← θ·(1 − lr·wd·ratio/(1 − μ)) − lr·u
///
/// State    b.
/// Differs  nothing from clovaai/AdamP: the dampening holds for the first gradient too.
/// Source   Heo et al., 2020, arXiv:2006.08217.
struct SGDP: WholeRule {
  static let method = Method(
    "sgdp", .optimizer, "Momentum SGD without the part of the step along weights whose scale does not matter.",
    rule: """
      b <- momentum*b + (1 - dampening)*g;  u = b, or g + momentum*b with nesterov
      u and ratio projected as in adamp
      theta <- theta*(1 - lr*weight_decay*ratio/(1 - momentum)) - lr*u
      """,
    source: "Heo et al., 2020, arXiv:2006.08217",
    parameters: [
      .lr(0.1), .rate("momentum", 0, "share of the buffer that is kept"),
      .number("dampening", 0, .any, "the gradient enters the buffer times 1 - dampening"),
      .flag("nesterov", false, "look ahead along the buffer"), .eps(1e-8, "floor of the norms"),
      .weightDecay(0, "decoupled weight decay"),
    ] + RadialProjection.parameters,
    slots: [.moment("momentum_buffer", "the momentum b")])

  static func decay(_ h: Hyper) -> Decay { .rule }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { aligned(shape.count &* size) }

  let momentum, take, decay: Double
  let nesterov: Bool
  let projection: RadialProjection

  init(_ h: Hyper, _ c: StepContext) {
    let dampening: Double = h.dampening
    (momentum, take, nesterov) = (h.momentum, 1 - dampening, h.nesterov)
    decay = c.weightDecay / (1 - momentum)
    projection = RadialProjection(h)
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count, b = t.slots[0], u = t.workspace.assumingMemoryBound(to: T.self), keep = T(momentum), new = T(take)
    for i in 0..<n {
      b[i] = keep * b[i] + new * t.v[i]
      u[i] = nesterov ? t.v[i] + keep * b[i] : b[i]
    }
    let share = projection.remove(from: u, gradient: t.v, weights: t.w, t.shape)
    t.v.update(from: u, count: n)
    if decay != 0 { Flat.add(t.w, times: decay * share, into: t.v, n) }
  }
}
