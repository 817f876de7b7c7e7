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

  /// The rows that are projected: those of the matrix view, 1 for the whole as one row, 0 for none.
  func rows<T: Real>(_ t: Whole<T>) -> Int {
    guard t.shape.ndim > 1, t.count > 0 else { return 0 }
    let length = t.columns
    let large = Parts(t.rows, of: length).sum { _, rows in
      rows.contains { i in
        let g = t.v + i * length, x = t.w + i * length, p = Flat.products(g, x, length)
        return !isSmall(p.xy, norm(p.xx, g, length), norm(p.yy, x, length), length)
      } ? 1 : 0
    }
    if large == 0 { return t.rows }
    if t.rows == 1 { return 0 }
    let p = products(t)
    return isSmall(p.xy, norm(p.xx, t.v, t.count), norm(p.yy, t.w, t.count), t.count) ? 1 : 0
  }
  /// v ← scale·(v − h·⟨h, v⟩) + decay·w in so many rows.
  func remove<T: Real>(_ t: Whole<T>, rows: Int, scale: Double, decay: Double) {
    func along(_ product: Double, _ size: Double) -> Double { size > 0 ? decay - scale * product / size / size : decay }
    if rows == 1 {
      let p = products(t)
      return t.change(Blend(scale: scale, factor: along(p.xy, norm(p.yy, t.w, t.count) + eps)))
    }
    let length = t.columns
    Parts(rows, of: length).forEach { _, part in
      for i in part {
        let v = t.v + i * length, w = t.w + i * length, p = Flat.products(v, w, length)
        Flat.combine(scale, v, along(p.xy, norm(p.yy, w, length) + eps), w, into: v, length)
      }
    }
  }

  private func isSmall(_ product: Double, _ g: Double, _ x: Double, _ length: Int) -> Bool {
    product == 0 || abs(product) / (max(g, eps) * max(x, eps)) < delta / Double(length).squareRoot()
  }
  /// The norm of a row with this square, which may have left the range.
  private func norm<T: Real>(_ square: Double, _ x: UnsafePointer<T>, _ n: Int) -> Double {
    square > 1e-280 && square < 1e280 ? square.squareRoot() : Flat.norm(x, n)
  }
  /// The products of v and w, each with itself and both.
  private func products<T: Real>(_ t: Whole<T>) -> (xx: Double, yy: Double, xy: Double) {
    let sums = t.sums(Products())
    return (sums[0], sums[1], sums[2])
  }
  struct Products: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, x, times: x)
      sums.add(1, g, times: g)
      sums.add(2, x, times: g)
    }
  }
  struct Blend: ElementOperation {
    let scale, factor: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      x = x * scale + g * factor
    }
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

  let beta1, beta2, r1, r2, decay: Double
  let nesterov: Bool
  let projection: RadialProjection

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, nesterov, decay) = (h.beta1, h.beta2, h.nesterov, c.weightDecay)
    (r1, r2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
    projection = RadialProjection(h)
  }

  /// x: the gradient, then u, or where nothing is projected the whole step; g: the parameter. What differs is in the
  /// numbers: with choices between them the roots would be taken one by one.
  struct Move: ElementOperation {
    let beta1, beta2, r2, eps, ahead, fresh, scale, decay: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let m = beta1 * s[0] + (1 - beta1) * x, v = beta2 * s[1] + (1 - beta2) * (x * x)
      let root = (v * r2).squareRoot() + eps
      s[0] = m
      s[1] = v
      let u = root.divide(ahead * m + fresh * x) * scale
      x = u + g * decay
    }
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let rows = projection.rows(t)
    let (ahead, fresh) = nesterov ? (beta1, 1 - beta1) : (1, 0)
    t.change(
      Move(
        beta1: beta1, beta2: beta2, r2: r2, eps: projection.eps, ahead: ahead, fresh: fresh,
        scale: rows > 0 ? 1 : r1, decay: rows > 0 ? 0 : decay), slots: 0..<2)
    if rows > 0 { projection.remove(t, rows: rows, scale: r1, decay: decay * projection.ratio) }
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

  let momentum, take, decay: Double
  let nesterov: Bool
  let projection: RadialProjection

  init(_ h: Hyper, _ c: StepContext) {
    let dampening: Double = h.dampening
    (momentum, take, nesterov) = (h.momentum, 1 - dampening, h.nesterov)
    decay = c.weightDecay / (1 - momentum)
    projection = RadialProjection(h)
  }

  /// x: the gradient, then u, or where nothing is projected the whole step; g: the parameter.
  struct Move: ElementOperation {
    let rule: SGDP, projected: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let b = rule.momentum * s[0] + rule.take * x
      s[0] = b
      x = rule.nesterov ? x + rule.momentum * b : b
      if !projected, rule.decay != 0 { x = x + g * rule.decay }
    }
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let rows = projection.rows(t)
    t.change(Move(rule: self, projected: rows > 0), slots: 0..<1)
    if rows > 0 { projection.remove(t, rows: rows, scale: 1, decay: decay * projection.ratio) }
  }
}
