import Glibc
import ThalwegCore

/// Equilibrium propagation: what steady states at several teaching strengths say about a neuron's error.
///
///     N = 1: (a(β) − a(0))/β;   else Re(1/N·Σ_t a_t·e^(−2πi·t/N))/β, a_t the state at the strength β·e^(2πi·t/N)
///
/// real (rows, n), and imag where the strengths are complex: one row a strength, t = 0, 1, ...; N rows, or N/2 + 1 of
/// them, the others being their conjugates. free (n,): the state without a nudge, for N = 1. The nudge adds β·∂L/∂u to
/// the vector field. value = ½·mean delta².
/// Errors   TW_ERROR_RANGE: N is odd and above 1; TW_ERROR_SHAPE: another number of rows.
/// Differs  activities that are NaN count as 0, as in the authors' code; the value is a diagnostic of the library.
/// Source   Laborieux and Zenke, 2023, arXiv:2309.02214; Scellier and Bengio, 2017, arXiv:1602.05179 (N = 1).
struct EPDelta: Objective {
  static let method = Method(
    "ep_delta", .objective, "What steady states at several teaching strengths say about every neuron's error.",
    rule: "delta = Re(1/N sum_t a_t exp(-2 pi i t/N))/beta, a_t at beta exp(2 pi i t/N);  N = 1: (a(beta) - a(0))/beta",
    source: "Laborieux, Zenke, 2023, arXiv:2309.02214",
    parameters: [
      .integer("N", 2, .within(1, 0x1p16), "teaching strengths: 1, 2, or even"),
      .number("beta", 0.1, .above(0), "their magnitude"),
    ],
    inputs: [
      .constant("real", "rows, n", "states, or their real parts"),
      .constant("imag", "rows, n", "imaginary parts; 0 when left out", optional: true),
      .constant("free", "n", "the state without a nudge, for N = 1", optional: true),
      .result("delta", "n", "errors of the neurons"),
    ],
    validate: { (h) throws(Failure) in
      let n = h.integer("N")
      guard n == 1 || n % 2 == 0 else { throw Failure(Status.range, "ep_delta: `N` must be 1 or even, got \(n)") }
    })
  let N: Int, beta: Double
  init(_ h: Hyper) { (N, beta) = (h.integer("N"), h.beta) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let rows = x.sizes["rows"], n = x.sizes["n"], real = try x["real"], imag = x.optional("imag")
    let half = rows != N
    guard rows == N || (N > 1 && rows == N / 2 + 1) else {
      throw Failure(Status.shape, "`real` must have \(N) rows\(N > 2 ? ", or \(N / 2 + 1)" : ""), got \(rows)")
    }
    guard N > 1 || x.optional("free") != nil else {
      throw Failure(Status.needs, "ep_delta: N = 1 needs `free`, the state without a nudge")
    }
    func clean(_ v: T) -> Double { v.isNaN ? 0 : Double(v) }
    var delta = [Double](repeating: 0, count: n)
    for t in 0..<rows {
      // a row that stands for its conjugate too counts twice
      let angle = 2 * Double.pi * Double(t) / Double(N), twice = half && t > 0 && 2 * t < N ? 2.0 : 1
      let (c, s) = (2 * t == N ? -1 : cos(angle), 2 * t == N || t == 0 ? 0 : sin(angle))
      for i in 0..<n {
        let b = imag.map { clean($0[t * n + i]) } ?? 0
        delta[i] += twice * (c * clean(real[t * n + i]) + s * b) / (Double(N) * beta)
      }
    }
    if N == 1, let free = x.optional("free") { for i in 0..<n { delta[i] -= clean(free[i]) / beta } }
    try cache?.keep("delta", numbers: delta, T.self)
    return delta.reduce(0) { $0 + $1 * $1 } / Double(2 * max(1, n))
  }
}

