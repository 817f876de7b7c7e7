import Glibc
import ThalwegCore

/// The loss of one block of NoProp: how far its prediction is from the label's embedding.
///
///     value = weight·mean_b ‖û − u‖²  + mean_b ½·(ᾱ₀·‖u‖² − d·ᾱ₀ − d·log(1 − ᾱ₀))  with alpha_bar0 above 0
///
/// prediction û, target u (B, d). weight is η·T/2·(SNR_t − SNR_{t−1}), as noprop_schedule(of=loss) gives it; the second
/// term, the divergence of the first noise, and the cross entropy at the end belong to the whole network.
/// Differs  nothing from the paper's discrete time.
/// Source   Li, Teh and Pascanu, 2025, arXiv:2503.24322.
struct NoPropLoss: Objective {
  static let method = Method(
    "noprop_loss", .objective, "The loss of one block of NoProp, and the divergence of its first noise.",
    rule: """
      value = weight*mean |u_hat - u|^2 + mean (abar0*|u|^2 - d*abar0 - d*log(1 - abar0))/2
      """,
    source: "Li, Teh, Pascanu, 2025, arXiv:2503.24322",
    parameters: [
      .number("weight", 1, .atLeast(0), "eta*T/2 times the growth of the signal-to-noise ratio"),
      .number("alpha_bar0", 0, .between(0, 1, lowOpen: false, highOpen: true), "signal at t = 0; 0: no divergence"),
    ],
    inputs: [
      .variable("prediction", "B, d", "the block's predictions"), .variable("target", "B, d", "label embeddings"),
    ])
  let weight, signal: Double
  init(_ h: Hyper) { (weight, signal) = (h.weight, h.alpha_bar0) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let p = try x["prediction"], u = try x["target"], n = x.sizes["B"], d = x.sizes["d"], share = 1 / Double(n)
    let gp = try cache?.keep("prediction", n * d, T.self), gu = try cache?.keep("target", n * d, T.self)
    let constant = signal > 0 ? -Double(d) / 2 * (signal + log1p(-signal)) : 0
    return constant
      + Rows.sum(n * d, work: 6) { i in
        let c = Double(p[i]) - Double(u[i]), v = Double(u[i])
        gp?[i] = T(2 * weight * share * c)
        gu?[i] = T(share * (signal * v - 2 * weight * c))
        return share * (weight * c * c + signal / 2 * v * v)
      }
  }
}

/// Node perturbation: a gradient from the change of the loss under noise on a layer's units.
///
///     gradient = mean_b (change_b/sigma²)·noise_b·activityᵀ_b;   value = mean_b (change_b/sigma)²
///
/// change (B,): loss with noise less loss without; noise (B, out); activity (B, in) before the layer.
/// Differs  the value is a diagnostic of the library: the mean squared derivative that was seen.
/// Source   Williams, 1992; Werfel, Xie and Seung, 2003.
struct NodePerturbation: Objective {
  static let method = Method(
    "node_perturbation", .objective, "A gradient from the change of the loss under noise on a layer's units.",
    rule: "gradient = mean_b (change_b/sigma^2) noise_b activity_b';  value = mean_b (change_b/sigma)^2",
    source: "Williams, 1992; Werfel, Xie, Seung, 2003",
    parameters: [.number("sigma", nil, .above(0), "standard deviation of the noise")],
    inputs: [
      .constant("change", "B", "change of each sample's loss"), .constant("noise", "B, out", "noise on the units"),
      .constant("activity", "B, in", "activity before the layer"),
      .result("gradient", "out, in", "estimate of the weights' gradient"),
    ])
  let sigma: Double
  init(_ h: Hyper) { sigma = h.sigma }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let change = try x["change"], noise = try x["noise"], activity = try x["activity"]
    let n = x.sizes["B"], to = x.sizes["out"], from = x.sizes["in"]
    var value = 0.0
    for b in 0..<n { value += Double(change[b]) * Double(change[b]) / (sigma * sigma * Double(n)) }
    guard let g = try cache?.keep("gradient", to * from, T.self) else { return value }
    for o in 0..<to {
      for i in 0..<from {
        var sum = 0.0
        for b in 0..<n { sum += Double(change[b]) * Double(noise[b * to + o]) * Double(activity[b * from + i]) }
        g[o * from + i] = T(sum / (sigma * sigma * Double(n)))
      }
    }
    return value
  }
}

