import Glibc
import ThalwegCore

/// The pair of Tsitouras, orders 5 and 4: what both penalties read off a step of an adaptive solver.
private enum Tsit5 {
  /// Weights of k₁…k₅ in the sixth stage.
  static let a6 = [5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383]
  /// Weights of k₁…k₆ in the step, which is the seventh stage.
  static let a7 = [
    0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774,
  ]
  /// Weights of k₁…k₇ in the estimated error.
  static let error = [
    -0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629, 0.5823571654525552,
    -0.45808210592918697, 1.0 / 66,
  ]
  static func combined<T: Real>(_ weights: [Double], _ k: UnsafePointer<T>, _ n: Int, _ i: Int) -> Double {
    weights.enumerated().reduce(0) { $0 + $1.element * Double(k[$1.offset * n + i]) }
  }
}

private let stages: [Input] = [
  .variable("k", "S, 7, n", "stage derivatives of every accepted step"),
  .variable("u0", "S, n", "states before the steps"), .constant("dt", "S", "sizes of the steps"),
]

/// The error that an adaptive solver (Tsit5) estimates, as a penalty: dynamics that are easy to solve.
///
///     err = dt·Σ e_i k_i     u₁ = u₀ + dt·Σ a_7i k_i     sc = atol + rtol·max(|u₀|, |u₁|)
///     E = rms(err/sc)     value = λ·mean over the steps of E·dt (or max)
///
/// The gradients with respect to k and u0 go through err and sc; the host pulls them back through its vector field. A
/// step whose heuristic is zero or not finite counts 0 and has no gradient. On |u₀| = |u₁| the first counts.
/// Differs  the coefficient of the paper falls from 100 to 10 along the run: the host's.
/// Source   Pal et al., 2021, arXiv:2105.03918; local: Pal, Edelman and Rackauckas, 2023, arXiv:2303.02262.
struct ODEErrorReg: Objective {
  static let method = Method(
    "ode_error_reg", .objective, "The error that an adaptive solver estimates, as a penalty on neural ODEs.",
    rule: """
      err = dt*sum_i e_i*k_i, u1 = u0 + dt*sum_i a_7i*k_i, sc = atol + rtol*max(|u0|, |u1|)  (Tsit5)
      value = weight*mean (or max) over the steps of rms(err/sc)*dt
      """,
    source: "Pal, Ma, Shah, Rackauckas, 2021, arXiv:2105.03918",
    parameters: [
      .number("atol", nil, .above(0), "absolute tolerance of the solver"),
      .number("rtol", nil, .above(0), "relative tolerance of the solver"),
      .number("weight", 100, .atLeast(0), "coefficient"),
      .choice("aggregate", ["mean", "max"], "over the steps"),
    ], inputs: stages)

