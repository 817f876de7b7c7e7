import ThalwegCore

/// The global minimiser of a quadratic with a cubic penalty, of a small dense Hessian.
///
///     minimise g·h + ½·hᵀ·H·h + M/6·|h|³
///     H = V·diag w·Vᵀ, c = Vᵀ·g;  r ≥ max(0, −2·w_min/M) with r = |(w + M·r/2)⁻¹·c|;  h = −V·c/(w + M·r/2)
///
/// Hard case (w_min < 0, c has no part in the lowest eigenspace, |h| < r at the bound): τ·v_min is added, τ = √(r² −
/// |h|²), with the entry of v_min that is largest in magnitude positive. H is taken symmetric: its upper triangle
/// counts with its lower.
/// Errors   TW_ERROR_NONFINITE: g or H.
/// Ends     converged.
/// Differs  eigenvalues come from a singular value decomposition of H + |H|·I: exact to a rounding of the norm of H.
/// Source   Nesterov, Polyak, 2006.
struct CubicSubproblem: Driver {
  static let method = Method.solver(
    "cubic_subproblem", "The global minimiser of a quadratic with a cubic penalty.",
    rule: """
      minimise g.h + h'H h/2 + M/6 |h|^3;  H = V diag w V', c = V'g
      r = |c/(w + M r/2)|, r >= max(0, -2 w_min/M);  h = -V c/(w + M r/2)
      """,
    source: "Nesterov, Polyak, 2006",
    parameters: [
      .number("cubic", nil, .above(0), "M"), .number("tol", 1e-12, .above(0), "relative width of the bracket of r"),
    ],
    inputs: [
      .constant("g", "n", "gradient"), .constant("hessian", "n, n", "symmetric"), .result("step", "n", "h"),
      .result("length", "", "r"), .result("value", "", "the model there"), .result("hard", "", "1 in the hard case"),
    ], kept: [.kept("shifted", "n, n", "the Hessian with a multiple of the identity")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let g = try io["g"], hessian = try io["hessian"], a = try io["shifted"], step = try io["step"], n = g.count
    guard g.isFinite, hessian.isFinite else {
      throw Failure(Status.nonfinite, "`g` and `hessian` must be finite")
    }
    let shift = hessian.norm, half = h.cubic / 2
    try Memory.ask(8 * 4 * n)
    for i in 0..<n {
      for j in 0..<n {
        let x = (Double(hessian.p[i * n + j]) + Double(hessian.p[j * n + i])) / 2
        a.p[i * n + j] = T(x + (i == j ? shift : 0))
      }
    }
    let s = try LinearAlgebra.SVD(a.p, n, n)
    let w = s.s.map { $0 - shift }
    var c = [Double](repeating: 0, count: n)
    for i in 0..<n { for k in 0..<n { c[k] += s.u[i * n + k] * Double(g.p[i]) } }
    let lowest = w[n - 1], near = 64 * 0x1p-52 * max(shift, 1e-300), size = g.norm
    func length(_ r: Double, besides: Bool = false) -> Double {
      var sum = 0.0
      for k in 0..<n where c[k] != 0 && !(besides && w[k] - lowest <= near) {
        let x = c[k] / (w[k] + half * r)
        sum += x * x
      }
      return sum.squareRoot()
    }
    let bound = max(0, -lowest / half)
    // what lies along the lowest eigenvectors, to rounding
    var along = 0.0
    for k in 0..<n where w[k] - lowest <= near { along += c[k] * c[k] }
    let hard = lowest < -near && along.squareRoot() <= 16 * 0x1p-52 * size && length(bound, besides: true) < bound
    var r = bound
    if !hard, size > 0 {
      var low = bound, high = max(bound, (size / half).squareRoot(), 1e-300)
      while length(high) > high { high *= 2 }
      while high - low > h.tol * high {
        let middle = low + (high - low) / 2
        if middle <= low || middle >= high { break }
        if length(middle) > middle { low = middle } else { high = middle }
      }
      r = high
    }
    step.fill(0)
    var parts = [Double](repeating: 0, count: n)
    for k in 0..<n {
      let divisor = w[k] + half * r
      parts[k] = (hard && w[k] - lowest <= near) || c[k] == 0 || divisor == 0 ? 0 : -c[k] / divisor
    }
    if hard {
      var rest = 0.0
      for x in parts { rest += x * x }
      parts[n - 1] = max(0, r * r - rest).squareRoot()
    }
    for i in 0..<n {
      var sum = 0.0
      for k in 0..<n { sum += s.u[i * n + k] * parts[k] }
      step.p[i] = T(sum)
    }
    var square = 0.0, model = 0.0
    for k in 0..<n {
      square += parts[k] * parts[k]
      model += c[k] * parts[k] + w[k] / 2 * parts[k] * parts[k]
    }
    io.length = square.squareRoot()
    io.hard = hard ? 1 : 0
    io.value = model + h.cubic / 6 * io.length * square
    return .done(.converged)
  }
}