/// The gradient of a layer's weights from errors of its neurons and activities before it.
///
///     gradient = mean_b delta_b·pre_bᵀ;   value = ½·‖gradient‖²
///
/// delta (B, out), as ep_delta gives it; pre (B, in). The value is a diagnostic of the library.
/// Source   Laborieux and Zenke, 2023, arXiv:2309.02214.
struct EPWeightGrad: Objective {
  static let method = Method(
    "ep_weight_grad", .objective, "The gradient of a layer's weights from errors of its neurons.",
    rule: "gradient = mean_b delta_b pre_b';  value = |gradient|^2/2",
    source: "Laborieux, Zenke, 2023, arXiv:2309.02214",
    inputs: [
      .constant("delta", "B, out", "errors of the neurons"), .constant("pre", "B, in", "activities before the layer"),
      .result("gradient", "out, in", "gradient of the weights"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["B"], to = x.sizes["out"], from = x.sizes["in"], delta = try x["delta"], pre = try x["pre"]
    try Memory.ask(area(8, to, from))
    var g = [Double](repeating: 0, count: to * from)
    for b in 0..<n {
      for o in 0..<to {
        let d = Double(delta[b * to + o]) / Double(n)
        for i in 0..<from { g[o * from + i] += d * Double(pre[b * from + i]) }
      }
    }
    try cache?.keep("gradient", numbers: g, T.self)
    return g.reduce(0) { $0 + $1 * $1 } / 2
  }
}

/// How far a Jacobian is from being symmetric, from products with random vectors.
///
///     value = coefficient·mean over probes of (‖J·e‖² − e·J·J·e)/D, e ~ N(0, I):  ‖J − Jᵀ‖²/(2·D) in expectation
///
/// je, jje (probes, D): J·e and J·J·e at the free state; e (probes, D). The host differentiates through both products.
/// Source   Laborieux and Zenke, 2023, arXiv:2309.02214.
struct JacobianHomeostasis: Objective {
  static let method = Method(
    "jacobian_homeostasis", .objective,
    "How far a Jacobian is from being symmetric, from products with random vectors.",
    rule: "value = coefficient*mean (|J e|^2 - e.J J e)/D", source: "Laborieux, Zenke, 2023, arXiv:2309.02214",
    parameters: [.number("coefficient", 1, .atLeast(0), "weight of the term")],
    inputs: [
      .variable("je", "probes, D", "J e"), .variable("jje", "probes, D", "J J e"),
      .constant("e", "probes, D", "normal draws"),
    ])
  let coefficient: Double
  init(_ h: Hyper) { coefficient = h.coefficient }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let je = try x["je"], jje = try x["jje"], e = try x["e"], n = x.sizes["probes"] * x.sizes["D"]
    let up = try cache?.keep("je", n, T.self), down = try cache?.keep("jje", n, T.self)
    let scale = coefficient / Double(max(1, n))
    return Rows.sum(n, work: 6) { i in
      let a = Double(je[i]), b = Double(e[i])
      up?[i] = T(2 * scale * a)
      down?[i] = T(-scale * b)
      return scale * (a * a - b * Double(jje[i]))
    }
  }
}

/// SPSA for a picture: every element's difference is given to the parameters that contributed to it.
///
///     d_p = L⁺_p − L⁻_p;   for every parameter j that contributed to element p:
///     sum_j += d_p·s_j/(2·eps_j), count_j += 1
///     gradient = sum/max(count, 1) (mean), or sum;   value = Σ_p (L⁺_p + L⁻_p)/2
///
/// plus, minus (P,): losses of the elements at x + eps·s and x − eps·s; signs (J,); contributors (P, k): parameters of
/// each element, −1 where there are fewer than k. Where they differ between the two sides the host gives the union.
/// eps_j is `lengths` (J,) where given. With `repetitions` above 1 sums go on for so many passes.
/// State    sums and counts of the parameters.
/// Errors   TW_ERROR_RANGE: a contributor that is no parameter.
/// Source   Deliot, Heitz and Belcour, 2024, arXiv:2404.09758.
struct LocalSPSA: Objective {
  static let method = Method(
    "local_spsa", .objective, "SPSA for a picture: every element's difference is given to those who contributed to it.",
    rule: """
      d_p = L+_p - L-_p;  for all j that contributed to p: sum_j += d_p s_j/(2 eps_j), count_j += 1
      gradient = sum/max(count, 1) (mean), or sum
      """,
    source: "Deliot, Heitz, Belcour, 2024, arXiv:2404.09758",
    parameters: [
      .number("eps", 0.01, .above(0), "length of the perturbation"),
      .choice("reduce", ["mean", "sum"], "over the elements of a parameter"),
      .integer("repetitions", 1, .atLeast(1), "passes that are added up"),
    ],
    inputs: [
      .constant("plus", "P", "losses of the elements at x + eps s"), .constant("minus", "P", "at x - eps s"),
      .constant("signs", "J", "the random signs s"), .integer("contributors", "P, k", "their parameters; -1: none"),
      .constant("lengths", "J", "eps of every parameter", optional: true),
      .result("gradient", "J", "the estimate so far"), .result("count", "J", "contributions so far"),
    ])
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("sums", "J"), Recollection("counts", "J")] }
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let plus = try x["plus"], minus = try x["minus"], signs = try x["signs"], lengths = x.optional("lengths")
    let list = try x.integers("contributors"), P = x.sizes["P"], J = x.sizes["J"], k = x.sizes["k"]
    for i in 0..<(P * k) where list[i] < -1 || list[i] >= J {
      throw Failure(Status.range, "`contributors` must hold -1 to \(J - 1), got \(list[i]) at element \(i)")
    }
    try refuseNonFinite(plus, P, "plus")
    try refuseNonFinite(minus, P, "minus")
    let sums = try x.memory["sums"], counts = try x.memory["counts"]
    if x.memory.passes % max(1, h.integer("repetitions")) == 0 { for j in 0..<J { (sums[j], counts[j]) = (0, 0) } }
    var value = 0.0
    for p in 0..<P {
      let d = Double(plus[p]) - Double(minus[p])
      value += (Double(plus[p]) + Double(minus[p])) / 2
      for j in (0..<k).map({ list[p * k + $0] }) where j >= 0 {
        sums[j] += d * Double(signs[j]) / (2 * (lengths.map { Double($0[j]) } ?? h.eps))
        counts[j] += 1
      }
    }
    let mean = h.is("reduce", "mean")
    try cache?.keep("gradient", numbers: (0..<J).map { sums[$0] / (mean ? max(counts[$0], 1) : 1) }, T.self)
    try cache?.keep("count", numbers: (0..<J).map { counts[$0] }, T.self)
    return value
  }
}
