import Glibc
import ThalwegCore

/// The path-norm of a layered net: the sum over all paths of the products of their weights.
///
///     h₀ = 1     h_l = |W_l|^q h_{l−1} + |b_l|^q     value = λ·(Σ h_L)^(1/q)
///     gradient by one sweep back: with δ = ∂ log s/∂h_l, s = Σ h_L,
///     ∂W_l = value/q·(δ h_{l−1}ᵀ) ⊙ q|W_l|^(q−1)·sign(W_l), b_l likewise, and δ ← (|W_l|^q)ᵀδ
///
/// W_l is w1 … w16, of shape (outputs, inputs), as many as there are layers; biases b1 … b16 may be left out. h is
/// divided by its largest entry in every layer, so that deep nets do not overflow. Weights of 0 have gradient 0 for
/// q ≤ 1.
/// Errors   TW_ERROR_NEEDS where a layer is left out between others.
/// Differs  the authors' code takes the parts of a batch norm apart; whoever folds it into the matrix before has the
///          smaller norm. At most sixteen layers; graphs with more than a chain are the host's.
/// Source   Neyshabur, Tomioka and Srebro, 2015, arXiv:1503.00036; Gonon et al., 2024, arXiv:2310.01225.
struct PathNorm: Objective {
  private static let most = 16
  static let method = Method(
    "path_norm", .objective, "The path-norm of a layered net: the sum over all paths of the products of their weights.",
    rule: """
      h_0 = 1, h_l = |w_l|^q h_(l-1) + |b_l|^q;  value = weight*(sum h_L)^(1/q)
      gradient: one sweep back through the same layers
      """,
    source: "Neyshabur, Tomioka, Srebro, 2015, arXiv:1503.00036; Gonon et al., 2024, arXiv:2310.01225",
    parameters: [
      .number("q", 1, .above(0), "exponent"), .number("weight", 1e-6, .atLeast(0), "coefficient"),
    ],
    inputs: (1...most).flatMap { l -> [Input] in
      [
        .variable("w\(l)", "n\(l), n\(l - 1)", "weights of layer \(l)", optional: l > 1),
        .variable("b\(l)", "n\(l)", "biases of layer \(l)", optional: true),
      ]
    })

  let q, weight: Double
  init(_ h: Hyper) { (q, weight) = (h.q, h.weight) }

  private func power(_ x: Double) -> Double { q == 1 ? abs(x) : pow(abs(x), q) }
  private func slope(_ x: Double) -> Double {
    x == 0 ? 0 : signOf(x) * (q == 1 ? 1 : q * pow(abs(x), q - 1))
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    var depth = 1
    while depth < PathNorm.most, x.optional("w\(depth + 1)") != nil { depth += 1 }
    for l in (depth + 1)..<(PathNorm.most + 2) where x.optional("w\(l)") != nil || x.optional("b\(l)") != nil {
      throw Failure(Status.needs, "`w\(depth + 1)` is missing, but a tensor of layer \(l) is given")
    }
    // h of every layer over its largest entry; the logarithm of all these divisors so far
    var h = [[Double](repeating: 1, count: x.sizes["n0"])], tops: [Double] = [], logs = [0.0]
    for l in 1...depth {
      let w = try x["w\(l)"], b = x.optional("b\(l)"), m = x.sizes["n\(l)"], n = x.sizes["n\(l - 1)"]
      try Memory.ask(8 * m)
      let unit = exp(-logs[l - 1]), before = h[l - 1]
      var next = (0..<m).map { i in
        (0..<n).reduce(b.map { power(Double($0[i])) * unit } ?? 0) { $0 + power(Double(w[i * n + $1])) * before[$1] }
      }
      let top = next.max() ?? 0
      guard top.isFinite, next.allSatisfy({ !$0.isNaN }) else {
        try keepZeros(x, depth, cache)
        return top.isFinite || top.isNaN ? .nan : top
      }
      if top == 0 { tops.append(1) } else { tops.append(top) }
      for i in next.indices { next[i] /= tops[l - 1] }
      h.append(next)
      logs.append(logs[l - 1] + log(tops[l - 1]))
    }
    let total = h[depth].reduce(0, +)
    let value = total == 0 ? 0 : weight * exp((log(total) + logs[depth]) / q)
    guard let cache else { return value }
    try keepZeros(x, depth, cache)
    if total == 0 { return value }
    var delta = [Double](repeating: value / (q * total), count: h[depth].count)
    for l in (1...depth).reversed() {
      let w = try x["w\(l)"], m = x.sizes["n\(l)"], n = x.sizes["n\(l - 1)"], before = h[l - 1]
      for i in delta.indices { delta[i] /= tops[l - 1] }
      let g = try cache.keep("w\(l)", m * n, T.self)
      if let b = x.optional("b\(l)") {
        let gb = try cache.keep("b\(l)", m, T.self), unit = exp(-logs[l - 1])
        for i in 0..<m { gb[i] = T(delta[i] * unit * slope(Double(b[i]))) }
      }
      var back = [Double](repeating: 0, count: n)
      for i in 0..<m {
        for j in 0..<n {
          let a = Double(w[i * n + j])
          g[i * n + j] = T(delta[i] * before[j] * slope(a))
          back[j] += power(a) * delta[i]
        }
      }
      delta = back
    }
    return value
  }

  private func keepZeros<T: Real>(_ x: Inputs<T>, _ depth: Int, _ cache: Cache?) throws(Failure) {
    guard let cache else { return }
    for l in 1...depth {
      let m = x.sizes["n\(l)"]
      _ = try cache.keep("w\(l)", m * x.sizes["n\(l - 1)"], T.self)
      if x.optional("b\(l)") != nil { _ = try cache.keep("b\(l)", m, T.self) }
    }
  }
}
