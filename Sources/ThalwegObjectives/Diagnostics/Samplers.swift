import Glibc
import ThalwegCore

/// The one time at which a neural ODE is regularised, instead of along the whole solution.
///
///     unbiased: t = t_first + u·(t_last − t_first);   biased: one of the accepted times but the last, evenly
///
/// times (S,) are those of the accepted steps, u is a uniform draw in [0, 1) of the host. From there one step of the
/// solver goes into `ode_error_reg` or `ode_stiffness_reg`. `index` is the accepted time at or before t.
/// Errors   TW_ERROR_RANGE: u outside [0, 1), or times that do not rise.
/// Source   Pal, Edelman, Rackauckas, 2023, arXiv:2303.02262.
struct LocalODEReg: Objective {
  static let method = Method(
    "local_ode_reg", .diagnostic, "The one time at which a neural ODE is regularised.",
    rule: "unbiased: t = first + u*(last - first);  biased: an accepted time but the last, evenly",
    source: "Pal, Edelman, Rackauckas, 2023, arXiv:2303.02262",
    parameters: [.choice("mode", ["unbiased", "biased"], "from where the time is drawn")],
    inputs: [
      .constant("times", "S", "times of the accepted steps"), .constant("u", "", "a uniform draw in [0, 1)"),
      .result("time", "", "the time"), .result("index", "", "the accepted time at or before it"),
    ])
  let biased: Bool
  init(_ h: Hyper) { biased = h.is("mode", "biased") }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let times = try x["times"], n = x.sizes["S"], u = Double(try x["u"][0])
    guard u >= 0, u < 1 else { throw Failure(Status.range, "local_ode_reg: `u` must be in [0, 1), got \(text(u))") }
    for i in 1..<max(1, n) where !(times[i] > times[i - 1]) {
      throw Failure(Status.range, "local_ode_reg: `times` must rise, got \(times[i]) after \(times[i - 1])")
    }
    let first = Double(times[0])
    var at = min(Int(u * Double(n - 1)), max(0, n - 2)), time = Double(times[at])
    if !biased {
      time = first + u * (Double(times[n - 1]) - first)
      at = (0..<max(1, n - 1)).last { Double(times[$0]) <= time } ?? 0
    }
    try cache?.keep("time", 1, T.self)[0] = T(time)
    try cache?.keep("index", 1, T.self)[0] = T(at)
    return time
  }
}

/// The exact proximal point of a loss of one sample: linear regression, or phase retrieval.
///
///     square: ½(⟨a, u⟩ − b)²:   x − lr·(⟨a, x⟩ − b)/(1 + lr·|a|²)·a
///     phase: |⟨a, u⟩² − b|:     the best of x + s·a, s in {−2·lr·q/(2·lr·|a|² ± 1), (±√b − q)/|a|²}, q = ⟨a, x⟩
///
/// The value is that of the model at the point, ℓ(u) + |u − x|²/(2·lr), the least there is.
/// Differs  Gauss-Newton systems of vector maps are the host's.
/// Source   Davis, Drusvyatskiy, 2019, arXiv:1803.06523.
struct ProxPoint: Objective {
  static let method = Method(
    "prox_point", .diagnostic, "The exact proximal point of a loss of one sample: linear regression, phase retrieval.",
    rule: """
      square 1/2*(<a,u> - b)^2: x - lr*(<a,x> - b)/(1 + lr*|a|^2)*a
      phase |<a,u>^2 - b|: best of x + s*a, s in {-2*lr*q/(2*lr*|a|^2 +- 1), (+-sqrt(b) - q)/|a|^2}, q = <a,x>
      """,
    source: "Davis, Drusvyatskiy, 2019, arXiv:1803.06523",
    parameters: [.number("lr", nil, .above(0), "step size"), .choice("loss", ["square", "phase"], "of a sample")],
    inputs: [
      .constant("x", "n", "where it starts"), .constant("a", "n", "the sample"), .constant("b", "", "its value"),
      .result("point", "n", "the proximal point"),
    ])
  let lr: Double, square: Bool
  init(_ h: Hyper) { (lr, square) = (h.lr, h.is("loss", "square")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let p = try x["x"], a = try x["a"], b = Double(try x["b"][0]), n = x.sizes["n"]
    let q = Flat.dot(a, p, n), size = Flat.squaredNorm(a, n)
    func value(_ s: Double) -> Double {
      let along = q + s * size
      return (square ? (along - b) * (along - b) / 2 : abs(along * along - b)) + s * s * size / (2 * lr)
    }
    var best = 0.0
    if square {
      best = -lr * (q - b) / (1 + lr * size)
    } else if size > 0 {
      var steps = [-2 * lr * q / (2 * lr * size + 1)]
      if 2 * lr * size != 1 { steps.append(-2 * lr * q / (2 * lr * size - 1)) }
      if b >= 0 { steps += [(b.squareRoot() - q) / size, (-b.squareRoot() - q) / size] }
      for s in steps where value(s) < value(best) { best = s }
    }
    if let point = try cache?.keep("point", n, T.self) {
      for i in 0..<n { point[i] = T(Double(p[i]) + best * Double(a[i])) }
    }
    return value(best)
  }
}
