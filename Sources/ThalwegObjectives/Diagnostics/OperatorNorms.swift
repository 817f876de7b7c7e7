import Glibc
import ThalwegCore

/// Induced norms of a weight matrix, between norms that do not grow with the width.
///
///     input_1_to_rms      the longest column over √out
///     hidden_rms_to_rms   √(in/out)·σ_max
///     output_rms_to_inf   √in times the longest row
///
/// w is (out, in); an embedding that is stored as (vocabulary, width) must be transposed for the norm of an input
/// layer. The value, and `norm`, is that of `kind`; all three come back. NaN stays.
/// Source   Filatov et al., 2025, arXiv:2510.03871; Yang, Simon, Bernstein, 2023, arXiv:2310.17813.
struct OperatorNorms: Objective {
  static let method = Method(
    "operator_norms", .diagnostic, "Induced norms of a weight matrix, between norms that do not grow with the width.",
    rule: """
      input_1_to_rms = max column norm/sqrt(out);  hidden_rms_to_rms = sqrt(in/out)*largest singular value
      output_rms_to_inf = sqrt(in)*max row norm
      """,
    source: "Filatov et al., 2025, arXiv:2510.03871; Yang, Simon, Bernstein, 2023, arXiv:2310.17813",
    parameters: [
      .choice("kind", ["input_1_to_rms", "hidden_rms_to_rms", "output_rms_to_inf"], "which one `norm` is")
    ],
    inputs: [
      .constant("w", "out, in", "the matrix"), .result("norm", "", "that of `kind`"),
      .result("input_1_to_rms", "", "longest column over sqrt(out)"),
      .result("hidden_rms_to_rms", "", "sqrt(in/out) times the largest singular value"),
      .result("output_rms_to_inf", "", "sqrt(in) times the longest row"),
    ])
  let kind: Int
  init(_ h: Hyper) { kind = h.integer("kind") }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], m = x.sizes["out"], n = x.sizes["in"], shape = Shape(dimensions: [m, n])
    var norms = [Double.nan, .nan, .nan]
    if Flat.isFinite(w, m * n) {
      try LinearAlgebra.require()
      let columns = try Slices.columns(shape).norms(w).max() ?? 0, rows = try Slices.rows(shape).norms(w).max() ?? 0
      let top = try LinearAlgebra.SVD(w, m, n).s.first ?? 0
      norms = [
        columns / Double(m).squareRoot(), (Double(n) / Double(m)).squareRoot() * top, Double(n).squareRoot() * rows,
      ]
    }
    for (name, value) in zip(["input_1_to_rms", "hidden_rms_to_rms", "output_rms_to_inf"], norms) {
      try cache?.keep(name, 1, T.self)[0] = T(value)
    }
    let norm = norms[min(max(kind, 0), 2)]
    try cache?.keep("norm", 1, T.self)[0] = T(norm)
    return norm
  }
}

