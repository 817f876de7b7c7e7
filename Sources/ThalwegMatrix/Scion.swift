import ThalwegCore

/// Scion: steps to the farthest point of a norm ball, a norm for every tensor.
///
///     b ← (1 − μ)·b + μ·g;   D = direction(b);   θ ← θ·(1 − lr) − lr·scale·D,  unconstrained: θ − lr·scale·D
///
///     spectral              √(out/in)·NS(b);  spectral_unnormalized √out·NS;  spectral_max max(1, √(out/in))·NS
///     spectral_conv         √(c_out/c_in)/k^(rank − 2)·NS(b as (out, rest)),  k the first kernel size
///     bias_rms              b/(rms(b) + 10⁻⁸);   sign sign(b)/in;  sign_unnormalized sign(b)
///     col, col_normalized   columns over their rms + 10⁻⁸, over in·rms + 10⁻⁸;   embed_row rows over their rms
///     row                   rows over √in·‖row‖ + 10⁻⁸;  row_unnormalized over ‖row‖ + 10⁻⁸
///     auto                  spectral_conv for rank 3 and more, spectral for matrices, else bias_rms
///
/// Shapes   (out, in) is the matrix view (out, rest); a vector is one row.
/// State    b, unless momentum is 1.
/// Differs  `momentum` is the weight of the new gradient, as in the authors' code, which runs Newton-Schulz in
///          bfloat16.
/// Source   Pethick et al., 2025, arXiv:2502.07529.
struct Scion: WholeRule {
  private static let small = 1e-8
  static let norms = [
    "auto", "bias_rms", "spectral", "spectral_unnormalized", "spectral_max", "spectral_conv", "col", "col_normalized",
    "embed_row", "row", "row_unnormalized", "sign", "sign_unnormalized",
  ]
  static let method = Method(
    "scion", .optimizer, "Steps to the farthest point of a norm ball, a norm for every tensor.",
    rule: """
      b <- (1 - momentum)*b + momentum*g;  D = direction(b) of the norm
      theta <- theta*(1 - lr) - lr*scale*D;  unconstrained: theta - lr*scale*D
      spectral: sqrt(out/in)*newton_schulz(b);  bias_rms: b/rms(b);  sign: sign(b)/in;  col, row: normalised lines
      """,
    source: "Pethick, Xie, Antonakopoulos, Zhu, Silveti-Falls, Cevher, 2025, arXiv:2502.07529",
    parameters: [
      .lr(1e-3, .within(0, 1)),
      .number("momentum", 0.1, .between(0, 1, lowOpen: true, highOpen: false), "weight of the new gradient").fixed,
      .number("scale", 1, .above(0), "radius of the ball"),
      .choice("norm", norms, "of the ball; auto goes by the rank", live: false),
      .flag("unconstrained", false, "do not shrink the parameters"),
    ] + NewtonSchulz.parameters() + [
      .eps(1e-7, "added to the norm that divides in the iteration", .above(0)), NewtonSchulz.precision,
    ],
    slots: [.moment("momentum_buffer", "the averaged gradient b")], needsFinite: true,
    validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "scion") })

  private static func norm(_ h: Hyper, _ shape: Shape) -> String {
    let word = norms.first { h.is("norm", $0) } ?? "auto"
    return word != "auto" ? word : shape.ndim > 2 ? "spectral_conv" : shape.ndim == 2 ? "spectral" : "bias_rms"
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let momentum: Double = h.momentum
    return momentum == 1 ? [] : method.slots
  }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    if norm(h, shape).hasPrefix("spectral") { try matrix(shape, "scion: norm=\(norm(h, shape))") }
  }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    norm(h, shape).hasPrefix("spectral") ? NewtonSchulz.space(h, shape.rows, shape.columns, size) : 0
  }

  let schulz: NewtonSchulz
  let momentum, scale, shrink: Double
  let h: Hyper

  init(_ h: Hyper, _ c: StepContext) {
    schulz = NewtonSchulz(h, eps: h.eps, clamp: false)
    (momentum, scale, self.h) = (h.momentum, h.scale, h)
    shrink = h.unconstrained ? 0 : 1
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let n = t.count
    if momentum != 1 {
      Flat.change(Muon.Momentum(mu: 1 - momentum, new: momentum, nesterov: false), t.v, t.slots[0], n)
    }
    try direct(t, Scion.norm(h, t.shape))
    if shrink != 0 { Flat.add(t.w, times: shrink, into: t.v, n) }
  }

  /// v ← scale·direction(v)
  private func direct<T: Real>(_ t: Whole<T>, _ norm: String) throws(Failure) {
    let n = t.count, out = Double(t.rows), fanIn = Double(t.columns)
    func spectral(_ factor: Double) throws(Failure) {
      try schulz.apply(t.v, t.rows, t.columns, scale: scale * factor, t.workspace)
    }
    func lines(_ slices: Slices, _ divisor: (Double) -> Double) throws(Failure) {
      slices.scale(t.v, by: try slices.norms(t.v).map { $0 == 0 ? 0 : scale / divisor($0) })
    }
    let small = Scion.small
    switch norm {
    case "spectral": try spectral((out / fanIn).squareRoot())
    case "spectral_unnormalized": try spectral(out.squareRoot())
    case "spectral_max": try spectral(max(1, (out / fanIn).squareRoot()))
    case "spectral_conv":
      let d = t.shape.dimensions, kernel = d.count > 2 ? Double(d[2]) : 1, inputs = Double(max(1, d[1]))
      try spectral((out / inputs).squareRoot() / power(kernel, d.count - 2))
    case "col": try lines(.columns(t.shape)) { $0 / out.squareRoot() + small }
    case "col_normalized": try lines(.columns(t.shape)) { $0 / out.squareRoot() * fanIn + small }
    case "embed_row": try lines(.rows(t.shape)) { $0 / fanIn.squareRoot() + small }
    case "row": try lines(.rows(t.shape)) { $0 * fanIn.squareRoot() + small }
    case "row_unnormalized": try lines(.rows(t.shape)) { $0 + small }
    case "sign", "sign_unnormalized":
      let size = T(norm == "sign" ? scale / fanIn : scale)
      for i in 0..<n { t.v[i] = t.v[i] > 0 ? size : t.v[i] < 0 ? -size : 0 }
    default: try lines(.whole(t.shape)) { $0 / Double(n).squareRoot() + small }
    }
  }
}