  let atol, rtol, weight: Double, worst: Bool
  init(_ h: Hyper) { (atol, rtol, weight, worst) = (h.atol, h.rtol, h.weight, h.is("aggregate", "max")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let k = try x["k"], u0 = try x["u0"], dt = try x["dt"], steps = x.sizes["S"], n = x.sizes["n"]
    try Memory.ask(32 * n)
    let gk = try cache?.keep("k", 7 * steps * n, T.self), gu = try cache?.keep("u0", steps * n, T.self)
    var q = [Double](repeating: 0, count: n), scale = q, top = q  // top: the derivative of max(|u0|, |u1|) by its u
    var values: [Double] = []
    func measure(_ s: Int) -> Double {
      let k = k + 7 * s * n, step = Double(dt[s])
      var sum = 0.0
      for i in 0..<n {
        let before = Double(u0[s * n + i]), after = before + step * Tsit5.combined(Tsit5.a7, k, n, i)
        scale[i] = atol + rtol * max(abs(before), abs(after))
        top[i] = abs(after) > abs(before) ? signOf(after) : 2 * signOf(before)  // 2: it does not depend on k
        q[i] = step * Tsit5.combined(Tsit5.error, k, n, i) / scale[i]
        sum += q[i] * q[i]
      }
      return (sum / Double(n)).squareRoot()
    }
    for s in 0..<steps {
      let e = measure(s) * Double(dt[s])
      values.append(e.isFinite ? e : 0)
    }
    let share = shares(values, worst)
    for s in 0..<steps where share[s] != 0 && values[s] != 0 {
      guard let gk, let gu else { break }
      // E = rms(q): dE = Σ q·dq/(nE), dq = d err/sc − q·d sc/sc
      let e = measure(s), step = Double(dt[s])
      for i in 0..<n {
        let dq = weight * share[s] * step * q[i] / (Double(n) * e), first = abs(top[i]) == 2
        let du = -dq * q[i] / scale[i] * rtol * (first ? top[i] / 2 : top[i])
        gu[s * n + i] = T(du)
        for j in 0..<7 {
          let through = j < 6 && !first ? du * step * Tsit5.a7[j] : 0
          gk[(7 * s + j) * n + i] = T(dq / scale[i] * step * Tsit5.error[j] + through)
        }
      }
    }
    return weight * zip(share, values).reduce(0) { $0 + $1.0 * $1.1 }
  }
}

/// The stiffness that a solver (Tsit5) can read off its last two stages, as a penalty.
///
///     g₆ = u₀ + dt·Σ a_6i k_i     g₇ = u₀ + dt·Σ a_7i k_i
///     S = rms(k₇ − k₆)/(rms(g₇ − g₆)·stability), 0 where the stages coincide     value = λ·max over the steps of S
///
/// u₀ drops out of g₇ − g₆, so that its gradient is 0. A heuristic that is not finite counts 0.
/// Differs  on a tie of the largest, the first step alone has a gradient.
/// Source   Pal et al., 2021, arXiv:2105.03918.
struct ODEStiffnessReg: Objective {
  static let method = Method(
    "ode_stiffness_reg", .objective, "The stiffness that a solver reads off its stages, as a penalty on neural ODEs.",
    rule: """
      g6 = u0 + dt*sum_i a_6i*k_i, g7 = u0 + dt*sum_i a_7i*k_i  (Tsit5)
      value = weight*max (or mean) over the steps of rms(k7 - k6)/(rms(g7 - g6)*stability)
      """,
    source: "Pal, Ma, Shah, Rackauckas, 2021, arXiv:2105.03918",
    parameters: [
      .number("weight", 0.1, .atLeast(0), "coefficient"),
      .choice("aggregate", ["max", "mean"], "over the steps"),
      .number("stability", 3.5068, .above(0), "stability size of the method"),
    ], inputs: stages)

  let weight, stability: Double, worst: Bool
  init(_ h: Hyper) { (weight, stability, worst) = (h.weight, h.stability, h.is("aggregate", "max")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let k = try x["k"], dt = try x["dt"], steps = x.sizes["S"], n = x.sizes["n"]
    _ = try x["u0"]
    let gk = try cache?.keep("k", 7 * steps * n, T.self)
    _ = try cache?.keep("u0", steps * n, T.self)
    let weights = Tsit5.a7.indices.map { Tsit5.a7[$0] - ($0 < 5 ? Tsit5.a6[$0] : 0) }
    func parts(_ s: Int, _ i: Int) -> (slope: Double, move: Double) {
      let k = k + 7 * s * n
      return (Double(k[6 * n + i]) - Double(k[5 * n + i]), Double(dt[s]) * Tsit5.combined(weights, k, n, i))
    }
    func squares(_ s: Int) -> (slope: Double, move: Double) {
      (0..<n).reduce((0, 0)) {
        let (a, b) = parts(s, $1)
        return ($0.0 + a * a, $0.1 + b * b)
      }
    }
    let values = (0..<steps).map { s in
      let (a, b) = squares(s), value = (a / b).squareRoot() / stability
      return value.isFinite ? value : 0
    }
    let share = shares(values, worst)
    for s in 0..<steps where share[s] != 0 && values[s] != 0 {
      guard let gk else { break }
      let (a, b) = squares(s), c = weight * share[s] * values[s]
      for i in 0..<n {
        let (slope, move) = parts(s, i)
        for j in 0..<7 {
          let direct = j == 6 ? slope / a : j == 5 ? -slope / a : 0
          let through = j < 6 ? move / b * Double(dt[s]) * weights[j] : 0
          gk[(7 * s + j) * n + i] = T(c * (direct - through))
        }
      }
    }
    return weight * zip(share, values).reduce(0) { $0 + $1.0 * $1.1 }
  }
}

/// What every step counts: 1/S, or 1 for the first of the largest.
private func shares(_ values: [Double], _ worst: Bool) -> [Double] {
  guard worst else { return values.map { _ in 1 / Double(values.count) } }
  let top = values.indices.reduce(0) { values[$1] > values[$0] ? $1 : $0 }
  return values.indices.map { $0 == top ? 1 : 0 }
}