/// How sharp the loss is along an update, over all its elements.
///
///     sharpness = ⟨u, H·u⟩/‖u‖²,  0 for u = 0;   slope = ⟨u, g⟩
///
/// With them a step of length lr changes the loss by lr·slope + ½·lr²·⟨u, H·u⟩, to second order. The host gives H·u.
/// Source   Pan, Li, 2023, arXiv:2306.00204.
struct DirectionalSharpness: Objective {
  static let method = Method(
    "directional_sharpness", .diagnostic, "How sharp the loss is along an update.",
    rule: "sharpness = <u, H u>/|u|^2, 0 for u = 0;  curvature = <u, H u>;  slope = <u, g>",
    source: "Pan, Li, 2023, arXiv:2306.00204",
    inputs: [
      .constant("u", "...", "the update"), .constant("hu", "...", "the Hessian times it"),
      .constant("g", "...", "the gradient", optional: true), .result("sharpness", "", "<u, H u>/|u|^2"),
      .result("curvature", "", "<u, H u>"), .result("slope", "", "<u, g>, 0 without g"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let u = try x["u"], n = x.sizes.samples
    let curvature = Flat.dot(u, try x["hu"], n), norm = Flat.norm(u, n)
    try cache?.keep("curvature", 1, T.self)[0] = T(curvature)
    try cache?.keep("slope", 1, T.self)[0] = T(x.optional("g").map { Flat.dot(u, $0, n) } ?? 0)
    let sharpness = norm == 0 ? 0 : curvature / norm / norm
    try cache?.keep("sharpness", 1, T.self)[0] = T(sharpness)
    return sharpness
  }
}

/// What discrete steps add to the flow of a game of two players, and a player's gradient without it.
///
///     drift = c_self·(H·g) + c_interaction·(∂/∂θ of ⟨the other's gradient, itself held constant⟩)
///     simultaneous: both lr/2;   alternating, first player: lr₁/(2·n₁) and lr₁/2
///     alternating, second player: lr₂/(2·n₂) and −(lr₂/2)·(2·lr₁/lr₂ − 1)
///     corrected = g − the cancelled terms
///
/// The inputs are those of the player whose step is corrected; a term that is left out counts as 0, and need not be
/// made where its coefficient is 0 or where it is not cancelled and not wanted. The value is ‖drift‖.
/// Differs  the coefficients are those of the authors' code; the sign of "cancel" subtracts the drift (UNVERIFIED).
/// Source   Rosca, Wu, Dherin, Barrett, 2021, arXiv:2105.13922.
struct GameDrift: Objective {
  static let method = Method(
    "game_drift", .diagnostic,
    "What discrete steps add to the flow of a game of two players, and a gradient without it.",
    rule: """
      drift = c_self*self + c_interaction*interaction;  corrected = g - the cancelled terms
      simultaneous: lr/2, lr/2;  alternating: lr1/(2 n1), lr1/2;  lr2/(2 n2), -(lr2/2)*(2 lr1/lr2 - 1)
      """,
    source: "Rosca, Wu, Dherin, Barrett, 2021, arXiv:2105.13922",
    parameters: [
      .number("lr_first", nil, .above(0), "step size of the first player"),
      .number("lr_second", nil, .above(0), "step size of the second player"),
      .choice("player", ["first", "second"], "whose gradient it is"),
      .flag("alternating", false, "the second player sees the first one's step"),
      .integer("n_first", 1, .atLeast(1), "steps of the first player in a turn"),
      .integer("n_second", 1, .atLeast(1), "steps of the second player in a turn"),
      .flag("cancel_self", false, "take the self term out"),
      .flag("cancel_interaction", true, "take the interaction term out"),
    ],
    inputs: [
      .constant("g", "...", "the player's gradient"),
      .constant("self_term", "...", "its Hessian times its gradient", optional: true),
      .constant("interaction", "...", "gradient of <the other's gradient, itself held constant>", optional: true),
      .result("corrected", "...", "g without the cancelled terms"), .result("drift", "...", "both terms"),
      .result("c_self", "", "coefficient of the self term"),
      .result("c_interaction", "", "coefficient of the interaction term"),
    ])
  let cSelf: Double, cInteraction: Double, cancelSelf: Bool, cancelInteraction: Bool
  init(_ h: Hyper) {
    let first: Double = h.lr_first, second: Double = h.lr_second
    let own = h.is("player", "first") ? first : second
    if !h.alternating {
      (cSelf, cInteraction) = (own / 2, own / 2)
    } else if h.is("player", "first") {
      (cSelf, cInteraction) = (first / (2 * h.n_first), first / 2)
    } else {
      (cSelf, cInteraction) = (second / (2 * h.n_second), -(second / 2) * (2 * first / second - 1))
    }
    (cancelSelf, cancelInteraction) = (h.cancel_self, h.cancel_interaction)
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let g = try x["g"], n = x.sizes.samples, own = x.optional("self_term"), other = x.optional("interaction")
    let drift = try cache?.keep("drift", n, T.self), corrected = try cache?.keep("corrected", n, T.self)
    var square = 0.0
    for i in 0..<n {
      let a = own.map { cSelf * Double($0[i]) } ?? 0, b = other.map { cInteraction * Double($0[i]) } ?? 0
      square += (a + b) * (a + b)
      drift?[i] = T(a + b)
      corrected?[i] = T(Double(g[i]) - (cancelSelf ? a : 0) - (cancelInteraction ? b : 0))
    }
    try cache?.keep("c_self", 1, T.self)[0] = T(cSelf)
    try cache?.keep("c_interaction", 1, T.self)[0] = T(cInteraction)
    return square.squareRoot()
  }
}

/// QK-Clip: scales the rows of query and key weights, head by head, where the largest logit of a head is above τ.
///
///     γ_h = τ/max(S_h, τ);   query rows of head h ·γ^α, key rows ·γ^(1−α);  query_rotary ·γ;  key_rotary stays
///     fewer key heads: κ_g = the largest γ_h^(1−α) of the group;  key rows ·κ_g, query rows ·γ_h/κ_g
///
/// w (rows, width) is the weight of one projection, or its bias as a column, rows its heads one after the other;
/// logits (heads,) the largest logit of every query head before the softmax, over the whole batch. `clipped` takes the
/// place of w after the step. The value, `count`, is the number of heads that were clipped.
/// Errors   TW_ERROR_SHAPE unless the heads divide the rows, and key_heads the heads.
/// Differs  a logit that is NaN or +∞ leaves its head alone: a factor of 0 would erase it; `unknown` counts them.
///          Grouped keys and biases are UNVERIFIED.
/// Source   Kimi team, 2025, arXiv:2507.20534.
struct QKClip: Objective {
  static let method = Method(
    "qk_clip", .diagnostic, "Scales query and key weights, head by head, where the largest logit is above a threshold.",
    rule: """
      gamma_h = tau/max(S_h, tau);  query rows of head h times gamma^alpha, key rows times gamma^(1 - alpha)
      query_rotary times gamma, key_rotary stays; grouped keys: the largest gamma^(1 - alpha) of a group, query the rest
      """,
    source: "Kimi team, 2025, arXiv:2507.20534",
    parameters: [
      .number("tau", 100, .above(0), "threshold"), .number("alpha", 0.5, .within(0, 1), "share of the query"),
      .choice("role", ["query", "key", "query_rotary", "key_rotary"], "what w is"),
      .maybeInteger("key_heads", .atLeast(1), "heads of the keys; none: those of the queries"),
    ],
    inputs: [
      .constant("w", "rows, width", "weight of a projection, or its bias as a column"),
      .constant("logits", "heads", "largest logit of every query head"), .result("clipped", "rows, width", "the new w"),
      .result("factors", "heads", "gamma of every head"), .result("count", "", "heads that were clipped"),
      .result("unknown", "", "heads whose logit is NaN or infinite"),
    ])
  let tau: Double, alpha: Double, role: Int, keyHeads: Int?
  init(_ h: Hyper) {
    (tau, alpha, role) = (h.tau, h.alpha, h.integer("role"))
    keyHeads = h.has("key_heads") ? h.integer("key_heads") : nil
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], s = try x["logits"], heads = x.sizes["heads"], rows = x.sizes["rows"], rest = x.sizes["width"]
    let keys = keyHeads ?? heads, own = role == 1 || role == 3 ? keys : heads
    guard heads % keys == 0 else {
      throw Failure(Status.shape, "qk_clip: `key_heads` \(keys) does not divide the \(heads) heads of `logits`")
    }
    guard rows % own == 0 else {
      throw Failure(Status.shape, "qk_clip: \(own) heads do not divide the \(rows) rows of `w`")
    }
    var unknown = 0
    let gamma = (0..<heads).map { h -> Double in
      let logit = Double(s[h])
      if logit.isNaN || logit == .infinity {
        unknown += 1
        return 1.0
      }
      return tau / max(logit, tau)
    }
    let group = heads / keys
    let kappa = (0..<keys).map { g -> Double in
      (0..<group).reduce(0) { max($0, pow(gamma[g * group + $1], 1 - alpha)) }
    }
    let factors = (0..<own).map { h -> Double in
      switch role {
      case 0: return group == 1 ? pow(gamma[h], alpha) : gamma[h] / kappa[h / group]
      case 1: return kappa[h]
      case 2: return gamma[h]
      default: return 1
      }
    }
    if let out = try cache?.keep("clipped", rows * rest, T.self) {
      let block = rows / own * rest
      for h in 0..<own {
        for i in (h * block)..<((h + 1) * block) { out[i] = factors[h] == 1 ? w[i] : w[i] * T(factors[h]) }
      }
    }
    if let out = try cache?.keep("factors", heads, T.self) { for h in 0..<heads { out[h] = T(gamma[h]) } }
    try cache?.keep("unknown", 1, T.self)[0] = T(unknown)
    let count = gamma.count { $0 < 1 }
    try cache?.keep("count", 1, T.self)[0] = T(count)
    return Double(count)
  }
}
