import ThalwegCore

/// Training a two-layer ReLU network as a convex problem over its activation patterns.
///
///     prediction = Σ_i D_i·X·(v_i − w_i), D_i the diagonal of pattern i
///     value = ½‖prediction − y‖² + beta·Σ_i (‖v_i‖ + ‖w_i‖);   0 has the subgradient 0
///     feasible where (2·D_i − I)·X·v_i ≥ 0 and the same of w_i:  `violation` is the farthest below 0
///
/// x (n, d), y (n,), patterns (P, n) of zeros and ones; v, w (P, d).
/// Errors   TW_ERROR_RANGE: a pattern that holds other numbers.
/// Source   Pilanci and Ergen, 2020, arXiv:2002.10553; Bai, Gautam and Sojoudi, 2022, arXiv:2201.01965.
struct ConvexReLUObjective: Objective {
  static let method = Method(
    "convex_relu_objective", .objective, "The convex problem of a two-layer ReLU network over its activation patterns.",
    rule: """
      prediction = sum_i D_i X (v_i - w_i);  value = |prediction - y|^2/2 + beta*sum_i (|v_i| + |w_i|)
      feasible: (2 D_i - I) X v_i >= 0 and (2 D_i - I) X w_i >= 0
      """,
    source: "Bai, Gautam, Sojoudi, 2022, arXiv:2201.01965",
    parameters: [.number("beta", 1e-3, .atLeast(0), "weight of the norms")],
    inputs: [
      .variable("v", "P, d", "weights of neurons that count up"),
      .variable("w", "P, d", "of those that count down"),
      .constant("x", "n, d", "inputs"), .constant("y", "n", "targets"),
      .constant("patterns", "P, n", "1 where a neuron is active, else 0"),
      .result("prediction", "n", "what the network says"),
      .result("violation", "", "how far the farthest constraint is below 0"),
    ])
  let beta: Double
  init(_ h: Hyper) { beta = h.beta }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let X = try x["x"], y = try x["y"], D = try x["patterns"], v = try x["v"], w = try x["w"]
    let n = x.sizes["n"], d = x.sizes["d"], P = x.sizes["P"]
    for i in 0..<(P * n) where D[i] != 0 && D[i] != 1 {
      throw Failure(Status.range, "`patterns` must hold 0 and 1, got \(D[i]) at element \(i)")
    }
    var residual = [Double](repeating: 0, count: n), worst = 0.0, norms = 0.0
    for i in 0..<P {
      for j in 0..<n {
        let up = Flat.dot(X + j * d, v + i * d, d), down = Flat.dot(X + j * d, w + i * d, d)
        let sign: Double = D[i * n + j] == 1 ? 1 : -1
        worst = max(worst, -sign * up, -sign * down)
        if sign > 0 { residual[j] += up - down }
      }
      norms += Flat.norm(v + i * d, d) + Flat.norm(w + i * d, d)
    }
    try cache?.keep("prediction", numbers: residual, T.self)
    try cache?.keep("violation", numbers: [worst], T.self)
    for j in 0..<n { residual[j] -= Double(y[j]) }
    if let cache {
      for (name, p, sign) in [("v", v, 1.0), ("w", w, -1.0)] {
        let g = try cache.keep(name, P * d, T.self)
        for i in 0..<P {
          let norm = Flat.norm(p + i * d, d), pull = norm > 0 ? beta / norm : 0
          var row = (0..<d).map { pull * Double(p[i * d + $0]) }
          for j in 0..<n where D[i * n + j] == 1 {
            for k in 0..<d { row[k] += sign * residual[j] * Double(X[j * d + k]) }
          }
          for k in 0..<d { g[i * d + k] = T(row[k]) }
        }
      }
    }
    return residual.reduce(0) { $0 + $1 * $1 } / 2 + beta * norms
  }
}

/// The two-layer ReLU network of a point of its convex problem.
///
///     neuron of v_i: first layer v_i/√‖v_i‖, second +√‖v_i‖;   of w_i: w_i/√‖w_i‖, −√‖w_i‖;   of 0: zeros
///     value = beta·Σ(‖v_i‖ + ‖w_i‖) = beta/2·(‖first‖² + ‖second‖²), what weight decay costs the network
///
/// v, w (P, d) → first (2, P, d), second (2, P).
/// Source   Pilanci and Ergen, 2020, arXiv:2002.10553; Bai, Gautam and Sojoudi, 2022, arXiv:2201.01965.
struct ConvexReLUToNetwork: Objective {
  static let method = Method(
    "convex_relu_to_network", .objective, "The two-layer ReLU network of a point of its convex problem.",
    rule: "first = v/sqrt|v|, second = sqrt|v|;  first = w/sqrt|w|, second = -sqrt|w|;  value = beta*sum (|v| + |w|)",
    source: "Bai, Gautam, Sojoudi, 2022, arXiv:2201.01965",
    parameters: [.number("beta", 1e-3, .atLeast(0), "weight of the norms")],
    inputs: [
      .variable("v", "P, d", "weights of neurons that count up"),
      .variable("w", "P, d", "of those that count down"), .result("first", "2, P, d", "first layer"),
      .result("second", "2, P", "second layer"),
    ])
  let beta: Double
  init(_ h: Hyper) { beta = h.beta }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let v = try x["v"], w = try x["w"], d = x.sizes["d"], P = x.sizes["P"]
    let first = try cache?.keep("first", 2 * P * d, T.self), second = try cache?.keep("second", 2 * P, T.self)
    var value = 0.0
    for (side, (name, p)) in [("v", v), ("w", w)].enumerated() {
      let g = try cache?.keep(name, P * d, T.self)
      for i in 0..<P {
        let norm = Flat.norm(p + i * d, d), root = norm.squareRoot()
        value += beta * norm
        second?[side * P + i] = T(side == 0 ? root : -root)
        for k in 0..<d {
          let a = Double(p[i * d + k])
          first?[(side * P + i) * d + k] = T(norm > 0 ? a / root : 0)
          g?[i * d + k] = T(norm > 0 ? beta * (a / norm) : 0)
        }
      }
    }
    return value
  }
}
