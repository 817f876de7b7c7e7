import Glibc
import ThalwegCore

/// Spectral normalisation: weights divided by an estimate of their largest singular value.
///
///     n_iter times:  v ← Wᵀu/max(|Wᵀu|, ε);  u ← Wv/max(|Wv|, ε)
///     σ = uᵀWv;   effective = target·W/σ, with mode=clip only where σ > target;   value = ⟨g, effective⟩
///     gradient by w, u and v held constant:  target·(g/σ − ⟨g, W⟩/σ²·u·vᵀ)
///
/// w (rows, ...) is read as a matrix of its rows; of a convolution that does not bound the operator
/// (`gram_iteration_conv`). Where σ is 0, effective is w and the gradient g. Without g the value is 0.
/// An evaluation (training=0) takes no steps: σ is uᵀWv of the u and v that are kept.
/// State    u and v. The first pass, of any kind, draws u, standard normal numbers of (seed, 0, 0, 0) made a unit
///          vector, and takes 15 steps. Where `u0` is given, that pass starts from u0 and v = Wᵀu0 instead.
/// Errors   TW_ERROR_RANGE: weights that are not finite, a u0 that is 0. TW_ERROR_NONFINITE: a σ beyond all numbers.
/// Differs  torch's spectral_norm takes the steps in the other order: it is this one of the transposed matrix, that is
///          with dim=1. Where Wᵀu or Wv is 0, u and v stay as they are: from 0 no step would lead away.
/// Source   Miyato, Kataoka, Koyama and Yoshida, 2018, arXiv:1802.05957.
struct SpectralNorm: Objective {
  static let method = Method(
    "spectral_norm", .objective, "Spectral normalisation: weights divided by their largest singular value.",
    rule: """
      n_iter times: v <- W'u/max(|W'u|, eps), u <- W v/max(|W v|, eps);  sigma = u'W v
      effective = target*W/sigma (clip: where sigma > target);  value = <g, effective>
      gradient by w = target*(g/sigma - <g, W>/sigma^2 * u v')
      """,
    source: "Miyato, Kataoka, Koyama, Yoshida, 2018, arXiv:1802.05957",
    parameters: [
      .integer("n_iter", 1, .atLeast(1), "power steps of a training pass"),
      .eps(1e-12, "least norm that is divided by", .above(0)), .number("target", 1, .above(0), "norm of the result"),
      .choice("mode", ["divide", "clip"], "always, or only where the norm is larger"),
      .integer("seed", 0, .atLeast(0), "of the draw of u"),
    ],
    inputs: [
      .variable("w", "rows, ...", "the weights that are trained"),
      .constant("g", "rows, ...", "gradient by the effective weights; 0 when left out", optional: true),
      .constant("u0", "rows", "u to start from in this pass, of any length", optional: true), .training,
      .result("effective", "rows, ...", "the weights that the layer uses"), .result("sigma", "", "the norm"),
      .result("u", "rows", "left singular vector"), .result("v", "...", "right singular vector"),
    ])
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("u", "rows"), Recollection("v", "...")] }
  private static let warmUp = 15
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], rows = x.sizes["rows"], n = x.sizes.samples, count = try area(rows, n), g = Upstream(x)
    try refuseNonFinite(w, count, "w")
    let u = try x.memory["u"], v = try x.memory["v"], space = Workspace()
    defer { space.close() }
    let power = Power(w: w, rows: rows, n: n, eps: h.eps, free: try space.room(max(rows, n), Double.self))
    var steps = x.trains ? h.integer("n_iter") : 0
    if let u0 = x.optional("u0") {
      try refuseNonFinite(u0, rows, "u0")
      let norm = Flat.norm(u0, rows)
      guard norm > 0 else { throw Failure(Status.range, "`u0` must not be zero") }
      for r in 0..<rows { u[r] = Double(u0[r]) / norm }
      power.right(u, v)
    } else if x.memory.passes == 0 {
      let key = Random.key(seed: UInt64(max(0, h.integer("seed"))), stream: 0, step: 0, tensor: 0)
      for r in 0..<rows { u[r] = Random.normal(key, r) }
      let norm = Flat.norm(u, rows)
      for r in 0..<rows { u[r] /= norm }
      steps += Self.warmUp
    }
    for _ in 0..<steps where power.right(u, v) { power.left(u, v) }

    let sigma = Rows.sum(rows, work: n) { u[$0] * power.row($0, v) }
    guard sigma.isFinite else {
      throw Failure(Status.nonfinite, "the norm of `w` is \(text(sigma)): its numbers are too large")
    }
    let divides = sigma != 0 && (h.is("mode", "divide") || sigma > h.target)
    let factor = divides ? h.target / sigma : 1
    let inner = Rows.sum(count, work: 2) { g[$0] * Double(w[$0]) }, along = divides ? inner / sigma : 0
    if let cache {
      let out = try cache.keep("effective", count, T.self), back = try cache.keep("w", count, T.self)
      _ = Rows.sum(rows, work: 4 * n) { r in
        for k in 0..<n {
          out[r * n + k] = T(factor * Double(w[r * n + k]))
          back[r * n + k] = T(factor * (g[r * n + k] - along * u[r] * v[k]))
        }
        return 0
      }
      try cache.keep("sigma", 1, T.self)[0] = T(sigma)
      try cache.keep("u", numbers: (0..<rows).map { u[$0] }, T.self)
      try cache.keep("v", numbers: (0..<n).map { v[$0] }, T.self)
    }
    return factor * inner
  }

  /// The halves of a power step.
  private struct Power<T: Real> {
    let w: UnsafePointer<T>, rows: Int, n: Int, eps: Double, free: UnsafeMutablePointer<Double>

    func row(_ r: Int, _ v: UnsafePointer<Double>) -> Double {
      let row = w + r * n
      var sum = 0.0
      for k in 0..<n { sum += Double(row[k]) * v[k] }
      return sum
    }
    /// u ← Wv, made a unit vector.
    func left(_ u: UnsafeMutablePointer<Double>, _ v: UnsafePointer<Double>) {
      _ = Rows.sum(rows, work: n) { r in
        free[r] = row(r, v)
        return 0
      }
      take(u, rows)
    }
    /// v ← Wᵀu, made a unit vector; false where it is 0. Columns side by side, each summed up in the order of rows.
    @discardableResult
    func right(_ u: UnsafePointer<Double>, _ v: UnsafeMutablePointer<Double>) -> Bool {
      let width = 64
      _ = Rows.sum(n / width + (n % width == 0 ? 0 : 1), work: rows * width) { part in
        let columns = (part * width)..<min(n, (part + 1) * width)
        for k in columns { free[k] = 0 }
        for r in 0..<rows { for k in columns { free[k] += Double(w[r * n + k]) * u[r] } }
        return 0
      }
      return take(v, n)
    }
    @discardableResult
    private func take(_ out: UnsafeMutablePointer<Double>, _ count: Int) -> Bool {
      let norm = Flat.norm(free, count)
      if norm == 0 { return false }
      for k in 0..<count { out[k] = free[k] / larger(norm, eps) }
      return true
    }
  }
}