/// The dual bound of a linear program with bounded variables, of a predicted dual point: minus it is a loss.
///
///     min c·x, A·x ≥ b, low ≤ x ≤ high:   y ≥ 0,  r = c − Aᵀ·y;   bound = b·y + low·r⁺ − high·r⁻;   value = −bound
///     ∂value/∂y = A·x − b,  x = low where r > 0, else high
///
/// y (m,), A (m, n). The host keeps y from 0 on (softplus). A bound that is infinite counts where its r is not 0.
/// Differs  r = 0 takes the upper vertex.
/// Source   Tanneau and Van Hentenryck, 2024, arXiv:2402.03086.
struct DualCompletionBounds: Objective {
  static let method = Method(
    "dual_completion_bounds", .objective, "Minus the dual bound of a linear program with bounded variables.",
    rule: "r = c - A'y;  bound = b.y + low.max(r, 0) - high.max(-r, 0);  value = -bound",
    source: "Tanneau, Van Hentenryck, 2024, arXiv:2402.03086",
    inputs: [
      .variable("y", "m", "dual variables of A x >= b"), .constant("a", "m, n", "constraints"),
      .constant("b", "m", "their right side"), .constant("c", "n", "cost"), .constant("low", "n", "lower bounds of x"),
      .constant("high", "n", "upper bounds of x"), .result("x", "n", "the vertex that the bound stands on"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let y = try x["y"], A = try x["a"], b = try x["b"], c = try x["c"], low = try x["low"], high = try x["high"]
    let m = x.sizes["m"], n = x.sizes["n"]
    var bound = 0.0, vertex = [Double](repeating: 0, count: n)
    for i in 0..<m { bound += Double(b[i]) * Double(y[i]) }
    for j in 0..<n {
      var r = Double(c[j])
      for i in 0..<m { r -= Double(A[i * n + j]) * Double(y[i]) }
      vertex[j] = Double(r > 0 ? low[j] : high[j])
      if r != 0 { bound += vertex[j] * r }
    }
    if let cache {
      try cache.keep("x", numbers: vertex, T.self)
      try cache.keep(
        "y", numbers: (0..<m).map { i in (0..<n).reduce(-Double(b[i])) { $0 + Double(A[i * n + $1]) * vertex[$1] } },
        T.self)
    }
    return -bound
  }
}

/// The dual bound of production planning with a quadratic resource: minus it is a loss.
///
///     min Σ d_i·x_i + e_i/x_i, r·x ≤ b:   y ≤ 0,  π = d − r·y;   bound = b·y + 2·Σ √(π_i·e_i);   value = −bound
///
/// y (): the host keeps it at most 0. d, e, r (n,).
/// Errors   TW_ERROR_RANGE: some π or e is negative.
/// Differs  written out as −√2·Σσ with σ = −√(2πτ), τ = e, in the paper.
/// Source   Tanneau and Van Hentenryck, 2024, arXiv:2402.03086.
struct DualCompletionRSOC: Objective {
  static let method = Method(
    "dual_completion_rsoc", .objective, "Minus the dual bound of production planning with a rotated cone.",
    rule: "pi = d - r y;  bound = b y + 2 sum sqrt(pi e);  value = -bound",
    source: "Tanneau, Van Hentenryck, 2024, arXiv:2402.03086",
    inputs: [
      .variable("y", "", "dual variable of r x <= b"), .constant("d", "n", "holding costs"),
      .constant("e", "n", "order costs"), .constant("r", "n", "resource of each product"),
      .constant("b", "", "resource there is"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let y = Double(try x["y"][0]), b = Double(try x["b"][0]), d = try x["d"], e = try x["e"], r = try x["r"]
    var bound = b * y, slope = b
    for i in 0..<x.sizes["n"] {
      let price = Double(d[i]) - Double(r[i]) * y, tau = Double(e[i])
      guard price >= 0, tau >= 0 else {
        throw Failure(
          Status.range, "`d` - `r` y and `e` must be at least 0, got \(text(price)) and \(text(tau)) at \(i)")
      }
      let root = (price * tau).squareRoot()
      bound += 2 * root
      slope -= root > 0 ? Double(r[i]) * tau / root : 0
    }
    try cache?.keep("y", numbers: [-slope], T.self)
    return -bound
  }
}
