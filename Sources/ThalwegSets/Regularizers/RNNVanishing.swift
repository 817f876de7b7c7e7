import ThalwegCore

/// Keeps errors that travel back through a recurrent net from vanishing or exploding: each step back should preserve
/// their norm.
///
///     u = (Wᵀδ) ⊙ slope, for every time t and sample b     r = ‖u‖/‖δ‖     value = α/B·Σ_t Σ_b (r − 1)²
///     gradient = α/B·Σ_t Σ_b 2(r − 1)/(‖δ‖·‖u‖)·δ (u ⊙ slope)ᵀ, with δ and slope held constant
///
/// w is W (H, H), which acts as x_{t+1} = W·act(x_t) + …; delta is ∂E/∂x_{t+1} and slope is act′(x_t), both (T, B, H).
/// Terms with δ = 0 are left out; those with u = 0 count 1 and have no gradient. It has no prox, and inside a pipeline
/// its inputs would be missing.
/// Differs  the sum is over time and the mean over samples, as the card decides; the authors' old code divides by the
///          number of terms.
/// Source   Pascanu, Mikolov and Bengio, 2012, arXiv:1211.5063.
struct RNNVanishing: Objective {
  static let method = Method(
    "rnn_vanishing", .regularizer, "Asks every step back in time of a recurrent net to preserve the norm of the error.",
    rule: """
      u = (w' delta)*slope, r = |u|/|delta| for every time and sample;  value = alpha/B*sum (r - 1)^2
      gradient = alpha/B*sum 2*(r - 1)/(|delta|*|u|)*delta (u*slope)'
      """,
    source: "Pascanu, Mikolov, Bengio, 2012, arXiv:1211.5063",
    parameters: [.number("alpha", 1, .atLeast(0), "coefficient")],
    inputs: [
      .variable("w", "H, H", "recurrent matrix"),
      .constant("delta", "T, B, H", "back-propagated errors, the derivatives of the loss by the state behind the step"),
      .constant("slope", "T, B, H", "derivatives of the activation before the step"),
    ])

  let alpha: Double
  init(_ h: Hyper) { alpha = h.alpha }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let delta = try x["delta"], slope = try x["slope"], h = x.sizes["H"], rows = x.sizes["T"] * x.sizes["B"]
    let weight = alpha / Double(x.sizes["B"])
    // only the direction of an error counts: with d = δ/‖δ‖, u is (Wᵀd) ⊙ slope and its norm is r
    let space = try Memory(2 * rows * h * MemoryLayout<T>.stride, .current)
    defer { withExtendedLifetime(space) {} }
    let d = space.base.bindMemory(to: T.self, capacity: 2 * rows * h), u = d + rows * h
    _ = Rows.sum(rows, work: h) { i in
      let c = Flat.norm(delta + i * h, h)
      if c != 0 { for k in (i * h)..<((i + 1) * h) { d[k] = T(Double(delta[k]) / c) } }
      return 0
    }
    try LinearAlgebra.multiply(d, try x["w"], into: u, rows, h, h)
    let value = Rows.sum(rows, work: h) { i in
      let row = u + i * h, s = slope + i * h
      for k in 0..<h { row[k] *= s[k] }
      let r = Flat.norm(row, h)
      let factor = r == 0 ? 0 : 2 * weight * (r - 1) / r
      for k in 0..<h { row[k] = T(factor * (Double(row[k]) * Double(s[k]))) }
      return Flat.norm(d + i * h, h) == 0 ? 0 : weight * (r - 1) * (r - 1)
    }
    if let cache {
      try LinearAlgebra.multiply(d, transposed: true, u, into: cache.keep("w", h * h, T.self), h, h, rows)
    }
    return value
  }
}
