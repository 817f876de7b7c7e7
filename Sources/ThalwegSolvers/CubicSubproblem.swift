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
/// Differs  nothing.
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
      .number("M", nil, .above(0), "cubic constant"),
      .number("tol", 1e-12, .above(0), "relative width of the bracket of the root"),
    ],
    inputs: [
      .constant("g", "n", "gradient"), .constant("hessian", "n, n", "symmetric"), .result("step", "n", "h"),
      .result("length", "", "r"), .result("value", "", "the model there"), .result("hard", "", "1 in the hard case"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let g = try io["g"], hessian = try io["hessian"]
    guard g.isFinite, hessian.isFinite else {
      throw Failure(Status.nonfinite, "`g` and `hessian` must be finite")
    }
    let s = try CubicModel(hessian).minimiser(g, cubic: h.M, tol: h.tol)
    s.step(into: try io["step"])
    (io.length, io.hard, io.value) = (s.length, s.hard ? 1 : 0, s.value)
    return .done(.converged)
  }
}

/// A quadratic by the eigenpairs of its Hessian, so that many shifts of it are cheap: w descending, columns V.
struct CubicModel {
  let w: [Double], vectors: [Double]
  var n: Int { w.count }

  /// Of a matrix that counts as symmetric: its upper triangle counts with its lower.
  init<T: Real>(_ hessian: Vector<T>) throws(Failure) {
    let n = hessian.rows
    try Memory.ask(8 * n * n)
    let a = (0..<n * n).map { (Double(hessian.p[$0]) + Double(hessian.p[$0 % n * n + $0 / n])) / 2 }
    let eigen = try LinearAlgebra.Eigen(a, n)
    (w, vectors) = (eigen.values, eigen.vectors)
  }
  /// As it was kept.
  init<T: Real>(values: Vector<T>, vectors: Vector<T>) {
    w = (0..<values.count).map { Double(values.p[$0]) }
    self.vectors = (0..<vectors.count).map { Double(vectors.p[$0]) }
  }
  func keep<T: Real>(_ values: Vector<T>, _ columns: Vector<T>) {
    for k in 0..<n { values.p[k] = T(w[k]) }
    for i in 0..<n * n { columns.p[i] = T(vectors[i]) }
  }

  /// Vᵀ·g.
  func coordinates<T: Real>(_ g: Vector<T>) -> [Double] {
    var c = [Double](repeating: 0, count: n)
    for i in 0..<n { for k in 0..<n { c[k] += vectors[i * n + k] * Double(g.p[i]) } }
    return c
  }
  /// out ← V·parts.
  func vector<T: Real>(_ parts: [Double], into out: Vector<T>) {
    for i in 0..<n {
      var sum = 0.0
      for k in 0..<n { sum += vectors[i * n + k] * parts[k] }
      out.p[i] = T(sum)
    }
  }

  /// What is found: coordinates in the eigenvectors.
  struct Minimiser {
    let model: CubicModel, parts: [Double], length: Double, value: Double, hard: Bool
    func step<T: Real>(into out: Vector<T>) { model.vector(parts, into: out) }
  }

  /// Of g·h + ½·hᵀ·H·h + cubic/6·|h|³.
  func minimiser<T: Real>(_ g: Vector<T>, cubic: Double, tol: Double) -> Minimiser {
    let half = cubic / 2, c = coordinates(g), lowest = w[n - 1]
    let near = 64 * 0x1p-52 * max(abs(w[0]), abs(lowest), 1e-300), size = g.norm
    // r by the shift s above the lowest eigenvalue: where g has hardly anything along it, r cannot tell so small an s
    let base = min(lowest, 0)
    func radius(_ s: Double) -> Double { (s - base) / half }
    func length(_ s: Double, besides: Bool = false) -> Double {
      var sum = 0.0
      for k in 0..<n where c[k] != 0 && !(besides && w[k] - lowest <= near) {
        let x = c[k] / (w[k] - base + s)
        sum += x * x
      }
      return sum.squareRoot()
    }
    // what lies along the lowest eigenvectors, to rounding
    var along = 0.0
    for k in 0..<n where w[k] - lowest <= near { along += c[k] * c[k] }
    let hard = lowest < -near && along.squareRoot() <= 16 * 0x1p-52 * size && length(0, besides: true) < radius(0)
    var s = 0.0
    if !hard, size > 0 {
      var low = 0.0, high = max((size * half).squareRoot(), 1e-300)
      while length(high) > radius(high) { high *= 2 }
      while high - low > tol * high {
        let middle = low + (high - low) / 2
        if middle <= low || middle >= high { break }
        if length(middle) > radius(middle) { low = middle } else { high = middle }
      }
      s = high
    }
    var parts = (0..<n).map { k in
      let divisor = w[k] - base + s
      return (hard && w[k] - lowest <= near) || c[k] == 0 || divisor == 0 ? 0 : -c[k] / divisor
    }
    if hard {
      // one of the lowest eigenvectors takes what is missing, in its own direction
      let rest = parts.reduce(0) { $0 + $1 * $1 }, r = radius(0)
      parts[n - 1] = max(0, r * r - rest).squareRoot()
    }
    var square = 0.0, model = 0.0
    for k in 0..<n {
      square += parts[k] * parts[k]
      model += c[k] * parts[k] + w[k] / 2 * parts[k] * parts[k]
    }
    let norm = square.squareRoot()
    return Minimiser(model: self, parts: parts, length: norm, value: model + cubic / 6 * norm * square, hard: hard)
  }
}
